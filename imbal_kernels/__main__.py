"""`python -m imbal_kernels doctor | demo`."""

import argparse
import sys
from collections.abc import Sequence

from imbal_kernels import __version__, doctor

DEMO_EXTRA = ("sklearn", "matplotlib", "tqdm")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m imbal_kernels", description="Losses for imbalanced data."
    )
    parser.add_argument("--version", action="version", version=f"imbal_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser(
        "doctor", help="say what this installation can do, and what to do about what it can't"
    )
    demo = commands.add_parser(
        "demo", help="train with and without the remedies for imbalance, and draw the outcome"
    )
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
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in DEMO_EXTRA:
            raise
        print(
            f"the demo needs {package}, which is not installed: `pip install imbal_kernels[demo]`",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
