"""report.html: one file, no references outside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .evaluate import Detections, Scores
from .figures import learning_curves, pictures, precision_recall
from .remedies import RATE, Remedy
from .scenes import Scenes
from .train import History, LossTime, Settings

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } figure { margin: 1.2rem 0; }
figcaption, .note { color: #555; font-size: 14px; } .best { font-weight: 700; }
"""


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
    "run", "at p ≥ 0.5: accuracy", "precision", "recall", "threshold of best F1", "at it: accuracy",
    "precision", "recall", "AP of outputs", "AP of boxes",
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


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    lines = "".join(f"<tr>{row}</tr>\n" for row in body)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table>"


def _figure(uri: str, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


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
        f"<p>A small detector looks for handwritten digits on photographs. Each scene has "
        f"{setup.outputs_per_scene:,} outputs (a location of the pyramid times a class), and only "
        f"one in {setup.negatives_per_positive:,.0f} is positive. The runs differ in the loss of "
        f"the class outputs: same start (prior bias, π = 0.01), same {s.steps} "
        f"steps of {s.batch} scenes in the same order, same optimiser (AdamW, one cycle, peak rate "
        f"{RATE:g}). That rate suits focal loss, so plain BCE runs a second time at eight times "
        f"the rate, which suits it better. Seed {setup.seed}, {escape(setup.device)}, "
        f"{setup.threads} threads.</p>"
    )


READING = """<p>Accuracy misleads here: calling everything background is right almost always, level
with or ahead of every detector, and finds nothing. Average precision ranks the outputs and asks how pure the top of
the list is. “Outputs” counts every location × class; “boxes” counts detections after
non-maximum suppression that meet a box of the same label at IoU ≥ 0.5. Both are scikit-learn's
<code>average_precision_score</code>; for boxes its recall is scaled by matched / all boxes,
because it cannot know of boxes that nothing met. A constant score has the base rate as AP.</p>
<p>A probability of 0.5 means something else after each loss: balanced weights move the outputs
far up, focal loss keeps them moderate. So precision and recall are given twice: at 0.5, and
at the threshold with the best F1 of the outputs on validation scenes. The pictures use the
second. Digits and photographs are held out: test digits and the part of the photographs they
are pasted on occur in no training scene.</p>"""

# Development runs, on validation scenes: they do not change with the seed of a report.
SWEEP = (
    ("plain BCE", "0.101", "0.188", "0.243", "0.287", "0.359", "0.376"),
    ("focal loss", "0.281", "0.451", "0.246", "0.101", "–", "–"),
    ("class-weighted BCE", "–", "0.082", "0.081", "–", "0.079", "–"),
)
SEEDS = (
    ("focal loss, 0.004", "0.506, boxes 0.671", "0.494, boxes 0.668"),
    ("plain BCE, 0.004", "0.383, boxes 0.542", "0.355, boxes 0.489"),
    ("plain BCE, 0.032", "0.499, boxes 0.702", "0.492, boxes 0.679"),
)
CHOICE = f"""<p>All figures here are AP of the outputs on validation scenes unless they say boxes.
By peak learning rate, 300 steps, seed 0:</p>
{_table(SWEEP, ("loss", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064"))}
<p>The chosen setup, 400 steps, by loss and rate:</p>
{_table(SEEDS, ("loss and rate", "seed 1", "seed 2"))}
<p>So focal loss wins at one shared rate of usual size: up to 0.004, its own best, it learns much
faster. It does not win against plain BCE at plain BCE's own best rate: on seeds 1 and 2 the two are
level. More steps close the gap too: after 900 (seed 0) focal loss at 0.004 had 0.829, plain BCE
0.804 there and 0.818 at 0.016 (boxes 0.943, 0.941, 0.951). Why plain BCE needs the higher rate is
not settled. AdamW's long memory of the first steps and their large background gradients does not
seem to be it: a shorter one (β₂ 0.99, rate 0.008) gave 0.231 in place of 0.243.</p>
<p>Earlier scenes had digits in random colours, darker or lighter than the photograph. There both
losses found the digits and then could not tell the ten apart, 0.07 to 0.08 after 300 steps at each
of three rates (with the convolution named next): recognition was the hard part, not imbalance.
With 1,200 steps (without it) plain BCE won there, 0.680 to 0.636, each at the better of two rates.
So now the ink is bright and the photographs are dimmed. All that follows is seed 0, 300 steps.
Another 3×3 convolution after each merge of the pyramid slows learning (rate 0.004: focal loss
0.135, plain BCE 0.097). A box loss that does not shape the shared features changes little (0.440
and 0.214). Without normalisation in the heads the order turns round: plain BCE 0.350 at 0.008 and
0.267 at 0.032, focal loss 0.242 at 0.004, its only rate there.</p>
<p>Balanced weights stayed below 0.1 in every variant. They do find the digits; likely, because a
missed one costs over a thousand times as much as a wrong class, most classes say yes there:
precision near one in ten, and boxes drawn on top of each other with different labels.</p>"""


def _gradients(runs: Sequence[Run]) -> str:
    rows = [
        [r.remedy.name, r.remedy.recipe, f"{r.remedy.lr:g}"]
        + [f"{share:.1%}" for share in r.history.share]
        for r in runs
    ]
    columns = ("run", "weights and divisor", "peak rate", "first step", "last step")
    return _table(rows, columns)


def _timing(time: LossTime, setup: Setup) -> str:
    return (
        f"<p>Focal loss, forward and backward, on the {time.rows:,} × 10 logits of one batch: "
        f"<b>{time.ours:.2f} ms</b> with imbal_kernels (class ids read as they are), "
        f"<b>{time.eager:.2f} ms</b> with the usual eager formula (which first "
        f"makes one-hot targets): {time.eager / time.ours:.1f} times. A whole "
        f"training step, forward and backward, takes {time.step:.0f} ms, so the loss is "
        f"{time.ours / time.step:.1%} of it instead of "
        f"{time.eager / (time.step - time.ours + time.eager):.1%}. Medians on "
        f"{escape(setup.device)}, {setup.threads} threads. The benchmark compares with compiled "
        f"code too; eager alone says little.</p>"
    )


def write_report(
    path: Path, runs: Sequence[Run], background: Scores, test: Scenes, time: LossTime, setup: Setup
) -> None:
    """Write the whole report to `path`."""
    curves = learning_curves([(r.remedy, r.history) for r in runs])
    recall = precision_recall([(r.remedy, r.scores.output_curve, r.scores.box_curve) for r in runs])
    shown = list(range(min(6, len(test))))
    seen = pictures(test, shown, [(r.remedy, r.detections, r.threshold) for r in runs])
    parts = [
        "<h1>Rare positives: three losses, one detector</h1>",
        _introduction(setup),
        f"<p class='best'>{escape(verdict(runs))}</p>",
        _table(table_rows(runs, background), COLUMNS),
        f"<p class='note'>{len(test)} test scenes. The columns after the threshold are at it.</p>",
        READING,
        "<h2>Learning</h2>",
        _figure(curves, "Average precision of the outputs on validation scenes during training."),
        _figure(recall, "Precision against recall on the test scenes."),
        "<h2>Where the gradient comes from</h2>",
        "<p>Share of the absolute gradient on the class outputs that background contributes.</p>",
        _gradients(runs),
        "<h2>How this setup was chosen</h2>",
        CHOICE,
        "<h2>Detections</h2>",
        _figure(seen, "The first test scenes, unselected; each run at its own threshold."),
        "<h2>Time in the loss</h2>",
        _timing(time, setup),
    ]
    title = "imbal_kernels demo"
    path.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n",
        encoding="utf-8",
    )
