"""From a user's arguments to one checked resampling: every shape, dtype and range is looked at here."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from imbal_kernels.checks import FLOATS, INTEGERS
from imbal_kernels.sampling.arguments import MAX_COLUMNS, MAX_NEIGHBORS, check_finite, check_no_derivative
from imbal_kernels.sampling.strategy import Strategy, counts_of

LABELS = (*INTEGERS, torch.bool)
MOST = MAX_NEIGHBORS - 1  # knn is asked for one more, the row itself
MAX_ROWS = 2**31 - 1
KINDS = ("borderline-1", "borderline-2")


class Provenance(NamedTuple):
    """Where each new row comes from: X'[n + i] = X[seed_row[i]] + step[i] (X[neighbour[i]] - X[seed_row[i]])."""

    seed_row: Tensor  # (count,) int64
    neighbour: Tensor  # (count,) int64
    step: Tensor  # (count,) float64, in [0, 1)


class Resampling(NamedTuple):
    """A resampling with nothing left to decide but the rows."""

    X: Tensor  # (n, d), contiguous
    y: Tensor  # (n,), contiguous
    order: Tensor  # (n,) int64: rows by class, then by index
    sizes: dict[int, int]  # rows of each class, in class order
    counts: dict[int, int]  # new rows of each class that gets any; when under-sampling rows to keep

    def rows(self, label: int) -> Tensor:
        """The rows of one class, ascending: a view."""
        labels = list(self.sizes)
        begin = sum(self.sizes[other] for other in labels[: labels.index(label)])
        return self.order[begin : begin + self.sizes[label]]


def over_sampling(
    name: str, X: Tensor, y: Tensor, strategy: Strategy, generator: torch.Generator | None, finite: bool = True
) -> Resampling:
    """Checks the arguments all over-samplers share."""
    order, sizes = _check_data(X, y, generator, finite)
    counts = counts_of(name, y, strategy, sizes, over=True)
    counts = {label: count for label, count in sorted(counts.items()) if count}
    _check_size(X, sum(counts.values()))
    return Resampling(X.contiguous(), y.contiguous(), order, sizes, counts)


def _check_size(X: Tensor, count: int) -> None:
    columns = X.shape[1]
    if (X.shape[0] + count) * columns * X.element_size() >= 2**63:
        raise ValueError(f"sampling_strategy asks for {count} new rows of {columns} features, more than a tensor holds")


def under_sampling(
    name: str, X: Tensor, y: Tensor, strategy: Strategy, generator: torch.Generator | None
) -> Resampling:
    """The same for under-samplers."""
    order, sizes = _check_data(X, y, generator, False)
    counts = dict(sorted(counts_of(name, y, strategy, sizes, over=False).items()))
    return Resampling(X.contiguous(), y.contiguous(), order, sizes, counts)


def points(X: Tensor) -> Tensor:
    """X as `knn` takes it: integers become the narrowest float that holds them; int64 beyond 2^53 is rounded."""
    if X.shape[1] > MAX_COLUMNS:
        raise ValueError(f"X must have at most {MAX_COLUMNS} features, or no neighbours are found, got {X.shape[1]}")
    if X.is_floating_point():
        return X
    return X.to(torch.float64 if X.dtype in (torch.int32, torch.int64) else torch.float32)


