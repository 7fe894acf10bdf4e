"""The sigmoid family in plain PyTorch: L = scale * weight * formula(x, t).

With p = sigmoid(x), q = 1 - p, t' = t (1 - eps) + eps / 2 and
B = pos_weight t' softplus(-x) + (1 - t') softplus(x) the formulas are

    focal           alpha_t k^gamma B, with k = t + p - 2tp, alpha_t = alpha t + (1 - alpha)(1 - t)
    quality focal   |p - t|^beta B
    varifocal       t B where t > 0, else alpha p^gamma B
    asymmetric      pos_weight t' q^gamma_pos softplus(-x) + (1 - t') p_m^gamma_neg (-log(1 - p_m)),
                    with p_m = max(p - clip, 0)

For hard targets the first is the focal loss of Lin et al., "Focal Loss for Dense Object Detection" (2017).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from imbal_kernels import formula
from imbal_kernels.arguments import SigmoidProblem, sigmoid_problem
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.normalizer import Normalizer
from imbal_kernels.targets import holds_object, is_ignored, out_of_range


def sigmoid_loss(problem: SigmoidProblem) -> Tensor:
    """The loss of a problem: (N, C) if elementwise, else a 0-d tensor. Bad targets give NaN."""
    problem = problem.class_last()
    wide = torch.float64 if problem.input.dtype == torch.float64 else torch.float32
    t, ignored, bad = decode_targets(
        problem.target, problem.scores, problem.input.shape[1], problem.ignore_index, wide
    )
    # Ignored elements leave the graph here, so a NaN in one reaches neither loss nor gradient.
    x = torch.where(ignored, 0.0, problem.input.to(wide))
    if problem.formula in _FORMULAS:
        loss = _FORMULAS[problem.formula](x, t, problem)
    else:
        loss = formula.by_key(problem.formula).torch(x, t)
    for factor in (problem.weight, problem.scale_tensor):
        if factor is not None:
            loss = weigh(factor, loss)
    if problem.scale != 1:
        loss = loss * problem.scale  # before a sum, which could be infinite
    if not problem.elementwise and not problem.dense:
        loss = loss.sum(1, keepdim=True)  # what follows is the same for a row
    loss = torch.where(ignored, 0.0, loss * torch.where(bad, torch.nan, 1.0).to(wide))  # a factor: for the gradient too
    if problem.elementwise:
        return loss if problem.fp32_loss else loss.to(problem.input.dtype)
    total = loss.sum()
    # 0 * scale: a mean over nothing, whose scale is 1 / 0, is NaN.
    return total if problem.scale_tensor is None else total + problem.scale_tensor * 0.0


def decode_targets(
    target: Tensor, scores: Tensor | None, classes: int, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets as values in [0, 1], the ignored and the bad elements, each broadcastable to (N, C)."""
    ignored, bad = _marks(target, scores, classes, ignore_index)
    if target.dim() == 2:
        return torch.where(ignored | bad, 0, target).to(dtype), ignored, bad
    own = torch.where(ignored | bad, -1, target.long()[:, None]) == torch.arange(classes, device=target.device)
    if scores is None:
        return own.to(dtype), ignored, bad
    return torch.where(own, scores.to(dtype)[:, None], 0.0), ignored, bad


