"""A linear layer with its loss: equal to the two apart, and never with the logits in full."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import imbal_kernels as ik
from imbal_kernels import linear

ROWS, DIM, CLASSES = 37, 6, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks and a remainder: 5 rows of fp32."""
    monkeypatch.setattr(linear, "CHUNK_BYTES", 5 * CLASSES * 4)


def make(device, dtype=torch.float32, background=True):
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=g) for shape in ((ROWS, DIM), (CLASSES, DIM), (CLASSES,))]
    labels = torch.randint(-1 if background else 0, CLASSES, (ROWS,), generator=g)
    labels[::6] = -100
    return [t.to(device, dtype).requires_grad_() for t in tensors], labels.to(device)


def compare(ours, apart, tensors, **tolerance):
    torch.testing.assert_close(ours, apart, **tolerance)
    given = [t for t in tensors if t is not None]
    for got, true in zip(torch.autograd.grad(ours * 3, given), torch.autograd.grad(apart * 3, given), strict=True):
        torch.testing.assert_close(got, true, **tolerance)


FOCAL = {
    "default": {},
    "mean": {"reduction": "mean", "normalizer": None},
    "sum": {"normalizer": None},
    "number": {"normalizer": 3.0, "loss_weight": 0.5},
    "weights": {"class_weight": torch.rand(CLASSES), "pos_weight": torch.rand(CLASSES), "label_smoothing": 0.1},
    "gamma": {"gamma": 0.5, "alpha": -1},
}
SOFTMAX = {
    "default": {},
    "sum": {"reduction": "sum"},
    "weights": {"class_weight": torch.rand(CLASSES), "label_smoothing": 0.1},
    "adjusted": {"logit_adjustment": torch.rand(CLASSES).log()},
    "number": {"normalizer": 3.0, "loss_weight": 0.5},
    "positives": {"normalizer": "positives", "class_weight": torch.rand(CLASSES)},
}


def on(options, device):
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return moved, {"weight" if k == "class_weight" else k: v for k, v in moved.items()}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", FOCAL)
def test_focal_equals_the_two_apart(name, with_bias, device):
    (x, w, b), labels = make(device)
    b = b if with_bias else None
    options, flat = on(FOCAL[name], device)
    flat = {"reduction": "sum", "normalizer": "positives", **flat}
    compare(ik.linear_focal_loss(x, w, b, labels, **options), ik.sigmoid_focal_loss(F.linear(x, w, b), labels, **flat),
            (x, w, b), rtol=1e-5, atol=1e-6)  # fmt: skip  # sums in another order


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", SOFTMAX)
def test_cross_entropy_equals_the_two_apart(name, with_bias, device):
    (x, w, b), labels = make(device, background=False)
    b = b if with_bias else None
    options, flat = on(SOFTMAX[name], device)
    compare(ik.linear_cross_entropy(x, w, b, labels, **options), ik.cross_entropy(F.linear(x, w, b), labels, **flat),
            (x, w, b), rtol=1e-5, atol=1e-6)  # fmt: skip  # sums in another order


