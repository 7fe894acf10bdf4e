"""Forward and backward of the sigmoid focal loss, C = 80, sum over a normalizer known on the host.

    pytest bench --benchmark-enable --benchmark-only

Each contestant is checked against the reference before it is timed. GB/s is the traffic of a single pass
(`bench.peers.contestants`) over the median; the copy's is the roof. On a GPU extra_info also has the median
of CUDA events with L2 flushed in between, which is the number to quote: the fixture's own includes launches
and a synchronisation.
"""

import pytest
import torch

from bench import peers

NAMES = (
    "copy in place",
    "copy to a new tensor",
    "ours, class ids",
    "ours, dense",
    "torchvision eager, dense",
    "torchvision compiled, dense",
    "torchvision eager, class ids",
    "torchvision compiled, class ids",
)


@pytest.mark.parametrize("name", NAMES)
def test_forward_backward(benchmark, case, name):
    problem, entries = case
    contestant, device = entries[name], problem.logits.device.type
    peers.check(name, contestant, problem)
    benchmark.group = f"sigmoid focal, {tuple(problem.logits.shape)} {problem.logits.dtype} on {device}"
    benchmark.extra_info.update(peers.environment(device), bytes=contestant.traffic)

    def run():
        contestant.run()
        if device == "cuda":
            torch.cuda.synchronize()

    slow = "eager" in name and device == "cpu"
    benchmark.pedantic(run, rounds=7 if slow else 25, warmup_rounds=2)
    if benchmark.stats:
        benchmark.extra_info["GB/s"] = contestant.traffic / benchmark.stats.stats.median / 1e9
    if device == "cuda":
        from triton.testing import do_bench

        milliseconds = do_bench(contestant.run, return_mode="median")
        benchmark.extra_info["device ms"] = milliseconds
        benchmark.extra_info["device GB/s"] = contestant.traffic / milliseconds / 1e6
