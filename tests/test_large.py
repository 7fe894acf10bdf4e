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


def test_last_places_of_a_head(device, exact, assert_within, bound):
    """A level of 4 GiB, the gradient as large, and a small one beside it."""
    gc.collect()
    needed, available = 9, available_gib(device)
    if available < needed:
        pytest.skip(f"needs {needed} GiB of memory, {available:.1f} are available")
    level = torch.zeros(1, CLASSES, 1, ROWS, device=device, dtype=torch.bfloat16)
    assert level.numel() > 2**31
    level[0, :, 0, -2:] = LAST.to(device)
    small = torch.zeros(1, CLASSES, 1, 3, device=device, dtype=torch.bfloat16)
    labels = torch.full((1, ROWS + 3), -1, device=device)
    labels[0, ROWS - 1] = CLASSES - 1
    loss = ik.dense_focal_loss([level.requires_grad_(), small], labels, CLASSES)
    t = torch.zeros(2, CLASSES, device=device)
    t[1, -1] = 1
    last = exact(LAST.to(device)[:, None].expand(2, CLASSES), t)
    each = exact(torch.zeros(1), torch.zeros(1)).loss.to(device)
    others = level.numel() + small.numel() - 2 * CLASSES
    assert_within(loss.detach(), (each * others).sum() + last.loss.sum(), bound(2, level.dtype))
    (grad,) = torch.autograd.grad(loss, level)
    assert_within(grad[0, :, 0, -2:].T, last.grad, bound(2, level.dtype))
