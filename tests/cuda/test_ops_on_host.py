"""The CUDA ops with a runtime that launches their kernels on the host: the bits of the CPU ops.

All of csrc/cuda/*.cu runs but what a GPU alone can: device code, and the distance tiles.
"""

import subprocess

import pytest
import torch

ops = torch.ops.imbal_kernels
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(n, d, dtype):
    if dtype.is_floating_point:
        return (torch.randn(n, d, generator=generator(), dtype=torch.float64) * 100).to(dtype)
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, (n, d), generator=generator(), dtype=dtype)


def generate(x, k=5, sizes=(17, 0, 40), counts=(300, 0, 77), drawn=True, labels=None, provenance=True, key=-3):
    """Arguments of smote_generate: classes of `sizes` seeds get `counts` rows."""
    n, seeds = len(x), sum(sizes)
    rows = torch.randperm(n, generator=generator(1))[:seeds].contiguous()
    neighbors = torch.randint(0, n, (seeds, k), generator=generator(2))
    ptr, out_ptr = (torch.tensor([0, *v]).cumsum(0) for v in (sizes, counts))
    chosen = None if drawn else torch.randint(0, seeds, (sum(counts),), generator=generator(3))
    classes = torch.arange(len(sizes)) * 7 - 3
    return x, rows, neighbors, ptr, out_ptr, classes, chosen, labels, key, sum(counts), provenance


def assert_same(on_host, arguments, **options):
    actual, expected = on_host("smote_generate", *arguments, **options), ops.smote_generate(*arguments)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("d", (1, 7, 10, 16, 32, 33, 48))
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_new_rows(on_host, dtype, d):
    """Odd widths by the element, others by 16 bytes."""
    assert_same(on_host, generate(table(60, d, dtype)))
    assert_same(on_host, generate(table(60, d, dtype)), backwards=True)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.uint8), ids=str)
def test_rows_that_are_not_aligned(on_host, dtype):
    flat = table(61, 32, dtype).flatten()
    assert_same(on_host, generate(flat[1 : 1 + 60 * 32].view(60, 32)))
    assert_same(on_host, generate(flat[5 : 5 + 61 * 31].view(61, 31)))  # so that the new ones begin out of line too


@pytest.mark.parametrize("d", (4095, 4096, 4097, 20_000))
def test_rows_wider_than_a_block_takes(on_host, d):
    assert_same(on_host, generate(table(20, d, torch.float32), sizes=(4, 5), counts=(3, 6)))


@pytest.mark.parametrize("count", (1, 255, 256, 257, 3000))
def test_more_rows_than_a_block_takes(on_host, count):
    assert_same(on_host, generate(table(60, 2, torch.float32), sizes=(20, 30), counts=(count, 1)))


def test_copies(on_host):
    """k = 0: the seed's bits, those of -0.0 and NaN too."""
    x = table(60, 8, torch.float32)
    x[:, 3], x[:, 4] = -0.0, float("nan")
    arguments = generate(x, k=0)
    (rows, *_), (expected, *_) = on_host("smote_generate", *arguments), ops.smote_generate(*arguments)
    assert torch.equal(rows.view(torch.int32), expected.view(torch.int32))


def test_options(on_host):
    x, labels = table(60, 6, torch.float64), torch.arange(60) % 3 * 7 - 3
    for drawn in (True, False):
        for provenance in (True, False):
            assert_same(on_host, generate(x, drawn=drawn, labels=labels, provenance=provenance, key=2**63 - 1))


def test_many_classes(on_host):
    sizes = [1 + i % 3 for i in range(300)]
    assert_same(on_host, generate(table(700, 3, torch.float32), sizes=sizes, counts=[i % 5 for i in range(300)]))


def test_nothing_new(on_host):
    before = on_host.library.launched()
    assert_same(on_host, generate(table(60, 3, torch.float32), counts=(0, 0, 0)))
    assert_same(on_host, generate(table(60, 3, torch.float32), sizes=(), counts=()))
    assert on_host.library.launched() == before


@pytest.mark.parametrize("key, stream, first, n", [(5, -7, -3, 3000), (-1, 2**40, 2**32 - 2, 1024), (0, 0, 0, 0)])
def test_words(on_host, key, stream, first, n):
    like = torch.zeros(1)
    words = on_host("philox", like, key, stream, first, n)
    assert words.shape == (n, 4) and torch.equal(words, ops.philox(like, key, stream, first, n))


@pytest.mark.parametrize("k", (1, 12, 64, 65, 128))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_neighbours(on_host, dtype, k):
    """Ragged segments with ties, x against itself and against queries of its own segments."""
    x = (torch.randn(900, 5, generator=generator()) * 3).round().to(dtype)
    ptr, query_ptr = torch.tensor([0, 300, 300, 450, 900]), torch.tensor([0, 0, 0, 90, 200])
    for arguments in ((x, x, ptr, ptr, k, True), (x, x[:200].clone(), ptr, query_ptr, k, False)):
        actual, expected = on_host("knn", *arguments), ops.knn(*arguments)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("n, m", ((0, 0), (0, 5), (5, 0)))
def test_no_neighbours(on_host, n, m):
    x, query = torch.zeros(n, 3), torch.zeros(m, 3)
    indices, distances, counts = on_host("knn", x, query, torch.tensor([0, n]), torch.tensor([0, m]), 2, False)
    assert indices.shape == distances.shape == (m, 2) and counts.tolist() == [0, 0]
    assert (indices == -1).all() and distances.isinf().all()


def test_a_launch_that_fails_says_which(on_host):
    x, ptr = torch.zeros(40, 3), torch.tensor([0, 40])
    message = r"knn of 40 queries among 40 rows, d = 3, k = 2 did not start \(\d+ blocks of \d+ threads.*too many"
    for launch in range(1, 9):
        with pytest.raises(RuntimeError, match=message):
            on_host("knn", x, x, ptr, ptr, 2, True, fail_at=launch)
    with pytest.raises(RuntimeError, match="377 rows made from 60 x 3 did not start"):
        on_host("smote_generate", *generate(table(60, 3, torch.float32)), fail_at=1)
    assert torch.equal(on_host("knn", x, x, ptr, ptr, 2, True)[0], ops.knn(x, x, ptr, ptr, 2, True)[0])


def test_nothing_waits_for_the_device(cuda_library):
    """Of the CUDA runtime the library knows what starts work and no more: no synchronisation, no allocation."""
    symbols = subprocess.run(["nm", "-D", "--undefined-only", cuda_library], capture_output=True, text=True, check=True)
    used = {line.split()[-1].partition("@")[0] for line in symbols.stdout.splitlines()}
    used = {name for name in used if name.startswith("cuda")}
    allowed = {"cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cudaMemcpyAsync"}
    assert used - {"cudaGetErrorString", "cudaGetLastError", "cudaLaunchKernel"} <= allowed
