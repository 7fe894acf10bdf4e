"""The specification: every loss, search and sampler in plain PyTorch, name for name and argument for argument.

Any device, twice differentiable, no kernels. The kernels are tested against these functions, and
stand back for them where no kernel fits.
"""

from imbal_kernels.reference.dense import dense_focal_loss
from imbal_kernels.reference.neighbors import knn
from imbal_kernels.reference.samplers import (
    adasyn,
    borderline_smote,
    random_oversample,
    random_undersample,
    smote,
)
from imbal_kernels.reference.sampling import interpolate
from imbal_kernels.reference.sigmoid import binary_cross_entropy_with_logits, sigmoid_focal_loss
from imbal_kernels.reference.sigmoid_losses import (
    asymmetric_loss,
    elementwise_loss,
    quality_focal_loss,
    varifocal_loss,
)
from imbal_kernels.reference.softmax import cross_entropy, softmax_focal_loss

__all__ = [
    "adasyn",
    "asymmetric_loss",
    "binary_cross_entropy_with_logits",
    "borderline_smote",
    "cross_entropy",
    "dense_focal_loss",
    "elementwise_loss",
    "interpolate",
    "knn",
    "quality_focal_loss",
    "random_oversample",
    "random_undersample",
    "sigmoid_focal_loss",
    "smote",
    "softmax_focal_loss",
    "varifocal_loss",
]
