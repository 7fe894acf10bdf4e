"""Quality focal, varifocal and asymmetric loss, and a formula of the user's own; as in functional.py."""

from typing import Any

from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.arguments import sigmoid_problem
from imbal_kernels.formula import Formula
from imbal_kernels.normalizer import Normalizer


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
    """Quality focal loss of Li et al., "Generalized Focal Loss" (2020): focal loss for targets in [0, 1].

    With p = sigmoid(x), d = p - t and B as in `sigmoid_focal_loss`:

        L = loss_weight * weight * |d|^beta * B,  B = pos_weight t' softplus(-x) + (1 - t') softplus(x)

    Args:
        inputs: logits, (..., C).
        targets: values in [0, 1], the shape of `inputs`, or class ids, `inputs.shape[:-1]`; see
            `sigmoid_focal_loss`.
        beta: exponent, >= 1: below, the gradient is infinite where p meets t.
        reduction: "none" | "mean" | "sum".
        scores: with class ids, the target of each row's class, as in `sigmoid_focal_loss`.
        weight, pos_weight, label_smoothing, ignore_index, normalizer, loss_weight, process_group: as in
            `sigmoid_focal_loss`.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ids, overlap = torch.tensor([1, -1]), torch.tensor([0.5, 0.0])
        >>> ik.quality_focal_loss(torch.zeros(2, 2), ids, reduction="none", scores=overlap)
        tensor([[0.1733, 0.0000],
                [0.1733, 0.1733]])
    """
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=-1.0, gamma=beta, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, count=ops.count_targets,
        formula="quality_focal", scores=scores,
    )  # fmt: skip
    loss = ops.sigmoid_loss(problem)
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
    """Varifocal loss of Zhang et al., "VarifocalNet" (2021): positives weigh what their target says.

    With p = sigmoid(x) and B as in `sigmoid_focal_loss`:

        L = loss_weight * weight * t * B               where t > 0
        L = loss_weight * weight * alpha * p^gamma * B   where t = 0

    Args:
        inputs: logits, (..., C).
        targets: values in [0, 1], the shape of `inputs`, or class ids, `inputs.shape[:-1]`; see
            `sigmoid_focal_loss`.
        alpha: weight of negatives, a number >= 0. For a weight per class use `weight`.
        gamma: focusing exponent of negatives, >= 0.
        reduction: "none" | "mean" | "sum".
        scores: with class ids, the target of each row's class, as in `sigmoid_focal_loss`.
        weight, pos_weight, label_smoothing, ignore_index, normalizer, loss_weight, process_group: as in
            `sigmoid_focal_loss`.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ids, overlap = torch.tensor([1, -1]), torch.tensor([0.5, 0.0])
        >>> ik.varifocal_loss(torch.zeros(2, 2), ids, reduction="none", scores=overlap)
        tensor([[0.1300, 0.3466],
                [0.1300, 0.1300]])
    """
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, count=ops.count_targets,
        formula="varifocal", scores=scores,
    )  # fmt: skip
    loss = ops.sigmoid_loss(problem)
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
    """Asymmetric loss of Ridnik et al., "Asymmetric Loss for Multi-Label Classification" (2021).

    With p = sigmoid(x), q = 1 - p, p_m = max(p - clip, 0) and t' = t (1 - eps) + eps / 2:

        L = loss_weight * weight * [pos_weight t' q^gamma_pos softplus(-x) - (1 - t') p_m^gamma_neg log(1 - p_m)]

    A negative with p below `clip` has no loss. The gradient is the whole one, hard positives included: their
    logarithm is not cut off.

    Args:
        inputs: logits, (..., C).
        targets: values in [0, 1], the shape of `inputs`, or class ids, `inputs.shape[:-1]`; see
            `sigmoid_focal_loss`.
        gamma_neg, gamma_pos: focusing exponents of negatives and positives, >= 0.
        clip: margin that is taken off the probability of negatives, in [0, 1].
        reduction: "none" | "mean" | "sum".
        scores: with class ids, the target of each row's class, as in `sigmoid_focal_loss`.
        weight, pos_weight, label_smoothing, ignore_index, normalizer, loss_weight, process_group: as in
            `sigmoid_focal_loss`. `alpha` has no place in it: `pos_weight` is its ratio.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([[0.3466, 0.0245]])
    """
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=-1.0, gamma=gamma_neg, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, count=ops.count_targets,
        formula="asymmetric", gamma_pos=gamma_pos, clip=clip, scores=scores,
    )  # fmt: skip
    loss = ops.sigmoid_loss(problem)
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
    """A loss of the user's own formula, with everything around it that the losses here have.

    L = loss_weight * weight * formula(x, t), over class ids or values, with ignored targets and the reductions.

    Args:
        formula: a `Formula`: the loss in PyTorch and, for the fused kernel on a GPU, in Triton.
        inputs: logits, (..., C).
        targets: values in [0, 1], the shape of `inputs`, or class ids, `inputs.shape[:-1]`: the formula then sees
            t = 1 for a row's class and 0 for the others.
        reduction: "none" | "mean" | "sum".
        scores: with class ids, the target of each row's class, as in `sigmoid_focal_loss`.
        weight, ignore_index, normalizer, loss_weight, process_group: as in `sigmoid_focal_loss`. `pos_weight` and
            `label_smoothing` change what is inside a formula: write them into it.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> squared = ik.Formula(lambda x, t: (torch.sigmoid(x) - t) ** 2)
        >>> ids = torch.tensor([0, 2, -1, -100])
        >>> ik.elementwise_loss(squared, torch.zeros(4, 3), ids, "sum", normalizer="positives")
        tensor(1.1250)
    """
    if not isinstance(formula, Formula):
        raise TypeError(f"formula must be an imbal_kernels.Formula, made once, got {type(formula).__name__}")
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=-1.0, gamma=0.0, reduction=reduction, weight=weight,
        pos_weight=None, label_smoothing=0.0, ignore_index=ignore_index, normalizer=normalizer, loss_weight=loss_weight,
        process_group=process_group, count=ops.count_targets, formula=formula.key, scores=scores,
    )  # fmt: skip
    loss = ops.sigmoid_loss(problem)
    return loss.reshape(inputs.shape) if problem.elementwise else loss
