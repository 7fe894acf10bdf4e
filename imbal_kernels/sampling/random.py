"""Random over- and under-sampling: copies, smoothed copies, subsets."""

from collections.abc import Mapping

import torch
from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.checks import check_bool
from imbal_kernels.reference import sampling as reference
from imbal_kernels.sampling.assemble import class_rows, generate
from imbal_kernels.sampling.resampling import (
    Strategy,
    check_shrinkage,
    draw_key,
    over_sampling,
    under_sampling,
)


def random_oversample(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = "auto",
    shrinkage: float | Mapping[int, float] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Over-sampling with copies of rows drawn with replacement, or a smoothed bootstrap of them.

    Args:
        X: (n, d) features: float32, float64, bfloat16, float16, integer or bool; without shrinkage NaN and inf too.
        y: (n,) class labels, integer or bool.
        sampling_strategy: as in `smote`.
        shrinkage: None copies. A number s >= 0, or one of each class that grows, adds normal noise of standard
            deviation s h sigma, with sigma that of the feature in the class and h = (4 / ((d + 2) n))^(1 / (d + 4)):
            Menardi and Torelli, "Training and assessing classification rules with imbalanced data" (2014), with
            n all rows, as in imbalanced-learn. X must then be floating point.
        generator: as in `smote`.

    Returns:
        X: (n', d), the rows of X first, then the new ones by class.
        y: (n',) their labels.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> X, y = ik.random_oversample(torch.tensor([[1.0], [2.0], [7.0]]), torch.tensor([0, 0, 1]))
        >>> X.tolist(), y.tolist()
        ([[1.0], [2.0], [7.0], [7.0]], [0, 0, 1, 1])
    """
    resampling = over_sampling("random_oversample", X, y, sampling_strategy, generator, finite=shrinkage is not None)
    factors = check_shrinkage(shrinkage, resampling)
    key = draw_key(generator)
    rows, ptr = class_rows(resampling)
    out, labels = generate(resampling, rows, rows.new_empty((rows.shape[0], 0)), ptr, key, False)
    if factors:
        reference.add_noise(resampling, out, factors, key, ops.philox)
    return out, labels


def random_undersample(
    X: Tensor,
    y: Tensor,
    *,
    sampling_strategy: Strategy = "auto",
    replacement: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Under-sampling: a random subset of the rows of each class that shall shrink.

    Args:
        X: (n, d) features: float32, float64, bfloat16, float16, integer or bool; NaN and inf too.
        y: (n,) class labels, integer or bool.
        sampling_strategy: how many rows a class shall keep, as in imbalanced-learn: "auto" or "not minority" (all but
            the smallest class shrink to its size), "majority", "not majority", "all"; a float, the ratio of
            minority to majority of a binary task; a mapping of class to rows; or a function of y that returns one.
        replacement: whether a row may be drawn more than once.
        generator: as in `smote`.

    Returns:
        X: (n', d), rows of X by class, in each class that shrinks in the order drawn.
        y: (n',) their labels.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> X, y = ik.random_undersample(torch.randn(100, 4), (torch.arange(100) < 10).long())
        >>> y.bincount()
        tensor([10, 10])
    """
    check_bool("replacement", replacement)
    resampling = under_sampling("random_undersample", X, y, sampling_strategy, generator)
    rows = reference.subset(resampling, replacement, draw_key(generator), ops.philox)
    return X[rows], y[rows]
