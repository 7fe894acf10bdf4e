"""The softmax losses' raw ops as PyTorch sees them: opcheck, torch.compile, torch.func."""

import pytest
import torch

import imbal_kernels as ik
from imbal_kernels import ops
from imbal_kernels.ops.fused import ELEMENTWISE, NO_LOSS, SUM

raw = torch.ops.imbal_kernels
LOSSES = {
    "cross-entropy": lambda x, t: ik.cross_entropy(x, t),
    "weighted": lambda x, t: ik.cross_entropy(x, t, torch.linspace(0.5, 2, 5, device=x.device), label_smoothing=0.1),
    "focal, none": lambda x, t: ik.softmax_focal_loss(x, t, reduction="none"),
    "focal, positives": lambda x, t: ik.softmax_focal_loss(x, t, 1.5, reduction="sum", normalizer="positives"),
    "module": ik.CrossEntropyLoss(reduction="sum"),
}


def problem(device, n=33, kind="ids"):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).to(device).requires_grad_()
    if kind == "probabilities":
        return x, torch.softmax(x.detach().flip(0), 1)
    ids = torch.arange(n, device=device) % 6
    return x, ids.where(ids < 5, -100)


@pytest.mark.parametrize("mode, want_grad", [(NO_LOSS, True), (ELEMENTWISE, False), (SUM, True)])
@pytest.mark.parametrize("kind", ("ids", "probabilities"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype, kind, mode, want_grad, device):
    x = torch.randn(3, 5, 11, device=device).to(dtype)
    t = torch.softmax(x.flip(0).float(), 1).to(dtype) if kind == "probabilities" else x.float().argmax(1)
    weight, adjustment = torch.rand(2, 5, device=device)
    upstream = torch.tensor(2.0, device=device) if mode == NO_LOSS else None
    scale = torch.tensor(0.5, device=device)
    arguments = (x, t, weight, adjustment, scale, upstream, 2.0, 0.1, 1.0, -100, mode, want_grad, False)
    torch.library.opcheck(raw.softmax_loss.default, arguments)


@pytest.mark.parametrize("weight", (None, torch.float32, torch.float64))
def test_sum_weights(weight, device):
    """Of what is a class and not ignored, ignored first; in integers where there are no weights."""
    ids = torch.tensor([[0, 1, 4, 5, -1, 100, 2**32 + 1]], device=device)
    weights = None if weight is None else torch.tensor([1, 2, 4, 8, 16], device=device, dtype=weight)
    torch.library.opcheck(raw.sum_weights.default, (ids, weights, 5, 1))
    got = ops.sum_weights(ids, weights, 5, 1)
    assert got.dtype == (weight or torch.int64) and got == (2 if weight is None else 17)
    assert ops.sum_weights(ids[:, :0], weights, 5, 1) == 0


def compare(function, compiled, x, t):
    expected, actual = function(x, t), compiled(x, t)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    (expected_grad,) = torch.autograd.grad(expected.sum() * 3, x)
    (grad,) = torch.autograd.grad(actual.sum() * 3, x)
    # Where a gradient crosses zero its terms are of the largest's size.
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-6 * float(expected_grad.abs().max()))


@pytest.mark.parametrize("name, kind", [*((name, "ids") for name in LOSSES), ("weighted", "probabilities")])
def test_compiles_no_more_when_n_changes(name, kind, device):
    """Once for the first size and once for any size; the logits come out of a layer, as they do in training."""
    torch._dynamo.reset()

    def function(x, t):
        return LOSSES[name](x * 2, t)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for n in (8, 16):
        compare(function, compiled, *problem(device, n, kind))
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (24, 100):
            compare(function, compiled, *problem(device, n, kind))


@pytest.mark.parametrize("name", LOSSES)
def test_func(name, device):
    """torch.func's grad, vmap and jvp agree with autograd."""
    x, t = problem(device)
    (expected,) = torch.autograd.grad(LOSSES[name](x, t).sum(), x)
    x = x.detach()
    grad = torch.func.grad(lambda x: LOSSES[name](x, t).sum())(x)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)
    batch, targets = x[:32].view(4, 8, 5), t[:32].view(4, 8)
    mapped = torch.func.vmap(LOSSES[name])(batch, targets)
    torch.testing.assert_close(mapped, torch.stack([LOSSES[name](x, t) for x, t in zip(batch, targets, strict=True)]))
    direction = torch.linspace(-1, 1, x.numel(), device=device).view_as(x)
    _, tangent = torch.func.jvp(lambda x: LOSSES[name](x, t), (x,), (direction,))
    torch.testing.assert_close(tangent.sum(), (expected * direction).sum(), rtol=1e-4, atol=1e-5)


def test_meta_tensors_have_a_loss_and_a_gradient():
    x = torch.zeros(7, 3, device="meta", requires_grad=True)
    loss = ik.cross_entropy(x, torch.zeros(7, device="meta", dtype=torch.long))
    loss.backward()
    assert loss.shape == () and loss.is_meta and x.grad.shape == (7, 3)
