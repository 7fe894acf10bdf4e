"""Sizes, ignored and bad targets, infinities, and what must never leak from one element to another."""

import math

import pytest
import torch
from sigmoid_reference import assert_close, call, definition, one_hot

from imbal_kernels.kernels import sigmoid

INF, NAN = math.inf, math.nan


@pytest.fixture
def small_blocks(monkeypatch):
    """Two tiles of 8 vectors: a program is 256 elements, so that a few rows make several programs."""
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (8, 2)))


@pytest.fixture
def one_tile(monkeypatch):
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (128, 1)))


def check(x, ids):
    total, losses, grad = call(x, ids)
    expected, slope, _ = definition(x, one_hot(ids, x.shape[1]))
    assert_close(total, expected.sum(), 5e-6)
    assert_close(losses, expected, 5e-6)
    assert_close(grad, slope, 5e-6)


# One element off a block of 256 on either side; rows that begin and end inside programs; one long row.
SIZES = [
    (1, 1),
    (255, 1),
    (256, 1),
    (257, 1),
    (3, 17),
    (16, 16),
    (17, 16),
    (6, 48),
    (17, 31),
    (64, 5),
    (1, 1203),
    (2, 399),
]


@pytest.mark.parametrize("size", ((190, 80), (170, 91)))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_the_blocks_in_use(size, dtype):
    torch.manual_seed(1)
    x, ids = torch.randn(size).to(dtype), torch.randint(-1, size[1] + 1, size[:1])
    total, losses, grad = call(x, ids)
    expected, slope, _ = definition(x, one_hot(ids, size[1]))
    assert_close(total, expected.sum(), 1e-4)
    assert_close(losses, expected, 1e-4)
    assert_close(grad, slope, 1e-4 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(small_blocks, size):
    torch.manual_seed(1)
    check(torch.randn(size) * 3, torch.randint(-1, size[1] + 1, size[:1]))


def test_one_row_of_a_million_columns(monkeypatch):
    monkeypatch.setattr(sigmoid, "TILE", {4: (8192, 2)})
    x = torch.zeros(1, 1_000_003)
    ids = torch.tensor([1_000_002])
    total, _ = sigmoid.sigmoid_loss(x, ids, None, None, None, None, None, -1.0, 0.0, 0.0, 1.0, -100, 2, False, False)
    assert_close(total, torch.tensor(x.numel() * math.log(2)).double(), 1e-6)


@pytest.mark.parametrize("classes", (1, 16, 80))
def test_empty(classes):
    total, losses, grad = call(torch.empty(0, classes), torch.empty(0, dtype=torch.int64))
    assert total.item() == 0 and losses.shape == grad.shape == (0, classes)


@pytest.mark.parametrize("classes, smoothing", ((32, 0.0), (21, 0.0), (5, 0.0), (21, 0.1)))
def test_ignored_rows_are_silent(small_blocks, classes, smoothing):
    torch.manual_seed(2)
    for ignore_index in (-100, -1, 3, classes):
        x, ids = torch.randn(18, classes), torch.randint(-1, classes + 1, (18,))
        ids[::4] = ignore_index
        kept = ids != ignore_index
        x[~kept] = torch.tensor([NAN, INF, -INF, 7.0])[torch.arange((~kept).sum()) % 4][:, None]
        total, losses, grad = call(x, ids, ignore_index=ignore_index, smoothing=smoothing)
        expected, slope, size = definition(x[kept], one_hot(ids[kept], classes), smoothing=smoothing)
        assert not losses[~kept].any() and not grad[~kept].any()
        assert_close(total, expected.sum(), 5e-6)
        assert_close(losses[kept], expected, 5e-6)
        assert_close(grad[kept], slope, 5e-6, size)


def test_ignored_elements_are_silent():
    x = torch.randn(20, 21)
    target = torch.rand(20, 21)
    target[::3, ::2] = -100
    kept = target != -100
    x[~kept] = NAN
    total, losses, grad = call(x, target)
    expected, slope, size = definition(x[kept], target[kept].double())
    assert not losses[~kept].any() and not grad[~kept].any()
    assert_close(total, expected.sum(), 5e-6)
    assert_close(grad[kept], slope, 5e-6, size)


@pytest.mark.parametrize("bad", (-2, "C+1", 2**32 + 5, 2**63 - 1))
@pytest.mark.parametrize("classes, smoothing", ((32, 0.0), (21, 0.0), (5, 0.0), (21, 0.1)))
def test_a_bad_id_is_nan_for_its_row_only(small_blocks, classes, smoothing, bad):
    torch.manual_seed(3)
    x = torch.randn(17, classes)
    ids = torch.randint(-1, classes + 1, (17,))
    ids[4], ids[5], ids[9] = -100, classes + 1 if bad == "C+1" else bad, 0
    total, losses, grad = call(x, ids, smoothing=smoothing)
    rows = torch.arange(17) == 5
    assert total.isnan()
    for out in (losses, grad):
        assert torch.equal(out.isnan(), rows[:, None].expand_as(out))
    assert not losses[4].any() and not grad[4].any()


@pytest.mark.parametrize("target", (torch.tensor([[0.0, 1.5, -0.1, NAN, 1.0]]), torch.tensor([[0, 2, -1, 7, 1]])))
def test_a_bad_dense_target_is_nan(target):
    total, losses, grad = call(torch.randn(1, 5), target)
    bad = torch.tensor([[False, True, True, True, False]])
    assert total.isnan() and torch.equal(losses.isnan(), bad) and torch.equal(grad.isnan(), bad)


@pytest.mark.parametrize("gamma", (0.0, 0.5, 1.0, 2.0, 2.7, 0.1))
@pytest.mark.parametrize("kind", ("ids", "bool", "float"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64))
def test_extreme_logits(one_tile, dtype, kind, gamma):
    big = torch.finfo(dtype).max
    x = torch.tensor([INF, big, 1e38, 100.0, -100.0, -1e38, -big, -INF, NAN], dtype=dtype)
    x = x.repeat(2)[:, None].repeat(1, 32).contiguous()
    ids = torch.tensor([-1, 1]).repeat_interleave(9)  # column 1 negative, then positive
    t = one_hot(ids, 32)
    _, losses, grad = call(x, {"ids": ids, "bool": t.bool(), "float": t.to(dtype)}[kind], gamma=gamma, alpha=-1.0)
    sign = 1 - 2 * t[:, 1]
    z, losses, grad = x[:, 1].double() * sign, losses[:, 1].double(), grad[:, 1].double()
    high, low = z > 99, z < -99
    torch.testing.assert_close(losses[high], z[high], rtol=5e-3, atol=0)
    torch.testing.assert_close(grad[high], sign[high], rtol=5e-3, atol=0)
    assert losses[low].abs().max() < 1e-37 and grad[low].abs().max() < 1e-37
    assert losses[z.isnan()].isnan().all() and grad[z.isnan()].isnan().all()


@pytest.mark.parametrize("classes", (32, 21, 5))
def test_a_confident_positive_does_not_pollute_the_sum(one_tile, classes):
    """As background it would weigh 1e30; added and taken off again it would leave nothing of the rest."""
    x = torch.full((19, classes), -8.0)
    ids = torch.arange(19) % classes
    x[torch.arange(19), ids] = 1e30
    total, _, _ = call(x, ids)
    expected, _, _ = definition(x, one_hot(ids, classes))
    assert_close(total, expected.sum(), 5e-6)


def test_same_bits_every_time(small_blocks):
    x, ids = torch.randn(40, 21), torch.randint(0, 21, (40,))
    for first, second in zip(call(x, ids), call(x, ids), strict=True):
        assert torch.equal(first, second)
