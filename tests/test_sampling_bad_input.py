"""Bad input of the samplers: one table of calls with the exact exception and message."""

import pytest
import torch
from torch.autograd import forward_ad

import imbal_kernels as ik

X = torch.arange(60.0).view(20, 3)
Y = (torch.arange(20) < 6).long()
THREE = torch.tensor([0] * 10 + [1] * 7 + [2] * 3)


def call(name, x=X, y=Y, **options):
    return lambda: getattr(ik, name)(x, y, **options)


def smote(x=X, y=Y, **options):
    return call("smote", x, y, **options)


def under(x=X, y=Y, **options):
    return call("random_undersample", x, y, **options)


def over(x=X, y=Y, **options):
    return call("random_oversample", x, y, **options)


def patched(value, row=4, column=1):
    x = X.clone()
    x[row, column] = value
    return x


def strategy(name, got, excluded):
    names = [n for n in ("all", "auto", "majority", "minority", "not majority", "not minority") if n != excluded]
    return (
        f"The 'sampling_strategy' parameter of {name} must be a float in the range (0.0, 1.0], a str among {names}, "
        f"an instance of 'collections.abc.Mapping' or a callable. Got {got} instead."
    )


def too_few(k, rows, where, name):
    return (
        f"Expected n_neighbors <= n_samples_fit, but n_neighbors = {k + 1}, n_samples_fit = {rows}: "
        f"{where} too few rows for {name}={k}"
    )


ONE_CLASS = "The target 'y' needs to have more than 1 class. Got 1 class instead"
RATIO = "The specified ratio required to remove samples from the minority class while trying to generate new samples."
FAR_Y = torch.tensor([0] * 25 + [1] * 15)
SPLIT = torch.cat((torch.randn(25, 3), torch.randn(15, 3) + 1e6))
SAME = (
    "With over-sampling methods, the number of samples in a class should be greater or equal to the original number of "
    "samples. Originally, there is 6 samples and 5 samples are asked."
)

