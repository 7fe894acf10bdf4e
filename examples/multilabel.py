"""A multi-label classifier as one trains it with timm: only the criterion changes.

    python examples/multilabel.py
"""

import torch
from torch import Tensor, nn

import imbal_kernels as ik

CRITERIA = {
    "bce": ik.BCEWithLogitsLoss(),  # was torch.nn.BCEWithLogitsLoss()
    "asymmetric": ik.AsymmetricLoss(reduction="sum"),  # was timm.loss.AsymmetricLossMultiLabel(reduction="sum")
}


def classifier(num_labels: int) -> nn.Sequential:
    """As timm.create_model(..., num_classes=num_labels), but small: images (N, 3, H, W) to logits (N, labels)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_labels)
    )


def batch(num_labels: int = 20) -> tuple[Tensor, Tensor]:
    """Images, and which of the labels each has: few."""
    return torch.rand(16, 3, 32, 32), (torch.rand(16, num_labels) < 0.05).float()


def main(criterion: str = "asymmetric") -> None:
    torch.manual_seed(0)
    images, labels = batch()
    model = classifier(labels.shape[1])
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(3):
        loss = CRITERIA[criterion](model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: {criterion} {loss.item():.4f}")


if __name__ == "__main__":
    main()
