"""What a sum of losses is divided by, where that lasts longer than a batch."""

import math

import torch
from torch import Tensor, nn

from imbal_kernels.checks import check_number


class EMANormalizer(nn.Module):
    """An exponential average of the number of positives, on the device: nothing waits for it.

    As detectron2's RetinaNet keeps it in `loss_normalizer`:

        value = momentum * value + (1 - momentum) * max(1, positives of the batch)

    As `normalizer=` of a sigmoid loss it counts the positives, moves, and divides by the new value. In eval mode it
    is read and not moved. Its value is a buffer, so it is saved with the model and follows `.to()`.

    Args:
        momentum: in [0, 1]. 0 is the batch's own number, which with `update` may be one averaged over ranks.
        initial: the value to start from, above 0.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> normalizer = ik.EMANormalizer()
        >>> loss = ik.SigmoidFocalLoss(reduction="sum", normalizer=normalizer)
        >>> loss(torch.zeros(2, 3), torch.tensor([1, -1]))
        tensor(0.0077)
        >>> normalizer.value
        tensor(90.1000)
    """

    value: Tensor

    def __init__(self, momentum: float = 0.9, initial: float = 100.0) -> None:
        super().__init__()
        check_number("momentum", momentum, 0.0, 1.0)
        check_number("initial", initial, -math.inf, math.inf)
        if initial <= 0:
            raise ValueError(f"initial must be positive, got {initial}")
        self.momentum, self.initial = float(momentum), float(initial)
        self.register_buffer("value", torch.tensor(self.initial))

    def update(self, positives: Tensor | float) -> Tensor:
        """Moves, in training mode, by the positives of a batch, and returns the value: a 0-d tensor of its own. A
        number below 0, which a loss on a CPU counts where a target is out of range, moves nothing."""
        value = self.value
        with torch.no_grad():
            positives = positives.to(value) if isinstance(positives, Tensor) else value.new_full((), positives)
            if positives.dim():
                raise ValueError(f"positives must be a number or a 0-d tensor, got shape {tuple(positives.shape)}")
            if self.training:
                value.lerp_(torch.where(positives < 0, value, positives.clamp(min=1)), 1 - self.momentum)
        return value.clone()

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, initial={self.initial}"


Normalizer = float | Tensor | str | EMANormalizer | None
