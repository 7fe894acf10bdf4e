"""Runs imbalanced-learn's own test modules with our classes under its names: `their_tests.py samplers | search`.

A process of its own, because the names must change before those modules import them. They all pass: there is no list
of exceptions.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import imblearn.over_sampling
import imblearn.utils._validation

from imbal_kernels import imblearn as ours


class AtLeast:
    """Fails a run that found fewer tests than 0.14.2 has: one that ran nothing would pass."""

    def __init__(self, count):
        self.count = count

    def pytest_collection_finish(self, session):
        if len(session.items) < self.count:
            raise pytest.UsageError(f"found {len(session.items)} tests, expected at least {self.count}")


def samplers():
    for name in set(ours.__all__) - {"NearestNeighbors"}:
        setattr(imblearn.over_sampling, name, getattr(ours, name))
    return ["imblearn.over_sampling", "imblearn.combine"], 80


def search():
    """Every number of neighbours given to an under-sampler becomes our estimator."""
    imblearn.utils._validation.NearestNeighbors = ours.NearestNeighbors
    return ["imblearn.under_sampling"], 60


if __name__ == "__main__":
    packages, count = {"samplers": samplers, "search": search}[sys.argv[1]]()
    options = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-W", "ignore"]
    sys.exit(pytest.main([*options, "--pyargs", *packages], plugins=[AtLeast(count)]))