def check_neighbors(name: str, value: object) -> None:
    """k_neighbors, m_neighbors, n_neighbors: an int from 1 to what `knn` takes, less one for the row itself."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not 1 <= int(value) <= MOST:
        raise ValueError(f"{name} must be from 1 to {MOST}, got {value}")


def check_enough(name: str, k: int, rows: int, where: str) -> None:
    """A row among `rows` has rows - 1 neighbours."""
    if k >= rows:
        raise ValueError(
            f"Expected n_neighbors <= n_samples_fit, but n_neighbors = {k + 1}, n_samples_fit = {rows}: "
            f"{where} too few rows for {name}={k}"
        )


def check_class_sizes(name: str, k: int, resampling: Resampling) -> None:
    for label in resampling.counts:
        check_enough(name, k, resampling.sizes[label], f"class {label} has")


def check_borderline(k: int, m: int, kind: str) -> None:
    check_neighbors("k_neighbors", k)
    check_neighbors("m_neighbors", m)
    if kind not in KINDS:
        raise ValueError(f'kind must be "borderline-1" or "borderline-2", got {kind!r}')


def check_borderline_sizes(resampling: Resampling, k: int, m: int, kind: str) -> None:
    if not resampling.counts:
        return
    check_enough("m_neighbors", m, resampling.X.shape[0], "X has")
    if kind == "borderline-1":
        check_class_sizes("k_neighbors", k, resampling)
    else:
        check_enough("k_neighbors", k, resampling.X.shape[0], "X has")


def check_shrinkage(shrinkage: float | Mapping[int, float] | None, resampling: Resampling) -> dict[int, float]:
    """The factor of each class that grows; empty for none."""
    if shrinkage is None:
        return {}
    if not resampling.X.is_floating_point():
        raise TypeError(f"shrinkage adds noise: X must be floating point, got {resampling.X.dtype}")
    factors = shrinkage if isinstance(shrinkage, Mapping) else dict.fromkeys(resampling.counts, shrinkage)
    missing = sorted(set(resampling.counts) - set(factors))
    if missing:
        listed = ", ".join(map(str, missing))
        raise ValueError(
            "`shrinkage` should contain a shrinkage factor for each class that will be resampled. "
            f"The missing classes are: {{{listed}}}"
        )
    for label, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, Real):
            raise TypeError(f"shrinkage must be a number or a mapping of class to number, got {type(factor).__name__}")
        if not 0 <= factor < torch.inf:
            raise ValueError(f"The shrinkage factor needs to be >= 0. Got {factor} for class {label}.")
    return {label: float(factors[label]) for label in resampling.counts}


def _check_data(
    X: Tensor, y: Tensor, generator: torch.Generator | None, finite: bool
) -> tuple[Tensor, dict[int, int]]:
    _check_tensors(X, y)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        if generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, also for tensors on a GPU, got {generator.device}")
    labels, order = y.sort(stable=True)
    values, sizes = torch.unique_consecutive(labels, return_counts=True)
    if values.numel() < 2:
        raise ValueError("The target 'y' needs to have more than 1 class. Got 1 class instead")
    if finite:
        check_finite("X", X, "feature")
    return order, dict(zip(values.long().tolist(), sizes.tolist(), strict=True))


def _check_tensors(X: Tensor, y: Tensor) -> None:
    for name, tensor in (("X", X), ("y", y)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be a strided tensor, got {tensor.layout}")
    if X.dtype not in FLOATS + LABELS:
        raise TypeError(f"X must be float32, float64, bfloat16, float16, integer or bool, got {X.dtype}")
    if y.dtype not in LABELS:
        raise TypeError(f"y must hold class labels, integer or bool, got {y.dtype}")
    if X.dim() != 2:
        raise ValueError(f"X must have shape (rows, features), got {tuple(X.shape)}")
    if y.dim() != 1:
        raise ValueError(f"y must have shape (rows,), one class label a row, got {tuple(y.shape)}")
    if X.numel() == 0:
        raise ValueError(f"X must have at least one row and one feature, got shape {tuple(X.shape)}")
    if X.shape[0] != y.shape[0]:
        raise ValueError(f"X and y must have the same number of rows, got {X.shape[0]} and {y.shape[0]}")
    if X.shape[0] > MAX_ROWS:
        raise ValueError(f"X must have at most {MAX_ROWS} rows, got {X.shape[0]}")
    if y.device != X.device:
        raise ValueError(f"y must be on the device of X, {X.device}, got {y.device}")
    check_no_derivative("X", X)


def draw_key(generator: torch.Generator | None) -> int:
    """The next 64-bit draw of a CPU generator (None: the default one). Taken last: an error takes none."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator))
