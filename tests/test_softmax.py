"""Cross-entropy and softmax focal loss: PyTorch's own loss over its options, the definition, gradients, bad input."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import imbal_kernels as ik

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = {"one row": (5,), "rows": (7, 5), "one class": (6, 1), "maps": (2, 5, 3, 4), "long": (3, 1001)}
EPS = torch.finfo(torch.float64).eps


def make(shape, device="cpu", dtype=torch.float64, probabilities=False):
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 3).to(device, dtype).requires_grad_()
    if probabilities:
        classes = 0 if x.dim() == 1 else 1
        return x, torch.softmax(torch.randn(shape, dtype=torch.float64), classes).to(device, dtype)
    classes = shape[min(len(shape) - 1, 1)]
    ids = torch.randint(classes, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if ids.dim():
        ids.view(-1)[1] = -100
    return x, ids.to(device)


def results(loss, x, upstream):
    (grad,) = torch.autograd.grad(loss, x, upstream.to(loss.dtype).expand_as(loss))
    return loss.detach().double(), grad.double()


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_pytorch(shape, dtype, reduction, device):
    """Over weights, smoothing and both kinds of target. In fp64 PyTorch is the judge; where its own arithmetic is
    done in half precision ours, in fp32, is held to fp64 on the same rounded logits and to a step of its dtype."""
    upstream = torch.tensor(1.7, device=device)
    for weighted, smoothing, probabilities in itertools.product((False, True), (0.0, 0.1), (False, True)):
        x, t = make(shape, device, dtype, probabilities)
        classes = shape[min(len(shape) - 1, 1)]
        weight = torch.linspace(0.5, 2, classes, device=device, dtype=torch.float64) if weighted else None
        loss = ik.cross_entropy(x, t, None if weight is None else weight.to(dtype), reduction=reduction,
                                label_smoothing=smoothing)  # fmt: skip
        half = dtype in (torch.bfloat16, torch.float16)
        assert loss.dtype == (torch.float32 if half and reduction != "none" else dtype)
        wide = x.detach().double().requires_grad_()
        weight = None if weight is None else weight.to(dtype).double()
        t = t.double() if probabilities else t
        expected = F.cross_entropy(wide, t, weight, reduction=reduction, label_smoothing=smoothing)
        # Steps of the dtype that results are stored in, and of the one that sums of `classes` terms are made in.
        step = torch.finfo(dtype).eps + 64 * torch.finfo(torch.float32 if half else dtype).eps
        for got, true in zip(results(loss, x, upstream), results(expected, wide, upstream), strict=True):
            torch.testing.assert_close(got, true, rtol=step, atol=step * float(true.abs().max()))


@pytest.mark.parametrize("gamma", (0.5, 1.0, 2.0, 2.7))
@pytest.mark.parametrize("options", ({}, {"label_smoothing": 0.1}, {"reduction": "sum", "normalizer": "positives"}))
def test_focal_is_its_formula(gamma, options, device):
    """(1 - p)^gamma times F.cross_entropy, with an adjustment of the logits and weights by class."""
    x, t = make((9, 5), device)
    weight, prior = torch.rand(2, 5, device=device, dtype=torch.float64)
    got = ik.softmax_focal_loss(x, t, gamma, weight, logit_adjustment=prior.log(), **options)
    shifted = x + prior.log()
    p = torch.softmax(shifted, 1).gather(1, t.clamp(min=0)[:, None])[:, 0]
    smoothing = options.get("label_smoothing", 0.0)
    loss = (1 - p) ** gamma * F.cross_entropy(shifted, t, weight, reduction="none", label_smoothing=smoothing)
    known = t >= 0
    divisor = known.sum() if "normalizer" in options else weight[t[known]].sum()
    upstream = torch.tensor(1.0, device=device)
    for a, b in zip(results(got, x, upstream), results(loss.sum() / divisor, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)  # a few thousand steps of fp64


@pytest.mark.parametrize("probabilities", (False, True))
@pytest.mark.parametrize("gamma", (0.0, 1.0, 2.5))
def test_gradients(gamma, probabilities, device):
    """First and second derivatives in fp64 against finite differences."""
    x, t = make((4, 3), device, probabilities=probabilities)
    weight = torch.tensor([0.5, 1.0, 2.0], device=device, dtype=torch.float64)
    for reduction in ("none", "mean"):

        def loss(x, reduction=reduction):
            return ik.softmax_focal_loss(x, t, gamma, weight, reduction=reduction, label_smoothing=0.1)

        assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


def test_probabilities_get_their_gradient(device):
    x, t = make((4, 3), device, probabilities=True)
    t.requires_grad_()
    for gamma in (0.0, 2.0):
        assert torch.autograd.gradcheck(lambda x, t, g=gamma: ik.softmax_focal_loss(x, t, g), (x, t))


@pytest.mark.parametrize("margin", (-80, -20, -3, 0, 3, 20, 80))
def test_accuracy(margin, device):
    """Two classes in fp32 against mpmath: a confident row keeps its digits. The bound is design's."""
    x = torch.tensor([[float(margin), 0.0]], device=device, requires_grad=True)
    with mpmath.workdps(60):
        p = 1 / (1 + mpmath.exp(-margin))
        for gamma in (0, 2):
            loss = ik.softmax_focal_loss(x, torch.tensor([0], device=device), gamma, reduction="sum")
            (grad,) = torch.autograd.grad(loss, x)
            q, entropy = 1 - p, mpmath.log1p(mpmath.exp(-margin))
            true_loss = q**gamma * entropy
            true_grad = -(q**gamma) * (q + gamma * p * entropy)
            bound = (1 + gamma) * (1.5e-6 if abs(margin) <= 20 else 1e-5)
            for got, true in ((loss, true_loss), (grad[0, 0], true_grad), (grad[0, 1], -true_grad)):
                if abs(true) > 2**-126:
                    assert abs(got.item() / float(true) - 1) <= bound


