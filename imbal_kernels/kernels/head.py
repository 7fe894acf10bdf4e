"""The sigmoid kernel of a detector's head: (images, anchors, C, positions) as they lie in memory, several levels.

A program is POSITIONS places of one image and anchor of one level. It decodes their labels once and walks all C
channels, STEP at a time; positions run along the lanes, so that an access is as wide as H * W lets it be.

As in streaming.py channels are evaluated as background throughout, where targets are hard, and the positives are
written afterwards, one a thread. What is ignored or bad is replaced in the gradients by a mask; in the losses, which
are kept by place, once at the end.

Sums by class are added up over a program's places, channel by channel; there each target is evaluated where it is.
For them rows of C logits, a channels-last level's, are read here as well.
"""

import triton
import triton.language as tl

from . import numerics as nm
from .elements import positives_of, scalars_of, terms_of
from .operands import class_of_row, optional, size_of


@triton.jit
def _of_level(values, level, LEVELS: tl.constexpr):
    """values[level], of a level known at run time."""
    chosen = values[0]
    for i in tl.static_range(1, LEVELS):
        chosen = tl.where(level == i, values[i], chosen)
    return chosen


@triton.jit
def _part(ptrs, MODE: tl.constexpr, level, row, C, LEVELS: tl.constexpr):
    """Where a program's part of an optional tensor begins."""
    if MODE == "none":
        return None
    elif MODE == "full":
        return _of_level(ptrs, level, LEVELS) + row * C
    elif MODE == "row":
        return _of_level(ptrs, level, LEVELS) + row
    else:
        return _of_level(ptrs, level, LEVELS)


@triton.jit
def _by_place(ptr, MODE: tl.constexpr, place, inside):
    """An optional tensor that is the same for all classes, read before their loop."""
    if MODE == "class" or MODE == "full":
        return 1.0
    else:
        return optional(ptr, MODE, 0, place, 0, inside)


@triton.jit
def _by_channel(value, ptr, MODE: tl.constexpr, place, inside, col, C):
    """`value`, or what has one by class."""
    if MODE == "class":
        return tl.load(ptr + col, mask=col < C, other=0.0)
    elif MODE == "full":
        return tl.load(ptr + (place * C + col), mask=inside & (col < C), other=0.0)
    else:
        return value


@triton.jit
def _add(a, b, c, d, other_a, other_b, other_c, other_d):
    return a + other_a, b + other_b, c + other_c, d + other_d


@triton.jit
def _store_sums(ptr, loss, grad, label, score, col, C):
    """The parts that these places have in ClassStatistics, (4, C). Ignored places have none, bad ones make it NaN."""
    positive = (label == col) & (score > 0)
    bad = tl.where(label == -3, float("nan"), 0.0).to(loss.dtype)
    loss = tl.where(label >= -1, loss, bad)
    size = tl.where(label >= -1, tl.abs(grad), bad)
    terms = (positive.to(loss.dtype), loss, tl.where(positive, size, 0.0), tl.where(positive, 0.0, size))
    sums = tl.reduce(terms, 1, _add, keep_dims=True)
    for i in tl.static_range(4):
        tl.store(ptr + i * C + col, sums[i], mask=col < C)


