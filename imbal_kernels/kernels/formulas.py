"""Element formulas, passed to the streaming kernel: (logit, target, weight, ...) -> (a, b, gradient).

The loss is a * b: the kernel adds it up by one fused multiply-add. KIND is 2 * gamma for gamma in
0, 1/2, 1, ..., 3 and GENERAL for any other, which stays a runtime scalar. ZERO: w, or the power of
a smoothed target, may be 0, and so is the loss then, even of an infinite logit. A NaN stays one.
"""

import triton
import triton.language as tl

from . import numerics as nm

GENERAL = tl.constexpr(-1)


@triton.jit
def _gamma(gamma, KIND: tl.constexpr, T: tl.constexpr):
    if KIND == GENERAL:
        return gamma.to(T)
    else:
        return KIND / 2


@triton.jit
def background(
    x, target, w, pos_weight, smoothing, gamma, KIND, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr
):
    """Target 0. With p = sigmoid(x), q = 1 - p: loss = w p^gamma softplus(x),
    dloss/dx = w p^gamma (p + gamma q softplus(x)).
    """
    if x.dtype == tl.float64:
        e = tl.exp(-x)
    else:
        e = nm.exp2(x * -nm.LOG2E, FAST)
    return background_of(x, e, w, gamma, KIND, ZERO, TERMS, FAST)


@triton.jit
def background_of(x, e, w, gamma, KIND: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr):
    """The background's terms for a logit and e = exp(-x)."""
    p = nm.reciprocal(1.0 + e, FAST)
    # Where e overflows q is inf * 0; minimum and maximum return the other operand of a NaN.
    q = e * p
    tail = nm.minus_log1m(nm.minimum(p, q, FAST), TERMS)
    above = tl.maximum(x, 0.0)
    if ZERO:
        above = tl.where(w == 0, 0.0, above)
    softplus = tail + above
    if KIND == GENERAL:
        opposite = tail - tl.minimum(x, 0.0)
        power = w * nm.exp_of_product(opposite, gamma * nm.LOG2E, FAST)
    else:
        power = nm.times_power(w, p, KIND, FAST)
    slope = p
    if KIND != 0:
        # q softplus(x) is at most 0.36, and 0 at both infinities.
        slope += _gamma(gamma, KIND, p.dtype) * nm.product_to_1(q, softplus, FAST)
    return power, softplus, power * slope


@triton.jit
def positive(
    x, target, w, pos_weight, smoothing, gamma, KIND, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr
):
    """Target 1: the background at -x. pos_weight and alpha are already in w."""
    power, softplus, grad = background(-x, target, w, pos_weight, smoothing, gamma, KIND, ZERO, TERMS, FAST)
    return power, softplus, -grad


@triton.jit
def hard(
    x, target, w, pos_weight, smoothing, gamma, KIND, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr
):
    """Targets that are exactly 0 or 1."""
    z = tl.where(target != 0, -x, x)
    power, softplus, grad = background(z, target, w, pos_weight, smoothing, gamma, KIND, ZERO, TERMS, FAST)
    return power, softplus, tl.where(target != 0, -grad, grad)


@triton.jit
def soft(
    x, t, w, pos_weight, smoothing, gamma, KIND, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr
):
    """Any target in [0, 1], with label smoothing: k = t + p - 2 t p, t' = t (1 - s) + s / 2,
    B = pos_weight t' softplus(-x) + (1 - t') softplus(x), loss = w k^gamma B.
    """
    if x.dtype == tl.float64:
        e = tl.exp(-tl.abs(x))
        TINY: tl.constexpr = 1e-300
        HUGE: tl.constexpr = 1e308
    else:
        e = nm.exp2(tl.abs(x) * -nm.LOG2E, FAST)
        TINY: tl.constexpr = 2.0**-126  # type: ignore[no-redef]
        HUGE: tl.constexpr = 3e38  # type: ignore[no-redef]
    large = nm.reciprocal(1.0 + e, FAST)
    small = e * large
    p = tl.where(x < 0, small, large)
    q = tl.where(x < 0, large, small)
    tail = nm.minus_log1m(small, TERMS)
    up = tail + tl.maximum(x, 0.0)
    down = tail - tl.minimum(x, 0.0)

    s = smoothing.to(x.dtype)
    weight_down = pos_weight * (t * (1.0 - s) + 0.5 * s)
    weight_up = (1.0 - t) * (1.0 - s) + 0.5 * s
    # Each product is at least weight * tail, which replaces 0 * inf at an infinite logit.
    bce = nm.maximum(weight_down * down, weight_down * tail, FAST)
    bce += nm.maximum(weight_up * up, weight_up * tail, FAST)
    slope = weight_up * p - weight_down * q
    finite = tl.minimum(bce, HUGE, propagate_nan=tl.PropagateNan.ALL)
    if KIND == 0:
        return w, tl.where(w == 0, finite, bce) if ZERO else bce, w * slope

    k = t * q + (1.0 - t) * p  # t + p - 2 t p without its cancellation
    if KIND == GENERAL:
        # k is q or p at a hard target: its logarithm is a softplus, exact where log2 is not.
        minus_log = tl.where(t == 0, down, tl.where(t == 1, up, -nm.LN2 * nm.log2(k, FAST)))
        power = w * nm.exp_of_product(minus_log, gamma * nm.LOG2E, FAST)
    else:
        power = nm.times_power(w, k, KIND, FAST)
    # d(k^gamma)/dx = gamma k^gamma (1 - 2 t) p q / k
    ratio = (p * q) * nm.reciprocal(tl.maximum(k, TINY), FAST)
    slope += _gamma(gamma, KIND, x.dtype) * (1.0 - 2.0 * t) * (ratio * finite)
    return power, tl.where(power == 0, finite, bce) if ZERO else bce, power * slope
