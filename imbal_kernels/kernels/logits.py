"""What the softmax kernels share: labels, and a row's loss and slopes from its sums.

A row with a class id y is the binary problem of y against the rest. With m the largest of the other logits,
e_j = exp(x_j - m) and d = sum of e_j over j != y, it has the logit z = log d - (x_y - m): q_y = sigmoid(z), the
cross-entropy is u = softplus(z), and of the loss's slope in z logit j gets e_j / d. Nothing cancels, however
confident the row. e_j is 2^(x_j log2e - shift) with the shift, m log2e, rounded once: that is common to all e_j.

With smoothing s, f = s / C and k = q_y, of the other classes' weights w and the label's a = w_y (1 - s + f):
    B = a u + f sum w_j (lse - x_j), L = k^gamma B.
With probabilities t, a_j = w_j (t_j (1 - s) + f), k = sum t_j (1 - p_j):
    B = sum a_j (lse - x_j), L = k^gamma B.

Sums take the largest number for a logit of +inf, which leaves nothing of the others; the limits of what would be
infinite are taken once a row.
"""

import triton
import triton.language as tl

from . import formulas
from . import numerics as nm


@triton.jit
def label_of_row(ptr, row, mask, C, ignore_index):
    return judged(tl.load(ptr + row, mask=mask, other=0), mask, C, ignore_index)


@triton.jit
def judged(label, mask, C, ignore_index):
    """(label, counted, known), judged in 64 bits: what is neither ignored nor 0 ... C - 1 is not known."""
    label = label.to(tl.int64)
    return label.to(tl.int32), mask & (label != ignore_index), label.to(tl.uint64) < C


@triton.jit
def scale_of_row(scale, scale_ptr, upstream_ptr, UPSTREAM: tl.constexpr, row, mask, T: tl.constexpr):
    upstream = 1.0
    if UPSTREAM == "row":
        upstream = tl.load(upstream_ptr + row, mask=mask, other=0.0).to(T)
    return scale_of(scale, scale_ptr, upstream_ptr, upstream, UPSTREAM, T)


@triton.jit
def scale_of(scale, scale_ptr, upstream_ptr, upstream, UPSTREAM: tl.constexpr, T: tl.constexpr):
    """(scale of the loss, scale of the gradient); upstream is the rows', where they have their own."""
    scale = tl.full((), scale, T)
    if scale_ptr is not None:
        scale *= tl.load(scale_ptr).to(T)
    if UPSTREAM == "none":
        return scale, scale
    elif UPSTREAM == "scalar":
        return scale, scale * tl.load(upstream_ptr).to(T)
    else:
        return scale, scale * upstream


@triton.jit
def largest(x):
    """x, the largest number for +inf; a NaN stays one."""
    return tl.where(x == float("inf"), _max(x.dtype), x)


@triton.jit
def _max(T: tl.constexpr):
    return 1.7976931348623157e308 if T == tl.float64 else 3.4028234663852886e38


@triton.jit
def _finite(top):
    """The nearest number to an infinity."""
    return tl.minimum(tl.maximum(top, -_max(top.dtype)), _max(top.dtype))


@triton.jit
def level_of(top):
    """What deficits are measured from: any number where no logit is above -inf."""
    return tl.where(top == float("-inf"), 0.0, largest(top))


@triton.jit
def _infinite_beside(top, deficit):
    """A sum of a_j (top - x_j), infinite where the largest number has stood for a top of +inf."""
    return tl.where((top == float("inf")) & (deficit != 0), deficit * float("inf"), deficit)


