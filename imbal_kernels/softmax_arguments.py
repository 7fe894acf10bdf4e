"""From the arguments of a softmax loss to one checked problem, as arguments.py does for the sigmoid family."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbal_kernels import checks
from imbal_kernels.factors import scale_of

MOST_CLASSES = 262_144

# sum_weights(target, weight, num_classes, ignore_index) -> 0-d tensor
SumWeights = Callable[[Tensor, Tensor | None, int, int], Tensor]


class SoftmaxProblem(NamedTuple):
    """A softmax loss with nothing left to decide; the tensors come first.

    `weight`, `logit_adjustment` and `scale_tensor` have the dtype that arithmetic is done in.
    """

    input: Tensor  # (N, C, S), contiguous
    target: Tensor  # (N, S) class ids or (N, C, S) probabilities, contiguous
    weight: Tensor | None  # (C,)
    logit_adjustment: Tensor | None  # (C,)
    scale_tensor: Tensor | None
    gamma: float
    label_smoothing: float
    scale: float
    ignore_index: int
    elementwise: bool
    fp32_loss: bool

    @property
    def probabilities(self) -> bool:
        return self.target.dim() == 3

    def shaped(self, loss: Tensor, input: Tensor) -> Tensor:
        """The loss in the shape that belongs to the user's `input`."""
        if not self.elementwise:
            return loss
        return loss.reshape(_ids_shape(input))


def softmax_problem(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    logit_adjustment: Tensor | None,
    normalizer: float | Tensor | str | None,
    loss_weight: float | Tensor,
    process_group: Any,
    sum_weights: SumWeights,
) -> SoftmaxProblem:
    """Checks the arguments of a softmax loss and folds reduction and normalizer into a scale. `sum_weights` is
    ops.sum_weights or reference.sum_weights."""
    checks.check_reduction(reduction, normalizer, process_group)
    checks.check_tensor("input", input)
    if input.dim() == 0 or input.shape[min(input.dim() - 1, 1)] == 0:
        raise ValueError(f"input must be (C,), (N, C) or (N, C, d1, ...) with C at least 1, got {tuple(input.shape)}")
    rows = input[None, :, None] if input.dim() == 1 else input.reshape(*input.shape[:2], math.prod(input.shape[2:]))
    classes = rows.shape[1]
    if classes > MOST_CLASSES:
        raise ValueError(f"input must have at most {MOST_CLASSES} classes, got {classes}")
    probabilities = _targets_are_probabilities(input, target)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    checks.check_options(gamma, label_smoothing, ignore_index, loss_weight, input)
    if probabilities and ignore_index >= 0:
        raise ValueError("ignore_index is not supported for floating point target")
    weight = per_class("weight", weight, input, classes, dtype)
    logit_adjustment = per_class("logit_adjustment", logit_adjustment, input, classes, dtype)
    flat = target.reshape(rows.shape if probabilities else (rows.shape[0], rows.shape[2])).contiguous()

    divisor = softmax_divisor(
        normalizer, reduction, flat, weight, classes, ignore_index, probabilities, input, sum_weights
    )
    scale, scale_tensor = scale_of(loss_weight, divisor, dtype)
    return SoftmaxProblem(
        input=rows.contiguous(),
        target=flat,
        weight=weight,
        logit_adjustment=logit_adjustment,
        scale_tensor=scale_tensor,
        gamma=float(gamma),
        label_smoothing=float(label_smoothing),
        scale=scale,
        ignore_index=ignore_index,
        elementwise=reduction == "none",
        fp32_loss=checks.under_autocast(input),
    )


def softmax_divisor(
    normalizer: float | Tensor | str | None, reduction: str, target: Tensor, weight: Tensor | None, classes: int,
    ignore_index: int, probabilities: bool, input: Tensor, sum_weights: SumWeights,
) -> float | Tensor:  # fmt: skip
    """What the sum over all of a batch is divided by; target: (N, S) class ids or (N, C, S) probabilities."""
    if isinstance(normalizer, Tensor):
        return checks.scalar_tensor("normalizer", normalizer, input)
    if normalizer == "positives":
        if probabilities:
            raise ValueError('normalizer="positives" counts class ids: it needs a target of class ids')
        return sum_weights(target, None, classes, ignore_index).clamp(min=1)
    if isinstance(normalizer, str):
        raise ValueError(f'normalizer must be a number, a 0-d tensor or "positives", got "{normalizer}"')
    if normalizer is not None:
        return float(normalizer)
    if reduction != "mean":
        return 1.0
    if probabilities:  # a tensor: compiled code takes a number for a constant
        return target.new_full((), target.shape[0] * target.shape[2], dtype=torch.int64)
    return sum_weights(target, weight, classes, ignore_index)


def _ids_shape(input: Tensor) -> torch.Size:
    """The shape of class ids, and of the elementwise loss: that of the logits without their classes."""
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size()


def _targets_are_probabilities(input: Tensor, target: Tensor) -> bool:
    """As F.cross_entropy tells them apart: by shape."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a Tensor, got {type(target).__name__}")
    checks.check_same_device("target", target, input)
    if target.shape == input.shape:
        if target.dtype not in checks.FLOATS:
            raise TypeError(f"Expected floating point type for target with class probabilities, got {target.dtype}")
        return True
    expected = _ids_shape(input)
    if target.shape != expected:
        raise ValueError(
            f"target must have shape {tuple(expected)} for class ids or {tuple(input.shape)} for probabilities, "
            f"got {tuple(target.shape)}"
        )
    if target.dtype not in checks.INTEGERS:
        raise TypeError(f"target of shape {tuple(target.shape)}: class ids must be integers, got {target.dtype}")
    return False


def per_class(name: str, value: Tensor | None, input: Tensor, classes: int, dtype: torch.dtype) -> Tensor | None:
    """One value for each class, in the dtype that arithmetic is done in."""
    if value is None:
        return None
    checks.check_optional_tensor(name, value)
    checks.check_constant(name, value, input)
    if value.shape != (classes,):
        raise ValueError(f"{name} must have one value per class, shape ({classes},), got {tuple(value.shape)}")
    return value.to(dtype).contiguous()
