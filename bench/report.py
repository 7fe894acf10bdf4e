"""Results for people: a table for the terminal, a plot against the roofline, the README's section."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.harness import OURS, Record, Result


def _columns(result: Result) -> tuple[str, ...]:
    work = {"GB/s": "MB", "GFLOP/s": "MFLOP"}[result.unit]
    return ("contestant", work, "ms", "spread", result.unit, "of roof", "x roof", "ours is", "peak MiB")


def _cells(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            row.contestant,
            f"{row.amount:.1f}",
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


def plot_name(record: Record, result: Result) -> str:
    return re.sub(r"\W+", "-", f"{result.name} {record.environment['device']}").strip("-").lower()


def fingerprint(record: Record, result: Result) -> str:
    """What a plot carries in its metadata: of the figures that it shows."""
    shown = json.dumps([record.environment["device"], asdict(result)], sort_keys=True)
    return f"result {hashlib.sha256(shown.encode()).hexdigest()[:16]}"


def draw(record: Record, result: Result, folder: Path, suffix: str = "svg") -> Path:
    """The rate of each contestant, against the line of the roof."""
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in result.rows if row.contestant != result.roof][::-1]
    figure = Figure(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colors = ["#1b6ca8" if row.contestant.startswith(OURS) else "#b0b0b0" for row in rows]
    bars = axes.barh([row.contestant for row in rows], [row.rate for row in rows], color=colors)
    axes.bar_label(bars, [f"{row.median:.2f} ms, {row.of_roof:.0%}" for row in rows], padding=3, fontsize=8)
    roof = result.row(result.roof)
    if roof:
        axes.axvline(roof.rate, color="#c0392b", linestyle="--", label=f"{result.roof}, {roof.rate:.0f} {result.unit}")
        axes.legend(loc="lower right", fontsize=8)
    axes.set_xlim(0, 1.25 * max(row.rate for row in result.rows))
    axes.set_xlabel(f"{result.unit}: {result.model}, over the time it took", fontsize=7)
    axes.set_title(f"{result.name}\n{record.environment['device']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / f"{plot_name(record, result)}.{suffix}"
    metadata = {"Description": fingerprint(record, result)} | ({"Date": None} if suffix == "svg" else {})
    # Text stays text, and the same figures make the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": result.name}):
        figure.savefig(path, metadata=metadata)
    return path


def _facts(record: Record) -> str:
    facts = record.environment
    return f"**{facts['device']}**, {facts['date']}, torch {facts['torch']}, commit {facts['commit']}"


def page(records: Sequence[Record], plots: str = "plots") -> str:
    """All figures; plots: the folder that its links lead to."""
    parts = []
    for record in records:
        parts.append(f"{_facts(record)}.")
        for result in record.results:
            _, work, *columns = (name for name in _columns(result) if name != "x roof")
            head = (result.name, work, *columns)
            lines = [f"| {' | '.join(head)} |".replace("ours is", "ours is faster by"), "|---" * len(head) + "|"]
            for *cells, _, ratio, peak in _cells(result):
                lines.append(f"| {' | '.join((*cells, ratio, peak))} |")
            parts.append("\n".join(lines))
            missing = f"Missing: {_missing(result)}. " if result.missing else ""
            link = f"[Plot]({plots}/{plot_name(record, result)}.svg)"
            parts.append(f"{result.unit}: {result.model}. Roof: {result.roof}. {missing}{link}.")
    return "\n\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """A line a workload: ours, and by how much it is faster than each peer."""
    parts = []
    for facts, group in itertools.groupby(sorted(records, key=_facts), _facts):
        lines = ["| | ours, ms | spread | of roof | ours is faster than |", "|---" * 5 + "|"]
        missing: dict[str, str] = {}
        for result in (result for record in group for result in record.results):
            missing |= result.missing
            ours = result.row(OURS)
            peers = [
                f"{row.contestant} {row.ratio:.1f}x"
                for row in result.rows
                if row.contestant != result.roof and not row.contestant.startswith((OURS, "copy"))
            ]
            if ours:
                figures = f"{ours.median:.2f} | {ours.spread:.0%} | {ours.of_roof:.0%}"
                lines.append(f"| {result.name} | {figures} | {'; '.join(peers)} |")
        absent = "; ".join(f"{peer}: {why}" for peer, why in missing.items())
        parts += [f"{facts}.", "\n".join(lines), *([f"Missing: {absent}."] if absent else [])]
    if not any("cuda" in record.environment for record in records):
        parts.append("**On a GPU: not measured yet.**")
    return "\n\n".join(parts)
