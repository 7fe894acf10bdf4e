"""Every instruction set of the CPU library that this machine has: the same accuracy, the same answers."""

import warnings

import pytest
import torch

import imbal_kernels as ik
from imbal_kernels.ops import backends

NAMES = ["portable", "avx2", "avx512"]
select = torch.ops.imbal_kernels._cpu_capability


def has(name):
    current = select("")
    try:
        select(name)
    except RuntimeError:
        return False
    select(current)
    return True


assert backends.MISSING["cpu"] is None, backends.MISSING["cpu"]
AVAILABLE = [name for name in NAMES if has(name)]


@pytest.fixture(params=AVAILABLE)
def instruction_set(request):
    current = select("")
    assert select(request.param) == request.param
    yield request.param
    assert select("") == request.param
    select(current)


def test_which_ones_this_machine_runs():
    """Every one is compiled; those the machine lacks are named, not skipped in silence."""
    assert select("") in AVAILABLE and "portable" in AVAILABLE
    for name in set(NAMES) - set(AVAILABLE):
        with pytest.raises(RuntimeError, match=f"this machine does not have {name}"):
            select(name)
        warnings.warn(f"{name} kernels were compiled but not run: this machine does not have {name}", stacklevel=1)
    with pytest.raises(RuntimeError):
        select("sse")


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 3, 2.7, 5])
@pytest.mark.parametrize("largest", [20, 80])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_accuracy(dtype, largest, gamma, instruction_set, exact, assert_within, bound):
    x = torch.linspace(-largest, largest, 5003).to(dtype)[:, None].repeat(1, 3).requires_grad_()
    for t in (torch.tensor([0.0, 1.0, 0.3]).expand(5003, 3), torch.tensor([0, 1, 2]).repeat(1668)[:5003]):
        loss = ik.sigmoid_focal_loss(x, t, gamma=gamma)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        values = t if t.dim() == 2 else torch.nn.functional.one_hot(t, 3)
        expected = exact(x, values, gamma=gamma)
        tolerance = bound(gamma, dtype, largest)
        assert_within(loss.detach(), expected.loss, tolerance)
        assert_within(grad, expected.grad, tolerance, expected.terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 9, 16, 17, 31, 80, 91])
def test_classes_and_remainders(classes, dtype, instruction_set, exact, assert_within, bound):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(37, classes, generator=generator) * 4).to(dtype).requires_grad_()
    ids = torch.arange(37) % (classes + 3) - 1
    ids[ids > classes] = -100
    weight, pos_weight = torch.rand(37, 1, generator=generator), torch.rand(classes, generator=generator) * 3
    loss = ik.sigmoid_focal_loss(x, ids, reduction="sum", weight=weight, pos_weight=pos_weight, label_smoothing=0.1)
    (grad,) = torch.autograd.grad(loss, x)
    kept = (ids != -100)[:, None].double()
    values = (ids[:, None] == torch.arange(classes)).double()
    expected = exact(x, values, weight=weight * kept, pos_weight=pos_weight, label_smoothing=0.1)
    assert_within(loss.detach(), expected.loss.sum(), bound(2, dtype))
    assert_within(grad, expected.grad, bound(2, dtype), expected.terms)


def test_special_values(instruction_set):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([nan, inf, -inf, 1e38, -1e38, 100, -100] * 9)[:, None].requires_grad_()
    targets = torch.tensor([0.0, -0.0, 0.0]).repeat(21)[:, None]
    loss = ik.sigmoid_focal_loss(x, targets, alpha=-1)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    expected = torch.tensor([nan, inf, 0, 1e38, 0, 100, 0] * 9)[:, None]
    torch.testing.assert_close(loss.detach(), expected, equal_nan=True, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, torch.tensor([nan, 1, 0, 1, 0, 1, 0] * 9)[:, None], equal_nan=True)


@pytest.mark.parametrize("largest", [20, 80])
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 2.7, 3])
def test_confident_background(gamma, largest, instruction_set, exact, assert_within, bound):
    """Runs of logits in [-87, -1] take a shorter way through a sum, whose loss shows where all are the same."""
    inside = torch.tensor([-1.0, -1.0000001, -1.3, -4.6, -11.1, -20.0, -45.6, -80.0])
    for value in inside[inside >= -largest]:
        x = torch.full((512, 2), value.item(), requires_grad=True)
        loss = ik.sigmoid_focal_loss(x, torch.full((512,), -1), 0.25, gamma, "sum", normalizer=1024.0)
        (grad,) = torch.autograd.grad(loss, x)
        expected = exact(x, torch.zeros_like(x), gamma=gamma)
        assert_within(loss.detach(), expected.loss[0, 0], bound(gamma, largest=largest))
        assert_within(grad * 1024, expected.grad, bound(gamma, largest=largest))


