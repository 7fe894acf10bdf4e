"""The losses' workloads: who competes on which input, and the bytes that each must move."""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import imbal_kernels as ik
from bench import peers
from bench.harness import COPY, OURS, Contestant, Workload
from bench.inputs import Inputs, recomputed, sizes
from bench.peers import ALPHA, GAMMA

PEERS = ("torchvision", "torch", "mmcv", "apex")
SHAPES = {"cpu": ("100000x80",), "cuda": ("1000000x80",)}
MORE_SHAPES = {"cpu": (), "cuda": ("400000x80", "4000000x80", "100000x1203")}
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
BYTES = "bytes of logits read, gradient written, labels read once; dense targets in the logits' dtype"
MODEL = {"cpu": f"{BYTES}; logits written anew before each run", "cuda": BYTES}


@dataclass(frozen=True)
class Problem(Inputs):
    """Logits after the prior bias, one object in a hundred rows, and a normalizer known on the host."""

    logits: Tensor
    ids: Tensor
    normalizer: float
    gamma: float = GAMMA

    @classmethod
    def random(
        cls, rows: int, classes: int, device: str = "cpu", dtype: torch.dtype = torch.float32, gamma: float = GAMMA
    ) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, classes, generator=generator) - 4.6
        ids = torch.randint(classes, (rows,), generator=generator)
        ids[torch.rand(rows, generator=generator) < 0.99] = -1
        normalizer = max(float((ids >= 0).sum()), 1.0)
        return cls(logits.to(device, dtype).requires_grad_(), ids.to(device), normalizer, gamma)

    @property
    def alpha(self) -> float:
        return ALPHA if self.gamma else -1.0

    def ours(self, targets: Tensor) -> Tensor:
        return ik.sigmoid_focal_loss(self.logits, targets, self.alpha, self.gamma, "sum", normalizer=self.normalizer)

    @property
    def tensors(self) -> Sequence[Tensor]:
        return (self.logits,)

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the reference in fp64."""
        x = self.logits.detach().double().requires_grad_()
        loss = ik.reference.sigmoid_focal_loss(x, self.ids, self.alpha, self.gamma, "sum", normalizer=self.normalizer)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    def check(self, name: str, result: Sequence[Tensor], upstream: float = 1.0) -> None:
        """A contestant's loss and gradient against the reference."""
        loss, grad = self.expected
        self.hold(name, result, (loss, grad * upstream))


def one_hot(ids: Tensor, like: Tensor) -> Tensor:
    """What the dense peers are fed; the int-label contestants write it inside the timed region."""
    return (ids[:, None] == torch.arange(like.shape[1], device=ids.device)).to(like.dtype)


def _raw(problem: Problem, x: Tensor, upstream: Tensor | None, mode: int, want_grad: bool) -> tuple[Tensor, Tensor]:
    options = (problem.alpha, problem.gamma, 0.0, 1 / problem.normalizer, -100, mode, want_grad, True)
    return torch.ops.imbal_kernels.sigmoid_loss(x, problem.ids, None, None, None, None, upstream, *options)


def _from_formula(problem: Problem, formula: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a formula that knows positives and negatives apart."""
    x = problem.logits.detach()
    positive = one_hot(problem.ids, x) > 0
    found = zip(formula(x, True, problem.gamma), formula(x, False, problem.gamma), strict=True)
    loss, grad = (torch.where(positive, p, n) / problem.normalizer for p, n in found)
    return loss.sum(), grad


def contestants(
    problem: Problem, chosen: Sequence[str] = PEERS, compiled: bool = True
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Everyone by name, and the peers that are missing with the reason."""
    logits, ids, normalizer = problem.logits, problem.ids, problem.normalizer
    dense, copy_to = one_hot(ids, logits), torch.empty_like(logits, requires_grad=False)
    size = logits.numel() * logits.element_size()
    pass_ids, pass_dense = 2 * size + ids.numel() * ids.element_size(), 3 * size
    entries = {
        COPY: Contestant(lambda: copy_to.copy_(logits.detach()), 2 * size),
        "copy to a new tensor": Contestant(lambda: logits.detach().clone(), 2 * size),
    }
    missing = {}

    def enter_run(name: str, run: Callable[[], Sequence[Tensor]], amount: int, upstream: float = 1.0) -> None:
        entries[name] = Contestant(run, amount, lambda: problem.check(name, run(), upstream))

    def enter(name: str, loss_of: Callable[[], Tensor], amount: int, upstream: float = 1.0) -> None:
        enter_run(name, functools.partial(problem.run, loss_of, upstream), amount, upstream)

    enter(OURS, lambda: problem.ours(ids), pass_ids)
    enter("ours, upstream 2", lambda: problem.ours(ids), pass_ids, 2.0)
    enter("ours, recomputed", lambda: recomputed(logits, functools.partial(_raw, problem)), pass_ids)
    enter("ours, dense", lambda: problem.ours(dense), pass_dense)

    if problem.gamma:
        focal = peers.torchvision_focal_loss() if importlib.util.find_spec("torchvision") else None
        name = "torchvision"
        if focal is None and name in chosen:
            missing[name] = "not installed"
    else:
        name = "torch"

        def focal(x: Tensor, t: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
            return F.binary_cross_entropy_with_logits(x, t, reduction=reduction)

    if focal and name in chosen:

        def from_dense(x: Tensor, t: Tensor) -> Tensor:
            return focal(x, t, problem.alpha, problem.gamma, "sum") / normalizer

        def from_ids(x: Tensor, t: Tensor) -> Tensor:
            return from_dense(x, one_hot(t, x))

        for form, function, targets, amount in (
            ("dense", from_dense, dense, pass_dense),
            ("class ids", from_ids, ids, pass_ids),
        ):
            modes = {"eager": function}
            if compiled:
                modes["compiled"] = torch.compile(function, fullgraph=True, dynamic=False)
            for mode, call in modes.items():
                enter(f"{name} {mode}, {form}", functools.partial(call, logits, targets), amount)
    if problem.gamma:
        for name, formula, loss_of in (
            ("mmcv", peers.mmcv_formula, lambda: peers.mmcv_focal_loss(logits, ids) / normalizer),
            ("apex", peers.apex_formula, lambda: peers.apex_focal_loss(logits, ids, (ids >= 0).sum().float())),
        ):
            if name not in chosen:
                continue
            if logits.is_cuda and importlib.util.find_spec(name) is not None:
                enter(name, loss_of, pass_ids)
                continue
            missing[name] = (
                "not installed, its formula in PyTorch stands in"
                if logits.is_cuda
                else ("has a CUDA kernel only, its formula in PyTorch stands in")
            )
            enter_run(f"{name}'s formula, eager", functools.partial(_from_formula, problem, formula), pass_ids)
    return entries, missing


def workloads(
    device: str, dtypes: Sequence[str], shapes: Sequence[str], chosen: Sequence[str], compiled: bool
) -> Iterator[Workload]:
    """One at a time: two problems at once would not fit every machine."""
    for rows, classes, dtype in sizes(shapes, dtypes):
        for loss, gamma in (("sigmoid focal", GAMMA), ("binary cross-entropy", 0.0)):
            problem = Problem.random(rows, classes, device, getattr(torch, dtype), gamma)
            entries, missing = contestants(problem, chosen, compiled)
            name = f"{loss}, {rows} x {classes} {dtype}"
            yield Workload(name, device, MODEL[device], entries, missing, prepare=problem.write)
