"""A formula of the user's own, which gets labels, weights, reductions and a fused kernel from the sigmoid losses."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_made: dict[str, "Formula"] = {}  # kept for good: a compiled graph knows a formula by its key alone
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Formula:
    """A loss of one logit and its target, written twice; make it once, at the top of a module.

    Args:
        torch: (x, t) -> loss, elementwise on tensors of one shape and dtype, float32 or float64. It defines the
            loss; autograd gives its gradient.
        triton: the same as a `triton.jit` function (x, t) -> (loss, gradient by x), for the fused kernel on a
            GPU. x and t are blocks of one shape and dtype, float32 or float64. Without it, and on a CPU, the
            loss runs on `torch`.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> squared = ik.Formula(lambda x, t: (torch.sigmoid(x) - t) ** 2)
        >>> squared.check()
        >>> ik.elementwise_loss(squared, torch.zeros(2, 3), torch.tensor([1, -1]), "mean")
        tensor(0.2500)
    """

    torch: Callable[[Tensor, Tensor], Tensor]
    triton: Any = None
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.torch):
            raise TypeError(f"torch must be a function (x, t) -> loss, got {type(self.torch).__name__}")
        if self.triton is not None and not hasattr(self.triton, "arg_names"):
            raise TypeError(f"triton must be a triton.jit function, got {type(self.triton).__name__}")
        if self.triton is not None and len(self.triton.arg_names) != 2:
            raise ValueError(f"triton must take two arguments, logit and target, got {self.triton.arg_names}")
        object.__setattr__(self, "key", f"formula {next(_numbers)}")
        _made[self.key] = self

    def check(self, device: Any = "cpu", rtol: float = 1e-4) -> None:
        """Checks the formula, `torch`, for shape, finite values and gradients that agree with differences, and on a GPU
        `triton` against it: loss and gradient by `rtol` of the largest.

        Raises:
            ValueError: what is wrong, and at which logit and target.
        """
        grid = torch.cartesian_prod(torch.linspace(-6, 6, 25), torch.tensor([0.0, 0.3, 1.0])).double()
        x, t = grid[:, 0].to(device).requires_grad_(), grid[:, 1].to(device)
        loss = self.torch(x, t)
        if not isinstance(loss, Tensor) or loss.shape != x.shape or loss.dtype != x.dtype:
            got = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            wanted = f"a loss of x's dtype and shape, {x.dtype} {tuple(x.shape)}"
            raise ValueError(f"the formula must return {wanted}, got {got}")
        if not loss.requires_grad:
            raise ValueError("the formula's loss has no gradient by x")
        mixed = "the formula's elements mix: it gives another loss where every other one is left out"
        _compare(mixed, self.torch(x[::2], t[::2]), loss[::2], x[::2], t[::2], 1e-12)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        step = 1e-5
        with torch.no_grad():
            slope = (self.torch(x + step, t) - self.torch(x - step, t)) / (2 * step)
        _compare("the formula's gradient is not its slope", grad, slope, x, t, 1e-6)
        if self.triton is not None and x.is_cuda:
            from imbal_kernels.sigmoid_losses import elementwise_loss

            y = x.detach().float().requires_grad_()
            fused = elementwise_loss(self, y, t)
            _compare("the loss of triton is not that of the formula", fused, loss, x, t, rtol)
            (fused_grad,) = torch.autograd.grad(fused.sum(), y)
            _compare("the gradient of triton is not that of the formula", fused_grad, grad, x, t, rtol)


def _compare(what: str, got: Tensor, expected: Tensor, x: Tensor, t: Tensor, rtol: float) -> None:
    error = (got.double() - expected).abs()
    bad = ~(error <= rtol * expected.abs().max().clamp(min=1e-3))
    if bool(bad.any()):
        i = int(bad.int().argmax())
        raise ValueError(f"{what}: {got[i].item():g} and {expected[i].item():g} at x = {x[i].item():g}, t = {t[i]:g}")


def by_key(key: str) -> Formula:
    return _made[key]
