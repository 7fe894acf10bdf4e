"""Counting targets on the device, for a normalizer that must be known before gradients are written."""

import torch
import triton
import triton.language as tl

from .launch import Launch, cdiv, on_device

BLOCK = 4096


@triton.jit
def _count_block(ptr, offsets, mask, num_classes, ignore_index, DENSE: tl.constexpr, POSITIVES: tl.constexpr):
    target = tl.load(ptr + offsets, mask=mask)
    if target.dtype.is_floating():
        T: tl.constexpr = tl.float64 if target.dtype == tl.float64 else tl.float32
        keep = target.to(T) != ignore_index.to(T)
    else:
        keep = target.to(tl.int64) != ignore_index
    if POSITIVES:
        keep = keep & (target > 0 if DENSE else target >= 0)
        if not DENSE:
            keep = keep & (target.to(tl.int64) < num_classes)
    if mask is not None:
        keep = keep & mask
    return tl.sum(keep.to(tl.int32))


@triton.jit(do_not_specialize=["numel", "num_classes", "ignore_index"])
def _count_kernel(
    target_ptr, out_ptr, numel: tl.int64, num_classes: tl.int64, ignore_index: tl.int64,
    DENSE: tl.constexpr, POSITIVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Integer atomics: any order of additions gives the same count."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    if start + BLOCK <= numel:  # a mask by element would split the vectors
        count = _count_block(target_ptr + start, offsets, None, num_classes, ignore_index, DENSE, POSITIVES)
    else:
        mask = offsets < (numel - start).to(tl.int32)
        count = _count_block(target_ptr + start, offsets, mask, num_classes, ignore_index, DENSE, POSITIVES)
    tl.atomic_add(out_ptr, count.to(tl.int64), sem="relaxed")


def plan(target, num_classes, ignore_index, dense, positives):
    if target.dtype == torch.bool:
        target = target.view(torch.uint8)
    out = torch.zeros((), dtype=torch.int64, device=target.device)
    args = dict(
        target_ptr=target, out_ptr=out, numel=target.numel(), num_classes=num_classes, ignore_index=ignore_index,
        DENSE=dense, POSITIVES=positives, BLOCK=BLOCK,
    )  # fmt: skip
    return out, [Launch(_count_kernel, cdiv(target.numel(), BLOCK), args)] if target.numel() else []


def count_targets(target, num_classes, ignore_index, dense, positives):
    """Targets that are not ignored, or only the positives among them: the raw op, see ops."""
    with on_device(target):
        out, launches = plan(target, num_classes, ignore_index, dense, positives)
        for launch in launches:
            launch.run()
    return out
