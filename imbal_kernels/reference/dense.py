"""The losses of a detector's head in plain PyTorch: permute, concatenate, and the flat loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbal_kernels.arguments import sigmoid_problem
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.dense_arguments import formula_options
from imbal_kernels.formula import Formula
from imbal_kernels.normalizer import Normalizer
from imbal_kernels.reference.sigmoid import count_targets, sigmoid_loss, sums_by_class


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
    """`imbal_kernels.dense_focal_loss` in plain PyTorch."""
    flat = [level.unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in levels]
    ids = labels if isinstance(labels, Tensor) else torch.cat(list(labels), 1)
    flat_scores = scores if scores is None or isinstance(scores, Tensor) else torch.cat(list(scores), 1)
    options = formula_options(
        formula, alpha=alpha, gamma=gamma, gamma_pos=gamma_pos, clip=clip, pos_weight=pos_weight,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    problem = sigmoid_problem(
        "levels", "labels", torch.cat(flat, 1), ids, reduction=reduction, weight=weight, pos_weight=pos_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer, loss_weight=loss_weight,
        process_group=process_group, count=count_targets, scores=flat_scores, class_ids=True, statistics=statistics,
        **options,
    )  # fmt: skip
    if statistics is not None:
        statistics.add(sums_by_class(problem))
    return sigmoid_loss(problem)
