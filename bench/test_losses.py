"""The losses under pytest-benchmark, for a history and `--benchmark-compare`.

    pytest bench --benchmark-enable --benchmark-only

`python -m imbal_kernels bench` takes the contestants in turns and is the one to quote.
"""

import functools

import pytest
import torch

from bench import losses
from bench.harness import COPY, OURS

NAMES = (
    COPY,
    OURS,
    "ours, upstream 2",
    "ours, recomputed",
    "ours, dense",
    "torchvision eager, dense",
    "torchvision compiled, dense",
    "torchvision eager, class ids",
    "torchvision compiled, class ids",
)
CASES = [("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")]


@functools.lru_cache(maxsize=1)  # tests come grouped by case; two problems at once would not fit every machine
def _workload(device, dtype):
    return next(losses.workloads(device, [dtype], losses.SHAPES[device][:1], losses.PEERS, True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", NAMES)
def test_sigmoid_focal(benchmark, case, name):
    device = case[0]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    workload = _workload(*case)
    if name not in workload.contestants:
        pytest.skip(f"{name}: {workload.missing.get(name.split()[0], 'not among the contestants')}")
    contestant = workload.contestants[name]
    contestant.check()
    benchmark.group = workload.name

    def run():
        contestant.run()
        if device == "cuda":
            torch.cuda.synchronize()

    slow = "eager" in name and device == "cpu"
    before = workload.prepare if device == "cpu" else None
    benchmark.pedantic(run, setup=before, rounds=7 if slow else 25, warmup_rounds=2)
    if benchmark.stats:
        benchmark.extra_info["GB/s"] = contestant.amount / benchmark.stats.stats.median / 1e9
