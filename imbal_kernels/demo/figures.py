"""Figures of the report, as PNG data in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .boxes import iou
from .evaluate import Curve, Detections, match
from .remedies import Remedy
from .scenes import SIZE, Scenes
from .tables import METHODS, METRICS, MODELS, TableResult
from .train import History

TRUTH_COLOR = "#18a558"
MODEL_COLORS = ("#2a6fb0", "#c0392b")


def encode(figure: Figure, dpi: int = 110) -> str:
    """A figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def learning_curves(runs: Sequence[tuple[Remedy, History]]) -> str:
    """Validation AP of the outputs against the step, one line a run."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for remedy, history in runs:
        axes.plot(history.steps, history.val_ap, "o-", ms=4, color=remedy.color, label=remedy.name)
    _axes(axes, "Average precision on validation scenes", "training step", "AP of the outputs")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return encode(figure)


def precision_recall(runs: Sequence[tuple[Remedy, Curve, Curve]]) -> str:
    """Two panels, outputs and boxes, one (recall, precision) line a run."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for remedy, *curves in runs:
        for axes, curve in zip(panels, curves, strict=True):
            recall, precision = _thin(curve)
            axes.plot(recall, precision, color=remedy.color, label=remedy.name)
    for axes, title in zip(panels, ("Outputs", "Boxes, IoU ≥ 0.5"), strict=True):
        _axes(axes, title, "recall", "precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    panels[0].legend(frameon=False)
    return encode(figure)


def _thin(curve: Curve, points: int = 2000) -> Curve:
    """At most `points` of a curve, spread evenly over recall."""
    recall, precision = curve
    if len(recall) <= points:
        return curve
    order = np.argsort(recall, kind="stable")
    wanted = np.searchsorted(recall[order], np.linspace(0, recall.max(), points))
    chosen = order[np.unique(wanted.clip(max=len(order) - 1))]
    return recall[chosen], precision[chosen]


def pictures(
    scenes: Scenes,
    rows: Sequence[int],
    runs: Sequence[tuple[Remedy, Sequence[Detections], float]],
) -> str:
    """A row a scene: the truth, then what each run detects at or above its threshold, dashed where it is wrong."""
    width = 1 + len(runs)
    figure = Figure(figsize=(2.75 * width, 2.75 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for line, (axes_row, n) in enumerate(zip(grid, rows, strict=True)):
        for axes in axes_row:
            axes.imshow(scenes.images[n].permute(1, 2, 0).numpy(), interpolation="bilinear")
            axes.set_axis_off()
        if line == 0:
            axes_row[0].set_title("truth", color=TRUTH_COLOR, fontsize=9)
        for box, label in zip(scenes.boxes[n].tolist(), scenes.labels[n].tolist(), strict=True):
            _draw(axes_row[0], box, str(label), TRUTH_COLOR)
        for axes, (remedy, detections, threshold) in zip(axes_row[1:], runs, strict=True):
            if line == 0:
                title = f"{remedy.name}, p ≥ {threshold:.3f}"
                axes.set_title(title, color=remedy.color, fontsize=9)
            boxes, labels, scores = detections[n]
            sure = scores >= threshold
            found = boxes[sure], labels[sure], scores[sure]
            right = match(found, scenes.boxes[n], scenes.labels[n])
            for i, text in _places(found):
                _draw(axes, found[0][i].tolist(), text, remedy.color, right[i])
    return encode(figure, dpi=90)


def _places(found: Detections) -> Iterator[tuple[int, str]]:
    """The surest detection of each place, with the labels of all that share it, surest first."""
    boxes, labels, _ = found
    overlap, left = iou(boxes, boxes) > 0.5, list(range(len(boxes)))
    while left:
        best, *rest = left
        yield best, " ".join(str(int(labels[i])) for i in (best, *rest) if i == best or overlap[best, i])
        left = [i for i in rest if not overlap[best, i]]


def _draw(axes: Axes, box: Sequence[float], text: str, color: str, right: bool = True) -> None:
    x1, y1, x2, y2 = box
    style = "-" if right else "--"
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.8, ls=style))
    label = {"facecolor": color, "edgecolor": "none", "pad": 1.0}
    inside = y1 < 10  # no room above the box
    axes.text(
        *(x1 if x1 < SIZE / 2 else x2, y1 + 1 if inside else y1, text),
        color="white",
        fontsize=8,
        ha="left" if x1 < SIZE / 2 else "right",  # ten labels fit on that side
        va="top" if inside else "bottom",
        bbox=label,
        clip_on=True,
    )


def table_scores(results: Sequence[TableResult]) -> str:
    """A row a table, a column a metric: mean and deviation over folds by method, a colour a model."""
    drawn = Figure(figsize=(11, 3.3 * len(results)), layout="constrained")
    grid = drawn.subplots(len(results), len(METRICS), squeeze=False, sharey=True)
    height = np.arange(len(METHODS))[::-1]
    for axes_row, result in zip(grid, results, strict=True):
        for i, axes in enumerate(axes_row):
            for model, shift, color in zip(MODELS, (0.13, -0.13), MODEL_COLORS, strict=True):
                tried = [m for m in METHODS if (model, m) in result.scores]
                scores = [result.scores[model, m][:, i] for m in tried]
                rows = [height[METHODS.index(m)] + shift for m in tried]
                means, spreads = [s.mean() for s in scores], [s.std(ddof=1) for s in scores]
                axes.errorbar(means, rows, xerr=spreads, fmt="o", ms=4, color=color, label=model)
            _axes(axes, f"{result.table.name}: {METRICS[i]}", "", "")
            axes.set_yticks(height, METHODS)
    drawn.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return encode(drawn)
