"""The samplers: their references bit for bit, their promises by hypothesis, the distribution of their draws."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imbal_kernels as ik
from imbal_kernels import reference
from imbal_kernels.reference.sampling import shares

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
SYNTHETIC = {
    "smote": ("smote", {}),
    "borderline-1": ("borderline_smote", {"kind": "borderline-1"}),
    "borderline-2": ("borderline_smote", {"kind": "borderline-2"}),
    "adasyn": ("adasyn", {}),
}
RANDOM = {
    "over": ("random_oversample", {}),
    "under": ("random_undersample", {}),
    "under, replacement": ("random_undersample", {"replacement": True}),
}
EVERY = SYNTHETIC | RANDOM


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table(dtype=torch.float32, n=240, d=7, device="cpu", seed=0):
    """Three overlapping classes, -1, 0 and 1, of about 70, 20 and 10 percent."""
    g = seeded(seed)
    x, ids = torch.randn(n, d, generator=g) * 40, torch.rand(n, generator=g)
    y = (ids > 0.7).long() + (ids > 0.9).long() - 1
    if not dtype.is_floating_point:
        low = 0 if dtype in (torch.uint8, torch.bool) else -127
        x = x > 0 if dtype == torch.bool else x.clamp(low, 127)
    return x.to(device, dtype), y.to(device)


def same(actual, expected):
    """Equal bits, through the tuples of outputs."""
    if isinstance(expected, tuple):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    return actual.dtype == expected.dtype and actual.device == expected.device and torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_same_as_the_reference(name, dtype, device):
    function, options = EVERY[name]
    if name in SYNTHETIC:
        options = options | {"return_provenance": True}
    x, y = table(dtype, device=device)
    before = x.clone()
    actual = getattr(ik, function)(x, y, generator=seeded(), **options)
    assert same(actual, getattr(reference, function)(x, y, generator=seeded(), **options))
    assert actual[0].dtype == dtype and actual[1].dtype == y.dtype
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_smoothed_bootstrap_is_the_reference(dtype, device):
    """The draws are the same bits; log, cos and the sums of a deviation may round otherwise on a GPU."""
    x, y = table(dtype, device=device)
    for shrinkage in (0, 0.7, {0: 2.0, 1: 0.0, -1: 5}):
        actual = ik.random_oversample(x, y, shrinkage=shrinkage, generator=seeded())
        expected = reference.random_oversample(x.cpu(), y.cpu(), shrinkage=shrinkage, generator=seeded())
        if device == "cpu":
            assert same(actual, expected)
        torch.testing.assert_close(actual[0].cpu(), expected[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("name", SYNTHETIC)
def test_rebuilt_from_provenance(name, dtype, device):
    """By the formula in Provenance's docstring, written out in PyTorch."""
    function, options = SYNTHETIC[name]
    x, y = table(dtype, device=device)
    new_x, new_y, (seed, neighbour, step) = getattr(ik, function)(x, y, return_provenance=True, **options)
    n = x.shape[0]
    a, b = x[seed].double(), x[neighbour].double()
    rebuilt = a + step[:, None] * (b - a)
    rebuilt = rebuilt.float().to(dtype) if dtype.is_floating_point else rebuilt.round().to(dtype)
    assert torch.equal(new_x[:n], x) and torch.equal(new_y[:n], y)
    assert torch.equal(new_x[n:], rebuilt)
    assert torch.equal(new_x[n:], reference.interpolate(x[seed], x[neighbour], step[:, None]))
    assert torch.equal(new_y[n:], y[seed])
    assert (seed != neighbour).all() and (step >= 0).all() and (step < 1).all()
    if name != "borderline-2":
        assert torch.equal(y[neighbour], y[seed])
    else:
        across = y[neighbour] != y[seed]
        assert across.any() and (step[across] < 0.5).all() and (step[~across] > 0.5).any()


LARGEST = {dtype: torch.finfo(dtype).max for dtype in FLOATS} | {
    dtype: torch.iinfo(dtype).max for dtype in INTEGERS if dtype != torch.bool
}


