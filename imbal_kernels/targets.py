"""What targets hold: values or class ids, what is ignored, what is an object."""

import warnings

import torch
from torch import Tensor

from imbal_kernels.checks import FLOATS, INTEGERS, check_same_device, kind_of


def targets_are_dense(input_name: str, name: str, input: Tensor, target: Tensor) -> bool:
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {kind_of(target)}")
    check_same_device(name, target, input)
    if target.dtype not in FLOATS + INTEGERS + (torch.bool,):
        raise TypeError(f"{name} must be real, integer or bool, got {target.dtype}")
    if target.shape == input.shape:
        return True
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"{name} must have the shape of {input_name}, {tuple(input.shape)}, or {tuple(input.shape[:-1])} "
            f"for class ids, got {tuple(target.shape)}"
        )
    if target.dtype not in INTEGERS:
        values = f", values the shape of {input_name}: {name}[:, None]" if target.dim() and input.shape[-1] == 1 else ""
        raise TypeError(
            f"{name} of shape {tuple(target.shape)}: class ids must be integers{values}, got {target.dtype}"
        )
    if input.shape[-1] == 1 and not torch.compiler.is_compiling():
        warnings.warn(
            f"{name} without the class dimension are class ids, and with one class id 0 is the object, 1 and -1 are "
            f"background: for the 0 / 1 labels of a binary task pass {name}[..., None]",
            stacklevel=4,
        )
    return False


def _wide(target: Tensor) -> Tensor:
    """Compared as it is, uint8 156 would be -100, and int8 ids would be less than -56 where C is 200."""
    return target if target.is_floating_point() else target.long()


def is_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Where a target equals ignore_index."""
    return _wide(target) == ignore_index


def holds_object(target: Tensor, num_classes: int, ignore_index: int, dense: bool) -> Tensor:
    """Which rows (class ids) or elements (values) are positives."""
    positive = (target > 0) if dense else (target >= 0) & (_wide(target) < num_classes)
    return positive & ~is_ignored(target, ignore_index)


def out_of_range(ids: Tensor, least: int, most: int, ignore_index: int) -> Tensor:
    """Which class ids are bad."""
    wide = _wide(ids)
    return ((wide < least) | (wide > most)) & ~is_ignored(ids, ignore_index)


def per_image(positive: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (images * max(1, positives of the image)), (images,), from (images, ...) marks."""
    return (positive.flatten(1).sum(1).clamp(min=1) * positive.shape[0]).to(dtype).reciprocal()