@triton.jit
def _channels(
    x_ptr, grad_ptr, sums_ptr, factor_ptrs, places, factors, scalars, upstream, losses, col, C, FORMULA: tl.constexpr,
    KINDS: tl.constexpr, TARGETS: tl.constexpr, MODES: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr, OWN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Evaluate the channels of `col`, in the REST some beyond C; return the losses with theirs added."""
    place, inside, label, keep, fill = places
    mask = inside & (col < C) if REST else inside
    x = nm.to_compute(tl.load(x_ptr, mask=mask), FAST)
    weight = _by_channel(factors[0], factor_ptrs[0], MODES[0], place, inside, col, C)
    pos_weight = _by_channel(factors[1], factor_ptrs[1], MODES[1], place, inside, col, C)
    alpha = _by_channel(factors[2], factor_ptrs[2], MODES[2], place, inside, col, C)
    a, b, grad, wrong, nan = terms_of(
        x, (label == col).to(tl.int32), tl.zeros_like(label) != 0, 0.0, (weight, pos_weight, alpha, factors[3]),
        scalars, FORMULA, KINDS, TARGETS, False, MODES, ZERO, TERMS, FAST, OWN,
    )  # fmt: skip
    loss = a * b
    if MODES[3] != "none":
        loss, grad = tl.where(wrong, nan, loss), tl.where(wrong, nan, grad)
    if sums_ptr is not None:
        _store_sums(sums_ptr, loss, grad, label, factors[3], col, C)
    if grad_ptr is not None:
        grad = nm.replaced((grad * upstream).to(grad_ptr.dtype.element_ty), keep, fill, FAST)
        tl.store(grad_ptr, grad, mask=mask)
    if REST:
        return losses + tl.where((col < C) & ((label != col) | (TARGETS != "background")), loss, 0.0)
    elif TARGETS == "background":
        return nm.fma_unless_equal(label, col, a, b, losses, FAST)
    else:
        return losses + loss


@triton.jit(do_not_specialize=["C", "base", "ignore_index"])
def head_kernel(
    x_ptrs, target_ptrs, weight_ptrs, pos_weight_ptrs, alpha_ptr, scores_ptrs, scale_ptr, upstream_ptr, loss_ptr,
    grad_ptrs, sums_ptr, firsts, blocks, groups, base: tl.int32, C: tl.int32, ignore_index: tl.int64,
    alpha_pos: tl.float64, alpha_neg: tl.float64, smoothing: tl.float64, gamma: tl.float64, gamma_pos: tl.float64,
    clip: tl.float64,
    FORMULA: tl.constexpr, POSITIVE: tl.constexpr, TARGETS: tl.constexpr, KIND: tl.constexpr, KIND_POS: tl.constexpr,
    CLIP: tl.constexpr, APART: tl.constexpr, WEIGHT: tl.constexpr, POS_WEIGHT: tl.constexpr, ALPHA: tl.constexpr,
    SCORES: tl.constexpr, UPSTREAM: tl.constexpr, LOSS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr, OWN: tl.constexpr, LEVELS: tl.constexpr, VECTOR: tl.constexpr, POSITIONS: tl.constexpr,
    STEP: tl.constexpr, REST: tl.constexpr, AS_ROWS: tl.constexpr,
):  # fmt: skip
    """firsts, blocks, groups: of each level its first program, the programs of an image and anchor, H * W / VECTOR.

    AS_ROWS: the levels are rows of C logits, whose numbers are the positions of one line.
    """
    T: tl.constexpr = tl.float64 if x_ptrs[0].dtype.element_ty == tl.float64 else tl.float32
    KINDS: tl.constexpr = (KIND, KIND_POS, CLIP, APART)
    PATCH_MODES: tl.constexpr = (WEIGHT, POS_WEIGHT, ALPHA, SCORES)
    MODES: tl.constexpr = (WEIGHT, POS_WEIGHT, ALPHA, "none" if TARGETS == "background" else SCORES)
    program = tl.program_id(0)
    level = 0
    for i in tl.static_range(1, LEVELS):
        level += (program >= size_of(firsts[i])).to(tl.int32)
    here = program - size_of(_of_level(firsts, level, LEVELS))
    per_line = size_of(_of_level(blocks, level, LEVELS))
    positions = size_of(_of_level(groups, level, LEVELS)) * VECTOR
    line = here // per_line  # an image and its anchor
    begin = (here - line * per_line) * POSITIONS
    row = line.to(tl.int64) * positions + begin
    start = row * C if AS_ROWS else line.to(tl.int64) * positions * C + begin
    x_ptr = _of_level(x_ptrs, level, LEVELS) + start
    grad_ptr = None if grad_ptrs is None else _of_level(grad_ptrs, level, LEVELS) + start
    target_ptr = _of_level(target_ptrs, level, LEVELS) + row
    factor_ptrs = (
        _part(weight_ptrs, WEIGHT, level, row, C, LEVELS),
        _part(pos_weight_ptrs, POS_WEIGHT, level, row, C, LEVELS),
        alpha_ptr,
        _part(scores_ptrs, SCORES, level, row, C, LEVELS),
    )
    scalars = scalars_of(scale_ptr, alpha_pos, alpha_neg, smoothing, gamma, gamma_pos, clip, T)
    upstream = tl.load(upstream_ptr).to(T) if UPSTREAM == "scalar" else 1.0

    # A label is decoded by one thread; to all its channels goes one number: below -1 the place is ignored or bad.
    spot = tl.arange(0, POSITIONS)
    label, counted, known = class_of_row(target_ptr, spot, spot < positions - begin, C, ignore_index)
    label = tl.where(counted & known, label, tl.where(counted, -3, -2))[None, :]
    place = spot[None, :]
    inside = place < positions - begin
    SIZE: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth
    BITS: tl.constexpr = tl.int16 if SIZE == 16 else tl.int32 if SIZE == 32 else tl.int64
    NAN: tl.constexpr = 0x7FFF if SIZE == 16 else 0x7FC00000 if SIZE == 32 else 0x7FF8000000000000
    keep = tl.where(label >= -1, -1, 0).to(BITS)
    fill = tl.where(label == -3, NAN, 0).to(BITS)
    places = (place, inside, label, keep, fill)
    factors = (
        _by_place(factor_ptrs[0], WEIGHT, place, inside),
        _by_place(factor_ptrs[1], POS_WEIGHT, place, inside),
        _by_place(factor_ptrs[2], ALPHA, place, inside),
        _by_place(factor_ptrs[3], MODES[3], place, inside),
    )

    col = tl.arange(0, STEP)[:, None]
    channel = 1 if AS_ROWS else positions  # from one to the next
    offsets = place * C + col if AS_ROWS else col * positions + place
    x_at = x_ptr + offsets
    grad_at = None if grad_ptrs is None else grad_ptr + offsets
    if sums_ptr is not None:
        sums_ptr += (base + program).to(tl.int64) * 4 * C
    losses = tl.zeros((STEP, POSITIONS), T)
    for _ in range(C // STEP):
        losses = _channels(
            x_at, grad_at, sums_ptr, factor_ptrs, places, factors, scalars, upstream, losses, col, C, FORMULA, KINDS,
            TARGETS, MODES, ZERO, TERMS, FAST, OWN, False,
        )  # fmt: skip
        col += STEP
        x_at += STEP * channel
        if grad_ptrs is not None:
            grad_at += STEP * channel
    if REST:
        losses = _channels(
            x_at, grad_at, sums_ptr, factor_ptrs, places, factors, scalars, upstream, losses, col, C, FORMULA, KINDS,
            TARGETS, MODES, ZERO, TERMS, FAST, OWN, True,
        )  # fmt: skip
    replaced = tl.where(label == -3, float("nan"), 0.0)
    total = tl.sum(tl.where(label >= -1, tl.sum(losses, axis=0)[None, :], replaced))

    if POSITIVE is not None:
        # The labels anew: kept through the loop they would take its registers.
        label, counted, known = class_of_row(target_ptr, spot, spot < positions - begin, C, ignore_index)
        hit = counted & known & (label >= 0) & (label < C)
        offsets = label.to(tl.int64) * positions + spot
        loss, grad = positives_of(
            x_ptr, factor_ptrs, scalars, offsets, spot * C + label, spot, label, hit, POSITIVE, KINDS, PATCH_MODES,
            TERMS, FAST, OWN,
        )  # fmt: skip
        total += tl.sum(tl.where(hit, loss, 0.0))
        if grad_ptrs is not None:
            tl.debug_barrier()  # a positive's gradient replaces what its channel has written
            tl.store(grad_ptr + offsets, (grad * upstream).to(x_ptr.dtype.element_ty), mask=hit)
    if LOSS == "sum":
        tl.store(loss_ptr + base + program, total)
