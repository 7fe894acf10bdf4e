"""The contracts of the losses, against the formula written out in fp64 in conftest.py."""

import pytest
import torch

import imbal_kernels as ik

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GAMMAS = [0, 0.5, 1, 2, 3, 2.7, 5]
BOTH = pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
INF, NAN = float("inf"), float("nan")


def logits(shape, device="cpu", dtype=torch.float32, seed=0, scale=4):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x.clamp(-20, 20).to(device, dtype).requires_grad_()


def one_hot(ids, classes):
    return (ids[..., None].long() == torch.arange(classes, device=ids.device)).double()


def run(x, t, functions=ik, **options):
    loss = functions.sigmoid_focal_loss(x, t, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def check(x, t, values, exact, assert_within, bound, ours=None, **options):
    """Loss and gradient of ours on targets `t` against the formula on the same targets as `values`."""
    loss, grad = run(x, t, **(ours or {}), **options)
    expected = exact(x, values, **options)
    tolerance = bound(options.get("gamma", 2), x.dtype)
    assert_within(loss, expected.loss, tolerance)
    assert_within(grad, expected.grad, tolerance, expected.terms)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, -1, 0.0, 1.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.int64])
def test_dense_targets(kind, alpha, gamma, device, exact, assert_within, bound):
    x = logits((37, 11), device)
    t = (torch.rand(37, 11, generator=torch.Generator().manual_seed(1)) < 0.4).to(device, kind)
    check(x, t, t, exact, assert_within, bound, alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_targets(dtype, label_smoothing, gamma, device, exact, assert_within, bound):
    x = logits((37, 11), device, dtype)
    t = torch.rand(37, 11, generator=torch.Generator().manual_seed(1)).to(device)
    t[:, 0], t[:, 1] = 0, 1
    check(x, t, t, exact, assert_within, bound, gamma=gamma, label_smoothing=label_smoothing)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [1, 2, 3, 8, 80, 91])
def test_class_ids(classes, kind, gamma, device, exact, assert_within, bound):
    x = logits((53, classes), device)
    ids = torch.randint(-1, classes + 1, (53,), generator=torch.Generator().manual_seed(1)).to(device, kind)
    ids[3], ids[4] = -1, classes
    check(x, ids, one_hot(ids, classes), exact, assert_within, bound, gamma=gamma)


@pytest.mark.parametrize("largest", [20, 80])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_over_the_range(dtype, gamma, largest, device, exact, assert_within, bound):
    """Easy negatives at -20, whose gradients are noise in the usual formula, keep theirs."""
    x = torch.linspace(-largest, largest, 4001).to(device, dtype)[:, None].expand(-1, 2).requires_grad_()
    t = torch.tensor([0.0, 1.0], device=device).expand(4001, 2)
    loss, grad = run(x, t, gamma=gamma)
    expected = exact(x, t, gamma=gamma)
    tolerance = bound(gamma, dtype, largest)
    assert_within(loss, expected.loss, tolerance)
    assert_within(grad, expected.grad, tolerance)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_dtype(dtype, reduction, device):
    """A sum over a million anchors overflows fp16: a reduced loss of half inputs is fp32."""
    x = logits((5, 3), device, dtype)
    loss, grad = run(x, torch.zeros_like(x), reduction=reduction)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (loss.dtype, grad.dtype) == (dtype if reduction == "none" else wide, dtype)
    assert loss.shape == (x.shape if reduction == "none" else ())


