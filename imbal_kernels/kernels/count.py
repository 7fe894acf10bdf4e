"""Counting targets on the device, for a normalizer that must be known before gradients are written."""

import torch
import triton
import triton.language as tl

from .launch import Launch, on_device

BLOCK = 4096


@triton.jit(do_not_specialize=["numel", "num_classes", "ignore_index"])
def _count_kernel(
    target_ptr, out_ptr, numel: tl.int64, num_classes: tl.int64, ignore_index: tl.int64,
    DENSE: tl.constexpr, POSITIVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Integer atomics: any order of additions gives the same count."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    mask = offsets < tl.minimum(numel - start, BLOCK).to(tl.int32)
    target = tl.load(target_ptr + start + offsets, mask=mask, other=0)
    if target.dtype.is_floating():
        keep = mask & (target != ignore_index.to(tl.float64))
    else:
        keep = mask & (target.to(tl.int64) != ignore_index)
    if POSITIVES:
        if DENSE:
            keep = keep & (target > 0)
        else:
            keep = keep & (target >= 0) & (target.to(tl.int64) < num_classes)
    tl.atomic_add(out_ptr, tl.sum(keep.to(tl.int32)).to(tl.int64))


def plan(target, num_classes, ignore_index, dense, positives):
    if target.dtype == torch.bool:
        target = target.view(torch.uint8)
    out = torch.zeros((), dtype=torch.int64, device=target.device)
    args = dict(
        target_ptr=target, out_ptr=out, numel=target.numel(), num_classes=num_classes, ignore_index=ignore_index,
        DENSE=dense, POSITIVES=positives, BLOCK=BLOCK,
    )  # fmt: skip
    return out, [Launch(_count_kernel, triton.cdiv(target.numel(), BLOCK), args)] if target.numel() else []


def count_targets(target, num_classes, ignore_index, dense, positives):
    """Targets that are not ignored, or only the positives among them: the raw op, see ops."""
    with on_device(target):
        out, launches = plan(target, num_classes, ignore_index, dense, positives)
        for launch in launches:
            launch.run()
    return out
