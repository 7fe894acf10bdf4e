"""Bad input: one table of calls with the exact exception and message."""

import pytest
import torch

import imbal_kernels as ik

X, T, IDS = torch.zeros(4, 3), torch.zeros(4, 3), torch.tensor([0, 2, -1, 3])


def focal(x=X, t=T, **options):
    return lambda: ik.sigmoid_focal_loss(x, t, **options)


def bce(x=X, t=T, **options):
    return lambda: ik.binary_cross_entropy_with_logits(x, t, **options)


def quality(x=X, t=IDS, **options):
    return lambda: ik.quality_focal_loss(x, t, **options)


SQUARED = ik.Formula(lambda x, t: (torch.sigmoid(x) - t) ** 2)


def grad(*shape):
    return torch.ones(shape, requires_grad=True)


def numbers(name, value):
    return f"{name} must be a number, got {value}"


def requires_grad(name):
    return f"{name} requires grad, but no gradient is computed for it: pass {name}.detach()"


INPUT_DTYPE = "must be float32, bfloat16, float16 or float64, got"
IDS_RANGE = "class ids are 0 to 2, -1 and 3 are background"
PER_CLASS = (
    "a 1-d weight is per class and must have shape (3,), got (4,); for one weight per row pass weight[:, None], "
    "for one per label weight[labels][:, None]"
)
SCHEMES = "('balanced', 'inverse', 'inverse_sqrt', 'effective')"
ALPHA = "alpha must be a number (below 0: off) or a (3,) tensor, got"
OUT_OF_RANGE = "is out of range: values must be in [0, 1] or ignore_index, -100"
DEVICE = "must be on the device of the logits, cpu, got meta"

