"""Fixtures of the benchmarks: fixed threads, and one problem for each device and dtype."""

import functools
import os

import pytest
import torch

from bench import peers

ROWS = {"cpu": 100_000, "cuda": 1_000_000}
CASES = [("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)  # tests come grouped by case; two problems at once would not fit every machine
def _build(device, dtype):
    problem = peers.Problem.random(ROWS[device], 80, device, dtype)
    return problem, peers.contestants(problem)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}", scope="module")
def case(request):
    """(problem, contestants by name) on a device."""
    if request.param[0] == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return _build(*request.param)
