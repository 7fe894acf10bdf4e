"""What the kernels cost, read from ahead-of-time compiled code: no GPU needed.

    python -m bench.sass [--arch 80 90 100] [--json FILE] [--baseline]

Triton: an instruction count is the warp instructions that a program executes x 32 / its elements: prologue,
reduction and patch included, NOP left out. Kernels are straight-line code but for short predicated
blocks and branches whose outcome the case states; any other control flow is an error, never a guess.
CUDA: counts are of the code as it stands, and of the loop that a search spends its time in.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import sass_cuda, sass_triton

CASES, KERNELS = sass_triton.CASES, sass_cuda.KERNELS
BASELINE = Path(__file__).parent / "static.json"
ARCHITECTURES = (80, 90, 100)
# Issue slots (lanes of warp instructions) that a machine has while it moves a byte: SMs x 4 x 32 x clock over
# memory bandwidth. An element that needs more than its bytes' worth of them is bound by issue.
SLOTS_PER_BYTE = {80: {"A100": 9.6}, 90: {"H100": 9.75, "H200": 6.75}, 100: {"B200": 4.4}}


def _cached(key: str, make: Callable[[], Any]) -> Any:
    """What make() returned, as JSON, when neither the sources nor the compilers have changed since."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "imbal_kernels" / "sass" / f"{key}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(make()))
        partial.replace(path)
    return json.loads(path.read_text())


def report(name: str, arch: int = 90) -> sass_triton.Report:
    """A Triton case's report."""
    place = list(CASES).index(name)
    key = f"{sass_triton.digest()}-{place}-{arch}"
    return sass_triton.Report(**_cached(key, lambda: asdict(sass_triton.compile_case(CASES[name], arch))))


def cuda_reports(file: str, arch: int = 90) -> dict[str, sass_cuda.Report]:
    """The reports of all kernels of a file by their mangled names."""
    key = f"{sass_cuda.digest()}-{file}-{arch}"
    found = _cached(key, lambda: {k: asdict(r) for k, r in sass_cuda.compile_file(file, arch).items()})
    return {name: sass_cuda.Report(**fields) for name, fields in found.items()}


def cuda_report(name: str, arch: int = 90) -> sass_cuda.Report:
    file, mangled = KERNELS[name]
    return cuda_reports(file, arch)[mangled]


def baseline(version: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Committed reports by case and architecture, for the compilers in use; empty for others."""
    return json.loads(BASELINE.read_text()).get(version, {}) if BASELINE.exists() else {}


def _row(name: str, arch: int, r: sass_triton.Report) -> str:
    instructions = "-" if r.instructions is None else f"{r.instructions:.2f}"
    bounds = {machine: r.issue_bound(slots) for machine, slots in SLOTS_PER_BYTE[arch].items()}
    bound = ", ".join(f"{machine} {value:.0%}" for machine, value in bounds.items() if value)
    launch = CASES[name].launch()
    per_thread = sass_triton._elements(launch.args) / (32 * launch.num_warps)
    loads, stores = (sum(accesses.values()) / per_thread for accesses in (r.loads, r.stores))
    row = f"{name:50}{arch:>5}{instructions:>9}{r.ffma:>7.2f}{r.mufu:>6.2f}{loads:>6.2f}{stores:>6.2f}"
    return f"{row}{r.registers:>6}{r.spills:>7}{r.shared:>8}  {bound:20} {r.loads} {r.stores}"


def _cuda_row(name: str, arch: int, r: sass_cuda.Report) -> str:
    loop = f"{r.loop_ffma / r.loop:.1%} of {r.loop}" if r.loop else "-"
    row = f"{name:50}{arch:>5}{r.instructions:>9}{r.ffma:>7}{r.registers:>6}{r.spills:>7}{r.shared:>8}"
    return f"{row}  {loop:15} {r.loads} {r.stores} {r.shared_loads}"


COUNTS = f"{'instr':>9}{'FFMA':>7}{'MUFU':>6}{'LDG':>6}{'STG':>6}"
HEADS = f"{COUNTS}{'regs':>6}{'spills':>7}{'shared':>8}  {'bound':20} loads, stores"
CUDA_HEADS = f"{'instr':>9}{'FFMA':>7}{'regs':>6}{'spills':>7}{'shared':>8}  {'FFMA of loop':15} loads, stores, shared"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the kernels cost, from ahead-of-time compiled code.")
    parser.add_argument("--arch", type=int, nargs="+", default=[90], choices=ARCHITECTURES)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports there")
    parser.add_argument(
        "--baseline", action="store_true", help=f"make them what the tests compare with, {BASELINE.name}"
    )
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, dict[str, object]]]] = {}

    def show(version: str, heads: str, names: Any, reports: Callable[..., Any], row: Callable[..., str]) -> None:
        print(f"{version}\n{'case':50}{'sm':>5}{heads}")
        for name in (name for name in names if options.only in name):
            for arch in options.arch:
                r = reports(name, arch)
                found.setdefault(version, {}).setdefault(name, {})[str(arch)] = asdict(r)
                print(row(name, arch, r), flush=True)

    print("instr to STG: an element. loads, stores: a thread's, by bits. bound: what issue leaves of the roofline")
    show(sass_triton.version(), HEADS, CASES, report, _row)
    if sass_cuda.NVCC:
        print("\ninstr, FFMA: in the code; a loop's counts once")
        show(sass_cuda.version(), CUDA_HEADS, KERNELS, cuda_report, _cuda_row)
    else:
        print("\nno nvcc: the CUDA kernels are left out")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.baseline:
        kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        for version, cases in found.items():
            for name, reports in cases.items():
                kept.setdefault(version, {}).setdefault(name, {}).update(reports)
        BASELINE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
