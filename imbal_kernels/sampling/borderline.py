"""Borderline-SMOTE: new rows from those rows of a class that other classes crowd."""

from typing import Literal, overload

import torch
from torch import Tensor

from imbal_kernels.checks import check_bool
from imbal_kernels.reference.sampling import check_danger, in_danger
from imbal_kernels.sampling.assemble import class_rows, generate, nearest, offsets
from imbal_kernels.sampling.resampling import (
    Provenance,
    Strategy,
    check_borderline,
    check_borderline_sizes,
    draw_key,
    over_sampling,
    points,
)


@overload
def borderline_smote(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = ...,
    k_neighbors: int = ...,
    m_neighbors: int = ...,
    kind: str = ...,
    generator: torch.Generator | None = ...,
    return_provenance: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def borderline_smote(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = ...,
    k_neighbors: int = ...,
    m_neighbors: int = ...,
    kind: str = ...,
    generator: torch.Generator | None = ...,
    return_provenance: Literal[True],
) -> tuple[Tensor, Tensor, Provenance]: ...
def borderline_smote(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = "auto",
    k_neighbors: int = 5,
    m_neighbors: int = 10,
    kind: str = "borderline-1",
    generator: torch.Generator | None = None,
    return_provenance: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Provenance]:
    """Over-sampling from rows in danger: Han et al., "Borderline-SMOTE: A New Over-Sampling Method in Imbalanced Data
    Sets Learning" (2005).

    A row is in danger if of its m nearest rows at least half, but not all, are of other classes. New rows start
    there. "borderline-1" takes neighbours in the class; "borderline-2" in all of X, with steps in [0, 1/2) towards
    a row of another class.

    Args, returns and errors as `smote`, and

    Args:
        m_neighbors: m, from 1 to 4095 and below the rows of X.
        kind: "borderline-1" | "borderline-2".

    Raises:
        ValueError: also where a class that shall grow has no row in danger.
    """
    check_borderline(k_neighbors, m_neighbors, kind)
    check_bool("return_provenance", return_provenance)
    resampling = over_sampling("borderline_smote", X, y, sampling_strategy, generator)
    check_borderline_sizes(resampling, k_neighbors, m_neighbors, kind)
    rows, ptr = class_rows(resampling)
    if not resampling.counts:
        return generate(resampling, rows, rows[:, None], ptr, draw_key(generator), return_provenance)
    x = points(resampling.X)
    danger = in_danger(y, rows, nearest(x, m_neighbors, rows))
    sizes = [int(part.sum()) for part in danger.split(ptr.diff().tolist())]
    check_danger(resampling, sizes, m_neighbors)
    seeds, seed_ptr = rows[danger], offsets(sizes, rows)
    if kind == "borderline-1":
        within = nearest(x[rows], k_neighbors, danger.nonzero()[:, 0], ptr, seed_ptr)
        neighbors, labels = rows[within], None
    else:
        neighbors, labels = nearest(x, k_neighbors, seeds), resampling.y.long()
    return generate(resampling, seeds, neighbors, seed_ptr, draw_key(generator), return_provenance, labels=labels)
