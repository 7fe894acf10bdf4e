"""The specification: every loss in plain PyTorch, name for name and argument for argument.

Any device, twice differentiable, no kernels. The kernels are tested against these functions, and
stand back for them where no kernel fits.
"""

from imbal_kernels.reference.sigmoid import binary_cross_entropy_with_logits, sigmoid_focal_loss
from imbal_kernels.reference.softmax import cross_entropy, softmax_focal_loss

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "sigmoid_focal_loss", "softmax_focal_loss"]
