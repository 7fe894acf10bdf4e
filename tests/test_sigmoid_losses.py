"""All the sigmoid losses: contracts, against the reference in fp64 and each other.

The reference itself is held to 50 digits in test_accuracy_family.py.
"""

import math

import pytest
import torch

import imbal_kernels as ik

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BOTH = pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
INF, NAN = math.inf, math.nan
LOSSES = {
    "focal": ("sigmoid_focal_loss", {"alpha": 0.25}),
    "quality": ("quality_focal_loss", {}),
    "quality 1": ("quality_focal_loss", {"beta": 1.0}),
    "quality 2.5": ("quality_focal_loss", {"beta": 2.5}),
    "quality 3.3": ("quality_focal_loss", {"beta": 3.3}),
    "varifocal": ("varifocal_loss", {}),
    "varifocal 0": ("varifocal_loss", {"alpha": 2.0, "gamma": 0.0}),
    "varifocal 1.3": ("varifocal_loss", {"alpha": 0.3, "gamma": 1.3}),
    "asymmetric": ("asymmetric_loss", {}),
    "asymmetric no clip": ("asymmetric_loss", {"clip": 0.0, "gamma_neg": 2.0, "gamma_pos": 0.0}),
    "asymmetric halves": ("asymmetric_loss", {"clip": 0.2, "gamma_neg": 1.5, "gamma_pos": 0.5}),
    "asymmetric odd": ("asymmetric_loss", {"clip": 0.1, "gamma_neg": 0.3, "gamma_pos": 1.7}),
}
EACH = pytest.mark.parametrize("name", LOSSES)
NAMES_AND_TARGETS = [(name, kind) for name in LOSSES for kind in ("dense", "ids", "scores")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(shape, device="cpu", dtype=torch.float32):
    return (torch.randn(shape, generator=seeded()) * 4).clamp(-20, 20).to(device, dtype).requires_grad_()


def one_hot(ids, classes):
    return (ids[..., None].long() == torch.arange(classes, device=ids.device)).double()


def run(name, x, t, functions=ik, **options):
    function, own = LOSSES[name]
    loss = getattr(functions, function)(x, t, **own, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def close(got, expected, dtype, scale=1.0):
    """p - t and p - clip cancel: an error of p, 1e-6, is that of the difference, times the exponents and a loss
    of up to 20; half inputs are 1e-4 relative and rounded to their dtype."""
    half = torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0.0
    rtol, atol = {torch.float64: (1e-11, 1e-13), torch.float32: (2e-5, 1e-5)}.get(dtype, (2e-4 + half, 1e-3))
    torch.testing.assert_close(got.double(), expected.double(), rtol=rtol, atol=atol * scale, equal_nan=True)


def check(name, x, t, values, dtype=None, ours=None, **options):
    """Ours on `t` against the reference in fp64 on the same targets as values."""
    wide = x.detach().double().requires_grad_()
    options64 = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    loss, grad = run(name, x, t, **(ours or {}), **options)
    expected, expected_grad = run(name, wide, values.double(), ik.reference, **options64)
    scale = max(1.0, expected.abs().max().item()) if loss.dim() == 0 else 1.0
    close(loss, expected, x.dtype if loss.dim() else torch.promote_types(x.dtype, torch.float32), scale)
    close(grad, expected_grad, x.dtype)


@pytest.mark.parametrize("kind", ["soft", "hard", "bool", "int"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EACH
def test_dense_targets(name, dtype, kind, device):
    t = torch.rand(37, 11, generator=seeded(1))
    t[:, 0], t[:, 1] = 0, 1
    t = {"soft": t, "hard": t.round(), "bool": t > 0.5, "int": t.round().int()}[kind].to(device)
    check(name, logits((37, 11), device, dtype), t, t)


@pytest.mark.filterwarnings("ignore:targets without the class dimension")
@pytest.mark.parametrize("classes", [1, 2, 3, 16, 21, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH
def test_class_ids(name, dtype, classes, device):
    ids = torch.randint(-1, classes + 1, (53,), generator=seeded(1)).to(device)
    check(name, logits((53, classes), device, dtype), ids, one_hot(ids, classes))


@pytest.mark.filterwarnings("ignore:targets without the class dimension")
@pytest.mark.parametrize("classes", [1, 3, 16, 21, 80])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@EACH
def test_scores_are_targets_in_full(name, dtype, classes, device):
    """0 and 1 among them; those of background rows are not read, whatever they hold."""
    ids = torch.randint(-1, classes + 1, (53,), generator=seeded(1)).to(device)
    scores = torch.rand(53, generator=seeded(2)).to(device)
    scores[::5], scores[1::5] = 0, 1
    values = one_hot(ids, classes) * scores[:, None]
    background = (ids < 0) | (ids == classes)
    scores[background] = torch.tensor([NAN, 7.0, -1.0], device=device).repeat(18)[: int(background.sum())]
    for reduction in ("none", "sum"):
        check(name, logits((53, classes), device, dtype), ids, values, ours={"scores": scores}, reduction=reduction)


OPTIONS = {
    "weight per class": {"weight": torch.tensor([0.5, 2, 0, 1, 3])},
    "weight per row": {"weight": torch.rand(41, 1, generator=seeded(3))},
    "weight per element": {"weight": torch.rand(41, 5, generator=seeded(3))},
    "pos_weight": {"pos_weight": torch.tensor([0.5, 9, 0, 1, 3])},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"weight": torch.rand(41, 1, generator=seeded(3)), "pos_weight": torch.rand(5, generator=seeded(4)),
            "label_smoothing": 0.2, "loss_weight": -2.5, "reduction": "mean"},
    "normalizer": {"reduction": "sum", "normalizer": 3.0, "loss_weight": torch.tensor(0.5)},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name, targets", NAMES_AND_TARGETS)
def test_options(name, targets, options, device):
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    ids = torch.randint(-1, 6, (41,), generator=seeded(1)).to(device)
    scores = torch.rand(41, generator=seeded(2)).to(device)
    values = one_hot(ids, 5)
    if targets != "ids":
        values = values * scores[:, None]
    ours = {"scores": scores} if targets == "scores" else {}
    check(name, logits((41, 5), device), values.float() if targets == "dense" else ids, values, ours=ours, **options)


@BOTH
@pytest.mark.parametrize("normalizer", ["positives", "positives_per_image"])
@EACH
def test_positives_are_rows_with_a_class(name, normalizer, functions, device):
    x, ids = logits((3, 19, 5), device), torch.randint(-1, 6, (3, 19), generator=seeded(1)).to(device)
    scores = torch.rand(3, 19, generator=seeded(2)).to(device)
    ids[1, :4] = -100
    kept = (ids != -100)[..., None]
    each, _ = run(name, x, torch.where(kept, one_hot(ids, 5) * scores[..., None], 0), functions)
    sums = (each * kept).flatten(1).sum(1).double()
    positives = ((ids >= 0) & (ids < 5)).sum(1)
    expected = sums.sum() / positives.sum() if normalizer == "positives" else (sums / positives).mean()
    loss, _ = run(name, x, ids, functions, reduction="sum", normalizer=normalizer, scores=scores)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@BOTH
@EACH
def test_ignored_targets_are_silent(name, functions, device):
    """NaN or infinite logits in them reach nothing."""
    x = logits((60, 5), device)
    ids = torch.randint(-1, 6, (60,), generator=seeded(1)).to(device)
    ids[::7] = 2
    ignored = ids == 2
    clean = torch.where(ignored[:, None], 0.0, x).detach().requires_grad_()
    expected = run(name, clean, ids, functions, weight=(~ignored)[:, None].float())
    with torch.no_grad():
        x[ignored] = torch.tensor([NAN, INF, -INF, 1e38, 0.0], device=device)
    for got, true in zip(run(name, x, ids, functions, ignore_index=2), expected, strict=True):
        close(got, true, torch.float32)
        assert not got[ignored].any()
    dense = torch.where(ignored[:, None], -7.0, one_hot(ids, 5).float())
    for got, true in zip(run(name, x, dense, functions, ignore_index=-7), expected, strict=True):
        close(got, true, torch.float32)
        assert not got[ignored].any()


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EACH
def test_infinite_and_large_logits(name, dtype, functions, device):
    """The limits, and a NaN only where one goes in."""
    x = torch.tensor([NAN, INF, -INF, 200.0, -200.0], dtype=dtype, device=device)[:, None].repeat(1, 4)
    x.requires_grad_()
    t = torch.tensor([0.0, 1.0, 0.5, 0.25], device=device).expand(5, 4)
    loss, grad = run(name, x, t, functions)
    assert torch.equal(loss.isnan(), x.isnan()) and torch.equal(grad.isnan(), x.isnan())
    function, own = LOSSES[name]
    if function == "asymmetric_loss" and own.get("clip", 0.05) > 0:
        far = torch.full((2,), -math.log(own.get("clip", 0.05)), device=device).to(dtype)
        rtol = 3 * max(torch.finfo(dtype).eps, 1e-6)  # a logarithm of fp32's rounding, and of the dtype's
        expected = far * (1 - own.get("clip", 0.05)) ** own.get("gamma_neg", 4.0)
        torch.testing.assert_close(loss[[1, 3], 0], expected, rtol=rtol, atol=0)
        assert (grad[[1, 3], 0] <= 1e-80).all() and (loss[[2, 4], 0] == 0).all() and (grad[[2, 4], 0] == 0).all()
    else:
        factor = own.get("alpha", 0.75) if function == "varifocal_loss" else 0.75 if name == "focal" else 1.0
        expected = torch.tensor([INF, 200 * factor], device=device, dtype=dtype)
        torch.testing.assert_close(loss[[1, 3], 0], expected)
        torch.testing.assert_close(grad[[1, 3], 0], torch.full((2,), factor, device=device, dtype=dtype))
    positive = 0.25 if name == "focal" else 1.0
    assert (loss[[1], 1] == 0).all() and loss[2, 1] == INF and grad[2, 1] == -positive and grad[4, 1] == -positive


@pytest.mark.parametrize("object_at", (None, 5, 900))
def test_an_alpha_of_0_silences_an_infinite_loss(object_at, device):
    """Of varifocal loss's background, beside an object or far from one."""
    x = torch.full((1024, 4), -3.0, device=device)
    x[5, 1] = INF
    x.requires_grad_()
    t = torch.zeros(1024, 4, device=device)
    if object_at is not None:
        t[object_at, 0] = 1
    loss, grad = run("varifocal", x, t, alpha=0.0)
    expected = t * math.log1p(math.exp(3))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ik.varifocal_loss(x, t, alpha=0.0, reduction="sum"), expected.sum())
    assert ((grad != 0) == (t != 0)).all()


def test_hard_positives_keep_their_gradient(device):
    """At x = -50, p = 2e-22; a logarithm cut off at 1e-8 leaves none."""
    x = torch.tensor([[-50.0]], device=device, requires_grad=True)
    loss, grad = run("asymmetric", x, torch.ones(1, 1, device=device))
    assert loss.item() == 50 and grad.item() == -1


def test_varifocal_positives_weigh_their_target(device):
    x = logits((31, 3), device, torch.float64)
    t = torch.rand(31, 3, generator=seeded(1)).to(device, torch.float64)
    _, grad = run("varifocal", x, t)
    torch.testing.assert_close(grad, t * (torch.sigmoid(x.detach()) - t), rtol=1e-12, atol=1e-15)


SAME = {
    "quality of hard targets is focal": (
        lambda x, t: ik.quality_focal_loss(x, t, 3.0), lambda x, t: ik.sigmoid_focal_loss(x, t, -1, 3.0)),
    "asymmetric without a clip is focal": (
        lambda x, t: ik.asymmetric_loss(x, t, 2.0, 2.0, 0.0), lambda x, t: ik.sigmoid_focal_loss(x, t, -1, 2.0)),
    "asymmetric without anything is bce": (
        lambda x, t: ik.asymmetric_loss(x, t, 0.0, 0.0, 0.0),
        lambda x, t: ik.binary_cross_entropy_with_logits(x, t, reduction="none")),
    "varifocal without focus is bce": (
        lambda x, t: ik.varifocal_loss(x, t, 1.0, 0.0),
        lambda x, t: ik.binary_cross_entropy_with_logits(x, t, reduction="none")),
}  # fmt: skip


@BOTH
def test_scores_of_binary_cross_entropy(functions, device):
    """YOLOv8's: each object's overlap is the target of its class."""
    x, ids = logits((41, 5), device), torch.randint(-1, 6, (41,), generator=seeded(1)).to(device)
    scores = torch.rand(41, generator=seeded(2)).to(device)
    values = one_hot(ids, 5).float() * scores[:, None]
    got = functions.binary_cross_entropy_with_logits(x, ids, scores=scores)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, values)
    torch.testing.assert_close(got, expected)
    for one, other in zip(torch.autograd.grad(got, x), torch.autograd.grad(expected, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)  # p - t cancels


@pytest.mark.parametrize("targets", ["ids", "dense"])
@pytest.mark.parametrize("ours, other", SAME.values(), ids=SAME)
def test_special_cases(ours, other, targets, device):
    x, ids = logits((41, 5), device), torch.randint(-1, 6, (41,), generator=seeded(1)).to(device)
    t = ids if targets == "ids" else one_hot(ids, 5).float()
    results = ((f(x, t), torch.autograd.grad(f(x, t).sum(), x)[0]) for f in (ours, other))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=5e-6, atol=1e-30)


@BOTH
@EACH
def test_empty_and_nothing_counted(name, functions, device):
    x = torch.zeros(0, 5, device=device, requires_grad=True)
    ids = torch.zeros(0, device=device, dtype=torch.long)
    assert run(name, x, ids, functions)[0].shape == (0, 5)
    assert run(name, x, ids, functions, reduction="sum")[0] == 0
    x, ids = torch.ones(3, 5, device=device, requires_grad=True), torch.full((3,), -100, device=device)
    mean, grad = run(name, x, ids, functions, reduction="mean")
    assert mean.isnan() and (grad == 0).all()


@pytest.mark.parametrize("name, targets", NAMES_AND_TARGETS)
def test_same_bits_for_any_number_of_threads(name, targets, device, on_threads):
    x = logits((20_021, 7), device)
    ids = torch.arange(20_021, device=device) % 9 - 1
    scores = torch.rand(20_021, generator=seeded()).to(device)
    t = torch.rand(20_021, 7, generator=seeded()).to(device) if targets == "dense" else ids
    options = {"scores": scores} if targets == "scores" else {}
    results = on_threads((1, 2, 3), lambda: run(name, x, t, reduction="mean", **options))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
@pytest.mark.parametrize("value", [1.5, -0.1, NAN, INF])
@EACH
def test_bad_scores(name, value, functions, reduction, device):
    """On a CPU an error with the row; on a GPU, and in the reference, NaN for the row alone."""
    x, ids = logits((5, 3), device), torch.tensor([0, -1, 2, 1, 0], device=device)
    scores = torch.tensor([0.5, 0.5, value, 1.0, 0.0], device=device)
    if device == "cpu" and functions is ik:
        with pytest.raises(ValueError, match=r"score .* at row 2 is out of range: scores must be in \[0, 1\]"):
            run(name, x, ids, functions, reduction=reduction, scores=scores)
        return
    loss, _ = run(name, x, ids, functions, reduction=reduction, scores=scores)
    if reduction == "sum":
        assert loss.isnan()
    else:
        assert loss[2].isnan().any() and not loss[[0, 1, 3, 4]].isnan().any()


X = torch.tensor([[-3.0, -0.4, 0.7], [0.1, 2.5, -1.3], [6.0, -6.0, 0.2], [0.9, -2.2, 1.1]], dtype=torch.float64)
SOFT = torch.tensor([[0.1, 0.9, 0.5], [0, 1, 0.3], [0.8, 0.2, 0.6], [0.4, 0.7, 0.15]], dtype=torch.float64)
IDS = torch.tensor([1, -1, -100, 2])
SCORES = torch.tensor([0.6, 0.2, 0.3, 0.9], dtype=torch.float64)
GRADIENTS = {
    "soft": (SOFT, {}),
    "hard": (SOFT.round(), {"reduction": "mean"}),
    "ids": (IDS, {"weight": torch.tensor([[0.5], [2.0], [1.0], [0.0]], dtype=torch.float64)}),
    "everything": (SOFT, {"pos_weight": torch.tensor([0.2, 1.7, 3.0], dtype=torch.float64), "label_smoothing": 0.2,
                          "reduction": "sum", "normalizer": 3.0, "loss_weight": 2.0}),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("case", GRADIENTS)
@EACH
def test_gradcheck(name, case, functions, device):
    function, own = LOSSES[name]
    t, options = GRADIENTS[case]
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    x = X.to(device).requires_grad_()

    def loss(x):
        return getattr(functions, function)(x, t.to(device), **own, **options)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x, fast_mode=True)


@BOTH
@EACH
def test_gradcheck_with_scores(name, functions, device):
    """By the logits, and by scores that require grad."""
    function, own = LOSSES[name]
    x, scores = X.to(device).requires_grad_(), SCORES.to(device)

    def loss(x, scores):
        return getattr(functions, function)(x, IDS.to(device), **own, scores=scores, reduction="mean")

    assert torch.autograd.gradcheck(loss, (x, scores))
    assert torch.autograd.gradgradcheck(loss, (x, scores), fast_mode=True)
    assert torch.autograd.gradcheck(loss, (x, scores.requires_grad_()))


@BOTH
@EACH
def test_targets_that_require_grad(name, functions, device):
    function, own = LOSSES[name]
    x, t = X.to(device).requires_grad_(), SOFT.clamp(0.05, 0.95).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: getattr(functions, function)(x, t, **own), (x, t))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EACH
def test_backward_twice(name, dtype, device):
    function, own = LOSSES[name]
    x, t = logits((57, 5), device, dtype), torch.rand(57, 5, generator=seeded(1)).to(device)
    for reduction in ("none", "mean"):
        loss = getattr(ik, function)(x, t, **own, reduction=reduction)
        upstream = torch.full_like(loss, 2.5)
        first, second = (torch.autograd.grad(loss, x, upstream, retain_graph=True)[0].clone() for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EACH
def test_result_dtype(name, dtype, device):
    """A reduced loss of half inputs is fp32, and any loss under autocast."""
    x, t = logits((5, 3), device, dtype), torch.zeros(5, 3, device=device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert run(name, x, t)[0].dtype == dtype
    assert run(name, x, t, reduction="mean")[0].dtype == wide
    with torch.autocast(device, torch.bfloat16):
        assert run(name, x, t)[0].dtype == wide
