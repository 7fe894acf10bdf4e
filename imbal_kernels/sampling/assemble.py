"""What the over-samplers share between checked arguments and rows: the classes' rows, their neighbours, the outputs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.sampling.knn import knn
from imbal_kernels.sampling.resampling import Provenance, Resampling


def class_rows(resampling: Resampling) -> tuple[Tensor, Tensor]:
    """The rows of the classes that get new ones, and where each class begins and ends among them."""
    parts = [resampling.rows(label) for label in resampling.counts]
    if len(parts) == 1:
        return parts[0], offsets([parts[0].shape[0]], parts[0])
    return torch.cat(parts or [resampling.order[:0]]), offsets([part.shape[0] for part in parts], resampling.order)


def offsets(sizes: Iterable[int], like: Tensor) -> Tensor:
    """0 and the running sums of sizes: (len + 1,) int64 on the device of `like`."""
    return torch.tensor([0, *sizes], device="cpu").cumsum(0).to(like.device)


def nearest(
    candidates: Tensor, k: int, rows: Tensor, ptr: Tensor | None = None, query_ptr: Tensor | None = None
) -> Tensor:
    """The k nearest candidates of some of them, themselves excluded by index: (rows, k) int64.

    Of the k + 1 nearest, the row itself goes, or the last where enough lower rows are equal to it.
    """
    found, _ = knn(candidates, k + 1, query=candidates[rows], ptr=ptr, query_ptr=query_ptr)
    itself = found == rows[:, None]
    dropped = torch.where(itself.any(1), itself.int().argmax(1), k)
    columns = torch.arange(k, device=found.device)
    return found.gather(1, columns + (columns >= dropped[:, None]))


def generate(
    resampling: Resampling, seeds: Tensor, neighbors: Tensor, ptr: Tensor, key: int, provenance: bool,
    chosen: Tensor | None = None, labels: Tensor | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """The new rows by the op, behind the original ones."""
    X, y, counts = resampling.X, resampling.y, resampling.counts
    classes = torch.tensor(list(counts), dtype=torch.int64, device=X.device)
    out, *traces = ops.smote_generate(
        X.view(torch.uint8) if X.dtype == torch.bool else X,
        seeds, neighbors.contiguous(), ptr, offsets(counts.values(), X), classes,
        chosen=chosen, labels=labels, key=key, count=sum(counts.values()), provenance=provenance,
    )  # fmt: skip
    new_labels = classes.to(y.dtype).repeat_interleave(torch.tensor(list(counts.values()), device=X.device).long())
    outputs = out.view(X.dtype), torch.cat((y, new_labels))
    return (*outputs, Provenance(*traces)) if provenance else outputs
