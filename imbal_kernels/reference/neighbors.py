"""The definition of a nearest-neighbour search in plain PyTorch, by brute force.

The k neighbours of a query a are the first k rows b of its segment by (d^2, index), where

    d^2 = (a_0 - b_0)^2 + (a_1 - b_1)^2 + ...

is summed in fp64 with j ascending; difference, square and sum are each rounded on their own.
"""

from typing import Any

import torch
from torch import Tensor

from imbal_kernels.checks import check_bool
from imbal_kernels.sampling.arguments import KnnCounts, KnnProblem, check_values, knn_problem

# Distances held at once: 32 MiB.
_CHUNK = 1 << 22


def squared_distances(query: Tensor, x: Tensor) -> Tensor:
    """(m, d), (n, d) -> (m, n) fp64: the defining sum, one operation of PyTorch for each rounding."""
    total = query.new_zeros(query.shape[0], x.shape[0], dtype=torch.float64)
    for a, b in zip(query.double().unbind(1), x.double().unbind(1), strict=True):
        difference = a[:, None] - b
        total += difference * difference
    return total


def search(problem: KnnProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and squared distances (m, k), and the op's counts: every pair is rescored, no row falls back."""
    x, query, k = problem.x, problem.query, problem.k
    indices = torch.empty(query.shape[0], k, dtype=torch.int64, device=x.device)
    distances = torch.empty(query.shape[0], k, dtype=torch.float64, device=x.device)
    ptr, query_ptr = problem.ptr.tolist(), problem.query_ptr.tolist()
    pairs = 0
    for begin, end, first, last in zip(ptr, ptr[1:], query_ptr, query_ptr[1:], strict=False):
        rows = max(1, _CHUNK // max(1, end - begin))
        pairs += (end - begin - problem.exclude_self) * (last - first)
        for start in range(first, last, rows):
            stop = min(last, start + rows)
            d2 = squared_distances(query[start:stop], x[begin:end])
            if problem.exclude_self:  # a NaN sorts behind every number, infinity included
                own = torch.arange(start, stop, device=x.device)
                d2[own - start, own - begin] = torch.nan
            d2, order = d2.sort(stable=True)
            distances[start:stop] = d2[:, :k]
            indices[start:stop] = order[:, :k] + begin
    return indices, distances, torch.tensor([pairs, 0], device=x.device)


def knn(
    x: Tensor,
    k: int,
    *,
    query: Tensor | None = None,
    ptr: Tensor | None = None,
    query_ptr: Tensor | None = None,
    include_self: bool = False,
    return_counts: bool = False,
) -> tuple[Any, ...]:
    """Reference of `imbal_kernels.knn`: the same arguments, any device."""
    check_bool("return_counts", return_counts)
    problem = knn_problem(x, k, query=query, ptr=ptr, query_ptr=query_ptr, include_self=include_self)
    check_values(problem)
    indices, distances, counts = search(problem)
    return (indices, distances, KnnCounts(counts[0], counts[1])) if return_counts else (indices, distances)
