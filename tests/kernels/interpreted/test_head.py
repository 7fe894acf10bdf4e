"""The kernel of a detector's head, which reads levels where they are, against the reference in fp64."""

import math
import sys
from pathlib import Path

import pytest
import torch

from imbal_kernels.dense_arguments import dense_problems, formula_options
from imbal_kernels.kernels import levels as module
from imbal_kernels.kernels import sigmoid, sigmoid_loss_levels
from imbal_kernels.ops.fused import NO_LOSS, SUM
from imbal_kernels.ops.sigmoid import level_arguments
from imbal_kernels.reference import sigmoid as reference

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from poly1_focal import POLY1_FOCAL  # noqa: E402

FORMULAS = {
    "focal": {},
    "focal 1.3": dict(alpha=-1.0, gamma=1.3),
    "focal 0": dict(gamma=0.0),
    "quality": dict(formula="quality_focal"),
    "varifocal": dict(formula="varifocal", alpha=2.0, gamma=0.5),
    "asymmetric": dict(formula="asymmetric"),
    "asymmetric no clip": dict(formula="asymmetric", gamma=1.5, gamma_pos=0.5, clip=0.0),
    "poly-1": dict(formula=POLY1_FOCAL),
}
SCORED = ("quality", "varifocal", "poly-1")  # what the tests of something else give scores
# A whole number of vectors in one block and in two, an odd number, a single place: two launches for any dtype.
SIZES = ((2, 4), (4, 6), (3, 5), (1, 1))
ANCHORS = 2
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Small programs of long steps: the interpreter's time goes by operations, not by elements."""
    monkeypatch.setattr(module, "STEP", 8)
    monkeypatch.setattr(module, "POSITIONS", dict.fromkeys((2, 4, 8), 16))
    monkeypatch.setattr(sigmoid, "TILE", dict.fromkeys((2, 4, 8), (16, 1)))  # that of channels-last levels


@pytest.fixture
def as_launched(monkeypatch):
    monkeypatch.undo()


def make(classes, dtype=torch.float32, sizes=SIZES, images=1, anchors=ANCHORS, format=None):
    generator = torch.Generator().manual_seed(classes)
    levels = [
        (torch.randn(images, anchors * classes, h, w, generator=generator) * 5).clamp(-20, 20).to(dtype)
        for h, w in sizes
    ]
    if format:
        levels = [level.contiguous(memory_format=format) for level in levels]
    labels = torch.randint(-2, classes + 1, (images, anchors * sum(h * w for h, w in sizes)), generator=generator)
    scores = torch.rand(labels.shape, generator=generator)
    scores[:, ::5], scores[:, 1::7] = 0, 1
    return levels, labels, scores


def problems_of(levels, labels, classes, scores=None, **options):
    """What `dense_focal_loss` makes of its arguments."""
    own = dict(formula="focal", alpha=None, gamma=None, gamma_pos=None, clip=None)
    both = dict(pos_weight=None, label_smoothing=0.0)
    formula = own | both | {k: v for k, v in options.items() if k in own | both}
    shared = both | dict(
        reduction="sum", weight=None, ignore_index=-2, normalizer="positives", loss_weight=1.0, process_group=None
    )
    shared |= {k: v for k, v in options.items() if k not in own}
    return dense_problems(
        levels, labels, classes, scores=scores, count=reference.count_targets, **shared,
        **formula_options(**formula),
    )  # fmt: skip


