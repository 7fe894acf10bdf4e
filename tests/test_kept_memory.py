"""A large gradient's memory on a CPU, which the next one gets: nobody's but its tensor's while there is one."""

import gc
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import imbal_kernels as ik

SMAPS = Path("/proc/self/smaps")
MIB = 2**20
pytestmark = [
    pytest.mark.skipif(not SMAPS.exists(), reason="memory is kept on Linux alone"),
    pytest.mark.skipif(torch.__version__ < "2.11", reason="memory is kept from PyTorch 2.11 on"),
]


@pytest.fixture(autouse=True)
def nothing_kept():
    torch.ops.imbal_kernels.keep_memory(False)
    torch.ops.imbal_kernels.keep_memory(True)
    yield
    torch.ops.imbal_kernels.keep_memory(False)
    torch.ops.imbal_kernels.keep_memory(True)


def make(mib=5, seed=0):
    x = torch.randn(mib * MIB // 32, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return x, torch.arange(x.shape[0]) % 9 - 1


def grad_of(x, ids, loss=ik.sigmoid_focal_loss):
    return torch.autograd.grad(loss(x, ids, reduction="sum"), x)[0]


def lazily_freed():
    """Bytes that the system may take at any time. It counts small pages by the batch, so a few may be missing."""
    return sum(1024 * int(line.split()[1]) for line in SMAPS.read_text().splitlines() if line.startswith("LazyFree"))


@pytest.mark.parametrize("loss", [ik.sigmoid_focal_loss, ik.cross_entropy])
def test_the_next_gradient_gets_it(loss):
    x, ids = make()
    ids = ids.clamp(0, 7)
    first = grad_of(x, ids, loss)
    address, expected = first.data_ptr(), first.clone()
    other = grad_of(x, ids, loss)
    assert other.data_ptr() != address and torch.equal(first, expected)
    del first
    again = grad_of(x, ids, loss)
    assert again.data_ptr() == address and torch.equal(again, expected) and torch.equal(other, expected)


def test_elementwise_losses_have_theirs():
    x, ids = make()
    losses = ik.sigmoid_focal_loss(x.detach(), ids)
    address, expected = losses.data_ptr(), losses.clone()
    del losses
    losses = ik.sigmoid_focal_loss(x.detach(), ids)
    assert losses.data_ptr() == address and torch.equal(losses, expected)


@pytest.mark.parametrize("hold", [lambda g: g[7:, 1], lambda g: g.numpy(), lambda g: g.untyped_storage()],
                         ids=["view", "array", "storage"])  # fmt: skip
def test_what_shares_it_holds_it(hold):
    x, ids = make()
    grad = grad_of(x, ids)
    address, held = grad.data_ptr(), hold(grad)
    del grad
    other = grad_of(x, ids)
    assert other.data_ptr() != address
    del held
    gc.collect()
    assert grad_of(x, ids).data_ptr() == address


def test_all_but_the_latest_128_mib_the_system_may_take():
    x, ids = make(50)
    before = lazily_freed()
    grads = [grad_of(x, ids) for _ in range(4)]
    latest = grads[3].data_ptr()
    while grads:
        del grads[0]
        assert lazily_freed() - before == pytest.approx(max(0, 2 - len(grads)) * 50 * MIB, abs=MIB)
    assert grad_of(x, ids).data_ptr() == latest
    torch.ops.imbal_kernels.keep_memory(False)
    assert lazily_freed() <= before
    grad_of(x, ids)
    assert lazily_freed() <= before


def test_one_larger_than_that_it_may_take_at_once():
    before = lazily_freed()
    grad_of(*make(130))
    assert lazily_freed() - before == pytest.approx(130 * MIB, abs=MIB)


def test_so_many_blocks_and_no_more():
    """Of 20 blocks 16 are kept, of which 12 are at most 128 MiB."""
    x, ids = make(10)
    before = lazily_freed()
    grads = [grad_of(x, ids) for _ in range(20)]
    del grads
    assert lazily_freed() - before == pytest.approx((16 - 12) * 10 * MIB, abs=MIB)


def test_a_block_much_too_large_is_left():
    large, small = make(12), make(5)
    address = grad_of(*large).data_ptr()
    assert grad_of(*small).data_ptr() != address
    assert grad_of(*make(8)).data_ptr() == address


def test_what_is_kept_stands_in_nobodys_way(tmp_path):
    """Under a limit that leaves room for one of them, or for a larger one."""
    script = """
import re, resource, torch, imbal_kernels as ik
torch.set_num_threads(1)
def step(mib):
    x = torch.zeros(mib * 2**15, 8, requires_grad=True)
    torch.autograd.grad(ik.sigmoid_focal_loss(x, torch.zeros(len(x), dtype=torch.long), reduction="sum"), x)
step(100)
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 400 * 2**20, resource.RLIM_INFINITY))
step(100), step(210)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_other_uses_of_it():
    x, ids = make()
    grad = grad_of(x, ids)
    expected = grad.clone()
    file = io.BytesIO()
    torch.save(grad, file)
    file.seek(0)
    assert torch.equal(torch.load(file), expected)
    assert torch.equal(grad.share_memory_(), expected)
    grad = grad_of(x, ids)
    grad.mul_(2).resize_(3, 3)
    assert torch.equal(grad, 2 * expected.flatten()[:9].view(3, 3))


def test_steps_of_several_threads():
    problems = [make(4 + i, seed=i) for i in range(4)]
    expected = [grad_of(*problem).clone() for problem in problems]
    wrong = []

    def steps(i):
        for _ in range(20):
            if not torch.equal(grad_of(*problems[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=steps, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_has_its_own():
    x, ids = make()
    grad = grad_of(x, ids)
    expected = grad.clone()
    del grad
    pid = os.fork()
    if not pid:  # one thread, as a forked child of PyTorch has to
        torch.set_num_threads(1)
        same = torch.equal(grad_of(x, ids), expected) and torch.equal(grad_of(2 * x, ids), grad_of(2 * x, ids))
        os._exit(0 if same else 1)
    grad = grad_of(x, ids)
    _, status = os.waitpid(pid, 0)
    assert status == 0 and torch.equal(grad, expected)
