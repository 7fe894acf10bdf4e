"""Values and gradients of the streaming kernel against the definition in fp64."""

import pytest
import torch
import triton.language as tl
from sigmoid_reference import assert_close, call, definition, one_hot

from imbal_kernels.kernels import numerics, sigmoid, sigmoid_loss

GAMMAS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 2.7)
# A vector of 16 lies in one row, in two, or in many; 1 and 16 are the ends of a kind.
CLASSES = (32, 21, 5, 1, 16)
# The interpreter truncates to bf16, the hardware rounds.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-11}


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    """A program of one tile: the interpreter's time goes by operations, not by elements."""
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (128, 1)))


def make(rows, classes, seed=0, spread=6.0):
    torch.manual_seed(seed)
    x = (torch.randn(rows, classes) * spread).clamp(-20, 20)
    return x, torch.randint(-1, classes + 1, (rows,))


def compare(x, target, t, **options):
    gamma, dtype = options.get("gamma", 2.0), x.dtype
    total, losses, grad = call(x, target, **options)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected, slope, magnitude = definition(x, t, **wide)
    rtol = {torch.float64: 1e-12, torch.float32: (1 + gamma) * 1.5e-6}.get(dtype, 1e-4)
    tiny = {torch.float64: 1e-300, torch.float16: 6e-8}.get(dtype, 1.2e-38)
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(total, expected.sum(), rtol)
    assert_close(losses, expected, rtol)
    assert grad.dtype == dtype
    assert_close(grad, slope, rtol + ROUNDING.get(dtype, 0.0), magnitude, tiny)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", CLASSES)
def test_class_ids(classes, gamma):
    x, ids = make(37, classes)
    compare(x, ids, one_hot(ids, classes), gamma=gamma)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("gamma", (0.0, 2.0, 2.7))
def test_dtypes(dtype, gamma):
    x, ids = make(23, 21)
    t = one_hot(ids, 21)
    compare(x.to(dtype), ids, t, gamma=gamma)
    compare(x.to(dtype), t.to(dtype), t, gamma=gamma)


@pytest.mark.parametrize("dtype", (torch.int8, torch.uint8, torch.int16, torch.int32))
def test_id_dtypes(dtype):
    x, ids = make(23, 48)
    ids = ids.abs()
    for got, expected in zip(call(x, ids.to(dtype)), call(x, ids), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", ("bool", "int32", "hard", "soft"))
def test_dense_targets(kind, gamma):
    x, _ = make(19, 21)
    t = (torch.rand(19, 21) < 0.3).double()
    target = {"bool": t.bool(), "int32": t.int(), "hard": t.float(), "soft": torch.rand(19, 21)}[kind]
    compare(x, target, target.double(), gamma=gamma)


@pytest.mark.parametrize("gamma", (0.0, 0.5, 2.0, 2.7))
@pytest.mark.parametrize("classes", (32, 21, 5))
def test_label_smoothing(classes, gamma):
    x, ids = make(19, classes)
    compare(x, ids, one_hot(ids, classes), gamma=gamma, smoothing=0.1)


@pytest.mark.parametrize("shape", ((1, 1), (1, -1), (-1, 1), (-1, -1)))
@pytest.mark.parametrize("classes", (32, 21, 5))
@pytest.mark.parametrize("dense", (False, True))
def test_weights(dense, classes, shape):
    x, ids = make(19, classes)
    shape = tuple(own if own > 0 else full for own, full in zip(shape, x.shape, strict=True))
    t = one_hot(ids, classes)
    tensors = dict(weight=torch.rand(shape), pos_weight=torch.rand(shape) * 9, alpha_per_class=torch.rand(shape))
    tensors["alpha_per_class"].view(-1)[::3] = -1
    compare(x, t.float() if dense else ids, t, **tensors)


@pytest.mark.parametrize("classes", (32, 21))
def test_scale_and_upstream(classes):
    x, ids = make(19, classes)
    t = one_hot(ids, classes)
    compare(x, ids, t, scale=0.5, scale_tensor=torch.tensor(3.0), alpha=-1.0, upstream=torch.tensor(-2.0))
    compare(x, ids, t, scale=-2.0, upstream=torch.randn(19, classes))


def test_no_loss_asked_for():
    x, ids = make(19, 21)
    options = (0.25, 2.0, 0.0, 1.0, -100)
    loss, grad = sigmoid_loss(x, ids, None, None, None, None, None, *options, 0, True, False)
    assert loss.numel() == 0 and torch.equal(grad, call(x, ids)[2])


@pytest.mark.parametrize("sign", ((1, 1), (1, -1), (-1, -1)))
@pytest.mark.parametrize("gamma", GAMMAS)
def test_accuracy_with_the_hardware_functions_errors(monkeypatch, gamma, sign):
    """ex2.approx and rcp.approx may be off by 2^-22 and 2^-23: the bound must hold at their worst."""
    ex2, rcp = 1 + sign[0] * 2**-22, 1 + sign[1] * 2**-23
    monkeypatch.setattr(numerics, "exp2", lambda x, FAST: tl.exp2(x) * ex2)
    monkeypatch.setattr(numerics, "reciprocal", lambda x, FAST: (1.0 / x) * rcp)
    monkeypatch.setattr(numerics, "sqrt", lambda x, FAST: tl.sqrt(x) * rcp)
    # Triton 3.6's interpreter rounds the product.
    monkeypatch.setattr(tl, "fma", lambda x, y, z: (x.to(tl.float64) * y + z).to(tl.float32))
    monkeypatch.setattr(sigmoid, "TILE", {4: (512, 1)})
    x = torch.cat([torch.linspace(-limit, limit, 4096).view(-1, 32) for limit in (20, 80)])
    bound = (1 + gamma) * torch.where(x.abs() <= 20, 1.5e-6, 1e-5)
    for target in (torch.full((256,), -1), torch.ones(256, 32, dtype=torch.bool)):
        t = torch.full((256, 32), float(target.dim() == 2), dtype=torch.float64)
        _, losses, grad = call(x, target, gamma=gamma, alpha=-1.0)
        expected, slope, _ = definition(x, t, gamma=gamma, alpha=-1.0)
        for got, true in ((losses, expected), (grad, slope)):
            normal = true.abs() > 1.2e-38
            assert_close(got[normal], true[normal], bound[normal])
