"""The definition in fp64, differentiated by autograd, and the call that the tests compare with it."""

import torch
from torch.nn.functional import softplus

from imbal_kernels.kernels import sigmoid_loss

OFF = dict(weight=None, pos_weight=None, alpha_per_class=None, scale_tensor=None, upstream=None)


def call(x, target, *, alpha=0.25, gamma=2.0, smoothing=0.0, scale=1.0, ignore_index=-100, **tensors):
    """(sum, elementwise losses, gradient) from the kernels."""
    tensors = OFF | tensors
    options = (alpha, gamma, smoothing, scale, ignore_index)
    total, grad = sigmoid_loss(x, target, *tensors.values(), *options, 2, True, False)
    losses, none = sigmoid_loss(x, target, *tensors.values(), *options, 1, False, x.dtype != torch.float64)
    assert none.numel() == 0 and total.dim() == 0
    return total, losses, grad


def one_hot(ids, classes, ignore_index=-100):
    """Dense fp64 targets of ids."""
    positive = (ids >= 0) & (ids < classes) & (ids != ignore_index)
    rows = torch.nn.functional.one_hot(torch.where(positive, ids, 0).long(), classes)
    return (rows * positive[:, None]).double()


def definition(x, t, *, alpha=0.25, gamma=2.0, smoothing=0.0, scale=1.0, weight=1.0, pos_weight=1.0,
               alpha_per_class=None, scale_tensor=1.0, upstream=1.0):  # fmt: skip
    """(losses, gradient, magnitude of the gradient's terms) in fp64."""
    x = x.double().clone().requires_grad_()
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    up, down = softplus(x, threshold=40), softplus(-x, threshold=40)
    k = t * q + (1 - t) * p
    smooth = t * (1 - smoothing) + smoothing / 2
    if alpha_per_class is not None:
        alpha_t = torch.where(alpha_per_class < 0, 1, alpha_per_class * t + (1 - alpha_per_class) * (1 - t))
    else:
        alpha_t = 1.0 if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    w = scale * scale_tensor * weight * alpha_t
    bce = pos_weight * smooth * down + (1 - smooth) * up
    losses = w * k**gamma * bce
    (grad,) = torch.autograd.grad(losses.sum(), x)
    with torch.no_grad():
        terms = k**gamma * ((1 - smooth) * p + pos_weight * smooth * q)
        if gamma:
            terms = terms + gamma * k ** (gamma - 1) * (1 - 2 * t).abs() * p * q * bce
        return losses.detach(), grad * upstream, (w * terms * upstream).abs()


def assert_close(got, expected, rtol, magnitude=None, tiny=1.2e-38):
    """Relative to the magnitude of the terms, where the expected value is a normal number."""
    magnitude = expected.abs() if magnitude is None else magnitude
    error = (got.double() - expected).abs()
    worst = (error / (rtol * magnitude + tiny)).max().item() if error.numel() else 0.0
    assert worst <= 1, f"{worst:.3g} times the tolerance"
