"""In-place rescaling of a stored gradient by a device scalar."""

import torch
import triton
import triton.language as tl

from .launch import Launch, cdiv, on_device

BLOCK = 4096
PROGRAMS = 2048  # at most: more would take longer to start than to find an upstream of 1


@triton.jit
def _rescale_block(ptr, upstream, offsets, mask):
    grad = tl.load(ptr + offsets, mask=mask)
    tl.store(ptr + offsets, (grad.to(upstream.dtype) * upstream).to(grad.dtype), mask=mask)


@triton.jit(do_not_specialize=["numel"])
def _rescale_kernel(grad_ptr, upstream_ptr, numel: tl.int64, BLOCK: tl.constexpr):
    """grad *= upstream, decided on the device: nothing is touched when upstream is 1."""
    upstream = tl.load(upstream_ptr)
    if upstream != 1.0:
        offsets = tl.arange(0, BLOCK)
        blocks = numel // BLOCK
        for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
            _rescale_block(grad_ptr + block * BLOCK, upstream, offsets, None)
        if tl.program_id(0) == 0:  # a mask by element would split the vectors of the others
            _rescale_block(grad_ptr + blocks * BLOCK, upstream, offsets, offsets < (numel % BLOCK).to(tl.int32))


def plan(grad: torch.Tensor, upstream: torch.Tensor) -> Launch:
    args = dict(grad_ptr=grad, upstream_ptr=upstream, numel=grad.numel(), BLOCK=BLOCK)
    return Launch(_rescale_kernel, min(cdiv(grad.numel(), BLOCK), PROGRAMS), args)


def rescale_(grad: torch.Tensor, upstream: torch.Tensor) -> None:
    """Multiply a contiguous grad by the 0-d upstream, in place; returns at once when it is 1."""
    if grad.numel():
        compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
        with on_device(grad):
            plan(grad, upstream.to(compute)).run()
