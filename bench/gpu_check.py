"""Everything that a machine with a GPU can show, in one command and without a network.

    python -m bench.gpu_check FOLDER [--dry]

Parts run in turn, each with a log in the folder; one that has passed is not run again in the same folder, and a
benchmark goes on behind the last workload in its record, so a run that was cut short can be resumed. All ends within
--minutes (9): the parts' own limits add up to less, and a part may also use what earlier ones left. --dry runs what
needs no GPU: the command itself is rehearsed on any machine.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import report, targets
from bench.harness import Record, environment

ROOT = Path(__file__).parent.parent
PYTHON = (sys.executable, "-m")
# Small launches of every kernel: the sanitizer slows them a hundredfold. Races: where threads share memory by hand.
SANITIZED = {
    "memcheck": ("tests/cuda/test_gpu.py", "tests/test_functional.py", "-k", "cuda and not large"),
    "racecheck": ("tests/cuda/test_gpu.py", "-k", "not large"),
}
# PyTorch's cache of freed memory would hide an access that is out of range.
SANITIZER = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode", "1")
# Where the toolkit's programs are when PATH does not say so.
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"))
LEAST = 15  # seconds in which no part that matters comes to an end


@dataclass(frozen=True)
class Part:
    """dry: the command without a GPU, or None where it takes one. seconds: that it may take in any case. needs: a
    program that may be missing."""

    name: str
    command: Sequence[str]
    dry: Sequence[str] | None
    seconds: int
    needs: str = ""


def parts(folder: Path) -> list[Part]:
    def suite(*which: str) -> tuple[str, ...]:
        many = ("-n", str(min(8, os.cpu_count() or 1))) if importlib.util.find_spec("xdist") and not which else ()
        return (*PYTHON, "pytest", "-q", "-p", "no:cacheprovider", *many, *which)

    def bench(name: str, dry: str, seconds: int) -> Part:
        files = ("--json", str(folder / f"record-{name}.json"), "--plot", str(folder / "plots"))
        command = (*PYTHON, "imbal_kernels", "bench", name, "--resume", *files)
        rehearsal = ("--device", "cpu", "--rounds", "2", "--no-compile", "--shapes", dry)
        return Part(f"bench {name}", (*command, "--device", "cuda"), (*command, *rehearsal), seconds)

    # setup.py goes on without what it can't build.
    made = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    libraries = ("imbal_kernels._C", "imbal_kernels._CUDA")
    build = ("sh", "-ec", '"$0" setup.py -q build_ext --inplace; "$0" -c "$@"', sys.executable, made, *libraries)
    doctor = (*PYTHON, "imbal_kernels", "doctor")
    static = (*PYTHON, "bench.sass", "--json", str(folder / "static.json"))
    return [
        Part("build", build, build, 75),
        Part("doctor", doctor, doctor, 15),
        Part("suite", suite(), suite("tests/test_ops.py", "tests/cuda"), 160),
        bench("losses", "2000x80", 100),
        bench("dense", "97x131", 25),
        bench("neighbors", "500x8", 45),
        *(
            Part(tool, (*SANITIZER, "--tool", tool, *suite(*tests)), None, 40, needs="compute-sanitizer")
            for tool, tests in SANITIZED.items()
        ),
        Part("static", static, (*static, "--only", "knn"), 30),  # what the suite compiled is cached
    ]  # fmt: skip


def _run(part: Part, folder: Path, dry: bool, left: float, later: float) -> str:
    """What became of a part, in a word or two; its log is kept. left: seconds of the budget, of which the parts after
    it may take `later`."""
    name = part.name.replace(" ", "-")
    passed = folder / f"{name}.passed"
    if passed.exists():
        return "passed earlier"
    command = part.dry if dry else part.command
    if command is None:
        return "needs a GPU"
    if part.needs and shutil.which(part.needs, path=PATH) is None:
        return f"FAILED: {part.needs} is not installed"
    limit = min(left, max(part.seconds, left - later))
    if limit < min(part.seconds, LEAST):
        return "NOT RUN: no time is left; the same command again goes on from here"
    start = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        # The rehearsal builds the CUDA library too; elsewhere a test that finds no GPU fails.
        variables = os.environ | {"PATH": PATH, "FORCE_CUDA": "1", "IMBAL_REQUIRE_CUDA": "" if dry else "1"}
        # A session of its own: compilers and workers that it started end with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"FAILED: still running after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        return f"FAILED with exit status {code}, see {name}.log"
    seconds = f"passed in {time.monotonic() - start:.0f} s"
    passed.write_text(seconds + "\n")
    return seconds


def summary(folder: Path, outcomes: dict[str, str], dry: bool) -> str:
    """One page: what ran, and the figures."""
    facts = environment("cpu" if dry else "cuda")
    lines = ["# GPU check" + (" (dry: nothing ran on a GPU)" if dry else ""), ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| part | outcome |", "|---|---|", *(f"| {name} | {what} |" for name, what in outcomes.items()), ""]
    records = [Record.load(path) for path in sorted(folder.glob("record-*.json"))]
    if records:
        lines += [report.summary(records), "", "All figures: figures.md.", ""]
        (folder / "figures.md").write_text(report.page(records) + "\n")
    if records and dry:
        results = [result for record in records for result in record.results]
        lines += ["```", targets.table(results), "```", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry", action="store_true", help="what needs no GPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="that all may take (9)")
    args = parser.parse_args(argv)
    if not args.dry and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --dry (make gpu-check DRY=1) rehearses what needs none")
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, end = {}, time.monotonic() + 60 * args.minutes
    todo = parts(folder)
    for i, part in enumerate(todo):
        print(f"{part.name:18}", end="", flush=True)
        later = sum(after.seconds for after in todo[i + 1 :])
        outcomes[part.name] = _run(part, folder, args.dry, end - time.monotonic(), later)
        print(outcomes[part.name], flush=True)
        # After each part: what was measured is kept when the machine goes away.
        (folder / "summary.md").write_text(summary(folder, outcomes, args.dry))
    return int(any(what.startswith(("FAILED", "NOT RUN")) for what in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
