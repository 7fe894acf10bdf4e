"""The registered torch ops, one file per family. The only place that knows about devices."""

from imbal_kernels.ops.sigmoid import count_targets, sigmoid_loss
from imbal_kernels.ops.softmax import softmax_loss

__all__ = ["count_targets", "sigmoid_loss", "softmax_loss"]
