"""Losses inside a training step: nothing waits for the device, and the step can be captured, compiled, scaled,
accumulated and distributed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

import imbal_kernels as ik

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ANCHORS, CLASSES, SIZES = 3, 5, ((6, 7), (3, 4))
COUNT = ANCHORS * sum(h * w for h, w in SIZES)


def batch(device, seed=0, dtype=torch.float32):
    """Two levels of a head, their labels, one image crowded and the other empty, and factors on the device."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(2, ANCHORS * CLASSES, h, w, generator=generator) for h, w in SIZES]
    labels = torch.randint(-2, CLASSES + 1, (2, COUNT), generator=generator)
    labels[1] = -1
    factors = {
        "classes": torch.rand(CLASSES, generator=generator), "scores": torch.rand(2, COUNT, generator=generator),
        "number": torch.rand((), generator=generator) + 1, "layer": torch.randn(9, CLASSES, generator=generator),
    }  # fmt: skip
    moved = {name: factor.to(device) for name, factor in factors.items()}
    return [level.to(device, dtype).requires_grad_() for level in levels], labels.to(device), moved


def flat(levels):
    parts = [x.unflatten(1, (-1, CLASSES)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
    return torch.cat(parts, 1)


def of_rows(loss, **options):
    """A loss of (N, C) logits; the softmax family knows no background."""
    return lambda x, ids, f: loss(flat(x).flatten(0, 1), ids.flatten().clamp(min=0), **options)


def dense(**options):
    return lambda x, ids, f: ik.dense_focal_loss(x, ids, CLASSES, ignore_index=-2, **options)


LOSSES = {
    "focal": lambda x, ids, f: ik.sigmoid_focal_loss(flat(x), ids, ignore_index=-2).sum(),
    "focal, mean": lambda x, ids, f: ik.sigmoid_focal_loss(flat(x), ids, reduction="mean", ignore_index=-2),
    "focal, per image": lambda x, ids, f: ik.sigmoid_focal_loss(
        flat(x), ids, reduction="sum", ignore_index=-2, normalizer="positives_per_image"
    ),
    "focal, tensors": lambda x, ids, f: ik.sigmoid_focal_loss(
        flat(x), ids, f["classes"], reduction="sum", weight=f["classes"], pos_weight=f["classes"], ignore_index=-2,
        normalizer=f["number"], loss_weight=f["number"],
    ),
    "bce, values": lambda x, ids, f: ik.binary_cross_entropy_with_logits(
        flat(x), f["scores"][..., None].expand(2, COUNT, CLASSES)
    ),
    "quality": lambda x, ids, f: ik.quality_focal_loss(
        flat(x), ids, reduction="sum", scores=f["scores"], ignore_index=-2, normalizer="positives"
    ),
    "asymmetric": lambda x, ids, f: ik.asymmetric_loss(flat(x), ids, reduction="mean", ignore_index=-2),
    "dense": dense(),
    "dense, per image": dense(normalizer="positives_per_image"),
    "dense, varifocal": lambda x, ids, f: dense(
        formula="varifocal", scores=f["scores"], normalizer=f["scores"].sum().clamp(min=1)
    )(x, ids, f),
    "cross-entropy": of_rows(ik.cross_entropy),
    "cross-entropy, weights": lambda x, ids, f: of_rows(ik.cross_entropy, weight=f["classes"])(x, ids, f),
    "softmax focal": of_rows(ik.softmax_focal_loss, reduction="sum", normalizer="positives"),
    "linear focal": lambda x, ids, f: ik.linear_focal_loss(flat(x), f["layer"], None, ids, ignore_index=-2),
    "linear cross-entropy": lambda x, ids, f: ik.linear_cross_entropy(
        flat(x), f["layer"], None, ids.clamp(min=0), label_smoothing=0.1
    ),
}  # fmt: skip


def step(name, levels, labels, factors, scale=3.0):
    """Loss and gradients, under an upstream gradient that is not 1."""
    loss = LOSSES[name](levels, labels, factors)
    return loss.detach(), *torch.autograd.grad(loss * scale, levels)


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_is_read_on_the_host(name, device):
    """Fake tensors have no values: what would read one, or make a size of it, raises. From the call to the kernels and
    back, which is one way for a CPU and a GPU; what a GPU's kernels do is for the tests below."""
    with FakeTensorMode():
        loss, *gradients = step(name, *batch(device))
        assert loss.shape == () and [g.shape for g in gradients] == [(2, ANCHORS * CLASSES, h, w) for h, w in SIZES]


def test_reading_a_tensor_on_the_host_would_be_noticed():
    with FakeTensorMode():
        levels, labels, _ = batch("cpu")
        for read in (lambda: (labels >= 0).sum().item(), lambda: bool((labels > 9).any())):
            with pytest.raises(DataDependentOutputException):
                read()
        with pytest.raises(DynamicOutputShapeException):
            flat(levels)[labels >= 0]


@needs_gpu
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_gpu(name):
    inputs = batch("cuda")
    step(name, *inputs)  # compiles and loads
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(name, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("name", LOSSES)
def test_captured_and_replayed_with_other_labels(name):
    """One graph for loss and gradients: what it reads may change, and it may be replayed twice on the same."""
    levels, labels, factors = batch("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(name, levels, labels, factors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(name, levels, labels, factors)
    for seed in (1, 2):
        others, other_labels, other_factors = batch("cuda", seed)
        with torch.no_grad():
            for kept, new in zip(
                (*levels, labels, *factors.values()), (*others, other_labels, *other_factors.values()), strict=True
            ):
                kept.copy_(new)
        expected = step(name, others, other_labels, other_factors)
        for _ in range(2):
            graph.replay()
            for got, true in zip(captured, expected, strict=True):
                torch.testing.assert_close(got, true)


class Head(nn.Module):
    """A convolution for all levels, and a loss."""

    def __init__(self, **options):
        super().__init__()
        self.conv = nn.Conv2d(4, ANCHORS * CLASSES, 3, padding=1)
        self.loss = ik.DenseFocalLoss(CLASSES, ignore_index=-2, **options)

    def forward(self, features, labels):
        return self.loss([self.conv(x) for x in features], labels)


def make_head(device, images=2, **options):
    """A head with features (N, 4, H, W) and labels; the same at every call."""
    torch.manual_seed(0)
    head = Head(**options).to(device)
    features = [torch.randn(images, 4, h, w).to(device) for h, w in SIZES]
    labels = torch.randint(-2, CLASSES + 1, (images, COUNT)).to(device)
    return head, features, labels


def gradients_of(head, loss):
    head.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in head.parameters()]


def compare(got, expected, rtol):
    """Relative to the largest: a gradient is a sum, and some of its terms cancel."""
    for one, true in zip(got, expected, strict=True):
        torch.testing.assert_close(one, true, rtol=rtol, atol=rtol * float(true.abs().max()))


COMPILED = [
    ("aot_eager", {"normalizer": "positives_per_image"}),
    ("aot_eager", {"formula": "quality_focal"}),
    ("inductor", {}),
]


@pytest.mark.parametrize("backend, options", COMPILED, ids=str)
def test_head_and_loss_compile_whole(backend, options, device):
    torch._dynamo.reset()
    head, features, labels = make_head(device, **options)
    expected = head(features, labels)
    loss = torch.compile(head, fullgraph=True, backend=backend)(features, labels)
    torch.testing.assert_close(loss, expected)
    compare(gradients_of(head, loss), gradients_of(head, expected), 1e-5)  # sums in another order


def test_ema_normalizer_in_a_compiled_step(device):
    """The average moves once a step, inside the graph, and not in evaluation."""
    torch._dynamo.reset()
    head, features, labels = make_head(device, normalizer=ik.EMANormalizer().to(device))
    average = head.loss.normalizer
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    positives = float(((labels >= 0) & (labels < CLASSES)).sum())
    expected = 100.0
    for _ in range(3):
        expected = 0.9 * expected + 0.1 * positives
        total = ik.dense_focal_loss([head.conv(x) for x in features], labels, CLASSES, ignore_index=-2, normalizer=None)
        torch.testing.assert_close(compiled(features, labels), total / expected)
        assert float(average.value) == pytest.approx(expected)
    head.eval()
    head(features, labels)
    assert float(average.value) == pytest.approx(expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_amp_with_gradscaler(half, device):
    """Gradients after unscaling as in fp32: with a mean over a million none survives in fp16 without a scale."""
    head, features, labels = make_head(device, normalizer=1e6)
    expected = gradients_of(head, head(features, labels))
    scaler, optimizer = torch.amp.GradScaler(device, init_scale=2.0**20), torch.optim.SGD(head.parameters(), 1.0)
    optimizer.zero_grad()
    with torch.autocast(device, half):
        loss = head(features, labels)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    compare([p.grad for p in head.parameters()], expected, 8 * torch.finfo(half).eps)
    before = [p.detach().clone() for p in head.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**20
    assert any(not torch.equal(p, old) for p, old in zip(head.parameters(), before, strict=True))


def test_gradscaler_sees_an_overflow(device):
    """fp16 gradients beyond 65504 are infinite: the step is skipped and the scale halved."""
    head, features, labels = make_head(device, normalizer=None)
    scaler, optimizer = torch.amp.GradScaler(device, init_scale=2.0**30), torch.optim.SGD(head.parameters(), 1.0)
    before = [p.detach().clone() for p in head.parameters()]
    with torch.autocast(device, torch.float16):
        loss = head(features, labels)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**29
    assert all(torch.equal(p, old) for p, old in zip(head.parameters(), before, strict=True))


def test_accumulated_gradients_are_those_of_one_batch(device):
    """With a normalizer that all parts share: the positives of all."""
    head, features, labels = make_head(device, images=4)
    head.loss.normalizer = ((labels >= 0) & (labels < CLASSES)).sum()
    expected = gradients_of(head, head(features, labels))
    head.zero_grad()
    for part in (slice(0, 1), slice(1, 4)):
        head([x[part] for x in features], labels[part]).backward()
    compare([p.grad for p in head.parameters()], expected, 1e-5)  # sums in another order


RANK = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [os.environ["TESTS"]]
from test_training import CLASSES, gradients_of, make_head

torch.set_num_threads(1)
store, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
head, features, labels = make_head("cpu", images=4)
mine = slice(0, 1) if rank == 0 else slice(1, 4)
features, labels = [x[mine] for x in features], labels[mine]
positives = ((labels >= 0) & (labels < CLASSES)).sum().float()
dist.all_reduce(positives)
head.loss.normalizer = positives / dist.get_world_size()  # DDP averages over the ranks
model = DistributedDataParallel(head)
gradients = gradients_of(model, model(features, labels))
torch.save(gradients, f"{store}.{rank}")
dist.destroy_process_group()
os._exit(0)  # gloo's threads end a process that ends by itself with an abort now and then, any model's
"""


def test_two_processes_are_one(tmp_path):
    """DistributedDataParallel over gloo: uneven parts of a batch, the positives averaged over the ranks."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("PyTorch is built without gloo")
    store = tmp_path / "store"
    variables = os.environ | {"TESTS": str(Path(__file__).parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", RANK, str(store)]
    ranks = [
        subprocess.Popen([*command, str(rank)], env=variables, stderr=subprocess.PIPE, text=True,
                         cwd=Path(__file__).parents[1])
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    head, features, labels = make_head("cpu", images=4)
    expected = gradients_of(head, head(features, labels))  # over the positives of all four images
    for rank in range(2):
        compare(torch.load(f"{store}.{rank}"), expected, 1e-5)  # sums in another order
