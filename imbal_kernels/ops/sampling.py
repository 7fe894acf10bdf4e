"""The sampling ops: schema, fake, and the reference for devices without a kernel.

`smote_generate` makes the new rows of all classes in one call:

    X           (n, d) contiguous, float or integer
    seeds       (s,) int64, rows of X, the classes' one after the other
    neighbors   (s, k) int64, rows of X; with k = 0 a new row is a copy of its seed
    ptr         (c + 1,) int64: class c may use seeds[ptr[c]:ptr[c + 1]], fewer than 2^31 of them
    out_ptr     (c + 1,) int64: new rows out_ptr[c] to out_ptr[c + 1] are of class c
    classes     (c,) int64, the labels: the class's stream of draws
    chosen      (count,) int64 positions in `seeds`, where they are not drawn
    labels      (n,) int64: a neighbour of another class halves the step
    key         of the random numbers, 64 bits
    count       new rows, out_ptr[c]
    provenance  whether the last three outputs are wanted, else they are empty

It returns the rows of X and the new ones (n + count, d), and per new row the rows of X it lies between
(int64, the seed's first) and the step from one to the other (float64). All tensors are on one device and
contiguous.

`philox` gives the words of `blocks` blocks from block number `first` on: (blocks, 4) int64.
"""

from typing import Any

import torch
from torch import Tensor

from imbal_kernels.ops import backends
from imbal_kernels.reference import sampling as reference

_GENERATE = (
    "Tensor X, Tensor seeds, Tensor neighbors, Tensor ptr, Tensor out_ptr, Tensor classes, Tensor? chosen, "
    "Tensor? labels, int key, int count, bool provenance"
)

backends.library.define(f"smote_generate({_GENERATE}) -> (Tensor, Tensor, Tensor, Tensor)")
backends.library.define("philox(Tensor like, int key, int stream, int first, int blocks) -> Tensor")

_ops = torch.ops.imbal_kernels
Generated = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.register_fake("imbal_kernels::smote_generate", lib=backends.library)
def _smote_generate_fake(
    X: Tensor, seeds: Tensor, neighbors: Tensor, ptr: Tensor, out_ptr: Tensor, classes: Tensor,
    chosen: Tensor | None, labels: Tensor | None, key: int, count: int, provenance: bool,
) -> Generated:  # fmt: skip
    traced = count if provenance else 0
    rows = X.new_empty((X.shape[0] + count, X.shape[1]))
    seed_row, neighbor = X.new_empty(traced, dtype=torch.int64), X.new_empty(traced, dtype=torch.int64)
    return rows, seed_row, neighbor, X.new_empty(traced, dtype=torch.float64)


@torch.library.register_fake("imbal_kernels::philox", lib=backends.library)
def _philox_fake(like: Tensor, key: int, stream: int, first: int, blocks: int) -> Tensor:
    return like.new_empty((blocks, 4), dtype=torch.int64)


@torch.library.impl("imbal_kernels::smote_generate", "CompositeExplicitAutograd", lib=backends.library)
def _smote_generate_anywhere(X: Tensor, *args: Any) -> Generated:
    backends.has_kernels(X, backends.MISSING_SAMPLING)  # says so once
    return reference.smote_generate(X, *args)


@torch.library.impl("imbal_kernels::philox", "CompositeExplicitAutograd", lib=backends.library)
def _philox_anywhere(like: Tensor, key: int, stream: int, first: int, blocks: int) -> Tensor:
    return reference.philox_words(like.device, key, stream, first, blocks)


def smote_generate(
    X: Tensor, seeds: Tensor, neighbors: Tensor, ptr: Tensor, out_ptr: Tensor, classes: Tensor, *,
    chosen: Tensor | None = None, labels: Tensor | None = None, key: int, count: int, provenance: bool = False,
) -> Generated:  # fmt: skip
    """The op by name; see the top of this file."""
    return _ops.smote_generate(
        X, seeds, neighbors, ptr, out_ptr, classes, chosen, labels, key, count, provenance
    )


def philox(like: Tensor, key: int, stream: int, first: int, blocks: int) -> Tensor:
    """Words of Philox4x32-10 on `like`'s device: (blocks, 4) int64."""
    return _ops.philox(like, key, stream, first, blocks)
