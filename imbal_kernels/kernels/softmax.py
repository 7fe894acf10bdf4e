"""The raw op softmax_loss on tensors: outputs, specialisation and launches."""

import math
from typing import Any

import torch

from . import formulas, narrow, online, rows, streaming
from .launch import Launch, cdiv, interpreted, on_device

NO_LOSS, ELEMENTWISE, SUM = 0, 1, 2
LOSSES = {NO_LOSS: "none", ELEMENTWISE: "elementwise", SUM: "sum"}
SUM_BLOCK = 1024
# By itemsize: classes up to which a thread takes four whole rows. With more they are longer than a line of the cache,
# 128 bytes, and each access of a warp is to 32 lines; with fp64 they do not fit in registers.
NARROW = {2: 8, 4: 8, 8: 4}
THREADS, WARPS = 128, 4
# Classes at most -> rows a program, width of a tile, warps. 30 to 80 logits a thread, few of its lanes to a row: a
# row's sums are made in registers as far as they can be. A row that needs several warps has a program to itself.
ROWS = {
    10: (64, 2, 1), 16: (64, 4, 1), 40: (32, 8, 1), 128: (16, 16, 1), 256: (8, 32, 1), 512: (4, 64, 1),
    1024: (2, 128, 1), 2048: (1, 128, 1), 4096: (1, 256, 2), 8192: (1, 512, 4), 16384: (1, 1024, 8),
}  # fmt: skip
# Classes up to which more than logits fit in a row's registers: other sums beside theirs, or fp64.
ALONE = 8192
# Classes from which on the whole vectors of unaligned rows move as such, and up to which those are four at most: there
# are two vectors of ends to a row.
PEELED, SHORT = 17, 40
# Beyond, by itemsize: step, lanes (16 bytes a thread), warps.
ONLINE = {2: (4, 2048, 8), 4: (4, 1024, 8), 8: (4, 512, 8)}
# (N, C, S), by itemsize: four classes at a time of 16 bytes' worth of positions a thread.
INSIDE = {2: (4, 512, 2), 4: (4, 512, 4), 8: (4, 256, 4)}


def _kind(gamma: float) -> int:
    """2 * gamma where a product of multiplications and one square root gives the power."""
    return int(2 * gamma) if gamma in (0, 0.5, 1, 1.5, 2, 2.5, 3) else formulas.GENERAL.value


def _layout(input: torch.Tensor, sums: bool) -> tuple[Any, int, int, dict[str, Any]]:
    """(kernel, programs, warps, its arguments) by the shape of the logits, and whether there are sums beside theirs."""
    examples, classes, positions = (*input.shape, 1)[:3]
    itemsize = input.element_size()
    if positions > 1:
        step, lanes, warps = INSIDE[itemsize]
        vector, blocks = math.gcd(positions, 16 // itemsize), cdiv(positions, lanes)
        shape = dict(classes=classes, blocks=blocks, INSIDE=True, STEP=step, LANES=lanes)
        shape |= dict(groups=positions // vector, VECTOR=vector, PEEL=False)
        return online.online_kernel, examples * blocks, warps, shape
    if classes <= NARROW[itemsize]:
        shape = dict(rows=examples, THREADS=THREADS, CLASSES=classes)
        return narrow.narrow_kernel, cdiv(examples, 4 * THREADS), WARPS, shape
    vector = math.gcd(classes, 16 // itemsize)
    whole = min(16 // itemsize, 4 if classes <= SHORT else 8)
    if classes >= PEELED and vector < whole:
        vectors = dict(groups=classes, VECTOR=whole, PEEL=True)
    else:
        vectors = dict(groups=classes // vector, VECTOR=vector, PEEL=False)
    fits = next((size for size in ROWS if classes <= size), None)
    if fits is None or (classes > ALONE and (sums or itemsize == 8)):
        step, lanes, warps = ONLINE[itemsize]
        shape = dict(classes=classes, blocks=1, INSIDE=False, STEP=step, LANES=lanes)
        return online.online_kernel, examples, warps, shape | vectors
    held, width, warps = ROWS[fits]
    if held < 64 and (sums or itemsize == 8):  # half the logits a thread: what goes with them takes as many registers
        held, width, warps = (held // 2, width, warps) if held > 1 else (held, 2 * width, 2 * warps)
    if held == 1 and itemsize == 2:
        width *= 2  # 16 bytes a thread
    repeats = 1 if held <= 2 else max(1, 32 * warps // held)
    shape = dict(rows=examples, ROWS=held, REPEATS=repeats, PIECES=cdiv(classes, width), WIDTH=width)
    return rows.row_kernel, cdiv(examples, held), warps, shape | vectors


def plan(
    input, target, weight, logit_adjustment, scale_tensor, upstream, gamma, label_smoothing, scale, ignore_index,
    loss_mode, want_grad, fp32_loss,
):  # fmt: skip
    """(loss, grad, launches) for the raw op's arguments."""
    itemsize = input.element_size()
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    probabilities = target.shape == input.shape
    kind = _kind(gamma)
    kernel, programs, warps, layout = _layout(input, probabilities or label_smoothing != 0)
    per_row = (input.shape[0], *input.shape[2:])

    grad = torch.empty_like(input) if want_grad else input.new_empty(0)
    partial = None
    if loss_mode == ELEMENTWISE:
        loss = partial = input.new_empty(per_row, dtype=compute if fp32_loss else input.dtype)
    elif loss_mode == SUM:
        loss = input.new_empty((), dtype=compute)
        partial = input.new_empty(programs, dtype=compute)
    else:
        loss = input.new_empty(0)

    args = layout | dict(
        x_ptr=input, target_ptr=target, weight_ptr=weight, adjustment_ptr=logit_adjustment, scale_ptr=scale_tensor,
        upstream_ptr=upstream, loss_ptr=partial, grad_ptr=grad if want_grad else None, ignore_index=ignore_index,
        scale=scale, gamma=gamma, smoothing=label_smoothing, KIND=kind, PROBABILITIES=probabilities,
        SMOOTH=label_smoothing != 0, UPSTREAM="none" if upstream is None else "row" if upstream.dim() else "scalar",
        LOSS=LOSSES[loss_mode], TERMS=7 if kind >= 2 else 8, FAST=itemsize < 8 and not interpreted(),
    )  # fmt: skip
    launches = [Launch(kernel, programs, args, warps)] if input.numel() else []
    if loss_mode == SUM:
        count = programs if input.numel() else 0
        finish = dict(partial_ptr=partial, scale_ptr=scale_tensor, out_ptr=loss, count=count, BLOCK=SUM_BLOCK)
        launches.append(Launch(streaming.sum_kernel, 1, finish))
    return loss, grad, launches


def softmax_loss(
    input, target, weight, logit_adjustment, scale_tensor, upstream, gamma, label_smoothing, scale, ignore_index,
    loss_mode, want_grad, fp32_loss,
):  # fmt: skip
    """Loss and gradient of the softmax family: the raw op, see ops."""
    with on_device(input):
        loss, grad, launches = plan(
            input, target, weight, logit_adjustment, scale_tensor, upstream, gamma, label_smoothing, scale,
            ignore_index, loss_mode, want_grad, fp32_loss,
        )  # fmt: skip
        for launch in launches:
            launch.run()
    return loss, grad