OPTIONS = {
    "weight per class": {"weight": torch.tensor([0.5, 2, 0, 1, 3])},
    "weight per row": {"weight": torch.rand(41, 1)},
    "weight per element": {"weight": torch.rand(41, 5)},
    "one weight": {"weight": torch.tensor(2.0)},
    "fp64 weight": {"weight": torch.rand(5).double()},
    "pos_weight": {"pos_weight": torch.tensor([0.5, 99, 0, 1, 3])},
    "pos_weight per row": {"pos_weight": torch.rand(41, 1)},
    "alpha per class": {"alpha": torch.tensor([0.1, 0.9, 0, 1, -1])},
    "0-d alpha": {"alpha": torch.tensor(0.3)},
    "all": {"weight": torch.rand(41, 1), "pos_weight": torch.rand(5), "alpha": torch.rand(5), "label_smoothing": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("targets", ["dense", "ids"])
@pytest.mark.parametrize("gamma", [0, 2, 2.7])
def test_weights(gamma, targets, options, device, exact, assert_within, bound):
    x = logits((41, 5), device)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    ids = torch.randint(-1, 6, (41,), generator=torch.Generator().manual_seed(1)).to(device)
    values = one_hot(ids, 5)
    check(x, values.float() if targets == "dense" else ids, values, exact, assert_within, bound, gamma=gamma, **options)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("targets", ["dense", "ids"])
@pytest.mark.parametrize("normalizer", [None, 7.5, torch.tensor(7.5), torch.tensor(8), "positives",
                                        "positives_per_image"], ids=str)  # fmt: skip
@pytest.mark.parametrize("loss_weight", [1.0, -2.5, torch.tensor(0.3)], ids=str)
def test_divisors(loss_weight, normalizer, targets, reduction, functions, device, exact, assert_within, bound):
    x = logits((3, 19, 5), device)
    ids = torch.randint(-1, 6, (3, 19), generator=torch.Generator().manual_seed(1)).to(device)
    ids[0], ids[1, 4:9] = -1, -100  # an image without objects, ignored rows
    kept = (ids != -100)[..., None].expand(3, 19, 5).double()
    values = one_hot(ids, 5)
    t = ids if targets == "ids" else torch.where(kept.bool(), values, -100.0)
    weight = torch.ones(3, 1, 1, device=device, dtype=torch.float64)
    divisor = kept.sum() if reduction == "mean" else 1.0
    if isinstance(normalizer, str):
        positives = (values * kept).flatten(1).sum(1)
        divisor = positives.sum().clamp(min=1)
        if normalizer == "positives_per_image":
            weight, divisor = 1 / positives.clamp(min=1)[:, None, None], 3
    elif normalizer is not None:
        divisor = normalizer
    normalizer, loss_weight, divisor = (
        v.to(device) if isinstance(v, torch.Tensor) else v for v in (normalizer, loss_weight, divisor)
    )
    loss, grad = run(x, t, functions, reduction=reduction, normalizer=normalizer, loss_weight=loss_weight)
    expected = exact(x, values, weight=weight * kept * float(loss_weight) / divisor)
    tolerance = bound(2) + 2e-7  # the divisor is one more factor in fp32
    assert_within(loss, expected.loss.sum(), tolerance)
    assert_within(grad, expected.grad, tolerance)


@BOTH
@pytest.mark.parametrize("targets", ["dense", "ids"])
def test_divisors_in_fp64(targets, functions, device, exact, assert_within, bound):
    """Neither 7 nor 0.3 has an inverse or a value that fp32 holds."""
    x, ids = logits((19, 5), device).double(), (torch.arange(19) % 7 - 1).to(device)
    values = one_hot(ids, 5)
    options = {"reduction": "sum", "normalizer": 7.0, "loss_weight": 0.3}
    loss, grad = run(x, ids if targets == "ids" else values, functions, **options)
    expected = exact(x, values, weight=0.3 / 7)
    assert_within(loss, expected.loss.sum(), bound(2, torch.float64))
    assert_within(grad, expected.grad, bound(2, torch.float64), expected.terms)


@BOTH
@pytest.mark.parametrize("ignore_index", [-100, -1, 5, 0, 3, -2, 255])
def test_ignored_rows_win(ignore_index, functions, device, exact, assert_within, bound):
    """Also at -1 and C, which are background otherwise; NaN or inf logits in them reach nothing."""
    x = logits((60, 5), device)
    ids = torch.randint(-1, 6, (60,), generator=torch.Generator().manual_seed(1)).to(device)
    ids[::7] = ignore_index
    ignored = ids == ignore_index
    with torch.no_grad():
        x[ignored] = torch.tensor([NAN, INF, -INF, 1e38, 0.0], device=device)
    clean = torch.where(ignored[:, None], 0.0, x)
    expected = exact(clean, one_hot(ids, 5), weight=(~ignored)[:, None].double())
    for reduction, divisor in (("none", 1), ("sum", 1), ("mean", 5 * int((~ignored).sum()))):
        loss, grad = run(x, ids, functions, reduction=reduction, ignore_index=ignore_index)
        total = expected.loss if reduction == "none" else expected.loss.sum() / divisor
        assert_within(loss, total, bound(2) + 2e-7)
        assert_within(grad, expected.grad / divisor, bound(2) + 2e-7)
        assert (grad[ignored] == 0).all()


@BOTH
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.int8])
@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 1, 100])
def test_ignored_elements(ignore_index, kind, functions, device, exact, assert_within, bound):
    x = logits((60, 5), device)
    t = torch.randint(0, 2, (60, 5), generator=torch.Generator().manual_seed(1)).to(device)
    t.view(-1)[::7] = ignore_index
    ignored = t == ignore_index
    with torch.no_grad():
        x[ignored] = torch.tensor([NAN, INF, -INF, 1e38], device=device).repeat(75)[: int(ignored.sum())]
    clean = torch.where(ignored, 0.0, x)
    expected = exact(clean, torch.where(ignored, 0, t), weight=(~ignored).double())
    for reduction, divisor in (("none", 1), ("mean", int((~ignored).sum()))):
        loss, grad = run(x, t.to(kind), functions, reduction=reduction, ignore_index=ignore_index)
        total = expected.loss if reduction == "none" else expected.loss.sum() / divisor
        assert_within(loss, total, bound(2) + 2e-7)
        assert_within(grad, expected.grad / divisor, bound(2) + 2e-7)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "kind, label, ignore_index",
    [(torch.uint8, 156, -100), (torch.uint8, 255, -1), (torch.int8, -1, 255), (torch.int16, 0, 2**16),
     (torch.int32, 7, 2**32 + 7)],
    ids=str,
)  # fmt: skip
def test_ignore_index_that_the_ids_cannot_hold(kind, label, ignore_index, reduction, functions, device):
    """An id is compared as the number it is, not modulo its dtype."""
    x, ids = logits((4, 300), device), torch.full((4,), label, dtype=kind, device=device)
    expected = run(x, ids.long(), functions, reduction=reduction, ignore_index=ignore_index)
    for actual, value in zip(
        run(x, ids, functions, reduction=reduction, ignore_index=ignore_index), expected, strict=True
    ):
        assert torch.equal(actual, value)
        assert actual.abs().sum() > 0