def test_cross_entropy_equals_pytorch(device):
    (x, w, b), labels = make(device, background=False)
    ours = ik.linear_cross_entropy(x, w, b, labels)
    compare(ours, F.cross_entropy(F.linear(x, w, b), labels), (x, w, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype, device):
    (x, w, b), labels = make(device, dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
    ours = ik.linear_focal_loss(x, w, b, labels)
    assert ours.dtype == torch.float32
    true = ik.sigmoid_focal_loss(F.linear(*exact), labels, reduction="sum", normalizer="positives")
    step = 8 * torch.finfo(dtype).eps  # logits, their gradient and the products are rounded to the type
    torch.testing.assert_close(ours.double(), true, rtol=step, atol=0)
    pairs = zip(torch.autograd.grad(ours, (x, w, b)), torch.autograd.grad(true, exact), strict=True)
    for got, expected in pairs:
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=step, atol=step * float(expected.abs().max()))


def test_autocast(device):
    (x, w, b), labels = make(device)
    with torch.autocast(x.device.type, torch.bfloat16):
        ours = ik.linear_focal_loss(x, w, b, labels)
        apart = ik.sigmoid_focal_loss(F.linear(x, w, b), labels, reduction="sum", normalizer="positives")
    step = 8 * torch.finfo(torch.bfloat16).eps
    compare(ours, apart, (x, w, b), rtol=step, atol=step)


def test_derivatives(device):
    (x, w, b), labels = make(device, torch.float64)

    def focal(*tensors):
        return ik.linear_focal_loss(*tensors, labels)

    assert torch.autograd.gradcheck(focal, (x, w, b))
    assert torch.autograd.gradgradcheck(focal, (x, w, b))


def test_backward_twice_and_frozen_layers(device):
    (x, w, b), labels = make(device)
    loss = ik.linear_focal_loss(x, w, b, labels)
    first = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(loss, (x, w, b)), strict=True):
        torch.testing.assert_close(one, two)
    frozen = ik.linear_focal_loss(x, w.detach(), b.detach(), labels)
    torch.testing.assert_close(torch.autograd.grad(frozen, x)[0], first[0])
    with torch.no_grad():
        assert ik.linear_focal_loss(x, w, b, labels) == loss


@pytest.mark.parametrize("classes", [1203, 20_000])
def test_logits_are_never_there_in_full(classes, monkeypatch, device):
    monkeypatch.setattr(linear, "CHUNK_BYTES", 1 << 20)
    x, w = torch.randn(3000, 8, device=device).requires_grad_(), torch.randn(classes, 8, device=device).requires_grad_()
    labels = torch.randint(classes, (3000,), device=device)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel() * t.element_size())
            return out

    for loss in (ik.linear_focal_loss, ik.linear_cross_entropy):
        with Watch():
            loss(x, w, None, labels).backward()
    assert largest <= 1 << 20


def test_no_rows(device):
    (x, w, b), labels = make(device)
    assert ik.linear_focal_loss(x[:0], w, b, labels[:0]) == 0
    assert ik.linear_cross_entropy(x[:0], w, b, labels[:0]).isnan()  # as F.cross_entropy


X, W, B, IDS = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(5), torch.zeros(4).long()
BAD = {
    "weight": ((X, W.T, B, IDS), {}, ValueError, "weight must have shape (C, D), D = 3 as features, got (3, 5)"),
    "bias": ((X, W, B[:4], IDS), {}, ValueError, "bias must have shape (5,), got (4,)"),
    "labels": ((X, W, B, IDS[:3]), {}, ValueError, "labels must be class ids of shape (4,), got (3,)"),
    "values": ((X, W, B, IDS.float()), {}, TypeError,
               "targets of shape (4,): class ids must be integers, got torch.float32"),
    "dtype": ((X, W.double(), B.double(), IDS), {}, TypeError,
              "features, weight and bias must have one dtype, got torch.float32 and torch.float64"),
    "integers": ((X.long(), W, B, IDS), {}, TypeError,
                 "features must be float32, bfloat16, float16 or float64, got torch.int64"),
    "none": ((X, W, B, IDS), {"reduction": "none", "normalizer": None}, ValueError,
             'reduction="none" would hold the loss of every logit: it needs "mean" or "sum"'),
    "images": ((X, W, B, IDS), {"normalizer": "positives_per_image"}, ValueError,
               'normalizer="positives_per_image" needs images; rows of features have none'),
    "label": ((X, W, B, IDS + 9), {}, ValueError,
              "target 9 at row 0 is out of range: class ids are 0 to 4, -1 and 5 are background"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, options, error, message = BAD[name]
    with pytest.raises(error) as caught:
        ik.linear_focal_loss(*arguments, **options)
    assert str(caught.value) == message
