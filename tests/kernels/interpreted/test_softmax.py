"""The softmax kernels against F.cross_entropy in fp64: rows in registers, two passes, the class dimension inside."""

import math

import pytest
import torch
from softmax_reference import call, compare, definition

from imbal_kernels.kernels import softmax, softmax_loss

INF, NAN = math.inf, math.nan
LAYOUTS = ("registers", "two passes", "inside")
# Nothing but the label; a pair; a row that fills its pieces and one that is one longer; a long row.
CLASSES = (1, 2, 80, 81, 300)
GAMMAS = (0.5, 1.0, 2.0, 2.7)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few loops of the two passes: the interpreter's time goes by operations, not by elements."""
    monkeypatch.setattr(softmax, "ONLINE", dict.fromkeys((2, 4, 8), (4, 64, 1)))
    monkeypatch.setattr(softmax, "INSIDE", dict.fromkeys((2, 4, 8), (32, 8, 1)))


@pytest.fixture
def layout(request, monkeypatch):
    if request.param == "two passes":
        monkeypatch.setattr(softmax, "ROWS", {})
    return request.param


def make(layout, classes, rows=6, kind="ids", dtype=torch.float32, seed=0):
    """Nine positions are one more than a block; the ids include an ignored one."""
    torch.manual_seed(seed)
    shape = (2, classes, 9) if layout == "inside" else (rows, classes)
    x = (torch.randn(shape) * 5).clamp(-20, 20).to(dtype)
    if kind == "probabilities":
        return x, torch.softmax(torch.randn(shape), 1).to(dtype)
    ids = torch.randint(0, classes, (shape[0], *shape[2:]))
    ids.view(-1)[1] = -100
    return x, ids


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("classes", CLASSES)
def test_class_ids(layout, classes):
    compare(*make(layout, classes))


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_powers(layout, gamma):
    compare(*make(layout, 21), gamma=gamma)
    compare(*make(layout, 1), gamma=gamma)


# One off a block of the two passes and one off a piece of the rows on either side.
@pytest.mark.parametrize("classes", (16, 17, 255, 256, 257))
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
def test_around_a_block(layout, classes):
    compare(*make(layout, classes), gamma=2.0)


@pytest.mark.parametrize("rows", (0, 1, 15, 16, 17))
def test_rows_around_a_program(rows):
    torch.manual_seed(0)
    x, ids = torch.randn(rows, 80), torch.randint(0, 80, (rows,))
    compare(x, ids)


@pytest.mark.parametrize("kind", ("ids", "probabilities"))
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize(
    "gamma, smoothing, dtype", ((0.0, 0.1, torch.float32), (2.0, 0.0, torch.float64), (2.7, 0.1, torch.float32))
)
def test_every_option(dtype, layout, kind, gamma, smoothing):
    x, target = make(layout, 21, kind=kind, dtype=dtype)
    options = dict(
        weight=torch.rand(21, dtype=dtype), adjustment=torch.randn(21, dtype=dtype), scale=-0.5,
        scale_tensor=torch.tensor(3.0, dtype=dtype), gamma=gamma, smoothing=smoothing,
    )  # fmt: skip
    options["weight"][3] = 0
    rows = (x.shape[0], *x.shape[2:])
    upstream = torch.randn(rows, dtype=dtype) if gamma else torch.tensor(-2.0, dtype=dtype)
    compare(x, target, upstream=upstream, **options)


