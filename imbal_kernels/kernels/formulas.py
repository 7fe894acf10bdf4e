"""Element formulas, passed to the streaming kernel: (logit, target, weight, ...) -> (a, b, gradient).

The loss is a * b: the kernel adds it up by one fused multiply-add. parameters are (smoothing, gamma, gamma_pos,
clip), KINDS (of gamma, of gamma_pos, whether there is a clip). A kind is 2 * gamma for gamma in 0, 1/2, 1, ..., 3, 4
and GENERAL for any other, which stays a runtime scalar; gamma_pos may have gamma's, SAME. ZERO: w, or the power
of a smoothed target, may be 0, and so is the loss then, even of an infinite logit. A NaN stays one.
"""

import triton
import triton.language as tl

from . import numerics as nm

GENERAL = tl.constexpr(-1)
SAME = tl.constexpr(-2)


@triton.jit
def _gamma(gamma, KIND: tl.constexpr, T: tl.constexpr):
    if KIND == GENERAL:
        return gamma.to(T)
    else:
        return KIND / 2


@triton.jit
def _negative(z, w, gamma, KIND: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr):
    if z.dtype == tl.float64:
        e = tl.exp(-z)
    else:
        e = nm.exp2(z * -nm.LOG2E, FAST)
    return background_of(z, e, w, gamma, KIND, ZERO, TERMS, FAST)


