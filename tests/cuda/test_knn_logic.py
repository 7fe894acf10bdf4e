"""The logic of the CUDA search (work list, packing, lists, certificate, merges, fallback), run on the host.

Held to the definition in NumPy, bit for bit: brute force ordered by (d2, row), d2 summed in fp64 over ascending
dimensions, multiply and add rounded apart.
"""

import numpy as np
import pytest
import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def brute_force(x, query, ptr, query_ptr, k, exclude_self):
    x, query = x.double().numpy(), query.double().numpy()
    m = len(query)
    indices, distances = np.full((m, k), -1), np.full((m, k), np.inf)
    for begin, end, first, last in zip(ptr[:-1], ptr[1:], query_ptr[:-1], query_ptr[1:], strict=True):
        d2 = np.zeros((last - first, end - begin))
        with np.errstate(over="ignore"):
            for j in range(x.shape[1]):
                d2 = d2 + (query[first:last, None, j] - x[None, begin:end, j]) ** 2
        rows = np.arange(int(begin), int(end))
        for i in range(int(first), int(last)):
            near = d2[i - int(first)]
            order = np.argsort(near, kind="stable")
            order = order[rows[order] != i][:k] if exclude_self else order[:k]
            indices[i, : len(order)], distances[i, : len(order)] = rows[order], near[order]
    return torch.tensor(indices), torch.tensor(distances)


