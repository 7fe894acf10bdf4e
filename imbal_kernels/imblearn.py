"""imbalanced-learn's over-samplers on this library's exact search, and the search as an estimator.

Sampling strategies, validation, data frames, error messages and every random draw are imbalanced-learn's own.
docs/imblearn.md lists what differs, and why.
"""

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imbal_kernels.sampling.knn import knn

TESTED = "0.14"

try:
    from imblearn import __version__ as _found
    from imblearn import over_sampling as theirs
    from imblearn.over_sampling.base import BaseOverSampler
    from scipy.sparse import issparse, vstack
    from sklearn import neighbors
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"imbal_kernels.imblearn needs imbalanced-learn {TESTED} and found no module named {error.name!r}: "
        "pip install 'imbalanced-learn>=0.14,<0.15'",
        name=error.name,
    ) from error

if _found.split(".")[:2] != TESTED.split("."):
    warnings.warn(
        f"imbal_kernels.imblearn is tested with imbalanced-learn {TESTED}, this is {_found}: "
        "pip install 'imbalanced-learn>=0.14,<0.15' installs a tested one",
        stacklevel=2,
    )

__all__ = [
    "ADASYN",
    "BorderlineSMOTE",
    "KMeansSMOTE",
    "NearestNeighbors",
    "SMOTE",
    "SMOTEN",
    "SMOTENC",
    "SVMSMOTE",
]

LARGEST = 4096  # of k and of d, in knn
DENSE_BYTES = 1 << 30  # of an encoding that SMOTENC's search makes dense

_SHARED = ("n_neighbors", "n_jobs", "metric", "p", "metric_params")  # parameters with scikit-learn's own checks


class NearestNeighbors(neighbors.NearestNeighbors):
    """The k nearest by exact Euclidean distance, equal distances by lower index; in the place of
    `sklearn.neighbors.NearestNeighbors` wherever an object of imbalanced-learn or scikit-learn takes one.

    A row of the query that is also a fitted row comes first in its own list, so that `[:, 1:]` drops one copy of
    it, duplicates or not: if the query is the fitted X, row i is first in list i; else the first fitted row that is
    equal to it. Without a query, rows are not their own neighbours, as in scikit-learn.

    Sparse data, k or n_features above 4096, and another metric are searched by scikit-learn's brute force, with its
    rounding and its order of ties.

    Args:
        n_neighbors: k, for queries that name none.
        device: where the search runs, "cpu" or "cuda"; arrays in, arrays out.
        n_jobs: for scikit-learn's search. Ours uses `torch.get_num_threads()`.
        metric, p, metric_params: as in scikit-learn.

    >>> nn = NearestNeighbors(n_neighbors=2).fit([[0.0], [1.0], [1.0], [5.0]])
    >>> nn.kneighbors([[0.0], [1.0], [1.0], [5.0]], return_distance=False)
    array([[0, 1],
           [1, 2],
           [2, 1],
           [3, 1]])
    """

    _parameter_constraints = {
        **{name: neighbors.NearestNeighbors._parameter_constraints[name] for name in _SHARED},
        "device": [str],
    }

    def __init__(
        self,
        *,
        n_neighbors: int = 5,
        device: str = "cpu",
        n_jobs: int | None = None,
        metric: Any = "minkowski",
        p: float = 2,
        metric_params: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            n_neighbors=n_neighbors, algorithm="brute", metric=metric, p=p, metric_params=metric_params, n_jobs=n_jobs
        )
        self.device = device

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """The nearest fitted rows of each row of X, (n_queries, n_neighbors): distances float64 (unless
        `return_distance` is False) and indices int64. Without X, those of each fitted row but itself."""
        check_is_fitted(self)
        k: Any = self.n_neighbors if n_neighbors is None else n_neighbors
        points = self._fit_X if issparse(self._fit_X) else np.asarray(self._fit_X)  # of a tree it is a memoryview
        most = min(self.n_samples_fit_ - (X is None), LARGEST)
        euclidean = self.effective_metric_ in ("euclidean", "l2") and not self.effective_metric_params_
        searchable = euclidean and not issparse(points) and not issparse(X) and points.shape[1] <= LARGEST
        if not (searchable and isinstance(k, int | np.integer) and 1 <= k <= most):
            # Theirs to search, or theirs to refuse in scikit-learn's words.
            return super().kneighbors(X, n_neighbors, return_distance)
        if X is None:
            squared, indices = self._others(points, int(k))
        else:
            query = validate_data(self, X, reset=False, order="C")
            if np.array_equal(query, points):
                squared, indices = self._itself_first(points, int(k))
            else:
                squared, indices = self._equal_first(points, query, int(k))
        return (np.sqrt(squared), indices) if return_distance else indices

    def _others(self, points: NDArray, k: int) -> tuple[NDArray, NDArray]:
        (x,) = _tensors(self.device, points)
        indices, squared = knn(x, k)
        return squared.cpu().numpy(), indices.cpu().numpy()

    def _itself_first(self, points: NDArray, k: int) -> tuple[NDArray, NDArray]:
        own = np.arange(len(points))[:, None]
        if k == 1:
            return np.zeros(own.shape), own
        squared, indices = self._others(points, k - 1)
        return np.hstack((np.zeros(own.shape), squared)), np.hstack((own, indices))

    def _equal_first(self, points: NDArray, query: NDArray, k: int) -> tuple[NDArray, NDArray]:
        x, q = _tensors(self.device, points, query)
        found = knn(x, k, query=q)
        indices, squared = (tensor.cpu().numpy() for tensor in found)
        # Squares of differences below 1e-162 are 0: a row that is not equal may then stand before one that is.
        first = indices[:, 0]
        for row in np.flatnonzero((squared[:, 0] == 0) & (points[first] != query).any(axis=1)):
            equal = np.flatnonzero((points == query[row]).all(axis=1))
            if equal.size:
                rest = indices[row][indices[row] != equal[0]]
                indices[row] = np.append(equal[0], rest)[:k]
        return squared, indices


