"""Gradients: first and second, under any upstream gradient, and what is kept to compute them."""

import pytest
import torch

import imbal_kernels as ik
from imbal_kernels import reference
from imbal_kernels.ops import fused as ops
from imbal_kernels.ops.fused import FAMILIES

X = torch.tensor([[-3.0, -0.4, 0.7], [0.1, 2.5, -1.3], [6.0, -6.0, 0.0], [0.9, -2.2, 1.1]], dtype=torch.float64)
HARD = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.float64)
SOFT = torch.tensor([[0.1, 0.9, 0.5], [0, 1, 0.3], [0.8, 0.2, 0.6], [0.4, 0.7, 0.05]], dtype=torch.float64)
IDS = torch.tensor([1, -1, -100, 2])
ROWS = torch.tensor([[0.5], [2.0], [1.0], [0.0]], dtype=torch.float64)
CLASSES = torch.tensor([0.2, 1.7, 3.0], dtype=torch.float64)
OPTIONS = {
    "default": {},
    "gamma 0": {"gamma": 0.0},
    "gamma 0.5": {"gamma": 0.5},
    "gamma 1": {"gamma": 1.0},
    "gamma 2.7": {"gamma": 2.7},
    "gamma 3, no alpha": {"gamma": 3.0, "alpha": -1},
    "alpha per class": {"alpha": torch.tensor([0.3, 0.6, -1], dtype=torch.float64)},
    "weights": {"weight": CLASSES},
    "row weights": {"weight": ROWS, "pos_weight": CLASSES},
    "smoothing": {"label_smoothing": 0.1},
    "mean": {"reduction": "mean"},
    "positives": {"reduction": "sum", "normalizer": "positives"},
    "normalizer": {"reduction": "sum", "normalizer": 3.0, "loss_weight": torch.tensor(0.7, dtype=torch.float64)},
    "everything": {
        "gamma": 1.5, "weight": ROWS, "pos_weight": CLASSES, "label_smoothing": 0.2, "reduction": "mean",
        "loss_weight": 2.0,
    },
}  # fmt: skip


def to(options, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("targets", [HARD, SOFT, IDS], ids=["hard", "soft", "ids"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("functions", [ik, reference], ids=["ours", "reference"])
def test_gradcheck(functions, options, targets, device):
    x, targets, options = X.to(device).requires_grad_(), targets.to(device), to(options, device)

    def loss(x):
        return functions.sigmoid_focal_loss(x, targets, **options)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x, fast_mode=True)


@pytest.mark.parametrize("functions", [ik, reference], ids=["ours", "reference"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("targets", [SOFT, IDS], ids=["soft", "ids"])
def test_gradcheck_of_bce(functions, reduction, targets, device):
    x, targets = X.to(device).requires_grad_(), targets.to(device)

    def loss(x):
        return functions.binary_cross_entropy_with_logits(
            x, targets, CLASSES.to(device), reduction=reduction, label_smoothing=0.1
        )

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x, fast_mode=True)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("functions", [ik, reference], ids=["ours", "reference"])
def test_targets_that_require_grad(functions, gamma, device):
    x, targets = X.to(device).requires_grad_(), SOFT.clamp(0.05, 0.95).to(device).requires_grad_()

    def loss(x, t):
        return functions.sigmoid_focal_loss(x, t, gamma=gamma, reduction="mean")

    assert torch.autograd.gradcheck(loss, (x, targets))


def random_problem(device, dtype=torch.float32, shape=(257, 5)):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 4).to(device, dtype).requires_grad_()
    return x, torch.randint(0, 2, shape, generator=generator).to(device)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("upstream", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_twice_gives_the_same_bits(dtype, upstream, reduction, device):
    x, t = random_problem(device, dtype)
    loss = ik.sigmoid_focal_loss(x, t, reduction=reduction)
    scale = torch.full_like(loss, upstream)
    first, second, third = (torch.autograd.grad(loss, x, scale, retain_graph=True)[0].clone() for _ in range(3))
    assert torch.equal(first, second) and torch.equal(first, third)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("upstream", [0.0, -2.0, 0.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_upstream_gradient(dtype, upstream, reduction, device, exact, assert_within, bound):
    x, t = random_problem(device, dtype)
    (ik.sigmoid_focal_loss(x, t, reduction=reduction) * upstream).backward()
    scale = upstream / (x.numel() if reduction == "mean" else 1)
    assert_within(x.grad, exact(x, t).grad * scale, bound(2, dtype) + torch.finfo(dtype).eps)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "one row"])
def test_upstream_gradient_of_an_elementwise_loss(layout, device, exact, assert_within, bound):
    x, t = random_problem(device)
    upstream = {
        "contiguous": torch.randn(257, 5),
        "transposed": torch.randn(5, 257).T,
        "expanded": torch.tensor(-3.0).expand(257, 5),
        "one row": torch.randn(1, 5).expand(257, 5),
    }[layout].to(device)
    ik.sigmoid_focal_loss(x, t).backward(upstream)
    assert_within(x.grad, exact(x, t).grad * upstream.double(), bound(2) + torch.finfo(torch.float32).eps)


def test_gradient_accumulates(device, exact, assert_within, bound):
    x, t = random_problem(device)
    for _ in range(3):
        ik.sigmoid_focal_loss(x, t, reduction="sum").backward()
    assert_within(x.grad, exact(x, t).grad * 3, bound(2) + 3 * torch.finfo(torch.float32).eps)


def test_the_loss_can_be_used_twice_in_one_graph(device, exact, assert_within, bound):
    x, t = random_problem(device)
    loss = ik.sigmoid_focal_loss(x, t, reduction="sum")
    (loss + 2 * loss).backward()
    assert_within(x.grad, exact(x, t).grad * 3, bound(2) + torch.finfo(torch.float32).eps)


def test_gradient_handed_over_is_not_shared(device):
    x, t = random_problem(device)
    loss = ik.sigmoid_focal_loss(x, t, reduction="sum")
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(loss, x)[0], kept)


def test_logits_changed_before_backward_are_noticed(device):
    x, t = random_problem(device)
    y = x * 1
    loss = ik.sigmoid_focal_loss(y, t)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_loss_scaler_keeps_fp16_gradients(device, exact):
    """A mean over easy negatives: unscaled gradients of 3e-11 are zero in fp16, whose smallest number is 6e-8."""
    x = torch.full((1000, 1), -6.0, device=device, dtype=torch.float16, requires_grad=True)
    t = torch.zeros_like(x)
    (ik.sigmoid_focal_loss(x, t, reduction="mean") * 2.0**24).backward()
    expected = exact(x, t).grad * 2.0**24 / 1000
    assert expected.abs().min() > 1e-4
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-3, atol=0)


@pytest.fixture
def calls(monkeypatch):
    """The (loss_mode, want_grad) of every call of the raw op."""
    seen, family = [], FAMILIES["sigmoid"]

    def record(problems, upstream, loss_mode, want_grad):
        seen.append((loss_mode, want_grad))
        return family.raw(problems, upstream, loss_mode, want_grad)

    monkeypatch.setitem(FAMILIES, "sigmoid", family._replace(raw=record))
    return seen


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "constant logits"])
def test_no_gradient_buffer_where_none_is_asked_for(how, reduction, device, calls):
    x, t = random_problem(device)
    if how == "constant logits":
        loss = ik.sigmoid_focal_loss(x.detach(), t, reduction=reduction)
    else:
        with getattr(torch, how)():
            loss = ik.sigmoid_focal_loss(x, t, reduction=reduction)
    assert calls == [(ops.ELEMENTWISE if reduction == "none" else ops.SUM, False)]
    assert not loss.requires_grad


