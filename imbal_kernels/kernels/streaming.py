"""The one streaming kernel of the sigmoid family: memory access, labels, weights, ignore, reduction.

The element formula is a constexpr. A program walks TILES tiles of VECTORS x 16 consecutive elements;
what belongs to a row (its class, its weights) is worked out once a vector of 16 where C allows it.

With hard class ids the tiles are evaluated as background throughout and then PATCHES * VECTORS rows'
positives are written, one a thread. A tile leaves the positives out of its sum: taking them off afterwards
would cancel where a confident positive weighs more as background than the rest of the sum.
"""

import triton
import triton.language as tl

from . import numerics as nm
from .elements import positives_of, scalars_of, terms_of
from .operands import class_of_row, dense_target, first_offset, optional_in_tile

# SPAN, the rows that a vector of 16 can touch: "one row" (C % 16 == 0), "two rows" (C > 16) or "many rows".
# LOSS, what is written of it: "none", "elementwise" or "sum".
PERIODS = 5  # 4, and what a vector reads beyond them


@triton.jit
def _row_of(flat, C, multiplier, shift):
    """flat // C by a multiplication; 0 <= flat < 2^30."""
    return (tl.umulhi((2 * flat).to(tl.uint32), multiplier) >> shift).to(tl.int32)


@triton.jit
def _lane_codes(lanes, hit, counted, known):
    """Two bits a lane, at lane and at lane + 16: 00 background, 01 the label's, 10 ignored, 11 bad."""
    return tl.where(counted, tl.where(known, hit, lanes | (lanes << 16)), lanes << 16)


@triton.jit
def _bit(lane):
    return tl.where((lane >= 0) & (lane < 16), 1 << lane, 0)


