"""The examples run, and what they put in place of another loss is that loss."""

import copy
import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def example(monkeypatch):
    """An example's module by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    # torchvision's own ops are not built against a CPU's PyTorch, and no example needs them.
    monkeypatch.setitem(sys.modules, "torchvision._meta_registrations", types.ModuleType("m"))

    def load(name):
        if name == "retinanet_head":
            pytest.importorskip("torchvision", reason="torchvision is not installed")
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("name, said", [("retinanet_head", "classification"), ("yolo_head", "class loss"),
                                        ("multilabel", "asymmetric")])  # fmt: skip
def test_trains(name, said, example, capsys):
    example(name).main()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if said in line]
    assert len(losses) == 3 and losses[2] < losses[0]


def gradients(loss, module):
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def compare(ours, theirs, rtol):
    assert ours.keys() == theirs.keys() and ours
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=rtol, atol=rtol * float(grad.abs().max()), msg=name)


def test_retinanet_is_torchvisions(example):
    """A whole model with torchvision's loss and the same with ours, one image without an object; then evaluation."""
    module = example("retinanet_head")
    torch.manual_seed(1)
    theirs = module.small_retinanet()
    ours = module.use_fused_loss(copy.deepcopy(theirs))
    images, targets = module.batch()
    expected, got = theirs(images, targets), ours(images, targets)
    assert type(theirs.head.classification_head) is not type(ours.head.classification_head)
    for name, loss in expected.items():
        torch.testing.assert_close(got[name], loss, rtol=1e-5, atol=0)
    compare(gradients(sum(got.values()), ours), gradients(sum(expected.values()), theirs), rtol=1e-4)
    features = list(theirs.backbone(torch.stack(images)).values())
    heads = [model.head.classification_head.eval() for model in (ours, theirs)]
    assert torch.equal(*(head(features) for head in heads))


def yolov6_varifocal(levels, labels, scores, num_classes):
    """YOLOv6's: alpha p^gamma of what is not the class, the score where it is; over the sum of the scores."""
    logits = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    label = F.one_hot(torch.where(labels >= 0, labels, num_classes), num_classes + 1)[..., :-1].float()
    target = label * scores[..., None]
    weight = 0.75 * logits.sigmoid() ** 2 * (1 - label) + target * label
    loss = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()
    return loss / scores.sum() if scores.sum() > 1 else loss


@pytest.mark.parametrize("objects", [True, False])
def test_yolo_head_is_yolov6s(objects, example):
    module = example("yolo_head")
    torch.manual_seed(1)
    head = module.DecoupledHead([4, 8], 7)
    features, labels, scores = module.batch([12, 6], [4, 8], 7)
    labels[0, 5], scores[0, 5] = 3, 0.9  # one at least
    if not objects:
        labels, scores = torch.full_like(labels, -1), torch.zeros_like(scores)
    levels, _ = head(features)
    ours, theirs = head.class_loss(levels, labels, scores), yolov6_varifocal(levels, labels, scores, 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    compare(gradients(ours, head), gradients(yolov6_varifocal(head(features)[0], labels, scores, 7), head), rtol=1e-5)


def asl_of_its_repository(x, y, gamma_neg=4, gamma_pos=1, clip=0.05):
    """AsymmetricLoss as its authors write it, their cut of the logarithm at 1e-8 included."""
    p = torch.sigmoid(x)
    q = (1 - p + clip).clamp(max=1)
    loss = y * torch.log(p.clamp(min=1e-8)) + (1 - y) * torch.log(q.clamp(min=1e-8))
    return -(loss * (1 - p * y - q * (1 - y)) ** (gamma_pos * y + gamma_neg * (1 - y))).sum()


@pytest.mark.parametrize("name, original", [("bce", F.binary_cross_entropy_with_logits),
                                            ("asymmetric", asl_of_its_repository)])  # fmt: skip
def test_multilabel_is_the_criterion_it_replaces(name, original, example):
    module = example("multilabel")
    torch.manual_seed(1)
    images, labels = module.batch()
    model = module.classifier(labels.shape[1])
    ours, theirs = module.CRITERIA[name](model(images), labels), original(model(images), labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    compare(gradients(ours, model), gradients(theirs, model), rtol=1e-5)
