"""`python -m imbal_kernels doctor | recommend | demo | bench`."""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence

from imbal_kernels import __version__, doctor, strategy

DEMO_EXTRA = ("sklearn", "matplotlib", "tqdm")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m imbal_kernels", description="Losses and resampling for imbalanced data."
    )
    parser.add_argument("--version", action="version", version=f"imbal_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser(
        "doctor", help="say what this installation can do, and what to do about what it can't"
    )
    advise = commands.add_parser(
        "recommend", help="say which remedy fits the labels of a table, why, and the call to make"
    )
    advise.add_argument("file", help="CSV with a header")
    advise.add_argument("--column", required=True, metavar="NAME", help="the column of labels")
    advise.add_argument("--task", choices=strategy.TASKS, default="tabular")
    demo = commands.add_parser(
        "demo", help="train with and without the remedies for imbalance, and draw the outcome"
    )
    commands.add_parser(
        "bench", help="time the kernels beside their peers (from a checkout)", add_help=False
    )
    if argv[:1] == ["bench"]:
        return _bench(argv[1:])
    if argv[:1] == ["demo"]:
        return _demo(parser, demo, argv)
    args = parser.parse_args(argv)
    if args.command == "doctor":
        return doctor.main()
    if args.command == "recommend":
        return _recommend(args.file, args.column, args.task)
    parser.print_help(sys.stderr)
    return 2  # as for any other call that argparse can't read


def _recommend(file: str, column: str, task: str) -> int:
    try:
        counts = _column_counts(file, column)
        advice = strategy.recommend(counts, task)
    except (OSError, ValueError, csv.Error) as error:
        print(f"{file}: {error.strerror if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    total, width = sum(counts.values()), max(len("class"), *map(len, counts))
    print(f"{'class':{width}} {'examples':>12} {'share':>8} {'weight':>9}")
    for name, n in counts.most_common():
        print(f"{name:{width}} {n:12,} {n / total:8.2%} {total / (len(counts) * n):9.4g}")
    print(f"\n{advice}")
    return 0


def _column_counts(file: str, column: str) -> Counter[str]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = csv.reader(lines)
        header = next(rows, [])
        if header.count(column) != 1:
            what = "no column" if column not in header else "more than one column"
            raise ValueError(f"{what} named {column!r}; there are {', '.join(map(repr, header)) or 'none'}")
        at, counts = header.index(column), Counter[str]()
        for row in rows:
            if not row:
                continue  # a blank line
            if len(row) <= at or not row[at].strip():
                raise ValueError(f"line {rows.line_num} has no value in column {column!r}")
            counts[row[at].strip()] += 1
    if not counts:
        raise ValueError(f"column {column!r} has no rows")
    return counts


def _demo(
    parser: argparse.ArgumentParser, command: argparse.ArgumentParser, argv: list[str]
) -> int:
    # Imported on demand: its dependencies are an extra.
    try:
        from imbal_kernels import demo

        demo.add_arguments(command)
        return demo.main(parser.parse_args(argv))
    except KeyboardInterrupt:
        print("\ndemo: interrupted, no report written", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in DEMO_EXTRA:
            raise
        print(
            f"the demo needs {package}, which is not installed: "
            'in a checkout, `pip install --no-build-isolation ".[demo]"`',
            file=sys.stderr,
        )
        return 1


def _bench(argv: list[str]) -> int:
    # What is measured lives beside the package, with the records, and is not installed with it.
    try:
        from bench.__main__ import main as bench
    except ModuleNotFoundError as error:
        if error.name not in ("bench", "bench.__main__", "tqdm"):
            raise
        print(
            "bench runs in a checkout of the project, from its top folder, with tqdm installed "
            f"(no module named {error.name} here)",
            file=sys.stderr,
        )
        return 1
    return bench(argv)


if __name__ == "__main__":
    sys.exit(main())
