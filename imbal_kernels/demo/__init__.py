"""The demo: a detector trained with several losses, real tables with several remedies, a report."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from . import tables
from .detector import Detector
from .evaluate import background_scores, best_threshold, one_hot, predict, score
from .remedies import Remedy, make_remedies, output_counts
from .report import COLUMNS, Run, Setup, table_rows, verdict, write_report
from .scenes import NUM_CLASSES, make_scenes
from .tables_report import section, tables_verdict
from .train import QUICK, Data, Settings, time_losses, train

__all__ = ["Run", "Settings", "add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m imbal_kernels demo`."""
    parser.add_argument("--quick", action="store_true", help="a short run, under a minute")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of report.html")
    parser.add_argument("--seed", type=_integer(0, 2**32 - 1), default=0, help="scenes, start and data order")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=_integer(1, 1024), help="CPU threads; PyTorch's choice without it")


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"expected an integer from {least} to {most}, but got {text!r}")
        return int(text)

    return parse


def main(args: argparse.Namespace) -> int:
    """Run the demo with parsed options, print its table, say where the report is."""
    if problem := _problem(args):
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    settings, budget = (QUICK, tables.QUICK_BUDGET) if args.quick else (Settings(), tables.BUDGET)
    path = run(settings, budget, args.out, args.seed, args.device)
    print(f"report: {path}")
    return 0


def _problem(args: argparse.Namespace) -> str:
    """What would fail only after minutes of training, or nothing; makes the folder of the report."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda needs a GPU that PyTorch can see; there is none"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"--out {args.out}: {error.strerror}"
    return "" if os.access(args.out, os.W_OK) else f"--out {args.out}: not writable"


def run(
    settings: Settings,
    budget: Mapping[str, tables.TableSettings],
    out: Path,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Both parts: write `out`/report.html and return its path."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target, path, missing = torch.device(device), out / "report.html", _missing_tables()
    print(f"demo: making scenes, training on {device}; the report will be {path}", file=sys.stderr)
    if missing:
        print(missing, file=sys.stderr)
    torch.backends.cudnn.deterministic = True
    data = _make_data(settings, seed)
    torch.manual_seed(seed)
    start = Detector().to(target)
    start.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    outputs = output_counts(data["train"].ids)
    remedies = make_remedies(outputs.to(target))
    with tqdm(total=settings.steps * len(remedies), unit="step") as bar:
        runs = [_one_run(r, start, data, settings, seed, bar) for r in remedies]
    background = background_scores(data["test"].ids)
    timing = time_losses(start, remedies[-1], data["train"], settings.batch)
    setup = Setup(
        settings,
        seed,
        torch.cuda.get_device_name(target) if target.type == "cuda" else "CPU",
        torch.get_num_threads(),
        data["train"].ids.shape[1] * NUM_CLASSES,
        float(outputs.sum() / outputs[1]),
    )
    print(_plain_table([COLUMNS, *table_rows(runs, background)]))
    print(verdict(runs))
    results = [] if missing else _tables(budget, seed)
    if results:
        print(textwrap.fill(tables_verdict(results), 80))
    out.mkdir(parents=True, exist_ok=True)
    second_part = section(results, missing)
    write_report(path, runs, background, data["test"].scenes, timing, setup, second_part)
    return path


def _make_data(settings: Settings, seed: int) -> dict[str, Data]:
    counts = {"train": settings.train_scenes, "val": settings.val_scenes, "test": settings.test_scenes}
    return {split: Data.of(make_scenes(split, count, seed)) for split, count in counts.items()}


def _missing_tables() -> str:
    """Why the part on real tables is left out, or nothing."""
    package = tables.missing_package()
    if package is None:
        return ""
    return (
        f"The part on real tables is left out: it needs {package}, which is not installed "
        f"(pip install {package})."
    )


def _tables(budget: Mapping[str, tables.TableSettings], seed: int) -> list[tables.TableResult]:
    """Every method on every table of `budget`, on one CPU thread.

    The fits are made of tiny operations: more threads wait for one another for longer than they
    work, up to a hundred times as long where the machine is busy.
    """
    total = sum(s.fits() for s in budget.values())
    with threadpool_limits(1), tqdm(total=total, unit="fit") as bar:
        return [tables.evaluate(tables.load(n, s.rows, seed), s, seed, bar) for n, s in budget.items()]


def _one_run(
    remedy: Remedy, start: Detector, data: dict[str, Data], settings: Settings, seed: int, bar: tqdm
) -> Run:
    """Train with one loss, choose its threshold on validation scenes, score it on test scenes."""
    bar.set_description(f"{remedy.name:>18}")
    model, history = train(remedy, start, data["train"], data["val"], settings, seed, bar)
    device = next(model.parameters()).device
    val_logits, _ = predict(model, data["val"].scenes, device)
    truth = one_hot(data["val"].ids)
    threshold = best_threshold(truth, val_logits.sigmoid().numpy().ravel())
    test = data["test"]
    logits, distances = predict(model, test.scenes, device)
    scores, detections = score(logits, distances, test.scenes, test.ids, threshold)
    return Run(remedy, history, threshold, scores, detections)


IN_TERMINAL = [0, 1, 2, 3, 8, 9]  # of COLUMNS, so that a line has 80 characters


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    short = [[row[i] for i in IN_TERMINAL] for row in rows]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    lines = [[cell.rjust(w) for cell, w in zip(row, widths, strict=True)] for row in short]
    return "\n".join("  ".join(line) for line in lines)
