"""Grid locations of the pyramid: who is responsible for which box, and back to boxes."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .scenes import NUM_CLASSES, SIZE, Scenes

STRIDES = (4, 8, 16)
LEVEL_SIZES = (16.0, 30.0)  # sqrt(area) below which a box goes to level 0, to level 1
BACKGROUND = -1


@cache
def grid() -> tuple[Tensor, Tensor]:
    """Centres (A, 2) in pixels and strides (A,) of all locations, level by level, row by row."""
    centers, strides = [], []
    for stride in STRIDES:
        axis = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        centers.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides.append(torch.full((len(axis) ** 2,), float(stride)))
    return torch.cat(centers), torch.cat(strides)


def assign(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class ids (A,), BACKGROUND where there is none, and distances (A, 4) to the four sides.

    A box (of the K in `boxes`, (K, 4)) goes to the one level that suits its size, and there to the
    location nearest to its centre (to each where several are as near). Distances are left, top,
    right, bottom in strides; they mean something at positives only.
    """
    centers, strides = grid()
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.bucketize(side, torch.tensor(LEVEL_SIZES), right=True)
    on_level = strides[:, None] == torch.tensor(STRIDES)[level]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = (centers[:, None] - middle).abs().amax(-1) / strides[:, None]
    offset = offset.masked_fill(~on_level, torch.inf)
    offset = offset.masked_fill(offset > offset.amin(0), torch.inf)
    nearest, owner = offset.min(1)
    ids = torch.where(nearest.isfinite(), labels[owner], BACKGROUND)
    own = boxes[owner]
    distances = torch.cat([centers - own[:, :2], own[:, 2:] - centers], 1) / strides[:, None]
    return ids, distances.clamp(min=0.05)  # the nearest centre may lie on a narrow box's edge


def assign_all(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Class ids (N, A) and distances (N, A, 4) of every scene."""
    pairs = [assign(b, y) for b, y in zip(scenes.boxes, scenes.labels, strict=True)]
    return torch.stack([ids for ids, _ in pairs]), torch.stack([d for _, d in pairs])


def decode(distances: Tensor) -> Tensor:
    """Distances (..., A, 4) in strides to boxes (..., A, 4) in pixels."""
    centers, strides = grid()
    pixels = distances * strides[:, None]
    return torch.cat([centers - pixels[..., :2], centers + pixels[..., 2:]], -1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (I, 4) and (J, 4): (I, J)."""
    lower = torch.maximum(a[:, None, :2], b[None, :, :2])
    upper = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (upper - lower).clamp(min=0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(-1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-9)


def detect(
    logits: Tensor, distances: Tensor, keep: int = 100, overlap: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (D, 4), labels (D,), scores (D,) of one image, best first.

    logits: (A, NUM_CLASSES), distances: (A, 4). The `keep` highest outputs, then greedy
    non-maximum suppression within each class.
    """
    scores, flat = logits.sigmoid().flatten().topk(keep)
    location, labels = flat // NUM_CLASSES, flat % NUM_CLASSES
    boxes = decode(distances)[location]
    rival = (iou(boxes, boxes) > overlap) & (labels[:, None] == labels[None])
    alive = torch.ones(keep, dtype=torch.bool)
    for i in range(keep):
        if alive[i]:
            alive[i + 1 :] &= ~rival[i, i + 1 :]
    return boxes[alive], labels[alive], scores[alive]
