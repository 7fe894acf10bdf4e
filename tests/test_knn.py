"""The neighbours against brute force in fp64, bit for bit, and what must not change them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imbal_kernels as ik
from imbal_kernels.ops import backends

CAPABILITIES = ("portable", "avx2", "avx512")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(params=CAPABILITIES)
def instruction_set(request):
    before = torch.ops.imbal_kernels._cpu_capability("")
    try:
        torch.ops.imbal_kernels._cpu_capability(request.param)
    except RuntimeError:
        pytest.skip(f"no {request.param} on this machine")
    yield request.param
    torch.ops.imbal_kernels._cpu_capability(before)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(x, k, query=None, include_self=False):
    """NumPy's fp64 never fuses a multiply-add; a stable sort leaves ties in the order of their index. Nothing of ours
    is used."""
    points = x.double().numpy()
    queries = points if query is None else query.double().numpy()
    total = np.zeros((len(queries), len(points)))
    with np.errstate(over="ignore"):
        for j in range(points.shape[1]):
            difference = queries[:, j, None] - points[None, :, j]
            total += difference * difference
    if query is None and not include_self:
        np.fill_diagonal(total, np.nan)  # behind every number
    order = np.argsort(total, axis=1, kind="stable")[:, :k]
    return torch.from_numpy(order), torch.from_numpy(np.take_along_axis(total, order, 1))


def assert_same(actual, expected):
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def clusters(distance, n=600, d=16, count=20):
    centers = normal(count, d, seed=1) * distance
    return normal(n, d) + centers[torch.arange(n) % count]


def sign_flips(n=300, d=64):
    """All rows have the same magnitudes: every norm is equal."""
    signs = torch.randint(0, 2, (n, d), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return signs * normal(d).abs() * 0.01


DATA = {
    "normal": normal(600, 16),
    **{f"offset {offset:g}": normal(600, 16) + offset for offset in (1, 1e2, 1e3, 1e4)},
    **{f"clusters {distance:g} apart": clusters(distance) for distance in (10, 1e2, 1e3)},
    "duplicates": normal(150, 8).repeat(4, 1),
    "small integers": (normal(600, 3) * 2).round(),
    "all equal": torch.ones(300, 4),
    "zero padding": torch.cat([normal(400, 6), torch.zeros(400, 58)], 1),
    "sign flips": sign_flips(),
    "one outlier": torch.cat([normal(400, 8), torch.full((1, 8), 1e6)]),
    "tiny": normal(300, 8) * 1e-30,
    "huge": normal(300, 8) * 1e35,
    "wide range": normal(300, 8) * 10.0 ** torch.arange(-15, 15).repeat(10)[:, None],
    "subnormal": normal(300, 8) * 1e-42,
    "fp64 below fp32": normal(300, 8).double() * 1e-12 + 1,
    "fp64 overflow": normal(300, 8).double() * 1e200,
    "fp64 underflow": normal(300, 8).double() * 1e-170,
}


@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_exact(x, instruction_set):
    for k in (1, 5, 40):
        assert_same(ik.knn(x, k), brute_force(x, k))


@pytest.mark.parametrize("exponent", (-3, -2, -1))
def test_the_bound_grows_with_the_columns(exponent, instruction_set):
    """Two clusters as wide as a sum of 2000 products is wrong: with a slack of ten units at any d this fails."""
    x = 0.05 * 2.0**exponent * normal(300, 2000, seed=exponent + 100) + normal(1, 2000)
    x[::2] -= 2 * normal(1, 2000)
    assert_same(ik.knn(x, 5), brute_force(x, 5))


@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_reference_is_the_definition(x):
    assert_same(ik.reference.knn(x, 5), brute_force(x, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 15, 33, 129])
def test_dtypes_and_columns(d, dtype, instruction_set):
    x, query = normal(203, d).to(dtype), normal(57, d, seed=1).to(dtype)
    assert_same(ik.knn(x, 7), brute_force(x, 7))
    assert_same(ik.knn(x, 7, include_self=True), brute_force(x, 7, include_self=True))
    assert_same(ik.knn(x, 203, query=query), brute_force(x, 203, query))


@pytest.mark.parametrize("n", [2, 11, 12, 13, 23, 25, 47, 48, 49, 479, 480, 481, 961, 1441])
def test_rows(n, instruction_set):
    """Around a panel of each instruction set, and one to four blocks in the tournament."""
    x = normal(n, 3)
    for k in {1, min(5, n - 1), min(300, n - 1)}:
        assert_same(ik.knn(x, k), brute_force(x, k))


@pytest.mark.parametrize("shape", [(60, 4096), (4097, 1)], ids=str)
def test_limits(shape):
    x = normal(*shape)
    k = min(4096, shape[0] - 1)
    assert_same(ik.knn(x, k), brute_force(x, k))


@st.composite
def points(draw):
    """What a certificate may trip over: means far off, tight clusters far apart, duplicates, ties, zero padding, rows
    that differ in signs only and so have equal norms; any dtype."""
    n, d = draw(st.integers(2, 30) | st.integers(200, 400)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    centers = torch.randn(draw(st.integers(1, 9)), d, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        x = x.sign() * x[:1].abs()
    if draw(st.booleans()):
        x = (2 * x).round()
    if draw(st.booleans()):
        centers = centers.sign()  # roundings of the products all lean the same way
    x = x * draw(st.sampled_from([1.0, 1e-2, 1e-4])) + draw(st.just(0.0) | st.floats(0, 1e4))
    x += draw(st.sampled_from([0.0, 1.0, 1e2, 1e4])) * centers[torch.arange(n) % len(centers)]
    if draw(st.booleans()):
        x = x[torch.randint(n, (n,), generator=generator)]
    padded = torch.cat([x, x.new_zeros(n, draw(st.sampled_from([0, 0, 50])))], 1)
    return padded.clamp(-6e4, 6e4).to(draw(st.sampled_from(DTYPES)))  # float16 ends at 65504


def neighbours(x, most=40):
    return st.integers(1, min(len(x) - 1, most))


@settings(max_examples=150, deadline=None)
@given(points(), st.data())
def test_any_points(x, data):
    k = data.draw(neighbours(x))
    assert_same(ik.knn(x, k), brute_force(x, k))
    assert_same(ik.knn(x, k, include_self=True), brute_force(x, k, include_self=True))


@settings(max_examples=60, deadline=None)
@given(points(), st.data())
def test_any_batching_of_queries(x, data):
    k, n = data.draw(neighbours(x)), len(x)
    whole = ik.knn(x, k, query=x)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(1, n), max_size=6))})
    parts = [ik.knn(x, k, query=x[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert_same([torch.cat(both) for both in zip(*parts, strict=True)], whole)
    assert_same(ik.knn(x, k, include_self=True), whole)


@settings(max_examples=60, deadline=None)
@given(points(), st.data())
def test_top_k_is_a_prefix(x, data):
    k = data.draw(neighbours(x))
    longest = ik.knn(x, min(len(x) - 1, 40))
    assert_same(ik.knn(x, k), [part[:, :k] for part in longest])


@settings(max_examples=60, deadline=None)
@given(points(), st.data())
def test_self_is_excluded_by_index(x, data):
    """Never by distance: what is left of the list that has it, among duplicates too."""
    k, own = data.draw(neighbours(x)), torch.arange(len(x))[:, None]
    found, distances = ik.knn(x, k)
    with_self = ik.knn(x, k + 1, include_self=True)
    others = with_self[0] != own
    others[others.all(1), -1] = False  # lower rows, equal to it, fill the list
    assert_same((found, distances), [part[others].view(-1, k) for part in with_self])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=8), st.integers(1, 3), st.booleans())
def test_segments(sizes, k, separate):
    """Each segment is a search of its own with its indices moved; empty ones are none."""
    sizes = [(rows if rows > k else 0, queries if rows > k else 0) for rows, queries in sizes]
    ptr = torch.tensor([0] + [rows for rows, _ in sizes]).cumsum(0)
    query_ptr = torch.tensor([0] + [queries for _, queries in sizes]).cumsum(0)
    x, query = (normal(int(ptr[-1]), 3) * 2).round(), (normal(int(query_ptr[-1]), 3, seed=1) * 2).round()
    options = {"query": query, "query_ptr": query_ptr} if separate else {}
    indices, distances = ik.knn(x, k, ptr=ptr, **options)
    ends = query_ptr if separate else ptr
    assert indices.shape == distances.shape == (int(ends[-1]), k)
    for s in range(len(sizes)):
        rows, part = slice(ptr[s], ptr[s + 1]), slice(ends[s], ends[s + 1])
        if indices[part].numel():
            own, d2 = brute_force(x[rows], k, query[part] if separate else None)
            assert_same((indices[part] - ptr[s], distances[part]), (own, d2))
    assert_same(ik.reference.knn(x, k, ptr=ptr, **options), (indices, distances))


def test_large_segments():
    """Beyond what one task takes, beside small ones."""
    ptr = torch.tensor([0, 2500, 2540, 2540, 5000])
    x = normal(5000, 2)
    indices, distances = ik.knn(x, 3, ptr=ptr)
    for begin, end in zip(ptr.tolist(), ptr.tolist()[1:], strict=False):
        if end > begin:
            assert_same((indices[begin:end] - begin, distances[begin:end]), brute_force(x[begin:end], 3))


def test_ties_by_index(instruction_set):
    """A lattice: most distances are ties, also at the k-th place."""
    axis = torch.arange(9.0)
    x = torch.cartesian_prod(axis, axis, axis)[torch.randperm(729, generator=torch.Generator().manual_seed(0))]
    for k in (1, 4, 6, 18, 27):
        assert_same(ik.knn(x, k), brute_force(x, k))


def test_equal_rows_are_neighbours():
    """At distance 0, also in front of a row's own index."""
    x = torch.zeros(50, 3)
    indices, distances = ik.knn(x, 49)
    assert distances.count_nonzero() == 0
    for i, row in enumerate(indices.tolist()):
        assert row == [j for j in range(50) if j != i]
    assert ik.knn(x, 2, include_self=True)[0].eq(torch.tensor([0, 1])).all()


