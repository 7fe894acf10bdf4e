"""Reading what comes with the logits: labels, dense targets, optional weights, and sizes in a tuple."""

import triton
import triton.language as tl

# How an optional tensor is read: "none", "scalar" (1, 1), "class" (1, C), "row" (N, 1) or "full" (N, C).
# Literals: Triton compares every global constant that a kernel uses at every launch, a microsecond each.


@triton.jit
def class_of_row(ptr, row, mask, C, ignore_index):
    """(class, counted, known): what is neither ignored nor -1 ... C is not known.

    Judged in 64 bits: 2^32 + 5 is not class 5.
    """
    label = tl.load(ptr + row, mask=mask, other=0).to(tl.int64)
    return label.to(tl.int32), mask & (label != ignore_index), (label + 1).to(tl.uint64) <= C + 1


@triton.jit
def dense_target(ptr, offsets, mask, ignore_index, T: tl.constexpr):
    """The target (0 where it does not count) and what the element counts: 1, 0 (ignored) or NaN."""
    target = tl.load(ptr + offsets, mask=mask, other=0)
    if target.dtype.is_floating():
        counted = mask & (target.to(T) != ignore_index.to(T))
    else:
        counted = mask & (target.to(tl.int64) != ignore_index)
    if target.dtype.is_floating():
        known = (target >= 0) & (target <= 1)
    else:
        known = (target == 0) | (target == 1)
    counts = tl.where(counted, tl.where(known, 1.0, float("nan")), 0.0).to(T)
    return tl.where(counted & known, target.to(T), 0.0), counts


@triton.jit
def first_offset(MODE: tl.constexpr, start, row):
    """Where a program's part of an optional tensor begins."""
    if MODE == "full":
        return start
    elif MODE == "row":
        return row
    else:
        return 0


@triton.jit
def optional(ptr, MODE: tl.constexpr, offsets, row, col, mask):
    """An optional tensor at the given elements; 1 without it."""
    if MODE == "none":
        return 1.0
    elif MODE == "scalar":
        return tl.load(ptr)
    elif MODE == "class":
        return tl.load(ptr + col, mask=mask, other=0.0)
    elif MODE == "row":
        return tl.load(ptr + row, mask=mask, other=0.0)
    else:
        return tl.load(ptr + offsets, mask=mask, other=0.0)


@triton.jit
def optional_in_tile(ptr, MODE: tl.constexpr, offsets, row, col, mask, mask_next, in_first):
    """optional for vectors that may end in the next row; a col is a class even where mask is off."""
    if MODE == "class":
        return tl.load(ptr + col)
    value = optional(ptr, MODE, offsets, row, col, mask)
    if MODE == "row":
        return tl.where(in_first, value, optional(ptr, MODE, offsets, row + 1, col, mask_next))
    else:
        return value


def odd(sizes: list[int]) -> tuple[int, ...]:
    """A tuple of sizes as a kernel takes it: Triton specialises on a 1 and on multiples of 16, whatever it is told of a
    tuple."""
    return tuple(2 * size + 3 for size in sizes)


@triton.jit
def size_of(odd):
    """One of the sizes that `odd` has passed."""
    return (odd - 3) // 2
