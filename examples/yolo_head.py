"""A decoupled head as in YOLOv6 and PP-YOLOE: varifocal loss of its class branch, whose targets are soft.

    python examples/yolo_head.py
"""

import torch
from torch import Tensor, nn

import imbal_kernels as ik


class DecoupledHead(nn.Module):
    """For each level of the pyramid class logits (N, C, H, W) and box distances (N, 4, H, W)."""

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stems = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in channels)
        self.classes = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in channels)
        for conv in self.classes:
            nn.init.constant_(conv.bias, ik.prior_bias(0.01))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        stems = [nn.functional.silu(stem(x)) for stem, x in zip(self.stems, features, strict=True)]
        classes = [conv(x) for conv, x in zip(self.classes, stems, strict=True)]
        return classes, [conv(x).exp() for conv, x in zip(self.boxes, stems, strict=True)]

    def class_loss(self, levels: list[Tensor], labels: Tensor, scores: Tensor) -> Tensor:
        """labels (N, M): each location's class or -1. scores (N, M): how well its box fits, in [0, 1]; 0 elsewhere."""
        return ik.dense_focal_loss(
            levels, labels, self.num_classes, formula="varifocal", scores=scores, normalizer=scores.sum().clamp(min=1)
        )


def batch(sizes: list[int], channels: list[int], num_classes: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features, and what an assigner gives: classes and scores of the 1 % of locations that have an object."""
    features = [torch.randn(2, c, n, n) for c, n in zip(channels, sizes, strict=True)]
    shape = (2, sum(n * n for n in sizes))
    labels = torch.where(torch.rand(shape) < 0.01, torch.randint(num_classes, shape), -1)
    return features, labels, torch.where(labels >= 0, torch.rand(shape), 0.0)


def main() -> None:
    torch.manual_seed(0)
    channels = [16, 32, 64]
    head = DecoupledHead(channels, num_classes=80)
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    features, labels, scores = batch([40, 20, 10], channels, 80)
    for step in range(3):
        levels, _ = head(features)
        loss = head.class_loss(levels, labels, scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: class loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