@pytest.mark.parametrize("odd", [
    float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-30, -0.99999994, 3.0, 95.0, -87.00001, -1e30
])  # fmt: skip
def test_one_logit_that_is_not_confident(odd, instruction_set):
    """It and its neighbours get what they get beside a soft target, where nothing takes the shorter way."""
    x = torch.linspace(-87, -1, 1024).reshape(512, 2)
    x[301, 1] = odd
    x.requires_grad_()
    ids, soft = torch.full((512,), -1), torch.zeros(512, 2)
    soft[511, 1] = 1e-30
    beside = ik.sigmoid_focal_loss(x, soft, gamma=1.0, reduction="sum")
    (expected,) = torch.autograd.grad(beside, x)
    total = ik.sigmoid_focal_loss(x, ids, gamma=1.0, reduction="sum")
    each = ik.sigmoid_focal_loss(x, ids, gamma=1.0)
    # Two ways of the same accuracy, (1 + gamma) 1e-5 at such logits, may be twice that apart.
    for loss in (total, each.sum()):
        torch.testing.assert_close(loss, beside, rtol=4e-5, atol=0, equal_nan=True)
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected, rtol=4e-5, atol=0, equal_nan=True)


ID_TYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def in_rows(x, ids, **options):
    return ik.sigmoid_focal_loss(x, ids, 0.25, 1.5, "sum", **options)


def in_a_head(x, ids, **options):
    level, classes = x.T.reshape(1, x.shape[1], 1, x.shape[0]).contiguous(), x.shape[1]
    options = {"normalizer": None} | options
    return ik.dense_focal_loss([level], ids[None], classes, 0.25, 1.5, **options)


@pytest.mark.parametrize("loss_of", [in_rows, in_a_head])
@pytest.mark.parametrize("dtype", ID_TYPES, ids=str)
def test_one_object_among_background(dtype, loss_of, instruction_set):
    """Labels of many rows are looked at together, of other numbers than those: an object, an ignored row or a bad label
    anywhere among them is found."""
    generator = torch.Generator().manual_seed(0)
    for rows, classes in ((1, 3), (15, 3), (16, 80), (33, 2), (150, 40), (700, 5)):
        x = torch.randn(rows, classes, generator=generator)
        none = torch.full((rows,), classes, dtype=dtype)
        none[::2] = -1 if dtype.is_signed else classes
        background = loss_of(x, none)
        for at in {0, rows // 2, 15 % rows, 16 % rows, rows - 1}:
            ids = none.clone()
            ids[at] = classes - 1
            is_object, is_not = (in_rows(x[at, -1:], torch.tensor([label])) for label in (1.0, 0.0))
            torch.testing.assert_close(loss_of(x, ids) - background, is_object - is_not, rtol=1e-4, atol=1e-4)
            ids[at] = 99
            row = in_rows(x[at : at + 1], torch.tensor([-1]))
            torch.testing.assert_close(background - loss_of(x, ids, ignore_index=99), row, rtol=1e-4, atol=1e-4)
            with pytest.raises(ValueError, match=f"target 99 at row {at} is out of range"):
                loss_of(x, ids)
        for value in none.unique().tolist():
            kept = none != value
            expected = in_rows(x[kept], none[kept].long()) if kept.any() else torch.tensor(0.0)
            torch.testing.assert_close(loss_of(x, none, ignore_index=value), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.003, 0.03, 0.3, 1.0])
