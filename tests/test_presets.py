"""The presets against plain transcriptions of what they stand for, and against the packages that are installed.

The transcriptions are the published formulas in fp64, one-hot targets and all; 1e-9 is what their 1 - p loses.
"""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

import imbal_kernels as ik

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("m"))  # its ops aren't in a CPU build

IMAGES, ANCHORS, C = 3, 40, 7


@pytest.fixture
def heads(device):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(IMAGES, ANCHORS, C, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, C, (IMAGES, ANCHORS), generator=generator)
    ids[torch.rand(IMAGES, ANCHORS, generator=generator) < 0.7] = C
    ids[1] = C  # an image without objects
    scores = torch.rand(IMAGES, ANCHORS, generator=generator)
    return logits.to(device).requires_grad_(), ids.to(device), scores.to(device)


def one_hot(ids):
    return (ids[..., None] == torch.arange(C, device=ids.device)).double()


def focal(x, t, alpha=0.25, gamma=2.0):
    p = torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    return (alpha * t + (1 - alpha) * (1 - t)) * (1 - p_t) ** gamma * bce(x, t)


def bce(x, t):
    return F.binary_cross_entropy_with_logits(x, t, reduction="none")


def same(ours, theirs, x):
    """Value and gradient."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    grads = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (ours, theirs))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_torchvision_retinanet_formula(heads):
    x, ids, _ = heads
    ids[0, :9] = -2
    losses = []
    for logits, labels in zip(x, ids, strict=True):
        kept = labels != -2
        t = one_hot(labels[kept])
        losses.append(focal(logits[kept], t).sum() / max(1.0, t.sum().item()))
    same(ik.presets.torchvision_retinanet(x, ids), sum(losses) / IMAGES, x)


def test_torchvision_retinanet_itself(heads, device):
    """Its head's own compute_loss, from labels of boxes and the matcher's indices."""
    from torchvision.models.detection.retinanet import RetinaNetClassificationHead

    x, ids, _ = heads
    ids[0, :9], ids[2, 5] = -2, -2
    targets, matched = [], []
    for labels in ids:  # one box an anchor that has an object
        has = (labels >= 0) & (labels < C)
        targets.append({"labels": labels[has]})
        index = torch.where(labels == -2, -2, -1)
        matched.append(index.masked_scatter(has, torch.arange(int(has.sum()), device=device)))
    head = RetinaNetClassificationHead(8, 1, C).to(device)
    theirs = head.compute_loss(targets, {"cls_logits": x}, matched)
    same(ik.presets.torchvision_retinanet(x, ids), theirs, x)


def test_detectron2_retinanet(heads, device):
    x, ids, _ = heads
    ids[0, :9] = -1
    ema = torch.tensor(100.0, device=device, dtype=torch.float64)
    ema.mul_(0.9).add_(0.1 * ((ids >= 0) & (ids < C)).sum().clamp(min=1))
    valid = ids >= 0
    theirs = focal(x[valid], one_hot(ids)[valid]).sum() / ema
    same(ik.presets.detectron2_retinanet(x, ids, ema), theirs, x)


@pytest.mark.parametrize("avg_factor", [None, 12.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_mmdet_focal(heads, weighted, avg_factor):
    x, ids, weight = heads
    pred, target, weight = x.flatten(0, 1), ids.flatten(), weight.flatten() if weighted else None
    losses = focal(pred, one_hot(target), 0.3, 1.5) * (1 if weight is None else weight[:, None])
    theirs = 2.0 * (losses.mean() if avg_factor is None else losses.sum() / avg_factor)
    ours = ik.presets.mmdet_focal(pred, target, weight, avg_factor, gamma=1.5, alpha=0.3, loss_weight=2.0)
    same(ours, theirs, x)


@pytest.mark.parametrize("avg_factor", [None, 12.5])
def test_mmdet_quality_focal(heads, avg_factor):
    """Negatives by p^beta over all classes, then the label's column by |score - p|^beta; an anchor's are added up."""
    x, ids, scores = heads
    pred, labels, score = x.flatten(0, 1), ids.flatten(), scores.flatten()
    weight = score.flip(0)
    p = torch.sigmoid(pred)
    losses = bce(pred, torch.zeros_like(pred)) * p**2.0
    rows = (labels < C).nonzero().squeeze(1)
    at = rows, labels[rows]
    distance = (score[rows].double() - p[at]).abs()
    losses = losses.index_put(at, bce(pred[at], score[rows].double()) * distance**2.0)
    losses = losses.sum(1) * weight
    theirs = losses.mean() if avg_factor is None else losses.sum() / avg_factor
    same(ik.presets.mmdet_quality_focal(pred, (labels, score), weight, avg_factor), theirs, x)


@pytest.mark.parametrize("avg_factor", [None, 12.5])
def test_mmdet_varifocal(heads, avg_factor):
    x, ids, scores = heads
    t = one_hot(ids) * scores[..., None]
    focal_weight = t * (t > 0) + 0.75 * (torch.sigmoid(x) - t).abs() ** 2.0 * (t <= 0)
    losses = bce(x, t) * focal_weight
    theirs = losses.mean() if avg_factor is None else losses.sum() / avg_factor
    ours = ik.presets.mmdet_varifocal(x.flatten(0, 1), t.flatten(0, 1), None, avg_factor)
    same(ours, theirs, x)
    if avg_factor is not None:  # without the dense matrix
        sparse = ik.varifocal_loss(x, ids, reduction="sum", scores=scores, normalizer=avg_factor)
        same(sparse, theirs, x)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_apex_focal(heads, smoothing, device):
    x, ids, _ = heads
    padded = F.pad(x, (0, 3))
    targets = torch.where(ids == C, -1, ids)
    targets[0, :9] = -2
    t = one_hot(ids)
    smooth = t * (1 - smoothing) + smoothing / 2
    p_t = torch.sigmoid(x) * t + (1 - torch.sigmoid(x)) * (1 - t)
    losses = (0.25 * t + 0.75 * (1 - t)) * (1 - p_t) ** 2 * bce(x, smooth)
    positives = torch.tensor([31.0], device=device)
    theirs = (losses * (targets != -2)[..., None]).sum() / 31
    same(ik.presets.apex_focal(padded, targets, positives, C, 0.25, 2.0, smoothing), theirs, x)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_timm_bce(heads, smoothing):
    x, ids, _ = heads
    logits, target = x[:, 0], ids[:, 0] % C
    t = torch.full_like(logits, smoothing / C).detach()
    t[torch.arange(IMAGES), target] = 1 - smoothing + smoothing / C
    same(ik.presets.timm_bce(logits, target, smoothing), bce(logits, t).mean(), x)
    same(ik.presets.timm_bce(logits, t, smoothing), bce(logits, t).mean(), x)


def test_asl(heads):
    x, ids, _ = heads
    y = one_hot(ids)
    y[..., 0] = 1  # several labels a row
    p, missed = torch.sigmoid(x), (1 - torch.sigmoid(x) + 0.05).clamp(max=1)
    p_t = p * y + missed * (1 - y)
    losses = -(y * p.log() + (1 - y) * missed.log()) * (1 - p_t) ** (1 * y + 4 * (1 - y))
    same(ik.presets.asl(x, y), losses.sum(), x)


def test_class_balanced_focal(heads, device):
    x, ids, _ = heads
    logits, labels = x.flatten(0, 1), ids.flatten() % C
    counts = torch.tensor([5000, 700, 90, 40, 10, 3, 1], device=device)
    effective = (1 - 0.999 ** counts.double()) / (1 - 0.999)
    weights = 1 / effective
    weights = weights / weights.sum() * C
    t = one_hot(labels)
    modulated = torch.exp(-2.0 * t * logits - 2.0 * torch.log1p(torch.exp(-logits))) * bce(logits, t)
    theirs = (weights[labels][:, None] * modulated).sum() / t.sum()
    ours = ik.presets.class_balanced_focal(logits, labels, counts, beta=0.999)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # class_weights are fp32
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (ours, theirs)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_ldam(heads, weighted, device):
    x, ids, _ = heads
    logits, labels = torch.tanh(x.flatten(0, 1)), ids.flatten() % C
    counts = torch.tensor([5000, 700, 90, 40, 10, 3, 1], device=device)
    margins = 1 / counts.double() ** 0.25
    margins = margins * (0.5 / margins.max())
    weight = torch.linspace(0.5, 2, C, device=device, dtype=torch.float64) if weighted else None
    moved = torch.where(one_hot(labels) > 0, logits - margins[labels][:, None], logits)
    theirs = F.cross_entropy(30 * moved, labels, weight)
    same(ik.presets.ldam(logits, labels, counts, weight=weight), theirs, x)
