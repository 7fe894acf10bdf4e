"""The dense loss's workloads: the levels of four detectors' heads, from their outputs to their gradients."""

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import imbal_kernels as ik
from bench import peers
from bench.harness import COPY, OURS, Contestant, Workload
from bench.inputs import Inputs, sizes
from bench.peers import ALPHA, GAMMA

PEERS = ("torchvision",)
SHAPES = {"cpu": ("800x1333",), "cuda": ("800x1333",)}  # of the image
MORE_SHAPES: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": ()}
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
BYTES = "bytes of logits read, gradient written, labels read once; levels written anew before each run"


@dataclass(frozen=True)
class Head:
    """A detector's classification head: images in a batch, anchors at a position, strides of its levels."""

    name: str
    images: int
    anchors: int
    classes: int
    strides: tuple[int, ...]


P3_TO_P7 = (8, 16, 32, 64, 128)
HEADS = (
    Head("RetinaNet", 1, 9, 80, P3_TO_P7),
    Head("FCOS", 2, 1, 80, P3_TO_P7),
    Head("YOLO", 8, 1, 80, P3_TO_P7[:3]),  # without anchors, as from YOLOX on
    Head("LVIS", 1, 1, 1203, P3_TO_P7),  # FCOS's head for LVIS's classes
)


@dataclass(frozen=True)
class Problem(Inputs):
    """A head's outputs after the prior bias, one object in a thousand anchors."""

    head: Head
    levels: list[Tensor]  # (images, A * C, H, W)
    labels: Tensor  # (images, M)

    @classmethod
    def random(
        cls, head: Head, height: int, width: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        sides = [(-(-height // s), -(-width // s)) for s in head.strides]
        shapes = [(head.images, head.anchors * head.classes, h, w) for h, w in sides]
        levels = [torch.randn(shape, generator=generator) - 4.6 for shape in shapes]
        count = head.anchors * sum(h * w for h, w in sides)
        labels = torch.randint(head.classes, (head.images, count), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.999] = -1
        return cls(head, [level.to(device, dtype).requires_grad_() for level in levels], labels.to(device))

    @property
    def tensors(self) -> Sequence[Tensor]:
        return self.levels

    @functools.cached_property
    def expected(self) -> list[Tensor]:
        """Loss and gradients of the reference in fp64."""
        levels = [level.detach().double().requires_grad_() for level in self.levels]
        loss = ik.reference.dense_focal_loss(levels, self.labels, self.head.classes, ALPHA, GAMMA)
        return [loss.detach(), *torch.autograd.grad(loss, levels)]

    def check(self, name: str, run: Callable[[], Sequence[Tensor]]) -> None:
        self.hold(name, run(), self.expected)


def torchvision_way(focal: Callable[..., Tensor], classes: int, levels: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Permute, concatenate, one-hot, and the dense formula, as its RetinaNet head does."""
    heads = [level.unflatten(1, (-1, classes)).permute(0, 3, 4, 1, 2) for level in levels]
    logits = torch.cat([head.reshape(len(labels), -1, classes) for head in heads], 1)
    one_hot = (labels[..., None] == torch.arange(classes, device=labels.device)).to(logits.dtype)
    return focal(logits, one_hot, ALPHA, GAMMA, "sum") / (labels >= 0).sum().clamp(min=1)


def workloads(
    device: str, dtypes: Sequence[str], shapes: Sequence[str], chosen: Sequence[str], compiled: bool
) -> Iterator[Workload]:
    for (height, width, dtype), head in itertools.product(sizes(shapes, dtypes), HEADS):
        problem = Problem.random(head, height, width, device, getattr(torch, dtype))
        size = sum(level.numel() * level.element_size() for level in problem.levels)
        buffers = [torch.empty_like(level, requires_grad=False) for level in problem.levels]
        amount = 2 * size + problem.labels.numel() * problem.labels.element_size()

        def copy(problem: Problem = problem, buffers: list[Tensor] = buffers) -> None:
            for buffer, level in zip(buffers, problem.levels, strict=True):
                buffer.copy_(level.detach())

        ours = functools.partial(ik.dense_focal_loss, problem.levels, problem.labels, head.classes, ALPHA, GAMMA)
        ways: dict[str, Callable[[], Tensor]] = {OURS: ours}
        missing = {}
        if "torchvision" in chosen:
            if importlib.util.find_spec("torchvision") is None:
                missing["torchvision"] = "not installed"
            else:
                eager = functools.partial(torchvision_way, peers.torchvision_focal_loss(), head.classes)
                ways["torchvision eager"] = functools.partial(eager, problem.levels, problem.labels)
                if compiled:
                    fast = torch.compile(eager, fullgraph=True, dynamic=False)
                    ways["torchvision compiled"] = functools.partial(fast, problem.levels, problem.labels)
        entries = {COPY: Contestant(copy, 2 * size)}
        for name, loss_of in ways.items():
            run = functools.partial(problem.run, loss_of)
            entries[name] = Contestant(run, amount, functools.partial(problem.check, name, run))
        yield Workload(
            f"dense multi-level focal, {head.name} {height}x{width} {dtype}", device, BYTES, entries, missing,
            prepare=problem.write,
        )  # fmt: skip