def _marks(target: Tensor, scores: Tensor | None, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The ignored and the bad targets: (N, C) of values, (N, 1) of class ids."""
    ignored = is_ignored(target, ignore_index)
    if target.dim() == 2:
        return ignored, ((target < 0) | (target > 1)) & ~ignored
    bad = out_of_range(target, -1, classes, ignore_index)
    if scores is not None:
        known = (scores >= 0) & (scores <= 1)
        bad = bad | (holds_object(target, classes, ignore_index, False) & ~known)
    return ignored[:, None], bad[:, None]


def first_bad_row(problem: SigmoidProblem) -> Tensor:
    """The first row with a target out of range, or the number of rows: a 0-d tensor."""
    problem = problem.class_last()
    _, bad = _marks(problem.target, problem.scores, problem.input.shape[1], problem.ignore_index)
    rows = torch.arange(bad.shape[0], device=bad.device)
    return torch.where(bad.any(1), rows, bad.shape[0]).min() if bad.shape[0] else rows.sum()


def sums_by_class(problem: SigmoidProblem) -> Tensor:
    """(4, C), as in `ClassStatistics`: positives, losses, and magnitudes of the gradient of positives and others."""
    problem = problem.class_last()
    wide = torch.float64 if problem.input.dtype == torch.float64 else torch.float32
    x = problem.input.detach().to(wide).requires_grad_()
    with torch.enable_grad():
        losses = sigmoid_loss(problem._replace(input=x, elementwise=True))
        (grads,) = torch.autograd.grad(losses.sum(), x)
    t, _, _ = decode_targets(problem.target, problem.scores, x.shape[1], problem.ignore_index, wide)
    return add_by_class(t, losses.detach(), grads)


def add_by_class(t: Tensor, losses: Tensor, grads: Tensor) -> Tensor:
    sizes = grads.abs().to(losses.dtype)
    parts = (t > 0, losses, sizes * (t > 0), sizes * (t <= 0))
    return torch.stack([part.sum(0, dtype=torch.float64) for part in parts])


def _focal(x: Tensor, t: Tensor, problem: SigmoidProblem) -> Tensor:
    loss = weigh(_modulation(x, t, problem.gamma), _cross_entropy(x, t, problem))
    alpha_t = _alpha_t(t, problem)
    return loss if alpha_t is None else weigh(alpha_t, loss)


def _quality_focal(x: Tensor, t: Tensor, problem: SigmoidProblem) -> Tensor:
    distance = _above(limited(x, problem.gamma), t).abs()
    if t.requires_grad:
        return weigh(distance**problem.gamma, _cross_entropy(x, t, problem))
    hard = (t == 0) | (t == 1)
    soft = torch.where(hard, 1.0, distance) ** problem.gamma
    return weigh(torch.where(hard, _modulation(x, t, problem.gamma), soft), _cross_entropy(x, t, problem))


def _varifocal(x: Tensor, t: Tensor, problem: SigmoidProblem) -> Tensor:
    negative = problem.alpha * _modulation(x, torch.zeros_like(t), problem.gamma)
    return weigh(torch.where(t > 0, t, negative), _cross_entropy(x, t, problem))


def _asymmetric(x: Tensor, t: Tensor, problem: SigmoidProblem) -> Tensor:
    positive, negative = _smoothed(t, problem)
    hits = weigh(_modulation(x, torch.ones_like(t), problem.gamma_pos), -F.logsigmoid(x))
    if problem.clip == 0:
        misses = weigh(_modulation(x, torch.zeros_like(t), problem.gamma), -F.logsigmoid(-x))
    else:
        shifted = _above(x, problem.clip)
        # Where it is cut off, a power below 1 would have an infinite slope.
        kept = torch.where(shifted > 0, shifted, 0.5)
        far = -torch.log(torch.sigmoid(-x) + problem.clip)  # 1 - p_m without a difference
        entropy = torch.where(kept > 0.5, far, -torch.log1p(-kept.clamp(max=0.5)))
        misses = torch.where(shifted.isnan(), shifted, torch.where(shifted > 0, kept**problem.gamma * entropy, 0.0))
    return weigh(positive, hits) + weigh(negative, misses)


def _modulation(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """k^gamma, through log k for hard targets: a power of a k that underflows has no gradient."""
    if gamma == 0:
        return torch.ones_like(x)
    x = limited(x, gamma)
    k = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
    if t.requires_grad or forward_ad.unpack_dual(t).tangent is not None:
        return k**gamma
    hard = (t == 0) | (t == 1)
    log_k = torch.where(t == 1, F.logsigmoid(-x), F.logsigmoid(x))
    return torch.exp(gamma * torch.where(hard, log_k, torch.log(torch.where(hard, 1.0, k))))


def _above(x: Tensor, level: Tensor | float) -> Tensor:
    """p - level from the smaller of p and q, whose slope does not vanish by rounding."""
    return torch.where(x < 0, torch.sigmoid(x) - level, (1 - level) - torch.sigmoid(-x))


def limited(x: Tensor, gamma: float) -> Tensor:
    """Beyond the limits a power of p or q is 0 or 1 to the last digit, and its slope is 0, whatever it multiplies."""
    limit = (110.0 if x.dtype == torch.float32 else 800.0) * max(1.0, 1.0 / gamma)
    return x.clamp(-limit, limit)


def weigh(factor: Tensor, loss: Tensor) -> Tensor:
    """factor * loss, and 0 where the factor is, even for an infinite loss. A NaN stays one."""
    return factor * torch.where(factor == 0, loss.clamp(max=1e30), loss)


def _smoothed(t: Tensor, problem: SigmoidProblem) -> tuple[Tensor, Tensor]:
    """pos_weight t' and 1 - t'"""
    eps = problem.label_smoothing
    positive = t * (1 - eps) + eps / 2
    if problem.pos_weight is not None:
        positive = positive * problem.pos_weight
    return positive, (1 - t) * (1 - eps) + eps / 2


def _cross_entropy(x: Tensor, t: Tensor, problem: SigmoidProblem) -> Tensor:
    positive, negative = _smoothed(t, problem)
    return weigh(positive, -F.logsigmoid(x)) + weigh(negative, -F.logsigmoid(-x))


def _alpha_t(t: Tensor, problem: SigmoidProblem) -> Tensor | None:
    alpha = problem.alpha_per_class
    if alpha is None:
        return None if problem.alpha < 0 else problem.alpha * t + (1 - problem.alpha) * (1 - t)
    return torch.where(alpha < 0, 1.0, alpha * t + (1 - alpha) * (1 - t))


_FORMULAS = {
    "focal": _focal,
    "quality_focal": _quality_focal,
    "varifocal": _varifocal,
    "asymmetric": _asymmetric,
}


def count_targets(target: Tensor, num_classes: int, ignore_index: int, dense: bool, positives: bool) -> Tensor:
    """Rows (class ids) or elements (values) that are not ignored; with `positives`, those with an object. -1 where one
    is out of range."""
    ignored, bad = _marks(target.reshape(-1, 1) if dense else target.flatten(), None, num_classes, ignore_index)
    counted = holds_object(target, num_classes, ignore_index, dense) if positives else ~ignored
    return torch.where(bad.any(), -1, counted.sum())


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    scores: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: Normalizer = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
    statistics: ClassStatistics | None = None,
) -> Tensor:
    """`imbal_kernels.sigmoid_focal_loss` in plain PyTorch."""
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=normalizer, loss_weight=loss_weight, process_group=process_group, count=count_targets,
        scores=scores, statistics=statistics,
    )  # fmt: skip
    if statistics is not None:
        statistics.add(sums_by_class(problem))
    loss = sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scores: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: Normalizer = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`imbal_kernels.binary_cross_entropy_with_logits` in plain PyTorch."""
    problem = sigmoid_problem(
        "input", "target", input, target, alpha=-1.0, gamma=0.0, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=normalizer, loss_weight=loss_weight, process_group=process_group, count=count_targets,
        scores=scores,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(input.shape) if problem.elementwise else loss
