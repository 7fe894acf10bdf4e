"""How many digits survive in quality focal, varifocal and asymmetric loss: ours in fp32 against 50 digits.

Part of docs/accuracy.md, which `python -m bench.accuracy` writes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import imbal_kernels as ik
from bench import truth

TARGETS = (0.0, 0.25, 0.9, 1.0)


@dataclass(frozen=True)
class Loss:
    """ours: (module of functions, logits, targets) -> loss; exact: (x, t) -> truth.Exact."""

    ours: Callable[..., Tensor]
    exact: Callable[[float, float], truth.Exact]
    exponent: float


def _quality(beta: float) -> Loss:
    def ours(functions: Any, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        return functions.quality_focal_loss(x, t, beta, **options)

    return Loss(ours, functools.partial(truth.quality_focal, beta=beta), beta)


def _varifocal(gamma: float) -> Loss:
    def ours(functions: Any, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        return functions.varifocal_loss(x, t, 0.75, gamma, **options)

    return Loss(ours, functools.partial(truth.varifocal, gamma=gamma), gamma)


def _asymmetric(gamma_neg: float, gamma_pos: float, clip: float) -> Loss:
    def ours(functions: Any, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        return functions.asymmetric_loss(x, t, gamma_neg, gamma_pos, clip, **options)

    exact = functools.partial(truth.asymmetric, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    return Loss(ours, exact, max(gamma_neg, gamma_pos))


LOSSES = {
    "quality focal, beta 1": _quality(1.0),
    "quality focal, beta 2": _quality(2.0),
    "quality focal, beta 2.5": _quality(2.5),
    "quality focal, beta 3.3": _quality(3.3),
    "varifocal, gamma 0": _varifocal(0.0),
    "varifocal, gamma 2": _varifocal(2.0),
    "varifocal, gamma 1.3": _varifocal(1.3),
    "asymmetric, 4, 1, clip 0.05": _asymmetric(4.0, 1.0, 0.05),
    "asymmetric, 1.5, 0.5, clip 0.2": _asymmetric(1.5, 0.5, 0.2),
    "asymmetric, 0.3, 1.7, clip 0.1": _asymmetric(0.3, 1.7, 0.1),
    "asymmetric, 4, 1, no clip": _asymmetric(4.0, 1.0, 0.0),
}


def bound(x: Tensor, exponent: float) -> Tensor:
    return (1 + exponent) * torch.where(x.abs() <= 20, 1.5e-6, 1e-5)


def worst(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest error of loss and gradient over all targets, relative to the magnitudes of their terms."""
    loss_of, tiny = LOSSES[name], torch.finfo(torch.float32).tiny
    errors = []
    for t in TARGETS:
        exact = torch.tensor([loss_of.exact(v, t) for v in x.tolist()], dtype=torch.float64)
        logits = x[:, None].detach().requires_grad_()
        loss = loss_of.ours(ik, logits, torch.full_like(logits, t, requires_grad=False))
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        for got, true, terms in ((loss, exact[:, 0], exact[:, 2]), (grad, exact[:, 1], exact[:, 3])):
            error = (got.detach()[:, 0].double() - true).abs() / terms
            errors.append(torch.where(terms >= tiny, error, 0.0).max())
    return torch.stack(errors[::2]).max(), torch.stack(errors[1::2]).max()
