"""Which remedy for imbalance fits, why, and the call to make."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

TASKS = ("classification", "tabular", "detection")
SMALL, LARGE = 1_000, 100_000  # examples in all
NEIGHBORS = 5  # SMOTE's: a class needs one more example to have them

WEIGHTS = "ik.cross_entropy(logits, labels, weight=ik.class_weights(counts))"
ROOT_WEIGHTS = 'ik.cross_entropy(logits, labels, weight=ik.class_weights(counts, "inverse_sqrt"))'
ADJUSTED = "ik.cross_entropy(logits, labels, logit_adjustment=ik.log_prior(counts))"
PLAIN = "ik.cross_entropy(logits, labels)"
VARIFOCAL = 'ik.varifocal_loss(logits, labels, reduction="sum", normalizer="positives", scores=scores)'
FOCAL = 'ik.sigmoid_focal_loss(logits, labels, reduction="sum", normalizer="positives")'
SMOTE = "X, labels = ik.smote(X, labels)"
OVERSAMPLE = "X, labels = ik.random_oversample(X, labels)"
UNDERSAMPLE = "X, labels = ik.random_undersample(X, labels)"


@dataclass(frozen=True)
class Recommendation:
    """What to do about an imbalance.

    `call` is Python, for `logits` (N, C), integer `labels` (N,), `counts` (C,) and, where rows are added or left
    out, `X` (N, d). `others` are (remedy, call, reason) that may serve as well.
    """

    task: str
    counts: Mapping[Any, int]
    ratio: float
    remedy: str
    call: str
    reasons: tuple[str, ...]
    others: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        total, classes = sum(self.counts.values()), len(self.counts)
        most, least = max(self.counts.values()), min(self.counts.values())
        lines = [
            f"{total:,} examples of {classes} classes, {self.ratio:.3g}:1 from the largest ({most:,}) to the "
            f"smallest ({least:,}); task: {self.task}",
            "",
            f"  {self.remedy}",
            f"    {self.call}",
            *(f"    - {reason}" for reason in self.reasons),
        ]
        for remedy, call, reason in self.others:
            lines += ["", f"  or: {remedy}", f"    {call}", f"    - {reason}"]
        return "\n".join(lines)


def recommend(
    counts: Any = None, task: str = "classification", *, labels: Iterable[Any] | None = None
) -> Recommendation:
    """The remedy that fits an imbalance, with its reasons and the call to make.

    Args:
        counts: examples of each class: a mapping, or a sequence, array or tensor of positive integers. Labels are
            taken here too where they cannot be counts: text, or ids with a 0 (a class of no examples has no
            weight), which must then be 0 to k - 1.
        task: "classification" of images, text and the like; "tabular", where rows can be interpolated;
            "detection", any dense prediction with a background.
        labels: one label an example, of any hashable kind, in place of `counts`.

    Example:
        >>> import imbal_kernels as ik
        >>> print(ik.recommend([9900, 100]))
        10,000 examples of 2 classes, 99:1 from the largest (9,900) to the smallest (100); task: classification
        <BLANKLINE>
          class weights
            ik.cross_entropy(logits, labels, weight=ik.class_weights(counts))
            - between 20:1 and 100:1 balanced weights still train stably, and they change neither data nor epochs
            - watch the small classes' precision: the largest weight makes one wrong label count 50 times
        <BLANKLINE>
          or: logit adjustment
            ik.cross_entropy(logits, labels, logit_adjustment=ik.log_prior(counts))
            - aims at the balanced error too, without single examples of great weight
    """
    if (counts is None) == (labels is None):
        raise TypeError("recommend() takes counts or labels, one of the two")
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    table = _counted(counts) if labels is None else _count(labels)
    if len(table) < 2:
        raise ValueError(f"an imbalance needs two classes or more, got {len(table)}")
    ratio = max(table.values()) / min(table.values())
    advice = {"classification": _classification, "tabular": _tabular, "detection": _detection}[task]
    return Recommendation(task, table, ratio, *advice(table, ratio))


def _values(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not (hasattr(values, "tolist") or isinstance(values, Iterable)):
        raise TypeError(f"{name} must be a mapping, sequence, array or tensor, got {type(values).__name__}")
    if isinstance(values, Tensor) or hasattr(values, "tolist"):
        values = values.tolist()
        if not isinstance(values, list) or any(isinstance(value, list) for value in values):
            raise ValueError(f"{name} must be one-dimensional")
    values = list(values)
    if not values:
        raise ValueError(f"{name} must not be empty")
    return values


def _count(labels: Any) -> dict[Any, int]:
    return dict(Counter(_values("labels", labels)))


def _counted(counts: Any) -> dict[Any, int]:
    if not isinstance(counts, Mapping):
        values = _values("counts", counts)
        if not all(_is_int(value) for value in values):
            if any(isinstance(value, float) for value in values):
                raise TypeError(f"counts must be integers, got {next(v for v in values if isinstance(v, float))!r}")
            return dict(Counter(values))
        if 0 in values and sorted(set(values)) == list(range(max(values) + 1)):
            return dict(Counter(values))
        counts = dict(enumerate(values))
    for name, value in counts.items():
        if not _is_int(value):
            raise TypeError(f"counts must be integers, got {value!r} for class {name!r}")
        if value < 1:
            raise ValueError(f"counts must be positive, got {value} for class {name!r}; labels go in as labels=...")
    return dict(counts)


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


# What a task's advice is: remedy, call, reasons, others.
Advice = tuple[str, str, tuple[str, ...], tuple[tuple[str, str, str], ...]]


def _classification(table: dict[Any, int], ratio: float) -> Advice:
    total, heaviest = sum(table.values()), _heaviest(table)
    adjusted = ("logit adjustment", ADJUSTED, "aims at the balanced error too, without single examples of great weight")
    by_size: tuple[tuple[str, str, str], ...] = ()
    if total < SMALL:
        by_size = (("oversampling", OVERSAMPLE, "small data: copies cost little, and every batch sees each class"),)
    elif total >= LARGE:
        why = "much data with an abundant majority: most of it is redundant, and an epoch gets shorter"
        by_size = (("undersampling, then class weights for what is left", UNDERSAMPLE, why),)
    if ratio < 5:
        reasons = (
            "under 5:1 every batch of usual size holds every class, and the plain loss learns them",
            "it keeps probabilities calibrated; where the errors' costs differ, move the decision threshold",
        )
        gentle = ("gentle class weights", ROOT_WEIGHTS, "should a validation set show the small classes neglected")
        return "nothing: the plain loss", PLAIN, reasons, (gentle,)
    if ratio <= 20:
        reasons = (
            "moderate, 5:1 to 20:1: balanced weights N / (k n_c) cancel the imbalance in the gradient exactly",
            "they cost nothing, and no example is repeated or left out",
        )
        return "class weights", WEIGHTS, reasons, by_size
    if ratio < 100:
        reasons = (
            "between 20:1 and 100:1 balanced weights still train stably, and they change neither data nor epochs",
            f"watch the small classes' precision: the largest weight makes one wrong label count {heaviest:.3g} times",
        )
        return "class weights", WEIGHTS, reasons, (adjusted, *by_size)
    reasons = (
        "severe, 100:1 and more: without weights the small classes have no say in the gradient",
        f"the largest weight is {heaviest:.3g}: where few batches hold such an example the loss jumps, which "
        "oversampling in place of weights steadies",
    )
    steady = ("oversampling", OVERSAMPLE, "every batch then sees the small classes")
    return "class weights", WEIGHTS, reasons, (adjusted, *(by_size or (steady,)))


def _tabular(table: dict[Any, int], ratio: float) -> Advice:
    least, total = min(table.values()), sum(table.values())
    weights = ("class weights", WEIGHTS, "no new rows; trees and linear models take them as sample weights")
    if ratio < 5:
        return _classification(table, ratio)
    if total >= LARGE and least >= SMALL:
        plenty = f"the smallest class has {least:,} examples of its own: as many of the others are enough to learn from"
        smote = ("SMOTE", SMOTE, "keeps every row of the majority")
        return "undersampling", UNDERSAMPLE, (plenty, "training takes a fraction of the time"), (weights, smote)
    if least <= NEIGHBORS:
        lonely = f"SMOTE draws between an example and {NEIGHBORS} neighbours of its class: {least} do not have them"
        return "oversampling", OVERSAMPLE, (lonely, "copies add nothing new, but they cost little"), (weights,)
    reasons = (
        f"the smallest class has {least:,} examples, enough for the {NEIGHBORS} neighbours that new rows lie between",
        "rows between real ones widen a small class where copies would only repeat it",
        "resample the training part alone: a validation set keeps the true ratio",
    )
    return "SMOTE", SMOTE, reasons, (weights,)


def _detection(table: dict[Any, int], ratio: float) -> Advice:
    reasons = (
        "nearly all anchors are easy background: the focal factor turns down what is easy, whatever its number",
        "dividing by the objects keeps the loss in scale however many anchors there are",
        "start the last layer's bias at ik.prior_bias(0.01): else the background swamps the first steps",
    )
    ranked = ("varifocal loss", VARIFOCAL, "with each object's overlap in `scores` (N,): probabilities then rank boxes")
    return "focal loss", FOCAL, reasons, (ranked,)


def _heaviest(table: dict[Any, int]) -> float:
    """The largest balanced weight."""
    return sum(table.values()) / (len(table) * min(table.values()))