@pytest.mark.parametrize("name", ["normal", "small integers", "clusters 1000 apart", "clusters 100 apart"])
def test_same_bits_for_any_number_of_threads(name, instruction_set, on_threads):
    x = DATA[name].repeat(4, 1) + normal(4 * len(DATA[name]), DATA[name].shape[1], seed=3) * 0.1

    def neighbors():
        indices, distances, counts = ik.knn(x, 5, return_counts=True)
        return indices, distances, *counts

    results = on_threads((1, 2, 7), neighbors)  # and more than there are cores
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_autocast_and_matmul_precision_do_not_matter():
    x = normal(500, 32) + 100
    expected, before = ik.knn(x, 5), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(ik.knn(x, 5), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_layout_does_not_matter():
    x = normal(5, 300).t()
    assert_same(ik.knn(x, 5), ik.knn(x.contiguous(), 5))
    wide = normal(300, 10)
    assert_same(ik.knn(wide[:, ::2], 5), ik.knn(wide[:, ::2].contiguous(), 5))


def test_counts():
    """A certain shortlist holds k or a few more; the rows of a cluster that fp32 can't tell apart fall back."""
    n, k = 600, 5
    _, _, counts = ik.knn(DATA["normal"], k, return_counts=True)
    assert counts.fallbacks == 0 and n * k <= counts.rescored < 1.1 * n * k
    _, _, counts = ik.knn(DATA["offset 10000"], k, return_counts=True)
    assert counts.fallbacks == 0 and n * k <= counts.rescored < 2 * n * k
    _, _, counts = ik.knn(DATA["clusters 1000 apart"], k, return_counts=True)
    assert counts.fallbacks == n and counts.rescored == n * (n - 1)


def test_planted_failure_of_the_certificate():
    """40 points whose distances to one query differ by less than fp32 can tell, their order in fp64 the reverse of
    their indices: that query falls back, and finds them in order. The others are far apart and don't."""
    far = normal(500, 8) * 1e4
    near = torch.full((40, 8), 1e6)
    near[:, 0] += torch.arange(40, 0, -1) * 0.0625
    query = torch.cat([torch.full((1, 8), 1e6), far[:20]])
    indices, distances, counts = ik.knn(torch.cat([near, far]), 5, query=query, return_counts=True)
    assert counts.fallbacks == 1
    assert indices[0].tolist() == [39, 38, 37, 36, 35]
    assert distances[0].tolist() == [(0.0625 * i) ** 2 for i in range(1, 6)]
    assert indices[1:, 0].tolist() == list(range(40, 60))


def test_fast_pass_alone_would_be_wrong():
    """The expanded formula in fp32 misses neighbours that the certificate makes up for."""
    x = DATA["clusters 1000 apart"]
    norms = x.square().sum(1)
    expanded = (norms[:, None] + norms - 2 * x @ x.t()).fill_diagonal_(torch.inf)
    assert not torch.equal(expanded.topk(5, largest=False).indices, ik.knn(x, 5)[0])


def test_the_reference_counts_too():
    counts = ik.reference.knn(DATA["normal"], 5, return_counts=True)[2]
    assert (counts.rescored, counts.fallbacks) == (600 * 599, 0)


def test_nothing_is_written_to_the_inputs():
    x = normal(100, 3)
    kept = x.clone()
    ik.knn(x, 3)
    assert torch.equal(x, kept)


def test_op():
    x, ends = normal(30, 3), torch.tensor([0, 30])
    torch.library.opcheck(torch.ops.imbal_kernels.knn.default, (x, x, ends, ends, 4, True))
    compiled = torch.compile(lambda x: ik.knn(x, 4), fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), ik.knn(x, 4))
    stacked = torch.stack([x, 2 * x])
    assert torch.equal(torch.vmap(lambda x: ik.knn(x, 4)[0])(stacked)[1], ik.knn(2 * x, 4)[0])


