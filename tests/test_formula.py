"""A formula of the user's own: what it is given, what is checked, and what it shares with the other losses."""

from pathlib import Path

import pytest
import torch

import imbal_kernels as ik


def focal(x, t):
    """gamma = 2, alpha off, from stable parts."""
    softplus = torch.nn.functional.softplus
    k = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
    return k**2 * (t * softplus(-x) + (1 - t) * softplus(x))


FOCAL = ik.Formula(focal)
OPTIONS = {
    "none": {},
    "weights": {"weight": torch.rand(30, 1, generator=torch.Generator().manual_seed(1)), "reduction": "sum"},
    "mean": {"reduction": "mean", "ignore_index": 3},
    "positives": {"reduction": "sum", "normalizer": "positives", "loss_weight": 2.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("targets", ["ids", "dense"])
@pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_gets_all_that_focal_loss_has(dtype, functions, targets, options, device):
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()
    ids = (torch.arange(30) % 7 - 1).to(device)
    t = ids if targets == "ids" else torch.rand(30, 5, generator=torch.Generator().manual_seed(2)).to(device)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    loss = functions.elementwise_loss(FOCAL, x, t, **options)
    expected = ik.reference.sigmoid_focal_loss(x, t, -1, 2.0, **options)
    assert loss.dtype == expected.dtype
    # Summed, and near 0, where this formula is less exact than ours.
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (loss, expected)))


def test_scores_are_the_targets_it_sees(device):
    x, ids = torch.randn(6, 3, device=device), torch.tensor([0, 1, 2, -1, 3, 0], device=device)
    scores = torch.rand(6, device=device)
    seen = []

    def spy(x, t):
        seen.append(t.clone())
        return x * 0

    spy = ik.Formula(spy)
    ik.elementwise_loss(spy, x, ids, scores=scores)
    expected = torch.nn.functional.one_hot(ids.clamp(0), 4)[:, :3] * scores[:, None]
    expected[3] = 0
    torch.testing.assert_close(seen[-1], expected)


@pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
def test_gradcheck(functions, device):
    x = torch.randn(6, 3, device=device, dtype=torch.float64, requires_grad=True)
    t = torch.rand(6, 3, device=device, dtype=torch.float64)
    for reduction in ("none", "mean"):

        def loss(x, reduction=reduction):
            return functions.elementwise_loss(FOCAL, x, t, reduction)

        assert torch.autograd.gradcheck(loss, x) and torch.autograd.gradgradcheck(loss, x)


def test_check_passes(device):
    FOCAL.check(device)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ik.Formula(lambda x, t: bce(x, t, reduction="none")).check(device)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x, t: (x - t).sum(), r"the formula must return a loss of x's dtype and shape, .* \(75,\), got"),
        (lambda x, t: 3.0, r"the formula must return a loss of x's dtype and shape, .* got float"),
        (lambda x, t: (x.detach() - t) ** 2, "the formula's loss has no gradient by x"),
        (lambda x, t: torch.softmax(x, 0) * t, "the formula's elements mix: it gives another loss where"),
        (lambda x, t: (x - t) - (x - t).cumsum(0) * 0.1, "the formula's elements mix: it gives another loss where"),
        (lambda x, t: torch.sigmoid(x.detach()) * x, "the formula's gradient is not its slope: .* at x = "),
        (lambda x, t: (x - t) / (x - x), "the formula's elements mix: .* left out: (nan|-?inf) and"),
    ],
)
def test_check_fails(function, message):
    with pytest.raises(ValueError, match=message):
        ik.Formula(function).check()


def test_triton_must_be_a_jit_function_of_two():
    triton = pytest.importorskip("triton")

    def three(x, t, gamma):
        return x, t

    with pytest.raises(ValueError, match="triton must take two arguments, logit and target, got"):
        ik.Formula(focal, triton.jit(three))


def test_the_example_runs(capsys, monkeypatch):
    """Poly-1 focal loss: its twins are compared in tests/kernels/interpreted, and its value here with focal loss."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import poly1_focal

    poly1_focal.main()
    assert capsys.readouterr().out.startswith("loss ")
    x, t = torch.randn(50, 3, dtype=torch.float64), torch.randint(0, 2, (50, 3)).double()
    p_t = torch.where(t == 1, torch.sigmoid(x), torch.sigmoid(-x))
    expected = ik.sigmoid_focal_loss(x, t, -1, 2.0) + (1 - p_t) ** 3
    torch.testing.assert_close(ik.elementwise_loss(poly1_focal.POLY1_FOCAL, x, t), expected)
