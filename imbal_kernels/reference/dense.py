"""The losses of a detector's head in plain PyTorch: permute, concatenate, and the flat loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbal_kernels.reference.sigmoid import sigmoid_focal_loss


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
    """`imbal_kernels.dense_focal_loss` in plain PyTorch."""
    flat = [level.unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in levels]
    ids = labels if isinstance(labels, Tensor) else torch.cat(list(labels), 1)
    return sigmoid_focal_loss(
        torch.cat(flat, 1), ids, alpha, gamma, reduction, weight=weight, pos_weight=pos_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer, loss_weight=loss_weight,
        process_group=process_group,
    )  # fmt: skip