def test_infinite_and_not_a_number(device):
    inf, nan = math.inf, math.nan
    x = torch.tensor([[inf, 0], [0, inf], [-inf, 0], [nan, 0], [nan, 0], [100, -100]], device=device)
    t = torch.tensor([1, 1, 1, 1, -100, 1], device=device)
    loss = ik.cross_entropy(x, t, reduction="none")
    assert loss[0].isinf() and loss[3].isnan() and loss[[1, 2, 4]].tolist() == [0, 0, 0] and loss[5] == 200


@pytest.mark.parametrize("gamma", (0.0, 2.0))
def test_one_class_costs_nothing(gamma, device):
    x = torch.tensor([[3.0], [-100.0]], device=device, requires_grad=True)
    loss = ik.softmax_focal_loss(x, torch.zeros(2, dtype=torch.long, device=device), gamma)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss == 0 and grad.tolist() == [[0], [0]]


def test_over_nothing(device):
    x = torch.zeros(0, 3, device=device, requires_grad=True)
    t = torch.zeros(0, dtype=torch.long, device=device)
    ignored = torch.full((2,), -100, device=device)
    assert ik.cross_entropy(x, t).isnan() and ik.cross_entropy(x, t, reduction="sum") == 0
    assert ik.cross_entropy(torch.zeros(2, 3, device=device), ignored).isnan()
    assert ik.cross_entropy(torch.zeros(2, 3, device=device), ignored, reduction="sum") == 0
    assert ik.cross_entropy(x, t, reduction="none").shape == (0,)


def test_backward_twice_and_upstream(device):
    x, t = make((7, 5), device, torch.float32)
    loss = ik.cross_entropy(x, t, reduction="sum") * 3
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def test_strided_and_channels_last(device):
    x = torch.randn(2, 5, 4, 6, device=device)
    t = torch.randint(5, (2, 4, 6), device=device)
    expected = ik.cross_entropy(x, t)
    strided = t.transpose(1, 2).contiguous().transpose(1, 2)
    assert ik.cross_entropy(x.to(memory_format=torch.channels_last), strided) == expected


def test_compiles_whole(device):
    x, t = make((7, 5), device, torch.float32)
    weight = torch.rand(5, device=device)

    def loss(x, t):
        return ik.softmax_focal_loss(x, t, 2.0, weight, normalizer="positives")

    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(x, t), loss(x, t))


