"""The sigmoid family in plain PyTorch.

With p = sigmoid(x), k = t + p - 2tp, t' = t (1 - eps) + eps / 2, alpha_t = alpha t + (1 - alpha)(1 - t):

    L = scale * weight * alpha_t * k^gamma * [pos_weight t' softplus(-x) + (1 - t') softplus(x)]

For hard targets this is the focal loss of Lin et al., "Focal Loss for Dense Object Detection" (2017).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from imbal_kernels.arguments import SigmoidProblem, holds_object, is_ignored, sigmoid_problem


def sigmoid_loss(problem: SigmoidProblem) -> Tensor:
    """The loss of a problem: (N, C) if elementwise, else a 0-d tensor. Bad targets give NaN."""
    wide = torch.float64 if problem.input.dtype == torch.float64 else torch.float32
    t, ignored, bad = decode_targets(problem, wide)
    # Ignored elements leave the graph here, so a NaN in one reaches neither loss nor gradient.
    x = torch.where(ignored, 0.0, problem.input.to(wide))
    loss = _weigh(_modulation(x, t, problem.gamma), _cross_entropy(x, t, problem))
    for factor in (_alpha_t(t, problem), problem.weight, problem.scale_tensor):
        if factor is not None:
            loss = _weigh(factor, loss)
    loss = torch.where(ignored, 0.0, loss * problem.scale)
    loss = loss * torch.where(bad, torch.nan, 1.0).to(wide)  # a factor, so that the gradient is NaN as well
    if problem.elementwise:
        return loss if problem.fp32_loss else loss.to(problem.input.dtype)
    total = loss.sum()
    # 0 * scale: a mean over nothing, whose scale is 1 / 0, is NaN.
    return total if problem.scale_tensor is None else total + problem.scale_tensor * 0.0


def decode_targets(problem: SigmoidProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Targets as values in [0, 1], the ignored and the bad elements, each broadcastable to (N, C)."""
    target, classes = problem.target, problem.input.shape[1]
    ignored = is_ignored(target, problem.ignore_index)
    if problem.dense:
        bad = ((target < 0) | (target > 1)) & ~ignored
        return torch.where(ignored | bad, 0, target).to(dtype), ignored, bad
    ids = target.long()
    bad = ((ids < -1) | (ids > classes)) & ~ignored
    columns = torch.arange(classes, device=ids.device)
    t = (ids[:, None] == columns) & ~ignored[:, None]
    return t.to(dtype), ignored[:, None], bad[:, None]


def first_bad_row(problem: SigmoidProblem) -> Tensor:
    """The first row with a target out of range, or the number of rows: a 0-d tensor."""
    _, _, bad = decode_targets(problem, torch.float32)
    rows = torch.arange(bad.shape[0], device=bad.device)
    return torch.where(bad.any(1), rows, bad.shape[0]).min() if bad.shape[0] else rows.sum()


def _modulation(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """k^gamma, through log k for hard targets: a power of a k that underflows has no gradient."""
    if gamma == 0:
        return torch.ones_like(x)
    # Beyond these it is 0 or 1 to the last digit, and so is its slope 0, whatever it multiplies.
    limit = (110.0 if x.dtype == torch.float32 else 800.0) * max(1.0, 1.0 / gamma)
    x = x.clamp(-limit, limit)
    k = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
    if t.requires_grad or forward_ad.unpack_dual(t).tangent is not None:
        return k**gamma
    hard = (t == 0) | (t == 1)
    log_k = torch.where(t == 1, F.logsigmoid(-x), F.logsigmoid(x))
    return torch.exp(gamma * torch.where(hard, log_k, torch.log(torch.where(hard, 1.0, k))))


def _weigh(factor: Tensor, loss: Tensor) -> Tensor:
    """factor * loss, and 0 where the factor is, even for an infinite loss. A NaN stays one."""
    return factor * torch.where(factor == 0, loss.clamp(max=1e30), loss)


def _cross_entropy(x: Tensor, t: Tensor, problem: SigmoidProblem) -> Tensor:
    eps = problem.label_smoothing
    positive = t * (1 - eps) + eps / 2
    negative = (1 - t) * (1 - eps) + eps / 2
    if problem.pos_weight is not None:
        positive = positive * problem.pos_weight
    return _weigh(positive, -F.logsigmoid(x)) + _weigh(negative, -F.logsigmoid(-x))


def _alpha_t(t: Tensor, problem: SigmoidProblem) -> Tensor | None:
    alpha = problem.alpha_per_class
    if alpha is None:
        return None if problem.alpha < 0 else problem.alpha * t + (1 - problem.alpha) * (1 - t)
    return torch.where(alpha < 0, 1.0, alpha * t + (1 - alpha) * (1 - t))


def count_targets(target: Tensor, num_classes: int, ignore_index: int, dense: bool, positives: bool) -> Tensor:
    """Rows (class ids) or elements (values) that are not ignored; with `positives`, those with an object."""
    if positives:
        return holds_object(target, num_classes, ignore_index, dense).sum()
    return (~is_ignored(target, ignore_index)).sum()


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: float | Tensor | str | None = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`imbal_kernels.sigmoid_focal_loss` in plain PyTorch."""
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=normalizer, loss_weight=loss_weight, process_group=process_group, count=count_targets,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: float | Tensor | str | None = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`imbal_kernels.binary_cross_entropy_with_logits` in plain PyTorch."""
    problem = sigmoid_problem(
        "input", "target", input, target, alpha=-1.0, gamma=0.0, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=normalizer, loss_weight=loss_weight, process_group=process_group, count=count_targets,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(input.shape) if problem.elementwise else loss
