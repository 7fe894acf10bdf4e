"""The softmax kernel in two passes, for what does not fit in registers: the first keeps each lane's largest logit and
sum of powers online, the second evaluates the logits again and writes gradients.

A tile is STEP x LANES. With the class last the lanes are columns of one row, put together after the first pass; with
the class inside, (N, C, S), they are positions, contiguous in memory, and the loop goes over classes. The second pass
goes backwards: it begins with what the first has left in the cache.

PEEL: rows do not begin on 16 bytes. Tiles hold what lies in whole vectors of a row; its ends are a tile of their own.
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
def _place(i, k, lane, bounds, INSIDE: tl.constexpr, SPAN: tl.constexpr):
    """(class, offset, whether there is such a class) of the i-th tile"""
    length, begin, head, count = bounds
    if INSIDE:
        which = i * SPAN + k + 0 * lane
        return which, which * length + lane, which < count
    else:
        which = i * SPAN + k * lane.shape[1] + lane
        return head + which, (begin + which).to(tl.int64), which < count


@triton.jit
def _ends(lane, at, head, body, classes, VECTOR: tl.constexpr):
    """The same of the classes before and after whole vectors, as one tile of (1, LANES)."""
    which = tl.where(lane < VECTOR, lane, head + body + lane - VECTOR)
    there = tl.where(lane < VECTOR, lane < head, (which < classes) & (lane < 2 * VECTOR))
    return which, (at + which).to(tl.int64), there


@triton.jit
def _tile(
    pointers, offsets, classes, mask, code, smoothing, flat, SUMS: tl.constexpr, PROBABILITIES: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """(logits, t, a) with the label's logit -inf and its weight 0; with class ids a is the weight."""
    x_ptr, target_ptr, weight_ptr, adjustment_ptr = pointers
    x = nm.to_compute(tl.load(x_ptr + offsets, mask=mask, other=float("-inf")), FAST)
    T: tl.constexpr = x.dtype
    if adjustment_ptr is not None:
        x += tl.load(adjustment_ptr + classes, mask=mask, other=0.0)
    t, a = 0.0, 0.0
    if not PROBABILITIES:
        # What is ignored may be NaN. A mask by position would split the vectors of the load.
        x = tl.where((classes == code) | (code < 0), float("-inf"), x)
    if SUMS:
        a = tl.where(mask, 1.0, 0.0).to(T)
        if weight_ptr is not None:
            a = tl.load(weight_ptr + classes, mask=mask, other=0.0)
        if PROBABILITIES:
            t = tl.load(target_ptr + offsets, mask=mask, other=0.0).to(T)
            a *= t * (1.0 - smoothing) + flat
        else:
            a = tl.where(classes == code, 0.0, a)
    return x, t, a


@triton.jit
def _raise_top(sums, top):
    """The sums of lanes for a larger top; the shifts are compared as they were rounded."""
    before, shift, total, deficit, mass, target_mass, hit = sums
    rate, after = base_of(top, top.dtype)
    # Between tops of different rates, or from none, nothing is left of a sum.
    same = (base_of(before, top.dtype)[0] == rate) & (before != float("-inf"))
    down = tl.where(same, tl.exp2(shift - after), 0.0)
    deficit += mass * (level_of(top) - level_of(before))
    return top, after, total * down, deficit, mass, target_mass, hit * down


@triton.jit
def _add_tile(sums, x, t, a, SUMS: tl.constexpr, HITS: tl.constexpr, FAST: tl.constexpr):
    raised = _raise_top(sums, tl.maximum(sums[0], tl.max(x, axis=0)))
    top, shift, total, deficit, mass, target_mass, hit = raised
    base = base_of(top, top.dtype)
    x = largest(x)
    e = power_of(x, (base[0][None, :], base[1][None, :]), FAST)
    total += tl.sum(e, axis=0)
    if SUMS:
        deficit += tl.sum(tl.where(a == 0, 0.0, a * (level_of(top)[None, :] - x)), axis=0)
        mass += tl.sum(a, axis=0)
    if HITS:
        target_mass += tl.sum(t, axis=0)
        hit += tl.sum(t * e, axis=0)
    return top, shift, total, deficit, mass, target_mass, hit


