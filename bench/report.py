"""Results for people: a table for the terminal, a plot against the roofline, the README's section."""

import re
from collections.abc import Sequence
from pathlib import Path

from bench.harness import OURS, Record, Result


def _columns(result: Result) -> tuple[str, ...]:
    return ("contestant", "ms", "spread", result.unit, "of roof", "x roof", "ours is", "peak MiB")


def _cells(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            row.contestant,
            f"{row.median:.2f}",
            f"{row.spread:.0%}",
            f"{row.rate:.1f}",
            f"{row.of_roof:.0%}",
            f"{row.times_roof:.2f}",
            "" if row.contestant == OURS else f"{row.ratio:.2f}x",
            "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
        )
        for row in result.rows
    ]


def _missing(result: Result) -> str:
    return "; ".join(f"{peer}: {why}" for peer, why in result.missing.items())


def text_table(result: Result) -> str:
    cells = [_columns(result), *_cells(result)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
             for line in cells]  # fmt: skip
    missing = f"\nmissing: {_missing(result)}" if result.missing else ""
    return f"\n{result.name}  ({result.model}; roof: {result.roof})\n" + "\n".join(lines) + missing


def heading(record: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.environment.items() if value != "")


def plot(record: Record, folder: Path, suffix: str = "svg") -> list[Path]:
    """One picture a result: the rate of each contestant, against the line of the roof."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in record.results:
        rows = [row for row in result.rows if row.contestant != result.roof][::-1]
        figure = Figure(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        colors = ["#1b6ca8" if row.contestant.startswith(OURS) else "#b0b0b0" for row in rows]
        bars = axes.barh([row.contestant for row in rows], [row.rate for row in rows], color=colors)
        axes.bar_label(bars, [f"{row.median:.2f} ms, {row.of_roof:.0%}" for row in rows], padding=3, fontsize=8)
        roof = result.row(result.roof)
        if roof:
            axes.axvline(
                roof.rate, color="#c0392b", linestyle="--", label=f"{result.roof}, {roof.rate:.0f} {result.unit}"
            )
            axes.legend(loc="lower right", fontsize=8)
        axes.set_xlim(0, 1.25 * max([row.rate for row in result.rows]))
        axes.set_xlabel(f"{result.unit}: {result.model}, over the time it took")
        axes.set_title(f"{result.name}\n{record.environment['device']}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        name = re.sub(r"\W+", "-", f"{result.name} {record.environment['device']}").strip("-").lower()
        paths.append(folder / f"{name}.{suffix}")
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(paths[-1], metadata=metadata)
    return paths


def markdown(records: Sequence[Record]) -> str:
    """The README's section."""
    parts = []
    for record in records:
        environment = record.environment
        parts.append(
            f"**{environment['device']}**, {environment['date']}, torch {environment['torch']}. "
            "ms: median; of roof: of the rate that the roof reaches in the same run."
        )
        for result in record.results:
            head = ("contestant", "ms", "of roof", "ours is faster by", "peak MiB")
            lines = [f"| {' | '.join((result.name, *head[1:]))} |", "|---|---|---|---|---|"]
            for row, cells in zip(result.rows, _cells(result), strict=True):
                lines.append(f"| {row.contestant} | {cells[1]} | {cells[4]} | {cells[6]} | {cells[7]} |")
            parts.append("\n".join(lines))
            if result.missing:
                parts.append(f"Missing: {_missing(result)}.")
    if not any("cuda" in record.environment for record in records):
        parts.append("**On a GPU: not measured yet.**")
    return "\n\n".join(parts)