def test_objects_of_any_density(density, dtype, instruction_set, assert_within, bound):
    """What lies between objects is background, in runs of any length: with factors and without, in rows and in a head,
    logits sure and unsure, ignored rows among them, and a remainder of a vector at the end."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1501, 13, generator=generator, dtype=dtype) * 2 - 3).requires_grad_()
    ids = torch.randint(13, (1501,), generator=generator)
    ids[torch.rand(1501, generator=generator) >= density] = -1
    ids[torch.rand(1501, generator=generator) < density / 10] = -100
    weight, scores = torch.rand(13, generator=generator) + 0.5, torch.rand(1501, generator=generator)

    def check(loss, wide_loss, x, wide, crosses_zero=False):
        assert_within(loss.detach(), wide_loss.detach(), bound(2, dtype))
        (grad,), (expected,) = (torch.autograd.grad(of.sum(), at) for of, at in ((loss, x), (wide_loss, wide)))
        # Where a score's gradient crosses zero, its terms are of the largest's size.
        assert_within(grad, expected, bound(2, dtype), expected.abs().max() if crosses_zero else None)

    for options in ({}, {"weight": weight}, {"pos_weight": weight}, {"alpha": weight / 2}, {"reduction": "none"},
                    {"scores": scores}, {"weight": weight, "reduction": "none"}):  # fmt: skip
        wide = x.detach().double().requires_grad_()
        losses = [
            function(logits, ids, **{"reduction": "sum"} | options)
            for function, logits in ((ik.sigmoid_focal_loss, x), (ik.reference.sigmoid_focal_loss, wide))
        ]
        check(*losses, x, wide, crosses_zero="scores" in options)
    levels = [logits.detach().T.reshape(1, 13, 1, 1501).contiguous().requires_grad_() for logits in (x, wide)]
    heads = [
        function([level], ids[None], 13, normalizer=None)
        for function, level in zip((ik.dense_focal_loss, ik.reference.dense_focal_loss), levels, strict=True)
    ]
    check(*heads, *levels)


def test_same_bits_for_any_number_of_threads(instruction_set, on_threads):
    x = torch.randn(40_009, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.arange(40_009) % 6

    def loss_and_gradient():
        loss = ik.sigmoid_focal_loss(x, ids, reduction="mean")
        return loss, *torch.autograd.grad(loss, x)

    results = on_threads((1, 2), loss_and_gradient)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape, targets", [((60_000, 80), "ids"), ((4_300_003, 1), "soft")], ids=str)
def test_outputs_too_large_to_cache(shape, targets, instruction_set, exact, assert_within, bound):
    """16 MiB and more are stored past the caches, with and without a remainder of a vector."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 4).requires_grad_()
    ids = torch.randint(-1, shape[1] + 1, shape[:1], generator=generator)
    t = ids if targets == "ids" else torch.rand(shape, generator=generator)
    values = (ids[:, None] == torch.arange(shape[1])).float() if targets == "ids" else t
    expected = exact(x, values, gamma=0, alpha=-1)
    for reduction, total in (("none", expected.loss), ("sum", expected.loss.sum())):
        loss = ik.binary_cross_entropy_with_logits(x, t, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert_within(loss.detach(), total, bound(0))
        assert_within(grad, expected.grad, bound(0), expected.terms)


@pytest.mark.parametrize("classes", [*range(1, 10), 15, 16, 17, 39, 40, 41, 81, 600, 5000])
def test_softmax_classes_and_remainders(classes, instruction_set, assert_within, bound):
    """By rows or by lines of positions, few classes or many; one tile, several, and what is left over."""
    for rows in (1, 16, 261, 1000) if classes < 5000 else (3,):
        generator = torch.Generator().manual_seed(rows)
        x = (torch.randn(rows, classes, generator=generator) * 4).requires_grad_()
        ids = torch.randint(classes, (rows,), generator=generator)
        ids[torch.rand(rows, generator=generator) < 0.1] = -100
        weight = torch.rand(classes, generator=generator) + 0.5
        wide = x.detach().double().requires_grad_()
        loss = ik.softmax_focal_loss(x, ids, 1.0, weight, reduction="sum")
        expected = ik.reference.softmax_focal_loss(wide, ids, 1.0, weight.double(), reduction="sum")
        assert_within(loss.detach(), expected.detach(), bound(1))
        (grad,), (expected_grad,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, wide)
        # Where a gradient crosses zero its terms are at most a weight, times 1 + gamma.
        assert_within(grad, expected_grad, bound(1), torch.tensor(3.0))


def test_bad_row(instruction_set):
    ids = torch.zeros(1000, dtype=torch.int32)
    ids[[613, 614]] = 77
    with pytest.raises(ValueError, match="target 77 at row 613"):
        ik.sigmoid_focal_loss(torch.zeros(1000, 3), ids)