@BOTH
@pytest.mark.parametrize("kind", ["ids", "dense"])
def test_nothing_to_average(kind, functions, device):
    """Over nothing "mean" is NaN as F.cross_entropy's, "sum" is 0, and so are the gradients."""
    x = logits((4, 3), device)
    t = torch.full((4,) if kind == "ids" else (4, 3), -100, device=device)
    mean, sum_, positives = (
        run(x, t, functions, **options)
        for options in ({"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "mean", "normalizer": "positives"})
    )
    assert mean[0].isnan() and sum_[0] == 0 and positives[0] == 0
    assert (mean[1] == 0).all() and (sum_[1] == 0).all() and (positives[1] == 0).all()


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)], ids=str)
@pytest.mark.parametrize("targets", ["ids", "dense"])
def test_empty(targets, shape, dtype, functions, device):
    x = torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)
    t = torch.zeros(shape[:-1], device=device, dtype=torch.long) if targets == "ids" else torch.zeros_like(x)
    for reduction, expected in (("none", torch.zeros(shape)), ("sum", torch.tensor(0.0)), ("mean", torch.tensor(NAN))):
        loss, grad = run(x, t, functions, reduction=reduction)
        torch.testing.assert_close(loss.cpu().float(), expected, equal_nan=True)
        assert grad.shape == shape


EXTREMES = [INF, -INF, 1e38, -1e38, 3e38, -3e38, 100.0, -100.0, 89.0, -89.0, 0.0, -0.0]
KINDS = {
    "hard": {"t": [0.0, 1.0]},
    "soft": {"t": [0.3, 0.9]},
    "smoothed": {"t": [0.0, 1.0], "label_smoothing": 0.1},
    "alpha 0": {"t": [0.0, 1.0], "alpha": 0.0},
    "alpha 1": {"t": [0.0, 1.0], "alpha": 1.0},
    "weight 0": {"t": [0.0, 1.0], "weight": [0.0, 0.0]},
    "pos_weight 0": {"t": [0.0, 1.0], "pos_weight": [0.0, 0.0]},
}


@BOTH
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_logits(dtype, kind, gamma, functions, device, exact):
    """Finite for every finite logit; at +-inf the limits. 700 stands for infinity in the formula."""
    options = {k: torch.tensor(v, device=device) if isinstance(v, list) else v for k, v in KINDS[kind].items()}
    t = options.pop("t")
    x = torch.tensor(EXTREMES, device=device, dtype=dtype)[:, None].repeat(1, 2).requires_grad_()
    t = t.expand_as(x).contiguous()
    loss, grad = run(x, t, functions, gamma=gamma, **options)
    near = exact(x.clamp(-700, 700), t, gamma=gamma, **options)
    slope = torch.where(x.abs() > 700, near.grad.abs(), 0.0)  # the loss grows by this per unit beyond 700
    expected = torch.where(slope > 1e-9, near.loss + slope * (x.detach().double().abs() - 700), near.loss)
    torch.testing.assert_close(loss, expected.to(dtype), rtol=1e-5 * (1 + gamma), atol=1e-30)
    torch.testing.assert_close(grad, near.grad.to(dtype), rtol=1e-5 * (1 + gamma), atol=1e-30)