@pytest.mark.parametrize(
    "dtype, reduction, expected",
    [
        (torch.float32, "mean", [(ops.SUM, True)]),
        (torch.bfloat16, "sum", [(ops.SUM, True)]),
        (torch.float16, "mean", [(ops.SUM, False), (ops.NO_LOSS, True)]),
        (torch.float32, "none", [(ops.ELEMENTWISE, False), (ops.NO_LOSS, True)]),
    ],
    ids=str,
)
def test_passes_over_the_logits(dtype, reduction, expected, device, calls):
    """One for a reduced loss and its gradient; two where the gradient must wait for the upstream one."""
    x, t = random_problem(device, dtype)
    ik.sigmoid_focal_loss(x, t, reduction=reduction).sum().backward()
    assert calls == expected


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_autocast(dtype, reduction, half, device, exact, assert_within, bound):
    """The loss is fp32 as PyTorch's are, the gradient has the logits' dtype."""
    x, t = random_problem(device, dtype)
    with torch.autocast(device, half):
        loss = ik.sigmoid_focal_loss(x, t, reduction=reduction)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    scale = 1 / x.numel() if reduction == "mean" else 1
    loss.sum().backward()
    assert x.grad.dtype == dtype
    assert_within(loss.sum().detach(), exact(x, t).loss.sum() * (scale if reduction == "mean" else 1), bound(2, dtype))
    assert_within(x.grad, exact(x, t).grad * scale, bound(2, dtype))


def test_autocast_makes_no_copy_of_the_logits(device, monkeypatch):
    x, t = random_problem(device, torch.bfloat16)
    seen, family = [], FAMILIES["sigmoid"]

    def record(problems, *args):
        seen.append(problems[0].input)
        return family.raw(problems, *args)

    monkeypatch.setitem(FAMILIES, "sigmoid", family._replace(raw=record))
    with torch.autocast(device, torch.bfloat16):
        ik.sigmoid_focal_loss(x, t, reduction="mean")
    assert seen[0].data_ptr() == x.data_ptr() and seen[0].dtype == torch.bfloat16
