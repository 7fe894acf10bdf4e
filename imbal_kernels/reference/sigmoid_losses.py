"""The functions of sigmoid_losses.py on the reference."""

from typing import Any

from torch import Tensor

from imbal_kernels.arguments import sigmoid_problem
from imbal_kernels.formula import Formula
from imbal_kernels.normalizer import Normalizer
from imbal_kernels.reference.sigmoid import count_targets, sigmoid_loss


def quality_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    beta: float = 2.0,
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
) -> Tensor:
    """`imbal_kernels.quality_focal_loss` in plain PyTorch."""
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=-1.0, gamma=beta, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, count=count_targets,
        formula="quality_focal", scores=scores,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss


def varifocal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.75,
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
) -> Tensor:
    """`imbal_kernels.varifocal_loss` in plain PyTorch."""
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, count=count_targets,
        formula="varifocal", scores=scores,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss


def asymmetric_loss(
    inputs: Tensor,
    targets: Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
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
) -> Tensor:
    """`imbal_kernels.asymmetric_loss` in plain PyTorch."""
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=-1.0, gamma=gamma_neg, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, count=count_targets,
        formula="asymmetric", gamma_pos=gamma_pos, clip=clip, scores=scores,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss


def elementwise_loss(
    formula: Formula,
    inputs: Tensor,
    targets: Tensor,
    reduction: str = "none",
    *,
    scores: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    normalizer: Normalizer = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`imbal_kernels.elementwise_loss` in plain PyTorch."""
    if not isinstance(formula, Formula):
        raise TypeError(f"formula must be an imbal_kernels.Formula, made once, got {type(formula).__name__}")
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=-1.0, gamma=0.0, reduction=reduction, weight=weight,
        pos_weight=None, label_smoothing=0.0, ignore_index=ignore_index, normalizer=normalizer, loss_weight=loss_weight,
        process_group=process_group, count=count_targets, formula=formula.key, scores=scores,
    )  # fmt: skip
    loss = sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss
