"""The softmax kernel for a few classes, four rows to a thread and eight to a program here: every number of classes that
it takes, and where its vectors begin and end."""

import math

import pytest
import torch
import triton.language as tl
from softmax_reference import call, compare, definition

from imbal_kernels.kernels import narrow, numerics, softmax

INF, NAN = math.inf, math.nan
CLASSES = tuple(range(1, 9))
# One row, the ends of a thread's four and of a program's eight, and one more.
ROWS = (1, 3, 4, 5, 8, 9, 17)


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    monkeypatch.setattr(softmax, "THREADS", 2)


def make(rows, classes, kind="ids", dtype=torch.float32):
    torch.manual_seed(classes)
    x = (torch.randn(rows, classes) * 5).clamp(-20, 20).to(dtype)
    if kind == "probabilities":
        return x, torch.softmax(torch.randn(rows, classes), 1).to(dtype)
    ids = torch.arange(rows) % classes  # every class, next to each other
    ids[1::5] = -100
    return x, ids


def test_these_rows_are_narrow():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        classes = softmax.NARROW[dtype.itemsize]
        kernels = [softmax._layout(torch.empty(2, c, dtype=dtype), False)[0] for c in (classes, classes + 1)]
        assert kernels[0] is narrow.narrow_kernel and kernels[1] is not narrow.narrow_kernel


@pytest.mark.parametrize("rows", ROWS)
def test_around_a_thread_and_a_program(rows):
    for classes in (2, 3):
        compare(*make(rows, classes))
        compare(*make(rows, classes, "probabilities"))


