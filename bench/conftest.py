"""Fixtures of the benchmarks: fixed threads, and how a contestant is timed."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(benchmark):
    """Checks and times a contestant of a workload, which is made where its device is there."""

    def timed(make, device, name, rounds, warmup_rounds):
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no GPU")
        workload = make()
        if name not in workload.contestants:
            missing = workload.missing.get(name) or workload.missing.get(name.split()[0], "not among the contestants")
            pytest.skip(f"{name}: {missing}")
        contestant = workload.contestants[name]
        contestant.check()
        benchmark.group = workload.name

        def run():
            contestant.run()
            if device == "cuda":
                torch.cuda.synchronize()

        before = workload.prepare if device == "cpu" else None
        benchmark.pedantic(run, setup=before, rounds=rounds, warmup_rounds=warmup_rounds)
        if benchmark.stats:
            benchmark.extra_info[workload.unit] = contestant.amount / benchmark.stats.stats.median / 1e9

    return timed