CASES = [
    # logits
    (focal([1.0]), TypeError, "inputs must be a Tensor, got list"),
    (bce([1.0]), TypeError, "input must be a Tensor, got list"),
    (focal(X.long()), TypeError, f"inputs {INPUT_DTYPE} torch.int64"),
    (bce(X.bool()), TypeError, f"input {INPUT_DTYPE} torch.bool"),
    (focal(X + 0j), TypeError, f"inputs {INPUT_DTYPE} torch.complex64"),
    (focal(X.to_sparse()), ValueError, "inputs must be a strided tensor, got torch.sparse_coo"),
    (focal(torch.zeros(4, 0)), ValueError,
     "inputs must have at least one class in its last dimension, got shape (4, 0)"),
    # targets
    (focal(t=[0]), TypeError, "targets must be a Tensor, got list"),
    (bce(t=None), TypeError, "target must be a Tensor, got NoneType"),
    (focal(t=T + 0j), TypeError, "targets must be real, integer or bool, got torch.complex64"),
    (focal(t=T.to("meta")), ValueError, f"targets {DEVICE}"),
    (focal(t=torch.zeros(4, 2)), ValueError,
     "targets must have the shape of inputs, (4, 3), or (4,) for class ids, got (4, 2)"),
    (focal(t=torch.zeros(3).long()), ValueError,
     "targets must have the shape of inputs, (4, 3), or (4,) for class ids, got (3,)"),
    (bce(t=torch.zeros(4, 1)), ValueError,
     "target must have the shape of input, (4, 3), or (4,) for class ids, got (4, 1)"),
    (focal(t=torch.zeros(4)), TypeError,
     "targets of shape (4,): class ids must be integers, got torch.float32"),
    (bce(t=torch.zeros(4).bool()), TypeError,
     "target of shape (4,): class ids must be integers, got torch.bool"),
    (lambda: ik.sigmoid_focal_loss(X[:, :1], torch.zeros(4)), TypeError,
     "targets of shape (4,): class ids must be integers, values the shape of inputs: targets[:, None], "
     "got torch.float32"),
    (focal(t=torch.tensor([0, 4, 0, 9])), ValueError, f"target 4 at row 1 is out of range: {IDS_RANGE}"),
    (focal(t=torch.tensor([0, 0, -2, 0])), ValueError, f"target -2 at row 2 is out of range: {IDS_RANGE}"),
    (bce(t=torch.tensor([0, 0, 0, 2**32 + 1])), ValueError,
     f"target 4294967297 at row 3 is out of range: {IDS_RANGE}"),
    (focal(t=torch.tensor([-100, 0, 0, 0]), ignore_index=-2), ValueError,
     f"target -100 at row 0 is out of range: {IDS_RANGE}"),
    (focal(t=torch.tensor([[0, 1, 0], [0, 2, 0], [3, 0, 0], [0, 0, 0]])), ValueError,
     f"target 2 at row 1, class 1 {OUT_OF_RANGE}"),
    (bce(t=T.clone().index_fill_(0, torch.tensor([3]), 1.5)), ValueError,
     f"target 1.5 at row 3, class 0 {OUT_OF_RANGE}"),
    (bce(t=T - 0.5), ValueError, f"target -0.5 at row 0, class 0 {OUT_OF_RANGE}"),
    (bce(t=T.clone().index_fill_(0, torch.tensor([2]), -1)), ValueError, f"target -1 at row 2, class 0 {OUT_OF_RANGE}"),
    (focal(t=(2 * T - 1).to(torch.int8)), ValueError, f"target -1 at row 0, class 0 {OUT_OF_RANGE}"),
    (focal(t=T + torch.inf), ValueError, f"target inf at row 0, class 0 {OUT_OF_RANGE}"),
    # alpha and gamma
    (focal(alpha="0.25"), TypeError, f"{ALPHA} str"),
    (focal(alpha=None), TypeError, f"{ALPHA} NoneType"),
    (focal(alpha=True), TypeError, f"{ALPHA} bool"),
    (focal(alpha=1.5), ValueError, "alpha must be at most 1 (below 0 switches it off), got 1.5"),
    (focal(alpha=float("nan")), ValueError, "alpha must be finite, got nan"),
    (focal(alpha=torch.tensor([0.1, 24.0, -1.0])), ValueError,
     "alpha must be at most 1 (below 0 switches it off), got a tensor with 24; "
     "weights of classes go in as weight or pos_weight"),
    (focal(alpha=torch.ones(4)), ValueError, "alpha must be a number or have shape (3,), got (4,)"),
    (focal(alpha=torch.ones(4, 3)), ValueError, "alpha must be a number or have shape (3,), got (4, 3)"),
    (focal(alpha=grad(3)), ValueError, requires_grad("alpha")),
    (focal(alpha=torch.ones(3) + 0j), TypeError, "alpha must be real, got torch.complex64"),
    (focal(gamma=-0.5), ValueError, "gamma must be finite and at least 0, got -0.5"),
    (focal(gamma=2e30), ValueError, "gamma must be at most 1e+30, got 2e+30"),
    (focal(gamma=float("inf")), ValueError, "gamma must be finite and at least 0, got inf"),
    (focal(gamma=float("nan")), ValueError, "gamma must be finite and at least 0, got nan"),
    (focal(gamma=torch.tensor(2.0)), TypeError, numbers("gamma", "Tensor")),
    # reduction and normalizer
    (focal(reduction="avg"), ValueError, "avg is not a valid value for reduction"),
    (bce(reduction=None), ValueError, "None is not a valid value for reduction"),
    (focal(normalizer=3.0), ValueError,
     'normalizer divides a sum: it needs reduction="mean" or "sum", got "none"'),
    (bce(normalizer="negatives"), ValueError,
     'normalizer must be a number, a 0-d tensor, "positives" or "positives_per_image", got "negatives"'),
    (bce(normalizer=0), ValueError, "normalizer must be positive, got 0"),
    (bce(normalizer=-1.0), ValueError, "normalizer must be positive, got -1.0"),
    (bce(normalizer=[1.0]), TypeError, numbers("normalizer", "list")),
    (bce(normalizer=torch.ones(1)), ValueError, "normalizer must be a number or a 0-d tensor, got shape (1,)"),
    (bce(normalizer=grad()), ValueError, requires_grad("normalizer")),
    (bce(normalizer=torch.tensor(1.0, device="meta")), ValueError, f"normalizer {DEVICE}"),
    (bce(normalizer="positives_per_image"), ValueError,
     'normalizer="positives_per_image" needs input of shape (images, ..., C), got (4, 3)'),
    # weights
    (focal(weight=2.0), TypeError, "weight must be a Tensor or None, got float: pass torch.tensor(...)"),
    (focal(weight=torch.ones(4)), ValueError, PER_CLASS),
    (bce(weight=torch.ones(2, 3)), ValueError, "weight must broadcast to input of shape (4, 3), got (2, 3)"),
    (focal(weight=torch.ones(1, 4, 3)), ValueError, "weight must broadcast to inputs of shape (4, 3), got (1, 4, 3)"),
    (focal(weight=grad(3)), ValueError, requires_grad("weight")),
    (focal(weight=torch.ones(3, device="meta")), ValueError, f"weight {DEVICE}"),
    (bce(pos_weight=3), TypeError, "pos_weight must be a Tensor or None, got int: pass torch.tensor(...)"),
    (bce(pos_weight=torch.ones(5)), ValueError, "pos_weight must broadcast to input of shape (4, 3), got (5,)"),
    (bce(pos_weight=grad(3)), ValueError, requires_grad("pos_weight")),
    (bce(pos_weight=torch.ones(3) + 0j), TypeError, "pos_weight must be real, got torch.complex64"),
    # the rest
    (focal(label_smoothing=1.1), ValueError, "label_smoothing must be in [0, 1], got 1.1"),
    (focal(label_smoothing=-0.1), ValueError, "label_smoothing must be in [0, 1], got -0.1"),
    (focal(label_smoothing=None), TypeError, numbers("label_smoothing", "NoneType")),
    (focal(ignore_index=1.0), TypeError, "ignore_index must be an int, got float"),
    (focal(ignore_index=None), TypeError, "ignore_index must be an int, got NoneType"),
    (focal(ignore_index=2**63), ValueError, "ignore_index must fit int64, got 9223372036854775808"),
    (focal(ignore_index=-(2**63) - 1), ValueError, "ignore_index must fit int64, got -9223372036854775809"),
    (focal(loss_weight="2"), TypeError, numbers("loss_weight", "str")),
    (focal(loss_weight=float("nan")), ValueError, "loss_weight must be finite, got nan"),
    (focal(loss_weight=torch.ones(3)), ValueError, "loss_weight must be a number or a 0-d tensor, got shape (3,)"),
    (focal(loss_weight=grad()), ValueError, requires_grad("loss_weight")),
    (focal(process_group=object()), ValueError,
     "process_group is not supported yet: pass normalizer, averaged over ranks, instead"),
    (lambda: ik.SigmoidFocalLoss(gamma=-1)(X, T), ValueError, "gamma must be finite and at least 0, got -1"),
    # quality focal, varifocal, asymmetric
    (quality(beta=0.5), ValueError, "beta must be finite and at least 1, got 0.5"),
    (quality(beta=torch.tensor(2.0)), TypeError, numbers("beta", "Tensor")),
    (quality(scores=[1.0]), TypeError, "scores must be a Tensor or None, got list: pass torch.tensor(...)"),
    (quality(scores=torch.ones(4, 3)), ValueError, "scores must have the shape of targets, (4,), got (4, 3)"),
    (quality(scores=torch.ones(4).long()), TypeError,
     "scores must be float32, bfloat16, float16 or float64, got torch.int64"),
    (quality(scores=torch.ones(4, device="meta")), ValueError, f"scores {DEVICE}"),
    (quality(t=T, scores=torch.ones(4)), ValueError,
     "scores go with class ids; targets of the shape of inputs are scores themselves"),
    (quality(scores=torch.tensor([0.5, 1.5, 0.0, 0.0])), ValueError,
     "score 1.5 at row 1 is out of range: scores must be in [0, 1]"),
    (quality(t=torch.tensor([0, 7, 0, 0]), scores=torch.ones(4)), ValueError,
     f"target 7 at row 1 is out of range: {IDS_RANGE}"),
    (quality(t=T + 2), ValueError, f"target 2 at row 0, class 0 {OUT_OF_RANGE}"),
    (quality(weight=torch.ones(4)), ValueError, PER_CLASS),
    (lambda: ik.varifocal_loss(X, T, alpha=-0.1), ValueError, "alpha must be finite and at least 0, got -0.1"),
    (lambda: ik.varifocal_loss(X, T, alpha=torch.ones(3)), TypeError, numbers("alpha", "Tensor")),
    (lambda: ik.varifocal_loss(X, T, gamma=-1), ValueError, "gamma must be finite and at least 0, got -1"),
    (lambda: ik.asymmetric_loss(X, T, gamma_neg=-1), ValueError, "gamma_neg must be finite and at least 0, got -1"),
    (lambda: ik.asymmetric_loss(X, T, gamma_pos=-1), ValueError, "gamma_pos must be finite and at least 0, got -1"),
    (lambda: ik.asymmetric_loss(X, T, clip=-0.1), ValueError, "clip must be in [0, 1], got -0.1"),
    (lambda: ik.asymmetric_loss(X, T, clip=1.5), ValueError, "clip must be in [0, 1], got 1.5"),
    (lambda: ik.asymmetric_loss(X, T, clip=None), TypeError, numbers("clip", "NoneType")),
    (lambda: ik.AsymmetricLoss(reduction="max")(X, T), ValueError, "max is not a valid value for reduction"),
    # a formula of one's own
    (lambda: ik.elementwise_loss(torch.square, X, T), TypeError,
     "formula must be an imbal_kernels.Formula, made once, got builtin_function_or_method"),
    (lambda: ik.elementwise_loss(SQUARED, X, torch.zeros(4)), TypeError,
     "targets of shape (4,): class ids must be integers, got torch.float32"),
    (lambda: ik.elementwise_loss(SQUARED, X, T, normalizer=2.0), ValueError,
     'normalizer divides a sum: it needs reduction="mean" or "sum", got "none"'),
    (lambda: ik.Formula(3), TypeError, "torch must be a function (x, t) -> loss, got int"),
    (lambda: ik.Formula(torch.mul, torch.mul), TypeError,
     "triton must be a triton.jit function, got builtin_function_or_method"),
    # the strategy
    (lambda: ik.recommend(), TypeError, "recommend() takes counts or labels, one of the two"),
    (lambda: ik.recommend([1, 2], labels=[0, 1]), TypeError, "recommend() takes counts or labels, one of the two"),
    (lambda: ik.recommend([9, 1], "regression"), ValueError,
     "task must be one of ('classification', 'tabular', 'detection'), got 'regression'"),
    (lambda: ik.recommend(3), TypeError, "counts must be a mapping, sequence, array or tensor, got int"),
    (lambda: ik.recommend("abc"), TypeError, "counts must be a mapping, sequence, array or tensor, got str"),
    (lambda: ik.recommend([]), ValueError, "counts must not be empty"),
    (lambda: ik.recommend(torch.ones(2, 2).long()), ValueError, "counts must be one-dimensional"),
    (lambda: ik.recommend([9.5, 1.0]), TypeError, "counts must be integers, got 9.5"),
    (lambda: ik.recommend({"a": 3, "b": 1.5}), TypeError, "counts must be integers, got 1.5 for class 'b'"),
    (lambda: ik.recommend([50, 50, 0]), ValueError,
     "counts must be positive, got 0 for class 2; labels go in as labels=..."),
    (lambda: ik.recommend({"a": 3}), ValueError, "an imbalance needs two classes or more, got 1"),
    (lambda: ik.recommend(labels=["x"] * 9), ValueError, "an imbalance needs two classes or more, got 1"),
    # counts and weights
    (lambda: ik.class_counts([0], 2), TypeError, "labels must be a Tensor, got list"),
    (lambda: ik.class_counts(X, 2), TypeError, "labels must be integers, got torch.float32"),
    (lambda: ik.class_counts(IDS, 0), ValueError, "num_classes must be a positive int, got 0"),
    (lambda: ik.class_counts(IDS, 2.0), ValueError, "num_classes must be a positive int, got 2.0"),
    (lambda: ik.class_counts(torch.tensor([[0, 1], [2, -7]]), 2), ValueError,
     "label 2 at position 2 is out of range: 0 to 1"),
    (lambda: ik.class_weights([1, 2]), TypeError, "counts must be a Tensor, got list"),
    (lambda: ik.class_weights(torch.tensor(3)), ValueError, "counts must hold one count per class, got shape ()"),
    (lambda: ik.class_weights(torch.ones(2, 3)), ValueError, "counts must be 1-d, one per class, got shape (2, 3)"),
    (lambda: ik.log_prior(torch.ones(1, 3)), ValueError, "counts must be 1-d, one per class, got shape (1, 3)"),
    (lambda: ik.class_weights(torch.tensor([1, 0])), ValueError,
     "counts must be positive and finite, got 0 for class 1"),
    (lambda: ik.class_weights(torch.tensor([True])), TypeError, "counts must be integers or real, got torch.bool"),
    (lambda: ik.class_weights(torch.tensor([1, 2]), "sqrt"), ValueError,
     f"scheme must be one of {SCHEMES}, got 'sqrt'"),
    (lambda: ik.class_weights(torch.tensor([1, 2]), "effective", beta=1.0), ValueError,
     "beta must be in [0, 1), got 1.0"),
    (lambda: ik.binary_pos_weight(torch.tensor([1, 2, 3])), ValueError,
     "counts must have shape (..., 2), negatives and positives, got (3,)"),
    (lambda: ik.prior_bias(0.0), ValueError, "prior must be in (0, 1), got 0.0"),
    (lambda: ik.log_prior(torch.tensor([float("nan")])), ValueError,
     "counts must be positive and finite, got nan for class 0"),
]  # fmt: skip


