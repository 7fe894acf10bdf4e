"""In-place rescaling of stored gradients by a device scalar."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .launch import Launch, cdiv, on_device
from .operands import odd, size_of

BLOCK = 4096
PROGRAMS = 2048  # at most: more would take longer to start than to find an upstream of 1


@triton.jit
def _rescale_block(ptr, upstream, offsets, mask):
    grad = tl.load(ptr + offsets, mask=mask)
    tl.store(ptr + offsets, (grad.to(upstream.dtype) * upstream).to(grad.dtype), mask=mask)


@triton.jit
def _rescale_kernel(grad_ptrs, upstream_ptr, numels, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Each grad *= upstream, decided on the device: nothing is touched when upstream is 1."""
    upstream = tl.load(upstream_ptr)
    if upstream != 1.0:
        offsets = tl.arange(0, BLOCK)
        for i in tl.static_range(COUNT):
            numel = size_of(numels[i]).to(tl.int64)
            blocks = numel // BLOCK
            for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
                _rescale_block(grad_ptrs[i] + block * BLOCK, upstream, offsets, None)
            if tl.program_id(0) == 0:  # a mask by element would split the vectors of the others
                _rescale_block(grad_ptrs[i] + blocks * BLOCK, upstream, offsets, offsets < (numel % BLOCK).to(tl.int32))


def plan(grads: Sequence[torch.Tensor], upstream: torch.Tensor) -> Launch:
    numels = [grad.numel() for grad in grads]
    args = dict(grad_ptrs=tuple(grads), upstream_ptr=upstream, numels=odd(numels), COUNT=len(grads), BLOCK=BLOCK)
    return Launch(_rescale_kernel, min(cdiv(sum(numels), BLOCK), PROGRAMS), args)


def rescale_(grads: Sequence[torch.Tensor], upstream: torch.Tensor) -> None:
    """Multiply contiguous grads by the 0-d upstream, in place, in one launch; returns at once when it is 1."""
    grads = [grad for grad in grads if grad.numel()]
    if grads:
        compute = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
        with on_device(grads[0]):
            plan(grads, upstream.to(compute)).run()
