"""Quality focal, varifocal and asymmetric loss against 50 digits: ours and the reference, fp32, fp64 and half.

The bound is (1 + exponent) * 1.5e-6 for |x| <= 20 and (1 + exponent) * 1e-5 for |x| <= 80, relative to the value
for hard targets and to the magnitudes of its terms (bench/truth.py) where p - t or p - clip cancel.
"""

import functools
import math

import pytest
import torch

import imbal_kernels as ik
from bench import accuracy_family, truth
from bench.accuracy import FLOAT
from imbal_kernels.ops import backends

pytest.importorskip("mpmath")
select = torch.ops.imbal_kernels._cpu_capability
TARGETS = (0.0, 1e-3, 0.25, 0.5, 0.9, 1.0)


def grid():
    """-80 to 80 with odd bits, denser near 0; away from where p meets a target, in 1 of a thousand."""
    wide, near = torch.linspace(-80, 80, 161), torch.linspace(-6, 6, 81) * math.pi / 3
    return torch.cat([wide, near, torch.tensor([1e-20, -1e-20, 0.0, -12.0, -16.0])])


@pytest.fixture(params=["portable", "avx2", "avx512", "cuda"])
def device(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        yield "cuda"
        return
    if backends.MISSING["cpu"]:
        pytest.skip("no compiled library")
    before = select("")
    try:
        select(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield "cpu"
    select(before)


@functools.cache
def exact(name, t, dtype=torch.float32):
    x = grid().to(dtype)
    rows = [accuracy_family.LOSSES[name].exact(v, t) for v in x.tolist()]
    return x, torch.tensor(rows, dtype=torch.float64).T


def run(name, functions, x, t, **options):
    loss_of = accuracy_family.LOSSES[name].ours
    x = x[:, None].detach().requires_grad_()
    loss = loss_of(functions, x, torch.full_like(x, t, dtype=options.pop("targets", torch.float64)), **options)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return (v.detach().double().flatten().cpu() for v in (loss, grad))


def assert_within(got, true, terms, x, relative, what, largest=FLOAT.max, smallest=FLOAT.tiny):
    """Where the terms are normal numbers of fp32."""
    normal = (terms >= smallest) & (terms <= largest)
    excess = torch.where(normal, ((got - true).abs() / (relative * terms)).nan_to_num(nan=math.inf), 0.0)
    worst = int(excess.argmax())
    assert excess[worst] <= 1, f"{what}: {excess[worst]:.3g} of the bound at x = {x[worst].item()}, {got[worst]}"


@pytest.mark.parametrize("t", TARGETS)
@pytest.mark.parametrize("name", accuracy_family.LOSSES)
def test_reference_in_fp64(name, t):
    """1e-12 of the terms: what fp64 rounds, times exponents and a loss of 80."""
    x, (loss, grad, loss_terms, grad_terms) = exact(name, t)
    got, got_grad = run(name, ik.reference, x.double(), t)
    assert_within(got, loss, loss_terms, x, 1e-12, "loss", 1e300, 1e-290)
    assert_within(got_grad, grad, grad_terms, x, 1e-12, "gradient", 1e300, 1e-290)


@pytest.mark.parametrize("t", TARGETS)
@pytest.mark.parametrize("name", accuracy_family.LOSSES)
def test_fp32(name, t, device):
    x, (loss, grad, loss_terms, grad_terms) = exact(name, t)
    got, got_grad = run(name, ik, x.to(device), t)
    bound = accuracy_family.bound(x, accuracy_family.LOSSES[name].exponent)
    assert_within(got, loss, loss_terms, x, bound, "loss")
    assert_within(got_grad, grad, grad_terms, x, bound, "gradient")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", accuracy_family.LOSSES)
def test_half(name, t, dtype, device):
    """1e-4 of the terms in the loss, which is fp32; the gradient is rounded to its dtype on top of that."""
    x, (loss, grad, loss_terms, grad_terms) = exact(name, t, dtype)
    factor = 1 + accuracy_family.LOSSES[name].exponent * (t not in (0, 1) or "asymmetric" in name)
    with torch.autocast(device, torch.bfloat16):
        got, got_grad = run(name, ik, x.to(device), t)
    assert_within(got, loss, loss_terms, x, 1e-4 * factor, "loss")
    info = torch.finfo(dtype)
    got_grad = torch.where((got_grad - grad).abs() <= grad.abs() * info.eps / 2 + info.smallest_normal, grad, got_grad)
    assert_within(got_grad, grad, grad_terms, x, 1e-4 * factor + info.eps, "gradient", smallest=info.smallest_normal)


def test_exact_gradients_are_derivatives():
    mpmath = pytest.importorskip("mpmath")
    for name, loss in accuracy_family.LOSSES.items():
        for x, t in ((-3.0, 0.0), (-0.7, 0.25), (1.3, 1.0), (2.0, 0.6)):
            with mpmath.workdps(30):
                slope = mpmath.diff(lambda v, loss=loss, t=t: mpmath.mpf(loss.exact(float(v), t).loss), x, h=1e-4)
            assert loss.exact(x, t).grad == pytest.approx(float(slope), rel=1e-5, abs=1e-9), (name, x, t)


def test_truth_of_hard_targets_is_focal():
    """The same maths as bench.accuracy's focal loss, written by itself."""
    from bench.accuracy import exact as focal

    for x in (-20.0, -3.0, 0.5, 7.0):
        assert truth.quality_focal(x, 0.0, 2.0)[:2] == pytest.approx(focal(x, False, 2.0, 0.0), rel=1e-14)
        assert truth.quality_focal(x, 1.0, 2.0)[:2] == pytest.approx(focal(x, True, 2.0, 1.0), rel=1e-14)
        assert truth.asymmetric(x, 0.0, 3.0, 1.0, 0.0)[:2] == pytest.approx(focal(x, False, 3.0, 0.0), rel=1e-14)
