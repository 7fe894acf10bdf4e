"""Losses and resampling for imbalanced data, fused on the device."""

from imbal_kernels import reference
from imbal_kernels.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from imbal_kernels.modules import (
    BCEWithLogitsLoss,
    BinaryCrossEntropyWithLogits,
    CrossEntropyLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)
from imbal_kernels.weights import binary_pos_weight, class_counts, class_weights, log_prior, prior_bias

__version__ = "0.1.0"

__all__ = [
    "BCEWithLogitsLoss",
    "BinaryCrossEntropyWithLogits",
    "CrossEntropyLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "binary_cross_entropy_with_logits",
    "binary_pos_weight",
    "class_counts",
    "class_weights",
    "cross_entropy",
    "log_prior",
    "prior_bias",
    "reference",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]
