"""What the sigmoid focal loss is compared with: formulas of other projects, and contestants for timing.

torchvision's function is called as it is. mmcv and apex are CUDA extensions that need a GPU and a build;
only their arithmetic is rewritten here, from the maths, to see what it does to the digits.
"""

import functools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import imbal_kernels as ik
from imbal_kernels.ops import backends

ALPHA, GAMMA = 0.25, 2.0
TINY = torch.finfo(torch.float32).tiny


def torchvision_focal_loss() -> Callable[..., Tensor]:
    """torchvision's Python function. Without its compiled operators (a CPU torch beside another build of
    torchvision) only the registration of their fakes would fail, so that module is left out."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss


def mmcv_formula(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient with p = 1 / (1 + exp(-x)) and 1 - p subtracted, logarithms clamped at FLT_MIN."""
    p = 1 / (1 + torch.exp(-x))
    q = 1 - p
    if positive:
        log_p = torch.log(p.clamp(min=TINY))
        return -ALPHA * q**gamma * log_p, -ALPHA * q**gamma * (q - gamma * p * log_p)
    log_q = torch.log(q.clamp(min=TINY))
    return -(1 - ALPHA) * p**gamma * log_q, -(1 - ALPHA) * p**gamma * (gamma * q * log_q - p)


def apex_formula(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient with softplus(-x) = max(-x, 0) + log(1 + exp(-|x|)), which a negative adds to x:
    a small softplus(x) is then a difference of large numbers."""
    sigma = 1 / (1 + torch.exp(-x))
    entropy = (-x).clamp(min=0) + torch.log(1 + torch.exp(-x.abs()))
    if positive:
        factor = ALPHA * (1 - sigma) ** gamma
        return factor * entropy, -factor * (gamma * sigma * entropy + (1 - sigma))
    entropy = x + entropy
    factor = (1 - ALPHA) * sigma**gamma
    return factor * entropy, factor * (gamma * (1 - sigma) * entropy + sigma)


@dataclass(frozen=True)
class Problem:
    """Logits after the prior bias, one object in a hundred rows, and a normalizer known on the host."""

    logits: Tensor
    ids: Tensor
    normalizer: float

    @classmethod
    def random(cls, rows: int, classes: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, classes, generator=generator) - 4.6
        ids = torch.randint(classes, (rows,), generator=generator)
        ids[torch.rand(rows, generator=generator) < 0.99] = -1
        return cls(logits.to(device, dtype).requires_grad_(), ids.to(device), float((ids >= 0).sum()))

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the reference in fp64."""
        x = self.logits.detach().double().requires_grad_()
        loss = ik.reference.sigmoid_focal_loss(x, self.ids, ALPHA, GAMMA, "sum", normalizer=self.normalizer)
        loss.backward()
        return loss.detach(), x.grad


def one_hot(ids: Tensor, like: Tensor) -> Tensor:
    """What the dense peers are fed; the int-label contestants write it inside the timed region."""
    return (ids[:, None] == torch.arange(like.shape[1], device=ids.device)).to(like.dtype)


@dataclass(frozen=True)
class Contestant:
    run: Callable[[], tuple[Tensor, Tensor] | None]  # loss and gradient; None for a copy
    traffic: int  # bytes that a single pass must move


def contestants(problem: Problem, compiled: bool = True) -> dict[str, Contestant]:
    """Everyone by name. Traffic is what a single pass moves: logits read, gradient written, targets read in the
    form given. Peers move more than their model says; their GB/s is what a user gets, not what they load."""
    logits, ids, normalizer = problem.logits, problem.ids, problem.normalizer
    dense, copy_to = one_hot(ids, logits), torch.empty_like(logits, requires_grad=False)
    size = logits.numel() * logits.element_size()
    ids_size = ids.numel() * ids.element_size()

    def ours(targets: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        return _forward_backward(
            logits,
            lambda: ik.sigmoid_focal_loss(logits, targets, ALPHA, GAMMA, "sum", normalizer=normalizer),
        )

    entries = {
        "copy in place": Contestant(lambda: _discard(copy_to.copy_(logits.detach())), 2 * size),
        "copy to a new tensor": Contestant(lambda: _discard(logits.detach().clone()), 2 * size),
        "ours, class ids": Contestant(ours(ids), 2 * size + ids_size),
        "ours, dense": Contestant(ours(dense), 3 * size),
    }
    focal = torchvision_focal_loss()

    def from_dense(x: Tensor, t: Tensor) -> Tensor:
        return focal(x, t, ALPHA, GAMMA, "sum") / normalizer

    def from_ids(x: Tensor, ids: Tensor) -> Tensor:
        return focal(x, one_hot(ids, x), ALPHA, GAMMA, "sum") / normalizer

    for form, function, targets, extra in (
        ("dense", from_dense, dense, size),
        ("class ids", from_ids, ids, ids_size),
    ):
        modes = {"eager": function}
        if compiled:
            modes["compiled"] = torch.compile(function, fullgraph=True, dynamic=False)
        for mode, call in modes.items():
            run = _forward_backward(logits, lambda call=call, targets=targets: call(logits, targets))
            entries[f"torchvision {mode}, {form}"] = Contestant(run, 2 * size + extra)
    return entries


def _forward_backward(logits: Tensor, loss_of: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    def run() -> tuple[Tensor, Tensor]:
        logits.grad = None
        loss = loss_of()
        loss.backward()
        return loss.detach(), logits.grad

    return run


def _discard(_: Tensor) -> None:
    return None


def check(name: str, contestant: Contestant, problem: Problem) -> None:
    """The contestant's loss and gradient against the fp64 reference, or an error that names it."""
    result = contestant.run()
    if result is None:
        return
    # Peers that compute and sum in half precision are held to what that type can give.
    step = torch.finfo(problem.logits.dtype).eps
    rtol = 1e-4 if problem.logits.dtype == torch.float32 else 8 * step
    loss, grad = problem.expected
    for what, got, true, atol in (("loss", result[0], loss, 0.0), ("gradient", result[1], grad, step)):
        largest = float(true.abs().max())
        torch.testing.assert_close(
            got.double(), true, rtol=rtol, atol=atol * largest, msg=lambda m, w=what: f"{name}, {w}: {m}"
        )


def environment(device: str = "cpu") -> dict[str, str | int]:
    """What a ratio depends on besides the code."""
    facts: dict[str, str | int] = {"torch": torch.__version__}
    if device == "cuda":
        return {**facts, "gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return {**facts, "threads": torch.get_num_threads(), "instruction set": instruction_set()}


def instruction_set() -> str:
    """The one our kernels use, or "none" where they run on the reference."""
    return "none" if backends.MISSING["cpu"] else torch.ops.imbal_kernels._cpu_capability("")