def wide(value):
    if isinstance(value, (list, tuple)):
        return [wide(each) for each in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def definition(levels, labels, classes, **options):
    """(loss, gradients by level) in fp64."""
    exact = [level.double().requires_grad_() for level in levels]
    problems = problems_of(exact, labels, classes, **{k: wide(v) for k, v in options.items()})
    loss = sum(reference.sigmoid_loss(problem) for problem in problems)
    return loss.detach(), torch.autograd.grad(loss, exact)


def call(levels, labels, classes, upstream=None, loss_mode=SUM, want_grad=True, **options):
    """(loss, gradients in the shapes of the levels) from the kernel."""
    problems = problems_of(levels, labels, classes, **options)
    loss, grads, _ = sigmoid_loss_levels(*level_arguments(problems, upstream, loss_mode, want_grad))
    assert [grad.shape for grad in grads] == [problem.input.shape for problem in problems] * want_grad
    for grad, problem in zip(grads, problems, strict=False):
        assert grad.is_contiguous() and problem.input.is_contiguous()  # in the level's own layout
    return loss, [_as_level(grad, level) for grad, level in zip(grads, levels, strict=False)]


def _as_level(grad, level):
    if grad.dim() == 4:
        return grad.reshape(level.shape)
    images, channels, height, width = level.shape
    return grad.reshape(images, height, width, channels).permute(0, 3, 1, 2)


def compare(levels, labels, classes, upstream=None, **options):
    """p - t and p - clip cancel: an error of p is that of the difference, times exponents and a loss of up to 20."""
    loss, grads = call(levels, labels, classes, upstream, **options)
    expected, slopes = definition(levels, labels, classes, **options)
    dtype = levels[0].dtype
    rtol = {torch.float64: 1e-11, torch.float32: 2e-5}.get(dtype, 1e-3)
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(dtype, 0.0)  # the interpreter truncates to bf16
    tiny = 6e-8 if dtype == torch.float16 else 0.0
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=0)
    for grad, slope in zip(grads, slopes, strict=True):
        assert grad.dtype == dtype
        slope = slope if upstream is None else slope * upstream.double()
        atol = rtol * float(slope.abs().max()) + tiny if slope.numel() else 0.0
        torch.testing.assert_close(grad.double(), slope, rtol=rtol + rounding, atol=atol)


# With positives written afterwards and without; whole steps, a rest, and nothing but a rest.
@pytest.mark.parametrize("classes", (24, 19, 5))
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name, classes):
    levels, labels, scores = make(classes)
    compare(levels, labels, classes, **FORMULAS[name])
    if name in SCORED or classes == 19:
        compare(levels, labels, classes, scores=scores, **FORMULAS[name])


@pytest.mark.parametrize("classes", (1, 4, 20))
def test_as_it_is_launched(classes, as_launched):
    levels, labels, _ = make(classes, sizes=((2, 4), (14, 20), (3, 1)), anchors=1)
    compare(levels, labels, classes)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", ("focal", "focal 1.3", "quality", "asymmetric"))
def test_dtypes(name, dtype):
    levels, labels, scores = make(18, dtype)
    scores = scores.to(torch.float64 if dtype == torch.float64 else torch.float32)
    compare(levels, labels, 18, **FORMULAS[name] | ({"scores": scores} if name in SCORED else {}))


def factors(classes):
    places = ANCHORS * sum(h * w for h, w in SIZES)
    generator = torch.Generator().manual_seed(0)
    some = {
        "no divisor": dict(normalizer=None),
        "per image": dict(normalizer="positives_per_image"),
        "class weight": dict(weight=(classes,)),
        "place weight": dict(weight=(2, places, 1)),
        "weight by image": dict(weight=(2, 1, 1)),
        "full weight": dict(weight=(2, places, classes)),
        "weight": dict(weight=(1, 1, 1)),
        "pos_weight": dict(pos_weight=(classes,)),
        "place pos_weight": dict(pos_weight=(places, 1)),
        "full pos_weight": dict(pos_weight=(places, classes)),
        "alpha": dict(alpha=(classes,)),
        "smoothing": dict(label_smoothing=0.1),
        "smoothing and weights": dict(label_smoothing=0.1, weight=(2, places, classes), pos_weight=(classes,)),
        "loss_weight": dict(loss_weight=torch.tensor(-3.0), normalizer=7.0),
    }
    return {
        name: {k: torch.rand(v, generator=generator) if isinstance(v, tuple) else v for k, v in options.items()}
        for name, options in some.items()
    }


@pytest.mark.parametrize(
    "name, classes",
    [(name, 20) for name in factors(1)] + [(name, 5) for name in ("per image", "full weight", "pos_weight", "alpha")],
)
def test_factors(name, classes):
    levels, labels, _ = make(classes, images=2)
    compare(levels, labels, classes, **factors(classes)[name])