def check(knn, x, k, query=None, ptr=None, query_ptr=None, exclude_self=None, **options):
    """Compares with brute force; returns the counts of rescored candidates and fallen-back rows."""
    exclude_self = query is None if exclude_self is None else exclude_self
    query = x if query is None else query
    ptr = torch.tensor([0, len(x)]) if ptr is None else ptr
    query_ptr = (ptr if exclude_self else torch.tensor([0, len(query)])) if query_ptr is None else query_ptr
    indices, distances, totals, _ = knn(x, query, ptr, query_ptr, k, exclude_self, **options)
    expected = brute_force(x, query, ptr, query_ptr, k, exclude_self)
    assert torch.equal(indices, expected[0])
    assert torch.equal(distances, expected[1])
    return totals


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("k", (1, 5, 12, 13, 32, 33, 64, 65, 200))
def test_k(emulated_knn, k):
    totals = check(emulated_knn, normal(700, 16), k)
    assert totals[1] == 0
    assert totals[0] == 700 * (k + 8 + k // 16)  # nothing but the shortlist is rescored


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", (1, 3, 8, 33, 100))
def test_dtypes_and_odd_dimensions(emulated_knn, dtype, d):
    check(emulated_knn, normal(300, d, dtype=dtype), 7, query=normal(40, d, seed=1, dtype=dtype))


def test_largest_k(emulated_knn):
    check(emulated_knn, normal(4500, 3), 4096, query=normal(20, 3, seed=1))


def test_largest_k_in_chunks_smaller_than_it(emulated_knn):
    check(emulated_knn, normal(4500, 3), 4096, query=normal(20, 3, seed=1), scored_panels=7)


def test_largest_dimension(emulated_knn):
    check(emulated_knn, normal(150, 4096), 5)


@pytest.mark.parametrize("k", (5, 70))
def test_ties_go_to_the_lower_row(emulated_knn, k):
    x = torch.randint(0, 3, (600, 4), generator=torch.Generator().manual_seed(0)).float()
    assert check(emulated_knn, x, k)[1] > 0  # more than a shortlist of equals


@pytest.mark.parametrize("k", (5, 70))
def test_duplicates(emulated_knn, k):
    totals = check(emulated_knn, normal(1, 6).expand(300, 6).contiguous(), k)
    assert totals[1] == 300


def test_more_columns_than_a_fallback_takes_at_once(emulated_knn):
    """Three rows, a hundred times each."""
    totals = check(emulated_knn, normal(3, 600).repeat(100, 1), 5, query=normal(40, 600, seed=1))
    assert totals[1] == 40


def test_a_query_that_falls_back_twice_counts_once(emulated_knn):
    """In the first and the last of three chunks of rows, and not in the one between."""
    x = torch.cat([torch.zeros(256, 3), 1e3 * normal(256, 3), torch.zeros(256, 3)])
    assert check(emulated_knn, x, 5, query=torch.zeros(3, 3), references=2 * 4608)[1] == 3


@pytest.mark.parametrize("offset", (10.0, 1e3, 1e4))
def test_offsets_need_no_fallback(emulated_knn, offset):
    assert check(emulated_knn, normal(500, 8, dtype=torch.float64) + offset, 5)[1] == 0


@pytest.mark.parametrize("spread", (10.0, 1e3, 1e5))
@pytest.mark.parametrize("k", (5, 65))
def test_clusters_far_apart(emulated_knn, spread, k):
    """The fast pass can't tell the members of a cluster apart: without the certificate this is wrong."""
    x = normal(600, 8) + spread * normal(6, 8, seed=1).repeat(100, 1)
    fallen_back = check(emulated_knn, x, k)[1]
    assert fallen_back == 600 if spread == 1e5 else fallen_back < 600 or spread == 1e3


def test_a_planted_failure_falls_back(emulated_knn):
    """Twenty neighbours closer together than fp32 resolves at their distance from the mean, one query beside them."""
    x = torch.cat([normal(400, 4, dtype=torch.float64), torch.full((20, 4), 1e4, dtype=torch.float64)])
    x[400:] += 1e-9 * torch.arange(20, 0, -1)[:, None]
    query = torch.cat([normal(5, 4, seed=2, dtype=torch.float64), torch.full((1, 4), 1e4, dtype=torch.float64)])
    assert check(emulated_knn, x, 5, query=query)[1] == 1


@pytest.mark.parametrize("k", (5, 65))
def test_the_bound_covers_what_packing_moves(emulated_knn, k):
    """In fp32 all rows are as far from 0, their mean; in fp64 the last is nearest, by less than fp32 resolves."""
    unit = 2.0**-23
    x = torch.full((128, 1), 1 + 0.9 * unit, dtype=torch.float64)
    x[torch.arange(128) // 4 % 2 == 1] *= -1
    x[127] = 1 + 0.51 * unit
    assert check(emulated_knn, x, k, query=torch.zeros(3, 1, dtype=torch.float64))[1] == 3


@pytest.mark.parametrize("exponent", (-4, -3, -2))
@pytest.mark.parametrize("k", (5, 65))
def test_the_bound_grows_with_the_columns(emulated_knn, exponent, k):
    """Two clusters as wide as a sum of 2000 products is wrong: with margins of 8 units and 4, at any d, this fails."""
    x = 0.05 * 2.0**exponent * normal(300, 2000, seed=exponent + 100) + normal(1, 2000)
    x[::2] -= 2 * normal(1, 2000)
    check(emulated_knn, x, k)


@pytest.mark.parametrize("scale", (1e-20, 1e-21, 1e-22, 1e-23))
@pytest.mark.parametrize("k", (5, 65))
def test_products_that_underflow(emulated_knn, scale, k):
    check(emulated_knn, normal(400, 8, dtype=torch.float64) * scale, k)


@pytest.mark.parametrize("k", (5, 65))
def test_a_query_that_fp32_cannot_hold(emulated_knn, k):
    """Nor its products with points that it can: they are packed as they are, it as zero."""
    x = 1e16 * normal(1000, 3, dtype=torch.float64)
    x[::2, 0] += 1e16
    assert check(emulated_knn, x, k, query=torch.tensor([[1e18, 0, 0]], dtype=torch.float64))[1] == 1


@pytest.mark.parametrize("k", (5, 65))
def test_a_point_that_fp32_cannot_hold(emulated_knn, k):
    """Just beyond what is packed, and next to a query just within."""
    x = torch.cat([torch.linspace(-0.9, 0.9, 300), torch.tensor([1.01])]).double()[:, None] * 2**56
    check(emulated_knn, x, k, query=torch.tensor([[0.995 * 2**56]], dtype=torch.float64))


def test_a_mean_that_fp32_cannot_hold(emulated_knn):
    """Does not make the others uncertain."""
    x = normal(400, 3, dtype=torch.float64)
    x[0] = 1e200
    assert check(emulated_knn, x, 5)[1] == 1


CHUNKS = {"references": 9300, "queries": 20_000, "scored_panels": 2}  # of two panels up to 8 columns, of one beyond


@pytest.mark.parametrize("k", (5, 64, 65))
def test_chunks_need_no_fallback(emulated_knn, k):
    """The k-th so far bounds what a later chunk may leave out; that a list is not full proves nothing is missing."""
    assert check(emulated_knn, normal(900, 9), k, **CHUNKS)[1] == 0


@pytest.mark.parametrize("k", (1, 5, 65))
@pytest.mark.parametrize("shared", (True, False))
def test_ragged_segments(emulated_knn, k, shared):
    """Empty, shorter than k, one panel, a panel and a row, several."""
    sizes = torch.tensor([0, 1, 3, 128, 129, 127, 0, 300, 66])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    x = normal(int(ptr[-1]), 5)
    if shared:
        check(emulated_knn, x, k, ptr=ptr)
    else:
        query_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.flip(0).cumsum(0)])
        query = normal(len(x), 5, seed=1)
        check(emulated_knn, x, k, query=query, ptr=ptr, query_ptr=query_ptr, exclude_self=False)


def test_more_segments_than_counting_threads(emulated_knn):
    sizes = torch.arange(2500) % 4
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    check(emulated_knn, normal(int(ptr[-1]), 1), 1, ptr=ptr, references=1 << 20, queries=1 << 20)


