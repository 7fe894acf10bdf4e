"""ClassStatistics: sums by class from the kernel's one pass, against the elements' own losses and gradients in fp64."""

import copy
import functools

import pytest
import torch

import imbal_kernels as ik

CLASSES = 5


def problem(device, kind="ids", dtype=torch.float32, rows=3001, classes=CLASSES):
    """Rows that fill several slices of the kernel; an odd number of classes straddles its blocks."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, classes, generator=generator) * 3).to(device, dtype).requires_grad_()
    ids = torch.randint(-2, classes + 1, (rows,), generator=generator)
    if kind == "ids":
        return x, ids.to(device)
    t = torch.rand(rows, classes, generator=generator) * (torch.arange(classes) == ids[:, None])
    t[ids == -2] = -2
    return x, t.to(device)


def expected_sums(x, t, **options):
    """(4, C) in fp64 from the elementwise loss."""
    x = x.detach().double().requires_grad_()
    each = ik.reference.sigmoid_focal_loss(x, t, reduction="none", ignore_index=-2, **options)
    (grad,) = torch.autograd.grad(each.sum(), x)
    if t.dim() < x.dim():
        t = t[..., None] == torch.arange(x.shape[-1], device=x.device)
    positive = t > 0
    parts = positive, each.detach(), grad.abs() * positive, grad.abs() * ~positive
    return torch.stack([part.double().flatten(0, -2).sum(0) for part in parts])


def close(statistics, expected, rtol=1e-5):
    assert torch.equal(statistics.positives, expected[0])
    torch.testing.assert_close(statistics.sums, expected, rtol=rtol, atol=0)
    torch.testing.assert_close(statistics.grad_magnitude, expected[2] + expected[3], rtol=rtol, atol=0)


OPTIONS = {
    "plain": {},
    "gamma": {"gamma": 1.3, "alpha": -1},
    "weight": {"weight": torch.rand(CLASSES), "pos_weight": torch.rand(CLASSES), "alpha": torch.rand(CLASSES)},
    "row weight": {"weight": torch.rand(3001, 1)},
    "smoothing": {"label_smoothing": 0.1},
}


# Half inputs may be 1e-4 off (design contract); on a GPU the gradients are also rounded to the type.
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize("kind", ["ids", "values"])
@pytest.mark.parametrize("name", OPTIONS)
def test_sums(name, kind, dtype, rtol, backend):
    options = {k: v.to(backend) if isinstance(v, torch.Tensor) else v for k, v in OPTIONS[name].items()}
    x, t = problem(backend, kind, dtype)
    expected = expected_sums(x, t, **options)
    rtol += 2**-8 if backend == "cuda" and dtype == torch.bfloat16 else 0
    for reduction in ("sum", "none"):
        statistics = ik.ClassStatistics(CLASSES).to(backend)
        loss = ik.sigmoid_focal_loss(x, t, reduction=reduction, ignore_index=-2, statistics=statistics, **options)
        plain = ik.sigmoid_focal_loss(x, t, reduction=reduction, ignore_index=-2, **options)
        torch.testing.assert_close(loss, plain)
        for got, true in zip(torch.autograd.grad(loss.sum(), x), torch.autograd.grad(plain.sum(), x), strict=True):
            torch.testing.assert_close(got, true)
        close(statistics, expected, rtol)
    reference = ik.ClassStatistics(CLASSES).to(backend)
    ik.reference.sigmoid_focal_loss(x, t, ignore_index=-2, statistics=reference, **options)
    close(reference, expected, rtol)


@pytest.mark.parametrize("classes", [1, 16, 1203])
@pytest.mark.filterwarnings("ignore:targets without the class dimension")
def test_numbers_of_classes(classes, backend):
    x, ids = problem(backend, rows=211, classes=classes)
    statistics = ik.ClassStatistics(classes).to(backend)
    ik.sigmoid_focal_loss(x, ids, ignore_index=-2, reduction="sum", statistics=statistics)
    close(statistics, expected_sums(x, ids))


@pytest.mark.parametrize("formula", ["focal", "quality_focal", "varifocal", "asymmetric"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_a_heads_levels_add_up(format, formula, backend):
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(2, 3 * CLASSES, h, w, generator=generator).to(backend).to(memory_format=format).requires_grad_()
        for h, w in ((33, 41), (5, 4), (1, 1))
    ]
    labels = torch.randint(-2, CLASSES + 1, (2, 3 * (33 * 41 + 21)), generator=generator).to(backend)
    scored = formula in ("quality_focal", "varifocal")
    scores = torch.rand(labels.shape, generator=generator).to(backend) if scored else None
    run = functools.partial(ik.dense_focal_loss, levels, labels, CLASSES, ignore_index=-2, formula=formula)
    statistics, same = (ik.ClassStatistics(CLASSES).to(backend) for _ in range(2))
    loss = run(scores=scores, statistics=statistics)
    plain = run(scores=scores)
    torch.testing.assert_close(loss, plain)
    plain_grads = torch.autograd.grad(plain, levels)
    for got, true in zip(torch.autograd.grad(loss, levels), plain_grads, strict=True):
        torch.testing.assert_close(got, true)
    wide = [level.detach().double() for level in levels]
    ik.reference.dense_focal_loss(
        wide, labels, CLASSES, ignore_index=-2, formula=formula, scores=scores, statistics=same
    )
    close(statistics, same.sums)
    # What they are of: the loss, and its gradient in full.
    torch.testing.assert_close(statistics.loss.sum(), loss.double(), rtol=1e-5, atol=0)
    grads = sum(grad.unflatten(1, (3, CLASSES)).double().abs().sum((0, 1, 3, 4)) for grad in plain_grads)
    torch.testing.assert_close(statistics.grad_magnitude, grads, rtol=1e-5, atol=0)
    assert statistics.positives.tolist() == [int((labels == c).sum()) for c in range(CLASSES)]


def test_same_bits_for_any_number_of_threads(backend, on_threads):
    x, ids = problem(backend, rows=40_009)

    def sums():
        statistics = ik.ClassStatistics(CLASSES).to(backend)
        ik.sigmoid_focal_loss(x, ids, ignore_index=-2, reduction="sum", statistics=statistics)
        return statistics.sums

    assert torch.equal(*on_threads((1, 2), sums))


def test_balances_gradients_as_equalization_loss_does(device):
    """The accumulators of EQL v2, over two steps: sum of |grad| * target and of |grad| * (1 - target)."""
    statistics = ik.ClassStatistics(CLASSES).to(device)
    pos_grad, neg_grad = torch.zeros(CLASSES, device=device), torch.zeros(CLASSES, device=device)
    for seed in range(2):
        x, ids = problem(device, rows=100 + seed)
        target = (ids[:, None] == torch.arange(CLASSES, device=device)).float()
        kept = (ids != -2)[:, None]
        grad = (torch.sigmoid(x.detach()) - target).abs() * kept
        pos_grad += (grad * target).sum(0)
        neg_grad += (grad * (1 - target)).sum(0)
        ik.sigmoid_focal_loss(x, ids, -1, 0, "sum", ignore_index=-2, statistics=statistics)
    torch.testing.assert_close(statistics.positive_grad.float(), pos_grad)
    torch.testing.assert_close(statistics.negative_grad.float(), neg_grad)


def test_adds_in_training_resets_and_is_saved(device):
    loss = ik.SigmoidFocalLoss(reduction="sum", statistics=ik.ClassStatistics(2)).to(device)
    x, ids = torch.zeros(3, 2, device=device), torch.tensor([0, 1, -1], device=device)
    loss(x, ids), loss(x, ids)
    assert loss.statistics.positives.tolist() == [2, 2] and set(loss.state_dict()) == {"statistics.sums"}
    other = copy.deepcopy(loss).eval()
    other(x, ids)
    assert other.statistics.positives.tolist() == [2, 2]
    loss.statistics.reset()
    assert not loss.statistics.sums.any()
    assert "num_classes=2" in repr(ik.DenseFocalLoss(2, statistics=ik.ClassStatistics(2)))


def test_no_gradient_goes_through(device):
    x, ids = problem(device, rows=10)
    statistics = ik.ClassStatistics(CLASSES).to(device)
    ik.sigmoid_focal_loss(x, ids, reduction="sum", ignore_index=-2, statistics=statistics)
    assert not statistics.sums.requires_grad
    with torch.no_grad():
        again = ik.ClassStatistics(CLASSES).to(device)
        ik.sigmoid_focal_loss(x, ids, reduction="sum", ignore_index=-2, statistics=again)
    assert torch.equal(again.sums, statistics.sums)


def test_second_derivatives_and_targets_that_require_grad(device):
    x, t = problem(device, "values", torch.float64, rows=7)
    t = t.clamp(min=0).requires_grad_()
    statistics = ik.ClassStatistics(CLASSES).to(device)
    loss = functools.partial(ik.sigmoid_focal_loss, reduction="sum", statistics=statistics)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, t.detach()), x)
    statistics.reset()
    torch.autograd.grad(loss(x, t), t)
    close(statistics, expected_sums(x, t.detach()), 1e-12)


def test_compiles_whole_for_any_n(device):
    torch._dynamo.reset()
    statistics, same = (ik.ClassStatistics(CLASSES).to(device) for _ in range(2))

    def loss(x, ids, statistics):
        return ik.sigmoid_focal_loss(x * 2, ids, reduction="mean", ignore_index=-2, statistics=statistics)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")

    def check(n):
        x, ids = problem(device, rows=n)
        got, true = compiled(x, ids, statistics), loss(x, ids, same)
        torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(true, x))
        torch.testing.assert_close(statistics.sums, same.sums)

    for n in (8, 16):
        check(n)
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (24, 100):
            check(n)


@pytest.mark.parametrize("head", [False, True], ids=["flat", "head"])
def test_opcheck(head, device):
    x, ids = problem(device, rows=42)
    x = x.detach().reshape(2, 3, CLASSES, 7) if head else x.detach()
    ids = ids.reshape(2, 3, 7) if head else ids
    for mode in (1, 2):
        arguments = (x, ids, None, None, None, None, None, 0.25, 2.0, 0.0, 1.0, -2, mode, True, False)
        torch.library.opcheck(torch.ops.imbal_kernels.sigmoid_loss_by_class.default, arguments)


X, IDS = torch.zeros(4, 3), torch.tensor([0, 1, -1, -1])


def summed(x, statistics):
    return ik.sigmoid_focal_loss(x, IDS, reduction="sum", statistics=statistics)


BAD = [
    (lambda: ik.ClassStatistics(0), ValueError, "num_classes must be an int, at least 1, got 0"),
    (lambda: ik.sigmoid_focal_loss(X, IDS, statistics=ik.ClassStatistics(4)), ValueError,
     "statistics must have the classes of the logits, 3, got 4"),
    (lambda: ik.dense_focal_loss([X[None].mT[..., None]], IDS[None], 3, statistics=ik.ClassStatistics(4)), ValueError,
     "statistics must have the classes of the logits, 3, got 4"),
    (lambda: ik.dense_focal_loss([X[None].mT[..., None]], IDS[None], 3, statistics=True), TypeError,
     "statistics must be an imbal_kernels.ClassStatistics or None, got bool"),
    (lambda: ik.sigmoid_focal_loss(X, IDS, statistics=ik.ClassStatistics(3).to("meta")), ValueError,
     "statistics must be on the device of the logits, cpu, got meta"),
    (lambda: torch.func.grad(lambda x: summed(x, ik.ClassStatistics(3)))(X), ValueError,
     "statistics are not kept inside torch.func, vmap or forward-mode autograd: pass None"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
