"""Losses and resampling for imbalanced data, fused on the device."""

from imbal_kernels import presets, reference
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.dense import dense_focal_loss
from imbal_kernels.formula import Formula
from imbal_kernels.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from imbal_kernels.linear import linear_cross_entropy, linear_focal_loss
from imbal_kernels.modules import (
    AsymmetricLoss,
    BCEWithLogitsLoss,
    BinaryCrossEntropyWithLogits,
    CrossEntropyLoss,
    DenseFocalLoss,
    QualityFocalLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    VarifocalLoss,
)
from imbal_kernels.normalizer import EMANormalizer
from imbal_kernels.sampling.adasyn import adasyn
from imbal_kernels.sampling.borderline import borderline_smote
from imbal_kernels.sampling.knn import knn
from imbal_kernels.sampling.random import random_oversample, random_undersample
from imbal_kernels.sampling.resampling import Provenance
from imbal_kernels.sampling.smote import smote
from imbal_kernels.sigmoid_losses import asymmetric_loss, elementwise_loss, quality_focal_loss, varifocal_loss
from imbal_kernels.strategy import Recommendation, recommend
from imbal_kernels.weights import binary_pos_weight, class_counts, class_weights, log_prior, prior_bias

__version__ = "0.1.0"

__all__ = [
    "AsymmetricLoss",
    "BCEWithLogitsLoss",
    "BinaryCrossEntropyWithLogits",
    "ClassStatistics",
    "CrossEntropyLoss",
    "DenseFocalLoss",
    "EMANormalizer",
    "Formula",
    "Provenance",
    "QualityFocalLoss",
    "Recommendation",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "adasyn",
    "asymmetric_loss",
    "binary_cross_entropy_with_logits",
    "binary_pos_weight",
    "borderline_smote",
    "class_counts",
    "class_weights",
    "cross_entropy",
    "dense_focal_loss",
    "elementwise_loss",
    "knn",
    "linear_cross_entropy",
    "linear_focal_loss",
    "log_prior",
    "presets",
    "prior_bias",
    "quality_focal_loss",
    "random_oversample",
    "random_undersample",
    "recommend",
    "reference",
    "sigmoid_focal_loss",
    "smote",
    "softmax_focal_loss",
    "varifocal_loss",
]
