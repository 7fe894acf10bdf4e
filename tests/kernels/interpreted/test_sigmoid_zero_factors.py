"""A factor of exactly 0 silences an infinite loss, as in the reference; a NaN logit stays NaN."""

import math

import pytest
import torch
from sigmoid_reference import call, one_hot

from imbal_kernels.kernels import sigmoid
from imbal_kernels.reference import sigmoid_focal_loss

VALUES = (math.inf, -math.inf, 100.0, -100.0, math.nan)
ALPHAS = (0.0, 1.0, 0.25, -1.0)
GAMMAS = (0.0, 0.5, 2.0)
KINDS = ("ids", "hard", "soft", "smoothed ids")


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (128, 1)))


def compare(x, target, smoothing=0.0, **options):
    """With the reference; sums without the NaN logits, which would hide everything else."""
    wide = x.float().requires_grad_()
    # The reference takes factors as (C,) tensors or numbers, and its two kinds of alpha as one.
    factors = {k: v.squeeze() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    factors["alpha"] = factors.pop("alpha_per_class", factors.get("alpha", 0.25))
    losses = sigmoid_focal_loss(wide, target, label_smoothing=smoothing, **factors)
    (grad,) = torch.autograd.grad(losses.sum(), wide)
    rtol = 1e-2 if x.dtype == torch.bfloat16 else 1e-5
    # sigmoid(-100) is no normal number, and soft targets take its square root.
    tolerance = dict(rtol=rtol, atol=1e-20, equal_nan=True, check_dtype=False)
    _, got, got_grad = call(x, target, smoothing=smoothing, **options)
    torch.testing.assert_close(got, losses, **tolerance)
    torch.testing.assert_close(got_grad, grad, **tolerance)
    numbers = ~x[:, 0].isnan()
    total, _, _ = call(x[numbers], target[numbers], smoothing=smoothing, **options)
    torch.testing.assert_close(total, losses[numbers].sum(), **tolerance)


def problem(kind, classes, dtype):
    """Every value with every class as its positive, and as background."""
    ids = torch.arange(-1, classes).repeat(len(VALUES))
    x = torch.tensor(VALUES).repeat_interleave(classes + 1)[:, None].repeat(1, classes).to(dtype)
    if "ids" in kind:
        return x, ids
    hard = one_hot(ids, classes).bool()
    return x, hard if kind == "hard" else torch.where(hard, 0.75, (ids[:, None] % 2) / 4)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", KINDS)
def test_alpha(kind, alpha, gamma):
    x, target = problem(kind, 32, torch.float32)
    compare(x, target, smoothing=0.1 * (kind == "smoothed ids"), alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("kind, classes", (("ids", 32), ("ids", 21), ("hard", 32), ("soft", 32), ("smoothed ids", 21)))
@pytest.mark.parametrize(
    "gamma, dtype", [(g, torch.float32) for g in GAMMAS] + [(2.0, torch.bfloat16), (2.0, torch.float64)]
)
def test_factors_by_class(gamma, dtype, kind, classes):
    """Weight and pos_weight of 0 and 1 and every alpha, in every combination."""
    x, target = problem(kind, classes, dtype)
    j = torch.arange(classes)[None]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factors = dict(
        weight=(j % 2).to(wide), pos_weight=(j // 2 % 2).to(wide),
        alpha_per_class=torch.tensor(ALPHAS, dtype=wide)[j // 4 % 4],
    )  # fmt: skip
    compare(x, target, smoothing=0.1 * (kind == "smoothed ids"), gamma=gamma, **factors)


@pytest.mark.parametrize("factor", ("weight", "pos_weight", "alpha_per_class"))
@pytest.mark.parametrize("value", (0.0, 1.0))
@pytest.mark.parametrize("kind", ("ids", "hard", "soft"))
def test_one_factor_for_all(kind, value, factor):
    x, target = problem(kind, 21, torch.float32)
    compare(x, target, gamma=2.0, **{factor: torch.full((1, 1), value)})


@pytest.mark.parametrize("gamma", (0.0, 2.0))
@pytest.mark.parametrize("classes", (32, 21, 5))
@pytest.mark.parametrize("alpha, x, label", ((1.0, math.inf, -1), (0.0, -math.inf, 1)))
def test_the_sum_of_silenced_infinities_is_0(alpha, x, label, classes, gamma):
    total, _, _ = call(torch.full((9, classes), x), torch.full((9,), label), alpha=alpha, gamma=gamma)
    assert total == 0
