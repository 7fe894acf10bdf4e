"""The devices tests run on, the formula they hold the losses to, and the way they compare with it."""

import os
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from imbal_kernels.ops import backends

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_configure(config):
    if os.environ.get("IMBAL_REQUIRE_CUDA", "0") not in ("", "0") and "cuda" not in DEVICES:
        raise pytest.UsageError("IMBAL_REQUIRE_CUDA is set but torch finds no GPU")


def pytest_collection_modifyitems(items):
    """What takes minutes comes first: a worker that begins it last would end alone."""
    items.sort(key=lambda item: "test_interpreter.py" not in item.nodeid)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=["portable", "avx2", "avx512", *DEVICES[1:]])
def backend(request):
    """The device of each kernel: every instruction set this machine has, and its GPU."""
    if request.param == "cuda":
        yield "cuda"
        return
    if backends.MISSING["cpu"]:
        pytest.skip(backends.MISSING["cpu"])
    select = torch.ops.imbal_kernels._cpu_capability
    before = select("")
    try:
        select(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield "cpu"
    select(before)


@pytest.fixture
def on_threads():
    """on_threads(numbers, make): what make returns with each of these numbers of threads."""
    before = torch.get_num_threads()

    def each(numbers, make):
        results = []
        for number in numbers:
            torch.set_num_threads(number)
            results.append(make())
        return results

    yield each
    torch.set_num_threads(before)


class Exact(NamedTuple):
    """Loss and gradient of each element in fp64; `terms` sums the magnitudes of the gradient's terms."""

    loss: Tensor
    grad: Tensor
    terms: Tensor


def _exact(x, t, *, alpha=0.25, gamma=2.0, weight=1.0, pos_weight=1.0, label_smoothing=0.0):
    """The definition in design.md written out, without autograd and without a sum that cancels."""
    x, t = x.detach().double(), t.double()
    weight, pos_weight, alpha = (v.double() if isinstance(v, Tensor) else v for v in (weight, pos_weight, alpha))
    e = torch.exp(-x.abs())
    p = torch.where(x > 0, 1, e) / (1 + e)
    q = torch.where(x > 0, e, 1) / (1 + e)
    positive = pos_weight * (t * (1 - label_smoothing) + label_smoothing / 2)
    negative = (1 - t) * (1 - label_smoothing) + label_smoothing / 2
    b = positive * ((-x).clamp(min=0) + torch.log1p(e)) + negative * (x.clamp(min=0) + torch.log1p(e))
    k = t * q + (1 - t) * p
    if isinstance(alpha, Tensor):
        alpha_t = torch.where(alpha < 0, 1.0, alpha * t + (1 - alpha) * (1 - t))
    else:
        alpha_t = 1.0 if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    w = weight * alpha_t
    slope = gamma * k ** (gamma - 1) * p * q * b * (1 - 2 * t) if gamma else 0 * x
    grad = w * (k**gamma * (negative * p - positive * q) + slope)
    terms = abs(w) * (k**gamma * (negative * p + positive * q) + abs(slope))
    return Exact(w * k**gamma * b, grad, terms)


@pytest.fixture(scope="session")
def exact():
    return _exact


def _bound(gamma, dtype=torch.float32, largest=20):
    """design.md's bound on the relative error; for half inputs of an fp32 result."""
    if dtype == torch.float64:
        return 1e-12
    if dtype != torch.float32:
        return 1e-4
    return (1 + gamma) * (1.5e-6 if largest <= 20 else 1e-5)


@pytest.fixture(scope="session")
def bound():
    return _bound


def _assert_within(actual, expected, tolerance, terms=None):
    """|actual - expected| <= tolerance * terms, plus half a step of the dtype the result is stored in."""
    expected = expected.double()
    info = torch.finfo(actual.dtype)
    allowed = tolerance * (expected.abs() if terms is None else terms)
    allowed = allowed + expected.abs() * info.eps / 2 + info.smallest_normal * info.eps
    if actual.dtype in (torch.float32, torch.bfloat16):
        allowed = allowed + info.smallest_normal  # the bound holds for normal fp32 numbers
    error = (actual.double() - expected).abs()
    bad = ~(error <= allowed)
    assert actual.shape == expected.shape
    assert not bad.any(), (
        f"{int(bad.sum())} of {bad.numel()} out of bounds: got {actual[bad][:4].tolist()}, "
        f"expected {expected[bad][:4].tolist()}, worst error / allowed {(error / allowed)[bad].max().item():.3g}"
    )


@pytest.fixture(scope="session")
def assert_within():
    return _assert_within
