"""The sums by class of a GPU, against the reference: the head's kernel adds them up, of values PyTorch does."""

import functools

import pytest
import torch
from test_head import FORMULAS, SCORED, SIZES, make, problems_of

from imbal_kernels.arguments import SigmoidProblem
from imbal_kernels.kernels import levels as module
from imbal_kernels.kernels import sigmoid, sigmoid_loss_levels
from imbal_kernels.ops.fused import SUM
from imbal_kernels.ops.sigmoid import _one_level, level_arguments, sums_from_elements
from imbal_kernels.reference.sigmoid import sums_by_class


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """As in test_head.py."""
    monkeypatch.setattr(module, "BY_CLASS", (8, 1))
    monkeypatch.setattr(module, "ROWS_BY_CLASS", (8, 1, 16))
    monkeypatch.setattr(module, "POSITIONS", dict.fromkeys((2, 4, 8), 16))
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (16, 1)))


@pytest.fixture
def as_launched(monkeypatch):
    monkeypatch.undo()


@pytest.mark.parametrize("formula", ("focal", "varifocal"))
@pytest.mark.parametrize("dtype, rtol", ((torch.float32, 2e-5), (torch.bfloat16, 2**-7)))  # gradients truncated to it
@pytest.mark.parametrize("kind", ("ids", "values"))
def test_rows(dtype, rtol, kind, formula):
    """Made of elements, as of values and of elementwise losses; of class ids also by the kernel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(42, 5, generator=generator).to(dtype)
    target = torch.arange(42) % 8 - 2
    scores = torch.rand(42, generator=generator) if formula == "varifocal" and kind == "ids" else None
    if kind == "values":
        target = torch.rand(42, 5, generator=generator).round()
    scale = torch.tensor(0.25)
    options = dict(alpha=0.75, gamma=2.0, label_smoothing=0.0, scale=2.0, ignore_index=-2)
    problem = SigmoidProblem(
        x, target, None, None, None, scores, scale, formula, gamma_pos=0.0, clip=0.0, elementwise=False,
        fp32_loss=False, **options,
    )  # fmt: skip
    arguments = x, target, None, None, None, scale, None, *options.values(), SUM, True, False, scores, formula
    torch.testing.assert_close(sums_from_elements(*arguments), sums_by_class(problem), rtol=rtol, atol=0)
    if kind == "ids":
        got = sigmoid_loss_levels(*_one_level(*arguments), True)[2]
        torch.testing.assert_close(got, sums_by_class(problem), rtol=rtol, atol=0)


def head_sums(levels, labels, classes, want_grad=True, **options):
    """The sums, from a call whose loss and gradients are those of a call without."""
    problems = problems_of(levels, labels, classes, **options)
    loss, grads, sums = sigmoid_loss_levels(*level_arguments(problems, None, SUM, want_grad), True)
    plain, plain_grads, none = sigmoid_loss_levels(*level_arguments(problems, None, SUM, want_grad))
    # They are evaluated in another form, of the same accuracy; the interpreter truncates to bf16.
    rtol = 1e-12 if loss.dtype == torch.float64 else 2**-7 if levels[0].dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(loss, plain, rtol=min(rtol, 2e-5), atol=0)
    for grad, expected in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=rtol, atol=rtol * 1e-3)
    assert none is None and sums.shape == (4, classes) and sums.dtype == torch.float64
    return sums


def true_sums(levels, labels, classes, **options):
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    problems = problems_of([level.double() for level in levels], labels, classes, **wide)
    return functools.reduce(torch.add, map(sums_by_class, problems))


# Whole steps and a rest, and nothing but a rest.
@pytest.mark.parametrize("classes, name", [(19, "focal"), *((5, name) for name in FORMULAS)])
def test_levels(classes, name):
    levels, labels, scores = make(classes)
    options = FORMULAS[name] | ({"scores": scores} if name in SCORED else {})
    # An error of p is that of p - t, times exponents: as in test_head.py.
    torch.testing.assert_close(
        head_sums(levels, labels, classes, **options), true_sums(levels, labels, classes, **options), rtol=2e-5, atol=0
    )


@pytest.mark.parametrize("dtype, rtol", ((torch.float64, 1e-12), (torch.bfloat16, 1e-4), (torch.float16, 1e-4)))
def test_dtypes(dtype, rtol):
    """Gradients are added up before they are rounded to the logits' type. A level of one place is read as rows."""
    levels, labels, _ = make(18, dtype, SIZES[:-1])
    torch.testing.assert_close(head_sums(levels, labels, 18), true_sums(levels, labels, 18), rtol=rtol, atol=0)


def test_as_it_is_launched(as_launched):
    levels, labels, _ = make(6, sizes=((2, 4), (14, 20), (3, 1)), anchors=1)
    sums = head_sums(levels, labels, 6)
    torch.testing.assert_close(sums, true_sums(levels, labels, 6), rtol=2e-5, atol=0)


# Whole steps, with a rest and without, and nothing but one.
@pytest.mark.parametrize("classes, format", ((20, torch.channels_last), (8, "mixed"), (1, torch.channels_last)))
def test_other_layouts(classes, format):
    levels, labels, scores = make(classes, format=None if format == "mixed" else format)
    levels[1] = levels[1].contiguous(memory_format=torch.channels_last)
    for options in (
        {"weight": torch.rand(*labels.shape, 1)},
        {"weight": torch.rand(*labels.shape, classes), "pos_weight": torch.rand(classes), "label_smoothing": 0.1},
        {"formula": "varifocal", "scores": scores},
    ):
        got = head_sums(levels, labels, classes, **options)
        torch.testing.assert_close(got, true_sums(levels, labels, classes, **options), rtol=2e-5, atol=0)


@pytest.mark.parametrize("format", (torch.contiguous_format, torch.channels_last))
def test_ignored_places_add_nothing_and_bad_ones_make_it_nan(format):
    levels, labels, _ = make(20, sizes=((3, 5),), format=format)
    labels = labels.clamp(min=-1)
    labels[0, 4] = -2
    poisoned = levels[0].clone()
    poisoned.unflatten(1, (2, 20))[0, 0, :, 0, 2] = torch.nan  # the third place's first anchor, ids in (h, w, a) order
    assert torch.equal(head_sums([poisoned], labels, 20), head_sums(levels, labels, 20))
    labels[0, 4] = 50
    problems = problems_of(levels, labels, 20)
    sums = sigmoid_loss_levels(*level_arguments(problems, None, SUM, True), True)[2]
    assert sums[1].isnan().all() and sums[3].isnan().all() and not sums[:3:2].isnan().any()


def test_without_gradients():
    levels, labels, _ = make(5)
    assert torch.equal(head_sums(levels, labels, 5, want_grad=False), head_sums(levels, labels, 5))


def test_a_positive_has_a_target_above_0():
    levels, labels, scores = make(20, sizes=((3, 5),))
    labels.clamp_(min=0, max=19)
    scores = (scores > 0.5).float()
    sums = head_sums(levels, labels, 20, formula="quality_focal", scores=scores)
    assert torch.equal(sums[0], torch.bincount(labels[scores > 0], minlength=20).double())


@pytest.mark.parametrize("format", (torch.contiguous_format, torch.channels_last))
def test_no_elements(format):
    levels, labels, _ = make(20, sizes=((0, 4), (2, 8)), format=format)
    torch.testing.assert_close(head_sums(levels, labels, 20), true_sums(levels, labels, 20), rtol=2e-5, atol=0)
    assert not head_sums(levels[:1], labels[:, :0], 20).any()
