"""The losses compared, and the usual eager formula they are timed against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import imbal_kernels as ik

from .boxes import BACKGROUND
from .choice import BEST
from .detector import rows
from .scenes import NUM_CLASSES

ALPHA, GAMMA = 0.25, 2.0
Levels = Sequence[Tensor]


@dataclass(frozen=True)
class Remedy:
    """One way to train the class outputs: `loss` takes the pyramid's logits, (B, 10, h, w) each, and class ids (B, A).

    `lr` is the peak learning rate.
    """

    name: str
    recipe: str
    lr: float
    color: str
    loss: Callable[[Levels, Tensor], Tensor]


def output_counts(ids: Tensor) -> Tensor:
    """How many anchor x class outputs are negative and positive, (2,), for class ids (...)."""
    positives = ik.class_counts(ids[ids != BACKGROUND], NUM_CLASSES).sum()
    return torch.stack([ids.numel() * NUM_CLASSES - positives, positives])


def make_remedies(counts: Tensor) -> list[Remedy]:
    """Plain BCE, weighted BCE and focal loss, for `counts` (2,) of output_counts."""
    pos_weight = ik.binary_pos_weight(counts)
    negative_weight = ik.class_weights(counts)[0]

    def plain(levels: Levels, ids: Tensor) -> Tensor:
        return ik.dense_focal_loss(levels, ids, NUM_CLASSES, alpha=-1, gamma=0)

    def weighted(levels: Levels, ids: Tensor) -> Tensor:
        return ik.dense_focal_loss(
            levels, ids, NUM_CLASSES, alpha=-1, gamma=0, reduction="mean", normalizer=None,
            pos_weight=pos_weight, loss_weight=negative_weight,
        )  # fmt: skip

    def focal(levels: Levels, ids: Tensor) -> Tensor:
        return ik.dense_focal_loss(levels, ids, NUM_CLASSES, ALPHA, GAMMA)

    weights = ik.class_weights(counts).tolist()
    recipe = f"weights {weights[0]:.2f} and {weights[1]:,.0f} from counts, mean over outputs"
    return [
        Remedy("plain BCE", "sum / positives", BEST["plain BCE"], "#d99a1c", plain),
        Remedy("class-weighted BCE", recipe, BEST["class-weighted BCE"], "#2a6fb0", weighted),
        Remedy("focal loss", "α 0.25, γ 2, sum / positives", BEST["focal loss"], "#c0392b", focal),
    ]


def eager_focal_loss(levels: Levels, ids: Tensor) -> Tensor:
    """The same focal loss as it is usually written: levels in one tensor, one-hot targets, one tensor an operation."""
    logits = rows(levels)
    positive = ids != BACKGROUND
    targets = F.one_hot(ids.clamp(min=0), NUM_CLASSES).to(logits.dtype) * positive[..., None]
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return (alpha_t * ce * (1 - p_t) ** GAMMA).sum() / positive.sum().clamp(min=1)


def background_share(levels: Levels, ids: Tensor, remedy: Remedy) -> float:
    """Share of the gradient's absolute sum that comes from negative outputs."""
    leaves = [level.detach().requires_grad_() for level in levels]
    gradient = rows(torch.autograd.grad(remedy.loss(leaves, ids), leaves))
    positive = F.one_hot(ids.clamp(min=0), NUM_CLASSES).bool() & (ids != BACKGROUND)[..., None]
    total = gradient.abs().sum(dtype=torch.float64)
    return float(1 - gradient[positive].abs().sum(dtype=torch.float64) / total)