def test_autocast_and_no_grad(device):
    x, t = make((7, 5), device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        assert ik.cross_entropy(x, t, reduction="none").dtype == torch.float32
    with torch.no_grad():
        assert not ik.cross_entropy(x, t).requires_grad


def test_modules_keep_their_arguments():
    x, t = make((7, 5), dtype=torch.float32)
    weight, prior = torch.rand(2, 5)
    for module, function, options in (
        (ik.CrossEntropyLoss, ik.cross_entropy, {"label_smoothing": 0.1}),
        (ik.SoftmaxFocalLoss, ik.softmax_focal_loss, {"gamma": 1.5, "normalizer": "positives"}),
    ):
        options |= {"weight": weight, "logit_adjustment": prior}
        criterion = module(**options)
        assert set(criterion.state_dict()) == {"weight", "logit_adjustment"}
        assert torch.equal(criterion(x, t), function(x, t, **options))


X, T = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
P = torch.full((4, 3), 1 / 3)
BAD = {
    "not a tensor": (([1.0], T), {}, TypeError, "input must be a Tensor, got list"),
    "integer logits": ((T, T), {}, TypeError, "input must be float32, bfloat16, float16 or float64, got torch.int64"),
    "0-d": ((torch.tensor(1.0), T), {}, ValueError, "input must be (C,), (N, C) or (N, C, d1, ...)"),
    "no classes": ((torch.zeros(4, 0), T), {}, ValueError, "with C at least 1, got (4, 0)"),
    "too many": ((torch.zeros(1, 262_145), T[:1]), {}, ValueError, "at most 262144 classes, got 262145"),
    "target shape": ((X, T[:3]), {}, ValueError, "target must have shape (4,) for class ids or (4, 3)"),
    "float ids": ((X, T.float()), {}, TypeError, "class ids must be integers, got torch.float32"),
    "integer probabilities": ((X, P.long()), {}, TypeError, "Expected floating point type for target with class prob"),
    "target list": ((X, [0, 1]), {}, TypeError, "target must be a Tensor, got list"),
    "id too large": ((X, T + 3), {}, ValueError, "target 3 at row 0 is out of range: class ids are 0 to 2"),
    "id -1": ((X, T - 1), {}, ValueError, "target -1 at row 0 is out of range"),
    "reduction": ((X, T), {"reduction": "avg"}, ValueError, "avg is not a valid value for reduction"),
    "weight length": ((X, T, torch.ones(4)), {}, ValueError, "one value per class, shape (3,), got (4,)"),
    "weight list": ((X, T, [1, 1, 1]), {}, TypeError, "weight must be a Tensor or None, got list"),
    "weight grad": ((X, T, torch.ones(3, requires_grad=True)), {}, ValueError, "weight requires grad"),
    "adjustment": ((X, T), {"logit_adjustment": torch.ones(1)}, ValueError, "logit_adjustment must have one value per"),
    "smoothing": ((X, T), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be in [0, 1], got 1.5"),
    "ignore": ((X, T), {"ignore_index": 1.0}, TypeError, "ignore_index must be an int, got float"),
    "ignore probabilities": ((X, P), {"ignore_index": 1}, ValueError, "ignore_index is not supported for floating"),
    "normalizer none": ((X, T), {"normalizer": 2.0, "reduction": "none"}, ValueError, "normalizer divides a sum"),
    "normalizer zero": ((X, T), {"normalizer": 0}, ValueError, "normalizer must be positive, got 0"),
    "normalizer image": ((X, T), {"normalizer": "positives_per_image"}, ValueError, 'a 0-d tensor or "positives", got'),
    "positives of p": ((X, P), {"normalizer": "positives"}, ValueError, "it needs a target of class ids"),
    "loss_weight": ((X, T), {"loss_weight": torch.ones(2)}, ValueError, "loss_weight must be a number or a 0-d tensor"),
    "group": ((X, T), {"process_group": object()}, ValueError, "process_group is not supported yet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    arguments, options, error, message = BAD[case]
    for function in (ik.cross_entropy, ik.reference.cross_entropy):
        if function is ik.reference.cross_entropy and message.startswith("target") and "out of range" in message:
            assert function(*arguments, **options).isnan()  # the definition raises for shapes, not for values
            continue
        with pytest.raises(error) as raised:
            function(*arguments, **options)
        assert message in str(raised.value)


@pytest.mark.parametrize("gamma", (-1.0, math.nan, "2", True))
def test_bad_gamma(gamma):
    with pytest.raises((ValueError, TypeError), match="gamma must be"):
        ik.softmax_focal_loss(X, T, gamma)
