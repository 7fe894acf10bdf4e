"""The accuracy contract: loss and gradient against fp64 formulas, which are held to mpmath here.

Hard targets: relative error at most (1 + gamma) 1.5e-6 for |x| <= 20 and (1 + gamma) 1e-5 for |x| <= 80,
where the true value is a normal fp32 number; half inputs 1e-4. Where the gradient crosses zero (soft
targets, smoothing), the same factor times the sum of the magnitudes of its terms.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import imbal_kernels as ik
from bench import accuracy, peers

GAMMAS = (0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 2.7, 3.0, 5.0)
ALPHA = 0.25
POINTS = 4001
DOC = Path(__file__).parents[1] / "docs" / "accuracy.md"


@pytest.fixture
def device(backend):
    return backend


def grid(dtype: torch.dtype = torch.float32) -> Tensor:
    """-80 to 80 with the odd bits of fp32 set, denser near 0 and at the prior bias; 0 and the ends included."""
    wide, near = torch.linspace(-80, 80, POINTS), torch.linspace(-20, 20, POINTS)
    small = torch.logspace(-30, 0, 121)
    return torch.cat([wide, near * math.pi / 3.2, small, -small, torch.tensor([0.0, -12, -16, -20])]).to(dtype)


def bound(x: Tensor, gamma: float) -> Tensor:
    return (1 + gamma) * torch.where(x.abs() <= 20, 1.5e-6, 1e-5)


def true_hard(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    """In fp64, by the formulas of `bench.accuracy.exact`; m^gamma through logarithms, which do not underflow."""
    z = -x.double() if positive else x.double()
    softplus, rest = _softplus(z), 1 / (1 + torch.exp(z))
    factor = (ALPHA if positive else 1 - ALPHA) * torch.exp(-gamma * _softplus(-z))
    gradient = factor * (1 / (1 + torch.exp(-z)) + gamma * rest * softplus)
    return factor * softplus, -gradient if positive else gradient


def true_soft(x: Tensor, t: Tensor, gamma: float, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and the sum of the magnitudes of the gradient's terms, in fp64, alpha off.

    0, which claims nothing, where k^gamma is at the edge of underflow: with smoothing the loss is k^gamma
    times more than 1 there, so that the product can be a normal number though its first factor is not.
    """
    x, t = x.double(), t.double()
    p, q = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
    positive, negative = t * (1 - smoothing) + smoothing / 2, (1 - t) * (1 - smoothing) + smoothing / 2
    entropy = positive * _softplus(-x) + negative * _softplus(x)
    k = t * q + (1 - t) * p
    up, down = k**gamma * negative * p, k**gamma * positive * q
    focus = gamma * k ** (gamma - 1) * (1 - 2 * t) * p * q * entropy
    claimed = k**gamma >= 2 * accuracy.FLOAT.tiny
    values = k**gamma * entropy, up - down + focus, up + down + focus.abs()
    return tuple(torch.where(claimed, value, 0.0) for value in values)


def _softplus(z: Tensor) -> Tensor:
    return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))


def targets_for(x: Tensor, positive: bool, form: str) -> Tensor:
    """The same (N, 1) problem as class ids or as values. With one class, id 0 is the object."""
    if form == "ids":
        return torch.full(x.shape[:1], 0 if positive else -1, device=x.device)
    return torch.full_like(x, float(positive))


def run(x: Tensor, targets: Tensor, gamma: float, **options) -> tuple[Tensor, Tensor]:
    """Elementwise loss and gradient, (N, 1), of the function, as fp64 on the CPU."""
    x = x.detach().requires_grad_()
    loss = ik.sigmoid_focal_loss(x, targets, options.pop("alpha", ALPHA), gamma, **options)
    loss.sum().backward()
    return loss.detach().double().cpu(), x.grad.double().cpu()


