"""Cross-entropy and softmax focal loss by every kernel: PyTorch's own loss over its options, the definition,
gradients, limits, bad input."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import imbal_kernels as ik

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# On a CPU fewer than 40 classes lie across the lanes of a vector, as maps do; a tile is 16 to 256 positions.
SHAPES = {"one row": (5,), "rows": (7, 5), "one class": (6, 1), "maps": (2, 5, 3, 4), "long": (3, 1001),
          "two": (261, 2), "39": (19, 39), "40": (19, 40), "81": (37, 81), "many maps": (3, 81, 10, 9)}  # fmt: skip
EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def device(backend):
    return backend


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


INF, NAN = math.inf, math.nan
# logits, class id -> loss, gradient: the limits, as the kernels give them
LIMITS = {
    "+inf beats the label": ((INF, 0, 0), 1, INF, (1, -1, 0)),
    "+inf at the label": ((0, INF, 0), 1, 0, (0, 0, 0)),
    "+inf twice": ((INF, INF, 0), 1, math.log(2), (0.5, -0.5, 0)),
    "+inf three times": ((INF, INF, INF), 1, math.log(3), (1 / 3, -2 / 3, 1 / 3)),
    "-inf at the label": ((0, -INF, 0), 1, INF, (0.5, -1, 0.5)),
    "-inf elsewhere": ((-INF, 0, 0), 1, math.log(2), (0, -0.5, 0.5)),
    "-inf everywhere": ((-INF, -INF, -INF), 1, NAN, (NAN, NAN, NAN)),
    "NaN": ((NAN, 0, 0), 1, NAN, (NAN, NAN, NAN)),
    "NaN at the label": ((0, NAN, 0), 1, NAN, (NAN, NAN, NAN)),
    "NaN and +inf": ((NAN, INF, 0), 1, NAN, (NAN, NAN, NAN)),
    "NaN but ignored": ((NAN, INF, 0), -100, 0, (0, 0, 0)),
    "far behind": ((100, -100, 0), 1, 200, (1, -1, 0)),
    "the largest": ((3.4e38, -3.4e38, 0), 0, 0, (0, 0, 0)),
}


@pytest.mark.parametrize("layout", ("rows", "long rows", "maps"))
@pytest.mark.parametrize("case", LIMITS)
def test_limits(case, layout, device):
    """The reference agrees, but for the gradient of a +inf itself."""
    row, label, loss, slope = LIMITS[case]
    more = 30 if layout == "long rows" else 0
    x = torch.tensor([row + (-INF,) * more, (0.0,) * (3 + more)], device=device)
    t = torch.tensor([label, 0], device=device)
    if layout == "maps":
        x, t = x.T[None].contiguous(), t[None]
    x.requires_grad_()
    for function in (ik.reference.cross_entropy, ik.cross_entropy):
        losses = function(x, t, reduction="none")
        (grad,) = torch.autograd.grad(losses, x, torch.ones_like(losses))
        expected = torch.tensor(loss, dtype=torch.float32, device=device)
        torch.testing.assert_close(losses.flatten()[0], expected, equal_nan=True, atol=0, rtol=1e-6)
        assert losses.flatten()[1].item() == pytest.approx(math.log(3 + more), rel=1e-6)
        grad = grad[0, :, 0] if layout == "maps" else grad[0]
        known = torch.tensor(row, device=device) != INF if function is ik.reference.cross_entropy else slice(None)
        expected = torch.tensor(slope, dtype=torch.float32, device=device)
        # Nothing is said of what is not a normal number.
        torch.testing.assert_close(grad[:3][known], expected[known], equal_nan=True, atol=1.2e-38, rtol=1e-6)


@pytest.mark.parametrize("function", (ik.softmax_focal_loss, ik.reference.softmax_focal_loss))
def test_limits_of_every_form(function, device):
    """A +inf beats smoothing and other probabilities too, and costs nothing where all of them are on it."""
    x = torch.tensor([[INF, 0, 0]], device=device)
    for gamma in (0.0, 2.0):
        for target, smoothing, loss in (
            (torch.tensor([0]), 0.1, INF if gamma == 0 else 0),  # (1 - p)^gamma is 0
            (torch.tensor([1]), 0.1, INF),
            (torch.tensor([[0.5, 0.5, 0.0]]), 0.0, INF),
            (torch.tensor([[1.0, 0.0, 0.0]]), 0.0, 0),
        ):
            got = function(x, target.to(device), gamma, label_smoothing=smoothing, reduction="none")
            assert got.tolist() == [loss]


@pytest.mark.parametrize("classes", (2, 4, 48))
@pytest.mark.parametrize("smoothing", (0.1, 1.0))
@pytest.mark.parametrize("gamma", (0.0, 0.5, 1.0, 1.5, 2.0))
def test_smoothing_at_the_end_of_all_numbers(gamma, smoothing, classes, device):
    """The other classes' probabilities are the least that there are, and their share of the loss is not."""
    gaps = torch.linspace(75, 100, 601)
    x = (-gaps[:, None] * (torch.arange(classes) > 0)).to(device).requires_grad_()
    wide = x.detach().double().requires_grad_()
    ids, upstream = torch.zeros(601, device=device, dtype=torch.long), torch.tensor(1.0, device=device)
    (loss, grad), (expected, slope) = (
        results(f(v, ids, gamma, label_smoothing=smoothing, reduction="none"), v, upstream)
        for f, v in ((ik.softmax_focal_loss, x), (ik.reference.softmax_focal_loss, wide))
    )
    assert loss.isfinite().all() and grad.isfinite().all()
    normal = gaps <= 87.3  # exp(-87.3) is the last that is
    # The bound at logits of up to 80 is half of this; of numbers below the normal ones there may be one a class.
    for got, true in ((loss, expected), (grad, slope)):
        torch.testing.assert_close(got[normal], true[normal], rtol=(1 + gamma) * 2e-5, atol=classes * 1.2e-38)


