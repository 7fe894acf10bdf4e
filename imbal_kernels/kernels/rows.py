"""The softmax kernel for rows that fit in registers: (N, C), class last.

A program holds ROWS rows as PIECES tiles of (ROWS, WIDTH), so that a row's sums are made of registers first and
only then of lanes. What is done once a row is done on (ROWS, REPEATS), one element a thread.
The label's column is -inf in registers; its gradient is written after the others'.

PEEL: rows do not begin on 16 bytes. Tiles hold what lies in whole vectors of a row, and one more, of (ROWS, 2 VECTOR),
its ends before and after them.
"""

import triton
import triton.language as tl

from . import numerics as nm
from .logits import (
    base_of,
    label_of_row,
    largest,
    level_of,
    odds_of,
    power_of,
    scale_of_row,
    terms_of_id,
    terms_of_probabilities,
)


@triton.jit
def _per_class(ptr, col, valid, row, default):
    """A (C,) tensor as a tile: the same for every row, or it would be laid out and loaded one by one."""
    if ptr is None:
        return default
    else:
        return tl.load(ptr + (col + 0 * row[:, None]), mask=valid & (row >= 0)[:, None], other=0.0)


@triton.jit
def _piece(i: tl.constexpr, bounds, C, PIECES: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """(column, offset, whether there is such a column) of a tile; the ends' come after the others."""
    at, begin, head, body = bounds
    if i < PIECES:
        lane = i * WIDTH + tl.arange(0, WIDTH)[None, :]
        return head + lane, begin + lane, lane < body
    else:
        lane = tl.arange(0, 2 * VECTOR)[None, :]
        col = tl.where(lane < VECTOR, lane, head + body + lane - VECTOR)
        return col, at + col, tl.where(lane < VECTOR, lane < head, col < C)


@triton.jit
def _row_sum(tiles, PIECES: tl.constexpr, PEEL: tl.constexpr):
    total = tiles[0]
    for i in tl.static_range(1, PIECES):
        total += tiles[i]
    total = tl.sum(total, axis=1)
    if PEEL:
        total += tl.sum(tiles[PIECES], axis=1)
    return total


@triton.jit
def _weights(
    target_ptr, weight_ptr, row, col, offsets, valid, mask, smoothing, flat, PROBABILITIES: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """(t, a) of a tile: with class ids a is the weight."""
    w = _per_class(weight_ptr, col, valid, row, tl.where(valid, 1.0, 0.0).to(T))
    if PROBABILITIES:
        t = tl.load(target_ptr + offsets, mask=mask, other=0.0).to(T)
        return t, w * tl.where(mask, t * (1.0 - smoothing) + flat, 0.0)
    else:
        return 0.0, w


@triton.jit
def _gap(a, level, x):
    """a (level - x), 0 where a is, even at an infinite logit."""
    return tl.where(a == 0, 0.0, a * (level - x))


@triton.jit
def _spread(values, REPEATS: tl.constexpr):
    """(ROWS,) as (ROWS, REPEATS)"""
    return values[:, None] + tl.zeros((values.shape[0], REPEATS), values.dtype)


@triton.jit(do_not_specialize=["rows", "groups", "ignore_index"])
def row_kernel(
    x_ptr, target_ptr, weight_ptr, adjustment_ptr, scale_ptr, upstream_ptr, loss_ptr, grad_ptr,
    rows: tl.int64, groups: tl.int32, ignore_index: tl.int64,
    scale: tl.float64, gamma: tl.float64, smoothing: tl.float64,
    KIND: tl.constexpr, PROBABILITIES: tl.constexpr, SMOOTH: tl.constexpr, UPSTREAM: tl.constexpr, LOSS: tl.constexpr,
    TERMS: tl.constexpr, FAST: tl.constexpr, ROWS: tl.constexpr, REPEATS: tl.constexpr, PIECES: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr, PEEL: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    SUMS: tl.constexpr = SMOOTH or PROBABILITIES
    TILES: tl.constexpr = PIECES + 1 if PEEL else PIECES
    C = groups if PEEL else groups * VECTOR
    program = tl.program_id(0).to(tl.int64)
    first = program * ROWS
    start = first * C
    row = tl.arange(0, ROWS)
    lead = 0
    bounds = (row[:, None] * C, row[:, None] * C, 0, C)  # type: tuple
    if PEEL:
        aligned = start // VECTOR * VECTOR
        lead = (start - aligned).to(tl.int32)
        start = aligned
        at = lead + row[:, None] * C
        begin = (at + (VECTOR - 1)) // VECTOR * VECTOR
        bounds = (at, begin, begin - at, (C - (begin - at)) // VECTOR * VECTOR)
    limit = tl.minimum(rows - first, ROWS).to(tl.int32)
    one = row[:, None] + 0 * tl.arange(0, REPEATS)[None, :]
    x_ptr += start
    smoothing = tl.full((), smoothing, T)
    gamma = tl.full((), gamma, tl.float64)
    flat = smoothing / C.to(T)
    if PROBABILITIES:
        target_ptr += start
        code = tl.where(row < limit, C, -1)
    else:
        label, counted, known = label_of_row(target_ptr + first, one, one < limit, C, ignore_index)
        # Ignored rows are not read: a NaN there stays there.
        code = tl.max(tl.where(counted, tl.where(known, label, C), -1), axis=1)

    tiles = ()  # type: tuple
    tops = tl.full((ROWS, WIDTH), float("-inf"), T)
    for i in tl.static_range(TILES):
        col, offsets, valid = _piece(i, bounds, C, PIECES, WIDTH, VECTOR)
        mask = (code >= 0)[:, None] & valid
        x = nm.to_compute(tl.load(x_ptr + offsets, mask=mask, other=float("-inf")), FAST)
        if adjustment_ptr is not None:
            x += _per_class(adjustment_ptr, col, valid, row, 0.0)
        if not PROBABILITIES:
            x = tl.where(col == code[:, None], float("-inf"), x)
        tiles += (x,)
        if i < PIECES:
            tops = tl.maximum(tops, x)
    top = tl.max(tops, axis=1)
    if PEEL:
        top = tl.maximum(top, tl.max(tiles[PIECES], axis=1))
    if tl.max((top == float("inf")).to(tl.int32), axis=0) != 0:  # rare: in a branch it costs a logit nothing
        tl.debug_barrier()  # without it the compiler clamps first and chooses then
        clamped = ()  # type: tuple
        for i in tl.static_range(TILES):
            clamped += (largest(tiles[i]),)
        tiles = clamped
    rate, shift = base_of(top, T)
    base = (rate[:, None], shift[:, None])
    powers = ()  # type: tuple
    for i in tl.static_range(TILES):
        powers += (power_of(tiles[i], base, FAST),)
    total = _row_sum(powers, PIECES, PEEL)
    none = tl.zeros((ROWS,), T)
    deficit, mass, target_mass, hit = none, none, none, none
    if SUMS:
        level = level_of(top)
        deficits, masses, target_masses, hits = (), (), (), ()  # type: tuple, tuple, tuple, tuple
        for i in tl.static_range(TILES):
            col, offsets, valid = _piece(i, bounds, C, PIECES, WIDTH, VECTOR)
            mask = (code >= 0)[:, None] & valid
            t, a = _weights(target_ptr, weight_ptr, row, col, offsets, valid, mask, smoothing, flat, PROBABILITIES, T)
            if not PROBABILITIES:
                a = tl.where(col == code[:, None], 0.0, a)
            masses += (a,)
            deficits += (_gap(a, level[:, None], tiles[i]),)
            if PROBABILITIES and KIND != 0:
                target_masses += (t,)
                hits += (t * powers[i],)
        deficit, mass = _row_sum(deficits, PIECES, PEEL), _row_sum(masses, PIECES, PEEL)
        if PROBABILITIES and KIND != 0:
            target_mass, hit = _row_sum(target_masses, PIECES, PEEL), _row_sum(hits, PIECES, PEEL)

    scales = scale_of_row(scale, scale_ptr, upstream_ptr, UPSTREAM, first + one, one < limit, T)
    top, total = _spread(top, REPEATS), _spread(total, REPEATS)
    deficit, mass = _spread(deficit, REPEATS), _spread(mass, REPEATS)
    if PROBABILITIES:
        target_mass, hit = _spread(target_mass, REPEATS), _spread(hit, REPEATS)
        loss, a, b, c, mean = terms_of_probabilities(
            top, total, deficit, mass, target_mass, hit, scales, gamma, KIND, FAST
        )
        here = one < limit
        fill = 0.0
    else:
        here = counted & known
        x_label = tl.load(x_ptr + lead + one * C + label, mask=here, other=0.0).to(T)
        if adjustment_ptr is not None:
            x_label += tl.load(adjustment_ptr + label, mask=here, other=0.0)
        w = 1.0
        if weight_ptr is not None:
            w = tl.load(weight_ptr + label, mask=here, other=0.0)
        x_label = largest(x_label)
        odds = odds_of(x_label, power_of(x_label, base_of(top, T), FAST), top, total, tl.log(total), FAST)
        loss, a, b, c = terms_of_id(
            odds, top, deficit, mass, w, flat, smoothing, scales, gamma, KIND, SMOOTH, TERMS, FAST
        )
        fill = tl.where(counted, float("nan"), 0.0).to(T)
    loss = tl.where(here, loss, fill)
    if LOSS == "elementwise":
        loss = tl.max(loss, axis=1)
        tl.store(loss_ptr + first + row, loss.to(loss_ptr.dtype.element_ty), mask=row < limit)
    elif LOSS == "sum":
        tl.store(loss_ptr + program, tl.sum(loss) / REPEATS)

    if grad_ptr is not None:
        grad_ptr += start
        OUT: tl.constexpr = grad_ptr.dtype.element_ty
        a = tl.max(tl.where(here, a, fill), axis=1)
        if SUMS:
            b = tl.max(tl.where(here, b, fill), axis=1)
        if PROBABILITIES and KIND != 0:
            c, mean = tl.max(c, axis=1), tl.max(mean, axis=1)
        for i in tl.static_range(TILES):
            col, offsets, valid = _piece(i, bounds, C, PIECES, WIDTH, VECTOR)
            mask = (row < limit)[:, None] & valid
            slope = a[:, None]
            if SUMS:
                t, weight = _weights(
                    target_ptr, weight_ptr, row, col, offsets, valid, mask, smoothing, flat, PROBABILITIES, T
                )
                if PROBABILITIES and KIND != 0:
                    slope += c[:, None] * (mean[:, None] - t)
                grad = powers[i] * slope - weight * b[:, None]
            else:
                grad = powers[i] * slope
            tl.store(grad_ptr + offsets, grad.to(OUT), mask=mask)
        if not PROBABILITIES:
            tl.debug_barrier()  # the label's gradient replaces what its tile has written
            tl.store(grad_ptr + lead + one * C + label, c.to(OUT), mask=here)
