"""What the sigmoid kernels do with one element, whatever the layout they found it in: weights, formula, positives."""

import triton
import triton.language as tl

from . import formulas
from .operands import optional


@triton.jit
def scalars_of(scale_ptr, alpha_pos, alpha_neg, smoothing, gamma, gamma_pos, clip, T: tl.constexpr):
    """The numbers of a loss in the dtype of the arithmetic, the two alphas times the scale."""
    scale = tl.load(scale_ptr).to(T) if scale_ptr is not None else tl.full((), 1.0, T)
    return (
        tl.full((), alpha_pos, T) * scale,
        tl.full((), alpha_neg, T) * scale,
        tl.full((), smoothing, T),
        tl.full((), gamma, tl.float64),
        tl.full((), gamma_pos, tl.float64),
        tl.full((), clip, T),
    )


@triton.jit
def _evaluate(
    FORMULA: tl.constexpr, x, t, w, pos_weight, scalars, KINDS: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr,
    FAST: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    if OWN:
        return formulas.own(FORMULA, x, t, w, ZERO)
    else:
        parameters = (scalars[2], scalars[3], scalars[4], scalars[5])
        return FORMULA(x, t, w, pos_weight, parameters, KINDS, ZERO, TERMS, FAST)


@triton.jit
def _alphas(alpha, scalars, ALPHA: tl.constexpr):
    """(alpha, 1 - alpha), times scale; a negative entry switches alpha off."""
    alpha_pos, alpha_neg = scalars[0], scalars[1]
    if ALPHA != "none":
        alpha_pos = alpha_pos * tl.where(alpha < 0, 1.0, alpha)
        alpha_neg = alpha_neg * tl.where(alpha < 0, 1.0, 1.0 - alpha)
    return alpha_pos, alpha_neg


@triton.jit
def _mixed(target, alpha_pos, alpha_neg, KINDS: tl.constexpr):
    """What a target in [0, 1] takes of the two: its parts, or all of one."""
    if KINDS[3]:
        return tl.where(target != 0, alpha_pos, alpha_neg)
    else:
        return target * alpha_pos + (1.0 - target) * alpha_neg


@triton.jit
def terms_of(
    x, target, skip, fill, factors, scalars, FORMULA: tl.constexpr, KINDS: tl.constexpr, TARGETS: tl.constexpr,
    VALUES: tl.constexpr, MODES: tl.constexpr, ZERO: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """(a, b, gradient, skip, fill): the loss is a * b, and with the gradient `fill` where `skip` is set.

    target: what the element's target is (VALUES), or not 0 where it is the label's.
    """
    weight, pos_weight, alpha, scores = factors
    alpha_pos, alpha_neg = _alphas(alpha, scalars, MODES[2])
    if TARGETS == "background":
        w = alpha_neg * weight
        target = tl.zeros_like(x) if OWN else target
    elif TARGETS == "hard":
        w = tl.where(target != 0, alpha_pos * pos_weight, alpha_neg) * weight
    else:
        target = target if VALUES else (target != 0).to(x.dtype)
        if MODES[3] != "none":
            wrong = (target != 0) & ((scores >= 0) & (scores <= 1) == 0) & (skip == 0)
            skip, fill = skip | wrong, tl.where(wrong, float("nan"), fill).to(x.dtype)
            target = tl.where(target != 0, tl.where(wrong, 0.0, scores), 0.0)
        w = weight * _mixed(target, alpha_pos, alpha_neg, KINDS)
    a, b, grad = _evaluate(FORMULA, x, target, w, pos_weight, scalars, KINDS, ZERO, TERMS, FAST, OWN)
    return a, b, grad, skip, fill


@triton.jit
def positives_of(
    x_ptr, factor_ptrs, scalars, offsets, at, row, label, mask, FORMULA: tl.constexpr, KINDS: tl.constexpr,
    MODES: tl.constexpr, TERMS: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """(losses, gradients) of rows' positives, at `offsets` of the logits and at `at` of a factor with all elements."""
    weight_ptr, pos_weight_ptr, alpha_ptr, scores_ptr = factor_ptrs
    T: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(T)
    weight = optional(weight_ptr, MODES[0], at, row, label, mask)
    pos_weight = optional(pos_weight_ptr, MODES[1], at, row, label, mask)
    alpha_pos, alpha_neg = _alphas(optional(alpha_ptr, MODES[2], at, row, label, mask), scalars, MODES[2])
    t = tl.full(x.shape, 1.0, T)
    if MODES[3] != "none":
        t = optional(scores_ptr, MODES[3], at, row, label, mask).to(T)
        w = weight * _mixed(t, alpha_pos, alpha_neg, KINDS)
    else:
        w = alpha_pos * pos_weight * weight
    a, b, grad = _evaluate(FORMULA, x, t, w, pos_weight, scalars, KINDS, True, TERMS, FAST, OWN)
    loss = a * b
    if MODES[3] != "none":
        valid = (t >= 0) & (t <= 1)
        loss, grad = tl.where(valid, loss, float("nan")), tl.where(valid, grad, float("nan"))
    return loss, grad
