"""The softmax losses as torch ops: schema, fake and backends. On a CPU they run on the reference."""

from typing import Any

import torch
from torch import Tensor

from imbal_kernels.ops import backends
from imbal_kernels.ops.fused import ELEMENTWISE, FAMILIES, NO_LOSS, SUM, Family, fused_loss
from imbal_kernels.reference import softmax as reference
from imbal_kernels.softmax_arguments import SoftmaxProblem

# upstream: 0-d, or (N, S) for an elementwise loss
backends.library.define(
    "softmax_loss(Tensor input, Tensor target, Tensor? weight, Tensor? logit_adjustment, Tensor? scale_tensor, "
    "Tensor? upstream, float gamma, float label_smoothing, float scale, int ignore_index, int loss_mode, "
    "bool want_grad, bool fp32_loss) -> (Tensor, Tensor)"
)

_ops = torch.ops.imbal_kernels


@torch.library.register_fake("imbal_kernels::softmax_loss", lib=backends.library)
def _softmax_loss_fake(input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    loss_mode, want_grad, fp32_loss = args[-3:]
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    shape = {NO_LOSS: (0,), ELEMENTWISE: (input.shape[0], input.shape[2]), SUM: ()}[loss_mode]
    dtype = input.dtype if loss_mode == ELEMENTWISE and not fp32_loss else wide
    return input.new_empty(shape, dtype=dtype), input.new_empty(input.shape if want_grad else (0,))


@torch.library.impl("imbal_kernels::softmax_loss", "CUDA", lib=backends.library)
def _softmax_loss_cuda(input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    from imbal_kernels import kernels

    return kernels.softmax_loss(input, *args)


def softmax_loss(problem: SoftmaxProblem) -> Tensor:
    """The loss of a problem, by the kernel of its device or by the reference."""
    if backends.in_transform():
        return reference.softmax_loss(problem)
    cpu = problem.input.device.type == "cpu"
    if not (problem.probabilities or torch.compiler.is_compiling()) and (cpu or backends.checks_requested()):
        _check_ids(problem)
    gradient_of_target = problem.target.requires_grad and torch.is_grad_enabled()
    if cpu or gradient_of_target or not backends.has_kernels(problem.input):
        return reference.softmax_loss(problem)
    return fused_loss("softmax", problem)


def _check_ids(problem: SoftmaxProblem) -> None:
    backends.refuse_capture(problem.input)
    ids = problem.target.flatten()
    row = int(reference.first_bad_row(problem))
    if row < ids.numel():
        classes = problem.input.shape[1]
        raise ValueError(f"target {ids[row].item()} at row {row} is out of range: class ids are 0 to {classes - 1}")


def _raw(problem: SoftmaxProblem, upstream: Tensor | None, loss_mode: int, want_grad: bool) -> tuple[Tensor, Tensor]:
    p = problem
    return _ops.softmax_loss(
        p.input, p.target, p.weight, p.logit_adjustment, p.scale_tensor, upstream, p.gamma, p.label_smoothing, p.scale,
        p.ignore_index, loss_mode, want_grad, p.fp32_loss,
    )  # fmt: skip


FAMILIES["softmax"] = Family(SoftmaxProblem, 5, _raw, reference.softmax_loss)
