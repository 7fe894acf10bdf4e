"""The problem in numbers: what imbalance does to accuracy and to gradients, and what the remedies do."""

import math

import pytest
import torch

import imbal_kernels as ik


def test_always_negative_is_99_percent_accurate_and_finds_no_one():
    labels = torch.zeros(10_000, dtype=torch.long)
    labels[:100] = 1
    prediction = torch.zeros_like(labels)
    assert (prediction == labels).double().mean() == 0.99
    assert (prediction[labels == 1] == 1).sum() == 0
    assert ik.class_counts(labels, 2).tolist() == [9900, 100]


def test_balanced_weights():
    """N / (k n_c). The code in circulation, k * N / (n_c * N), is k / n_c: 0.000202 and 0.02."""
    counts = torch.tensor([9900, 100])
    negative, positive = ik.class_weights(counts).tolist()
    assert positive == 50.0 and round(negative, 3) == 0.505
    slip = 2 * 10_000 / (counts * 10_000)
    assert [float(f"{w:.3g}") for w in slip.tolist()] == [0.000202, 0.02]
    assert (positive * 100 == pytest.approx(negative * 9900)) and ik.binary_pos_weight(counts) == 99


@pytest.mark.parametrize(
    "p_t, ce, focal, ratio, digits",
    [(0.9, 0.105, 0.00105, 100, 0), (0.5, 0.693, 0.173, 4, 0), (0.1, 2.303, 1.865, 1.23, 2)],
)
def test_worked_table(p_t, ce, focal, ratio, digits, device):
    """Two slips are corrected here: at p_t = 0.9 the focal loss is 100 times less, not 10.5; at 0.1 it is 1.865,
    not 1.868."""
    x = torch.tensor([[math.log(p_t / (1 - p_t))]], device=device, dtype=torch.float64)
    one = torch.ones_like(x)
    plain = ik.binary_cross_entropy_with_logits(x, one).item()
    focused = ik.sigmoid_focal_loss(x, one, alpha=-1, gamma=2.0).item()
    assert round(plain, 3) == ce and float(f"{focused:.4g}") == pytest.approx(focal, abs=5e-6 if p_t > 0.8 else 5e-4)
    assert round(plain / focused, digits) == ratio
    assert plain / focused == pytest.approx(1 / (1 - p_t) ** 2)
    assert round(focused, 3) != 1.868 and round(plain / focused, 1) != 10.5


def gradient_by_class(device, **options):
    """Magnitude of the gradient of 99 negatives and of 1 positive, all at logit 0."""
    x = torch.zeros(100, 1, device=device, requires_grad=True)
    t = torch.zeros(100, 1, device=device)
    t[42] = 1
    ik.binary_cross_entropy_with_logits(x, t, reduction="sum", **options).backward()
    return x.grad[t == 0].abs().sum().item(), x.grad[t == 1].abs().sum().item(), x.grad.sum().item()


def test_negatives_give_99_percent_of_the_gradient(device):
    negatives, positives, _ = gradient_by_class(device)
    assert negatives / (negatives + positives) == pytest.approx(0.99)


def test_balanced_weights_cancel_it(device):
    counts = torch.tensor([99, 1], device=device)
    w = ik.class_weights(counts)
    weight = w[0].expand(100, 1).clone()
    weight[42] = w[1]
    for options in ({"weight": weight}, {"pos_weight": ik.binary_pos_weight(counts)}):
        negatives, positives, total = gradient_by_class(device, **options)
        assert negatives == pytest.approx(positives) and total == pytest.approx(0, abs=1e-5)


def test_inverse_weights_are_balanced_ones_up_to_a_learning_rate():
    counts = torch.tensor([9900, 100])
    torch.testing.assert_close(ik.class_weights(counts, "inverse") * 10_000 / 2, ik.class_weights(counts))


def test_focal_loss_leaves_the_easy_negatives_little(device):
    """10,000 easy negatives at p = 0.01 and one hard positive at the same logit."""
    x = torch.full((10_001, 1), ik.prior_bias(0.01), device=device)
    t = torch.zeros_like(x)
    t[0] = 1
    share = {}
    for gamma in (0.0, 2.0):
        y = x.clone().requires_grad_()
        ik.sigmoid_focal_loss(y, t, alpha=-1, gamma=gamma, reduction="sum").backward()
        share[gamma] = (y.grad[1:].sum() / y.grad.abs().sum()).item()
    assert share[0.0] > 0.99 and share[2.0] < 0.05