@pytest.mark.parametrize("call, exception, message", CASES, ids=[case[2][:60] for case in CASES])
def test_message(call, exception, message):
    with pytest.raises(exception) as raised:
        call()
    assert type(raised.value) is exception
    assert str(raised.value) == message


def test_arguments_after_weight_are_keywords():
    with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were given"):
        ik.binary_cross_entropy_with_logits(X, T, None, True)
    with pytest.raises(TypeError, match="takes from 2 to 5 positional arguments but 6 were given"):
        ik.sigmoid_focal_loss(X, T, 0.25, 2.0, "none", None)


BAD = {
    "id": torch.tensor([0, 1, 7, 7]),
    "negative id": torch.tensor([0, 1, -9, 0]),
    "dense int": torch.tensor([[0, 0, 0], [0, 1, 0], [2, 0, 0], [5, 0, 0]]),
    "dense float": torch.tensor([[0, 0, 0], [0, 1, 0], [1.01, 0, 0], [5, 0, 0]]),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
@pytest.mark.parametrize("targets", BAD.values(), ids=BAD)
def test_bad_labels(targets, functions, reduction, device):
    """On a CPU an error with the first bad row; on a GPU, and in the reference, NaN and no synchronisation."""
    x, targets = X.to(device).requires_grad_(), targets.to(device)
    if device == "cpu" and functions is ik:
        with pytest.raises(ValueError, match="row 2"):
            functions.sigmoid_focal_loss(x, targets, reduction=reduction)
        return
    loss = functions.sigmoid_focal_loss(x, targets, reduction=reduction)
    assert loss.isnan().any() and (reduction == "none" or loss.isnan())
    if reduction == "none":
        assert not loss[:2].isnan().any()


@pytest.mark.parametrize("targets", BAD.values(), ids=BAD)
def test_bad_labels_with_checks(targets, device, monkeypatch):
    monkeypatch.setenv("IMBAL_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match="row 2"):
        ik.sigmoid_focal_loss(X.to(device), targets.to(device))


def test_first_bad_row_of_many(device):
    """The first, whichever thread finds one first."""
    ids = torch.zeros(300_000, dtype=torch.int64)
    ids[[123_457, 200_000, 299_999]] = 9
    if device != "cpu":
        pytest.skip("a GPU names no row: it gives NaN, as test_bad_labels checks")
    with pytest.raises(ValueError, match="target 9 at row 123457 is out of range"):
        ik.sigmoid_focal_loss(torch.zeros(300_000, 3), ids)
