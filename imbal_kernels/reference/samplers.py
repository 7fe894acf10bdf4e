"""The samplers in plain PyTorch, name for name and argument for argument, one class at a time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imbal_kernels.checks import check_bool
from imbal_kernels.reference.neighbors import knn
from imbal_kernels.reference.philox import philox_words
from imbal_kernels.reference.sampling import (
    Generated,
    add_noise,
    check_danger,
    in_danger,
    shares,
    subset,
    synthesize,
)
from imbal_kernels.sampling.resampling import (
    Provenance,
    Resampling,
    Strategy,
    check_borderline,
    check_borderline_sizes,
    check_class_sizes,
    check_neighbors,
    check_shrinkage,
    draw_key,
    over_sampling,
    points,
    under_sampling,
)


def smote(
    X: Tensor, y: Tensor, *, sampling_strategy: Strategy = "auto", k_neighbors: int = 5,
    generator: torch.Generator | None = None, return_provenance: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """Reference of `imbal_kernels.smote`."""
    check_neighbors("k_neighbors", k_neighbors)
    check_bool("return_provenance", return_provenance)
    resampling = over_sampling("smote", X, y, sampling_strategy, generator)
    check_class_sizes("k_neighbors", k_neighbors, resampling)
    key, made = draw_key(generator), []
    for label, count in resampling.counts.items():
        rows = resampling.rows(label)
        neighbors = rows[knn(points(resampling.X[rows]), k_neighbors)[0]]
        made.append(synthesize(_numbers(resampling.X), rows, neighbors, label, key, count))
    return _assemble(resampling, made, return_provenance)


def borderline_smote(
    X: Tensor, y: Tensor, *, sampling_strategy: Strategy = "auto", k_neighbors: int = 5, m_neighbors: int = 10,
    kind: str = "borderline-1", generator: torch.Generator | None = None, return_provenance: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """Reference of `imbal_kernels.borderline_smote`."""
    check_borderline(k_neighbors, m_neighbors, kind)
    check_bool("return_provenance", return_provenance)
    resampling = over_sampling("borderline_smote", X, y, sampling_strategy, generator)
    check_borderline_sizes(resampling, k_neighbors, m_neighbors, kind)
    x = points(resampling.X)
    near = knn(x, m_neighbors)[0] if resampling.counts else resampling.order
    danger = {}
    for label in resampling.counts:
        rows = resampling.rows(label)
        danger[label] = in_danger(y, rows, near[rows])
    check_danger(resampling, [int(part.sum()) for part in danger.values()], m_neighbors)
    key, made = draw_key(generator), []
    for label, count in resampling.counts.items():
        rows, at = resampling.rows(label), danger[label]
        if kind == "borderline-1":
            neighbors, labels = rows[knn(x[rows], k_neighbors)[0][at]], None
        else:
            neighbors, labels = knn(x, k_neighbors)[0][rows[at]], y.long()
        made.append(synthesize(_numbers(resampling.X), rows[at], neighbors, label, key, count, labels=labels))
    return _assemble(resampling, made, return_provenance)


def adasyn(
    X: Tensor, y: Tensor, *, sampling_strategy: Strategy = "auto", n_neighbors: int = 5,
    generator: torch.Generator | None = None, return_provenance: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """Reference of `imbal_kernels.adasyn`."""
    check_neighbors("n_neighbors", n_neighbors)
    check_bool("return_provenance", return_provenance)
    resampling = over_sampling("adasyn", X, y, sampling_strategy, generator)
    check_class_sizes("n_neighbors", n_neighbors, resampling)
    x = points(resampling.X)
    near = knn(x, n_neighbors)[0] if resampling.counts else resampling.order
    each = {}
    for label, count in resampling.counts.items():
        rows = resampling.rows(label)
        each[label] = shares((y[near[rows]] != label).sum(1), count, label)
    key, made = draw_key(generator), []
    for label, count in resampling.counts.items():
        rows = resampling.rows(label)
        chosen = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(each[label])
        neighbors = rows[knn(x[rows], n_neighbors)[0]]
        made.append(synthesize(_numbers(resampling.X), rows, neighbors, label, key, count, chosen))
    return _assemble(resampling, made, return_provenance)


def random_oversample(
    X: Tensor, y: Tensor, *, sampling_strategy: Strategy = "auto",
    shrinkage: float | Mapping[int, float] | None = None, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Reference of `imbal_kernels.random_oversample`."""
    resampling = over_sampling("random_oversample", X, y, sampling_strategy, generator, finite=shrinkage is not None)
    factors = check_shrinkage(shrinkage, resampling)
    key, made = draw_key(generator), []
    for label, count in resampling.counts.items():
        rows = resampling.rows(label)
        made.append(synthesize(_numbers(resampling.X), rows, rows.new_empty((rows.shape[0], 0)), label, key, count))
    out, labels = _assemble(resampling, made, False)
    if factors:
        add_noise(resampling, out, factors, key, _words)
    return out, labels


def random_undersample(
    X: Tensor, y: Tensor, *, sampling_strategy: Strategy = "auto", replacement: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Reference of `imbal_kernels.random_undersample`."""
    check_bool("replacement", replacement)
    resampling = under_sampling("random_undersample", X, y, sampling_strategy, generator)
    rows = subset(resampling, replacement, draw_key(generator), _words)
    return X[rows], y[rows]


def _numbers(X: Tensor) -> Tensor:
    return X.view(torch.uint8) if X.dtype == torch.bool else X


def _words(like: Tensor, key: int, stream: int, first: int, blocks: int) -> Tensor:
    return philox_words(like.device, key, stream, first, blocks)


def _assemble(resampling: Resampling, made: list[Generated], provenance: bool) -> tuple[Any, ...]:
    X, y = resampling.X, resampling.y
    rows = [X, *(new[0].view(X.dtype) for new in made)]
    labels = [y, *(y.new_full((count,), label) for label, count in resampling.counts.items())]
    outputs = torch.cat(rows), torch.cat(labels)
    if not provenance:
        return outputs
    nothing = resampling.order[:0]
    traces = zip((nothing, nothing, nothing.double()), *(new[1:] for new in made), strict=True)
    return (*outputs, Provenance(*(torch.cat(trace) for trace in traces)))
