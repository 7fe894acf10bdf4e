"""Losses straight from a detector's head: several levels of (N, A * C, H, W), read where they are."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbal_kernels import functional, ops
from imbal_kernels.arguments import (
    INTEGERS,
    check_constant,
    check_reduction,
    check_same_device,
    check_tensor,
    holds_object,
    per_image,
)


def dense_focal_loss(
    levels: Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    num_classes: int,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: float | Tensor | str | None = "positives",
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`sigmoid_focal_loss` of a dense detector's outputs, without permute, concatenation or one-hot targets.

    On a CPU each level is read in its own layout, contiguous or channels-last, its gradient is written in that
    layout, and nothing of the size of the logits is allocated besides. (A GPU copies contiguous levels first.)

    Args:
        levels: L tensors of logits (N, A_l * C, H_l, W_l), as a head's convolution returns them: channel a * C + c
            is class c of anchor a. float32, bfloat16, float16 or float64.
        labels: class ids in (h, w, a) order: (N, M), M the sum of H_l * W_l * A_l; or a list, (N, H_l * W_l * A_l)
            per level. 0 to C - 1 a class, -1 and C both background.
        num_classes: C.
        alpha, gamma, label_smoothing, ignore_index, loss_weight: as in `sigmoid_focal_loss`.
        reduction: "sum" | "mean"; "mean" divides by the elements that are not ignored.
        weight, pos_weight: broadcast to (N, M, C): (C,), (N, M, 1), (N, M, C).
        normalizer: replaces that divisor: "positives" (of all levels and images, at least 1; mmdetection),
            "positives_per_image" (the mean over images of sum / positives, as torchvision's RetinaNet), a number or a
            0-d tensor, or None.

    Returns:
        A 0-d tensor, float32 for half inputs.

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype, device or range; on a CPU also a label out of range,
            by its row (n * H * W + position) * A + anchor in its level.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> levels = [torch.zeros(2, 3 * 4, 8, 8), torch.zeros(2, 3 * 4, 4, 4)]  # 3 anchors, 4 classes
        >>> labels = torch.full((2, 3 * (64 + 16)), -1)
        >>> labels[0, 5] = 2
        >>> ik.dense_focal_loss(levels, labels, num_classes=4).round(decimals=2)
        tensor(249.4500)
    """
    parts = split_levels(levels, labels, num_classes)
    ids = labels if isinstance(labels, Tensor) else torch.cat(list(labels), 1)
    options = level_options(
        parts, ids, num_classes, reduction, weight, pos_weight, ignore_index, normalizer, process_group
    )
    total: Tensor | None = None
    for (logits, level_ids), factors in zip(parts, options, strict=True):
        loss = functional.sigmoid_focal_loss(
            logits, level_ids, alpha, gamma, "sum", label_smoothing=label_smoothing, ignore_index=ignore_index,
            loss_weight=loss_weight, **factors,
        )  # fmt: skip
        total = loss if total is None else total + loss
    assert total is not None
    return total


def split_levels(
    levels: Sequence[Tensor], labels: Tensor | Sequence[Tensor], num_classes: int
) -> list[tuple[Tensor, Tensor]]:
    """(logits, ids) of each level as views (N, H, W, A, C) and (N, H, W, A)."""
    if not isinstance(levels, (list, tuple)) or not levels:
        raise TypeError(f"levels must be a list of at least one Tensor, got {type(levels).__name__}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, torch.SymInt)) or num_classes < 1:
        raise ValueError(f"num_classes must be an int, at least 1, got {num_classes!r}")
    views = []
    for i, level in enumerate(levels):
        name = f"levels[{i}]"
        check_tensor(name, level)
        if level.dim() != 4 or level.shape[1] % num_classes or not level.shape[1]:
            raise ValueError(
                f"{name} must have shape (N, A * C, H, W), a multiple of C = {num_classes} channels, "
                f"got {tuple(level.shape)}"
            )
        if level.shape[0] != levels[0].shape[0] or level.dtype != levels[0].dtype or level.device != levels[0].device:
            raise ValueError(
                f"{name} must have the images, dtype and device of levels[0], {levels[0].shape[0]}, "
                f"{levels[0].dtype} and {levels[0].device}, got {level.shape[0]}, {level.dtype} and {level.device}"
            )
        views.append(level.unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2))
    sizes = [math.prod(view.shape[1:4]) for view in views]
    split = _split_labels(labels, levels[0], sizes)
    return [(view, ids.reshape(view.shape[:4])) for view, ids in zip(views, split, strict=True)]