@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(list(LARGEST)), d=st.integers(1, 40), scale=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_inside_the_box(seed, dtype, d, scale):
    """To the ends of every dtype's range; the steps at both ends of theirs, as well as drawn ones."""
    g = seeded(seed)
    largest = LARGEST[dtype]
    if dtype.is_floating_point:
        ends = (torch.rand(2, 50, d, generator=g, dtype=torch.float64) * 2 - 1) * scale * largest
        ends[torch.rand(ends.shape, generator=g) < 0.1] = largest
        ends[torch.rand(ends.shape, generator=g) < 0.1] = -largest
        ends[torch.rand(ends.shape, generator=g) < 0.1] = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    else:
        low = torch.iinfo(dtype).min
        span = min(largest, max(1, int(largest * scale)))
        ends = torch.randint(max(low, -span), span, (2, 50, d), generator=g)
        ends[torch.rand(ends.shape, generator=g) < 0.1] = largest
        ends[torch.rand(ends.shape, generator=g) < 0.1] = low
    a, b = ends.to(dtype)
    step = torch.rand(50, 1, generator=g, dtype=torch.float64)
    step[0], step[1] = 0, 1 - 2.0**-32
    mixed = reference.interpolate(a, b, step)
    assert mixed.dtype == dtype
    assert ((mixed >= torch.minimum(a, b)) & (mixed <= torch.maximum(a, b))).all()
    assert torch.equal(mixed[0], a[0])
    x, y = torch.cat((a, b)), torch.arange(100) % 9 == 0
    new, _, trace = ik.smote(x, y, k_neighbors=3, generator=seeded(seed), return_provenance=True)
    assert torch.equal(new[100:], reference.interpolate(x[trace.seed_row], x[trace.neighbour], trace.step[:, None]))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_int64_interpolation(data):
    """Against Python's integers: the distance times the step, rounded to fp64 as it is defined, never beyond."""
    low, high = -(2**63), 2**63 - 1
    a = data.draw(st.integers(low, high))
    b = data.draw(st.integers(low, high) | st.integers(max(low, a - 3), min(high, a + 3)))
    step = data.draw(st.integers(0, 2**32 - 1)) / 2**32
    distance = abs(a - b)
    walked = min(distance, round(step * float(distance)))
    expected = a + walked if a < b else a - walked
    mixed = reference.interpolate(torch.tensor([a]), torch.tensor([b]), torch.tensor([step], dtype=torch.float64))
    assert mixed.tolist() == [expected]