@pytest.mark.parametrize("layout", ("registers", "two passes"), indirect=True)
# Vectors of 2, 4 and 8, of 4 at most for up to 40 classes; rows that begin anywhere in one, in two programs; without a
# whole one in between.
@pytest.mark.parametrize(
    "dtype, classes, rows, kind",
    ((torch.float64, 65, 17, "ids"), (torch.float32, 67, 17, "ids"), (torch.bfloat16, 66, 17, "ids"),
     (torch.float32, 17, 33, "ids"), (torch.bfloat16, 39, 33, "ids"),
     (torch.float32, 67, 17, "probabilities"), (torch.bfloat16, 39, 33, "probabilities")),
)  # fmt: skip
def test_unaligned_rows(dtype, classes, rows, kind, layout):
    rows = 5 if layout == "two passes" else rows  # a program each; the fifth begins as the first does
    x, target = make(layout, classes, rows=rows, kind=kind, dtype=dtype)
    if kind == "ids":
        target[:4] = torch.tensor([0, classes - 1, -100, classes // 2])
    rtol = 2**-7 if dtype == torch.bfloat16 else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    compare(x, target, rtol)
    weight, adjustment = torch.rand(classes, dtype=wide), torch.randn(classes, dtype=wide)
    compare(x, target, rtol, gamma=2.0, smoothing=0.1, weight=weight, adjustment=adjustment)


@pytest.mark.parametrize("kind", ("ids", "probabilities"))
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(dtype, layout, kind):
    x, target = make(layout, 21, kind=kind, dtype=dtype)
    losses, grad = definition(x, target, gamma=2.0)
    _, got, slope = call(x, target, gamma=2.0)
    torch.testing.assert_close(got.double(), losses, rtol=1e-4, atol=1e-4)
    # The interpreter truncates to bf16, the hardware rounds; fp16 has no more than 6e-8.
    rounding = 2**-7 if dtype == torch.bfloat16 else 2**-10
    assert ((slope - grad).abs() <= rounding * grad.abs() + 1e-5 * grad.abs().amax(1, keepdim=True) + 6e-8).all()


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_ignored_rows_are_silent(layout, smoothing):
    x, ids = make(layout, 21)
    for ignore_index in (-1, 3):
        ids.view(-1)[1] = ignore_index
        kept = ids != ignore_index
        poisoned = torch.where(kept[:, None], x, torch.tensor([NAN, INF, -INF])[torch.arange(21) % 3].view(
            (1, -1) + (1,) * (x.dim() - 2)))  # fmt: skip
        total, losses, grad = call(poisoned, ids, smoothing=smoothing, gamma=2.0, ignore_index=ignore_index)
        expected, slope = definition(
            x.where(kept[:, None], 0), ids.where(kept, -100), smoothing=smoothing, gamma=2.0
        )  # fmt: skip
        assert not losses[~kept].any() and not grad.movedim(1, -1)[~kept].any()
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
        torch.testing.assert_close(grad, slope, rtol=1e-5, atol=1e-6, check_dtype=False)
        assert total.isfinite()


@pytest.mark.parametrize("bad", (-1, 21, 2**32 + 5))
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_a_bad_id_is_nan_for_its_row_only(layout, bad, smoothing):
    x, ids = make(layout, 21)
    ids.view(-1)[2] = bad
    total, losses, grad = call(x, ids, smoothing=smoothing, gamma=2.0)
    assert total.isnan() and torch.equal(losses.isnan(), ids == bad)
    assert torch.equal(grad.isnan(), (ids == bad)[:, None].expand_as(grad))


@pytest.mark.parametrize("dtype", (torch.int8, torch.uint8, torch.int16, torch.int32))
def test_id_dtypes(dtype):
    x, ids = make("registers", 21)
    ids = ids.clamp(min=0)
    for got, expected in zip(call(x, ids.to(dtype)), call(x, ids), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("gamma", (0.0, 0.5, 2.0, 2.7))
def test_confident_rows_lose_no_digit(layout, gamma):
    """The label ahead by 0 ... 80: relative to the value itself, wherever that is a normal number."""
    gaps = torch.arange(0.0, 81.0, 9.0)
    x = torch.zeros((9, 21) if layout != "inside" else (1, 21, 9))
    x[:, 5] = gaps if layout != "inside" else gaps[None]
    ids = torch.full((x.shape[0], *x.shape[2:]), 5)
    _, losses, grad = call(x, ids, gamma=gamma)
    wide = x.double()
    z = math.log(20) - wide[:, 5]
    p, q = torch.sigmoid(-z), torch.sigmoid(z)
    u = torch.nn.functional.softplus(z, threshold=1e9)
    u = torch.where(z < -30, q, u)  # softplus is exp there, to the last digit
    for got, true in ((losses, q**gamma * u), (grad[:, 5], -(q**gamma) * (q + gamma * p * u))):
        normal = true.abs() > 1.2e-38
        assert ((got - true).abs() <= (1 + gamma) * 1e-5 * true.abs())[normal].all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
def test_logits_far_from_0(layout, dtype):
    """From 1e3 to the largest, with ties and neighbours: exp(x - max), whatever the size of max."""
    limit = torch.finfo(dtype).max
    # Between these the interpreter, which rounds a product that fp64's fma does not, is the limit in fp64.
    between = (1e6, 2.0**29 - 32, 2.0**29, 2.0**30) if dtype == torch.float32 else ()
    rows = []
    for size in (1e3, *between, 1e20, limit):
        top = torch.tensor(size, dtype=dtype)
        below = torch.nextafter(top, torch.tensor(0.0, dtype=dtype))
        for sign in (1, -1):
            x = torch.full((2, 21), -float(limit), dtype=dtype) if sign == 1 else torch.zeros(2, 21, dtype=dtype) - top
            x[:, :4] = sign * torch.stack([top, top, below, below])
            rows.append(x)
    x, ids = torch.cat(rows), torch.tensor([1, 3]).repeat(len(rows))
    if layout == "inside":
        x, ids = x[:, :, None].repeat(1, 1, 9), ids[:, None].repeat(1, 9)
    # The usual formula is exact here up to exp's rounding: neighbours differ by a power of 2.
    compare(x, ids, rtol=1e-12 if dtype == torch.float64 else 5e-6)


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("gamma", (0.0, 2.0))
def test_extreme_logits(layout, gamma):
    """A far-off label costs its distance and more is never lost; what is NaN stays so, in its row."""
    rows = [[100.0, -100.0, 0.0], [-100.0, 100.0, 0.0], [1e38, -1e38, 0.0], [-INF, 3.0, 1.0], [3.0, -INF, 1.0],
            [INF, 1.0, 1.0], [NAN, 0.0, 0.0], [0.0, NAN, 0.0], [-INF, -INF, -INF], [1.0, -INF, -INF],
            [1.0, INF, 0.0], [INF, INF, 1.0]]  # fmt: skip
    x = torch.tensor(rows)
    if layout == "inside":
        x = x.T.contiguous()[None]
    ids = torch.zeros((x.shape[0], *x.shape[2:]), dtype=torch.int64)
    _, losses, grad = call(x, ids, gamma=gamma)
    losses, grad = losses.flatten(), (grad[0].T if layout == "inside" else grad)
    expected = torch.tensor([0.0, 200.0, 0.0, INF, math.log1p(math.exp(-2)), 0.0, NAN, NAN, NAN, 0.0,
                             INF, math.log(2)])  # fmt: skip
    if gamma:
        expected[4] *= torch.sigmoid(torch.tensor(-2.0)) ** 2
        expected[11] /= 4
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-30, equal_nan=True)
    slopes = {0: [0.0] * 3, 1: [-1.0, 1.0, 0.0], 2: [0.0] * 3, 5: [0.0] * 3, 9: [0.0] * 3, 10: [-1.0, 1.0, 0.0]}
    for row, slope in slopes.items():
        torch.testing.assert_close(grad[row], torch.tensor(slope), rtol=1e-5, atol=1e-30)
    third = torch.tensor([-1.0, math.e**2 / (1 + math.e**2), 1 / (1 + math.e**2)])
    torch.testing.assert_close(grad[3], third, rtol=1e-5, atol=0)
    assert grad[6:9].isnan().all()


def far_away(x, target, **options):
    """(losses, gradient) by the definition with a large number for an infinite logit: what is large is infinite. NaN
    in a row's logits, and no logit above -inf, make it NaN."""
    losses, grad = definition(x.double().clamp(-1e8, 1e8), target, **options)
    losses = torch.where(losses > 1e3, INF, losses)
    bad = x.isnan().any(1) | (x == -INF).all(1)
    return losses.where(~bad, NAN), grad.where(~bad[:, None], NAN)


@pytest.mark.parametrize("kind", ("ids", "probabilities"))
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("gamma", (0.0, 2.0, 2.7))
def test_limits(layout, kind, gamma):
    """Every pair of +inf, -inf, NaN and a number, beside two more. A gradient's limit may be infinite."""
    values = [torch.tensor([INF, -INF, NAN, 0.5])] * 2
    x = torch.cartesian_prod(*values, torch.tensor([2.0]), torch.tensor([-1.0]))
    x = torch.cat([x, torch.tensor([[INF, INF, INF, -1.0], [0.5, -INF, -INF, -INF]])])
    ids = torch.zeros(len(x), dtype=torch.int64)
    target = ids if kind == "ids" else torch.tensor([0.5, 0.2, 0.0, 0.3]).repeat(len(x), 1)
    for smoothing in (0.0, 0.1):
        for weight in (None, torch.tensor([1.0, 0.0, 2.0, 1.0])):
            options = dict(gamma=gamma, smoothing=smoothing, weight=weight)
            losses, grad = far_away(x, target, **options)
            if layout == "inside":
                maps = target[None] if kind == "ids" else target.T[None].contiguous()
                _, got, slope = call(x.T[None].contiguous(), maps, **options)
                got, slope = got[0], slope[0].T
            else:
                _, got, slope = call(x, target, **options)
            torch.testing.assert_close(got, losses.float(), rtol=1e-5, atol=1e-6, equal_nan=True)
            infinite = grad.abs() > 1e3
            assert (slope * grad.sign() > 1e20)[infinite].all()
            torch.testing.assert_close(slope[~infinite], grad[~infinite].float(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("gamma", (0.0, 2.0, 2.7))
def test_any_probabilities(layout, gamma):
    """F.cross_entropy takes them outside [0, 1]; a k below 0 counts as 0."""
    x, target = make(layout, 21, kind="probabilities", dtype=torch.float64)
    target = target - 1 / 21 + torch.randn(target.shape, dtype=target.dtype) / 10
    k = (target * (1 - torch.softmax(x, 1))).sum(1)
    assert (k < 0).any() and (k > 0).any()
    losses, grad = definition(x, target, gamma=gamma)
    _, got, slope = call(x, target, gamma=gamma)
    counts = k > 0 if gamma else k == k
    torch.testing.assert_close(got, losses.where(counts, 0), rtol=1e-11, atol=1e-11)  # k cancels
    torch.testing.assert_close(slope, grad.where(counts[:, None], 0), rtol=1e-11, atol=1e-11)


def test_only_a_gradient():
    x, ids = make("registers", 21)
    loss, grad = softmax_loss(x, ids, None, None, None, None, 2.0, 0.0, 1.0, -100, 0, True, False)
    assert loss.numel() == 0 and torch.equal(grad, call(x, ids, gamma=2.0)[2])


def test_same_bits_every_time():
    x, ids = make("registers", 21, rows=40)
    for first, second in zip(call(x, ids), call(x, ids), strict=True):
        assert torch.equal(first, second)


def test_the_mean_over_nothing_is_nan():
    x, ids = make("registers", 21)
    total, _, _ = call(x, torch.full_like(ids, -100), scale_tensor=torch.tensor(INF))
    assert total.isnan()