CASES = [
    # X and y
    (smote([[1.0]]), TypeError, "X must be a Tensor, got list"),
    (smote(y=None), TypeError, "y must be a Tensor, got NoneType"),
    (smote(X.to_sparse()), ValueError, "X must be a strided tensor, got torch.sparse_coo"),
    (smote(X + 0j), TypeError, "X must be float32, float64, bfloat16, float16, integer or bool, got torch.complex64"),
    (smote(y=Y.float()), TypeError, "y must hold class labels, integer or bool, got torch.float32"),
    (smote(X[None]), ValueError, "X must have shape (rows, features), got (1, 20, 3)"),
    (smote(X[:, 0]), ValueError, "X must have shape (rows, features), got (20,)"),
    (smote(y=Y[:, None]), ValueError, "y must have shape (rows,), one class label a row, got (20, 1)"),
    (smote(X[:0], Y[:0]), ValueError, "X must have at least one row and one feature, got shape (0, 3)"),
    (under(X[:, :0]), ValueError, "X must have at least one row and one feature, got shape (20, 0)"),
    (smote(y=Y[1:]), ValueError, "X and y must have the same number of rows, got 20 and 19"),
    (smote(y=Y.to("meta")), ValueError, "y must be on the device of X, cpu, got meta"),
    (smote(X.clone().requires_grad_()), ValueError,
     "X requires grad, but no gradient is computed for it: pass X.detach()"),
    (smote(patched(float("nan"))), ValueError, "X must be finite, got nan at row 4, feature 1"),
    (call("adasyn", patched(float("-inf"), 19, 2)), ValueError, "X must be finite, got -inf at row 19, feature 2"),
    (over(patched(float("inf")), shrinkage=1.0), ValueError, "X must be finite, got inf at row 4, feature 1"),
    (smote(y=Y * 0), ValueError, ONE_CLASS),
    (under(y=Y * 0 + 5), ValueError, ONE_CLASS),
    # neighbours
    (smote(torch.zeros(20, 4097)), ValueError,
     "X must have at most 4096 features, or no neighbours are found, got 4097"),
    (smote(k_neighbors=0), ValueError, "k_neighbors must be from 1 to 4095, got 0"),
    (smote(k_neighbors=4096), ValueError, "k_neighbors must be from 1 to 4095, got 4096"),
    (smote(k_neighbors=2.5), TypeError, "k_neighbors must be an int, got float"),
    (smote(k_neighbors="a"), TypeError, "k_neighbors must be an int, got str"),
    (smote(k_neighbors=True), TypeError, "k_neighbors must be an int, got bool"),
    (call("borderline_smote", m_neighbors=0), ValueError, "m_neighbors must be from 1 to 4095, got 0"),
    (call("adasyn", n_neighbors=-1), ValueError, "n_neighbors must be from 1 to 4095, got -1"),
    (smote(k_neighbors=6), ValueError, too_few(6, 6, "class 1 has", "k_neighbors")),
    (smote(y=THREE), ValueError, too_few(5, 3, "class 2 has", "k_neighbors")),
    (smote(y=(torch.arange(20) == 3).long(), k_neighbors=1), ValueError,
     too_few(1, 1, "class 1 has", "k_neighbors")),
    (call("adasyn", n_neighbors=6), ValueError, too_few(6, 6, "class 1 has", "n_neighbors")),
    (call("borderline_smote", m_neighbors=20), ValueError, too_few(20, 20, "X has", "m_neighbors")),
    (call("borderline_smote", k_neighbors=6), ValueError, too_few(6, 6, "class 1 has", "k_neighbors")),
    (call("borderline_smote", k_neighbors=20, kind="borderline-2"), ValueError,
     too_few(20, 20, "X has", "k_neighbors")),
    (call("borderline_smote", kind="x"), ValueError, "kind must be \"borderline-1\" or \"borderline-2\", got 'x'"),
    (call("borderline_smote", SPLIT, FAR_Y), ValueError,
     "class 1 has no row in danger, with at least half but not all of its m_neighbors=10 nearest rows in other "
     "classes: borderline_smote has no row to start from, smote has"),
    (call("adasyn", SPLIT, FAR_Y), ValueError,
     "no row of class 1 has a neighbour of another class: adasyn has no row to start from, smote has"),
    # sampling_strategy
    (smote(sampling_strategy="foo"), ValueError, strategy("smote", "'foo'", "majority")),
    (smote(sampling_strategy="majority"), ValueError, strategy("smote", "'majority'", "majority")),
    (under(sampling_strategy="minority"), ValueError, strategy("random_undersample", "'minority'", "minority")),
    (smote(sampling_strategy=1.5), ValueError, strategy("smote", "1.5", "majority")),
    (smote(sampling_strategy=0.0), ValueError, strategy("smote", "0.0", "majority")),
    (smote(sampling_strategy=float("nan")), ValueError, strategy("smote", "nan", "majority")),
    (smote(sampling_strategy=[1]), TypeError, strategy("smote", "[1]", "majority")),
    (smote(sampling_strategy=None), TypeError, strategy("smote", "None", "majority")),
    (smote(sampling_strategy=True), TypeError, strategy("smote", "True", "majority")),
    (smote(sampling_strategy=0.3), ValueError, f"{RATIO} Please increase the ratio."),
    (smote(y=THREE, sampling_strategy=0.9), ValueError,
     '"sampling_strategy" can be a float only when the type of target is binary. For multi-class, use a dict.'),
    (under(sampling_strategy=0.2), ValueError,
     "The specified ratio required to generate new sample in the majority class while trying to remove samples. "
     "Please increase the ratio."),
    (smote(sampling_strategy={1: 5}), ValueError, SAME),
    (smote(sampling_strategy=lambda y: {1: 5}), ValueError, SAME),
    (under(sampling_strategy={0: 15}), ValueError,
     "With under-sampling methods, the number of samples in a class should be less or equal to the original number of "
     "samples. Originally, there is 14 samples and 15 samples are asked."),
    (smote(sampling_strategy={7: 5, 9: 3}), ValueError, "The {7, 9} target class is/are not present in the data."),
    (smote(sampling_strategy={1: -5}), ValueError,
     "The number of samples in a class cannot be negative.'sampling_strategy' contains some negative value: {1: -5}"),
    (smote(sampling_strategy={1: 9.5}), TypeError,
     "sampling_strategy must map ints to ints, got float for rows asked of class 1"),
    (smote(sampling_strategy={"a": 9}), TypeError,
     "sampling_strategy must map ints to ints, got str for class 'a'"),
    (smote(sampling_strategy=lambda y: 3), TypeError,
     "sampling_strategy must return a mapping of class to rows, got int"),
    (smote(sampling_strategy={1: 2**62}), ValueError,
     f"sampling_strategy asks for {2**62 - 6} new rows of 3 features, more than a tensor holds"),
    (over(sampling_strategy={1: 2**80}), ValueError,
     f"sampling_strategy asks for {2**80 - 6} new rows of 3 features, more than a tensor holds"),
    # generator
    (smote(generator=0), TypeError, "generator must be a torch.Generator or None, got int"),
    (smote(generator=-1), TypeError, "generator must be a torch.Generator or None, got int"),
    # provenance
    (smote(return_provenance="yes"), TypeError, "return_provenance must be a bool, got str"),
    (call("borderline_smote", return_provenance=1), TypeError, "return_provenance must be a bool, got int"),
    (call("adasyn", return_provenance=None), TypeError, "return_provenance must be a bool, got NoneType"),
    # random
    (over(shrinkage=-1.0), ValueError, "The shrinkage factor needs to be >= 0. Got -1.0 for class 1."),
    (over(shrinkage={1: float("inf")}), ValueError, "The shrinkage factor needs to be >= 0. Got inf for class 1."),
    (over(shrinkage={0: 1.0}), ValueError,
     "`shrinkage` should contain a shrinkage factor for each class that will be resampled. "
     "The missing classes are: {1}"),
    (over(shrinkage="a"), TypeError, "shrinkage must be a number or a mapping of class to number, got str"),
    (over(X.long(), shrinkage=1.0), TypeError, "shrinkage adds noise: X must be floating point, got torch.int64"),
    (under(replacement=1), TypeError, "replacement must be a bool, got int"),
]  # fmt: skip


