"""The softmax losses as torch ops: schema, fake and backends."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbal_kernels.ops import backends
from imbal_kernels.ops.fused import ELEMENTWISE, FAMILIES, NO_LOSS, SUM, Family, fused_loss
from imbal_kernels.reference import softmax as reference
from imbal_kernels.softmax_arguments import SoftmaxProblem

# upstream: 0-d, or (N, S) for an elementwise loss
_ARGUMENTS = (
    "Tensor input, Tensor target, Tensor? weight, Tensor? logit_adjustment, Tensor? scale_tensor, Tensor? upstream, "
    "float gamma, float label_smoothing, float scale, int ignore_index, int loss_mode, bool want_grad, bool fp32_loss"
)
_SUM = "Tensor target, Tensor? weight, int num_classes, int ignore_index"

backends.library.define(f"softmax_loss({_ARGUMENTS}) -> (Tensor, Tensor)")
backends.library.define(f"sum_weights({_SUM}) -> Tensor")
# The C++ side of the first, which also returns the first row with a bad class id, or -1.
backends.library.define(f"_softmax_loss_cpu({_ARGUMENTS}) -> (Tensor, Tensor, int)")

_ops = torch.ops.imbal_kernels


@torch.library.register_fake("imbal_kernels::softmax_loss", lib=backends.library)
def _softmax_loss_fake(input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    loss_mode, want_grad, fp32_loss = args[-3:]
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    shape = {NO_LOSS: (0,), ELEMENTWISE: (input.shape[0], input.shape[2]), SUM: ()}[loss_mode]
    dtype = input.dtype if loss_mode == ELEMENTWISE and not fp32_loss else wide
    return input.new_empty(shape, dtype=dtype), input.new_empty(input.shape if want_grad else (0,))


@torch.library.register_fake("imbal_kernels::sum_weights", lib=backends.library)
def _sum_weights_fake(target: Tensor, weight: Tensor | None, *args: Any) -> Tensor:
    return target.new_empty((), dtype=torch.int64 if weight is None else weight.dtype)


@torch.library.impl("imbal_kernels::softmax_loss", "CPU", lib=backends.library)
def _softmax_loss_cpu(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    loss, grad, bad_row = _ops._softmax_loss_cpu(input, target, *args)
    if bad_row >= 0:
        raise_bad_row(target, bad_row, input.shape[1])
    return loss, grad


@torch.library.impl("imbal_kernels::softmax_loss", "CUDA", lib=backends.library)
def _softmax_loss_cuda(input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    from imbal_kernels import kernels

    return kernels.softmax_loss(input, *args)


@torch.library.impl("imbal_kernels::sum_weights", "CUDA", lib=backends.library)
def _sum_weights_cuda(*args: Any) -> Tensor:
    return reference.sum_weights(*args)


def raise_bad_row(target: Tensor, row: int, classes: int) -> None:
    """The ValueError for a class id out of range; rows are counted through all samples and positions."""
    raise ValueError(
        f"target {target.flatten()[row].item()} at row {row} is out of range: class ids are 0 to {classes - 1}"
    )


def sum_weights(target: Tensor, weight: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    """The sum of the weights of all class ids that are not ignored, their number without weights: a 0-d tensor."""
    if backends.in_transform() or not backends.has_kernels(target):
        return reference.sum_weights(target, weight, num_classes, ignore_index)
    return _ops.sum_weights(target, weight, num_classes, ignore_index)


def softmax_loss(problem: SoftmaxProblem) -> Tensor:
    return fused_loss("softmax", problem)


def _raw(
    problems: Sequence[SoftmaxProblem], upstream: Tensor | None, loss_mode: int, want_grad: bool
) -> tuple[Tensor, list[Tensor]]:
    (p,) = problems
    loss, grad = _ops.softmax_loss(
        p.input, p.target, p.weight, p.logit_adjustment, p.scale_tensor, upstream, p.gamma, p.label_smoothing, p.scale,
        p.ignore_index, loss_mode, want_grad, p.fp32_loss,
    )  # fmt: skip
    return loss, [grad]


def _fits(problem: SoftmaxProblem) -> bool:
    return not (problem.target.requires_grad and torch.is_grad_enabled())


def _check(problem: SoftmaxProblem, by_kernel: bool, _place: str) -> None:
    if problem.probabilities or by_kernel:
        return
    backends.refuse_capture(problem.input)
    row = int(reference.first_bad_row(problem))
    if row < problem.target.numel():
        raise_bad_row(problem.target, row, problem.input.shape[1])


FAMILIES["softmax"] = Family(SoftmaxProblem, 5, _raw, reference.softmax_loss, _fits, _check)
