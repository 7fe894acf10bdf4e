"""The search and SMOTE under pytest-benchmark, for a history and `--benchmark-compare`.

    pytest bench --benchmark-enable --benchmark-only

`python -m imbal_kernels bench` takes the contestants in turns and is the one to quote.
"""

import functools

import pytest
import torch

from bench import neighbors, smote
from bench.harness import OURS

SUITES = {
    "knn": (neighbors, (neighbors.ROOF, OURS, "ours, x as query", "scikit-learn", "faiss-cpu", "cdist + topk")),
    "smote": (smote, (neighbors.ROOF, OURS, smote.ESTIMATOR, "imbalanced-learn")),
}
CASES = [(suite, name) for suite, (_, names) in SUITES.items() for name in names]


@functools.lru_cache(maxsize=1)
def _workload(suite, device):
    module = SUITES[suite][0]
    return next(module.workloads(device, ["float32"], module.SHAPES[device][:1], module.PEERS, True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite, name", CASES)
def test_neighbors(benchmark, suite, name, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    workload = _workload(suite, device)
    if name not in workload.contestants:
        pytest.skip(workload.missing.get(name, "runs on a CPU"))
    contestant = workload.contestants[name]
    contestant.check()
    benchmark.group = workload.name

    def run():
        contestant.run()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=15 if name.startswith(OURS) else 5, warmup_rounds=1)
    if benchmark.stats:
        benchmark.extra_info[workload.unit] = contestant.amount / benchmark.stats.stats.median / 1e9
