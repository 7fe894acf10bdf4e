"""Exact nearest neighbours of tensors."""

from typing import Literal, overload

from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.checks import check_bool
from imbal_kernels.sampling.arguments import KnnCounts, knn_problem


@overload
def knn(
    x: Tensor,
    k: int,
    *,
    query: Tensor | None = ...,
    ptr: Tensor | None = ...,
    query_ptr: Tensor | None = ...,
    include_self: bool = ...,
    return_counts: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def knn(
    x: Tensor,
    k: int,
    *,
    query: Tensor | None = ...,
    ptr: Tensor | None = ...,
    query_ptr: Tensor | None = ...,
    include_self: bool = ...,
    return_counts: Literal[True],
) -> tuple[Tensor, Tensor, KnnCounts]: ...
def knn(
    x: Tensor,
    k: int,
    *,
    query: Tensor | None = None,
    ptr: Tensor | None = None,
    query_ptr: Tensor | None = None,
    include_self: bool = False,
    return_counts: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, KnnCounts]:
    """The k nearest rows of x for each row of query, exactly, ordered by (squared distance, index).

    A squared distance is the fp64 sum over ascending columns of (a_j - b_j)^2, each operation rounded once:
    every backend, thread count and batching gives the same bits, whatever autocast or the matmul precision say.

    Args:
        x: (n, d) points; float32, float64, bfloat16 or float16; d from 1 to 4096. NaN and infinity are an error on
            a CPU; on a GPU they, a bad ptr and segments with fewer than k points are looked for with
            IMBAL_KERNELS_CHECK=1 only, as that waits for the device. Without it a bad ptr finds nothing for any
            query, and what there is too little of is index -1 at distance inf.
        k: how many, from 1 to 4096; at most the points of a query's segment, itself excluded.
        query: (m, d) points of the dtype of x. None: x itself, with each row's own index excluded.
        ptr: (segments + 1,) int64. Rows ptr[s] to ptr[s + 1] are a set of their own; no neighbour lies in another.
        query_ptr: the same for query; query None shares ptr.
        include_self: with query None, a row may be its own neighbour.
        return_counts: also return what it cost, as `KnnCounts`.

    Returns:
        indices: (m, k) int64, rows of x.
        distances: (m, k) float64, squared.

    >>> import torch
    >>> indices, distances = knn(torch.tensor([[0.0], [3.0], [1.0], [1.0]]), 2)
    >>> indices.tolist(), distances.tolist()
    ([[2, 3], [2, 3], [3, 0], [2, 0]], [[1.0, 1.0], [4.0, 4.0], [0.0, 1.0], [0.0, 1.0]])
    """
    check_bool("return_counts", return_counts)
    problem = knn_problem(x, k, query=query, ptr=ptr, query_ptr=query_ptr, include_self=include_self)
    indices, distances, counts = ops.knn(problem)
    return (indices, distances, KnnCounts(counts[0], counts[1])) if return_counts else (indices, distances)
