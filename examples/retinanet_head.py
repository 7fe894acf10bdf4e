"""torchvision's RetinaNet with `dense_focal_loss`: its head's outputs go to the loss as the convolutions leave them.

    python examples/retinanet_head.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetClassificationHead

import imbal_kernels as ik


class FusedClassificationHead(RetinaNetClassificationHead):
    """In training the levels stay apart, (N, A * C, H, W) each; in evaluation everything is as it was."""

    def forward(self, x: list[Tensor]) -> Tensor | list[Tensor]:
        return [self.cls_logits(self.conv(level)) for level in x] if self.training else super().forward(x)

    def compute_loss(self, targets, head_outputs, matched_idxs) -> Tensor:
        """matched_idxs: for each anchor its object's index in the image; -1 background, -2 neither."""
        labels = []
        for target, matched in zip(targets, matched_idxs, strict=True):
            classes = F.pad(target["labels"], (0, 1))  # an image without objects still has something to look up
            labels.append(torch.where(matched >= 0, classes[matched.clamp(min=0)], matched))
        return ik.dense_focal_loss(
            head_outputs["cls_logits"], torch.stack(labels), self.num_classes,
            ignore_index=self.BETWEEN_THRESHOLDS, normalizer="positives_per_image",
        )  # fmt: skip


def use_fused_loss(model: RetinaNet) -> RetinaNet:
    """The head that the model has, weights and all: the class above adds no state."""
    model.head.classification_head.__class__ = FusedClassificationHead
    return model


class Backbone(nn.Module):
    """Two levels of 16 channels, in place of a ResNet with its pyramid."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, 8, 1), nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.fine(images).relu()
        return {"0": fine, "1": self.coarse(fine).relu()}


def small_retinanet(num_classes: int = 5) -> RetinaNet:
    anchors = AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2)
    return RetinaNet(Backbone(), num_classes, min_size=96, max_size=96, anchor_generator=anchors)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images, the second without an object."""
    boxes = torch.tensor([[8.0, 8.0, 30.0, 28.0], [40.0, 40.0, 80.0, 72.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 4])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return [torch.rand(3, 96, 96), torch.rand(3, 96, 96)], targets


def main() -> None:
    torch.manual_seed(0)
    model = use_fused_loss(small_retinanet())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images, targets = batch()
    for step in range(3):
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(f"step {step}: classification {losses['classification'].item():.4f}")


if __name__ == "__main__":
    main()
