"""The raw op sigmoid_loss_levels on tensors: the levels of a detector's head, in two launches at most.

A launch has one width of access for all its levels, as wide as their H * W lets it be. That of the largest level is the
first launch's; levels that it does not fit, mostly the small ones of a pyramid, are left to the second.
"""

import functools
import math

import torch

from . import head, sigmoid
from .launch import Launch, cdiv, on_device
from .operands import odd

# Channels a step, places and warps of a program: 8 logits a thread at a time, for which 80 registers are enough. With
# 16 an element costs 1 % less, but half the warps fit on a multiprocessor, and they alone hide the latency of a load.
STEP, WARPS = 2, 2
BY_CLASS = 1, 1  # the two where a step's places are added up: with a warp to itself in 49 instructions, not 62
ROWS_BY_CLASS = 8, 1, 32  # and with the places where these are rows, of which a step reads whole sectors
POSITIONS = {2: 256, 4: 256, 8: 128}  # by itemsize
PATCHED = 17  # classes from which on it pays to write positives afterwards, as in streaming.py
MODES = ("none", "scalar", "class", "row", "full")


def _vectors(inputs: list[torch.Tensor], rows: bool) -> dict[int, set[int]]:
    """The width of access of each launch, and its levels."""
    widest = 1 if rows else 16 // inputs[0].element_size()
    own = [math.gcd(x.shape[3], widest) for x in inputs]
    some = [i for i, x in enumerate(inputs) if x.numel()]
    if not some:
        return {}
    vector = own[max(some, key=lambda i: inputs[i].numel())]
    others = [i for i in some if own[i] < vector]
    found = {vector: set(some).difference(others)}
    return found | {min(own[i] for i in others): set(others)} if others else found


