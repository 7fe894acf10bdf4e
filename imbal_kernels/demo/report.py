"""The report: the detector's part, then the tables' part, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .choice import CHOICE
from .evaluate import Detections, Scores
from .figures import learning_curves, pictures, precision_recall
from .page import figure, table, write
from .remedies import Remedy
from .scenes import Scenes
from .train import History, LossTime, Settings


@dataclass(frozen=True)
class Run:
    """One remedy with all that was measured; `threshold` is the validation scenes' best F1."""

    remedy: Remedy
    history: History
    threshold: float
    scores: Scores
    detections: list[Detections]


@dataclass(frozen=True)
class Setup:
    """What the runs have in common: budget, seed, device and the imbalance they face."""

    settings: Settings
    seed: int
    device: str
    threads: int
    outputs_per_scene: int
    negatives_per_positive: float


COLUMNS = (
    "run", "p ≥ 0.5: accuracy", "precision", "recall", "threshold of best F1", "at it: accuracy",
    "precision", "recall", "AP, outputs", "AP, boxes",
)  # fmt: skip


def table_rows(runs: Sequence[Run], background: Scores) -> list[list[str]]:
    """The result table as text, "always background" first."""
    entries = [("always background", background, "–")]
    entries += [(run.remedy.name, run.scores, f"{run.threshold:.3f}") for run in runs]
    rows = []
    for name, scores, threshold in entries:
        (p, r, a), (best_p, best_r, best_a) = scores.at_half, scores.at_best
        rows.append(
            [name, f"{a:.3%}", f"{p:.1%}", f"{r:.1%}", threshold]
            + [f"{best_a:.3%}", f"{best_p:.1%}", f"{best_r:.1%}"]
            + [f"{scores.output_ap:.4f}", f"{scores.box_ap:.4f}"]
        )
    return rows


def verdict(runs: Sequence[Run]) -> str:
    """What the table says, in a sentence made from its numbers."""
    ranked = sorted(runs, key=lambda run: run.scores.output_ap, reverse=True)
    first, second = ranked[0], ranked[1]
    others = ", ".join(f"{r.remedy.name} {r.scores.output_ap:.3f}" for r in ranked[1:])
    margin = first.scores.output_ap - second.scores.output_ap
    best = f"{first.remedy.name}, {first.scores.output_ap:.3f}"
    if margin < 0.03:
        return f"Too close to call from one seed: AP of the outputs is {best} ({others})."
    return f"Highest AP of the outputs: {best} ({others})."


def _introduction(setup: Setup) -> str:
    s = setup.settings
    return (
        f"<p>A small detector looks for one handwritten digit on a photograph. Each scene has "
        f"{setup.outputs_per_scene:,} outputs (a location of the pyramid times a class), and only "
        f"one in {setup.negatives_per_positive:,.0f} is positive. The runs differ in the loss of "
        f"the class outputs, and each has the learning rate that suited that loss best in "
        f"development, of one grid for all. The rest is shared: the start (prior bias, π = 0.01), "
        f"{s.steps:,} steps of {s.batch} scenes in the same order, the optimiser (AdamW, one cycle). "
        f"Seed {setup.seed}, {escape(setup.device)}, threads: {setup.threads}.</p>"
    )


READING = """<p>Accuracy misleads here: calling everything background is right almost always and
finds nothing. Average precision ranks the outputs and asks how pure the top of the list is.
“Outputs” counts every location × class; “boxes” counts detections after
non-maximum suppression that meet a box of the same label at IoU ≥ 0.5. Both are scikit-learn's
<code>average_precision_score</code>; for boxes its recall is scaled by matched / all boxes,
because it cannot know of boxes that nothing met. A constant score has the base rate as AP.</p>
<p>A probability of 0.5 means something else after each loss: balanced weights move the outputs
far up, focal loss keeps them moderate. So precision and recall are given twice: at 0.5, and
at the threshold with the best F1 of the outputs on validation scenes. The pictures use the
second. Digits and photographs are held out: test digits and the part of the photographs they
are pasted on occur in no training scene.</p>"""

PICTURES_NOTE = """The first test scenes, each run at its own threshold. Several labels in one place stand
surest first; dashed where the surest is wrong or the box is off."""


def _gradients(runs: Sequence[Run]) -> str:
    rows = [
        [r.remedy.name, r.remedy.recipe, f"{r.remedy.lr:g}"]
        + [f"{share:.1%}" for share in r.history.share]
        for r in runs
    ]
    columns = ("run", "weights and divisor", "peak rate", "first step", "last step")
    return table(rows, columns)


def _timing(time: LossTime, setup: Setup) -> str:
    return (
        f"<p>Focal loss, forward and backward, on the {time.rows:,} × 10 logits of one batch: "
        f"<b>{time.ours:.2f} ms</b> with imbal_kernels (<code>dense_focal_loss</code> reads the pyramid's levels "
        f"and the class ids as they are), <b>{time.eager:.2f} ms</b> with the usual eager formula (which first "
        f"joins the levels and makes one-hot targets): {time.eager / time.ours:.1f} times. A whole "
        f"training step, forward and backward, takes {time.step:.0f} ms, so the loss is "
        f"{time.ours / time.step:.1%} of it instead of "
        f"{time.eager / (time.step - time.ours + time.eager):.1%}. Medians on "
        f"{escape(setup.device)}, threads: {setup.threads}. The benchmark compares with compiled "
        f"code too; eager alone says little.</p>"
    )


def write_report(
    path: Path,
    runs: Sequence[Run],
    background: Scores,
    test: Scenes,
    time: LossTime,
    setup: Setup,
    tables: Sequence[str],
) -> None:
    """Write the whole report to `path`; `tables` is its second part."""
    curves = learning_curves([(r.remedy, r.history) for r in runs])
    recall = precision_recall([(r.remedy, r.scores.output_curve, r.scores.box_curve) for r in runs])
    shown = list(range(min(6, len(test))))
    seen = pictures(test, shown, [(r.remedy, r.detections, r.threshold) for r in runs])
    parts = [
        "<h1>Rare positives: three losses, one detector</h1>",
        "<p class='note'>Second part: <a href='#tables'>real tables</a>.</p>",
        _introduction(setup),
        f"<p class='best'>{escape(verdict(runs))}</p>",
        table(table_rows(runs, background), COLUMNS),
        f"<p class='note'>{len(test)} test scenes. The columns after the threshold are at it.</p>",
        READING,
        "<h2>Learning</h2>",
        figure(curves, "Average precision of the outputs on validation scenes during training."),
        figure(recall, "Precision against recall on the test scenes."),
        "<h2>Where the gradient comes from</h2>",
        "<p>Share of the absolute gradient on the class outputs that background contributes.</p>",
        _gradients(runs),
        "<h2>How this setup was chosen</h2>",
        CHOICE,
        "<h2>Detections</h2>",
        figure(seen, PICTURES_NOTE),
        "<h2>Time in the loss</h2>",
        _timing(time, setup),
    ]
    write(path, "imbal_kernels demo", [*parts, *tables])
