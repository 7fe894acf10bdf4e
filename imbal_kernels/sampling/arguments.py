"""From a user's arguments to a checked search: types, shapes and ranges here, what a tensor holds in `check_values`."""

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from imbal_kernels.checks import check_bool, check_tensor

MAX_NEIGHBORS = MAX_COLUMNS = 4096


class KnnProblem(NamedTuple):
    """A search with nothing left to decide: the arguments of the op.

    Rows ptr[s] to ptr[s + 1] of x are the candidates of rows query_ptr[s] to query_ptr[s + 1] of query.
    """

    x: Tensor  # (n, d), contiguous
    query: Tensor  # (m, d), contiguous; x itself where there is no other
    ptr: Tensor  # (segments + 1,) int64
    query_ptr: Tensor  # (segments + 1,) int64
    k: int
    exclude_self: bool  # row i of query is row i of x and no neighbour of its own


class KnnCounts(NamedTuple):
    """What a search cost: 0-d int64 tensors on the device of x."""

    rescored: Tensor  # pairs whose distance was computed in fp64
    fallbacks: Tensor  # queries whose first shortlist was not certain to hold their neighbours


def knn_problem(
    x: Tensor, k: int, *, query: Tensor | None, ptr: Tensor | None, query_ptr: Tensor | None, include_self: bool
) -> KnnProblem:
    """Checks everything but what the tensors hold."""
    _check_points("x", x)
    if isinstance(k, bool) or not isinstance(k, (Integral, torch.SymInt)):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if not 1 <= k <= MAX_NEIGHBORS:
        raise ValueError(f"k must be in [1, {MAX_NEIGHBORS}], got {k}")
    check_bool("include_self", include_self)
    if query is not None:
        _check_query(query, x)
    elif query_ptr is not None:
        raise ValueError("query_ptr splits the rows of query: it needs query")
    if include_self and query is not None:
        raise ValueError("include_self is for x against itself: rows of query are never excluded")
    if ptr is None and query_ptr is not None:
        raise ValueError("query_ptr needs ptr, which splits the rows of x the same way")
    if ptr is not None and query is not None and query_ptr is None:
        raise ValueError("ptr needs query_ptr, which splits the rows of query the same way")
    itself = query is None
    query = x if query is None else query
    exclude_self = itself and not include_self
    if ptr is None:
        check_neighbors(k, x.shape[0], query.shape[0], exclude_self)
        ends = torch.arange(2, device=x.device)
        ptr, query_ptr = ends * x.shape[0], ends * query.shape[0]
    else:
        _check_ptr("ptr", ptr, x)
        if query_ptr is None:
            query_ptr = ptr
        else:
            _check_ptr("query_ptr", query_ptr, x)
            if query_ptr.shape != ptr.shape:
                raise ValueError(
                    f"query_ptr must have the shape of ptr, {tuple(ptr.shape)}, got {tuple(query_ptr.shape)}"
                )
    points = x.contiguous()
    queries = points if itself else query.contiguous()
    return KnnProblem(points, queries, ptr.contiguous(), query_ptr.contiguous(), k, exclude_self)


def check_neighbors(k: int, candidates: int, queries: int, exclude_self: bool, segment: int | None = None) -> None:
    """scikit-learn's error where there are fewer than k neighbours to find."""
    if k > candidates - exclude_self:
        sign = "<" if exclude_self else "<="
        where = "" if segment is None else f" in segment {segment}"
        raise ValueError(
            f"Expected n_neighbors {sign} n_samples_fit, but n_neighbors = {k}, n_samples_fit = {candidates}, "
            f"n_samples = {queries}{where}"
        )


def check_values(problem: KnnProblem) -> None:
    """Segments that fit and hold k neighbours for each query, finite coordinates. Reads the tensors on the host."""
    sizes = _segment_sizes("ptr", problem.ptr, "x", problem.x)
    query_sizes = _segment_sizes("query_ptr", problem.query_ptr, "query", problem.query)
    too_small = (query_sizes > 0) & (problem.k > sizes - int(problem.exclude_self))
    if too_small.any():
        s = int(too_small.int().argmax())
        check_neighbors(problem.k, int(sizes[s]), int(query_sizes[s]), problem.exclude_self, s)
    check_finite("x", problem.x, "column")
    if problem.query is not problem.x:
        check_finite("query", problem.query, "column")


def _check_points(name: str, points: Tensor) -> None:
    check_tensor(name, points)
    if points.dim() != 2:
        raise ValueError(f"{name} must be 2-d, rows of coordinates, got shape {tuple(points.shape)}")
    if not 1 <= points.shape[1] <= MAX_COLUMNS:
        raise ValueError(f"{name} must have 1 to {MAX_COLUMNS} columns, got shape {tuple(points.shape)}")
    check_no_derivative(name, points)


def check_no_derivative(name: str, tensor: Tensor) -> None:
    """Nobody who differentiates gets a silent zero: neither backwards nor forwards."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad, but no gradient is computed for it: pass {name}.detach()")
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise ValueError(f"{name} has a tangent, but no derivative is computed for it: pass {name}.detach()")


def _check_query(query: Tensor, x: Tensor) -> None:
    _check_points("query", query)
    if query.shape[1] != x.shape[1]:
        raise ValueError(f"query must have the columns of x, {x.shape[1]}, got shape {tuple(query.shape)}")
    if query.dtype != x.dtype:
        raise TypeError(f"query must have the dtype of x, {x.dtype}, got {query.dtype}")
    if query.device != x.device:
        raise ValueError(f"query must be on the device of x, {x.device}, got {query.device}")


def _check_ptr(name: str, ptr: Tensor, x: Tensor) -> None:
    if not isinstance(ptr, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(ptr).__name__}")
    if ptr.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {ptr.dtype}")
    if ptr.dim() != 1 or ptr.shape[0] < 1:
        raise ValueError(f"{name} must hold the segments' ends, 0 first, got shape {tuple(ptr.shape)}")
    if ptr.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {ptr.device}")


def _segment_sizes(name: str, ptr: Tensor, points_name: str, points: Tensor) -> Tensor:
    ends = ptr.cpu()
    sizes = ends.diff()
    if ends[0] != 0 or ends[-1] != points.shape[0] or (sizes < 0).any():
        shown = ends.tolist() if len(ends) <= 8 else [*ends[:4].tolist(), "...", *ends[-2:].tolist()]
        text = ", ".join(str(end) for end in shown)
        raise ValueError(
            f"{name} must rise from 0 to the rows of {points_name}, {points.shape[0]}, without falling, got [{text}]"
        )
    return sizes


def check_finite(name: str, points: Tensor, column_name: str) -> None:
    """A ValueError with the first element that is not finite."""
    if not points.is_floating_point() or points.numel() == 0:
        return
    low, high = points.aminmax()  # NaN if there is one; needs no memory, as isfinite would
    if low.isfinite() and high.isfinite():
        return
    row = int(torch.cat([(~part.isfinite()).any(1) for part in points.split(4096)]).int().argmax())
    column = int((~points[row].isfinite()).int().argmax())
    raise ValueError(f"{name} must be finite, got {points[row, column].item()} at row {row}, {column_name} {column}")