@pytest.mark.parametrize("function", (ik.cross_entropy, ik.reference.cross_entropy))
def test_a_class_without_weight_has_no_infinite_loss(function, device):
    """Neither a label nor, with smoothing, another class: its factor is 0."""
    x, weight = torch.tensor([[0.0, -INF, 0.0]], device=device), torch.tensor([1.0, 0.0, 1.0], device=device)
    for label, smoothing, loss in ((1, 0.0, 0.0), (0, 0.0, math.log(2)), (0, 0.3, math.log(2) * (0.7 + 0.2))):
        target = torch.tensor([label], device=device)
        got = function(x, target, weight, label_smoothing=smoothing, reduction="none")
        assert got.item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("gamma", (0.0, 1.0, 2.0, 2.7))
def test_any_probabilities(gamma, device):
    """F.cross_entropy takes them outside [0, 1]; a factor (1 - p) below 0 counts as 0."""
    x, t = make((40, 30), device, probabilities=True)
    t = t - 1 / 30 + torch.randn(40, 30, device=device, dtype=t.dtype) / 10
    wide = x.detach().requires_grad_()
    p = torch.softmax(wide, 1)
    k = (t * (1 - p)).sum(1)
    power = torch.where(k > 0, k.clamp(min=1e-300) ** gamma, 0.0) if gamma else torch.ones_like(k)
    expected = power * F.cross_entropy(wide, t, reduction="none")
    assert (k > 0).any() and (k < 0).any()
    got = ik.softmax_focal_loss(x, t, gamma, reduction="none")
    upstream = torch.tensor(1.0, device=device)
    for a, b in zip(results(got, x, upstream), results(expected, wide, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)  # k is a sum of 30 terms that cancel


def test_probabilities_after_class_ids(device):
    """A thread's memory of one call's labels reaches no gradient of the next."""
    x, ids = make((37, 81), device)
    _, t = make((37, 81), device, probabilities=True)
    ik.cross_entropy(x, ids).backward()
    (got,) = torch.autograd.grad(ik.cross_entropy(x, t), x)
    (expected,) = torch.autograd.grad(F.cross_entropy(x, t), x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("classes", (4096, 32_003, 262_144))
def test_many_classes(classes, device):
    """fp32 against fp64: the sum over classes loses no digit for being long, and half inputs are fp32 inside."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, classes, generator=generator) * 3
    t = torch.tensor([0, classes // 2, classes - 1], device=device)
    for dtype in (torch.float32, torch.bfloat16):
        x = logits.to(device, dtype).requires_grad_()
        wide = x.detach().double().requires_grad_()
        upstream = torch.tensor(1.0, device=device)
        got = results(ik.cross_entropy(x, t, reduction="sum"), x, upstream)
        loss, grad = results(F.cross_entropy(wide, t, reduction="sum"), wide, upstream)
        torch.testing.assert_close(got[0], loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(got[1], grad, rtol=3e-6 if dtype == torch.float32 else 2**-8, atol=1e-30)


def test_unaligned_logits(device):
    """A view that begins in the middle of a vector, and rows that end in one."""
    base = torch.randn(1 + 300 * 1001, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.arange(300, device=device) % 7
    x = base[1:].view(300, 1001).requires_grad_()
    y = x.detach().clone().requires_grad_()
    upstream = torch.tensor(1.0, device=device)
    for a, b in zip(*(results(ik.softmax_focal_loss(v, t), v, upstream) for v in (x, y)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("classes", (39, 40, 48, 81, 1000))
def test_rows_do_not_see_their_neighbours(classes, device):
    """A row's last vector reads on into the next row, whatever stands there."""
    x, t = make((40, classes), device, torch.float32)
    t = t.clamp(min=0)
    finite = torch.arange(40, device=device) % 2 == 0
    x.data[~finite] = torch.tensor([NAN, INF, -INF], device=device).repeat(7)[:20, None]
    t[~finite & (torch.arange(40, device=device) % 3 == 0)] = -100
    alone = x.detach()[finite].clone().requires_grad_()
    loss, grad = results(ik.softmax_focal_loss(x, t, reduction="none"), x, torch.ones(40, device=device))
    expected = results(ik.softmax_focal_loss(alone, t[finite], reduction="none"), alone, torch.ones(20, device=device))
    assert torch.equal(loss[finite], expected[0]) and torch.equal(grad[finite], expected[1])
    assert not grad[t == -100].any()


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("classes", (80, 81, 1000))
def test_a_large_gradient_is_that_of_its_parts(classes, smoothing, device):
    """Beyond 16 MiB it goes past the caches."""
    x, t = make((2**22 // classes + 100, classes), device, torch.float32)
    upstream = torch.tensor(1.0, device=device)

    def gradient(x, t):
        x = x.detach().requires_grad_()
        return results(ik.cross_entropy(x, t, label_smoothing=smoothing, reduction="sum"), x, upstream)[1]

    parts = zip(x.detach().chunk(8), t.chunk(8), strict=True)
    assert torch.equal(gradient(x, t), torch.cat([gradient(*part) for part in parts]))


@pytest.mark.parametrize("shape", ((3001, 7), (3001, 81), (40, 5003), (5, 19, 33, 31)))
def test_same_bits_for_any_number_of_threads(shape, device):
    x, t = make(shape, device, torch.float32)
    weight = torch.linspace(0.5, 2, shape[1], device=device)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            loss = ik.softmax_focal_loss(x, t, 1.5, weight, label_smoothing=0.1)
            found.append((loss, *torch.autograd.grad(loss, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape", ((3001, 7), (3001, 81), (5, 19, 33, 31)))
def test_the_first_bad_row_is_named(shape, device, monkeypatch):
    """Counted through samples and positions, whichever thread meets it; what is ignored is not bad."""
    monkeypatch.setenv("IMBAL_KERNELS_CHECK", "1")
    x, t = make(shape, device, torch.float32)
    t = t.clamp(min=0)
    t.view(-1)[[613, 614, 2900]] = torch.tensor([-1, 2**32 + 5, 77_777], device=device)
    with pytest.raises(ValueError, match=f"target -1 at row 613 is out of range: class ids are 0 to {shape[1] - 1}"):
        ik.cross_entropy(x, t)
    with pytest.raises(ValueError, match=f"target {2**32 + 5} at row 614"):
        ik.cross_entropy(x, t, ignore_index=-1)


@pytest.mark.parametrize("dtype", (torch.int8, torch.uint8, torch.int16, torch.int32))
def test_id_dtypes(dtype, device):
    x, t = make((37, 81), device)
    t = t.clamp(min=0)
    weight = torch.linspace(0.5, 2, 81, device=device, dtype=torch.float64)
    assert torch.equal(ik.cross_entropy(x, t.to(dtype), weight), ik.cross_entropy(x, t, weight))


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
    maps = torch.zeros(2, 3, 0, 5, device=device, requires_grad=True)
    loss = ik.softmax_focal_loss(maps, torch.zeros(2, 0, 5, dtype=torch.long, device=device), reduction="sum")
    assert loss == 0 and torch.autograd.grad(loss, maps)[0].shape == maps.shape


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
