"""The registered torch ops, one file per family. The only place that knows about devices."""

from imbal_kernels.ops.linear import linear_loss
from imbal_kernels.ops.neighbors import knn
from imbal_kernels.ops.sampling import philox, smote_generate
from imbal_kernels.ops.sigmoid import count_targets, sigmoid_loss, sigmoid_losses
from imbal_kernels.ops.softmax import softmax_loss, sum_weights

__all__ = [
    "count_targets",
    "knn",
    "linear_loss",
    "philox",
    "sigmoid_loss",
    "sigmoid_losses",
    "smote_generate",
    "softmax_loss",
    "sum_weights",
]