def assert_within(got: Tensor, true: Tensor, allowed: Tensor, x: Tensor, what: str) -> None:
    """|got - true| <= allowed where `true` is a normal fp32 number; names the worst logit."""
    normal = (true.abs() >= accuracy.FLOAT.tiny) & (true.abs() <= accuracy.FLOAT.max)
    excess = torch.where(normal, ((got - true).abs() / allowed).nan_to_num(nan=math.inf), 0.0)
    worst = int(excess.argmax())
    assert excess[worst] <= 1, (
        f"{what}: {excess[worst]:.3g} times the bound at x = {x[worst].item()!r}: "
        f"{got[worst].item()!r}, true {true[worst].item()!r}"
    )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_fp64_formulas_agree_with_mpmath(gamma):
    pytest.importorskip("mpmath")
    x = grid()[::97]
    for positive in (False, True):
        exact = torch.tensor([accuracy.exact(v, positive, gamma) for v in x.tolist()], dtype=torch.float64)
        for value, truth in zip(true_hard(x, positive, gamma), exact.T, strict=True):
            torch.testing.assert_close(value, truth, rtol=2e-13, atol=0)
        soft = true_soft(x, torch.full_like(x, float(positive)), gamma, 0.0)
        factor = ALPHA if positive else 1 - ALPHA
        for value, truth in zip(soft[:2], exact.T, strict=True):
            claimed = value != 0
            torch.testing.assert_close(value[claimed] * factor, truth[claimed], rtol=2e-13, atol=0)


def test_exact_gradient_is_the_derivative():
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        for x, gamma in ((-20, 2), (-3, 2.7), (0.5, 0.5), (7, 5)):

            def loss(v, gamma=gamma):
                p = 1 / (1 + mpmath.exp(-v))
                return -(1 - mpmath.mpf(ALPHA)) * p**gamma * mpmath.log(1 - p)

            slope = mpmath.diff(loss, x)
            assert accuracy.exact(x, False, gamma)[1] == pytest.approx(float(slope), rel=1e-12)


@pytest.mark.parametrize("form", ("ids", "dense"))
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", ("none", "sum"))  # two kernels: recomputed in backward, single pass
def test_hard_targets(device, gamma, form, reduction):
    x = grid()
    for positive in (False, True):
        loss, grad = true_hard(x, positive, gamma)
        inputs = x[:, None].to(device)
        got_loss, got_grad = run(inputs, targets_for(inputs, positive, form), gamma, reduction=reduction)
        what = f"target {int(positive)}, gamma {gamma}"
        if reduction == "none":
            assert_within(got_loss[:, 0], loss, bound(x, gamma) * loss.abs(), x, f"loss, {what}")
        else:
            assert got_loss.item() == pytest.approx(loss.sum().item(), rel=(1 + gamma) * 1e-5)
        assert_within(got_grad[:, 0], grad, bound(x, gamma) * grad.abs(), x, f"gradient, {what}")


