"""Losses straight from a detector's head: several levels of (N, A * C, H, W), read where they are."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.dense_arguments import dense_problems, formula_options
from imbal_kernels.formula import Formula
from imbal_kernels.normalizer import Normalizer


def dense_focal_loss(
    levels: Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    num_classes: int,
    alpha: float | Tensor | None = None,
    gamma: float | None = None,
    reduction: str = "sum",
    *,
    normalizer: Normalizer = "positives",
    scores: Tensor | Sequence[Tensor] | None = None,
    formula: str | Formula = "focal",
    gamma_pos: float | None = None,
    clip: float | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
    statistics: ClassStatistics | None = None,
) -> Tensor:
    """A sigmoid loss of a dense detector's outputs, without permute, concatenation or one-hot targets.

    Each level is read in its own layout, contiguous or channels-last, its gradient is written in that layout, and
    nothing of the size of the logits is allocated besides. On a GPU contiguous levels go in two launches at most.

    Args:
        levels: L tensors of logits (N, A_l * C, H_l, W_l), as a head's convolution returns them: channel a * C + c
            is class c of anchor a. float32, bfloat16, float16 or float64.
        labels: class ids in (h, w, a) order: (N, M), M the sum of H_l * W_l * A_l; or a list, (N, H_l * W_l * A_l)
            per level. 0 to C - 1 a class, -1 and C both background. With one class, 0 is the object.
        num_classes: C.
        alpha, gamma, gamma_pos, clip: the formula's numbers, below. Those it has not are refused; None is its default.
        reduction: "sum" | "mean"; "mean" divides by the elements that are not ignored.
        normalizer: replaces that divisor: "positives" (of all levels and images, at least 1; mmdetection),
            "positives_per_image" (the mean over images of sum / positives, as torchvision's RetinaNet), an
            `EMANormalizer` (detectron2), a number, a 0-d tensor, or None.
        scores: the target of each anchor's class, in [0, 1], in the order of `labels`: (N, M) or a list. Those of
            background are not read. Without them 1.
        formula: which loss, and what it takes:

            "focal", as `sigmoid_focal_loss`: alpha (0.25), gamma (2)
            "quality_focal", as `quality_focal_loss`: gamma (2), its beta, at least 1
            "varifocal", as `varifocal_loss`: alpha (0.75), gamma (2)
            "asymmetric", as `asymmetric_loss`: gamma (4), its gamma_neg; gamma_pos (1), clip (0.05)
            a `Formula`, as `elementwise_loss`: no pos_weight, no label_smoothing
        weight, pos_weight: broadcast to (N, M, C): (C,), (N, M, 1), (N, M, C).
        label_smoothing, ignore_index, loss_weight, statistics: as in `sigmoid_focal_loss`.

    Returns:
        A 0-d tensor, float32 for half inputs.

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype, device or range; on a CPU also a label or score out
            of range, by its level and the row in it, (n * H * W + position) * A + anchor.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> levels = [torch.zeros(2, 3 * 4, 8, 8), torch.zeros(2, 3 * 4, 4, 4)]  # 3 anchors, 4 classes
        >>> labels = torch.full((2, 3 * (64 + 16)), -1)
        >>> labels[0, 5] = 2
        >>> ik.dense_focal_loss(levels, labels, num_classes=4).round(decimals=2)
        tensor(249.4500)
        >>> overlap = torch.full(labels.shape, 0.5)
        >>> ik.dense_focal_loss(levels, labels, 4, formula="quality_focal", scores=overlap).round(decimals=2)
        tensor(332.5400)
    """
    options = formula_options(
        formula, alpha=alpha, gamma=gamma, gamma_pos=gamma_pos, clip=clip, pos_weight=pos_weight,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    problems = dense_problems(
        levels, labels, num_classes, reduction=reduction, weight=weight, pos_weight=pos_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer, loss_weight=loss_weight,
        process_group=process_group, scores=scores, count=ops.count_targets, statistics=statistics, **options,
    )  # fmt: skip
    return ops.sigmoid_losses(problems, statistics)
