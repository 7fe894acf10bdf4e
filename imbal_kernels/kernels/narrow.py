"""The softmax kernel for rows of a few classes: (N, C), class last.

A thread holds four whole rows. Their 4 C logits lie one after another in memory: they move as C vectors of four,
whatever C is, and are dealt out to the classes in registers. Lanes share nothing but the program's loss, and the
label is found by comparing.
"""

import triton
import triton.language as tl

from . import numerics as nm
from .logits import (
    base_of,
    judged,
    largest,
    level_of,
    odds_of,
    power_of,
    scale_of,
    terms_of_id,
    terms_of_probabilities,
)


@triton.jit
def _split(tile):
    """The columns of (THREADS, 4)."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _join(first, second, third, fourth):
    tile = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(tile, (first.shape[0], 4))


@triton.jit
def _vector(k: tl.constexpr, THREADS: tl.constexpr, CLASSES: tl.constexpr):
    return tl.arange(0, THREADS)[:, None] * (4 * CLASSES) + (4 * k + tl.arange(0, 4)[None, :])


@triton.jit
def _load(ptr, rows, THREADS: tl.constexpr, CLASSES: tl.constexpr, FULL: tl.constexpr):
    vectors = ()  # type: tuple
    for k in tl.static_range(CLASSES):
        offsets = _vector(k, THREADS, CLASSES)
        if FULL:  # a mask by element would split the vectors
            vectors += (tl.load(ptr + offsets),)
        else:
            vectors += (tl.load(ptr + offsets, mask=offsets < rows * CLASSES, other=0),)
    return vectors


@triton.jit
def _read(ptr, rows, THREADS: tl.constexpr, CLASSES: tl.constexpr):
    """(THREADS, 4), four rows a thread, of each class; 0 beyond the last row."""
    if rows == 4 * THREADS:
        vectors = _load(ptr, rows, THREADS, CLASSES, True)
    else:
        vectors = _load(ptr, rows, THREADS, CLASSES, False)
    if CLASSES == 1:
        return vectors
    parts = ()  # type: tuple
    for k in tl.static_range(CLASSES):
        parts += _split(vectors[k])
    dealt = ()  # type: tuple
    for j in tl.static_range(CLASSES):
        dealt += (_join(parts[j], parts[CLASSES + j], parts[2 * CLASSES + j], parts[3 * CLASSES + j]),)
    return dealt


@triton.jit
def _write(ptr, dealt, rows, THREADS: tl.constexpr, CLASSES: tl.constexpr):
    """What _read has read."""
    vectors = dealt
    if CLASSES > 1:
        parts = ()  # type: tuple
        for j in tl.static_range(CLASSES):
            parts += _split(dealt[j])
        vectors = ()
        for k in tl.static_range(CLASSES):
            vector = ()  # type: tuple
            for i in tl.static_range(4 * k, 4 * k + 4):
                vector += (parts[i % CLASSES * 4 + i // CLASSES],)
            vectors += (_join(vector[0], vector[1], vector[2], vector[3]),)
    if rows == 4 * THREADS:
        for k in tl.static_range(CLASSES):
            tl.store(ptr + _vector(k, THREADS, CLASSES), vectors[k].to(ptr.dtype.element_ty))
    else:
        for k in tl.static_range(CLASSES):
            offsets = _vector(k, THREADS, CLASSES)
            tl.store(ptr + offsets, vectors[k].to(ptr.dtype.element_ty), mask=offsets < rows * CLASSES)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def narrow_kernel(
    x_ptr, target_ptr, weight_ptr, adjustment_ptr, scale_ptr, upstream_ptr, loss_ptr, grad_ptr,
    rows: tl.int64, ignore_index: tl.int64, scale: tl.float64, gamma: tl.float64, smoothing: tl.float64,
    KIND: tl.constexpr, PROBABILITIES: tl.constexpr, SMOOTH: tl.constexpr, UPSTREAM: tl.constexpr, LOSS: tl.constexpr,
    TERMS: tl.constexpr, FAST: tl.constexpr, THREADS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    SUMS: tl.constexpr = SMOOTH or PROBABILITIES
    program = tl.program_id(0).to(tl.int64)
    first = program * (4 * THREADS)
    rows = tl.minimum(rows - first, 4 * THREADS).to(tl.int32)
    gamma = tl.full((), gamma, tl.float64)
    smoothing = tl.full((), smoothing, T)
    flat = smoothing / CLASSES
    logits = _read(x_ptr + first * CLASSES, rows, THREADS, CLASSES)
    here = _vector(0, THREADS, 1) < rows
    none = tl.zeros((THREADS, 4), T)
    label, own_x, own_power, w, fill = 0, none, none, 1.0, none
    if PROBABILITIES:
        targets = _read(target_ptr + first * CLASSES, rows, THREADS, CLASSES)
    else:
        label = _read(target_ptr + first, rows, THREADS, 1)[0]
        label, counted, known = judged(label, here, CLASSES, ignore_index)
        here = counted & known
        # A row that does not count may hold a NaN: its logits are 0, and NaN where its id is not known.
        fill = tl.where(counted & (known == 0), float("nan"), none)
    top = none + float("-inf")
    xs = ()  # type: tuple
    for j in tl.static_range(CLASSES):
        x = nm.to_compute(logits[j], FAST)
        if adjustment_ptr is not None:
            x += tl.load(adjustment_ptr + j)
        if PROBABILITIES:
            top = tl.maximum(top, x)
            xs += (largest(x),)
        else:
            x = tl.where(here, x, fill)
            top = tl.maximum(top, tl.where(label == j, float("-inf"), x))
            x = largest(x)
            own_x = tl.where(label == j, x, own_x)
            if weight_ptr is not None:
                w = tl.where(label == j, tl.load(weight_ptr + j), w)
            xs += (x,)
    base = base_of(top, T)
    total, deficit, mass, target_mass, hit = none, none, none, none, none
    powers, shares = (), ()  # type: tuple, tuple
    for j in tl.static_range(CLASSES):
        power = power_of(xs[j], base, FAST)
        share = 0.0
        if SUMS:
            share = none + (1.0 if weight_ptr is None else tl.load(weight_ptr + j))
        if PROBABILITIES:
            t = targets[j].to(T)
            share *= t * (1.0 - smoothing) + flat
            target_mass += t
            hit += t * power
        else:
            own_power = tl.where(label == j, power, own_power)
            power = tl.where(label == j, 0.0, power)
            if SUMS:
                share = tl.where(here & (label != j), share, 0.0)
        total += power
        if SUMS:
            deficit += tl.where(share == 0, 0.0, share * (level_of(top) - xs[j]))
            mass += share
        powers += (power,)
        shares += (share,)

    upstream = 1.0
    if UPSTREAM == "row":
        upstream = _read(upstream_ptr + first, rows, THREADS, 1)[0].to(T)
    scales = scale_of(scale, scale_ptr, upstream_ptr, upstream, UPSTREAM, T)
    scales = (tl.where(here, scales[0], fill), tl.where(here, scales[1], fill))
    if PROBABILITIES:
        loss, a, b, c, mean = terms_of_probabilities(
            top, total, deficit, mass, target_mass, hit, scales, gamma, KIND, FAST
        )
    else:
        odds = odds_of(own_x, own_power, top, total, nm.log2(total, FAST) * nm.LN2, FAST)
        loss, a, b, c = terms_of_id(
            odds, top, deficit, mass, w, flat, smoothing, scales, gamma, KIND, SMOOTH, TERMS, FAST
        )
    if LOSS == "elementwise":
        _write(loss_ptr + first, (loss,), rows, THREADS, 1)
    elif LOSS == "sum":
        tl.store(loss_ptr + program, tl.sum(loss))

    if grad_ptr is not None:
        grads = ()  # type: tuple
        for j in tl.static_range(CLASSES):
            slope = a
            if PROBABILITIES and KIND != 0:
                slope += c * (mean - targets[j].to(T))
            grad = powers[j] * slope
            if SUMS:
                grad -= shares[j] * b
            if not PROBABILITIES:
                grad = tl.where(label == j, c, grad)
            grads += (grad,)
        _write(grad_ptr + first * CLASSES, grads, rows, THREADS, CLASSES)