@triton.jit
def _bounded(bce):
    return tl.minimum(bce, 1e30, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def base_of(top, T: tl.constexpr):
    """(rate, shift): powers are 2^(x rate - shift), with rate log2e.

    The rounding of the shift grows with the logits and would at last be out of range. So large, different logits
    lie so far apart that one power is 1 and the others 0 in any base, and with rate 1 nothing is rounded. Where every
    logit is -inf the powers are 0, and that of a number beside them is infinite or, of the least, 1.
    """
    HUGE: tl.constexpr = 2.0**60 if T == tl.float64 else 2.0**29
    top = largest(top)
    rate = tl.where(tl.abs(top) >= HUGE, tl.full((), 1.0, T), tl.full((), nm.LOG2E, T))
    return rate, tl.maximum(top * rate, -_max(T))


@triton.jit
def power_of(x, base, FAST: tl.constexpr):
    return nm.exp2(tl.fma(x, base[0], -base[1]), FAST)


@triton.jit
def odds_of(x, power, top, others, log_others, FAST: tl.constexpr):
    """(z, e = exp(-z), 1 / others, log of the sum of exp(x_j - top), x - top) from y's logit, no more than the largest
    number, its power, the sum of the others' and its logarithm, whose absolute error counts: it is never a factor.
    """
    # Beside a +inf any number is -inf, but for the largest, which counts as infinite too.
    beside = (top == float("inf")) & (x < _max(x.dtype))
    base = base_of(top, x.dtype)
    top = _finite(top)
    ahead = x - top
    log_others -= tl.fma(top, base[0], -base[1]) * nm.LN2
    inverse = nm.reciprocal(others, FAST)
    z = log_others - tl.where(beside, float("-inf"), ahead)
    return z, power * inverse, tl.where(others == 0, 0.0, inverse), log_others, ahead


@triton.jit
def _gamma(gamma, KIND: tl.constexpr, T: tl.constexpr):
    if KIND == formulas.GENERAL:
        return gamma.to(T)
    else:
        return KIND / 2


@triton.jit
def terms_of_id(
    odds, top, deficit, rest, w, flat, smoothing, scale, gamma,
    KIND: tl.constexpr, SMOOTH: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """(loss, a, b, c): the gradient is e_j a - w_j b at j != y and c at y; scale is (loss's, gradient's).

    w: the label's weight, deficit: sum of w_j (top - x_j), rest: sum of w_j, over j != y.
    """
    z, e, inverse, log_others, ahead = odds
    T: tl.constexpr = z.dtype
    if not SMOOTH:
        a, b, slope = formulas.background_of(z, e, w, gamma, KIND, True, TERMS, FAST)
        return a * b * scale[0], slope * scale[1] * inverse, 0.0, -slope * scale[1]
    else:
        q = nm.reciprocal(1.0 + e, FAST)
        p = tl.where(e == float("inf"), 1.0, e * q)
        tail = nm.minus_log1m(nm.minimum(p, q, FAST), TERMS)
        u = tail + tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        level = tl.where(z > 0, log_others, ahead) + tail  # log of the sum over all classes, less top
        own = w * (1.0 - smoothing + flat)
        spread = flat * (_infinite_beside(top, deficit) + tl.where(rest == 0, 0.0, rest * level))
        bce = tl.where(own == 0, 0.0, own * u) + spread
        if KIND == formulas.GENERAL:
            power = nm.exp_of_product(tail - tl.minimum(z, 0.0), gamma * nm.LOG2E, FAST)
        else:
            power = nm.times_power(tl.full((), 1.0, T), q, KIND, FAST)
        bend = 0.0
        if KIND != 0:
            bend = _bounded(_gamma(gamma, KIND, T) * p * _bounded(bce))
        loss = tl.where(power == 0, 0.0, power * bce)
        power = power * scale[1]
        a = power * ((own + flat * rest) * q + bend) * inverse
        return loss * scale[0], a, power * flat, power * (flat * rest * p - own * q - bend)


@triton.jit
def terms_of_probabilities(
    top, total, deficit, mass, target_mass, hit, scale, gamma, KIND: tl.constexpr, FAST: tl.constexpr
):
    """(loss, a, b, c, h): the gradient is e_j (a + c (h - t_j)) - a_j b, h the mean of t by the softmax.

    deficit: sum of a_j (top - x_j), mass: sum of a_j, target_mass: sum of t_j, hit: sum of t_j e_j.
    """
    T: tl.constexpr = total.dtype
    deficit, base, top = _infinite_beside(top, deficit), base_of(top, T), _finite(top)
    inverse = nm.reciprocal(total, FAST)
    bce = deficit + mass * (tl.log(total) - tl.fma(top, base[0], -base[1]) * nm.LN2)
    if KIND == 0:
        return bce * scale[0], mass * inverse * scale[1], scale[1], 0.0, 0.0
    else:
        mean = hit * inverse
        k = tl.maximum(target_mass - mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
        TINY: tl.constexpr = 1e-300 if T == tl.float64 else 1.2e-38
        if KIND == formulas.GENERAL:
            power = tl.exp2(gamma.to(T) * tl.log2(k))
        else:
            power = nm.times_power(tl.full((), 1.0, T), k, KIND, FAST)
        bend = _gamma(gamma, KIND, T) * power / tl.maximum(k, TINY, propagate_nan=tl.PropagateNan.ALL) * _bounded(bce)
        # Where one class has all, its t is the mean, but for a rounding that an infinite entropy would blow up.
        alone = (bce == float("inf")) & (total == power_of(top, base, FAST))
        bend = tl.where((k == 0) | alone, 0.0, bend) * inverse * scale[1]
        loss = tl.where(power == 0, 0.0, power * bce) * scale[0]
        return loss, power * mass * inverse * scale[1], power * scale[1], bend, mean