@pytest.mark.parametrize("call, exception, message", CASES, ids=[case[2][:60] for case in CASES])
def test_message(call, exception, message):
    state = torch.random.get_rng_state()
    with pytest.raises(exception) as raised:
        call()
    assert type(raised.value) is exception
    assert str(raised.value) == message
    assert torch.equal(torch.random.get_rng_state(), state), "an error takes no draw from the generator"


def test_noise_that_overflows():
    x = torch.linspace(-6e4, 6e4, 40).half()[:, None]
    with pytest.raises(ValueError, match="X with noise must stay within torch.float16: it must be finite, got -?inf"):
        ik.random_oversample(x, (torch.arange(40) % 5 == 0).long(), shrinkage=3.0)


def test_bad_values_in_what_is_only_copied():
    """Over- and under-sampling at random copy rows, whatever they hold, as imbalanced-learn does."""
    x = patched(float("nan"))
    assert ik.random_oversample(x, Y)[0].isnan().any() and ik.random_undersample(x, Y)[0].shape == (12, 3)


@pytest.mark.parametrize("name", ["smote", "borderline_smote", "adasyn", "random_oversample", "random_undersample"])
def test_derivatives(name):
    """None is computed: a tensor that asks for one is refused, forwards too, unless nobody differentiates."""
    sampler = getattr(ik, name)
    message = r"X has a tangent, but no derivative is computed for it: pass X.detach\(\)"
    with forward_ad.dual_level(), pytest.raises(ValueError, match=message):
        sampler(forward_ad.make_dual(X, X), Y)
    x = torch.randn(40, 3, requires_grad=True)
    y = (torch.arange(40) < 12).long()
    with pytest.raises(ValueError, match="X requires grad"):
        sampler(x, y)
    with torch.no_grad():
        rows, _ = sampler(x, y, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows, sampler(x.detach(), y, generator=torch.Generator().manual_seed(0))[0])
