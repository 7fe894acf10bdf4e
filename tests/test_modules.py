"""Modules: the functions with their arguments kept."""

import copy
import inspect
import pickle

import pytest
import torch

import imbal_kernels as ik

PAIRS = [
    (ik.SigmoidFocalLoss, ik.sigmoid_focal_loss),
    (ik.BinaryCrossEntropyWithLogits, ik.binary_cross_entropy_with_logits),
    (ik.QualityFocalLoss, ik.quality_focal_loss),
    (ik.VarifocalLoss, ik.varifocal_loss),
    (ik.AsymmetricLoss, ik.asymmetric_loss),
]
both = pytest.mark.parametrize("module, function", PAIRS, ids=["focal", "bce", "quality", "varifocal", "asymmetric"])


def options(device="cpu"):
    return {
        "weight": torch.tensor([1.0, 2.0, 3.0], device=device), "pos_weight": torch.tensor(2.0, device=device),
        "label_smoothing": 0.1, "ignore_index": -1, "normalizer": torch.tensor(7.0, device=device),
        "loss_weight": 2.0, "reduction": "sum",
    }  # fmt: skip


def problem(device):
    return torch.linspace(-3, 3, 12, device=device).view(4, 3), torch.tensor([0, -1, 2, 3], device=device)


@both
def test_same_arguments_and_defaults(module, function):
    expected = [p for p in inspect.signature(function).parameters.values() if p.name != "scores"][2:]
    actual = list(inspect.signature(module).parameters.values())
    assert [(p.name, p.kind, p.default) for p in actual] == [(p.name, p.kind, p.default) for p in expected]
    for mirror in (getattr(ik.reference, function.__name__),):
        assert inspect.signature(mirror) == inspect.signature(function)


def test_the_name_pytorch_uses():
    assert ik.BCEWithLogitsLoss is ik.BinaryCrossEntropyWithLogits


@both
def test_same_value(module, function, device):
    x, t = problem(device)
    assert torch.equal(module()(x, t), function(x, t))
    assert torch.equal(module(**options(device))(x, t), function(x, t, **options(device)))


@both
def test_tensors_are_buffers(module, function, device):
    loss = module(**options()).to(device)
    assert set(loss.state_dict()) == {"weight", "pos_weight", "normalizer"} and not list(loss.parameters())
    assert all(value.device.type == device for value in loss.buffers())
    assert torch.equal(loss(*problem(device)), function(*problem(device), **options(device)))
    assert module(**options()).double().weight.dtype == torch.float64
    module().load_state_dict({})


@both
def test_state_is_saved_and_loaded(module, function):
    source, other = module(**options()), module(**{**options(), "weight": torch.zeros(3)})
    other.load_state_dict(source.state_dict())
    assert torch.equal(other(*problem("cpu")), source(*problem("cpu")))


@both
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies(duplicate, module, function):
    loss = module(**options())
    other = duplicate(loss)
    assert other.weight.data_ptr() != loss.weight.data_ptr()
    assert torch.equal(other(*problem("cpu")), loss(*problem("cpu")))


@both
def test_repr_and_change(module, function):
    loss = module(weight=torch.ones(3), reduction="sum")
    assert "weight=tensor(3,)" in repr(loss) and "reduction='sum'" in repr(loss)
    loss.reduction = "none"
    loss.weight = None
    assert torch.equal(loss(*problem("cpu")), function(*problem("cpu"), reduction="none"))


@both
def test_scores_go_to_the_call(module, function, device):
    x, t = problem(device)
    scores = torch.tensor([0.5, 0.0, 0.25, 0.0], device=device)
    assert torch.equal(module(reduction="sum")(x, t, scores), function(x, t, reduction="sum", scores=scores))


def test_alpha_per_class_is_a_buffer():
    alpha = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(ik.SigmoidFocalLoss(alpha).state_dict()["alpha"], alpha)


@both
def test_a_weight_set_later_is_a_buffer_too(module, function):
    loss = module()
    loss.weight, loss.pos_weight = torch.ones(3), torch.full((3,), 2.0)
    assert loss.state_dict().keys() == {"weight", "pos_weight"}
    assert loss.double().weight.dtype == torch.float64
