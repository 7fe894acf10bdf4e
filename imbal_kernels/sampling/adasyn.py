"""ADASYN: the more of a row's neighbours are of other classes, the more new rows start from it."""

from typing import Literal, overload

import torch
from torch import Tensor

from imbal_kernels.checks import check_bool
from imbal_kernels.reference.sampling import shares
from imbal_kernels.sampling.assemble import class_rows, generate, nearest
from imbal_kernels.sampling.knn import knn
from imbal_kernels.sampling.resampling import (
    Provenance,
    Strategy,
    check_class_sizes,
    check_neighbors,
    draw_key,
    over_sampling,
    points,
)


@overload
def adasyn(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = ...,
    n_neighbors: int = ...,
    generator: torch.Generator | None = ...,
    return_provenance: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def adasyn(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = ...,
    n_neighbors: int = ...,
    generator: torch.Generator | None = ...,
    return_provenance: Literal[True],
) -> tuple[Tensor, Tensor, Provenance]: ...
def adasyn(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = "auto",
    n_neighbors: int = 5,
    generator: torch.Generator | None = None,
    return_provenance: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Provenance]:
    """Adaptive synthetic over-sampling: He et al., "ADASYN: Adaptive Synthetic Sampling Approach for Imbalanced
    Learning" (2008).

    A row starts a share of its class's new rows that is proportional to how many of its n_neighbors nearest rows in X
    are of other classes; what is left after rounding down goes to the largest remainders, so counts are exact.
    Neighbours and steps are drawn as in `smote`, in the order of the rows they start from.

    Args, returns and errors as `smote`, and

    Args:
        n_neighbors: of both searches, from 1 to 4095 and below the size of each class that grows.

    Raises:
        ValueError: also where no row of a class that shall grow has a neighbour of another class.
    """
    check_neighbors("n_neighbors", n_neighbors)
    check_bool("return_provenance", return_provenance)
    resampling = over_sampling("adasyn", X, y, sampling_strategy, generator)
    check_class_sizes("n_neighbors", n_neighbors, resampling)
    rows, ptr = class_rows(resampling)
    if not resampling.counts:
        return generate(resampling, rows, rows[:, None], ptr, draw_key(generator), return_provenance)
    x = points(resampling.X)
    others = (y[nearest(x, n_neighbors, rows)] != y[rows][:, None]).sum(1)
    parts = zip(others.split(ptr.diff().tolist()), resampling.counts.items(), strict=True)
    each = torch.cat([shares(part, count, label) for part, (label, count) in parts])
    chosen = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(each)
    neighbors = rows[knn(x[rows], n_neighbors, ptr=ptr)[0]]
    return generate(resampling, rows, neighbors, ptr, draw_key(generator), return_provenance, chosen=chosen)
