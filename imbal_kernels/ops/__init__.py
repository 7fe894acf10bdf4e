"""The registered torch ops, one file per family. The only place that knows about devices."""

from imbal_kernels.ops.neighbors import knn
from imbal_kernels.ops.sigmoid import count_targets, sigmoid_loss

__all__ = ["count_targets", "knn", "sigmoid_loss"]
