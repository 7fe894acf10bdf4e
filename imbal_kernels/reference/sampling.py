"""What the samplers do to rows in plain PyTorch: the definition of every row they make.

A new row lies between a seed row and a neighbour; reference/philox.py says how both and the step are drawn.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from imbal_kernels.reference.philox import NORMALS, bounded, normals, philox_words
from imbal_kernels.sampling.arguments import check_finite
from imbal_kernels.sampling.resampling import Resampling

# words(like, key, stream, first, blocks) -> (blocks, 4) int64
Words = Callable[[Tensor, int, int, int, int], Tensor]
Generated = tuple[Tensor, Tensor, Tensor, Tensor]


def interpolate(a: Tensor, b: Tensor, step: Tensor) -> Tensor:
    """a + step (b - a) in the dtype of a and b, inside their box; step float64 in [0, 1), broadcast.

    In fp64, every operation rounded by itself: fp16 and bf16 come back by way of fp32, integers are rounded to the
    nearest (ties to even), fp64 is halved meanwhile where the difference overflows.
    """
    if a.dtype == torch.int64:
        return _interpolate_int64(a, b, step)
    x, y = a.double(), b.double()
    scale = torch.where((y - x).isinf(), 0.5, 1.0).double()
    moved = (x * scale + step * (y * scale - x * scale)) / scale
    moved = torch.minimum(torch.maximum(moved, torch.minimum(x, y)), torch.maximum(x, y))
    if not a.is_floating_point():
        return moved.round().to(a.dtype)
    return moved if a.dtype == torch.float64 else moved.float().to(a.dtype)


def _interpolate_int64(a: Tensor, b: Tensor, step: Tensor) -> Tensor:
    """The distance is taken modulo 2^64, as an unsigned number in an int64, and never walked beyond."""
    rising = a < b
    distance = torch.where(rising, b - a, a - b)
    part = (step * _unsigned_to_double(distance)).round()
    half = torch.floor(part / 2)
    part = half.long() * 2 + (part - 2 * half).long()
    flip = torch.tensor(-(2**63), device=a.device)
    walked = torch.where((part ^ flip) < (distance ^ flip), part, distance)
    return torch.where(rising, a + walked, a - walked)


def _unsigned_to_double(v: Tensor) -> Tensor:
    """An unsigned number in an int64, rounded once: beyond 2^63 its half with the last bit kept in sight."""
    half = (v >> 1) & (2**63 - 1) | v & 1
    return torch.where(v < 0, half.double() * 2, v.double())


def synthesize(
    X: Tensor, seeds: Tensor, neighbors: Tensor, label: int, key: int, count: int,
    chosen: Tensor | None = None, labels: Tensor | None = None,
) -> Generated:  # fmt: skip
    """`count` new rows of one class, their seed rows, neighbours and steps; see ops/sampling.py for the arguments."""
    words = philox_words(X.device, key, label, 0, count)
    at = bounded(words, seeds.shape[0]) if chosen is None else chosen
    seed, k = seeds[at], neighbors.shape[1]
    if k == 0:
        return X[seed], seed, seed.clone(), torch.zeros(count, dtype=torch.float64, device=X.device)
    neighbor, step = neighbors[at, words[:, 2] * k >> 32], words[:, 3].double() * 2.0**-32
    if labels is not None:
        step = torch.where(labels[neighbor] != label, step / 2, step)
    return interpolate(X[seed], X[neighbor], step[:, None]), seed, neighbor, step


def smote_generate(
    X: Tensor, seeds: Tensor, neighbors: Tensor, ptr: Tensor, out_ptr: Tensor, classes: Tensor,
    chosen: Tensor | None, labels: Tensor | None, key: int, count: int, provenance: bool,
) -> Generated:  # fmt: skip
    """The op of ops/sampling.py."""
    begin, ends, parts = ptr.tolist(), out_ptr.tolist(), []
    for c, label in enumerate(classes.tolist()):
        part, out = slice(begin[c], begin[c + 1]), slice(ends[c], ends[c + 1])
        at = None if chosen is None else chosen[out] - begin[c]
        parts.append(synthesize(X, seeds[part], neighbors[part], label, key, out.stop - out.start, at, labels))
    nothing = seeds.new_empty(0)
    origin = (X, nothing, nothing, nothing.double())
    rows, seed, neighbor, step = (torch.cat(column) for column in zip(origin, *parts, strict=True))
    return (rows, seed, neighbor, step) if provenance else (rows, *origin[1:])


def add_noise(resampling: Resampling, out: Tensor, factors: Mapping[int, float], key: int, words: Words) -> None:
    """The noise of a smoothed bootstrap, onto the new rows of `out`."""
    X, end = resampling.X, resampling.X.shape[0]
    rows, columns = X.shape
    bandwidth = (4 / ((columns + 2) * rows)) ** (1 / (columns + 4))
    for label, count in resampling.counts.items():
        begin, end = end, end + count
        values = X[resampling.rows(label)].double()
        # Two columns of one: PyTorch cuts a reduction to a single number in as many parts as there are threads.
        deviation = values.expand(-1, max(2, columns)).std(0, correction=0)[:columns]
        scale = factors[label] * bandwidth * deviation
        noise = normals(words(X, key, label, NORMALS, -(-count * columns // 4)))[: count * columns]
        out[begin:end] = (out[begin:end].double() + noise.view(count, columns) * scale).to(X.dtype)
    check_finite(f"X with noise must stay within {X.dtype}: it", out[rows:], "feature")


def subset(resampling: Resampling, replacement: bool, key: int, words: Words) -> Tensor:
    """The rows an under-sampling keeps, by class: those with the smallest 63 bits of their own draw, or drawn ones."""
    kept = []
    for label, size in resampling.sizes.items():
        rows, count = resampling.rows(label), resampling.counts.get(label)
        if count is None:
            kept.append(rows)
        elif replacement:
            kept.append(rows[bounded(words(rows, key, label, 0, count), size)])
        else:
            drawn = words(rows, key, label, 0, size)
            bits = (drawn[:, 1] << 31) | (drawn[:, 0] >> 1)
            kept.append(rows[bits.sort(stable=True).indices[:count]])
    return torch.cat(kept)


def in_danger(y: Tensor, rows: Tensor, neighbors: Tensor) -> Tensor:
    """Which rows have at least half, but not all, of their neighbours in other classes."""
    m = neighbors.shape[1]
    others = (y[neighbors] != y[rows][:, None]).sum(1)
    return (2 * others >= m) & (others < m)


def check_danger(resampling: Resampling, sizes: list[int], m: int) -> None:
    for label, size in zip(resampling.counts, sizes, strict=True):
        if size == 0:
            raise ValueError(
                f"class {label} has no row in danger, with at least half but not all of its m_neighbors={m} nearest "
                "rows in other classes: borderline_smote has no row to start from, smote has"
            )


def shares(others: Tensor, count: int, label: int) -> Tensor:
    """`count` split in proportion to `others`, (s,) int64, by largest remainder; the lower row of equals."""
    total = int(others.sum())
    if total == 0:
        raise ValueError(
            f"no row of class {label} has a neighbour of another class: adasyn has no row to start from, smote has"
        )
    whole, remainder = others * count // total, others * count % total
    left = count - int(whole.sum())
    whole[remainder.sort(descending=True, stable=True).indices[:left]] += 1
    return whole