def test_copies_of_x_and_query_exclude_self(instruction_set):
    """A compiler may hand the op x and query in two buffers: what row i of query is does not depend on where it is."""
    x, ends = (normal(700, 3) * 4).round(), torch.tensor([0, 700])
    indices, distances, _ = torch.ops.imbal_kernels.knn(x, x.clone(), ends, ends, 4, True)
    assert_same((indices, distances), brute_force(x, 4))


def test_compiled_on_what_was_computed():
    torch._dynamo.reset()
    x = normal(40, 3)
    compiled = torch.compile(lambda x: ik.knn(x * 2, 3), fullgraph=True)
    assert_same(compiled(x), ik.knn(x * 2, 3))


def test_flushed_denormals_do_not_matter():
    """torch.set_flush_denormal is a mode of one thread."""
    before = torch.get_num_threads()
    for x in (normal(3000, 3) * 1e-41, normal(3000, 3).double() * 1e-160):
        expected = ik.knn(x, 3)
        try:
            torch.set_flush_denormal(True)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert_same(ik.knn(x, 3), expected)
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(before)


def test_runs_on_the_reference_without_the_library(monkeypatch):
    x = normal(60, 3)
    expected = ik.knn(x, 4)
    monkeypatch.setattr(backends, "has_op", lambda *args: False)
    *found, counts = ik.knn(x, 4, return_counts=True)
    assert_same(found, expected)
    assert counts.rescored == 60 * 59


