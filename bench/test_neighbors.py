"""The search and SMOTE under pytest-benchmark, for a history and `--benchmark-compare`.

    python -m pytest bench --benchmark-enable --benchmark-only -k "knn or smote"

`python -m imbal_kernels bench` takes the contestants in turns and is the one to quote.
"""

import functools

import pytest

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
def test_neighbors(timed, suite, name, device):
    make = functools.partial(_workload, suite, device)
    timed(make, device, name, rounds=15 if name.startswith(OURS) else 5, warmup_rounds=1)