@triton.jit
def background(
    x, target, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Target 0. With p = sigmoid(x), q = 1 - p: loss = w p^gamma softplus(x),
    dloss/dx = w p^gamma (p + gamma q softplus(x)); with a clip, see clipped.
    """
    if KINDS[2]:
        return clipped(x, w, parameters, KINDS, TERMS, FAST)
    else:
        return _negative(x, w, parameters[1], KINDS[0], ZERO, TERMS, FAST)


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
def _opposite(z, w, parameters, KINDS, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr):
    """The positive's terms at z = -x, its gradient by z."""
    if KINDS[1] == SAME:
        return _negative(z, w, parameters[1], KINDS[0], ZERO, TERMS, FAST)
    else:
        return _negative(z, w, parameters[2], KINDS[1], ZERO, TERMS, FAST)


@triton.jit
def positive(
    x, target, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Target 1: the background at -x. pos_weight and alpha are already in w."""
    power, softplus, grad = _opposite(-x, w, parameters, KINDS, ZERO, TERMS, FAST)
    return power, softplus, -grad


@triton.jit
def hard(
    x, target, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Targets that are exactly 0 or 1, without a clip."""
    z = tl.where(target != 0, -x, x)
    power, softplus, grad = _negative(z, w, parameters[1], KINDS[0], ZERO, TERMS, FAST)
    if KINDS[1] != SAME:
        other_power, other_softplus, other_grad = _opposite(z, w, parameters, KINDS, ZERO, TERMS, FAST)
        power = tl.where(target != 0, other_power, power)
        softplus = tl.where(target != 0, other_softplus, softplus)
        grad = tl.where(target != 0, other_grad, grad)
    return power, softplus, tl.where(target != 0, -grad, grad)


@triton.jit
def _sides(x, TERMS: tl.constexpr, FAST: tl.constexpr):
    """p, q, -log1p(-min(p, q)), softplus(x), softplus(-x)"""
    if x.dtype == tl.float64:
        e = tl.exp(-tl.abs(x))
    else:
        e = nm.exp2(tl.abs(x) * -nm.LOG2E, FAST)
    large = nm.reciprocal(1.0 + e, FAST)
    small = e * large
    p = tl.where(x < 0, small, large)
    q = tl.where(x < 0, large, small)
    tail = nm.minus_log1m(small, TERMS)
    return p, q, tail, tail + tl.maximum(x, 0.0), tail - tl.minimum(x, 0.0)


@triton.jit
def _smoothed(t, pos_weight, smoothing, T: tl.constexpr):
    """pos_weight t', 1 - t'"""
    s = smoothing.to(T)
    return pos_weight * (t * (1.0 - s) + 0.5 * s), (1.0 - t) * (1.0 - s) + 0.5 * s


@triton.jit
def _entropy(sides, t, pos_weight, smoothing, T: tl.constexpr, FAST: tl.constexpr):
    """B = pos_weight t' softplus(-x) + (1 - t') softplus(x), no more than the largest number, and dB/dx."""
    p, q, tail, up, down = sides
    weight_down, weight_up = _smoothed(t, pos_weight, smoothing, T)
    # Each product is at least weight * tail, which replaces 0 * inf at an infinite logit.
    bce = nm.maximum(weight_down * down, weight_down * tail, FAST)
    bce += nm.maximum(weight_up * up, weight_up * tail, FAST)
    HUGE: tl.constexpr = 1e308 if T == tl.float64 else 3e38
    finite = tl.minimum(bce, HUGE, propagate_nan=tl.PropagateNan.ALL)
    return bce, finite, weight_up * p - weight_down * q


@triton.jit
def _tiny(T: tl.constexpr):
    return 1e-300 if T == tl.float64 else 2.0**-126


@triton.jit
def _silent(power, bce, finite, ZERO: tl.constexpr):
    return tl.where(power == 0, finite, bce) if ZERO else bce


@triton.jit
def soft(
    x, t, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Any target in [0, 1], with label smoothing: k = t + p - 2 t p, t' = t (1 - s) + s / 2, loss = w k^gamma B."""
    KIND: tl.constexpr = KINDS[0]
    sides = _sides(x, TERMS, FAST)
    p, q, tail, up, down = sides
    bce, finite, slope = _entropy(sides, t, pos_weight, parameters[0], x.dtype, FAST)
    if KIND == 0:
        return w, _silent(w, bce, finite, ZERO), w * slope
    else:
        k = t * q + (1.0 - t) * p  # t + p - 2 t p without its cancellation
        if KIND == GENERAL:
            # k is q or p at a hard target: its logarithm is a softplus, exact where log2 is not.
            minus_log = tl.where(t == 0, down, tl.where(t == 1, up, -nm.LN2 * nm.log2(k, FAST)))
            power = w * nm.exp_of_product(minus_log, parameters[1] * nm.LOG2E, FAST)
        else:
            power = nm.times_power(w, k, KIND, FAST)
        # d(k^gamma)/dx = gamma k^gamma (1 - 2 t) p q / k
        ratio = (p * q) * nm.reciprocal(tl.maximum(k, _tiny(x.dtype)), FAST)
        slope += _gamma(parameters[1], KIND, x.dtype) * (1.0 - 2.0 * t) * (ratio * finite)
        return power, _silent(power, bce, finite, ZERO), power * slope


@triton.jit
def quality(
    x, t, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Quality focal loss: d = p - t, loss = w |d|^beta B."""
    KIND: tl.constexpr = KINDS[0]
    sides = _sides(x, TERMS, FAST)
    p, q, tail, up, down = sides
    bce, finite, slope = _entropy(sides, t, pos_weight, parameters[0], x.dtype, FAST)
    # From the smaller of p and q: exact for a hard target.
    d = tl.where(x < 0, p - t, (1.0 - t) - q)
    k = tl.abs(d)
    if KIND == GENERAL:
        minus_log = tl.where(t == 0, down, tl.where(t == 1, up, -nm.LN2 * nm.log2(k, FAST)))
        power = w * nm.exp_of_product(minus_log, parameters[1] * nm.LOG2E, FAST)
    else:
        power = nm.times_power(w, k, KIND, FAST)
    # d(|d|^beta)/dx = beta |d|^beta p q / d; the power silences d = 0
    inverse = nm.reciprocal(tl.maximum(k, _tiny(x.dtype)), FAST)
    ratio = (p * q) * tl.where(d < 0, -inverse, inverse)
    slope += _gamma(parameters[1], KIND, x.dtype) * (ratio * finite)
    return power, _silent(power, bce, finite, ZERO), power * slope


@triton.jit
def varifocal(
    x, t, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Varifocal loss: w t B where t > 0, w p^gamma B elsewhere; alpha is in the w of those."""
    KIND: tl.constexpr = KINDS[0]
    sides = _sides(x, TERMS, FAST)
    p, q, tail, up, down = sides
    bce, finite, slope = _entropy(sides, t, pos_weight, parameters[0], x.dtype, FAST)
    if KIND == GENERAL:
        power = w * nm.exp_of_product(down, parameters[1] * nm.LOG2E, FAST)
    else:
        power = nm.times_power(w, p, KIND, FAST)
    power = tl.where(t == 0, power, w * t)
    if KIND != 0:
        slope += tl.where(t == 0, _gamma(parameters[1], KIND, x.dtype) * (q * finite), 0.0)
    return power, _silent(power, bce, finite, ZERO), power * slope


@triton.jit
def clipped(x, w, parameters, KINDS: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr):
    """Target 0 of the asymmetric loss: y = max(p - clip, 0), u = -log(1 - y), loss = w y^gamma u,
    dloss/dx = w y^gamma p q (gamma u / y + 1 / (1 - y)), 0 where y is. u is finite: 1 - y is at least the clip.
    """
    KIND: tl.constexpr = KINDS[0]
    if x.dtype == tl.float64:
        e = tl.exp(-x)
    else:
        e = nm.exp2(x * -nm.LOG2E, FAST)
    p = nm.reciprocal(1.0 + e, FAST)
    q = nm.product_to_1(e, p, FAST)  # 0 where e overflows, which is far below any clip
    clip = parameters[3]
    y = tl.maximum(p - clip, 0.0, propagate_nan=tl.PropagateNan.ALL)
    rest = q + clip  # 1 - y, where y is not 0
    u = tl.where(y > 0.5, nm.log2(rest, FAST) * -nm.LN2, nm.minus_log1m(y, TERMS))
    slope = nm.reciprocal(rest, FAST)
    if KIND >= 2:  # gamma y^(gamma - 1), not gamma y^gamma / y
        power = nm.times_power(w, y, KIND - 2, FAST)
        return power * y, u, power * (p * q) * (y * slope + (KIND / 2) * u)
    if KIND == GENERAL:
        power = w * nm.exp_of_product(nm.log2(y, FAST) * -nm.LN2, parameters[1] * nm.LOG2E, FAST)
    else:
        power = nm.times_power(w, y, KIND, FAST)
    if KIND != 0:
        inverse = nm.reciprocal(tl.maximum(y, _tiny(x.dtype)), FAST)
        slope += _gamma(parameters[1], KIND, x.dtype) * (u * inverse)
    return power, u, tl.where(y == 0, 0.0, power * (p * q) * slope)


@triton.jit
def asymmetric(
    x, t, w, pos_weight, parameters, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Any target: pos_weight t' times the loss of a positive and 1 - t' times that of a negative."""
    weight_down, weight_up = _smoothed(t, pos_weight, parameters[0], x.dtype)
    power, softplus, slope = _opposite(-x, weight_down, parameters, KINDS, True, TERMS, FAST)
    loss, grad = power * softplus, -slope
    power, softplus, slope = background(x, t, weight_up, pos_weight, parameters, KINDS, True, TERMS, FAST)
    loss += power * softplus
    HUGE: tl.constexpr = 1e308 if x.dtype == tl.float64 else 3e38
    finite = tl.minimum(loss, HUGE, propagate_nan=tl.PropagateNan.ALL)
    return w, _silent(w, loss, finite, ZERO), w * (grad + slope)


@triton.jit
def own(FUNCTION: tl.constexpr, x, t, w, ZERO: tl.constexpr):
    """A user's formula, (logit, target) -> (loss, gradient), weighted."""
    loss, grad = FUNCTION(x, t)
    HUGE: tl.constexpr = 1e308 if x.dtype == tl.float64 else 3e38
    finite = tl.minimum(loss, HUGE, propagate_nan=tl.PropagateNan.ALL)
    return w, _silent(w, loss, finite, ZERO), w * grad
