"""Losses and resampling for imbalanced data, fused on the device."""

from imbal_kernels import reference
from imbal_kernels.dense import dense_focal_loss
from imbal_kernels.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from imbal_kernels.linear import linear_cross_entropy, linear_focal_loss
from imbal_kernels.modules import (
    BCEWithLogitsLoss,
    BinaryCrossEntropyWithLogits,
    CrossEntropyLoss,
    DenseFocalLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)
from imbal_kernels.sampling.adasyn import adasyn
from imbal_kernels.sampling.borderline import borderline_smote
from imbal_kernels.sampling.knn import knn
from imbal_kernels.sampling.random import random_oversample, random_undersample
from imbal_kernels.sampling.resampling import Provenance
from imbal_kernels.sampling.smote import smote
from imbal_kernels.weights import binary_pos_weight, class_counts, class_weights, log_prior, prior_bias

__version__ = "0.1.0"

__all__ = [
    "BCEWithLogitsLoss",
    "BinaryCrossEntropyWithLogits",
    "CrossEntropyLoss",
    "DenseFocalLoss",
    "Provenance",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "adasyn",
    "binary_cross_entropy_with_logits",
    "binary_pos_weight",
    "borderline_smote",
    "class_counts",
    "class_weights",
    "cross_entropy",
    "dense_focal_loss",
    "knn",
    "linear_cross_entropy",
    "linear_focal_loss",
    "log_prior",
    "prior_bias",
    "random_oversample",
    "random_undersample",
    "reference",
    "sigmoid_focal_loss",
    "smote",
    "softmax_focal_loss",
]