@triton.jit
def _join_lanes(sums):
    """One lane of all."""
    top = tl.max(sums[0], axis=0, keep_dims=True)
    _, shift, total, deficit, mass, target_mass, hit = _raise_top(sums, top + tl.zeros_like(sums[0]))
    return (
        top, tl.max(shift, axis=0, keep_dims=True), tl.sum(total, axis=0, keep_dims=True),
        tl.sum(deficit, axis=0, keep_dims=True), tl.sum(mass, axis=0, keep_dims=True),
        tl.sum(target_mass, axis=0, keep_dims=True), tl.sum(hit, axis=0, keep_dims=True),
    )  # fmt: skip


@triton.jit
def _gradient(x, t, a, base, slopes, SUMS: tl.constexpr, HITS: tl.constexpr, FAST: tl.constexpr):
    factor, b, c, mean = slopes
    slope = factor[None, :]
    if HITS:
        slope += c[None, :] * (mean[None, :] - t)
    grad = power_of(largest(x), base, FAST) * slope
    if SUMS:
        grad -= a * b[None, :]
    return grad


@triton.jit(do_not_specialize=["groups", "classes", "blocks", "ignore_index"])
def online_kernel(
    x_ptr, target_ptr, weight_ptr, adjustment_ptr, scale_ptr, upstream_ptr, loss_ptr, grad_ptr,
    classes: tl.int32, groups: tl.int64, blocks: tl.int64, ignore_index: tl.int64,
    scale: tl.float64, gamma: tl.float64, smoothing: tl.float64,
    INSIDE: tl.constexpr, KIND: tl.constexpr, PROBABILITIES: tl.constexpr, SMOOTH: tl.constexpr, UPSTREAM: tl.constexpr,
    LOSS: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr, STEP: tl.constexpr, LANES: tl.constexpr,
    VECTOR: tl.constexpr, PEEL: tl.constexpr,
):  # fmt: skip
    """groups * VECTOR: the row's length with the class last, else the positions S, in blocks of LANES. With PEEL the
    length is groups."""
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    SUMS: tl.constexpr = SMOOTH or PROBABILITIES
    HITS: tl.constexpr = PROBABILITIES and KIND != 0
    RESULTS: tl.constexpr = LANES if INSIDE else 1
    length = groups if PEEL else groups * VECTOR
    count = classes if INSIDE else length.to(tl.int32)  # the compiler knows what divides it
    program = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, STEP)[:, None]
    lane = tl.arange(0, LANES)
    outer = program // blocks
    block = (program - outer * blocks) * LANES if INSIDE else 0 * program
    base = outer * length * classes + block if INSIDE else outer * length
    first = outer * length + block if INSIDE else outer  # of the rows
    at, begin, head = 0, 0, 0
    if PEEL:
        aligned = base // VECTOR * VECTOR
        at = (base - aligned).to(tl.int32)
        base = aligned
        begin = (at + (VECTOR - 1)) // VECTOR * VECTOR
        head = begin - at
        count = (count - head) // VECTOR * VECTOR
    bounds = (length, begin, head, count)  # type: tuple
    row = tl.arange(0, RESULTS)
    inside = row < (length - block if INSIDE else 1)
    lanes_in = lane[None, :] < length - block if INSIDE else lane[None, :] >= 0
    pointers = (
        x_ptr + base, target_ptr + base if PROBABILITIES else target_ptr + first, weight_ptr, adjustment_ptr
    )  # type: tuple
    grad = grad_ptr + base if grad_ptr is not None else None
    smoothing = tl.full((), smoothing, T)
    gamma = tl.full((), gamma, tl.float64)
    flat = smoothing / classes.to(T)
    code = tl.where(inside, 0, -1)
    counted, known, label = inside, inside, code
    if not PROBABILITIES:
        label, counted, known = label_of_row(pointers[1], row, inside, classes, ignore_index)
        code = tl.where(counted, tl.where(known, label, classes), -1)

    none = tl.zeros((LANES,), T)
    lowest = tl.full((LANES,), float("-inf"), T)
    sums = (lowest, none, none, none, none, none, none)
    if PEEL:
        ends = _ends(lane[None, :], at, head, count, classes, VECTOR)
        x_ends, t_ends, a_ends = _tile(
            pointers, ends[1], ends[0], ends[2], code[None, :], smoothing, flat, SUMS, PROBABILITIES, FAST
        )
        sums = _add_tile(sums, x_ends, t_ends, a_ends, SUMS, HITS, FAST)
    SPAN: tl.constexpr = STEP if INSIDE else STEP * LANES
    steps = (classes + SPAN - 1) // SPAN
    for i in range(0, steps):
        which, offsets, there = _place(i, k, lane[None, :], bounds, INSIDE, SPAN)
        mask = lanes_in & there
        x, t, a = _tile(
            pointers, offsets, which, mask, code[None, :], smoothing, flat, SUMS, PROBABILITIES, FAST
        )
        sums = _add_tile(sums, x, t, a, SUMS, HITS, FAST)
    results = sums if INSIDE else _join_lanes(sums)
    top, _, total, deficit, mass, target_mass, hit = results
    rate, shift = base_of(top, T)
    base = (rate[None, :], shift[None, :])

    scales = scale_of_row(scale, scale_ptr, upstream_ptr, UPSTREAM, first + row, inside, T)
    here = counted & known
    fill = tl.where(counted, float("nan"), 0.0).to(T)
    if PROBABILITIES:
        loss, factor, b, c, mean = terms_of_probabilities(
            top, total, deficit, mass, target_mass, hit, scales, gamma, KIND, FAST
        )
    else:
        place = label * length + row if INSIDE else (at + label).to(tl.int64)
        x_label = tl.load(pointers[0] + place, mask=here, other=0.0).to(T)
        if adjustment_ptr is not None:
            x_label += tl.load(adjustment_ptr + label, mask=here, other=0.0)
        w = tl.full((RESULTS,), 1.0, T)
        if weight_ptr is not None:
            w = tl.load(weight_ptr + label, mask=here, other=0.0)
        x_label = largest(x_label)
        odds = odds_of(x_label, power_of(x_label, (rate, shift), FAST), top, total, tl.log(total), FAST)
        loss, factor, b, c = terms_of_id(
            odds, top, deficit, mass, w, flat, smoothing, scales, gamma, KIND, SMOOTH, TERMS, FAST
        )
        mean = none
    loss = tl.where(here, loss, fill)
    if LOSS == "elementwise":
        tl.store(loss_ptr + first + row, loss.to(loss_ptr.dtype.element_ty), mask=inside)
    elif LOSS == "sum":
        tl.store(loss_ptr + program, tl.sum(loss))

    if grad_ptr is not None:
        OUT: tl.constexpr = grad_ptr.dtype.element_ty
        factor = tl.where(here, factor, fill)
        if SUMS:
            b = tl.where(here, b, fill)
        slopes = (factor, b, c, mean)  # type: tuple
        for j in range(0, steps):
            which, offsets, there = _place(steps - 1 - j, k, lane[None, :], bounds, INSIDE, SPAN)
            mask = lanes_in & there
            x, t, a = _tile(
                pointers, offsets, which, mask, code[None, :], smoothing, flat, SUMS, PROBABILITIES, FAST
            )
            tl.store(grad + offsets, _gradient(x, t, a, base, slopes, SUMS, HITS, FAST).to(OUT), mask=mask)
        if PEEL:
            x_ends, t_ends, a_ends = _tile(
                pointers, ends[1], ends[0], ends[2], code[None, :], smoothing, flat, SUMS, PROBABILITIES, FAST
            )
            slope = _gradient(x_ends, t_ends, a_ends, base, slopes, SUMS, HITS, FAST)
            tl.store(grad + ends[1], slope.to(OUT), mask=ends[2])
        if not PROBABILITIES:
            tl.debug_barrier()  # the label's gradient replaces what its tile has written
            place = label * length + row if INSIDE else (at + label).to(tl.int64)
            tl.store(grad + place, c.to(OUT), mask=here)
