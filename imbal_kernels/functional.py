"""The losses: check the arguments, call the op, give the loss its shape."""

from typing import Any

from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.arguments import sigmoid_problem
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.normalizer import Normalizer
from imbal_kernels.softmax_arguments import softmax_problem


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
    """Sigmoid focal loss of Lin et al., "Focal Loss for Dense Object Detection" (2017); a drop-in for
    `torchvision.ops.sigmoid_focal_loss`.

    With p = sigmoid(x), k = t + p - 2tp (1 - p_t for hard targets), t' = t (1 - eps) + eps / 2 and
    alpha_t = alpha t + (1 - alpha)(1 - t):

        L = loss_weight * weight * alpha_t * k^gamma * [pos_weight t' softplus(-x) + (1 - t') softplus(x)]

    Loss and gradient come from one pass over the logits, exact for the easiest of negatives.

    Args:
        inputs: logits, (..., C), float32, bfloat16, float16 or float64. C classes, last.
        targets: either the shape of `inputs`, with values in [0, 1] (float) or 0 / 1 (int, bool); or
            `inputs.shape[:-1]`, integer class ids: 0 to C - 1 a class, -1 and C both background.
            With C = 1, id 0 *is* the object: 0 / 1 labels of a binary task go in with the shape of `inputs`.
        alpha: weight of positives, 1 - alpha of negatives; a number in [0, 1] or a (C,) tensor. Below 0: off.
        gamma: focusing exponent, >= 0. At 0 the loss is binary cross-entropy.
        reduction: "none" | "mean" | "sum". "mean" divides by the elements that are not ignored; over
            nothing it is NaN. A reduced loss of half inputs is float32.
        scores: with class ids, the target of each row's class, in [0, 1]; the other classes' is 0. `targets` in
            full without writing them out. 1 without it. Rows of background have none: theirs is not read.
        weight: broadcasts to `inputs`: (C,), (N, 1), (N, C). 1-d is always per class.
        pos_weight: factor on the positive term, as in `F.binary_cross_entropy_with_logits`; broadcasts.
        label_smoothing: eps in [0, 1]; moves the targets of the cross-entropy towards 1/2.
        ignore_index: rows (class ids) or elements (values) with this target count for nothing. Tested first.
        normalizer: replaces the divisor of "mean" and "sum": a number, a 0-d tensor, "positives" (objects in
            the batch whatever their scores, at least 1), "positives_per_image" (RetinaNet's mean over images) or
            an `EMANormalizer`.
        loss_weight: factor on the loss, a number or a 0-d tensor. Cheaper than multiplying the result.
        process_group: not supported yet.
        statistics: a `ClassStatistics` that gets what this loss adds up for each class.

    Returns:
        The loss: the shape of `inputs` for "none", else 0-d.

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype, device or range; on a CPU also a target
            out of range, by row. On a GPU such a target makes the loss NaN, or raises the same error
            under IMBAL_KERNELS_CHECK=1, which synchronises.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> logits = torch.tensor([[0.0], [-2.197225]])  # p_t = 0.5, 0.1
        >>> ik.sigmoid_focal_loss(logits, torch.ones(2, 1), alpha=-1).flatten()
        tensor([0.1733, 1.8651])
    """
    problem = sigmoid_problem(
        "inputs", "targets", inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=normalizer, loss_weight=loss_weight, process_group=process_group, count=ops.count_targets,
        scores=scores, statistics=statistics,
    )  # fmt: skip
    loss = ops.sigmoid_loss(problem, statistics)
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
    """Binary cross-entropy of logits; a drop-in for `F.binary_cross_entropy_with_logits`.

    It is `sigmoid_focal_loss` with gamma = 0 and alpha off: arguments, shapes and errors as there. The classes
    are in the last dimension, and targets must lie in [0, 1].

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.binary_cross_entropy_with_logits(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.6931)
    """
    problem = sigmoid_problem(
        "input", "target", input, target, alpha=-1.0, gamma=0.0, reduction=reduction, weight=weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=normalizer, loss_weight=loss_weight, process_group=process_group, count=ops.count_targets,
        scores=scores,
    )  # fmt: skip
    loss = ops.sigmoid_loss(problem)
    return loss.reshape(input.shape) if problem.elementwise else loss


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_adjustment: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """Cross-entropy of a softmax over the classes; a drop-in for `F.cross_entropy`.

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, ...), float32, bfloat16, float16 or float64; C up to 262,144.
        target: integer class ids 0 to C - 1 in the shape of `input` without C, or probabilities in its shape.
        weight: (C,), a factor for each class.
        ignore_index: rows with this class id count for nothing. Tested first.
        reduction: "none" | "mean" | "sum". "mean" divides by the weights of the rows that are not ignored, as
            PyTorch does (by the number of rows for probabilities). A reduced loss of half inputs is float32.
        label_smoothing: eps in [0, 1]; moves the target towards 1 / C.
        logit_adjustment: (C,), added to the logits: tau * log_prior(counts) is the loss of Menon et al.,
            "Long-tail learning via logit adjustment" (2021).
        normalizer: replaces the divisor of "mean" and "sum": a number, a 0-d tensor or "positives", the rows that
            are not ignored, at least 1.
        loss_weight: factor on the loss, a number or a 0-d tensor. Cheaper than multiplying the result.
        process_group: not supported yet.

    Returns:
        The loss: the shape of class ids for "none", else 0-d.

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype, device or range; on a CPU also a class id out of
            range, by row. On a GPU such an id makes the loss NaN, or raises under IMBAL_KERNELS_CHECK=1.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.cross_entropy(torch.zeros(2, 4), torch.tensor([1, 3]))
        tensor(1.3863)
    """
    problem = softmax_problem(
        input, target, gamma=0.0, weight=weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, sum_weights=ops.sum_weights,
    )  # fmt: skip
    return problem.shaped(ops.softmax_loss(problem), input)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_adjustment: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """Focal loss over a softmax: `cross_entropy` times (1 - p)^gamma, p the probability of the target.

    Lin et al., "Focal Loss for Dense Object Detection" (2017). For a target of probabilities t the factor is
    (sum_c t_c (1 - p_c))^gamma; label smoothing enters the cross-entropy only. Arguments, shapes and errors are
    those of `cross_entropy`.

    Args:
        gamma: focusing exponent, >= 0. At 0 the loss is cross-entropy.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.softmax_focal_loss(torch.zeros(2, 4), torch.tensor([1, 3]))
        tensor(0.7798)
    """
    problem = softmax_problem(
        input, target, gamma=gamma, weight=weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, sum_weights=ops.sum_weights,
    )  # fmt: skip
    return problem.shaped(ops.softmax_loss(problem), input)
