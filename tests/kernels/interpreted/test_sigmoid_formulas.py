"""Quality focal, varifocal and asymmetric loss and an own formula in the streaming kernel, against the reference."""

import math
import sys
from pathlib import Path

import pytest
import torch

from imbal_kernels import reference
from imbal_kernels.arguments import sigmoid_problem
from imbal_kernels.kernels import sigmoid
from imbal_kernels.reference.sigmoid import count_targets

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from poly1_focal import POLY1_FOCAL  # noqa: E402

LOSSES = {
    "quality": dict(formula="quality_focal", gamma=2.0),
    "focal": dict(formula="focal", alpha=0.25, gamma=2.0),
    "quality 1": dict(formula="quality_focal", gamma=1.0),
    "quality 3.3": dict(formula="quality_focal", gamma=3.3),
    "varifocal": dict(formula="varifocal", alpha=0.75, gamma=2.0),
    "varifocal 0": dict(formula="varifocal", alpha=2.0, gamma=0.0),
    "varifocal 1.3": dict(formula="varifocal", alpha=0.3, gamma=1.3),
    "asymmetric": dict(formula="asymmetric", gamma=4.0, gamma_pos=1.0, clip=0.05),
    "asymmetric no clip": dict(formula="asymmetric", gamma=1.5, gamma_pos=0.5, clip=0.0),
    "asymmetric odd": dict(formula="asymmetric", gamma=0.3, gamma_pos=1.7, clip=0.2),
    "poly-1": dict(formula=POLY1_FOCAL.key, gamma=0.0),
}
SCORED = [name for name in LOSSES if "asymmetric" not in name]  # what the tests of something else give scores
# Each formula in each of the kernel's layouts, its other exponents in one.
LAYOUTS = [(name, classes) for name in LOSSES for classes in (32, 21, 5) if " " not in name or classes == 21]
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (128, 1)))


def problem_of(name, x, t, scores=None, **options):
    defaults = dict(alpha=-1.0, weight=None, pos_weight=None, label_smoothing=0.0, ignore_index=-100)
    arguments = defaults | LOSSES[name] | options
    return sigmoid_problem(
        "inputs", "targets", x, t, reduction="none", normalizer=None, loss_weight=1.0, process_group=None,
        count=count_targets, scores=scores, **arguments,
    )  # fmt: skip


def call(name, x, t, scores=None, **options):
    """(sum, elementwise losses, gradient) from the kernel."""
    p = problem_of(name, x, t, scores, **options)
    first = (p.input, p.target, p.weight, p.pos_weight, p.alpha_per_class, None, None, p.alpha, p.gamma,
             p.label_smoothing, p.scale, p.ignore_index)  # fmt: skip
    last = (p.scores, p.formula, p.gamma_pos, p.clip)
    total, grad = sigmoid.sigmoid_loss(*first, 2, True, False, *last)
    losses, none = sigmoid.sigmoid_loss(*first, 1, False, x.dtype != torch.float64, *last)
    assert none.numel() == 0
    return total, losses, grad


def definition(name, x, t, scores=None, **options):
    def wide(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    x = x.double().requires_grad_()
    p = problem_of(name, x, wide(t), wide(scores), **{k: wide(v) for k, v in options.items()})
    losses = reference.sigmoid.sigmoid_loss(p)
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]


def compare(name, x, t, scores=None, **options):
    """p - t and p - clip cancel: an error of p is that of the difference, times exponents and a loss of up to 20."""
    total, losses, grad = call(name, x, t, scores, **options)
    expected, slope = definition(name, x, t, scores, **options)
    rtol = {torch.float64: 1e-11, torch.float32: 2e-5}.get(x.dtype, 1e-3)
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(x.dtype, 0.0)  # the interpreter truncates to bf16
    scale = expected.abs().max().item()
    torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=rtol)
    torch.testing.assert_close(total.double(), expected.sum(), rtol=rtol, atol=rtol * scale)
    torch.testing.assert_close(grad.double(), slope, rtol=rtol + rounding, atol=rtol)


def make(classes, rows=19):
    torch.manual_seed(classes)
    x, ids = (torch.randn(rows, classes) * 5).clamp(-20, 20), torch.randint(-1, classes + 1, (rows,))
    ids[3] = -100
    scores = torch.rand(rows)
    scores[1], scores[2] = 0, 1
    return x, ids, scores


@pytest.mark.parametrize("targets", ("ids", "scores", "soft", "hard"))
@pytest.mark.parametrize("name, classes", LAYOUTS)
def test_values(name, classes, targets):
    x, ids, scores = make(classes)
    soft = torch.rand(19, classes)
    soft[:, 0], soft[:, 1] = 0, 1
    if targets == "scores":
        compare(name, x, ids, scores)
    else:
        compare(name, x, {"ids": ids, "soft": soft, "hard": soft > 0.5}[targets])


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", LOSSES)
def test_dtypes(name, dtype):
    x, ids, scores = make(32)
    compare(name, x.to(dtype), ids, scores if name in SCORED else None)
    compare(name, x.to(dtype), torch.rand(19, 32))


@pytest.mark.parametrize("name, classes", LAYOUTS)
def test_factors(name, classes):
    x, ids, scores = make(classes)
    factors = dict(weight=torch.rand(19, 1))
    if name != "poly-1":
        factors |= dict(pos_weight=torch.rand(classes) * 3, label_smoothing=0.1)
    scores = scores if name in SCORED else None
    compare(name, x, ids, scores, **factors)
    factors["label_smoothing"] = 0.0
    compare(name, x, ids, scores, **factors)


@pytest.mark.parametrize(
    "value, classes, smoothing", ((1.5, 32, 0.0), (-0.1, 21, 0.0), (NAN, 5, 0.0), (NAN, 32, 0.1), (INF, 21, 0.0))
)
def test_a_bad_score_is_nan_for_its_row_alone(value, classes, smoothing):
    """And is not looked at in a row of background."""
    x, ids, scores = make(classes)
    ids[5], ids[6], scores[5], scores[6] = 2, -1, value, value
    smoothing = dict(label_smoothing=smoothing)
    for dtype in (torch.float32, torch.bfloat16):
        total, losses, grad = call("quality", x.to(dtype), ids, scores, **smoothing)
        bad = torch.zeros(19, classes, dtype=torch.bool)
        bad[5, 2] = True
        assert total.isnan() and torch.equal(losses.isnan(), bad) and torch.equal(grad.isnan(), bad)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_rows_are_silent(name):
    for classes in (32, 21, 5):
        x, ids, scores = make(classes)
        scores = scores if name in SCORED else None
        x[3] = torch.tensor([NAN, INF, -INF, 7.0]).repeat(8)[:classes]
        total, losses, grad = call(name, x, ids, scores)
        assert total.isfinite() and not losses[3].any() and not grad[3].any()


@pytest.mark.parametrize("kind", ("ids", "soft", "hard"))
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "poly-1"])
def test_extreme_logits(name, kind):
    """The reference's limits, and NaN only where one goes in."""
    x = torch.tensor([INF, 1e38, 100.0, -100.0, -1e38, -INF, NAN])[:, None].repeat(1, 32)
    t = torch.tensor([0.0, 1.0, 0.5, 0.25]).repeat(7, 8)
    target = {"ids": torch.ones(7, dtype=torch.long), "soft": t, "hard": t > 0.4}[kind]
    _, losses, grad = call(name, x, target)
    expected, slope = definition(name, x, target)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-30, equal_nan=True)