@pytest.mark.parametrize("gamma", (0.0, 0.5, 2.0, 2.7))
def test_rows_of_many_classes(device, gamma):
    """The vector body, its tail and the patched positive of class-id rows: 37 classes."""
    x = grid()
    x = x[: len(x) // 37 * 37].reshape(-1, 37)
    ids = torch.arange(len(x)) % 39 - 1  # -1 and 37 are background
    positive = ids[:, None] == torch.arange(37)
    negatives, positives = true_hard(x, False, gamma), true_hard(x, True, gamma)
    loss, grad = (torch.where(positive, a, b).flatten() for a, b in zip(positives, negatives, strict=True))
    got_loss, got_grad = run(x.to(device), ids.to(device), gamma)
    flat = x.flatten()
    assert_within(got_loss.flatten(), loss, bound(flat, gamma) * loss.abs(), flat, "loss")
    assert_within(got_grad.flatten(), grad, bound(flat, gamma) * grad.abs(), flat, "gradient")


@pytest.mark.parametrize("form", ("ids", "dense"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("gamma", GAMMAS)
def test_half_inputs(device, gamma, dtype, form):
    """1e-4 before the gradient is rounded to its storage: half a unit in the last place on top of it."""
    x = grid(dtype)
    for positive in (False, True):
        loss, grad = true_hard(x, positive, gamma)
        inputs = x[:, None].to(device)
        targets = targets_for(inputs, positive, form)
        with torch.autocast(device, dtype=torch.bfloat16):  # the fp32 loss of every element
            each = ik.sigmoid_focal_loss(inputs, targets, ALPHA, gamma)
        assert each.dtype == torch.float32
        what = f"target {int(positive)}, gamma {gamma}"
        assert_within(each[:, 0].double().cpu(), loss, 1e-4 * loss.abs(), x, f"loss, {what}")
        total, got = run(inputs, targets, gamma, reduction="sum")
        assert total.item() == pytest.approx(loss.sum().item(), rel=1e-4)
        info = torch.finfo(dtype)
        exponent = torch.floor(torch.log2((grad.abs() * (1 + 1e-4)).clamp(min=info.tiny)))
        half_ulp = torch.exp2(exponent) * info.eps / 2
        # Nothing is said about values that are subnormal, or too small, in the storage type.
        stored = torch.where(grad.abs() >= info.tiny, grad, 0.0)
        assert_within(got[:, 0], stored, 1e-4 * grad.abs() + half_ulp, x, f"gradient, {what}")


@pytest.mark.parametrize("smoothing", (0.0, 1e-3, 0.1, 1.0))
@pytest.mark.parametrize("gamma", GAMMAS)
def test_soft_targets_and_smoothing(device, gamma, smoothing):
    x = grid()[::4]
    for value in (0.0, 1e-6, 0.1, 0.25, 0.5, 0.9, 1 - 1e-6, 1.0):
        t = torch.full_like(x, value)
        loss, grad, magnitude = true_soft(x, t, gamma, smoothing)
        inputs, targets = x[:, None].to(device), t[:, None].to(device)
        got_loss, got_grad = run(inputs, targets, gamma, alpha=-1, label_smoothing=smoothing)
        what = f"target {value}, gamma {gamma}, smoothing {smoothing}"
        assert_within(got_loss[:, 0], loss, bound(x, gamma) * loss.abs(), x, f"loss, {what}")
        assert_within(got_grad[:, 0], grad, bound(x, gamma) * magnitude, x, f"gradient, {what}")


@pytest.mark.parametrize("smoothing", (1e-3, 0.1))
@pytest.mark.parametrize("gamma", (0.0, 0.5, 2.0, 2.7))
def test_smoothed_class_ids(device, gamma, smoothing):
    x = grid()[::2]
    for positive in (False, True):
        loss, grad, magnitude = true_soft(x, torch.full_like(x, float(positive)), gamma, smoothing)
        inputs = x[:, None].to(device)
        targets = targets_for(inputs, positive, "ids")
        got_loss, got_grad = run(inputs, targets, gamma, alpha=-1, label_smoothing=smoothing)
        assert_within(got_loss[:, 0], loss, bound(x, gamma) * loss.abs(), x, f"loss, target {int(positive)}")
        assert_within(got_grad[:, 0], grad, bound(x, gamma) * magnitude, x, f"gradient, target {int(positive)}")


@pytest.mark.parametrize("gamma", accuracy.GAMMAS)
def test_softmax(device, gamma):
    """Loss and all gradients of a row against 50 digits, by every instruction set."""
    for edge, bound in accuracy.BANDS:
        for error in accuracy.softmax_errors(gamma)["ours"]:
            assert error[accuracy.logits().abs() <= edge].max() <= (1 + gamma) * bound


NUMBER = re.compile(r"(?<=\| )(?:\d\.\de[-+]\d\d|NaN)(?= \|)")


def test_document_is_current():
    """Same tables, and digits as far as they carry over: peers to a factor of 3, ours by the bound beside it."""
    pytest.importorskip("mpmath")
    try:
        peers.torchvision_focal_loss()
    except ImportError:
        pytest.skip("torchvision is not installed")
    written, now = DOC.read_text().splitlines(), accuracy.report().splitlines()
    versions = re.compile(r"with torch \S+, instruction set \w+")
    assert [versions.sub("", NUMBER.sub("#", line)) for line in written] == [
        versions.sub("", NUMBER.sub("#", line)) for line in now
    ], "run `python -m bench.accuracy --write docs/accuracy.md`"
    for before, after in zip(written, now, strict=True):
        columns = list(zip(*map(NUMBER.findall, (before, after)), strict=True))
        for index, (old, new) in enumerate(columns):
            if len(columns) in (len(accuracy.IMPLEMENTATIONS) + 1, len(accuracy.SOFTMAX) + 1) and index == 1:
                limit = float(columns[0][0])  # our bound
                assert float(old) <= limit and float(new) <= limit, before
            elif len(columns) == 6:  # two bands of bound, loss, gradient
                limit = float(columns[index // 3 * 3][0])
                assert float(old) <= limit and float(new) <= limit, before
            elif "NaN" in (old, new):
                assert old == new, f"{before}\n{after}"
            elif float(old) > 1e-5:
                assert float(old) / 3 <= float(new) <= float(old) * 3, f"{before}\n{after}"