@pytest.mark.parametrize("kind", ("ids", "probabilities"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("classes", CLASSES)
def test_every_option(dtype, classes, kind):
    x, target = make(9, classes, kind, dtype)
    if dtype == torch.float64:
        x = x / 4  # of more confident rows PyTorch's own logarithm loses digits
    compare(x, target)
    weight, adjustment = torch.rand(classes, dtype=dtype), torch.randn(classes, dtype=dtype)
    options = dict(weight=weight, adjustment=adjustment, scale=-0.5, scale_tensor=torch.tensor(3.0, dtype=dtype))
    for gamma, smoothing, upstream in ((2.0, 0.0, torch.tensor(-2.0, dtype=dtype)),
                                       (2.7, 0.1, torch.randn(9, dtype=dtype))):  # fmt: skip
        # All gradients of so few classes can cross zero together, their terms ten times as large.
        rtol = {torch.float32: 5e-5, torch.float64: 1e-11}[dtype] if kind == "probabilities" or smoothing else None
        compare(x, target, rtol, gamma=gamma, smoothing=smoothing, upstream=upstream, **options)


@pytest.mark.parametrize("kind", ("ids", "probabilities"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(dtype, kind):
    x, target = make(9, 3, kind, dtype)
    losses, grad = definition(x, target, gamma=2.0)
    _, got, slope = call(x, target, gamma=2.0)
    torch.testing.assert_close(got.double(), losses, rtol=1e-4, atol=1e-4)
    # The interpreter truncates to bf16, the hardware rounds; fp16 has no more than 6e-8.
    rounding = 2**-7 if dtype == torch.bfloat16 else 2**-10
    assert ((slope - grad).abs() <= rounding * grad.abs() + 1e-5 * grad.abs().amax(1, keepdim=True) + 6e-8).all()


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("classes", (1, 2, 3, 5))
def test_ignored_and_bad_rows(classes, smoothing):
    """Silent, whatever an ignored row and its upstream hold; a bad id makes its own row NaN."""
    x, ids = make(9, classes)
    ids[2], ids[4], ids[7] = -1, 2**32, classes
    bad, ignored = (ids != -100) & ((ids < 0) | (ids >= classes)), ids == -100
    x[ignored] = torch.tensor([NAN, INF, -INF]).repeat(classes)[:classes]
    upstream = torch.where(ignored, NAN, 2.0)
    weight = torch.ones(classes)
    weight[0] = INF
    for options in (dict(upstream=upstream, gamma=2.0), dict(weight=weight)):
        _, losses, grad = call(x, ids, smoothing=smoothing, **options)
        assert not losses[ignored].any() and not grad[ignored].any()
        assert losses[bad].isnan().all() and grad[bad].isnan().all()
    _, losses, grad = call(x, ids, smoothing=smoothing)
    good = ~(bad | ignored)
    expected, slope = definition(x[good], ids[good], smoothing=smoothing)
    torch.testing.assert_close(losses[good], expected.float(), rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(grad[good], slope.float(), rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("dtype", (torch.int8, torch.uint8, torch.int16, torch.int32))
def test_id_dtypes(dtype):
    x, ids = make(9, 3)
    ids = ids.clamp(min=0)
    for got, expected in zip(call(x, ids.to(dtype)), call(x, ids), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("gamma", (0.0, 2.0, 2.7))
@pytest.mark.parametrize("classes", (1, 2))
def test_limits(classes, gamma):
    """Every pair of infinities, a NaN and the largest numbers; with nothing beside the label the loss is 0."""
    values = torch.tensor([INF, -INF, NAN, 0.5, torch.finfo(torch.float32).max, torch.finfo(torch.float32).min])
    x = values[:, None] if classes == 1 else torch.cartesian_prod(values, values)
    ids = torch.zeros(len(x), dtype=torch.int64)
    # A large number for an infinite logit: what is large is infinite. Half-way, so that the largest differ from both.
    stand_in = x.double().clamp(-1e8, 1e8) * torch.where(x.isinf(), 2, 1)
    # Beside a +inf the largest number counts as infinite too.
    beside = (x == INF).any(1, keepdim=True) & (x == values[4])
    stand_in = torch.where(beside, 2e8, stand_in)
    losses, grad = definition(stand_in, ids, gamma=gamma)
    bad = x.isnan().any(1) | (x == -INF).all(1)
    losses, grad = losses.where(~bad, NAN), grad.where(~bad[:, None], NAN)
    _, got, slope = call(x, ids, gamma=gamma)
    large = losses > 1e3
    assert (got[large] > 1e38).all() and (got[large & x.isinf().any(1)] == INF).all()
    torch.testing.assert_close(got[~large], losses[~large].float(), rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(slope, grad.float(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("sign", ((1, 1, 1), (1, -1, -1), (-1, 1, 1), (-1, -1, -1)))
@pytest.mark.parametrize("gamma", (0.0, 0.5, 2.0, 2.7))
def test_accuracy_with_the_hardware_functions_errors(monkeypatch, gamma, sign):
    """ex2.approx, exact at 0, and rcp.approx may be off by 2^-22 and 2^-23, lg2.approx by 2^-22 in all: the bound must
    hold at their worst."""
    ex2, rcp, lg2 = 1 + sign[0] * 2**-22, 1 + sign[1] * 2**-23, sign[2] * 2**-22
    monkeypatch.setattr(numerics, "exp2", lambda x, FAST: tl.where(x == 0, 1.0, tl.exp2(x) * ex2))
    monkeypatch.setattr(numerics, "reciprocal", lambda x, FAST: (1.0 / x) * rcp)
    monkeypatch.setattr(numerics, "sqrt", lambda x, FAST: tl.sqrt(x) * rcp)
    monkeypatch.setattr(numerics, "log2", lambda x, FAST: tl.log2(x) + lg2)
    # Triton 3.6's interpreter rounds the product.
    monkeypatch.setattr(tl, "fma", lambda x, y, z: (x.to(tl.float64) * y + z).to(tl.float32))
    monkeypatch.setattr(softmax, "THREADS", 128)
    gap = torch.cat([torch.linspace(-limit, limit, 512) for limit in (20, 80)])
    for classes in (2, 3):
        x = torch.zeros(len(gap), classes)
        x[:, 0] = gap
        z = math.log(classes - 1) - gap.double()
        p, q = torch.sigmoid(-z), torch.sigmoid(z)
        u = torch.where(z < -30, q, torch.nn.functional.softplus(z, threshold=1e9))  # q there, to the last digit
        _, losses, grad = call(x, torch.zeros(len(gap), dtype=torch.int64), gamma=gamma)
        bound = (1 + gamma) * torch.where(gap.abs() <= 20, 1.5e-6, 1e-5)
        for got, true in ((losses, q**gamma * u), (grad[:, 0], -(q**gamma) * (q + gamma * p * u))):
            normal = true.abs() > 1.2e-38
            assert ((got - true).abs() <= bound * true.abs())[normal].all()