@given(
    sizes=st.lists(st.integers(4, 30), min_size=2, max_size=6), extra=st.lists(st.integers(0, 40), min_size=6),
    d=st.integers(1, 5), seed=st.integers(0, 2**63 - 1), names=st.sampled_from(["smote", "random_oversample"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_counts(sizes, extra, d, seed, names):
    """Exactly as asked, the original rows first, the new ones by class in class order; labels anywhere in int64."""
    labels = sorted({(i * 7919 + seed) % 2**64 - 2**63 for i in range(len(sizes))})
    y = torch.tensor(labels).repeat_interleave(torch.tensor(sizes))
    y = y[torch.randperm(y.shape[0], generator=seeded(seed % 2**32))]
    x = torch.randn(y.shape[0], d, generator=seeded(1))
    asked = {label: size + more for label, size, more in zip(labels, sizes, extra, strict=False)}
    options = {"k_neighbors": 3} if names == "smote" else {}
    new_x, new_y = getattr(ik, names)(x, y, sampling_strategy=asked, **options)
    assert {label: int((new_y == label).sum()) for label in labels} == asked
    assert torch.equal(new_x[: len(x)], x) and torch.equal(new_y[: len(y)], y)
    assert torch.equal(new_y[len(y) :], new_y[len(y) :].sort().values)


THREADED = EVERY | {"smoothed": ("random_oversample", {"shrinkage": 1.0})}


@given(
    name=st.sampled_from(list(THREADED)), seed=st.integers(0, 2**63 - 1), d=st.sampled_from([1, 7, 33]),
    dtype=st.sampled_from(FLOATS), n=st.integers(1500, 3000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_threads_and_seeds(name, seed, d, dtype, n):
    """The same bits on 1 and 2 threads and again with the same seed; others the next time."""
    function, options = THREADED[name]
    x, y = table(dtype, n=n, d=d)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            g = seeded(seed)
            results.append(getattr(ik, function)(x, y, generator=g, **options))
            assert not same(getattr(ik, function)(x, y, generator=g, **options), results[-1])
    finally:
        torch.set_num_threads(before)
    assert same(*results)


@pytest.mark.parametrize("name", ["knn", *sorted({function for function, _ in EVERY.values()})])
def test_the_reference_has_the_same_arguments(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ik, reference))
    assert ours == theirs


@pytest.mark.parametrize("name", EVERY)
def test_generator(name):
    """None is the default generator, and a call takes one 64-bit draw from whichever is used."""
    function, options = EVERY[name]
    x, y = table()
    g = seeded(9)
    expected = getattr(ik, function)(x, y, generator=g, **options)
    torch.manual_seed(9)
    assert same(getattr(ik, function)(x, y, **options), expected)
    other = seeded(9)
    torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=other)
    assert torch.equal(g.get_state(), other.get_state())
    assert torch.equal(torch.random.get_rng_state(), other.get_state())


@pytest.mark.parametrize("name", EVERY)
def test_default_device_does_not_matter(name):
    function, options = EVERY[name]
    x, y = table()
    expected = getattr(ik, function)(x, y, generator=seeded(), **options)
    with torch.device("meta"):
        for functions in (ik, reference):
            assert same(getattr(functions, function)(x, y, generator=seeded(), **options), expected)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_neighbours_are_any_integer(name):
    function, options = SYNTHETIC[name]
    numbers = {"n_neighbors": np.int64(4)} if name == "adasyn" else {"k_neighbors": np.int32(4)}
    x, y = table()
    expected = getattr(ik, function)(x, y, generator=seeded(), **options, **{k: int(v) for k, v in numbers.items()})
    assert same(getattr(ik, function)(x, y, generator=seeded(), **options, **numbers), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU's generator to refuse")
def test_generator_of_a_gpu():
    with pytest.raises(ValueError, match="generator must be on the CPU, also for tensors on a GPU, got cuda"):
        ik.smote(*table(device="cuda"), generator=torch.Generator("cuda"))


def test_classes_are_independent():
    """What a class gets depends on its own rows and label: another class, or rows between, change nothing."""
    x, y = table(n=400)
    both = ik.smote(x, y, sampling_strategy={0: 300, 1: 300}, generator=seeded())
    for label in (0, 1):
        keep = (y == label) | (y == -1)
        new_x, new_y = ik.smote(x[keep], y[keep], sampling_strategy={label: 300}, generator=seeded())
        mine = both[0][400:][both[1][400:] == label]
        assert torch.equal(new_x[int(keep.sum()) :], mine)
    relabelled = ik.smote(x, y + 5, sampling_strategy={5: 300, 6: 300}, generator=seeded())
    assert not torch.equal(relabelled[0], both[0])


def test_classes_of_equal_size_draw_differently():
    """imbalanced-learn restarts an integer seed for each class, whose steps are then the same."""
    x = torch.randn(60, 2)
    y = torch.tensor([0] * 40 + [1] * 10 + [2] * 10)
    trace = ik.smote(x, y, return_provenance=True)[2]
    first, second = trace.step.split(30)
    assert not torch.equal(first, second)


def test_more_rows_continue_fewer():
    """Draw j of a class does not depend on how many there are."""
    x, y = table()
    few, many = (ik.smote(x, y, sampling_strategy={1: size}, generator=seeded())[0] for size in (100, 140))
    assert torch.equal(many[: few.shape[0]], few)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", ["columns", "strided", "expanded"])
def test_layouts(name, layout, device):
    x, y = table(device=device)
    columns, strided = x.t().contiguous().t(), torch.stack((x, -x), 1)[:, 0]
    odd = {"columns": columns, "strided": strided, "expanded": x[:, :1].expand(-1, 7)}
    function, options = EVERY[name]
    sampler = getattr(ik, function)
    assert not odd[layout].is_contiguous()
    strided_y = torch.stack((y, y), 1)[:, 0]
    expected = sampler(odd[layout].contiguous(), y, generator=seeded(), **options)
    assert same(sampler(odd[layout], strided_y, generator=seeded(), **options), expected)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_changes_nothing(name, device):
    x, y = table(device=device)
    function, options = EVERY[name]
    expected = getattr(ik, function)(x, y, generator=seeded(), **options)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert same(getattr(ik, function)(x, y, generator=seeded(), **options), expected)


@pytest.mark.parametrize("name", [n for n in EVERY if "under" not in n])
def test_nothing_to_do(name, device):
    """Balanced, or asked for what is there: the rows as they are, in a tensor of their own."""
    x, y = torch.randn(20, 3, device=device), torch.arange(20, device=device) % 2
    function, options = EVERY[name]
    for strategy in ("auto", {0: 10}, {}):
        new_x, new_y = getattr(ik, function)(x, y, sampling_strategy=strategy, **options)
        assert torch.equal(new_x, x) and torch.equal(new_y, y) and new_x.data_ptr() != x.data_ptr()
    if name in SYNTHETIC:
        trace = getattr(ik, function)(x, y, return_provenance=True, **options)[2]
        assert [part.numel() for part in trace] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32], ids=str)
def test_label_dtypes(dtype):
    x = torch.randn(40, 2)
    y = (torch.arange(40) % 4 == 0).to(dtype)
    for new_y in (ik.smote(x, y)[1], ik.random_oversample(x, y, sampling_strategy={True: 30, 0: 30})[1]):
        assert new_y.dtype == dtype and (new_y != 0).sum() == 30


def test_duplicates_are_not_their_own_neighbours():
    """Each row ten times: a neighbour is another of the ten, by index, where imbalanced-learn takes the row itself."""
    x = torch.randn(8, 3).repeat_interleave(10, 0)
    y = (torch.arange(80) < 40).long()
    x, y = torch.cat((x, torch.randn(20, 3))), torch.cat((y, torch.zeros(20).long()))
    for name in ("smote", "borderline_smote"):
        options = {"m_neighbors": 40} if name == "borderline_smote" else {}
        new, _, (seed, neighbour, _) = getattr(ik, name)(x, y, return_provenance=True, **options)
        assert (seed != neighbour).all()
        assert torch.equal(x[seed], x[neighbour]) and torch.equal(new[100:], x[seed])


@given(others=st.lists(st.integers(0, 50), min_size=1, max_size=40), count=st.integers(1, 10**6))
@settings(max_examples=100, deadline=None)
def test_shares(others, count):
    """Largest remainder: they sum to the count, each within one of its quota, nothing to a row without others."""
    if not any(others):
        return
    split = shares(torch.tensor(others), count, 0).tolist()
    total = sum(others)
    assert sum(split) == count
    for share, weight in zip(split, others, strict=True):
        assert 0 <= share - count * weight // total <= (1 if weight else 0)


def chi_square(counts):
    """The statistic and a bound: its mean plus six standard deviations, which chance passes once in some 10^6."""
    expected = counts.double().mean()
    bins = counts.numel()
    return ((counts - expected) ** 2 / expected).sum(), bins - 1 + 6 * math.sqrt(2 * (bins - 1))


def test_draws_are_uniform():
    n, k, count = 40, 5, 40_000
    x, y = torch.randn(n + 60, 4), (torch.arange(n + 60) < n).long()
    asked = {1: count + n}
    trace = ik.smote(x, y, k_neighbors=k, sampling_strategy=asked, generator=seeded(), return_provenance=True)[2]
    pairs = trace.seed_row * 1000 + trace.neighbour
    _, per_pair = pairs.unique(return_counts=True)
    assert per_pair.numel() == n * k
    for counts in (trace.seed_row.bincount(), per_pair, (trace.step * 64).long().bincount(minlength=64)):
        statistic, bound = chi_square(counts)
        assert statistic < bound
    # Neither does one draw tell of another: step by seed, step by the step before.
    for other in (trace.seed_row.double(), trace.step.roll(1), trace.neighbour.double()):
        correlation = torch.corrcoef(torch.stack((trace.step, other)))[0, 1]
        assert abs(correlation) < 6 / math.sqrt(count)


@pytest.mark.parametrize("replacement", [False, True])
def test_undersampling_is_uniform(replacement):
    """Every row of the class is kept equally often over many calls; without replacement never twice."""
    x, y = torch.arange(50)[:, None], (torch.arange(50) >= 40).long()
    g, kept = seeded(), torch.zeros(40)
    for _ in range(2000):
        rows, labels = ik.random_undersample(x, y, replacement=replacement, generator=g)
        assert labels.tolist() == [0] * 10 + [1] * 10 and rows[10:, 0].tolist() == list(range(40, 50))
        drawn = rows[:10, 0].bincount(minlength=40)
        assert replacement or drawn.max() == 1
        kept += drawn
    statistic, bound = chi_square(kept)
    assert statistic < bound


def test_undersampling_takes_mappings():
    x, y = torch.arange(30)[:, None], torch.arange(30) % 3
    rows, labels = ik.random_undersample(x, y, sampling_strategy={1: 0, 2: 4})
    assert labels.tolist() == [0] * 10 + [2] * 4
    assert torch.equal(y[rows[:, 0]], labels)


def test_many_classes_one_call(device):
    """A hundred classes of many sizes, in one call of the op."""
    g = seeded()
    y = torch.cat([torch.full((6 + c % 17,), c - 50) for c in range(100)])
    x = torch.randn(y.shape[0], 3, generator=g)
    x, y = x.to(device), y.to(device)
    actual = ik.smote(x, y, generator=seeded(), return_provenance=True)
    assert same(actual, reference.smote(x, y, generator=seeded(), return_provenance=True))
    assert ((actual[1] + 50).bincount() == 22).all()


def test_many_seeds(device):
    """Among a million, the lower word of a draw decides which in one of eight thousand."""
    n, count = 2**20, 200_000
    x, rows = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)
    ptr, out_ptr = torch.tensor([0, n], device=device), torch.tensor([0, count], device=device)
    classes = torch.tensor([3], device=device)
    arguments = (x, rows, rows.new_empty((n, 0)), ptr, out_ptr, classes, None, None, 9, count, True)
    assert same(torch.ops.imbal_kernels.smote_generate(*arguments), reference.sampling.smote_generate(*arguments))


def test_opcheck(device):
    x, y = table(device=device)
    rows = (y >= 0).nonzero()[:, 0]
    rows = rows[y[rows].sort(stable=True).indices]
    sizes = [int((y == 0).sum()), int((y == 1).sum())]
    ptr = torch.tensor([0, sizes[0], sum(sizes)], device=device)
    neighbors, out_ptr = rows[torch.arange(sum(sizes) * 4, device=device).view(-1, 4) % 9], torch.tensor([0, 5, 70])
    classes, chosen = torch.tensor([0, 1], device=device), torch.arange(70, device=device) % 5
    chosen[5:] += sizes[0]
    for extra in ((None, None), (chosen, None), (None, y)):
        for provenance in (False, True):
            arguments = (x, rows, neighbors, ptr, out_ptr.to(device), classes, *extra, 7, 70, provenance)
            torch.library.opcheck(torch.ops.imbal_kernels.smote_generate.default, arguments)
            assert same(
                torch.ops.imbal_kernels.smote_generate(*arguments), reference.sampling.smote_generate(*arguments)
            )
