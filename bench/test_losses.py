"""The losses under pytest-benchmark, for a history and `--benchmark-compare`.

    python -m pytest bench --benchmark-enable --benchmark-only --benchmark-json=before.json
    python -m pytest bench --benchmark-enable --benchmark-only --benchmark-compare=before.json

`python -m imbal_kernels bench` takes the contestants in turns and is the one to quote.
"""

import functools

import pytest

from bench import dense, formulas, losses, softmax
from bench.harness import COPY, OURS

# Suite -> the shape on a CPU and on a GPU, and the contestants of its first workload.
SUITES = {
    losses: (
        ("100000x80", "400000x80"),
        (
            COPY,
            OURS,
            "ours, upstream 2",
            "ours, recomputed",
            "ours, dense",
            "torchvision eager, dense",
            "torchvision compiled, dense",
            "torchvision eager, class ids",
            "torchvision compiled, class ids",
        ),
    ),
    dense: (("800x1333", "800x1333"), (COPY, OURS, "torchvision eager", "torchvision compiled")),
    softmax: (("20000x1000", "100000x1000"), (COPY, OURS, "torch eager", "torch compiled")),
    formulas: (
        ("100000x80", "1000000x80"),
        (COPY, OURS, "ours, dense", "torch eager, dense", "torch compiled, dense"),
    ),
}
MACHINES = [("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")]
CASES = [
    pytest.param(suite, *machine, name, id=f"{suite.__name__.split('.')[-1]}-{'-'.join(machine)}-{name}")
    for suite, (_, names) in SUITES.items()
    for machine in MACHINES
    for name in names
]


@functools.lru_cache(maxsize=1)  # tests come grouped by case; two problems at once would not fit every machine
def _workload(suite, device, dtype):
    shape = SUITES[suite][0][device == "cuda"]
    return next(suite.workloads(device, [dtype], [shape], suite.PEERS, True))


@pytest.mark.parametrize("suite, device, dtype, name", CASES)
def test_loss(timed, suite, device, dtype, name):
    slow = "eager" in name and device == "cpu"
    make = functools.partial(_workload, suite, device, dtype)
    timed(make, device, name, rounds=7 if slow else 25, warmup_rounds=2)
