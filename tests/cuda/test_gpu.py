"""The CUDA library on a GPU: the bits of the CPU's, on any stream, however large, and without waiting.

What it computes is tested on the host in the files beside this one; here is what only a GPU can show.
"""

import os

import pytest
import torch

import imbal_kernels as ik
from imbal_kernels.ops import backends
from imbal_kernels.reference.philox import bounded
from imbal_kernels.reference.sampling import interpolate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ops = torch.ops.imbal_kernels
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@pytest.fixture(autouse=True)
def library():
    """A machine that must show what the library does must have it."""
    reason = backends.MISSING_SAMPLING["cuda"]
    if reason:
        (pytest.fail if os.environ.get("IMBAL_REQUIRE_CUDA", "0") not in ("", "0") else pytest.skip)(reason)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.is_cuda and a.dtype == b.dtype and torch.equal(a.cpu(), b)


def same_neighbours(x, k, **options):
    """By the CPU's kernel; returns the counts."""
    on_gpu = {name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    *found, counts = ik.knn(x.cuda(), k, return_counts=True, **on_gpu)
    assert_same(found, ik.knn(x, k, **options))
    return counts


def test_the_library_has_the_ops():
    for name in ("knn", "smote_generate", "philox"):
        assert backends.has_op(name, "CUDA")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n, d, k", [(130, 3, 1), (700, 33, 5), (500, 8, 64), (500, 8, 65), (300, 100, 200)])
def test_neighbours(n, d, k, dtype):
    x = normal(n, d).to(dtype)
    same_neighbours(x, k)
    same_neighbours(x, k, query=normal(140, d, seed=1).to(dtype))


def test_neighbours_are_the_references():
    x = (normal(400, 4) * 2).round()
    for k in (3, 70):
        assert_same(ik.knn(x.cuda(), k), ik.reference.knn(x, k))


@pytest.mark.parametrize("k", (1, 65))
def test_ragged(k):
    sizes = [k + 1, 0, 128 + k, 129 + k, 0, 300]
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    x = normal(int(ptr[-1]), 5)
    same_neighbours(x, k, ptr=ptr)
    query_ptr = torch.tensor([0, 3, 3, 3, 150, 150, 200])
    same_neighbours(x, k, query=normal(200, 5, seed=1), ptr=ptr, query_ptr=query_ptr)


@pytest.mark.parametrize("k", (5, 70))
def test_what_the_fast_pass_cannot_tell_apart(k):
    """Tight clusters, ties and equal rows: the certificate fails and the definition is run."""
    clusters = normal(600, 8) + 1e5 * normal(6, 8, seed=1).repeat(100, 1)
    for x in (clusters, torch.zeros(300, 6), (normal(600, 3) * 2).round()):
        assert same_neighbours(x, k).fallbacks > 0


def test_values_that_fp32_cannot_hold():
    x = normal(400, 3).double()
    x[7], x[100:110], x[200:300] = 1e200, x[100:110] * 1e30, x[200:300] * 1e-200
    same_neighbours(x, 5)


@pytest.mark.parametrize("n, d, k", [(70_000, 1024, 5), (100_000, 4, 100), (200_000, 16, 10)])
def test_large_searches(n, d, k):
    """More rows than a chunk of references takes, for short lists and long ones."""
    x = normal(n, d)
    same_neighbours(x, k, query=x[:300] + 0.01)


def test_large_ragged():
    """Sixty thousand segments in one launch."""
    ptr = torch.arange(0, 60_001) * 7
    same_neighbours(normal(int(ptr[-1]), 3), 4, ptr=ptr)


@pytest.mark.parametrize("n, m", ((10, 0), (0, 0)))
def test_nothing_to_find(n, m):
    x = torch.zeros(n, 3, device="cuda")
    ptr, query_ptr = torch.tensor([0, n], device="cuda"), torch.tensor([0, m], device="cuda")
    indices, distances = ik.knn(x, 2, query=x[:m], ptr=ptr, query_ptr=query_ptr)
    assert indices.shape == distances.shape == (m, 2)


@pytest.mark.parametrize("ptr", ([0, 41], [1, 40], [0, 50, 40], [0, -5, 40], [0, 2**40, 40], [-(2**63), 2**63 - 1, 40]))
def test_bad_segments(ptr, monkeypatch):
    x, ptr = normal(40, 3).cuda(), torch.tensor(ptr, device="cuda")
    indices, distances = ik.knn(x, 2, ptr=ptr)
    assert (indices == -1).all() and distances.isposinf().all()
    monkeypatch.setenv("IMBAL_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match="ptr must rise from 0 to the rows of x, 40"):
        ik.knn(x, 2, ptr=ptr)


def late(stream, data):
    """A tensor that gets its values on `stream` long after this returns."""
    x = torch.zeros_like(data)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.copy_(data)
    return x


def test_current_stream():
    data, stream = normal(500, 6).cuda(), torch.cuda.Stream()
    with torch.cuda.stream(stream):  # loads the kernels and takes memory, which may wait
        ik.knn(data, 5), ops.philox(data, 1, 2, 3, 50)
    x = late(stream, data)
    with torch.cuda.stream(stream):
        found, words = ik.knn(x, 5), ops.philox(x, 1, 2, 3, 50)
        assert not stream.query(), "the call waited for the device"
        rows = ops.smote_generate(*rows_from(x))
    stream.synchronize()
    assert_same(found, ik.knn(data.cpu(), 5))
    assert_same([words], [ops.philox(data.cpu(), 1, 2, 3, 50)])
    assert_same(rows, ops.smote_generate(*rows_from(data.cpu())))


def rows_from(x, count=2000, k=5, seeds=100):
    """Arguments of smote_generate, on x's device: two classes and one without new rows."""
    generator = torch.Generator().manual_seed(2)
    tensors = (
        torch.randperm(len(x), generator=generator)[:seeds].clone(),
        torch.randint(0, len(x), (seeds, k), generator=generator),
        torch.tensor([0, 40, 40, seeds]),
        torch.tensor([0, count // 3, count // 3, count]),
        torch.tensor([5, 6, -7]),
    )
    return (x, *(t.to(x.device) for t in tensors), None, None, 11, count, True)


def test_graph():
    """Captured once, replayed on other values."""
    x, data = normal(300, 6).cuda(), normal(300, 6, seed=1).cuda()
    arguments = rows_from(x)
    ik.knn(x, 5), ops.smote_generate(*arguments)  # loads the kernels, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, rows = ik.knn(x, 5), ops.smote_generate(*arguments)
    x.copy_(data)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(found, ik.knn(data.cpu(), 5))
    assert_same(rows, ops.smote_generate(*rows_from(data.cpu())))


def test_check_in_a_graph_is_refused(monkeypatch):
    monkeypatch.setenv("IMBAL_KERNELS_CHECK", "1")
    x = normal(300, 6).cuda()
    with pytest.raises(RuntimeError, match="a CUDA graph can't capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        ik.knn(x, 5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device():
    x = normal(300, 6)
    assert_same(ik.knn(x.to("cuda:1"), 5), ik.knn(x, 5))
    assert torch.cuda.current_device() == 0


def test_autocast_and_precision():
    x = normal(500, 32) + 100
    with torch.autocast("cuda", torch.bfloat16):
        same_neighbours(x, 5)


@pytest.mark.parametrize("d", (1, 7, 32, 5000))
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_rows(dtype, d):
    x = (normal(150, d) * 50).to(dtype)
    assert_same(ops.smote_generate(*rows_from(x.cuda(), 300)), ops.smote_generate(*rows_from(x, 300)))
    copies = ops.smote_generate(*rows_from(x.cuda(), 300, k=0))
    assert_same(copies, ops.smote_generate(*rows_from(x, 300, k=0)))


def test_samplers():
    """From X and y to the new ones, with the draws of the same seed."""
    x, y = normal(900, 6), (torch.arange(900) % 10).clamp(min=7)
    for function in (ik.smote, ik.borderline_smote, ik.adasyn, ik.random_oversample, ik.random_undersample):
        found = function(x.cuda(), y.cuda(), generator=torch.Generator().manual_seed(3))
        assert_same(found, function(x, y, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("first, blocks", [(0, 1), (2**32 - 2, 5000), (-3, 1025)])
def test_words(first, blocks):
    like = torch.zeros(1)
    assert_same([ops.philox(like.cuda(), -5, 7, first, blocks)], [ops.philox(like, -5, 7, first, blocks)])


def test_large_output():
    """More than 2^31 elements: the last rows, from their own draws."""
    count = 2**31 // 64 + 1000
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GB of GPU memory")
    x = normal(1000, 64).half()
    arguments = rows_from(x.cuda(), count)
    out, seed_row, neighbour, step = (part[-100:].cpu() for part in ops.smote_generate(*arguments))
    begin, seeds = count // 3, arguments[1].cpu()[40:]
    words = ops.philox(x, 11, -7, count - begin - 100, 100)
    assert torch.equal(seed_row, seeds[bounded(words, 60)])
    assert torch.equal(step, words[:, 3].double() * 2.0**-32)
    assert torch.equal(out, interpolate(x[seed_row], x[neighbour], step[:, None]))