def _mode(tensors: list[torch.Tensor], inputs: list[torch.Tensor]) -> str:
    """How all levels read an optional tensor: a level of one row fits several ways."""
    shapes = [(x.numel() // x.shape[2], x.shape[2]) for x in inputs]
    found = [sigmoid.mode_of(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=False)]
    return max(found, key=MODES.index, default="none")


def _aligned(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
    """Values by place; copied where they begin off 16 bytes, for which Triton would compile anew."""
    return tuple(t if t.data_ptr() % 16 == 0 else t.clone() for t in tensors) or None


def plan(
    inputs, targets, weights, pos_weights, alpha_per_class, scale_tensor, upstream, alpha, gamma, label_smoothing,
    scale, ignore_index, loss_mode, want_grad, scores, name, gamma_pos, clip, by_class=False, rows=False,
):  # fmt: skip
    """(loss, gradients, each program's sums by class, launches) for levels that are (images, anchors, C, positions).

    rows: they are views of rows of C logits, and what is wanted is by class.
    """
    assert loss_mode != sigmoid.ELEMENTWISE
    first, classes = inputs[0], inputs[0].shape[2]
    compute = torch.float64 if first.dtype == torch.float64 else torch.float32
    places = POSITIONS[first.element_size()]
    step, warps = BY_CLASS if by_class else (STEP, WARPS)
    if rows:
        step, warps, places = ROWS_BY_CLASS
    if len({target.dtype for target in targets}) > 1:
        targets = [target.long() for target in targets]
    element = sigmoid.specialise(
        first.element_size(), label_smoothing != 0, classes >= PATCHED and not by_class, weights or None,
        pos_weights or None, alpha_per_class, scores or None, alpha, gamma, label_smoothing, scale, name, gamma_pos,
        clip,
    )  # fmt: skip
    grads = [torch.empty_like(x) for x in inputs] if want_grad else []
    loss, partial, sums = first.new_empty(0), None, None
    element |= dict(
        x_ptrs=tuple(inputs), target_ptrs=_aligned(targets), weight_ptrs=_aligned(weights),
        pos_weight_ptrs=_aligned(pos_weights), alpha_ptr=alpha_per_class, scores_ptrs=_aligned(scores),
        scale_ptr=scale_tensor, upstream_ptr=upstream, grad_ptrs=tuple(grads) or None, C=classes,
        ignore_index=ignore_index, WEIGHT=_mode(weights, inputs), POS_WEIGHT=_mode(pos_weights, inputs),
        ALPHA=sigmoid.mode_of(alpha_per_class, (0, classes)), SCORES="row" if scores else "none",
        UPSTREAM="none" if upstream is None else "scalar", LOSS=sigmoid.LOSSES[loss_mode], LEVELS=len(inputs),
        POSITIONS=places, STEP=step, REST=classes % step != 0, AS_ROWS=rows,
    )  # fmt: skip

    launches, base = [], 0
    blocks = [cdiv(x.shape[3], places) for x in inputs]
    for vector, levels in _vectors(inputs, rows).items():
        # All levels in both launches, so that they differ by their vectors alone; those of the other have no programs.
        counts = [x.shape[0] * x.shape[1] * blocks[i] if i in levels else 0 for i, x in enumerate(inputs)]
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        args = element | dict(
            firsts=odd(firsts), blocks=odd(blocks), groups=odd([x.shape[3] // vector for x in inputs]), base=base,
            VECTOR=vector,
        )  # fmt: skip
        launches.append(Launch(head.head_kernel, sum(counts), args, warps))
        base += sum(counts)
    if loss_mode == sigmoid.SUM:
        loss, partial = first.new_empty((), dtype=compute), first.new_empty(base, dtype=compute)
    if by_class:
        sums = first.new_empty((base, 4, classes), dtype=compute)
    for launch in launches:
        launch.args |= dict(loss_ptr=partial, sums_ptr=sums)
    if partial is not None:
        launches.append(sigmoid.sum_of(partial, scale_tensor, loss))
    return loss, grads, sums, launches


def sigmoid_loss_levels(
    inputs, targets, weights, pos_weights, alpha_per_class, scale_tensor, upstream, alpha, gamma, label_smoothing,
    scale, ignore_index, loss_mode, want_grad, scores, formula, gamma_pos, clip, by_class=False,
):  # fmt: skip
    """Loss and gradients of several levels: the raw op, see ops. Channels-last ones come as (N, C): each has a launch
    of its own, of the kernel for rows, or with sums by class all have one."""
    options = (alpha, gamma, label_smoothing, scale, ignore_index, loss_mode, want_grad)
    last = (formula, gamma_pos, clip)
    heads = [i for i, x in enumerate(inputs) if x.dim() == 4]
    rows = [i for i, x in enumerate(inputs) if x.dim() == 2]
    losses, grads, sums, launches = [], [None] * len(inputs), [], []

    def of(tensors, level):
        return tensors[level] if tensors else None

    with on_device(inputs[0]):
        for chosen in (heads, rows) if by_class else (heads,):
            if not chosen:
                continue
            lists = (inputs, targets, weights, pos_weights, scores)
            x, *first, last_list = [[tensors[i] for i in chosen] if tensors else [] for tensors in lists]
            x = [level if level.dim() == 4 else level.t()[None, None] for level in x]
            loss, found, own_sums, own = plan(
                x, *first, alpha_per_class, scale_tensor, upstream, *options, last_list, *last, by_class,
                chosen is rows,
            )  # fmt: skip
            losses.append(loss)
            sums.append(own_sums)
            launches += own
            for i, grad in zip(chosen, found, strict=False):
                grads[i] = grad if inputs[i].dim() == 4 else grad[0, 0].t()
        for i in () if by_class else rows:
            loss, grads[i], own = sigmoid.plan(
                inputs[i], targets[i], of(weights, i), of(pos_weights, i), alpha_per_class, scale_tensor, upstream,
                *options, False, of(scores, i), *last,
            )  # fmt: skip
            losses.append(loss)
            launches += own
        for launch in launches:
            launch.run()
        added = functools.reduce(torch.add, [own.sum(0, dtype=torch.float64) for own in sums]) if by_class else None
        return functools.reduce(torch.add, losses), grads if want_grad else [], added
