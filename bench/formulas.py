"""The workloads of the sigmoid family's other formulas, and of one of a user's own, beside the plain formula."""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

import imbal_kernels as ik
from bench import peers
from bench.harness import COPY, OURS, Contestant, Workload
from bench.inputs import Inputs, sizes
from bench.losses import MODEL, one_hot

PEERS = ("torch",)
SHAPES = {"cpu": ("100000x80",), "cuda": ("1000000x80",)}
MORE_SHAPES: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": ()}
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}


def _poly1(x: Tensor, t: Tensor) -> Tensor:
    missed = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
    return missed**2 * (t * F.softplus(-x) + (1 - t) * F.softplus(x)) + missed**3


@functools.cache
def poly1() -> ik.Formula:
    """The documentation's example of a formula of one's own, with the twin that its GPU kernel takes."""
    if importlib.util.find_spec("triton") is None:
        return ik.Formula(_poly1)
    from examples.poly1_focal import in_triton

    return ik.Formula(_poly1, in_triton)


def _own(functions: ModuleType, *args: Tensor, **options: Tensor) -> Tensor:
    return functions.elementwise_loss(poly1(), *args, reduction="sum", **options)


@dataclass(frozen=True)
class Loss:
    """ours: functions (ours or the reference), logits, targets, options -> the sum. plain: logits, dense targets -> the
    same as users of PyTorch write it. multilabel: targets are dense, 0 or 1; otherwise class ids with scores."""

    name: str
    ours: Callable[..., Tensor]
    plain: Callable[[Tensor, Tensor], Tensor]
    multilabel: bool = False


LOSSES = (
    Loss("quality focal", lambda f, *args, **o: f.quality_focal_loss(*args, reduction="sum", **o), peers.quality_focal),
    Loss("varifocal", lambda f, *args, **o: f.varifocal_loss(*args, reduction="sum", **o), peers.varifocal),
    Loss("asymmetric", lambda f, *args, **o: f.asymmetric_loss(*args, reduction="sum", **o), peers.asymmetric, True),
    Loss("poly-1 focal, a user's formula", _own, peers.poly1_focal),
)


@dataclass(frozen=True)
class Problem(Inputs):
    """Logits after a prior bias. One object in a hundred rows, with a score; multi-label: three classes in a row."""

    loss: Loss
    logits: Tensor
    ids: Tensor
    scores: Tensor
    labels: Tensor  # dense, of a multi-label problem

    @classmethod
    def random(cls, loss: Loss, rows: int, classes: int, device: str, dtype: torch.dtype) -> "Problem":
        g = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, classes, generator=g) - (3 if loss.multilabel else 4.6)
        ids, scores = torch.randint(classes, (rows,), generator=g), torch.rand(rows, generator=g)
        ids[torch.rand(rows, generator=g) < 0.99] = -1
        labels = (torch.rand(rows, classes, generator=g) < 3 / classes) if loss.multilabel else torch.empty(0)
        logits = logits.to(device, dtype).requires_grad_()
        return cls(loss, logits, ids.to(device), scores.to(device), labels.to(device, dtype))

    @property
    def tensors(self) -> Sequence[Tensor]:
        return (self.logits,)

    def sparse(self, functions: ModuleType, x: Tensor) -> Tensor:
        if self.loss.multilabel:
            return self.loss.ours(functions, x, self.labels)
        return self.loss.ours(functions, x, self.ids, scores=self.scores)

    def written_out(self) -> Tensor:
        """The targets in the logits' shape and dtype."""
        return self.labels if self.loss.multilabel else with_scores(self.ids, self.scores, self.logits)

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the reference in fp64."""
        x = self.logits.detach().double().requires_grad_()
        loss = self.sparse(ik.reference, x)
        return loss.detach(), torch.autograd.grad(loss, x)[0]


def with_scores(ids: Tensor, scores: Tensor, like: Tensor) -> Tensor:
    return one_hot(ids, like) * scores[:, None].to(like.dtype)


def contestants(problem: Problem, chosen: Sequence[str] = PEERS, compiled: bool = True) -> dict[str, Contestant]:
    x, loss = problem.logits, problem.loss
    dense, copy_to = problem.written_out(), torch.empty_like(x, requires_grad=False)
    size = x.numel() * x.element_size()
    rows = sum(labels.numel() * labels.element_size() for labels in (problem.ids, problem.scores))
    pass_dense, pass_sparse = 3 * size, 3 * size if loss.multilabel else 2 * size + rows
    entries = {COPY: Contestant(lambda: copy_to.copy_(x.detach()), 2 * size)}

    def enter(name: str, loss_of: Callable[[], Tensor], amount: int) -> None:
        run = functools.partial(problem.run, loss_of)
        entries[name] = Contestant(run, amount, lambda: problem.hold(name, run(), problem.expected))

    enter(OURS, lambda: problem.sparse(ik, x), pass_sparse)
    if not loss.multilabel:
        enter("ours, dense", lambda: loss.ours(ik, x, dense), pass_dense)
    if compiled and loss.ours is _own and not x.is_cuda:  # a user's formula has no CPU kernel
        own = functools.partial(ik.elementwise_loss, poly1(), reduction="sum")
        fused = torch.compile(own, fullgraph=True, dynamic=False)
        enter("ours, compiled", lambda: fused(x, problem.ids, scores=problem.scores), pass_sparse)
    if "torch" not in chosen:
        return entries

    def from_scores(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
        return loss.plain(x, with_scores(ids, scores, x))

    modes: dict[str, Callable[..., Callable[..., Tensor]]] = {"eager": lambda f: f}
    if compiled:
        modes["compiled"] = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    for mode, made in modes.items():
        enter(f"torch {mode}, dense", functools.partial(made(loss.plain), x, dense), pass_dense)
        if not loss.multilabel:
            ids_way = functools.partial(made(from_scores), x, problem.ids, problem.scores)
            enter(f"torch {mode}, class ids and scores", ids_way, pass_sparse)
    return entries


def workloads(
    device: str, dtypes: Sequence[str], shapes: Sequence[str], chosen: Sequence[str], compiled: bool
) -> Iterator[Workload]:
    """One at a time."""
    for rows, classes, dtype in sizes(shapes, dtypes):
        for loss in LOSSES:
            problem = Problem.random(loss, rows, classes, device, getattr(torch, dtype))
            name = f"{loss.name}, {rows} x {classes} {dtype}"
            entries = contestants(problem, chosen, compiled)
            kernel = loss.ours is not _own or device == "cuda"
            model = MODEL[device] + ("" if kernel else "; on a CPU a user's formula runs on PyTorch")
            yield Workload(name, device, model, entries, prepare=problem.write)
