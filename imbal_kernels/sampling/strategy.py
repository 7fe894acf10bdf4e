"""How many rows `sampling_strategy` asks for, with imbalanced-learn's meanings and messages.

Nothing of imbalanced-learn is used.
"""

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

Strategy = float | str | Mapping[int, int] | Callable[[Tensor], Mapping[int, int]]


def counts_of(name: str, y: Tensor, strategy: Strategy, sizes: dict[int, int], over: bool) -> dict[int, int]:
    """New rows of each targeted class; when under-sampling rows to keep."""
    excluded = "majority" if over else "minority"
    names = sorted({"auto", "all", "minority", "majority", "not minority", "not majority"} - {excluded})
    expected = (
        f"The 'sampling_strategy' parameter of {name} must be a float in the range (0.0, 1.0], a str among "
        f"{names}, an instance of 'collections.abc.Mapping' or a callable."
    )
    if isinstance(strategy, str):
        if strategy not in names:
            raise ValueError(f"{expected} Got {strategy!r} instead.")
        return _counts_of_name(strategy, sizes, over)
    if isinstance(strategy, Mapping):
        return _counts_of_mapping(strategy, sizes, over)
    if isinstance(strategy, Real) and not isinstance(strategy, bool):
        if not 0 < strategy <= 1:
            raise ValueError(f"{expected} Got {strategy} instead.")
        return _counts_of_ratio(float(strategy), sizes, over)
    if not callable(strategy):
        raise TypeError(f"{expected} Got {strategy!r} instead.")
    asked = strategy(y)
    if not isinstance(asked, Mapping):
        raise TypeError(f"sampling_strategy must return a mapping of class to rows, got {type(asked).__name__}")
    return _counts_of_mapping(asked, sizes, over)


def _extremes(sizes: dict[int, int]) -> tuple[int, int]:
    """The smallest and the largest class; the first of equals."""
    return min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)


def _counts_of_name(strategy: str, sizes: dict[int, int], over: bool) -> dict[int, int]:
    smallest, largest = _extremes(sizes)
    if strategy == "auto":
        strategy = "not majority" if over else "not minority"
    chosen = {
        "all": set(sizes),
        "minority": {smallest},
        "majority": {largest},
        "not minority": set(sizes) - {smallest},
        "not majority": set(sizes) - {largest},
    }[strategy]
    return {label: sizes[largest] - sizes[label] if over else sizes[smallest] for label in chosen}


def _counts_of_mapping(strategy: Mapping[Any, Any], sizes: dict[int, int], over: bool) -> dict[int, int]:
    for label, rows in strategy.items():
        for what, value in ((f"class {label!r}", label), (f"rows asked of class {label!r}", rows)):
            if not isinstance(value, Integral):
                raise TypeError(f"sampling_strategy must map ints to ints, got {type(value).__name__} for {what}")
    asked = {int(label): int(rows) for label, rows in strategy.items()}
    unknown = sorted(set(asked) - set(sizes))
    if unknown:
        listed = ", ".join(map(str, unknown))
        raise ValueError(f"The {{{listed}}} target class is/are not present in the data.")
    if any(rows < 0 for rows in asked.values()):
        raise ValueError(
            "The number of samples in a class cannot be negative."
            f"'sampling_strategy' contains some negative value: {asked}"
        )
    side, bound = ("over", "greater") if over else ("under", "less")
    for label, rows in asked.items():
        if rows < sizes[label] if over else rows > sizes[label]:
            raise ValueError(
                f"With {side}-sampling methods, the number of samples in a class should be {bound} or equal to the "
                f"original number of samples. Originally, there is {sizes[label]} samples and {rows} samples are asked."
            )
    return {label: rows - sizes[label] for label, rows in asked.items()} if over else asked


def _counts_of_ratio(ratio: float, sizes: dict[int, int], over: bool) -> dict[int, int]:
    if len(sizes) != 2:
        raise ValueError(
            '"sampling_strategy" can be a float only when the type of target is binary. For multi-class, use a dict.'
        )
    smallest, largest = _extremes(sizes)
    if over:
        (label,) = set(sizes) - {largest}
        count = int(sizes[largest] * ratio - sizes[label])
        if count <= 0:
            raise ValueError(
                "The specified ratio required to remove samples from the minority class while trying to generate new "
                "samples. Please increase the ratio."
            )
        return {label: count}
    (label,) = set(sizes) - {smallest}
    count = int(sizes[smallest] / ratio)
    if count > sizes[label]:
        raise ValueError(
            "The specified ratio required to generate new sample in the majority class while trying to remove samples. "
            "Please increase the ratio."
        )
    return {label: count}
