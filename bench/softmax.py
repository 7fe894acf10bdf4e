"""The softmax losses' workloads: who competes on which input, and the bytes that each must move."""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

import imbal_kernels as ik
from bench import peers
from bench.harness import COPY, OURS, Contestant, Workload
from bench.inputs import Inputs, recomputed, sizes
from bench.peers import GAMMA

PEERS = ("torch", "liger_kernel", "quack")
SHAPES = {"cpu": ("100000x81", "20000x1000"), "cuda": ("1000000x81", "8192x32000")}
MORE_SHAPES = {
    "cpu": ("2000000x2", "1000000x10", "500x32000", "125x128000"),
    "cuda": ("16000000x2", "4000000x10", "100000x1000", "2048x128000"),
}
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, class ids, weights
BYTES = "bytes of logits read, gradient written, labels read once"
MODEL = {"cpu": f"{BYTES}; logits written anew before each run", "cuda": BYTES}


@dataclass(frozen=True)
class Problem(Inputs):
    """Logits, class ids and a weight for each class."""

    logits: Tensor
    ids: Tensor
    weight: Tensor
    gamma: float

    @classmethod
    def random(cls, rows: int, classes: int, device: str, dtype: torch.dtype, gamma: float) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(rows, classes, generator=generator)
        ids = torch.randint(classes, (rows,), generator=generator)
        weight = 0.5 + torch.rand(classes, generator=generator)
        return cls(logits.to(device, dtype).requires_grad_(), ids.to(device), weight.to(device), gamma)

    def ours(self) -> Tensor:
        return ik.softmax_focal_loss(self.logits, self.ids, self.gamma, self.weight)

    def recomputed(self) -> Tensor:
        ids = self.ids[:, None]
        scale = torch.ops.imbal_kernels.sum_weights(ids, self.weight, self.logits.shape[1], -100).reciprocal()

        def raw(x: Tensor, upstream: Tensor | None, mode: int, want_grad: bool) -> tuple[Tensor, Tensor]:
            tensors = (x[..., None], ids, self.weight, None, scale, upstream)
            loss, grad = torch.ops.imbal_kernels.softmax_loss(
                *tensors, self.gamma, 0.0, 1.0, -100, mode, want_grad, True
            )
            return loss, grad.view(x.shape) if want_grad else grad

        return recomputed(self.logits, raw)

    @property
    def tensors(self) -> Sequence[Tensor]:
        return (self.logits,)

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the reference in fp64."""
        x = self.logits.detach().double().requires_grad_()
        loss = ik.reference.softmax_focal_loss(x, self.ids, self.gamma, self.weight.double())
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    def check(self, name: str, result: Sequence[Tensor], upstream: float = 1.0) -> None:
        """A contestant's loss and gradient against the reference."""
        loss, grad = self.expected
        self.hold(name, result, (loss, grad * upstream))


def focal_formula(x: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    """What PyTorch's users write: (1 - p)^gamma on top of its log-softmax and its nll_loss."""
    log_p = F.log_softmax(x, 1)
    loss = F.nll_loss(log_p, ids, weight.to(x.dtype), reduction="none")
    p = log_p.gather(1, ids[:, None])[:, 0].exp()
    return ((1 - p) ** GAMMA * loss).sum() / weight[ids].sum()


def cross_entropy(x: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(x, ids, weight.to(x.dtype))


def contestants(
    problem: Problem, chosen: Sequence[str] = PEERS, compiled: bool = True
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Everyone by name, and the peers that are missing with the reason. Focal loss also meets F.cross_entropy, which
    does less."""
    logits, ids, weight = problem.logits, problem.ids, problem.weight
    copy_to = torch.empty_like(logits, requires_grad=False)
    size = logits.numel() * logits.element_size()
    amount = 2 * size + ids.numel() * ids.element_size()
    entries = {
        COPY: Contestant(lambda: copy_to.copy_(logits.detach()), 2 * size),
        "copy to a new tensor": Contestant(lambda: logits.detach().clone(), 2 * size),
    }
    missing = {}

    def enter(
        name: str, loss_of: Loss, checked: Problem = problem, copied: bool = False, upstream: float = 1.0
    ) -> None:
        def run() -> tuple[Tensor, Tensor]:
            x = logits.detach().clone().requires_grad_() if copied else logits
            loss = loss_of(x, ids, weight)
            return loss.detach(), torch.autograd.grad(loss if upstream == 1.0 else loss * upstream, x)[0]

        entries[name] = Contestant(run, amount, lambda: checked.check(name, run(), upstream))

    enter(OURS, lambda x, ids, weight: problem.ours())
    enter("ours, upstream 2", lambda x, ids, weight: problem.ours(), upstream=2.0)
    enter("ours, recomputed", lambda x, ids, weight: problem.recomputed())
    modes: dict[str, Callable[[Loss], Loss]] = {"eager": lambda f: f}
    if compiled:
        modes["compiled"] = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    plain = replace(problem, gamma=0.0)
    if "torch" in chosen:
        for mode, made in modes.items():
            enter(f"torch {mode}", made(focal_formula if problem.gamma else cross_entropy))
        if problem.gamma:
            for mode, made in modes.items():
                enter(f"cross-entropy, torch {mode}", made(cross_entropy), plain)
    if problem.gamma == 0:
        # Liger's gradient takes the place of the logits it is given.
        for name, loss_of, copied in (
            ("liger_kernel", peers.liger_cross_entropy, True),
            ("quack", peers.quack_cross_entropy, False),
        ):
            if name not in chosen:
                continue
            if not logits.is_cuda:
                missing[name] = "has GPU kernels only"
            elif importlib.util.find_spec(name) is None:
                missing[name] = "not installed"
            else:
                enter(f"{name}, on a copy" if copied else name, loss_of, copied=copied)
    return entries, missing


def workloads(
    device: str, dtypes: Sequence[str], shapes: Sequence[str], chosen: Sequence[str], compiled: bool
) -> Iterator[Workload]:
    """One at a time: two problems at once would not fit every machine."""
    for rows, classes, dtype in sizes(shapes, dtypes):
        for loss, gamma in (("weighted cross-entropy", 0.0), ("softmax focal", GAMMA)):
            problem = Problem.random(rows, classes, device, getattr(torch, dtype), gamma)
            entries, missing = contestants(problem, chosen, compiled)
            name = f"{loss}, {rows} x {classes} {dtype}"
            yield Workload(name, device, MODEL[device], entries, missing, prepare=problem.write)
