"""From class counts to class weights, positive weights and priors. No host synchronisation on a GPU."""

import math

import torch
from torch import Tensor

from imbal_kernels.ops import backends

SCHEMES = ("balanced", "inverse", "inverse_sqrt", "effective")


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Examples of each class: (num_classes,) int64, on the labels' device.

    Unlike `torch.bincount` it does not synchronise on a GPU. A label out of range is a ValueError on a
    CPU; on a GPU, compiled or under vmap it makes every count -1, which `class_weights` turns into NaN.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.class_counts(torch.tensor([0, 0, 2]), 3)
        tensor([2, 0, 1])
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive int, got {num_classes!r}")
    ids = labels.reshape(-1).long()
    bad = (ids < 0) | (ids >= num_classes)
    if _may_look(labels) and bool(bad.any()):
        row = int(bad.int().argmax())
        raise ValueError(f"label {int(ids[row])} at position {row} is out of range: 0 to {num_classes - 1}")
    counts = ids.new_zeros(num_classes + 1)
    counts.scatter_add_(0, torch.where(bad, num_classes, ids), torch.ones_like(ids))
    return torch.where(counts[-1] > 0, -1, counts[:-1])


def class_weights(counts: Tensor, scheme: str = "balanced", *, beta: float = 0.9999) -> Tensor:
    """A weight per class from its count n_c, float32, (k,).

    Args:
        counts: examples of each of k classes, (k,), all positive. N is their sum.
        scheme: "balanced" N / (k n_c), the classes' gradients cancel; "inverse" 1 / n_c; "inverse_sqrt"
            1 / sqrt(n_c); "effective" (1 - beta) / (1 - beta^n_c), scaled to sum to k: Cui et al.,
            "Class-Balanced Loss Based on Effective Number of Samples" (2019).
        beta: of "effective", in [0, 1).

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.class_weights(torch.tensor([9900, 100]))
        tensor([ 0.5051, 50.0000])
    """
    n = _counts_per_class(counts)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {SCHEMES}, got {scheme!r}")
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}")
    if scheme == "balanced":
        w = n.sum() / (n.numel() * n)
    elif scheme == "inverse":
        w = 1 / n
    elif scheme == "inverse_sqrt":
        w = n.rsqrt()
    else:
        # expm1 and log1p: 1 - beta^n keeps its digits when beta is nearly 1.
        w = -(1 - beta) / torch.expm1(n * math.log(beta)) if beta else torch.ones_like(n)
        w = w * (n.numel() / w.sum())
    return w.float()


def binary_pos_weight(counts: Tensor) -> Tensor:
    """`pos_weight` that balances a binary task: negatives / positives, float32.

    `counts` is (..., 2): negatives and positives, for one task or for each of several.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> ik.binary_pos_weight(torch.tensor([9900, 100]))
        tensor(99.)
    """
    n = _counts(counts)
    if n.shape[-1] != 2:
        raise ValueError(f"counts must have shape (..., 2), negatives and positives, got {tuple(counts.shape)}")
    return (n[..., 0] / n[..., 1]).float()


def prior_bias(prior: float = 0.01) -> float:
    """Bias of a classifier's last layer at which every output starts at `prior`: -log((1 - prior) / prior).

    RetinaNet's initialisation (Lin et al. 2017, 4.1): without it the background's loss swamps the first steps.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior must be in (0, 1), got {prior}")
    return -math.log((1 - prior) / prior)


def log_prior(counts: Tensor) -> Tensor:
    """log(n_c / N), float32: what logit adjustment (Menon et al. 2021) adds to the logits."""
    n = _counts_per_class(counts)
    return (n / n.sum()).log().float()


def _may_look(tensor: Tensor) -> bool:
    """Whether what a tensor holds can decide about an error."""
    return tensor.device.type == "cpu" and not (torch.compiler.is_compiling() or backends.in_transform())


def _counts(counts: Tensor) -> Tensor:
    if not isinstance(counts, Tensor):
        raise TypeError(f"counts must be a Tensor, got {type(counts).__name__}")
    if counts.dim() == 0 or counts.numel() == 0:
        raise ValueError(f"counts must hold one count per class, got shape {tuple(counts.shape)}")
    if counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"counts must be integers or real, got {counts.dtype}")
    n = counts.double()
    valid = (n > 0) & torch.isfinite(n)
    if _may_look(counts) and not bool(valid.all()):
        where = int((~valid).flatten().int().argmax())
        raise ValueError(f"counts must be positive and finite, got {counts.flatten()[where].item()} for class {where}")
    return torch.where(valid, n, torch.nan)


def _counts_per_class(counts: Tensor) -> Tensor:
    n = _counts(counts)
    if n.dim() != 1:
        raise ValueError(f"counts must be 1-d, one per class, got shape {tuple(counts.shape)}")
    return n
