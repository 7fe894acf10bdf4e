"""One training run, the same for every loss: start, data order, optimiser and budget."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from tqdm import tqdm

from .boxes import assign_all
from .detector import Detector, giou_loss, normalize
from .evaluate import one_hot, predict
from .remedies import Levels, Remedy, background_share, eager_focal_loss
from .scenes import Scenes


@dataclass(frozen=True)
class Settings:
    """The budget, shared by all runs."""

    steps: int = 1200
    batch: int = 8
    train_scenes: int = 3200
    val_scenes: int = 256
    test_scenes: int = 400
    checks: int = 10


QUICK = Settings(steps=75, train_scenes=600, val_scenes=32, test_scenes=100, checks=3)


@dataclass(frozen=True)
class Data:
    """Scenes with their class ids (N, A) and box distances (N, A, 4)."""

    scenes: Scenes
    ids: Tensor
    distances: Tensor

    @classmethod
    def of(cls, scenes: Scenes) -> Data:
        return cls(scenes, *assign_all(scenes))


@dataclass
class History:
    """What was seen on the way: validation AP by step, background's share of the gradient at the
    first and the last step."""

    steps: list[int] = field(default_factory=list)
    val_ap: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)


def data_order(count: int, settings: Settings, seed: int) -> Tensor:
    """Scene numbers (steps, batch): shuffled passes over `count` scenes."""
    generator = torch.Generator().manual_seed(seed)
    needed = settings.steps * settings.batch
    passes = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
    return torch.cat(passes)[:needed].reshape(settings.steps, settings.batch)


def train(
    remedy: Remedy,
    start: Detector,
    train_data: Data,
    val_data: Data,
    settings: Settings,
    seed: int,
    bar: tqdm,
) -> tuple[Detector, History]:
    """Train a copy of `start` with one loss; `start` is left alone."""
    model = copy.deepcopy(start).train()
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), remedy.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, remedy.lr, total_steps=settings.steps, pct_start=0.15, cycle_momentum=False
    )
    order = data_order(len(train_data.scenes), settings, seed)
    every = math.ceil(settings.steps / settings.checks)
    history = History()
    for step, chosen in enumerate(order, start=1):
        images = normalize(train_data.scenes.images[chosen].to(device))
        ids = train_data.ids[chosen].to(device)
        levels, sides = model(images)
        if step in (1, settings.steps):
            history.share.append(background_share(levels, ids, remedy))
        loss = remedy.loss(levels, ids) + _box_loss(sides, ids, train_data.distances[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
        if step % every == 0 or step == settings.steps:
            history.steps.append(step)
            history.val_ap.append(_output_ap(model, val_data, device))
    return model, history


def _box_loss(sides: Tensor, ids: Tensor, distances: Tensor) -> Tensor:
    """Mean GIoU loss over the positives of sides (B, A, 4), ids (B, A), distances (B, A, 4)."""
    positive = ids >= 0
    target = distances[positive.cpu()].to(sides.device)
    return giou_loss(sides[positive], target) / max(len(target), 1)


def _output_ap(model: Detector, data: Data, device: torch.device) -> float:
    logits, _ = predict(model, data.scenes, device)
    return float(average_precision_score(one_hot(data.ids), logits.numpy().ravel()))


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class LossTime:
    """Median milliseconds of loss forward + backward on one batch, and of a whole step."""

    ours: float
    eager: float
    step: float
    rows: int


def time_losses(
    model: Detector, remedy: Remedy, data: Data, batch: int, repeats: int = 30
) -> LossTime:
    """Time `remedy` (the focal one) against its eager formula on the same levels and class ids.

    The two alternate, so that a slow moment of the machine meets both.
    """
    device = next(model.parameters()).device
    ids = data.ids[:batch].to(device)
    images = data.scenes.images[:batch].to(device)
    with torch.no_grad():
        leaves = [level.requires_grad_() for level in model(normalize(images))[0]]

    def once(loss: Callable[[Levels, Tensor], Tensor]) -> float:
        for leaf in leaves:
            leaf.grad = None
        return _milliseconds(lambda: loss(leaves, ids).backward(), device)

    def whole_step() -> None:
        levels, sides = model(normalize(images))
        loss = remedy.loss(levels, ids)
        (loss + _box_loss(sides, ids, data.distances[:batch])).backward()
        model.zero_grad()

    for loss in (remedy.loss, eager_focal_loss):
        once(loss)  # the first call allocates and may compile
    pairs = [(once(remedy.loss), once(eager_focal_loss)) for _ in range(repeats)]
    ours, eager = (statistics.median(times) for times in zip(*pairs, strict=True))
    step = statistics.median(_milliseconds(whole_step, device) for _ in range(5))
    return LossTime(ours, eager, step, ids.numel())
