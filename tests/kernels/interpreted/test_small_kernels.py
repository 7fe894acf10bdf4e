"""count_targets and rescale_."""

import pytest
import torch

from imbal_kernels.kernels import count_targets, rescale, rescale_


@pytest.mark.parametrize("rows", (0, 1, 4096, 4097))
@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8))
def test_count_ids(rows, dtype):
    ids = torch.randint(0, 12, (rows,)).to(dtype)
    ids[::5] = 3
    kept = ids != 3
    assert count_targets(ids, 10, 3, False, False) == kept.sum()
    assert count_targets(ids, 10, 3, False, True) == (kept & (ids < 10)).sum()
    assert count_targets(ids, 10, 3, False, True).dtype == torch.int64


def test_count_ids_beyond_32_bits():
    assert count_targets(torch.tensor([2**32 + 5, -1, 5, -100]), 10, -100, False, True) == 1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.bool, torch.int32))
def test_count_dense(dtype):
    target = (torch.rand(70, 61) < 0.5).to(dtype)
    ignore_index = -100
    if dtype != torch.bool:
        target[::3] = ignore_index
    kept = target != ignore_index
    assert count_targets(target, 61, ignore_index, True, False) == kept.sum()
    assert count_targets(target, 61, ignore_index, True, True) == (kept & (target > 0)).sum()


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("numel", (0, 1, 4095, 4096, 4097, 5 * 4096 + 3))
def test_rescale(monkeypatch, dtype, numel):
    monkeypatch.setattr(rescale, "PROGRAMS", 2)
    grads = [torch.randn(n).to(dtype) for n in (numel, 7, 4096)]
    for factor in (1.0, -2.5):
        expected = [(grad.double() * factor).to(dtype) for grad in grads]
        rescale_(grads, torch.tensor(factor))
        # The interpreter truncates to bf16, the hardware rounds.
        rtol = 2**-7 if dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(grads, expected, rtol=rtol, atol=0.0)
        grads = expected


def test_rescale_by_nan():
    grad = torch.ones(3)
    rescale_([grad], torch.tensor(float("nan")))
    assert grad.isnan().all()


def test_rescale_gradients_of_several_dtypes():
    """As those of a layer under autocast."""
    grads = [torch.ones(5, dtype=torch.bfloat16), torch.ones(9)]
    rescale_(grads, torch.tensor(0.5))
    assert all((grad == 0.5).all() for grad in grads)
