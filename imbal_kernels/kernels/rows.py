"""The softmax kernel for rows that fit in registers: (N, C), class last, a few rows a program.

A row is the binary problem of its label against the rest. With m the largest of the other logits,
e_j = exp(x_j - m) and d = sum of e_j over j != y, it has the logit z = log d - (x_y - m): q_y = sigmoid(z), the
cross-entropy is softplus(z), and whatever the loss's slope in z, e_j / d of it is logit j's. Nothing cancels,
however confident the row. The label's column is -inf in registers; its gradient is written after the others'.
"""

import triton
import triton.language as tl

from . import formulas
from . import numerics as nm


@triton.jit
def label_of_row(ptr, row, mask, C, ignore_index):
    """(label, counted, known), judged in 64 bits: what is neither ignored nor 0 ... C - 1 is not known."""
    label = tl.load(ptr + row, mask=mask, other=0).to(tl.int64)
    return label.to(tl.int32), mask & (label != ignore_index), (label >= 0) & (label < C)


@triton.jit
def upstream_of_row(ptr, MODE: tl.constexpr, row, mask, T: tl.constexpr):
    if MODE == "none":
        return 1.0
    elif MODE == "scalar":
        return tl.load(ptr).to(T)
    else:
        return tl.load(ptr + row, mask=mask, other=0.0).to(T)


@triton.jit(do_not_specialize=["rows", "groups", "ignore_index"])
def row_kernel(
    x_ptr, target_ptr, scale_ptr, upstream_ptr, loss_ptr, grad_ptr, rows: tl.int64, groups: tl.int32,
    ignore_index: tl.int64, scale: tl.float64, gamma: tl.float64,
    KIND: tl.constexpr, UPSTREAM: tl.constexpr, LOSS: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr,
    ROWS: tl.constexpr, PIECES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    C = groups * VECTOR
    program = tl.program_id(0).to(tl.int64)
    start = program * ROWS * C
    row = tl.arange(0, ROWS)
    limit = tl.minimum(rows - program * ROWS, ROWS).to(tl.int32)
    label, counted, known = label_of_row(target_ptr + program * ROWS, row, row < limit, C, ignore_index)
    x_ptr += start
    L = tl.full((), nm.LOG2E, T)

    tiles = ()
    first: tl.constexpr = 0
    top = tl.full((ROWS,), float("-inf"), T)
    for i in tl.static_range(len(PIECES)):
        col = (0 if i == 0 else PIECES[0]) + tl.arange(0, PIECES[i])[None, :]
        offsets = row[:, None] * C + col
        mask = counted[:, None] & (col < C)
        x = nm.to_compute(tl.load(x_ptr + offsets, mask=mask, other=float("-inf")), FAST)
        x = tl.where(col == label[:, None], float("-inf"), x)
        tiles += (x,)
        top = tl.maximum(top, tl.max(x, axis=1))
    top = tl.where(top == float("-inf"), 0.0, top)
    shift = top * L
    others = tl.zeros((ROWS,), T)
    powers = ()
    for i in tl.static_range(len(PIECES)):
        e = nm.exp2(tl.fma(tiles[i], L, -shift[:, None]), FAST)
        others += tl.sum(e, axis=1)
        powers += (e,)
    here = counted & known
    x_label = tl.load(x_ptr + row * C + label, mask=here, other=0.0).to(T)
    own = nm.exp2(tl.fma(x_label, L, -shift), FAST)
    z = tl.log(others) - (x_label - top)
    inverse = tl.where(others == 0, 0.0, nm.reciprocal(others, FAST))
    w = tl.full((), scale, T)
    if scale_ptr is not None:
        w *= tl.load(scale_ptr).to(T)
    a, b, slope = formulas.background_of(z, own * inverse, w, tl.full((), gamma, tl.float64), KIND, True, TERMS, FAST)
    fill = tl.where(counted, float("nan"), 0.0).to(T)
    loss = tl.where(here, a * b, fill)
    if LOSS == "elementwise":
        tl.store(loss_ptr + program * ROWS + row, loss.to(loss_ptr.dtype.element_ty), mask=row < limit)
    elif LOSS == "sum":
        tl.store(loss_ptr + program, tl.sum(loss))
    if grad_ptr is not None:
        grad_ptr += start
        OUT: tl.constexpr = grad_ptr.dtype.element_ty
        slope = tl.where(here, slope, fill) * upstream_of_row(upstream_ptr, UPSTREAM, row, row < limit, T)
        factor = slope * inverse
        for i in tl.static_range(len(PIECES)):
            col = (0 if i == 0 else PIECES[0]) + tl.arange(0, PIECES[i])[None, :]
            mask = (row < limit)[:, None] & (col < C)
            tl.store(grad_ptr + row[:, None] * C + col, (powers[i] * factor[:, None]).to(OUT), mask=mask)
        tl.debug_barrier()
        tl.store(grad_ptr + row * C + label, (-slope).to(OUT), mask=here)