@pytest.mark.parametrize("k", (5, 64, 70))
@pytest.mark.parametrize("backwards", (False, True))
@pytest.mark.parametrize(
    "options",
    (
        {"processors": 132},
        {"references": 20_000, "queries": 20_000, "scored_panels": 2},
        {"references": 40_000, "queries": 10_000, "processors": 7, "scored_panels": 3},
    ),
)
def test_splits_chunks_and_batches_change_nothing(emulated_knn, k, backwards, options):
    x = torch.cat([normal(700, 9), normal(400, 9) + 1e4 * normal(4, 9, seed=1).repeat(100, 1)])
    check(emulated_knn, x, k, ptr=torch.tensor([0, 650, 1100]), backwards=backwards, **options)


def test_order_of_threads_changes_no_count(emulated_knn):
    x = torch.cat([normal(300, 4), torch.zeros(100, 4)])
    args = (x, x, torch.tensor([0, 400]), torch.tensor([0, 400]), 6, True)
    assert emulated_knn(*args)[2] == emulated_knn(*args, backwards=True)[2]


@pytest.mark.parametrize("k", (5, 65))
@pytest.mark.parametrize("options", ({}, CHUNKS), ids=("whole", "chunks"))
def test_values_that_fp32_cannot_hold(emulated_knn, k, options):
    x = normal(400, 3, dtype=torch.float64)
    x[7] = 1e200  # its distance is inf
    x[100:110] *= 1e30
    x[200:300] *= 1e-200  # their differences underflow in fp32, their squares in fp64
    check(emulated_knn, x, k, **options)
    x = torch.cat([torch.full((256, 3), -1e200, dtype=torch.float64), x[:8]])  # at inf but for a few
    check(emulated_knn, x, k, **options)


def test_a_not_a_number_is_nobodys_neighbour(emulated_knn):
    x = normal(60, 3)
    x[20, 1] = float("nan")
    indices, distances, _, _ = emulated_knn(x, x, torch.tensor([0, 60]), torch.tensor([0, 60]), 58, True)
    rest = torch.arange(60) != 20
    assert not (indices[rest] == 20).any() and not distances[rest].isnan().any()
    assert distances[20].isnan().all()


def test_a_prefix_of_a_longer_list(emulated_knn):
    x = torch.randint(0, 4, (400, 3), generator=torch.Generator().manual_seed(3)).float()
    args = (x, x, torch.tensor([0, 400]), torch.tensor([0, 400]))
    longest = emulated_knn(*args, 90, True)[0]
    for k in (1, 12, 40, 64, 65):
        assert torch.equal(emulated_knn(*args, k, True)[0], longest[:, :k])


@pytest.mark.parametrize("m, n", ((0, 10), (5, 0), (0, 0)))
def test_nothing(emulated_knn, m, n):
    check(emulated_knn, torch.empty(n, 3), 2, query=torch.empty(m, 3))


GOOD = [0, 10, 40]
BAD = ([0, 10, 41], [1, 10, 40], [0, 50, 40], [0, -5, 40], [0, 2**40, 40], [-(2**63), 2**63 - 1, 40], [0, 0, 0])


@pytest.mark.parametrize("k", (2, 65))
@pytest.mark.parametrize(
    "ptr, query_ptr", [*((bad, bad) for bad in BAD), *((bad, GOOD) for bad in BAD), *((GOOD, bad) for bad in BAD)]
)
def test_bad_segments_find_nothing(emulated_knn, ptr, query_ptr, k):
    """A GPU does not wait to look at them: the answer says so, and nothing out of range is read."""
    x = normal(40, 3)
    indices, distances, totals, _ = emulated_knn(x, x, torch.tensor(ptr), torch.tensor(query_ptr), k, False)
    assert (indices == -1).all() and (distances == torch.inf).all() and totals == [0, 0]


@pytest.mark.parametrize("processors", (1, 132))
@pytest.mark.parametrize("segments", (1, 1000))
@pytest.mark.parametrize("d", (1, 8, 4096))
@pytest.mark.parametrize("k", (1, 12, 64, 65, 4096))
def test_workspace_is_bounded(emulated_knn, k, d, segments, processors):
    """By 512 MiB and 16 bytes a segment, each of its ten pieces rounded up to 256 bytes."""
    for n, m in ((10**7, 10**7), (10**7, 1), (200, 10**9), (10**10, 10**5)):
        used = emulated_knn.workspace(segments, n, m, d, k, processors)
        assert used <= (512 << 20) + 16 * (segments + 1) + 10 * 255


@pytest.mark.parametrize("d", (8, 256))
@pytest.mark.parametrize("k", (5, 64, 65, 4096))
@pytest.mark.parametrize("m", (1, 128, 10**4, 10**6))
def test_a_launch_fills_the_device(emulated_knn, m, k, d):
    """Two blocks for each of 132 multiprocessors, as far as a panel of queries can be shared out: in 32 lists, or by
    the 256 panels of a chunk of scores."""
    most = (32 if k <= 64 else 256) * -(-m // 128)
    assert emulated_knn.tile_blocks(1, 10**6, m, d, k, 132) >= min(2 * 132, most)
