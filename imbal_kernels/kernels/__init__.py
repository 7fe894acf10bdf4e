"""Triton kernels on CUDA tensors (and on CPU tensors under TRITON_INTERPRET=1)."""

from .count import count_targets
from .levels import sigmoid_loss_levels
from .rescale import rescale_
from .sigmoid import sigmoid_loss
from .softmax import softmax_loss

__all__ = ["count_targets", "rescale_", "sigmoid_loss", "sigmoid_loss_levels", "softmax_loss"]
