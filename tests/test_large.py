"""More than 2^31 elements: offsets that do not fit 32 bits, and sums of that many losses."""

import gc

import pytest
import torch

import imbal_kernels as ik

CLASSES = 4096
ROWS = 2**31 // CLASSES + 5
LAST = torch.tensor([3.0, -2.0])  # logits of the last two rows; the others are 0


def available_gib(device):
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    for line in open("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 2**20
    return 0.0


@pytest.mark.parametrize(
    "reduction, kind, tensors", [("sum", "ids", 2), ("none", "ids", 2), ("sum", "dense", 1.5)], ids=str
)
def test_last_rows(reduction, kind, tensors, device, exact, assert_within, bound):
    """Tensors of 4 GiB each: the logits, and the gradient or the losses; dense targets are bytes."""
    gc.collect()
    needed, available = 4 * tensors + 1, available_gib(device)
    if available < needed:
        pytest.skip(f"needs {needed} GiB of memory, {available:.1f} are available")
    x = torch.zeros(ROWS, CLASSES, device=device, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[-2:] = LAST[:, None].to(device)
    ids = torch.full((ROWS,), -1, device=device)
    ids[-1] = CLASSES - 1
    t = ids
    if kind == "dense":
        t = torch.zeros(ROWS, CLASSES, device=device, dtype=torch.bool)
        t[-1, -1] = True
    last = exact(x[-2:], torch.nn.functional.one_hot(ids[-2:].clamp(min=0), CLASSES) * (ids[-2:, None] >= 0))
    x.requires_grad_(reduction == "sum" and kind == "ids")
    loss = ik.sigmoid_focal_loss(x, t, reduction=reduction)
    if reduction == "none":
        assert_within(loss[-2:], last.loss, bound(2, x.dtype))
        return
    each = exact(torch.zeros(1), torch.zeros(1)).loss.to(device)
    assert_within(loss.detach(), (each * (x.numel() - 2 * CLASSES)).sum() + last.loss.sum(), bound(2, x.dtype))
    if x.requires_grad:
        (grad,) = torch.autograd.grad(loss, x)
        assert_within(grad[-2:], last.grad, bound(2, x.dtype))
        assert grad[2**31 // CLASSES, 0] == grad[0, 0] == exact(torch.zeros(()), torch.zeros(())).grad.bfloat16()
