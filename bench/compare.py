"""The sigmoid focal loss beside a copy and torchvision, interleaved in one process.

    python -m bench.compare [--rounds 25] [--rows 100000] [--dtype float32 bfloat16] [--no-compile]

Every contestant runs once per round, so that a change of the machine's load meets all of them; ratios are
medians of the rounds' own ratios. Goals are for 100,000 x 80 in fp32 on 2 threads of an otherwise idle CPU.
"""

import argparse
import os
import statistics
import sys
import time

import torch

from bench import peers
from bench.peers import Contestant, Problem

COPY, OURS = "copy in place", "ours, class ids"
DTYPES = ("float32", "bfloat16", "float16")
# What our time is divided into, or by: (contestant, goal, whether a smaller ratio is better).
GOALS = (
    ("copy in place", 1.3, True),
    ("torchvision eager, dense", 45.0, False),
    ("torchvision compiled, dense", 14.0, False),
)


def measure(entries: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by contestant."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for index in range(rounds):
        print(f"\rround {index + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        for name, contestant in entries.items():
            start = time.perf_counter()
            contestant.run()
            times[name].append(time.perf_counter() - start)
    print(file=sys.stderr)
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def table(entries: dict[str, Contestant], times: dict[str, list[float]]) -> str:
    head = f"{'contestant':34}{'median ms':>10}{'best ms':>9}{'spread':>8}{'GB/s':>7}{'x copy':>8}{'ours is':>10}"
    lines = [head]
    for name, contestant in entries.items():
        median = statistics.median(times[name])
        low, _, high = statistics.quantiles(times[name], n=4)
        lines.append(
            f"{name:34}{median * 1e3:10.2f}{min(times[name]) * 1e3:9.2f}{(high - low) / median:8.0%}"
            f"{contestant.traffic / median / 1e9:7.1f}{ratio(times, name, COPY):8.2f}"
            f"{ratio(times, name, OURS):9.2f}x"
        )
    return "\n".join(lines)


def verdicts(times: dict[str, list[float]]) -> str:
    lines = []
    for name, goal, smaller in GOALS:
        if name not in times:
            lines.append(f"against {name}: not measured")
            continue
        value = ratio(times, OURS, name) if smaller else ratio(times, name, OURS)
        reached = value <= goal if smaller else value >= goal
        wanted = f"goal at most {goal}x its time" if smaller else f"goal at least {goal:g}x faster"
        lines.append(f"against {name}: {value:.2f}x, {wanted}: {'reached' if reached else 'not reached'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in args.dtype:
        problem = Problem.random(args.rows, 80, dtype=getattr(torch, dtype))
        entries = peers.contestants(problem, compiled=not args.no_compile)
        for name, contestant in entries.items():
            peers.check(name, contestant, problem)
            contestant.run()
        waiting = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        times = measure(entries, args.rounds)
        facts = ", ".join(f"{key} {value}" for key, value in peers.environment().items())
        print(f"\nsigmoid focal, forward + backward, {args.rows} x 80 {dtype}; {facts}")
        print(table(entries, times))
        print(verdicts(times) if dtype == "float32" else "no goal is set for this dtype on a CPU")
        if waiting > (os.cpu_count() or 1):
            print(f"the machine was busy (load {waiting:.1f} on {os.cpu_count()} cores): no verdict counts")


if __name__ == "__main__":
    main()
