"""The benchmark command.

Every contestant's result is checked before it is timed. The roof is measured in the same run: of a loss a copy of
the logits, of a search a matrix product.
CPU: contestants take turns, round by round and in changing order, each after the logits were written anew; each shape
has a process of its own. GPU: CUDA events, L2 flushed in between.
"""

import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import dense, formulas, losses, neighbors, report, smote, softmax, targets
from bench.harness import Record, Result, environment, run_all

GROUPS: dict[str, ModuleType] = {
    "sigmoid": losses,
    "softmax": softmax,
    "formulas": formulas,
    "dense": dense,
    "knn": neighbors,
    "smote": smote,
}
SUITES = {
    "losses": ("sigmoid", "softmax", "formulas"),
    "neighbors": ("knn", "smote"),
    **{group: (group,) for group in GROUPS},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imbal_kernels bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"{', '.join(SUITES)}; all without one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--shapes", nargs="+", metavar="ROWSxCOLUMNS", help='or "all": those of the records')
    parser.add_argument("--peers", nargs="*", metavar="PEER", help="whom to compare with; nobody without a name")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile of the peers out")
    parser.add_argument("--rounds", type=int, default=15, help="of a CPU run")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of a CPU run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save a record, anew after each workload")
    parser.add_argument("--resume", action="store_true", help="go on with FILE: what it holds is not measured again")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw each result against the roofline")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="of the plots")
    return parser


def _refuse(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What argparse lets pass; also what would only fail once all was measured."""
    for name in args.suites:
        if name not in SUITES:
            parser.error(f"there is no suite {name}: choose from {', '.join(SUITES)}")
    for shape in () if args.shapes in (None, ["all"]) else args.shapes:
        if not all(part.isdecimal() and int(part) > 0 for part in shape.split("x")) or shape.count("x") != 1:
            parser.error(f'--shapes takes ROWSxCOLUMNS such as 100000x80, or "all" alone, got {shape}')
    known = {peer for group in _groups(args) for peer in GROUPS[group].PEERS}
    for peer in args.peers or ():
        if peer not in known:
            parser.error(f"there is no peer {peer}: choose from {', '.join(sorted(known))}")
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2, for a spread is reported; got {args.rounds}")
    if args.resume and not args.json:
        parser.error("--resume needs --json: the record to go on with")
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can see; there is none")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")
    for option, folder in (("--json", args.json and args.json.parent), ("--plot", args.plot)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{option}: {folder} can't be made: {error.strerror}")


def _verdicts(record: Record, all_of_them: bool) -> str:
    lines = targets.table(record.results, all_of_them)
    if "\n" not in lines:
        return "no goal is set for what was measured"
    busy = int(str(record.environment["busy before"]).rstrip("%")) > 10
    return lines + ("\nthe machine was busy when this began: the verdicts don't count" if busy else "")


def _groups(args: argparse.Namespace) -> Iterable[str]:
    return dict.fromkeys(group for suite in args.suites or SUITES for group in SUITES[suite])


def _measure(groups: Iterable[str], args: argparse.Namespace, device: str, path: Path, resume: bool) -> int:
    """Adds to the record in `path` what it lacks of these groups, or begins it anew; the exit status."""
    torch.set_num_threads(args.threads)
    record = Record.load(path) if resume and path.exists() else Record(environment(device), [])
    workloads = (
        workload
        for suite in (GROUPS[group] for group in groups)
        for workload in suite.workloads(
            device,
            args.dtype or suite.DTYPES[device],
            _shapes(suite, device, args.shapes),
            suite.PEERS if args.peers is None else args.peers,
            not args.no_compile,
        )
    )

    def show(result: Result) -> None:
        print(report.text_table(result), flush=True)
        record.save(path)
        if args.plot:
            print(report.draw(record, result, args.plot, args.format), flush=True)

    try:
        run_all(workloads, record, args.rounds, show)
    except AssertionError as error:
        print(f"stopped, a contestant's result is wrong: {error}", file=sys.stderr)
        return 1
    return 0


def _child(*arguments: Any) -> None:
    sys.exit(_measure(*arguments))


def _measure_apart(
    parts: Iterable[tuple[str, str]], args: argparse.Namespace, device: str, path: Path, resume: bool
) -> int:
    """The same, each shape of a group in a process of its own: what the heap holds after other workloads decides on a
    peer's time."""
    spawn = multiprocessing.get_context("spawn")
    for group, shape in parts:
        one = argparse.Namespace(**{**vars(args), "shapes": [shape]})
        process = spawn.Process(target=_child, args=([group], one, device, path, resume))
        process.start()
        process.join()
        if process.exitcode:
            return process.exitcode
        resume = True
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _refuse(parser, args)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    groups = _groups(args)
    parts = [(group, shape) for group in groups for shape in _shapes(GROUPS[group], device, args.shapes)]
    with tempfile.TemporaryDirectory() as folder:
        path = args.json or Path(folder, "record.json")
        if device == "cpu" and len(parts) > 1:
            failed = _measure_apart(parts, args, device, path, args.resume)
        else:
            failed = _measure(groups, args, device, path, args.resume)
        if failed:
            return failed
        record = Record.load(path)
    print(f"\n{report.heading(record)}")
    if device == "cpu":
        print(f"\n{_verdicts(record, not args.suites)}")
    return 0


def _shapes(suite: ModuleType, device: str, asked: list[str] | None) -> Sequence[str]:
    """Without a wish the few that take a minute; "all" are those of the records."""
    if asked == ["all"]:
        return (*suite.SHAPES[device], *suite.MORE_SHAPES[device])
    return asked or suite.SHAPES[device]


if __name__ == "__main__":
    sys.exit(main())
