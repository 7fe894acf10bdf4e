"""The counter-based generator: known answers, addressing, bounded integers, normal numbers."""

import math

import pytest
import torch

from imbal_kernels import ops
from imbal_kernels.reference.philox import NORMALS, bounded, normals, philox, philox_words

# counter, key, output: the philox4x32 10 lines of Random123's kat_vectors.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def signed(low, high):
    value = (high << 32) | low
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_known_answers(counter, key, expected, device):
    c, k = words(counter), words(key)
    blocks = philox(tuple(torch.tensor([word]) for word in c), tuple(k))
    assert [int(word) for word in blocks] == words(expected)
    like = torch.zeros(1, device=device)
    out = ops.philox(like, signed(*k), signed(*c[2:]), signed(*c[:2]), 1)
    assert out.tolist() == [words(expected)] and out.device == like.device


@pytest.mark.parametrize("key, stream, first", [(0, 0, 0), (-1, -1, -3), (2**62, -7, NORMALS), (5, 2**40, 2**32 - 2)])
def test_kernel_and_reference(key, stream, first, device):
    """Across the carry from the counter's first word into its second, and around 2^64."""
    like = torch.zeros(1, device=device)
    out = ops.philox(like, key, stream, first, 9)
    assert torch.equal(out.cpu(), philox_words(torch.device("cpu"), key, stream, first, 9))
    one_by_one = [ops.philox(like, key, stream, (first + i + 2**63) % 2**64 - 2**63, 1) for i in range(9)]
    assert torch.equal(out, torch.cat(one_by_one))


def test_opcheck(device):
    torch.library.opcheck(torch.ops.imbal_kernels.philox.default, (torch.zeros(2, device=device), 1, -2, 3, 4))


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 2**31 - 1])
def test_bounded(n):
    """floor(u n / 2^64) by Python's integers, the ends of the range included."""
    w = philox_words(torch.device("cpu"), 1, 2, 3, 100)
    w[0, :2], w[1, :2] = 0, 2**32 - 1
    expected = [((high << 32) | low) * n >> 64 for low, high in w[:, :2].tolist()]
    assert bounded(w, n).tolist() == expected
    assert expected[0] == 0 and expected[1] == n - 1


def test_normals():
    """Moments within six standard errors, and finite at the ends of the words' range."""
    z = normals(philox_words(torch.device("cpu"), 11, 0, NORMALS, 50_000))
    n = z.numel()
    assert n == 200_000 and z.dtype == torch.float64
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 6 * math.sqrt(variance / n)
    assert abs((z[0::2] * z[1::2]).mean()) < 6 / math.sqrt(n / 2)
    ends = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1]])
    torch.testing.assert_close(normals(ends).abs().max(), torch.tensor(math.sqrt(64 * math.log(2))).double())