def _split_labels(labels: Tensor | Sequence[Tensor], level: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    whole = isinstance(labels, Tensor)
    given: list[Tensor] = [labels] if isinstance(labels, Tensor) else list(labels)
    names = ["labels"] if whole else [f"labels[{i}]" for i in range(len(given))]
    expected = [sum(sizes)] if whole else sizes
    if len(given) != len(expected):
        raise ValueError(f"labels must have one tensor per level, {len(sizes)}, got {len(given)}")
    for name, ids, size in zip(names, given, expected, strict=True):
        if not isinstance(ids, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(ids).__name__}")
        if ids.dtype not in INTEGERS:
            raise TypeError(f"{name} must be integer class ids, got {ids.dtype}")
        check_same_device(name, ids, level)
        if ids.shape != (level.shape[0], size):
            raise ValueError(
                f"{name} must have shape ({level.shape[0]}, {size}), one id per anchor in (h, w, a) order, "
                f"got {tuple(ids.shape)}"
            )
    return given[0].split(sizes, 1) if whole else given


def level_options(
    parts: list[tuple[Tensor, Tensor]],
    ids: Tensor,
    num_classes: int,
    reduction: str,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore_index: int,
    normalizer: float | Tensor | str | None,
    process_group: Any,
) -> list[dict[str, Any]]:
    """weight, pos_weight and normalizer of each level's sum, such that the sums add up to the whole loss. ids: those
    of all levels, (N, M)."""
    if reduction == "none":
        raise ValueError(
            'reduction="none" has no meaning here: levels have no common layout; use sigmoid_focal_loss on each'
        )
    check_reduction(reduction, normalizer, process_group)
    divisor = normalizer
    if normalizer == "positives":
        divisor = ops.count_targets(ids, num_classes, ignore_index, False, True).clamp(min=1)
    elif normalizer == "positives_per_image":
        divisor = None
        weight = _per_image(parts[0][0], ids, num_classes, ignore_index, weight)
    elif normalizer is None and reduction == "mean":
        divisor = num_classes * ops.count_targets(ids, num_classes, ignore_index, False, False)
    factors = zip(_split(weight, parts), _split(pos_weight, parts), strict=True)
    return [{"weight": w, "pos_weight": p, "normalizer": divisor} for w, p in factors]


def _per_image(
    logits: Tensor, ids: Tensor, num_classes: int, ignore_index: int, weight: Tensor | None
) -> Tensor:
    """weight / (images * max(1, positives of the image)), (N, 1, 1) at least."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    each = per_image(holds_object(ids, num_classes, ignore_index, False), dtype)[:, None, None]
    if weight is None:
        return each
    check_constant("weight", weight, logits)
    return weight.to(dtype) * each


def _split(factor: Tensor | None, parts: list[tuple[Tensor, Tensor]]) -> list[Tensor | None]:
    """A factor that broadcasts to (N, M, C), a piece for each level's (N, H, W, A, C)."""
    rows = [math.prod(logits.shape[1:4]) for logits, _ in parts]
    if not isinstance(factor, Tensor) or factor.dim() < 2 or factor.shape[-2] == 1:
        if isinstance(factor, Tensor) and factor.dim() == 3:
            return [factor[:, :, None, None]] * len(parts)
        return [factor] * len(parts)
    if factor.dim() > 3 or factor.shape[-2] != sum(rows):
        raise ValueError(
            f"weight and pos_weight must broadcast to (N, M, C), M = {sum(rows)} anchors, got {tuple(factor.shape)}"
        )
    pieces = factor.split(rows, -2)
    return [
        piece.reshape(*piece.shape[:-2], *logits.shape[1:4], piece.shape[-1])
        for piece, (logits, _) in zip(pieces, parts, strict=True)
    ]
