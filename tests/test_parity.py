"""Equal to what users have today: torchvision, PyTorch, and the binary form in wide use.

The peers run in fp64 on the inputs rounded to the dtype under test. Their 1 - p_t cancels, so even in fp64 their
relative error is about (1 + gamma) * 2e-16 / (1 - p_t): for |x| <= 8 below 1e-11, which `PEER` allows.
"""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

import imbal_kernels as ik

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("m"))  # its ops aren't in a CPU build
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss  # noqa: E402

PEER = 1e-11
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7,), (1, 1), (33, 3), (130, 80), (2, 3, 5, 4)]
REDUCTIONS = ["none", "mean", "sum"]


def logits(shape, dtype, device, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    return x.clamp(-8, 8).to(device, dtype).requires_grad_()


def labels(shape, kind, device):
    generator = torch.Generator().manual_seed(1)
    if kind == "soft":
        return torch.rand(shape, generator=generator).to(device)
    hard = torch.rand(shape, generator=generator) < 0.3
    return hard.to(device, {"hard": torch.float32, "bool": torch.bool, "int": torch.int32}[kind])


def compare(ours, peer, x, gamma, terms, assert_within, bound):
    """Values and gradients of two functions of the logits, under one random upstream gradient."""
    wide = x.detach().double().requires_grad_()
    loss, expected = ours(x), peer(wide)
    upstream = torch.rand(expected.shape, generator=torch.Generator().manual_seed(2)).to(x.device) + 0.5
    upstream = upstream.to(loss.dtype)
    loss.backward(upstream)
    expected.backward(upstream.double())
    tolerance = bound(gamma, x.dtype) + PEER
    assert_within(loss, expected.detach(), tolerance)
    scale = upstream.double() * (1 / x.numel() if terms[1] == "mean" else 1)
    # Twice: the upstream gradient is a second rounding, to the logits' dtype.
    assert_within(x.grad, wide.grad, tolerance + torch.finfo(x.dtype).eps, terms[0] * scale)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1, 2.0), (0.25, 0), (0.75, 1.0), (0.5, 0.5), (0.3, 5)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torchvision(dtype, shape, alpha, gamma, reduction, device, exact, assert_within, bound):
    x, t = logits(shape, dtype, device), labels(shape, "hard", device)
    compare(
        lambda x: ik.sigmoid_focal_loss(x, t, alpha, gamma, reduction),
        lambda x: torchvision_focal_loss(x, t.double(), alpha, gamma, reduction),
        x, gamma, (exact(x, t, alpha=alpha, gamma=gamma).terms, reduction), assert_within, bound,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["soft", "bool", "int"])
@pytest.mark.parametrize("gamma", [0, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torchvision_other_targets(dtype, gamma, kind, device, exact, assert_within, bound):
    x, t = logits((130, 80), dtype, device), labels((130, 80), kind, device)
    compare(
        lambda x: ik.sigmoid_focal_loss(x, t, gamma=gamma, reduction="mean"),
        lambda x: torchvision_focal_loss(x, t.double(), gamma=gamma, reduction="mean"),
        x, gamma, (exact(x, t, gamma=gamma).terms, "mean"), assert_within, bound,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(33, 3), (2, 5, 7, 4)], ids=str)
def test_class_ids_are_torchvision_on_one_hot(shape, device, exact, assert_within, bound):
    x = logits(shape, torch.float32, device)
    classes = shape[-1]
    ids = torch.randint(-1, classes + 1, shape[:-1], device=device)
    one_hot = (ids[..., None] == torch.arange(classes, device=device)).double()
    compare(
        lambda x: ik.sigmoid_focal_loss(x, ids, reduction="sum"),
        lambda x: torchvision_focal_loss(x, one_hot, reduction="sum"),
        x, 2.0, (exact(x, one_hot).terms, "sum"), assert_within, bound,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "weight, pos_weight",
    [(None, None), ((3,), None), ((33, 1), None), ((33, 3), None), (None, (3,)), (None, (33, 3)), ((), ()),
     ((33, 1), (3,)), (None, (1,))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorch_bce(dtype, kind, weight, pos_weight, reduction, device, exact, assert_within, bound):
    x, t = logits((33, 3), dtype, device), labels((33, 3), kind, device)
    generator = torch.Generator().manual_seed(3)
    weight, pos_weight = (
        None if shape is None else (torch.rand(shape, generator=generator) * 3).to(device)
        for shape in (weight, pos_weight)
    )
    factors = {"weight": 1.0 if weight is None else weight, "pos_weight": 1.0 if pos_weight is None else pos_weight}
    wide = {k: None if v is None else v.double() for k, v in (("weight", weight), ("pos_weight", pos_weight))}
    compare(
        lambda x: ik.binary_cross_entropy_with_logits(x, t, weight, pos_weight=pos_weight, reduction=reduction),
        lambda x: F.binary_cross_entropy_with_logits(x, t.double(), reduction=reduction, **wide),
        x, 0, (exact(x, t, alpha=-1, gamma=0, **factors).terms, reduction), assert_within, bound,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(), *SHAPES], ids=str)
def test_pytorch_bce_shapes(shape, device, exact, assert_within, bound):
    x, t = logits(shape, torch.float32, device), labels(shape, "hard", device)
    compare(
        lambda x: ik.binary_cross_entropy_with_logits(x, t),
        lambda x: F.binary_cross_entropy_with_logits(x, t.double()),
        x, 0, (exact(x, t, alpha=-1, gamma=0).terms, "mean"), assert_within, bound,
    )  # fmt: skip


def simple_focal_loss(logits, targets, gamma):
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((1 - torch.exp(-bce)) ** gamma * bce).mean()


@pytest.mark.parametrize("gamma", [0.5, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_simple_binary_form(dtype, n, gamma, device, exact, assert_within, bound):
    x, t = logits((n,), dtype, device), labels((n,), "hard", device)
    compare(
        lambda x: ik.sigmoid_focal_loss(x, t, alpha=-1, gamma=gamma, reduction="mean"),
        lambda x: simple_focal_loss(x, t.double(), gamma),
        x, gamma, (exact(x, t, alpha=-1, gamma=gamma).terms, "mean"), assert_within, bound,
    )  # fmt: skip
