"""SMOTE: new rows between a row and one of its neighbours in its class."""

from typing import Literal, overload

import torch
from torch import Tensor

from imbal_kernels.checks import check_bool
from imbal_kernels.sampling.assemble import class_rows, generate
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
def smote(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = ...,
    k_neighbors: int = ...,
    generator: torch.Generator | None = ...,
    return_provenance: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def smote(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = ...,
    k_neighbors: int = ...,
    generator: torch.Generator | None = ...,
    return_provenance: Literal[True],
) -> tuple[Tensor, Tensor, Provenance]: ...
def smote(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = "auto",
    k_neighbors: int = 5,
    generator: torch.Generator | None = None,
    return_provenance: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Provenance]:
    """Over-sampling with synthetic rows: Chawla et al., "SMOTE: Synthetic Minority Over-sampling Technique" (2002).

    A new row is x_i + step * (x_j - x_i): x_i a row of the class, x_j one of its k nearest in the class, step in
    [0, 1), each drawn uniformly. It lies inside the box of the two, in the dtype of X; integers are rounded.

    Args:
        X: (n, d) finite features: float32, float64, bfloat16, float16, integer or bool.
        y: (n,) class labels, integer or bool.
        sampling_strategy: how many rows a class shall have, as in imbalanced-learn: "auto" or "not majority" (all
            but the largest class grow to its size), "minority", "not minority", "all"; a float, the ratio of
            minority to majority of a binary task; a mapping of class to rows; or a function of y that returns one.
        k_neighbors: k, from 1 to 4095 and below the size of each class that grows.
        generator: a CPU `torch.Generator`, also for tensors on a GPU (None: the default one); one 64-bit draw is
            taken from it. The draws of a class depend on that and on its label, not on the device or other classes.
        return_provenance: also return a `Provenance` of the new rows.

    Returns:
        X: (n', d), the rows of X first, then the new ones by class.
        y: (n',) their labels.
        provenance: where asked for: the rows of X each new row lies between, and the step.

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype, device or range; a class too small for k_neighbors.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> X, y = torch.randn(100, 4), (torch.arange(100) < 10).long()
        >>> X_new, y_new = ik.smote(X, y)
        >>> y_new.bincount()
        tensor([90, 90])
    """
    check_neighbors("k_neighbors", k_neighbors)
    check_bool("return_provenance", return_provenance)
    resampling = over_sampling("smote", X, y, sampling_strategy, generator)
    check_class_sizes("k_neighbors", k_neighbors, resampling)
    rows, ptr = class_rows(resampling)
    neighbors = rows.new_empty((0, k_neighbors))
    if resampling.counts:
        neighbors = rows[knn(points(resampling.X[rows]), k_neighbors, ptr=ptr)[0]]
    return generate(resampling, rows, neighbors, ptr, draw_key(generator), return_provenance)
