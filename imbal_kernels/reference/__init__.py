"""The specification: every loss and search in plain PyTorch, name for name and argument for argument.

Any device, twice differentiable, no kernels. The kernels are tested against these functions, and
stand back for them where no kernel fits.
"""

from imbal_kernels.reference.neighbors import knn
from imbal_kernels.reference.sigmoid import binary_cross_entropy_with_logits, sigmoid_focal_loss

__all__ = ["binary_cross_entropy_with_logits", "knn", "sigmoid_focal_loss"]