@triton.jit
def _tile(
    pointers, geometry, first, DENSE: tl.constexpr, MODES: tl.constexpr, SPAN: tl.constexpr, TAIL: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Load a tile: logits, dense target or lane codes, counts, weight, pos_weight, alpha, scores."""
    x_ptr, target_ptr, weight_ptr, pos_weight_ptr, alpha_ptr, scores_ptr = pointers
    limit, remainder, base_row, C, multiplier, shift, ignore_index = geometry
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    lane = tl.arange(0, 16)[None, :]
    offsets = first + lane
    # Whole vectors are in or out, else they could not be loaded as such; the rest is the tail's.
    mask = offsets < limit if TAIL else first + 16 <= limit
    flat = remainder + (offsets if SPAN == "many rows" else first)
    row = _row_of(flat, C, multiplier, shift)
    col = flat - row * C
    left = C - col
    mask_next = mask & (first + left < limit)

    # Rows before logits: the compiler lays a tile out for the last of its loads.
    if DENSE:
        target, counts = dense_target(target_ptr, offsets, mask, ignore_index, T)
    else:
        label, counted, known = class_of_row(target_ptr, row, mask, C, ignore_index)
        if SPAN == "many rows":
            target = _lane_codes(1 << lane, tl.where(label == col, 1 << lane, 0), counted, known)
        elif SPAN == "one row":
            target = _lane_codes(tl.full((), 0xFFFF, tl.int32), _bit(label - col), counted, known)
        else:
            lanes = (1 << tl.minimum(left, 16)) - 1
            target = _lane_codes(lanes, _bit(label - col) & lanes, counted, known)
            label, counted, known = class_of_row(target_ptr, row + 1, mask_next, C, ignore_index)
            target |= _lane_codes(0xFFFF - lanes, _bit(label + left) & (0xFFFF - lanes), counted, known)
        counts = 1.0
    x = nm.to_compute(tl.load(x_ptr + offsets, mask=mask), FAST)
    if not DENSE:
        target = nm.like(target + tl.zeros_like(offsets), x, FAST)
    in_first = offsets >= 0
    if SPAN == "one row":
        col = col + lane
    elif SPAN == "two rows":
        in_first = nm.like(lane + tl.zeros_like(offsets), x, FAST) < left
        # Tensors by class come PERIODS times over: a vector begins at a multiple of 4, whatever C is.
        col = (col + ((base_row + row) & 3) * C >> 2) * 4 + lane
    weight = optional_in_tile(weight_ptr, MODES[0], offsets, row, col, mask, mask_next, in_first)
    pos_weight = optional_in_tile(pos_weight_ptr, MODES[1], offsets, row, col, mask, mask_next, in_first)
    alpha = optional_in_tile(alpha_ptr, MODES[2], offsets, row, col, mask, mask_next, in_first)
    scores = optional_in_tile(scores_ptr, MODES[3], offsets, row, col, mask, mask_next, in_first)
    return x, target, counts, weight, pos_weight, alpha, scores


@triton.jit
def _upstream(ptr, MODE: tl.constexpr, offsets, mask, T: tl.constexpr):
    if MODE == "none":
        return 1.0
    elif MODE == "scalar":
        return tl.load(ptr).to(T)
    else:
        return tl.load(ptr + offsets, mask=mask, other=0.0).to(T)


@triton.jit
def _finish_tile(
    tile, scalars, outputs, losses, offsets, mask, FORMULA: tl.constexpr, KINDS: tl.constexpr, TARGETS: tl.constexpr,
    DENSE: tl.constexpr, MODES: tl.constexpr, UPSTREAM: tl.constexpr, LOSS: tl.constexpr, SPAN: tl.constexpr,
    ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Evaluate a tile, write what is asked for, and return the losses with the tile's added."""
    x, target, counts, weight, pos_weight, alpha, scores = tile
    loss_ptr, grad_ptr, upstream_ptr = outputs
    # What is ignored or bad is replaced: its logit may be NaN, which no weight would silence.
    skip, fill, codes = counts != 1, counts, target
    if not DENSE:
        bit = 1 << tl.arange(0, 16)[None, :]
        row_bit = 1 if SPAN == "one row" else bit
        skip = (codes & (row_bit << 16)) != 0
        fill = tl.where((codes & row_bit) != 0, float("nan"), 0.0).to(x.dtype)
        target = codes & bit
    a, b, grad, skip, fill = terms_of(
        x, target, skip, fill, (weight, pos_weight, alpha, scores), scalars, FORMULA, KINDS, TARGETS, DENSE, MODES,
        ZERO, TERMS, FAST, OWN,
    )  # fmt: skip
    loss = tl.where(skip, fill, a * b)
    if LOSS == "elementwise":
        tl.store(loss_ptr + offsets, loss.to(loss_ptr.dtype.element_ty), mask=mask)
    if grad_ptr is not None:
        OUT: tl.constexpr = grad_ptr.dtype.element_ty
        grad *= _upstream(upstream_ptr, UPSTREAM, offsets, mask, x.dtype)
        if FAST and SPAN == "one row" and not DENSE and OUT != tl.float32 and MODES[3] == "none":
            grad = nm.replace_pairs(grad.to(OUT), codes)
        else:
            grad = tl.where(skip, fill, grad).to(OUT)
        tl.store(grad_ptr + offsets, grad, mask=mask)
    if TARGETS == "background":
        return nm.fma_unless(codes & (bit | bit << 16), a, b, losses, FAST)
    else:
        return losses + loss


@triton.jit
def _positives(
    pointers, geometry, scalars, upstream_ptr, row, last_row, FORMULA: tl.constexpr, KINDS: tl.constexpr,
    MODES: tl.constexpr, UPSTREAM: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """(offsets, mask, losses, gradients) of the given rows' positives; the loss of a bad row is NaN."""
    x_ptr, target_ptr, weight_ptr, pos_weight_ptr, alpha_ptr, scores_ptr = pointers
    limit, remainder, _, C, multiplier, shift, ignore_index = geometry
    label, counted, known = class_of_row(target_ptr, row, row <= last_row, C, ignore_index)
    offsets = row * C - remainder + label
    mask = counted & known & (label >= 0) & (label < C) & (offsets >= 0) & (offsets < limit)
    loss, grad = positives_of(
        x_ptr, (weight_ptr, pos_weight_ptr, alpha_ptr, scores_ptr), scalars, offsets, offsets, row, label, mask,
        FORMULA, KINDS, MODES, TERMS, FAST, OWN,
    )  # fmt: skip
    grad *= _upstream(upstream_ptr, UPSTREAM, offsets, mask, grad.dtype)
    return offsets, mask, tl.where(mask, loss, tl.where(counted & (known == 0), float("nan"), 0.0)), grad


@triton.jit(do_not_specialize=["numel", "multiplier", "shift", "row_multiplier", "ignore_index"])
def sigmoid_kernel(
    x_ptr, target_ptr, weight_ptr, pos_weight_ptr, alpha_ptr, scores_ptr, scale_ptr, upstream_ptr, loss_ptr, grad_ptr,
    numel: tl.int64, C: tl.int32, multiplier: tl.uint32, shift: tl.uint32, row_multiplier: tl.uint64,
    ignore_index: tl.int64, alpha_pos: tl.float64, alpha_neg: tl.float64, smoothing: tl.float64, gamma: tl.float64,
    gamma_pos: tl.float64, clip: tl.float64, FORMULA: tl.constexpr, POSITIVE: tl.constexpr, TARGETS: tl.constexpr,
    KIND: tl.constexpr, KIND_POS: tl.constexpr, CLIP: tl.constexpr, APART: tl.constexpr, DENSE: tl.constexpr,
    WEIGHT: tl.constexpr, POS_WEIGHT: tl.constexpr, ALPHA: tl.constexpr, SCORES: tl.constexpr, UPSTREAM: tl.constexpr,
    LOSS: tl.constexpr, SPAN: tl.constexpr, PATCHES: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr, OWN: tl.constexpr, VECTORS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    BLOCK: tl.constexpr = TILES * VECTORS * 16
    KINDS: tl.constexpr = (KIND, KIND_POS, CLIP, APART)
    PATCH_MODES: tl.constexpr = (WEIGHT, POS_WEIGHT, ALPHA, SCORES)
    MODES: tl.constexpr = (WEIGHT, POS_WEIGHT, ALPHA, "none" if TARGETS == "background" else SCORES)
    multiplier = multiplier.to(tl.uint32)  # the interpreter types an int by its size
    program = tl.program_id(0).to(tl.int64)
    start = program * BLOCK
    # start // C by a multiplication: exact for start * C < 2^63.
    row = tl.umulhi((2 * start).to(tl.uint64), row_multiplier).to(tl.int64)
    remainder = (start - row * C).to(tl.int32)
    limit = tl.minimum(numel - start, BLOCK).to(tl.int32)
    pointers = (
        x_ptr + start,
        target_ptr + (start if DENSE else row),
        weight_ptr + first_offset(WEIGHT, start, row) if WEIGHT != "none" else None,
        pos_weight_ptr + first_offset(POS_WEIGHT, start, row) if POS_WEIGHT != "none" else None,
        alpha_ptr + first_offset(ALPHA, start, row) if ALPHA != "none" else None,
        scores_ptr + row if SCORES != "none" else None,
    )
    geometry = (limit, remainder, row.to(tl.int32), C, multiplier, shift, ignore_index)
    outputs = (  # type: tuple
        loss_ptr + start if LOSS == "elementwise" else loss_ptr,
        grad_ptr + start if grad_ptr is not None else None,
        upstream_ptr + first_offset(UPSTREAM, start, row) if UPSTREAM != "none" else None,
    )
    scalars = scalars_of(scale_ptr, alpha_pos, alpha_neg, smoothing, gamma, gamma_pos, clip, T)

    lane = tl.arange(0, 16)[None, :]
    first = tl.arange(0, VECTORS)[:, None] * 16
    tile = _tile(pointers, geometry, first, DENSE, MODES, SPAN, False, FAST)
    losses = tl.zeros((VECTORS, 16), T)
    sums = tl.zeros((VECTORS,), T)
    last_row = _row_of(remainder + limit - 1, C, multiplier, shift)
    patches = ()  # type: tuple
    for i in tl.static_range(TILES):
        here, here_first = tile, first
        # What comes next is loaded before the store: no load moves over a store that may alias.
        if i + 1 < TILES:
            first += VECTORS * 16
            tile = _tile(pointers, geometry, first, DENSE, MODES, SPAN, False, FAST)
        else:
            for j in tl.static_range(PATCHES):
                patch = _positives(
                    pointers, geometry, scalars, outputs[2], j * VECTORS + tl.arange(0, VECTORS), last_row,
                    POSITIVE, KINDS, PATCH_MODES, UPSTREAM, TERMS, FAST, OWN,
                )  # fmt: skip
                sums += patch[2]
                patches += (patch,)
        losses = _finish_tile(
            here, scalars, outputs, losses, here_first + lane, here_first + 16 <= limit,
            FORMULA, KINDS, TARGETS, DENSE, MODES, UPSTREAM, LOSS, SPAN, ZERO, TERMS, FAST, OWN,
        )  # fmt: skip
    sums += tl.sum(losses, axis=1)
    if SPAN != "one row":
        if limit % 16 != 0:
            last = tl.full((1, 1), limit // 16 * 16, tl.int32)
            rest = _tile(pointers, geometry, last, DENSE, MODES, "many rows", True, FAST)
            tail = _finish_tile(
                rest, scalars, outputs, tl.zeros((1, 16), T), last + lane, last + lane < limit,
                FORMULA, KINDS, TARGETS, DENSE, MODES, UPSTREAM, LOSS, "many rows", ZERO, TERMS, FAST, OWN,
            )  # fmt: skip
            sums += tl.where(tl.arange(0, VECTORS) == 0, tl.sum(tail), 0.0)
    if PATCHES > 0:
        tl.debug_barrier()  # a positive's gradient replaces what its tile has written
        for j in tl.static_range(PATCHES):
            offsets, mask, loss, grad = patches[j]
            if LOSS == "elementwise":
                tl.store(outputs[0] + offsets, loss.to(loss_ptr.dtype.element_ty), mask=mask)
            if grad_ptr is not None:
                tl.store(outputs[1] + offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)
    if LOSS == "sum":
        tl.store(loss_ptr + program, tl.sum(sums))


@triton.jit(do_not_specialize=["count"])
def sum_kernel(partial_ptr, scale_ptr, out_ptr, count: tl.int64, BLOCK: tl.constexpr):
    """Add the partial sums in a fixed order; one program. A mean over nothing, of scale 1 / 0, is NaN."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    start = 0 * count
    while start < count:
        total += tl.load(partial_ptr + start + lane, mask=start + lane < count, other=0.0).to(tl.float64)
        start += BLOCK
    if scale_ptr is not None:
        total += tl.load(scale_ptr).to(tl.float64) * 0.0
    tl.store(out_ptr, tl.sum(total).to(out_ptr.dtype.element_ty))
