"""Quality focal, varifocal and asymmetric loss to 50 digits, one element at a time.

Each function gives loss and gradient, and for both the sum of the magnitudes of their terms: what an error is
relative to. That is the value itself for a hard target; a soft one makes p - t a difference of two terms, a clip
p - c. (1 + exponent) times a relative error of p is what such a sum of terms allows for.
"""

from typing import Any, NamedTuple


class Exact(NamedTuple):
    loss: float
    grad: float
    loss_terms: float
    grad_terms: float


def _parts(x: float) -> tuple[Any, Any, Any, Any]:
    """p, q, softplus(x), softplus(-x)"""
    import mpmath

    e = mpmath.exp(-abs(mpmath.mpf(x)))
    small, large, tail = e / (1 + e), 1 / (1 + e), mpmath.log1p(e)
    if x < 0:
        return small, large, tail, tail - mpmath.mpf(x)
    return large, small, tail + mpmath.mpf(x), tail


def _exact(loss: Any, grad: Any, loss_terms: Any = None, grad_terms: Any = None) -> Exact:
    loss_terms = abs(loss) if loss_terms is None else loss_terms
    grad_terms = abs(grad) if grad_terms is None else grad_terms
    return Exact(float(loss), float(grad), float(loss_terms), float(grad_terms))


def quality_focal(x: float, t: float, beta: float) -> Exact:
    import mpmath

    with mpmath.workdps(50):
        p, q, up, down = _parts(x)
        t, rest = mpmath.mpf(t), 1 - mpmath.mpf(t)
        d, entropy = p - t, t * down + rest * up
        k, sign = abs(d), mpmath.sign(d)
        loss, bend = k**beta * entropy, beta * k ** (beta - 1) * sign * p * q * entropy
        grad = k**beta * d + bend
        if t in (0, 1):
            return _exact(loss, grad)
        size = p + t if x < 0 else q + rest  # of the terms of d
        spread = 0 if k == 0 else (beta - 1) * size / k
        if beta == 1 and k < 1e-6 * size:
            spread = mpmath.inf  # the sign of d is not decided in fp32: nothing is claimed
        slopes = k ** (beta - 1) * size * (t * q + rest * p)
        bend = beta * k ** (beta - 1) * p * q * entropy
        return _exact(loss, grad, k ** (beta - 1) * size * entropy, slopes + bend * (1 + spread))


def varifocal(x: float, t: float, gamma: float, alpha: float = 0.75) -> Exact:
    import mpmath

    with mpmath.workdps(50):
        p, q, up, down = _parts(x)
        if t == 0:
            return _exact(alpha * p**gamma * up, alpha * p**gamma * (p + gamma * q * up))
        t = mpmath.mpf(t)
        return _exact(t * (t * down + (1 - t) * up), t * (p - t) if t < 1 else -q, None, t * (t * q + (1 - t) * p))


def asymmetric(x: float, t: float, gamma_neg: float, gamma_pos: float, clip: float) -> Exact:
    import mpmath

    with mpmath.workdps(50):
        p, q, up, down = _parts(x)
        t, c = mpmath.mpf(t), mpmath.mpf(clip)
        hit = q**gamma_pos * down
        hit_slope = -(q**gamma_pos) * (q + gamma_pos * p * down)
        miss = miss_slope = size = mpmath.mpf(0)
        if p > c:
            p_m = p - c
            entropy = -mpmath.log(q + c)
            miss = p_m**gamma_neg * entropy
            miss_slope = p * q * p_m**gamma_neg * (gamma_neg * entropy / p_m + 1 / (q + c))
            size = (p + c) / p_m if c else mpmath.mpf(1)
        loss, grad = t * hit + (1 - t) * miss, t * hit_slope + (1 - t) * miss_slope
        return _exact(loss, grad, t * hit + (1 - t) * miss * size, t * abs(hit_slope) + (1 - t) * miss_slope * size)
