"""Contestants side by side: checked, timed, and put in relation to a roof measured in the same run.

On a CPU every contestant runs once per round, so that a change of the machine's load meets all of them, in an order
that is drawn anew, so that nobody always comes after the same one: in a fixed order the first of ours took 7 ms or 90
at 20000 x 1000, by turns (huge pages that the kernel has to make first are a guess, not shown). Ratios are medians of
the rounds' own ratios. On a GPU times are CUDA events with L2 flushed in between (`triton.testing.do_bench`), and
ratios are ratios of medians.

What a CPU's caches hold when a run begins decides more than the run before it may: a loss's workload therefore
prepares each run, untimed, by writing the logits anew, as the layer before a loss does in training. Sigmoid focal loss,
100000 x 80 fp32, on two Zen 5 cores with 32 MB of L3, medians in ms, of a copy in place and of ours:

    alone in a loop                      0.57 to 1.1     1.0 to 1.3    the copy is served by L3 in part
    after the eager peer's turn          1.0 to 1.6      1.7 to 2.0    code and page tables are cold as well
    logits written anew                  0.60 to 0.77    1.1 to 1.2
    the same after the eager peer        0.9 to 1.4      1.6 to 2.0    1.4x to 2.0x
    the same after the compiled peer     0.8 to 1.45     1.5 to 1.75   1.2x to 1.8x

The kernel itself takes as long as the copy there; the rest of ours is Python and autograd. A copy has two states that
last for seconds or for a process, ours follows it half of the way, and a ratio to it says little without its time.

Page faults, the allocator, huge pages and the threads' waking up were measured and explain none of it: what is
added after another's turn does not grow with the rows.

A tensor above 32 MB is new memory in each run of a contestant: glibc maps it anew. A virtual machine that gives free
memory back to its host pays for that again: there a copy of 80 MB took 11 ms in place and 55 into a new tensor. Our
kernels keep the memory of a large gradient for the next (csrc/cpu/large_tensor.h), without which cross-entropy of
20000 x 1000 took 27 ms and with it 15 to 17. With an allocator that keeps all (MALLOC_MMAP_THRESHOLD_,
MALLOC_TRIM_THRESHOLD_) it takes 15, the eager peer 51 for 177 and the compiled one 50 for 105. After other workloads
the heap may hold room for it, and the same peers are two or three times as fast: of RetinaNet's levels the eager one
takes 1450 ms alone, 740 to 1140 after the losses, 440 with all memory kept; the compiled one 255 to 340, 138, 137 to
180. Each shape is therefore measured in a process of its own.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from imbal_kernels.ops import backends

COPY, OURS = "copy in place", "ours"
PEERS = ("torchvision", "liger-kernel", "quack-kernels", "mmcv", "apex", "scikit-learn", "imbalanced-learn",
         "faiss-cpu", "torch-cluster", "pykeops")  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """run: the work to time. amount: how much work that is at the least, in the workload's unit; of a loss the
    bytes that a single pass over its operands moves. check: raises an AssertionError where the result is wrong.
    in_tensors: whether what it holds is tensors; other memory is not seen."""

    run: Callable[[], object]
    amount: int
    check: Callable[[], None] = lambda: None
    in_tensors: bool = True


@dataclass(frozen=True)
class Workload:
    """What competes on one input. model: how amounts are counted. roof: the contestant whose rate is the most that
    the machine gives. missing: peers that are absent, and why. prepare: precedes each run on a CPU, untimed."""

    name: str
    device: str
    model: str
    contestants: dict[str, Contestant]
    missing: dict[str, str] = field(default_factory=dict)
    roof: str = COPY
    unit: str = "GB/s"
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Row:
    """Milliseconds; spread: interquartile range / median; rate: of work, in the workload's unit; of_roof: that over
    the roof's; times_roof and ratio: its time over the roof's and over ours, by rounds; peak_mib: most memory that it
    held at once beyond its inputs, None where it is not seen."""

    contestant: str
    median: float
    best: float
    spread: float
    rate: float
    of_roof: float
    times_roof: float
    ratio: float
    peak_mib: float | None

    @property
    def amount(self) -> float:
        """The work done: of a loss the megabytes of a single pass, of a search the megaflops."""
        return self.rate * self.median


@dataclass(frozen=True)
class Result:
    name: str
    model: str
    roof: str
    unit: str
    rows: list[Row]
    missing: dict[str, str]

    def row(self, contestant: str) -> Row | None:
        return next((row for row in self.rows if row.contestant == contestant), None)


def _rounds(workload: Workload, rounds: int, bar: "tqdm[None]") -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in workload.contestants}
    shuffled, entries = random.Random(0), list(workload.contestants.items())
    for _ in range(rounds):
        for name, contestant in shuffled.sample(entries, len(entries)):
            workload.prepare()
            start = time.perf_counter()
            contestant.run()
            times[name].append((time.perf_counter() - start) * 1e3)
            bar.update()
    return times


def _events(workload: Workload, bar: "tqdm[None]") -> dict[str, list[float]]:
    from triton.testing import do_bench

    times = {}
    for name, contestant in workload.contestants.items():
        torch.cuda.synchronize()
        start = time.perf_counter()
        contestant.run()
        torch.cuda.synchronize()
        once = (time.perf_counter() - start) * 1e3
        # Three runs of what is slow, at the least: a spread is reported.
        times[name] = do_bench(contestant.run, rep=max(100, 4 * once), return_mode="all")
        bar.update()
    return times


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """Without the memory that our CPU kernels keep from one gradient to the next, which the profiler does not see."""
    if backends.MISSING["cpu"]:
        yield
        return
    torch.ops.imbal_kernels.keep_memory(False)
    try:
        yield
    finally:
        torch.ops.imbal_kernels.keep_memory(True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler's C++ side writes to stderr at each start and stop."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_memory(contestant: Contestant, device: str) -> int:
    """Bytes held at once by tensors that a run makes, at their most."""
    run = contestant.run
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _nothing_kept(), _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    held = peak = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(workload: Workload, rounds: int = 15) -> Result:
    """Check every contestant, then time them all. One that is wrong is an AssertionError that names it."""
    contestants = workload.contestants
    steps = len(contestants) * (2 if workload.device == "cuda" else 1 + rounds)
    with tqdm(total=steps, desc=workload.name, leave=False, file=sys.stderr, disable=None) as bar:
        for name, contestant in contestants.items():
            bar.set_postfix_str(f"checking {name}")
            contestant.check()
            contestant.run()  # warm, compiled, with every size met once
            bar.update()
        bar.set_postfix_str("timing")
        times = _events(workload, bar) if workload.device == "cuda" else _rounds(workload, rounds, bar)
    medians = {name: statistics.median(values) for name, values in times.items()}

    def ratio(over: str, under: str) -> float:
        if workload.device == "cuda":
            return medians[over] / medians[under]
        return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))

    roof = contestants[workload.roof].amount / medians[workload.roof]
    rows = []
    for name, contestant in contestants.items():
        low, _, high = statistics.quantiles(times[name], n=4)
        rows.append(
            Row(
                contestant=name,
                median=medians[name],
                best=min(times[name]),
                spread=(high - low) / medians[name],
                rate=contestant.amount / medians[name] / 1e6,
                of_roof=contestant.amount / medians[name] / roof,
                times_roof=ratio(name, workload.roof),
                ratio=ratio(name, OURS),
                peak_mib=peak_memory(contestant, workload.device) / 2**20 if contestant.in_tensors else None,
            )
        )
    return Result(workload.name, workload.model, workload.roof, workload.unit, rows, workload.missing)


def environment(device: str) -> dict[str, str | int | float]:
    """What the figures depend on besides the code."""
    facts: dict[str, str | int | float] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton") or "none",
        "peers": ", ".join(f"{name} {version}" for name in PEERS if (version := _version(name))),
    }
    if device == "cuda":
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        return {**facts, "device": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}
    return {
        **facts,
        "device": f"{_cpu_name()}, {instruction_set()}, {torch.get_num_threads()} threads",
        "cores": os.cpu_count() or 1,
        "busy before": f"{_busy():.0%}",
    }


def _busy(seconds: float = 0.5) -> float:
    """The share of the cores that others use while this process sleeps; 0 where the system does not say."""

    def ticks() -> tuple[int, int]:
        user, nice, system, idle, wait, *_ = (int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return user + nice + system, user + nice + system + idle + wait

    try:
        before = ticks()
        time.sleep(seconds)
        after = ticks()
    except OSError:
        return 0.0
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


def instruction_set() -> str:
    """The one our CPU kernels use, or "no kernels" where they run on the reference."""
    return "no kernels" if backends.MISSING["cpu"] else torch.ops.imbal_kernels._cpu_capability("")


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Record:
    environment: dict[str, str | int | float]
    results: list[Result]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Record":
        data = json.loads(path.read_text())
        results = [Result(**{**r, "rows": [Row(**row) for row in r["rows"]]}) for r in data["results"]]
        return cls(data["environment"], results)


def run_all(workloads: Iterable[Workload], record: Record, rounds: int, show: Callable[[Result], None]) -> None:
    """Adds to the record the results that it lacks, and shows each."""
    known = {result.name for result in record.results}
    for workload in workloads:
        if workload.name not in known:
            record.results.append(measure(workload, rounds))
            show(record.results[-1])
