"""Element arithmetic: each approximate intrinsic behind a switch, with a portable twin.

FAST uses the hardware's ex2, rcp, sqrt and lg2 directly. The twin is what the interpreter and fp64 run.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _approx(name: tl.constexpr, x):
    return tl.inline_asm_elementwise(
        name + ".approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def exp2(x, FAST: tl.constexpr):
    return _approx("ex2", x) if FAST else tl.exp2(x)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    return _approx("rcp", x) if FAST else 1.0 / x


@triton.jit
def sqrt(x, FAST: tl.constexpr):
    return _approx("sqrt", x) if FAST else tl.sqrt(x)


@triton.jit
def log2(x, FAST: tl.constexpr):
    return _approx("lg2", x) if FAST else tl.log2(x)


@triton.jit
def minimum(a, b, FAST: tl.constexpr):
    """The smaller; of a number and a NaN the number (interpreters differ in that)."""
    return tl.minimum(a, b) if FAST else tl.where((a < b) | (b != b), a, b)


@triton.jit
def maximum(a, b, FAST: tl.constexpr):
    """The larger; of a number and a NaN the number."""
    return tl.maximum(a, b) if FAST else tl.where((a > b) | (b != b), a, b)


@triton.jit
def product_to_1(a, b, FAST: tl.constexpr):
    """a * b where that lies in [0, 1]; 0 where it is inf * 0. A saturating multiplication does both."""
    if FAST:
        return tl.inline_asm_elementwise(
            "mul.sat.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.where(a * b >= 0, a * b, 0.0)


@triton.jit
def minus_log1m(y, TERMS: tl.constexpr):
    """-log(1 - y) on [0, 1/2], accurate relative to its value (lg2.approx is not, near y = 0).

    Minimax polynomials of -log(1 - y) / y. Largest relative error: 5 terms 4.4e-5 (half inputs),
    7 terms 1.5e-6, 8 terms 2.3e-7; the last two spend it near 1/2, where the exponential is exact.
    """
    if y.dtype == tl.float64:
        u = 1.0 - y
        return tl.where(u == 1.0, y, -tl.log(u) * (y / tl.where(u == 1.0, 1.0, 1.0 - u)))
    if TERMS == 5:
        s = 0.7451946237 * y - 0.05782046219
        s = s * y + 0.3958025923
        s = s * y + 0.495781475
        s = s * y + 1.000044366
    elif TERMS == 7:
        s = 0.884149032 * y - 0.4786482656
        s = s * y + 0.4337093293
        s = s * y + 0.2103125985
        s = s * y + 0.336310629
        s = s * y + 0.4999227312
        s = s * y + 1.000000298
    else:
        s = 1.055684841 * y - 0.8557775405
        s = s * y + 0.630919742
        s = s * y + 0.09022621376
        s = s * y + 0.2632603563
        s = s * y + 0.3325909167
        s = s * y + 0.5000148508
        s = s * y + 0.9999999548
    return y * s


@triton.jit
def times_power(w, k, KIND: tl.constexpr, FAST: tl.constexpr):
    """w * k ** (KIND / 2) by multiplications and at most one square root."""
    for _ in tl.static_range(KIND // 2):
        w = w * k
    if KIND % 2 == 1:
        w = w * sqrt(k, FAST)
    return w


@triton.jit
def exp_of_product(u, factor, FAST: tl.constexpr):
    """2 ** (-u * factor) for u >= 0 and an fp64 scalar factor.

    In fp32 the rounding of the factor alone would cost 1e-7 * u * factor, so it is split in two. The
    first part is rounded down: with both parts positive an infinite u gives 0 and not NaN.
    """
    if u.dtype == tl.float64:
        return tl.exp2(-u * factor)
    high = (factor * (1.0 - 2.0**-22)).to(tl.float32)
    low = (factor - high.to(tl.float64)).to(tl.float32)
    return exp2(tl.fma(u, -high, u * -low), FAST)


@triton.jit
def fma_unless(skip, a, b, c, FAST: tl.constexpr):
    """c where skip is not 0, else a * b + c; the asm is one predicated instruction."""
    if FAST:
        return tl.inline_asm_elementwise(
            """{ .reg .pred p;
            setp.eq.b32 p, $1, 0;
            @p fma.rn.f32 $0, $2, $3, $0; }""",
            "=r,r,r,r,0", [skip, a, b, c], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.where(skip != 0, c, a * b + c)


@triton.jit
def like(value, x, FAST: tl.constexpr):
    """value, laid out over the threads as x is: an empty instruction that ties the two together.

    Left alone the compiler evaluates a whole tile in the layout of a row's label and passes logits
    and gradients through shared memory; with this only the row's few values go there.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r", [value, x], dtype=value.dtype, is_pure=True, pack=1
        )
    else:
        return value


@triton.jit
def to_compute(x, FAST: tl.constexpr):
    """Half precision to fp32; for bf16 in one instruction an element, which the compiler misses."""
    if x.dtype == tl.float64:
        return x
    elif FAST and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return x.to(tl.float32)


@triton.jit
def replace_pairs(grad, codes):
    """Half-precision gradients in pairs: 0 where bit 16 of the code is set, NaN where bit 0 is set too."""
    return tl.inline_asm_elementwise(
        """{ .reg .pred skip, bad; .reg .b32 bit, fill;
        and.b32 bit, $2, 0x10000; setp.ne.b32 skip, bit, 0;
        and.b32 bit, $2, 1; setp.ne.b32 bad, bit, 0;
        selp.b32 fill, 0x7fff7fff, 0, bad;
        selp.b32 $0, fill, $1, skip; }""",
        "=r,r,r,r", [grad, codes], dtype=grad.dtype, is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def fma_unless_equal(i, j, a, b, c, FAST: tl.constexpr):
    """c where i is j, else a * b + c; the asm is two instructions."""
    if FAST:
        return tl.inline_asm_elementwise(
            """{ .reg .pred p;
            setp.ne.b32 p, $1, $2;
            @p fma.rn.f32 $0, $3, $4, $0; }""",
            "=r,r,r,r,r,0", [i, j, a, b, c], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.where(i == j, c, a * b + c)


@triton.jit
def replaced(x, keep, fill, FAST: tl.constexpr):
    """The bits of x that keep has, and those of fill; halves in pairs."""
    if FAST:
        PACK: tl.constexpr = 2 if keep.dtype == tl.int16 else 1
        return tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [x, keep, fill], dtype=x.dtype, is_pure=True, pack=PACK
        )
    else:
        return ((x.to(keep.dtype, bitcast=True) & keep) | fill).to(x.dtype, bitcast=True)
