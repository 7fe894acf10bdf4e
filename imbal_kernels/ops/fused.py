"""The way to a fused loss and the autograd function around it, the same for every family.

The forward of a reduced loss also writes its gradient; backward hands it over the first time, rescaled
by the upstream gradient where that is not 1, and recomputes it from the logits any later time. Elementwise
losses, and fp16 (whose gradients would underflow before a loss scaler sees them), always recompute.
On a CPU storing is the fastest while upstream is 1, which a forward can't know; otherwise rescaling takes about as
long as recomputing (docs/benchmarks.md: "ours", "ours, upstream 2" and "ours, recomputed").
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbal_kernels.ops import backends

NO_LOSS, ELEMENTWISE, SUM = 0, 1, 2

_ops = torch.ops.imbal_kernels


class Family(NamedTuple):
    """What is particular to a family of losses: its problem, whose tensors come first and whose input is the very
    first, its raw op and its reference."""

    problem: Callable[..., Any]
    tensors: int
    # problem, upstream, loss mode, want_grad -> loss, gradient, and what else the forward pass is to return
    raw: Callable[[Any, Tensor | None, int, bool], tuple[Tensor, ...]]
    reference: Callable[[Any], Tensor]
    fits: Callable[[Any], bool]  # whether the kernels of the problem's device take it and give the gradients asked for
    check: Callable[[Any, bool], None]  # raises for what tensors hold; by_kernel: but for what the kernel looks at


FAMILIES: dict[str, Family] = {}


def fused_loss(name: str, problem: Any) -> Any:
    """The loss of a problem, by the fastest backend that can give it and every gradient asked for; from a raw op that
    has more to return a tuple."""
    family = FAMILIES[name]
    if backends.in_transform():
        return family.reference(problem)
    kernels = backends.has_kernels(problem.input) and family.fits(problem)
    cpu = problem.input.device.type == "cpu"
    if not torch.compiler.is_compiling() and (cpu or backends.checks_requested()):
        family.check(problem, kernels and cpu)
    if not kernels:
        return family.reference(problem)
    differentiate = torch.is_grad_enabled() and problem.input.requires_grad
    return _FusedLoss.apply(name, differentiate, *problem)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, differentiate: bool, *fields: Any) -> Tensor | tuple[Tensor, ...]:
        family = FAMILIES[name]
        problem = family.problem(*fields)
        keep = differentiate and not problem.elementwise and problem.input.dtype != torch.float16
        loss, grad, *more = family.raw(problem, None, ELEMENTWISE if problem.elementwise else SUM, keep)
        ctx.save_for_backward(*fields[: family.tensors])
        ctx.name = name
        ctx.options = fields[family.tensors :]
        ctx.kept = keep
        ctx.grad = grad if keep else None
        if not more:
            return loss
        ctx.mark_non_differentiable(*more)
        return loss, *more

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        family = FAMILIES[ctx.name]
        problem = family.problem(*ctx.saved_tensors, *ctx.options)
        grad, ctx.grad = ctx.grad, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative may follow
            with torch.enable_grad():
                loss = family.reference(problem)
                (grad,) = torch.autograd.grad(loss, problem.input, upstream, create_graph=True)
        elif not ctx.kept:
            grad = family.raw(problem, compact(upstream), NO_LOSS, True)[1]
        else:
            grad = family.raw(problem, None, NO_LOSS, True)[1] if grad is None else grad
            grad = rescaled(grad, upstream)
        return (None, None, grad) + (None,) * (len(problem) - 1)


def rescaled(grad: Tensor, upstream: Tensor) -> Tensor:
    """A gradient that nobody else holds, times a 0-d upstream gradient: in place where that is allowed."""
    compiling = torch.compiler.is_compiling()
    batched = not compiling and torch._C._functorch.is_legacy_batchedtensor(upstream)  # autograd's own vmap
    captured = grad.is_cuda and torch.cuda.is_current_stream_capturing()
    if compiling or batched or captured or not backends.has_kernels(grad):
        # A replayed backward must not rescale twice, and a batch of upstream gradients can't in place.
        return grad * upstream.to(grad.dtype)
    _ops.rescale_(grad, upstream)
    return grad


def compact(upstream: Tensor) -> Tensor:
    """An upstream gradient as the kernels take it: 0-d in the compute dtype, or contiguous."""
    expanded = upstream.dim() == 2 and upstream.numel() > 0 and not any(upstream.stride())
    if expanded:
        upstream = upstream[0, 0]
    if upstream.dim() == 0:
        return upstream if upstream.dtype == torch.float64 else upstream.float()
    return upstream.contiguous()