class _Encoded(NearestNeighbors):
    """For SMOTENC, which searches its one-hot encoding as a sparse matrix, a class at a time: made dense where that
    takes no more than `DENSE_BYTES`."""

    def fit(self, X: Any, y: Any = None) -> "_Encoded":
        return super().fit(_dense(X))

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        return super().kneighbors(_dense(X), n_neighbors, return_distance)


class _Frames(BaseOverSampler):
    """Goes before a sampler of imbalanced-learn, which would fail inside NumPy and name nothing."""

    def fit_resample(self, X: Any, y: Any, **params: Any) -> Any:
        if type(X).__module__.partition(".")[0] == "polars":
            raise TypeError(
                f"X must be an array, a sparse matrix or a pandas.DataFrame, got polars.{type(X).__name__}, which "
                "imbalanced-learn does not return: pass X.to_pandas() or X.to_numpy()"
            )
        return super().fit_resample(X, y, **params)


class _Sampler(_Frames):
    """Goes before a sampler of imbalanced-learn: our search for a number of neighbours, integers and bools computed in
    float64, where differences cannot wrap, and no sample that its dtype cannot hold."""

    _search = NearestNeighbors
    _kept: tuple[str, ...] = ("float32", "float64")  # the others are computed in float64

    def _validate_estimator(self) -> None:
        super()._validate_estimator()
        for argument, fitted in (("k_neighbors", "nn_k_"), ("m_neighbors", "nn_m_"), ("n_neighbors", "nn_")):
            k = getattr(self, argument, None)
            if isinstance(k, Integral):
                setattr(self, fitted, self._search(n_neighbors=int(k) + 1))

    def _fit_resample(self, X: Any, y: NDArray) -> tuple[Any, NDArray]:
        dtype = getattr(X, "dtype", np.dtype(object))
        if dtype.kind not in "fiub":
            return super()._fit_resample(X, y)
        wide, y = super()._fit_resample(X if dtype.name in self._kept else X.astype(np.float64), y)
        if not issparse(X):
            return np.vstack((X, _narrow(wide[len(X) :], dtype))), y
        samples = wide.tocsr()[X.shape[0] :]
        samples.data = _narrow(samples.data, dtype)
        return vstack((X, samples), format=X.format), y

    def _generate_samples(self, X: Any, nn_data: Any, *args: Any, **kwargs: Any) -> Any:
        # In float32 a rounded difference can lead out of the box of the two end points.
        if X.dtype != np.float32:
            return super()._generate_samples(X, nn_data, *args, **kwargs)
        wide = super()._generate_samples(X.astype(np.float64), nn_data.astype(np.float64), *args, **kwargs)
        return wide.astype(np.float32)


class SMOTE(_Sampler, theirs.SMOTE):
    """imbalanced-learn's `SMOTE` on the exact search, with its arguments and attributes."""


class BorderlineSMOTE(_Sampler, theirs.BorderlineSMOTE):
    """imbalanced-learn's `BorderlineSMOTE` on the exact search, with its arguments and attributes."""


class SVMSMOTE(_Sampler, theirs.SVMSMOTE):
    """imbalanced-learn's `SVMSMOTE` on the exact search, with its arguments and attributes."""


class KMeansSMOTE(_Sampler, theirs.KMeansSMOTE):
    """imbalanced-learn's `KMeansSMOTE` on the exact search, with its arguments and attributes."""


class ADASYN(_Sampler, theirs.ADASYN):
    """imbalanced-learn's `ADASYN` on the exact search, with its arguments and attributes."""

    _kept = ("float64",)  # it takes differences itself, not through _generate_samples


class SMOTENC(_Sampler, theirs.SMOTENC):
    """imbalanced-learn's `SMOTENC` on the exact search, with its arguments and attributes."""

    _search = _Encoded


class SMOTEN(_Frames, theirs.SMOTEN):
    """imbalanced-learn's `SMOTEN`: its distances are between categories, precomputed, and scikit-learn's to search."""


def _tensors(device: str, *arrays: NDArray) -> list[torch.Tensor]:
    """The arrays in float32 where it holds every value of theirs (the distances are the same, and sooner found),
    else in float64."""
    with np.errstate(over="ignore"):
        narrow = [array.astype(np.float32, copy=False) for array in arrays]
    same = all(map(np.array_equal, narrow, arrays))
    used = narrow if same else [array.astype(np.float64, copy=False) for array in arrays]
    # torch warns of arrays that it may not write to.
    return [torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device) for array in used]


def _dense(X: Any) -> Any:
    if not issparse(X) or X.shape[1] > LARGEST or X.shape[0] * X.shape[1] * X.dtype.itemsize > DENSE_BYTES:
        return X
    return X.toarray()


def _narrow(samples: NDArray, dtype: np.dtype) -> NDArray:
    """`samples` in `dtype`: integers cut towards zero, as imbalanced-learn does, bools at a half."""
    if dtype.kind == "b":
        return samples >= 0.5
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = samples.astype(dtype, copy=False)
    if dtype.kind == "f":
        fits = not bool(np.isinf(narrow).any())  # NaN is a category of SMOTENC
    else:
        limits = np.iinfo(dtype)
        fits = bool(((samples > float(limits.min) - 1) & (samples < float(limits.max) + 1)).all())
    if not fits:
        raise ValueError(f"X has synthetic samples beyond the range of its dtype {dtype}; pass a wider one.")
    return narrow
