"""Losses and resampling for imbalanced data, fused on the device."""

from imbal_kernels import reference
from imbal_kernels.functional import binary_cross_entropy_with_logits, sigmoid_focal_loss
from imbal_kernels.modules import BCEWithLogitsLoss, BinaryCrossEntropyWithLogits, SigmoidFocalLoss
from imbal_kernels.sampling.knn import knn
from imbal_kernels.weights import binary_pos_weight, class_counts, class_weights, log_prior, prior_bias

__version__ = "0.1.0"

__all__ = [
    "BCEWithLogitsLoss",
    "BinaryCrossEntropyWithLogits",
    "SigmoidFocalLoss",
    "binary_cross_entropy_with_logits",
    "binary_pos_weight",
    "class_counts",
    "class_weights",
    "knn",
    "log_prior",
    "prior_bias",
    "reference",
    "sigmoid_focal_loss",
]
