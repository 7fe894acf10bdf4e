"""The way to a fused loss and the autograd function around it, the same for every family.

The forward of a reduced loss also writes its gradient; backward hands it over the first time, rescaled
by the upstream gradient where that is not 1, and recomputes it from the logits any later time. Elementwise
losses, and fp16 (whose gradients would underflow before a loss scaler sees them), always recompute.
On a CPU storing is the fastest while upstream is 1, which a forward can't know; otherwise rescaling takes about as
long as recomputing (docs/benchmarks.md: "ours", "ours, upstream 2" and "ours, recomputed").
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbal_kernels.ops import backends

NO_LOSS, ELEMENTWISE, SUM = 0, 1, 2

_ops = torch.ops.imbal_kernels


class Family(NamedTuple):
    """What is particular to a family of losses: its problem, whose tensors come first and whose input is the very
    first, its raw op and its reference."""

    problem: Any  # a NamedTuple class
    tensors: int
    # problems whose losses add up, upstream, loss mode, want_grad -> loss, the gradient of each, and what else the
    # forward pass is to return
    raw: Callable[[Sequence[Any], Tensor | None, int, bool], tuple[Any, ...]]
    reference: Callable[[Any], Tensor]
    fits: Callable[[Any], bool]  # whether the kernels of the problem's device take it and give the gradients asked for
    # raises for what tensors hold; by_kernel: but for what the kernel looks at; place: what to say behind a row
    check: Callable[[Any, bool, str], None]


FAMILIES: dict[str, Family] = {}


def fused_loss(name: str, *problems: Any) -> Any:
    """The loss of a problem, or of several that differ in tensors alone, added up: by the fastest backend that can give
    it and every gradient asked for. From a raw op that has more to return it is a tuple."""
    family = FAMILIES[name]
    if backends.in_transform():
        return _reference(family, problems)
    input = problems[0].input
    kernels = backends.has_kernels(input) and all(family.fits(problem) for problem in problems)
    cpu = input.device.type == "cpu"
    if not torch.compiler.is_compiling() and (cpu or backends.checks_requested()):
        for i, problem in enumerate(problems):
            family.check(problem, kernels and cpu, place_of(i, problems))
    if not kernels:
        return _reference(family, problems)
    differentiate = torch.is_grad_enabled() and any(problem.input.requires_grad for problem in problems)
    first, others = problems[0], (_own(problem[: family.tensors], problems[0]) for problem in problems[1:])
    tensors, options = first[: family.tensors], first[family.tensors :]
    return _FusedLoss.apply(name, differentiate, options, *tensors, *itertools.chain(*others))


def place_of(level: int, levels: Sequence[Any]) -> str:
    """What an error says behind a row."""
    return f" of levels[{level}]" if len(levels) > 1 else ""


def _own(tensors: Sequence[Tensor | None], first: Any) -> list[Tensor | None]:
    """None for a tensor that the first problem has as well: a compiler takes each but once."""
    return [tensors[0], *(None if own is shared else own for own, shared in zip(tensors[1:], first[1:], strict=False))]


def _reference(family: Family, problems: Sequence[Any]) -> Tensor:
    return functools.reduce(torch.add, [family.reference(problem) for problem in problems])


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, differentiate: bool, options: tuple[Any, ...], *tensors: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        family = FAMILIES[name]
        step = family.tensors
        first = family.problem(*tensors[:step], *options)
        problems = [first]
        for i in range(step, len(tensors), step):
            own = [shared if own is None else own for own, shared in zip(tensors[i : i + step], first, strict=False)]
            problems.append(family.problem(*own, *options))
        keep = differentiate and not first.elementwise and first.input.dtype != torch.float16
        loss, grads, *more = family.raw(problems, None, ELEMENTWISE if first.elementwise else SUM, keep)
        # A tensor that is not saved in this way is lost between a compiled forward and PyTorch's compiled autograd;
        # one that is can't be rescaled in place, as eager mode does.
        compiled = grads if keep and torch.compiler.is_compiling() else []
        ctx.save_for_backward(*itertools.chain(*(problem[: family.tensors] for problem in problems)), *compiled)
        ctx.name = name
        ctx.options = options
        ctx.end = family.tensors * len(problems)
        ctx.kept = keep
        ctx.grads = grads if keep and not compiled else None
        if not more:
            return loss
        ctx.mark_non_differentiable(*more)
        return loss, *more

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        family = FAMILIES[ctx.name]
        saved, size = ctx.saved_tensors, family.tensors
        problems = [family.problem(*saved[i : i + size], *ctx.options) for i in range(0, ctx.end, size)]
        grads, ctx.grads = saved[ctx.end :] or ctx.grads, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative may follow
            grads = _of_reference(family, problems, upstream)
        elif not ctx.kept:
            grads = family.raw(problems, compact(upstream), NO_LOSS, True)[1]
        else:
            grads = family.raw(problems, None, NO_LOSS, True)[1] if grads is None else grads
            grads = rescaled(grads, upstream)
        blank = (None,) * (size - 1)
        others = itertools.chain(*((grad, *blank) for grad in grads[1:]))
        return (None, None, None, grads[0], *blank, *others)


def _of_reference(family: Family, problems: Sequence[Any], upstream: Tensor) -> list[Tensor | None]:
    """The gradients as a graph."""
    asked = [problem.input for problem in problems if problem.input.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(_reference(family, problems), asked, upstream, create_graph=True))
    return [next(found) if problem.input.requires_grad else None for problem in problems]


def rescaled(grads: Sequence[Tensor], upstream: Tensor) -> Sequence[Tensor]:
    """Gradients that nobody else holds, times a 0-d upstream gradient: in place where that is allowed."""
    compiling = torch.compiler.is_compiling()
    batched = not compiling and torch._C._functorch.is_legacy_batchedtensor(upstream)  # autograd's own vmap
    captured = grads[0].is_cuda and torch.cuda.is_current_stream_capturing()
    if compiling or batched or captured or not backends.has_kernels(grads[0]):
        # A replayed backward must not rescale twice, and a batch of upstream gradients can't in place.
        return [grad * upstream.to(grad.dtype) for grad in grads]
    _ops.rescale_(grads, upstream)
    return grads


def compact(upstream: Tensor) -> Tensor:
    """An upstream gradient as the kernels take it: 0-d in the compute dtype, or contiguous."""
    expanded = upstream.dim() == 2 and upstream.numel() > 0 and not any(upstream.stride())
    if expanded:
        upstream = upstream[0, 0]
    if upstream.dim() == 0:
        return upstream if upstream.dtype == torch.float64 else upstream.float()
    return upstream.contiguous()
