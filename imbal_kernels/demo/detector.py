"""A small dense detector: three pyramid levels, one shared head, no anchors but the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import imbal_kernels as ik

from .scenes import NUM_CLASSES

WIDTH = 48


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _tower(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(WIDTH, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(inplace=True)
    )


class Detector(nn.Module):
    """Images (B, 3, H, W) to class logits, (B, 10, h, w) for each level of the pyramid, and side distances (B, A, 4)
    in strides."""

    def __init__(self, prior: float = 0.01) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2), _block(32, 32))
        self.down8 = nn.Sequential(_block(32, 64, 2), _block(64, 64))
        self.down16 = nn.Sequential(_block(64, 96, 2), _block(96, 96))
        self.lateral = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in (32, 64, 96))
        self.class_tower = _tower(WIDTH)
        self.side_tower = _tower(WIDTH // 2)
        self.classes = nn.Conv2d(WIDTH, NUM_CLASSES, 3, padding=1)
        self.sides = nn.Conv2d(WIDTH // 2, 4, 3, padding=1)
        for head, bias in ((self.classes, ik.prior_bias(prior)), (self.sides, 0.5)):
            nn.init.normal_(head.weight, std=0.01)
            if head.bias is not None:
                nn.init.constant_(head.bias, bias)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        fine = self.stem(images)
        middle = self.down8(fine)
        coarse = self.down16(middle)
        levels = [conv(x) for conv, x in zip(self.lateral, (fine, middle, coarse), strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + nn.functional.interpolate(levels[i + 1], scale_factor=2.0)
        logits, sides = [], []
        for features in levels:
            logits.append(self.classes(self.class_tower(features)))
            sides.append(self.sides(self.side_tower(features)))
        return logits, rows(sides).clamp(max=4.0).exp()


def rows(levels: Sequence[Tensor]) -> Tensor:
    """Levels (B, K, h, w) to one row for each of the A locations: (B, A, K)."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1)


def normalize(images: Tensor) -> Tensor:
    """uint8 pictures (B, 3, H, W) to centred floats in channels-last memory."""
    floats = images.float().sub_(127.5).div_(64.0)
    return floats.contiguous(memory_format=torch.channels_last)


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of boxes (P, 4) given by distances from one common point, summed to a scalar.

    Both boxes hold the point, so intersection and hull are products of minima and maxima.
    """
    low, high = torch.minimum(predicted, target), torch.maximum(predicted, target)

    def area(d: Tensor) -> Tensor:
        return (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3])

    shared, hull = area(low), area(high)
    union = area(predicted) + area(target) - shared
    return (1 - shared / union + (hull - union) / hull).sum()
