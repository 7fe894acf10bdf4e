"""What a loss adds up for each class while it is computed."""

import torch
from torch import Tensor, nn

from imbal_kernels.checks import check_same_device, kind_of


class ClassStatistics(nn.Module):
    """Sums by class over the elements of every loss that gets it as `statistics=`, on the device.

    They are what losses need that balance gradients by class: the ratio of `positive_grad` to `negative_grad` is that
    of Tan et al., "Equalization Loss v2" (2021). In eval mode nothing is added. The sums are a buffer, float64, saved
    with the model; `reset()` starts anew, and several ranks may all_reduce `sums`.

    The kernel adds them up in its one pass over the logits, on a CPU always, on a GPU for class ids and a reduced loss.
    For dense targets or `reduction="none"` a GPU writes the losses and gradients of all elements once more, the
    gradients in the dtype of the logits, and PyTorch adds them up. Nothing waits for the device.

    Args:
        num_classes: C.

    Attributes:
        positives: elements with a target above 0, (C,).
        loss: the loss, (C,), in all as large as the one returned.
        positive_grad, negative_grad: the magnitude of its gradient by the logits of these elements, and of the others.
        grad_magnitude: both.
        sums: the first four, (4, C).

    Example:
        >>> import torch, imbal_kernels as ik
        >>> statistics = ik.ClassStatistics(2)
        >>> logits, ids = torch.zeros(4, 2), torch.tensor([0, -1, -1, -1])
        >>> loss = ik.sigmoid_focal_loss(logits, ids, reduction="sum", statistics=statistics)
        >>> statistics.positives, statistics.loss
        (tensor([1., 0.], dtype=torch.float64), tensor([0.4332, 0.5199], dtype=torch.float64))
        >>> statistics.positive_grad / statistics.negative_grad
        tensor([0.1111, 0.0000], dtype=torch.float64)
    """

    sums: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an int, at least 1, got {num_classes!r}")
        self.num_classes = num_classes
        self.register_buffer("sums", torch.zeros(4, num_classes, dtype=torch.float64))

    @property
    def positives(self) -> Tensor:
        return self.sums[0]

    @property
    def loss(self) -> Tensor:
        return self.sums[1]

    @property
    def positive_grad(self) -> Tensor:
        return self.sums[2]

    @property
    def negative_grad(self) -> Tensor:
        return self.sums[3]

    @property
    def grad_magnitude(self) -> Tensor:
        return self.sums[2] + self.sums[3]

    def add(self, sums: Tensor) -> None:
        if self.training:
            with torch.no_grad():
                self.sums.add_(sums)

    def reset(self) -> None:
        self.sums.zero_()

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}"


def check_statistics(statistics: ClassStatistics | None, classes: int, input: Tensor) -> None:
    if statistics is None:
        return
    if not isinstance(statistics, ClassStatistics):
        raise TypeError(f"statistics must be an imbal_kernels.ClassStatistics or None, got {kind_of(statistics)}")
    if statistics.num_classes != classes:
        raise ValueError(f"statistics must have the classes of the logits, {classes}, got {statistics.num_classes}")
    check_same_device("statistics", statistics.sums, input)