def test_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    x = normal(800, 10).double()
    distances, indices = neighbors.NearestNeighbors(n_neighbors=6, algorithm="brute").fit(x.numpy()).kneighbors()
    found, d2 = ik.knn(x, 6)
    np.testing.assert_array_equal(found, indices)  # no ties in continuous data
    np.testing.assert_allclose(d2.sqrt(), distances, rtol=1e-10)


MEMORY = """
import resource, torch, imbal_kernels as ik
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
x = torch.randn(200_000, {columns})
x[:, 0] += {apart} * (torch.arange(200_000) % 7)
ik.knn(x[:4000], {k})
before = peak()
results = ik.knn(x, {k}, query=x[:{queries}] if {queries} else None)
print(peak() - before - sum(r.numel() * r.element_size() for r in results))
"""
BUDGET = 192 << 20  # docs/neighbors.md


@pytest.mark.parametrize(
    "columns, k, queries, apart", [(2, 5, 0, 0), (2, 1000, 2000, 0), (256, 1, 500, 0), (8, 5, 800, 1e6)]
)
def test_memory(columns, k, queries, apart):
    """200,000 points, all pairs among them; the list of a query at k = 1000 is 30 KB, a copy of 256 columns 200 MB;
    clusters so far apart that every query falls back."""
    code = MEMORY.format(columns=columns, k=k, queries=queries, apart=apart)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < BUDGET
