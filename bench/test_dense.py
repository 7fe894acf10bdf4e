"""The dense loss under pytest-benchmark; see test_losses.py."""

import functools

import pytest
import torch

from bench import dense
from bench.harness import COPY, OURS

CASES = [("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")]


@functools.lru_cache(maxsize=1)
def _workload(device, dtype):
    return next(dense.workloads(device, [dtype], dense.SHAPES[device], dense.PEERS, True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", (COPY, OURS, "torchvision eager", "torchvision compiled"))
def test_retinanet(benchmark, case, name):
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

    before = workload.prepare if device == "cpu" else None
    benchmark.pedantic(run, setup=before, rounds=7 if "eager" in name else 25, warmup_rounds=2)