@pytest.mark.parametrize("name", ("class weight", "place weight", "full weight"))
def test_factors_of_a_level_of_one_row(name):
    """Whose tensors could be read in several ways, beside those of a level with many."""
    sizes = ((1, 1), (3, 5))
    levels, labels, _ = make(20, sizes=sizes, images=1, anchors=1)
    shape = {"class weight": (20,), "place weight": (1, 16, 1), "full weight": (1, 16, 20)}[name]
    compare([levels[0].expand(1, 20, 1, 1), levels[1]], labels, 20, weight=torch.rand(shape))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_upstream(dtype):
    levels, labels, _ = make(20, dtype)
    compare(levels, labels, 20, upstream=torch.tensor(-2.5))
    loss, grads = call(levels, labels, 20, torch.tensor(-2.5), NO_LOSS)
    assert loss.numel() == 0
    for one, other in zip(grads, call(levels, labels, 20, torch.tensor(-2.5))[1], strict=True):
        assert torch.equal(one, other)
    loss, none = call(levels, labels, 20, want_grad=False)
    assert none == [] and loss == call(levels, labels, 20)[0]


@pytest.mark.parametrize("format", (torch.channels_last, "mixed"))
def test_other_layouts(format):
    levels, labels, scores = make(20, format=None if format == "mixed" else format)
    if format == "mixed":
        levels[1] = levels[1].contiguous(memory_format=torch.channels_last)
        levels[2] = torch.stack([levels[2]] * 2, -1).flatten(3)[..., ::2]
    compare(levels, labels, 20)
    weight = torch.rand(*labels.shape, 1)
    compare(levels, labels, 20, formula="varifocal", scores=scores, weight=weight)


@pytest.mark.parametrize("kind", (torch.int8, torch.uint8, torch.int16, torch.int32, "mixed"))
def test_label_dtypes(kind):
    classes = 20
    levels, labels, _ = make(classes)
    labels = labels.clamp(min=0)
    sizes = [h * w * ANCHORS for h, w in SIZES]
    parts = labels.split(sizes, 1) if kind == "mixed" else labels.to(kind)
    if kind == "mixed":
        parts = [part.to(torch.uint8 if i else torch.int32) for i, part in enumerate(parts)]
    loss, grads = call(levels, parts, classes)
    expected, slopes = call(levels, labels, classes)
    assert loss == expected and all(map(torch.equal, grads, slopes))


@pytest.mark.parametrize("name, classes", [(name, 19) for name in FORMULAS] + [("focal", 5), ("quality", 5)])
def test_ignored_places_are_silent(classes, name):
    levels, labels, scores = make(classes)
    options = FORMULAS[name] | ({"scores": scores} if name in SCORED else {})
    weight = torch.rand(*labels.shape, 1)
    weight[labels == -2] = NAN
    scores[labels == -2] = NAN
    clean, poisoned, ignored = [], [], []
    for level, part in zip(levels, labels.split([h * w * ANCHORS for h, w in SIZES], 1), strict=True):
        shape = (level.shape[0], *level.shape[2:], ANCHORS, 1)
        where = (part == -2).reshape(shape).expand(*shape[:4], classes).permute(0, 3, 4, 1, 2).reshape(level.shape)
        ignored.append(where)
        values = torch.tensor([NAN, INF, -INF]).repeat(level.numel() // 3 + 1)[: level.numel()].view(level.shape)
        poisoned.append(torch.where(where, values, level))
        clean.append(torch.where(where, 0.0, level))
    loss, grads = call(poisoned, labels, classes, weight=weight, **options)
    expected, slopes = call(clean, labels, classes, weight=weight.nan_to_num(), **options)
    assert loss == expected and all(map(torch.equal, grads, slopes))
    assert all(bool((grad[where] == 0).all()) for grad, where in zip(grads, ignored, strict=True))


def test_nothing_but_ignored_places():
    """A mean over nothing is NaN, its gradients 0."""
    levels, labels, _ = make(20, sizes=((3, 5), (2, 8)))
    loss, grads = call(levels, torch.full_like(labels, -2), 20, reduction="mean", normalizer=None)
    assert loss.isnan() and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("bad", (-7, 50, 2**32 + 5))
@pytest.mark.parametrize("dtype, classes", ((torch.float32, 5), (torch.bfloat16, 20), (torch.float64, 19)))
def test_a_bad_label_is_nan_for_its_place_only(dtype, bad, classes):
    levels, labels, _ = make(classes, dtype)
    labels[0, 2 * ANCHORS + 1] = bad  # the third place of the first level, its second anchor
    loss, grads = call(levels, labels, classes)
    first = grads[0].unflatten(1, (ANCHORS, classes)).flatten(3).isnan()
    expected = torch.zeros_like(first)
    expected[0, 1, :, 2] = True
    assert loss.isnan() and torch.equal(first, expected) and not any(grad.isnan().any() for grad in grads[1:])


@pytest.mark.parametrize("classes, smoothing", ((20, 0.0), (5, 0.0), (20, 0.1)))
@pytest.mark.parametrize("value", (-0.1, NAN))
def test_a_bad_score_is_nan_for_its_class_alone(value, classes, smoothing):
    """And is not looked at in a place of background."""
    levels, labels, scores = make(classes)
    labels[0, 4], scores[0, 4] = 2, value
    labels[0, 6], scores[0, 6] = -1, value
    options = dict(formula="quality_focal", scores=scores, label_smoothing=smoothing)
    loss, grads = call(levels, labels, classes, **options)
    first = grads[0].unflatten(1, (ANCHORS, classes)).flatten(3).isnan()
    expected = torch.zeros_like(first)
    expected[0, 0, 2, 2] = True
    assert loss.isnan() and torch.equal(first, expected) and not any(grad.isnan().any() for grad in grads[1:])


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "poly-1"])
def test_extreme_logits(name):
    """The reference's limits, and NaN only where one goes in."""
    values = torch.tensor([INF, 1e38, 100.0, -100.0, -1e38, -INF, NAN, 0.0])
    levels = [values.view(1, 1, 2, 4).repeat(1, 20, 1, 1), values.view(1, 1, 1, 8).repeat(1, 20, 2, 1)]
    labels = torch.arange(24)[None] % 2 * 4 - 1
    _, grads = call(levels, labels, 20, normalizer=None, **FORMULAS[name])
    _, slopes = definition(levels, labels, 20, normalizer=None, **FORMULAS[name])
    for grad, slope in zip(grads, slopes, strict=True):
        torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-30, equal_nan=True)


