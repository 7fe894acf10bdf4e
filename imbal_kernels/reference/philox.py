"""Philox4x32-10 in PyTorch: the generator behind every draw of the samplers.

A block is four 32-bit words, a function of a 64-bit key and a 128-bit counter. The counter is (class, draw): its low
64 bits, words 0 and 1, are the number of the draw within its class, its high 64 bits, words 2 and 3, the class label
in two's complement. Nothing depends on the other classes, on threads or on the device.

    draw j of a class   seed row    floor((w1 2^32 + w0) n / 2^64) of the class's n seeds
    (block j)           neighbour   floor(w2 k / 2^32) of the seed's k
                        step        w3 / 2^32, in [0, 1)
    normal number e     block 2^63 + e // 4, words 0 and 1 for e % 4 < 2, else 2 and 3, by Box and Muller:
    of a class          r cos(t) for even e, r sin(t) for odd, r = sqrt(-2 log((w + 1) / 2^32)), t = 2 pi w' / 2^32

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
"""

import math

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF
NORMALS = -(2**63)  # number of the first block of normal numbers: 2^63 as an int64


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds over counters given as four int64 tensors of words; the four words of each block."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(c0, M0), _multiply(c2, M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


def philox_words(device: torch.device, key: int, stream: int, first: int, blocks: int) -> Tensor:
    """The words of blocks `first`, `first` + 1, ... of a stream: (blocks, 4) int64."""
    # An int64 wraps like the 64-bit counter it holds.
    block = torch.arange(blocks, device=device) + first
    low, high = torch.full_like(block, stream & LOW), torch.full_like(block, (stream >> 32) & LOW)
    counter = (block & LOW, (block >> 32) & LOW, low, high)
    return torch.stack(philox(counter, (key & LOW, (key >> 32) & LOW)), 1)


def bounded(words: Tensor, n: int) -> Tensor:
    """floor((w1 2^32 + w0) n / 2^64) for words (..., 4) and 1 <= n < 2^31."""
    return (words[..., 1] * n + (words[..., 0] * n >> 32)) >> 32


def normals(words: Tensor) -> Tensor:
    """Four standard normal numbers of each block (blocks, 4), one after the other: float64."""
    radius = torch.sqrt(-2 * torch.log((words[:, 0::2] + 1).double() * 2.0**-32))
    angle = words[:, 1::2].double() * (2 * math.pi * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), 2).flatten()


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product, by halves of the constant: an int64 would overflow."""
    upper, lower = a * (constant >> 16), a * (constant & 0xFFFF)
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)
