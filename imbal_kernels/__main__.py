"""`python -m imbal_kernels doctor | demo | bench`."""

import argparse
import sys
from collections.abc import Sequence

from imbal_kernels import __version__, doctor

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
    if parser.parse_args(argv).command == "doctor":
        return doctor.main()
    parser.print_help(sys.stderr)
    return 2  # as for any other call that argparse can't read


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
