"""Counts, weights, priors: against their formulas in fp64."""

import math

import pytest
import torch

import imbal_kernels as ik


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_class_counts(kind, device):
    labels = torch.randint(0, 7, (4, 250)).to(device, kind)
    counts = ik.class_counts(labels, 9)
    assert counts.dtype == torch.int64 and counts.device == labels.device
    assert counts.tolist() == torch.bincount(labels.flatten().long(), minlength=9).tolist()


def test_class_counts_of_bool_and_nothing(device):
    assert ik.class_counts(torch.tensor([True, False, True], device=device), 2).tolist() == [1, 2]
    assert ik.class_counts(torch.zeros(0, dtype=torch.long, device=device), 3).tolist() == [0, 0, 0]


def test_bad_label_spoils_the_counts_on_a_gpu(device):
    if device == "cpu":
        with pytest.raises(ValueError, match="label 5 at position 1"):
            ik.class_counts(torch.tensor([0, 5]), 2)
    else:
        counts = ik.class_counts(torch.tensor([0, 5], device=device), 2)
        assert counts.tolist() == [-1, -1] and ik.class_weights(counts).isnan().all()


def test_weights_from_counts_compile_and_map(device):
    labels = torch.tensor([[0, 0, 2, 1], [1, 1, 1, 9]], device=device)

    def weights(labels):
        return ik.class_weights(ik.class_counts(labels, 3))

    expected = torch.stack([weights(labels[0]), torch.full((3,), torch.nan, device=device)])
    torch._dynamo.reset()
    compiled = torch.compile(weights, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.stack([compiled(row) for row in labels]), expected, equal_nan=True)
    torch.testing.assert_close(torch.vmap(weights)(labels), expected, equal_nan=True)


COUNTS = torch.tensor([1, 10, 123_456, 99, 2**40])


def formula(scheme, n, beta):
    if scheme == "effective":
        w = [(1 - beta) / -math.expm1(c * math.log(beta)) if beta else 1.0 for c in n]
        return [v * len(n) / sum(w) for v in w]
    return [{"balanced": sum(n) / (len(n) * c), "inverse": 1 / c, "inverse_sqrt": c**-0.5}[scheme] for c in n]


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-12])
@pytest.mark.parametrize("scheme", ["balanced", "inverse", "inverse_sqrt", "effective"])
def test_class_weights(scheme, beta, device):
    weights = ik.class_weights(COUNTS.to(device), scheme, beta=beta)
    assert weights.dtype == torch.float32 and weights.device.type == device
    expected = torch.tensor(formula(scheme, COUNTS.tolist(), beta), device=device)
    torch.testing.assert_close(weights, expected, rtol=3e-7, atol=0)


def test_scikit_learn_calls_it_balanced():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    expected = sklearn.compute_class_weight("balanced", classes=labels.unique().numpy(), y=labels.numpy())
    torch.testing.assert_close(ik.class_weights(ik.class_counts(labels, 3)).double(), torch.tensor(expected),
                               rtol=1e-6, atol=0)  # fmt: skip


def test_binary_pos_weight(device):
    assert ik.binary_pos_weight(torch.tensor([9900, 100], device=device)) == 99
    per_task = ik.binary_pos_weight(torch.tensor([[9900, 100], [1, 4]], device=device))
    assert per_task.tolist() == [99, 0.25]


def test_priors(device):
    assert ik.prior_bias() == pytest.approx(-4.59512, abs=1e-5)
    assert torch.sigmoid(torch.tensor(ik.prior_bias(0.2))) == pytest.approx(0.2)
    prior = ik.log_prior(torch.tensor([9900, 100], device=device))
    assert prior.exp().tolist() == pytest.approx([0.99, 0.01])