def test_no_level_and_no_image_with_elements():
    levels, labels, _ = make(20, sizes=((0, 4), (2, 8)))
    compare(levels, labels, 20)
    for parts, ids in ((levels[:1], labels[:, :0]), ([level[:0] for level in levels], labels[:0])):
        loss, grads = call(parts, ids, 20)
        assert loss == 0 and all(grad.numel() == 0 for grad in grads)


def launches(levels, labels, classes, **options):
    problems = problems_of(levels, labels, classes, **options)
    return module.plan(*level_arguments(problems, None, SUM, True))[3]


@pytest.mark.parametrize("dtype, vectors", ((torch.float32, [4, 1]), (torch.bfloat16, [4, 1]), (torch.float64, [2, 1])))
def test_at_most_two_launches_for_all_levels(dtype, vectors, as_launched):
    """RetinaNet's, on an image of 800 x 1333: the largest and all that fit its width of access, and the others."""
    sizes = ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11))
    levels = [torch.empty(1, 9 * 80, h, w, dtype=dtype, device="meta") for h, w in sizes]
    labels = torch.empty(1, 9 * sum(h * w for h, w in sizes), dtype=torch.long, device="meta")
    *kernels, total = launches(levels, labels, 80, normalizer=None)
    assert [launch.args["VECTOR"] for launch in kernels] == vectors
    of_place = [-(-h * w // module.POSITIONS[dtype.itemsize]) * 9 for h, w in sizes]
    assert sum(launch.programs for launch in kernels) == sum(of_place) == total.args["count"]


def test_new_sizes_compile_nothing_new():
    """What Triton specialises on is the same: no size is 1 or a multiple of 16, and constants depend on the vector."""
    seen = set()
    for sizes in (((8, 16), (4, 8)), ((16, 16), (8, 8)), ((40, 56), (20, 28))):
        levels, labels, _ = make(20, sizes=sizes)
        (launch,) = launches(levels, labels, 20)[:-1]
        numbers = [n for name in ("firsts", "blocks", "groups") for n in launch.args[name]]
        assert all(n % 2 and n > 1 for n in numbers)
        seen.add(tuple(value for name, value in launch.args.items() if name.isupper()))
    assert len(seen) == 1