@BOTH
@pytest.mark.parametrize("targets", ["ids", "dense"])
def test_a_scale_comes_before_the_sum(targets, functions, device):
    """A sum of a row's losses, each finite, would be infinite."""
    x = torch.full((2, 4), 2e38, device=device)
    t = torch.tensor([-1, -1], device=device) if targets == "ids" else torch.zeros(2, 4, device=device)
    loss = functions.sigmoid_focal_loss(x, t, alpha=-1, gamma=0.0, reduction="sum", normalizer=1e6)
    torch.testing.assert_close(loss.item(), 1.6e33, rtol=1e-5, atol=0)
    assert functions.sigmoid_focal_loss(x, t, reduction="sum", loss_weight=0.0) == 0


@BOTH
@pytest.mark.parametrize("gamma", [50.0, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_exponent(dtype, gamma, functions, device):
    """Its product with a logit may be beyond the dtype; loss and gradient are not."""
    values = torch.tensor([0.0, 0.5, -5.0, 30.0, -100.0, 1e10, -1e10, 1e30, -1e30], device=device, dtype=dtype)
    x = torch.cartesian_prod(values, values).contiguous()
    for t in (torch.zeros(len(x)).long(), torch.ones(len(x)).long(), torch.full((len(x), 2), 0.3)):
        for loss, options in (
            (functions.sigmoid_focal_loss, {"gamma": gamma}),
            (functions.sigmoid_focal_loss, {"gamma": gamma, "label_smoothing": 0.1}),
            (functions.quality_focal_loss, {"beta": gamma}),
            (functions.varifocal_loss, {"gamma": gamma}),
            (functions.asymmetric_loss, {"gamma_neg": gamma, "gamma_pos": gamma}),
            (functions.softmax_focal_loss, {"gamma": gamma}),
            (functions.softmax_focal_loss, {"gamma": gamma, "label_smoothing": 0.1}),
        ):
            y = x.clone().requires_grad_()
            losses = loss(y, t.to(device), reduction="none", **options)
            losses.sum().backward()
            assert losses.isfinite().all() and y.grad.isfinite().all(), (loss.__name__, options)


@BOTH
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("targets", ["dense", "soft", "ids"])
def test_nan_logits(targets, dtype, gamma, functions, device):
    """NaN in, NaN out, and nowhere else."""
    x = logits((40, 9), device, dtype)
    with torch.no_grad():
        x[3, 1] = x[39, 8] = NAN
    t = {"dense": torch.ones(40, 9), "soft": torch.full((40, 9), 0.3), "ids": torch.full((40,), 1)}[targets].to(device)
    loss, grad = run(x, t, functions, gamma=gamma)
    assert torch.equal(loss.isnan(), x.isnan()) and torch.equal(grad.isnan(), x.isnan())
    assert run(x, t, functions, gamma=gamma, reduction="sum")[0].isnan()


@BOTH
def test_nan_targets_give_nan(functions, device):
    t = torch.zeros(6, 3, device=device)
    t[2, 1] = NAN
    loss, grad = run(logits((6, 3), device), t, functions)
    assert torch.equal(loss.isnan(), t.isnan()) and torch.equal(grad.isnan(), t.isnan())


@pytest.mark.parametrize("view", ["transposed", "sliced", "step", "channels last", "head", "expanded", "offset"])
def test_strides(view, device, exact, assert_within, bound):
    base = logits((2, 12, 5, 8), device).detach()
    x = {
        "transposed": lambda: base.transpose(1, 3),
        "sliced": lambda: base[..., 1:6],
        "step": lambda: base[:, ::3],
        "channels last": lambda: base.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        "head": lambda: base.view(2, 3, 4, 5, 8).permute(0, 3, 4, 1, 2),
        "expanded": lambda: base[:1, :1].expand(2, 12, 5, 8),
        "offset": lambda: base.flatten()[3:].view(-1, 3),
    }[view]().requires_grad_()  # fmt: skip
    ids = torch.randint(-1, x.shape[-1] + 1, x.shape[:-1][::-1], device=device)
    ids = ids.permute(*range(ids.dim() - 1, -1, -1))
    check(x, ids, one_hot(ids, x.shape[-1]), exact, assert_within, bound)
    values = one_hot(ids, x.shape[-1]).float().transpose(0, -1).contiguous().transpose(0, -1)
    check(x, values, values, exact, assert_within, bound)


def test_one_dimension_and_none(device, exact, assert_within, bound):
    x = logits((7,), device)
    check(x, torch.tensor(3, device=device), one_hot(torch.tensor(3, device=device), 7), exact, assert_within, bound)
    scalar = torch.tensor(0.7, device=device, requires_grad=True)
    check(scalar, torch.tensor(1.0, device=device), torch.ones((), device=device), exact, assert_within, bound)


def test_every_small_shape(device, exact, assert_within, bound):
    """Vector widths and their remainders, for rows and for whole tensors."""
    for n in (1, 2, 3, 5, 17):
        for classes in range(1, 36):
            x = logits((n, classes), device, seed=classes)
            ids = torch.arange(n, device=device) % (classes + 2) - 1
            check(x, ids, one_hot(ids, classes), exact, assert_within, bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("targets", ["ids", "dense", "soft"])
def test_same_bits_for_any_number_of_threads(targets, dtype, device, on_threads):
    x = logits((50_021, 7), device, dtype)
    t = {
        "ids": torch.randint(-1, 8, (50_021,)),
        "dense": torch.randint(0, 2, (50_021, 7)).float(),
        "soft": torch.rand(50_021, 7),
    }[targets].to(device)
    weight = torch.full((50_021, 1), 0.7, device=device)
    results = on_threads((1, 2, 2, 3, 1), lambda: run(x, t, reduction="mean", weight=weight))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("where", [0, 500_003, 999_999])
def test_one_large_loss_among_many_small_ones(where, device, exact, assert_within, bound):
    """Added one by one in fp32, a million losses of 4e-6 vanish beside one of 750: half a percent of the sum."""
    x = torch.full((1_000_000, 1), -4.0, device=device)
    x[where] = 1000.0
    x.requires_grad_()
    t = torch.zeros_like(x)
    loss, grad = run(x, t, reduction="sum")
    expected = exact(x.clamp(max=700), t)
    assert_within(loss, expected.loss.sum() + 300 * 0.75, bound(2))
    assert_within(grad, expected.grad, bound(2))


def test_a_sum_of_many_equal_losses(device, assert_within, bound, exact):
    x = torch.zeros(3_000_000, 1, device=device, dtype=torch.float16)
    loss = ik.sigmoid_focal_loss(x, torch.zeros_like(x), reduction="sum")
    assert_within(loss, exact(x, torch.zeros_like(x)).loss.sum(), bound(2))


def test_inputs_are_left_alone(device):
    x, t, w = logits((6, 3), device), torch.rand(6, 3, device=device), torch.rand(3, device=device)
    before = [v.detach().clone() for v in (x, t, w)]
    run(x, t, weight=w, pos_weight=w, alpha=w, reduction="mean")
    assert all(torch.equal(a, b) for a, b in zip((x, t, w), before, strict=True))


def test_ids_of_one_class_are_warned_of():
    """0 / 1 labels of shape (N,) would train the wrong way round: id 0 is the object."""
    x, labels = torch.zeros(4, 1), torch.tensor([0, 1, 1, 1])
    with pytest.warns(UserWarning, match=r"with one class id 0 is the object.*pass targets\[..., None\]"):
        by_id = ik.sigmoid_focal_loss(x, labels, reduction="sum")
    torch.testing.assert_close(by_id, ik.sigmoid_focal_loss(x, 1 - labels[:, None], reduction="sum"))


def test_one_image_and_its_positives(device):
    """Its weights are one number repeated, which must not stay a view of that number."""
    x, ids = torch.randn(1, 50, 3, device=device), torch.arange(50, device=device)[None] % 5 - 1
    options = {"reduction": "sum", "normalizer": "positives_per_image"}
    torch.testing.assert_close(
        ik.sigmoid_focal_loss(x, ids, **options), ik.reference.sigmoid_focal_loss(x.double(), ids, **options).float()
    )


@pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])
def test_ids_narrower_than_the_classes(functions, device):
    x, ids = torch.randn(5, 200, device=device), torch.tensor([-1, 0, 3, 4, 127], device=device)
    options = {"reduction": "sum", "normalizer": "positives"}
    narrow = functions.sigmoid_focal_loss(x, ids.to(torch.int8), **options)
    assert narrow == functions.sigmoid_focal_loss(x, ids, **options)
