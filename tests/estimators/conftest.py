"""The samplers, theirs and ours under one name, and data for them."""

import imblearn.over_sampling as theirs
import numpy as np
import pytest

import imbal_kernels.imblearn as ours

ARGUMENTS = {
    "SMOTE": {},
    "BorderlineSMOTE": {},
    "SVMSMOTE": {},
    "KMeansSMOTE": {"kmeans_estimator": 6, "cluster_balance_threshold": 0.05},
    "ADASYN": {},
    "SMOTENC": {"categorical_features": [7]},
    "SMOTEN": {},
}
DENSE = [name for name in ARGUMENTS if name not in ("SMOTENC", "SMOTEN")]


def _pair(name, **arguments):
    """Their sampler and ours, with the same arguments."""
    arguments = ARGUMENTS[name] | arguments
    return getattr(theirs, name)(**arguments), getattr(ours, name)(**arguments)


@pytest.fixture(scope="session")
def pair():
    return _pair


def _table(seed=0, dtype=np.float64, sizes=(180, 70, 30), d=8):
    """Overlapping Gaussian classes; the last column holds categories 0, 1, 2."""
    rng = np.random.RandomState(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    X = rng.randn(len(y), d) + y[:, None] * rng.randn(d) / 2
    if np.dtype(dtype).kind in "iu":
        X *= 10_000  # so that no two distances are the same
    X[:, -1] = rng.randint(0, 3, len(y))
    order = rng.permutation(len(y))
    return X[order].astype(dtype), y[order]


@pytest.fixture(scope="session")
def table():
    return _table


@pytest.fixture(params=DENSE)
def dense(request):
    return request.param


def _in_boxes(samples, points):
    """Whether each sample lies in the box of some two points: necessary for a point between two neighbours."""
    samples, points = samples.astype(np.float64), points.astype(np.float64)
    low = np.minimum(points[:, None], points[None])
    high = np.maximum(points[:, None], points[None])
    return np.array([((low <= s) & (s <= high)).all(axis=2).any() for s in samples])


@pytest.fixture(scope="session")
def in_boxes():
    return _in_boxes
