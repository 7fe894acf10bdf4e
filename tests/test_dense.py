"""Losses straight from a head's levels: equal to the flat loss, and to torchvision's heads as they are."""

import copy
import functools
import sys
import types

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import imbal_kernels as ik

SIZES = ((7, 9), (4, 5), (1, 1))
ANCHORS, CLASSES = 3, 5


def make(device, dtype=torch.float32, images=2, sizes=SIZES, anchors=ANCHORS, classes=CLASSES, format=None):
    generator = torch.Generator().manual_seed(0)
    levels = []
    for height, width in sizes:
        level = torch.randn(images, anchors * classes, height, width, generator=generator).to(device, dtype)
        levels.append(level.to(memory_format=format or torch.contiguous_format).requires_grad_())
    count = sum(h * w for h, w in sizes) * anchors
    labels = torch.randint(-2, classes + 1, (images, count), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.7] = -1
    return levels, labels.to(device)


def gradients(loss, levels):
    return torch.autograd.grad(loss, levels)


def compare(levels, labels, rtol=1e-5, **options):
    """With the flat loss in fp64 by the reference: values, gradients, and the gradients' layout."""
    loss = ik.dense_focal_loss(levels, labels, CLASSES, ignore_index=-2, **options)
    exact = [level.detach().double().requires_grad_() for level in levels]
    expected = ik.reference.dense_focal_loss(exact, labels, CLASSES, ignore_index=-2, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=0)
    for level, got, true in zip(levels, gradients(loss, levels), gradients(expected, exact), strict=True):
        # A gradient of soft targets crosses zero: then the rounding of its terms is left.
        torch.testing.assert_close(got.double(), true, rtol=rtol, atol=rtol * float(true.abs().max()))
        assert [n for n, size in zip(got.stride(), got.shape, strict=True) if size > 1] == [
            n for n, size in zip(level.stride(), level.shape, strict=True) if size > 1
        ]


OPTIONS = {
    "default": {},
    "mean": {"reduction": "mean", "normalizer": None},
    "no divisor": {"normalizer": None},
    "number": {"normalizer": 7.0},
    "per image": {"normalizer": "positives_per_image"},
    "class weight": {"weight": torch.rand(CLASSES)},
    "anchor weight": {"weight": torch.rand(2, 3 * (63 + 20 + 1), 1)},
    "anchor weight of every image": {"weight": torch.rand(3 * (63 + 20 + 1), 1)},
    "full weight": {"weight": torch.rand(2, 3 * (63 + 20 + 1), CLASSES)},
    "image weight": {"weight": torch.rand(2, 1, 1)},
    "both weights": {"weight": torch.rand(CLASSES), "normalizer": "positives_per_image"},
    "pos_weight": {"pos_weight": torch.rand(CLASSES)},
    "alpha per class": {"alpha": torch.rand(CLASSES)},
    "smoothing": {"label_smoothing": 0.1},
    "gamma": {"gamma": 1.3, "alpha": -1},
    "loss_weight": {"loss_weight": torch.tensor(0.5)},
}


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_flat_loss(name, format, device):
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in OPTIONS[name].items()}
    compare(*make(device, format=format), **options)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_every_integer_type(kind, device):
    levels, labels = make(device)
    labels = labels.clamp(min=0).to(kind)
    compare(levels, labels)


# Half inputs may be 1e-4 off (design contract), on top of the rounding of their gradient to the type.
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.bfloat16, 8e-3), (torch.float16, 2e-3)])
def test_dtypes(dtype, rtol, device):
    compare(*make(device, dtype), rtol=rtol)


SQUARED = ik.Formula(lambda x, t: (torch.sigmoid(x) - t) ** 2)
FORMULAS = {  # arguments here, and the flat loss in fp64 with its own
    "focal": ({"alpha": 0.3, "gamma": 1.5}, ik.reference.sigmoid_focal_loss, {"alpha": 0.3, "gamma": 1.5}),
    "focal, scores": ({"alpha": 0.3}, ik.reference.sigmoid_focal_loss, {"alpha": 0.3}),
    "focal, scores, YOLOv8's": (
        {"alpha": -1.0, "gamma": 0.0}, ik.reference.sigmoid_focal_loss, {"alpha": -1.0, "gamma": 0.0},
    ),
    "quality_focal": ({"gamma": 1.5}, ik.reference.quality_focal_loss, {"beta": 1.5}),
    "quality_focal, scores": ({}, ik.reference.quality_focal_loss, {}),
    "varifocal": ({"alpha": 2.0, "gamma": 0.5}, ik.reference.varifocal_loss, {"alpha": 2.0, "gamma": 0.5}),
    "varifocal, scores": ({}, ik.reference.varifocal_loss, {}),
    "asymmetric": ({}, ik.reference.asymmetric_loss, {}),
    "asymmetric, scores": ({}, ik.reference.asymmetric_loss, {}),
    "asymmetric, its own numbers": (
        {"gamma": 2.5, "gamma_pos": 0.0, "clip": 0.2}, ik.reference.asymmetric_loss,
        {"gamma_neg": 2.5, "gamma_pos": 0.0, "clip": 0.2},
    ),
    "own": ({}, functools.partial(ik.reference.elementwise_loss, SQUARED), {}),
    "own, scores": ({}, functools.partial(ik.reference.elementwise_loss, SQUARED), {}),
}  # fmt: skip
COUNT = 3 * (63 + 20 + 1)
DIVISORS = {  # each with a kind of weight
    "positives": {"normalizer": "positives", "weight": torch.rand(CLASSES)},
    "per image": {"normalizer": "positives_per_image", "weight": torch.rand(2, COUNT, 1)},
    "per image, no weight": {"normalizer": "positives_per_image"},
    "mean": {"normalizer": None, "reduction": "mean", "weight": torch.rand(2, COUNT, 1)},
    "number": {"normalizer": 7.0, "reduction": "mean"},
}


def mixed(levels):
    """The first level contiguous, the second channels-last, the last a slice."""
    first, second, last = (level.detach() for level in levels)
    wide = torch.stack([last, last], -1).flatten(3)
    parts = first, second.contiguous(memory_format=torch.channels_last), wide[..., ::2]
    return [part.requires_grad_() for part in parts]


def flat(levels, classes):
    parts = [x.unflatten(1, (-1, classes)).permute(0, 3, 4, 1, 2) for x in levels]
    return torch.cat([part.reshape(part.shape[0], -1, classes) for part in parts], 1)


def make_scores(labels, classes):
    """0 and 1 among them; NaN where they are not read."""
    scores = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4))
    scores[:, ::5], scores[:, 1::5] = 0, 1
    scores = scores.to(labels.device)
    return torch.where((labels >= 0) & (labels < classes), scores, torch.nan)


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "mixed"])
@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_equals_its_flat_loss(name, layout, divisor, device):
    formula, scored = (SQUARED if name.startswith("own") else name.split(",")[0]), "scores" in name
    ours, reference, theirs = FORMULAS[name]
    levels, labels = make(device, format=torch.channels_last if layout == "channels last" else None)
    levels = mixed(levels) if layout == "mixed" else levels
    options = {k: v.to(device) if k == "weight" else v for k, v in DIVISORS[divisor].items()} | {"ignore_index": -2}
    options |= {"scores": make_scores(labels, CLASSES)} if scored else {}
    loss = ik.dense_focal_loss(levels, labels, CLASSES, formula=formula, **ours, **options)
    wide = [level.detach().double().requires_grad_() for level in levels]
    options = {"reduction": "sum", **options}
    expected = reference(flat(wide, CLASSES), labels, **theirs, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for level, got, true in zip(levels, gradients(loss, levels), gradients(expected, wide), strict=True):
        # Where p meets a target the gradient crosses zero: then the rounding of its terms is left.
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=1e-5 * float(true.abs().max()))
        assert got.is_contiguous() == level.is_contiguous() or layout == "mixed"


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("name", ["focal", "quality_focal", "varifocal", "asymmetric"])
def test_scores_on_every_instruction_set(name, dtype, rtol, backend):
    """Lines shorter and longer than a block of the kernel, and than a vector."""
    levels, labels = make(backend, dtype, sizes=((37, 41), (5, 3), (1, 1)))
    compare(levels, labels, rtol=rtol, formula=name, scores=make_scores(labels, CLASSES))


def test_scores_of_a_list_and_of_every_float(device):
    levels, labels = make(device)
    scores = make_scores(labels, CLASSES)
    sizes = [h * w * ANCHORS for h, w in SIZES]
    loss = functools.partial(ik.dense_focal_loss, levels, labels, CLASSES, ignore_index=-2, formula="varifocal")
    assert loss(scores=scores.split(sizes, 1)) == loss(scores=scores)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert loss(scores=scores.to(dtype)) == loss(scores=scores.to(dtype).float())


def test_scores_that_require_grad_get_theirs(device):
    levels, labels = make(device, torch.float64)
    scores = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(device)
    options = {"ignore_index": -2, "formula": "quality_focal", "scores": scores.requires_grad_()}
    got = torch.autograd.grad(ik.dense_focal_loss(levels, labels, CLASSES, **options), [scores, *levels])
    true = torch.autograd.grad(ik.reference.dense_focal_loss(levels, labels, CLASSES, **options), [scores, *levels])
    assert got[0].abs().sum() > 0
    torch.testing.assert_close(got, true)


def test_strides_and_one_image_and_lists(device):
    levels, labels = make(device, images=1)
    compare(levels, labels, normalizer="positives_per_image")
    sizes = [h * w * ANCHORS for h, w in SIZES]
    whole = ik.dense_focal_loss(levels, labels, CLASSES, ignore_index=-2)
    assert ik.dense_focal_loss(levels, labels.split(sizes, 1), CLASSES, ignore_index=-2) == whole
    wide = torch.randn(1, 2 * ANCHORS * CLASSES, 7, 18, device=device)
    strided = wide[:, ::2, :, ::2].requires_grad_()
    got = ik.dense_focal_loss([strided], labels[:, : sizes[0]], CLASSES, ignore_index=-2)
    dense = ik.dense_focal_loss([strided.contiguous()], labels[:, : sizes[0]], CLASSES, ignore_index=-2)
    torch.testing.assert_close(got, dense)  # read by another route


def test_more_classes_than_a_label_can_name(device):
    level = torch.randn(1, 200, 3, 3, device=device)
    labels = torch.arange(-4, 5, device=device, dtype=torch.int8)[None].clamp(min=-1)
    got = ik.dense_focal_loss([level], labels, 200, ignore_index=300)
    torch.testing.assert_close(got, ik.reference.dense_focal_loss([level], labels, 200, ignore_index=300))


@pytest.mark.parametrize("options", [{}, {"formula": "varifocal", "scores": torch.ones(1, 48)}], ids=["focal", "vfl"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_nothing_of_the_size_of_the_logits_is_copied(format, options):
    """A head's level goes to the kernel as it is, with scores too."""
    level, labels = torch.zeros(1, ANCHORS * CLASSES, 4, 4).to(memory_format=format), torch.full((1, 48), -1)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= level.numel() and out.data_ptr() != level.data_ptr():
                seen.append(function)
            return out

    with Watch():
        ik.dense_focal_loss([level], labels, CLASSES, **options)
    assert not seen


@pytest.fixture
def one_thread():
    """The second derivative's F.logsigmoid starts every thread, however small: 20 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("formula", dict.fromkeys(name.split(",")[0] for name in FORMULAS))
def test_gradcheck(formula, scored, device, one_thread):
    levels, labels = make(device, torch.float64, sizes=((3, 2), (1, 1)), anchors=2)
    formula = SQUARED if formula == "own" else formula
    options = {"scores": make_scores(labels, CLASSES)} if scored else {}

    def loss(*levels):
        return ik.dense_focal_loss(levels, labels, CLASSES, ignore_index=-2, formula=formula, **options)

    assert torch.autograd.gradcheck(loss, levels)
    assert torch.autograd.gradgradcheck(loss, levels, fast_mode=True)


def test_backward_twice_and_another_upstream(device):
    levels, labels = make(device)
    loss = ik.dense_focal_loss(levels, labels, CLASSES, ignore_index=-2)
    first = torch.autograd.grad(loss, levels, retain_graph=True)
    again = torch.autograd.grad(loss * 3, levels)
    for one, three in zip(first, again, strict=True):
        torch.testing.assert_close(one * 3, three)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_each_level_gets_its_gradient(dtype, device):
    """Once, in its own layout, before what stands behind it: a hook sees it, with another upstream gradient as well."""
    levels, labels = make(device, dtype)
    levels[1] = levels[1].detach().to(memory_format=torch.channels_last).requires_grad_()
    seen = {}
    for i, level in enumerate(levels):
        level.register_hook(functools.partial(seen.setdefault, i))
    loss = ik.dense_focal_loss(levels, labels, CLASSES, ignore_index=-2)
    (loss * 3).backward()
    for i, level in enumerate(levels):
        alone = [other.detach().requires_grad_(other is level) for other in levels]
        (expected,) = torch.autograd.grad(ik.dense_focal_loss(alone, labels, CLASSES, ignore_index=-2) * 3, alone[i])
        assert seen[i].shape == level.shape and seen[i].dtype == dtype
        torch.testing.assert_close(seen[i], expected)
        assert seen[1].is_contiguous(memory_format=torch.channels_last) and seen[0].is_contiguous()
        torch.testing.assert_close(level.grad, expected)


def test_levels_that_need_no_gradient_get_none(device):
    levels, labels = make(device, torch.float64)
    levels[1] = levels[1].detach()
    asked = [levels[0], levels[2]]

    def loss(function):
        return function(levels, labels, CLASSES, ignore_index=-2)

    firsts = [torch.autograd.grad(loss(f), asked, create_graph=True) for f in (
        ik.dense_focal_loss, ik.reference.dense_focal_loss)]  # fmt: skip
    torch.testing.assert_close(*firsts)
    seconds = [torch.autograd.grad(sum((g**2).sum() for g in first), asked) for first in firsts]
    torch.testing.assert_close(*seconds)
    loss(ik.dense_focal_loss).backward()
    assert levels[1].grad is None and levels[0].grad is not None


def test_compiled_code_has_one_op_for_all_levels(device):
    torch._dynamo.reset()
    called = []

    def record(graph, example_inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if "imbal_kernels" in str(node.target))
        return make_boxed_func(graph.forward)

    levels, labels = make(device)
    loss = functools.partial(ik.dense_focal_loss, num_classes=CLASSES, ignore_index=-2)
    torch.compile(loss, fullgraph=True, backend=aot_autograd(fw_compiler=record))(levels, labels).backward()
    assert called.count("imbal_kernels.sigmoid_loss_levels.default") == 1
    assert not any("sigmoid_loss.default" in name for name in called)


HEADS = {
    "focal": ik.DenseFocalLoss(CLASSES, ignore_index=-2),
    "quality_focal": ik.DenseFocalLoss(CLASSES, ignore_index=-2, formula="quality_focal"),
    "varifocal": ik.DenseFocalLoss(
        CLASSES, ignore_index=-2, formula="varifocal", normalizer="positives_per_image", weight=torch.rand(CLASSES)
    ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("what", ["images", "sizes"])
def test_compiles_no_more_when_sizes_change(name, what, device):
    """A convolution and the loss as one graph: once for the first sizes and once for any, twice with none more."""
    torch._dynamo.reset()
    loss = copy.deepcopy(HEADS[name]).to(device)
    conv = torch.nn.Conv2d(4, ANCHORS * CLASSES, 3, padding=1, device=device)

    def step(features, labels, scores):
        return loss([conv(x) for x in features], labels, None if name == "focal" else scores)

    def check(n):
        sizes = [(2 * n + 3, 2 * n), (n + 2, n)] if what == "sizes" else [(7, 5), (3, 2)]
        images = 2 if what == "sizes" else n
        features = [torch.randn(images, 4, h, w, device=device) for h, w in sizes]
        labels = make(device, images=images, sizes=sizes)[1]
        arguments = features, labels, make_scores(labels, CLASSES).nan_to_num()
        got, true = compiled(*arguments), step(*arguments)
        torch.testing.assert_close(got, true)
        for a, b in zip(*(torch.autograd.grad(v, conv.parameters()) for v in (got, true)), strict=True):
            torch.testing.assert_close(a, b)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (3, 4):
        check(n)
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (5, 8):
            check(n)


def test_compiles_whole(device):
    torch._dynamo.reset()
    levels, labels = make(device)
    module = ik.DenseFocalLoss(CLASSES, ignore_index=-2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(levels, labels), module(levels, labels)
    torch.testing.assert_close(loss, expected)
    for got, true in zip(gradients(loss, levels), gradients(expected, levels), strict=True):
        torch.testing.assert_close(got, true)


@pytest.fixture
def torchvision_detection():
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("m"))
    return pytest.importorskip("torchvision.models.detection", reason="torchvision is not installed")


def detector_levels(size, strides, channels, device):
    height, width = size
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, channels, -(-height // s), -(-width // s)) for s in strides]
    return [(torch.randn(shape, generator=generator) - 4.6).to(device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("size", [(800, 1333), (97, 131)])
def test_equals_retinanet_of_torchvision(size, torchvision_detection, device):
    """RetinaNetClassificationHead.compute_loss as it is, on the five levels of an image of that size."""
    classes, anchors = (80, 9) if size[0] < 800 else (20, 9)  # 5e6 outputs are enough of the large one
    levels = detector_levels(size, (8, 16, 32, 64, 128), anchors * classes, device)
    logits = flat(levels, classes)
    generator = torch.Generator().manual_seed(2)
    matched = torch.randint(-2, 40, logits.shape[:2], generator=generator)
    matched[torch.rand(matched.shape, generator=generator) < 0.99] = -1  # background; -2: between the thresholds
    boxes = torch.randint(classes, (2, 40), generator=generator)
    head = torchvision_detection.retinanet.RetinaNetClassificationHead(8, anchors, classes).to(device)
    targets = [{"labels": labels.to(device)} for labels in boxes]
    expected = head.compute_loss(targets, {"cls_logits": logits}, list(matched.to(device)))

    labels = torch.where(matched >= 0, boxes.gather(1, matched.clamp(min=0)), matched).to(device)
    loss = ik.dense_focal_loss(levels, labels, classes, ignore_index=-2, normalizer="positives_per_image")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)  # theirs sums up to 5e6 terms in fp32
    for got, true in zip(gradients(loss, levels), gradients(expected, levels), strict=True):
        # theirs loses digits where a sigmoid is small: 1e-3 of itself at logits of -12 (docs/accuracy.md)
        torch.testing.assert_close(got, true, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("formula", ["quality_focal", "varifocal"])
def test_scores_on_retinanets_levels_equal_the_flat_loss(formula, device):
    classes, anchors = 20, 9
    levels = detector_levels((97, 131), (8, 16, 32, 64, 128), anchors * classes, device)
    levels[1] = levels[1].detach().to(memory_format=torch.channels_last).requires_grad_()
    count = sum(level[:, 0].numel() for level in levels) // 2 * anchors
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(-2, classes + 1, (2, count), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.9] = -1
    labels = labels.to(device)
    scores = make_scores(labels, classes)
    options = {"reduction": "sum", "ignore_index": -2, "normalizer": "positives_per_image", "scores": scores}
    loss = ik.dense_focal_loss(levels, labels, classes, formula=formula, **options)
    expected = getattr(ik, f"{formula}_loss")(flat(levels, classes), labels, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for got, true in zip(gradients(loss, levels), gradients(expected, levels), strict=True):
        torch.testing.assert_close(got, true, rtol=1e-6, atol=1e-12)


def test_equals_fcos_of_torchvision(torchvision_detection, device):
    """FCOSHead.compute_loss as it is: its classification part."""
    classes = 20
    levels = detector_levels((97, 131), (8, 16, 32, 64, 128), classes, device)
    logits = flat(levels, classes)
    count = logits.shape[1]
    generator = torch.Generator().manual_seed(3)
    matched = torch.randint(0, 6, (2, count), generator=generator)
    matched[torch.rand(matched.shape, generator=generator) < 0.95] = -1
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0]]).repeat(6, 1).to(device)
    classes_of = torch.randint(classes, (2, 6), generator=generator)
    targets = [{"labels": labels.to(device), "boxes": boxes} for labels in classes_of]
    outputs = {
        "cls_logits": logits,
        "bbox_regression": torch.rand(2, count, 4, device=device),
        "bbox_ctrness": torch.zeros(2, count, 1, device=device),
    }
    head = torchvision_detection.fcos.FCOSHead(32, 1, classes).to(device)
    anchors = [torch.tensor([[20.0, 20.0, 28.0, 28.0]], device=device).repeat(count, 1)] * 2
    expected = head.compute_loss(targets, outputs, anchors, list(matched.to(device)))["classification"]

    labels = torch.where(matched >= 0, classes_of.gather(1, matched.clamp(min=0)), matched).to(device)
    loss = ik.dense_focal_loss(levels, labels, classes)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for got, true in zip(gradients(loss, levels), gradients(expected, levels), strict=True):
        torch.testing.assert_close(got, true, rtol=2e-3, atol=1e-9)


LEVEL, IDS, SCORES = torch.zeros(2, 10, 3, 4), torch.full((2, 24), -1), torch.zeros(2, 24)
BAD = {
    "no levels": (([], IDS, 5), {}, TypeError, "levels must be a list of at least one Tensor, got none"),
    "no int": (([LEVEL], IDS, 5), {"ignore_index": None}, TypeError, "ignore_index must be an int, got NoneType"),
    "a tensor": ((LEVEL, IDS, 5), {}, TypeError, "levels must be a list of at least one Tensor, got Tensor"),
    "channels": (([LEVEL], IDS, 3), {}, ValueError,
                 "levels[0] must have shape (N, A * C, H, W), a multiple of C = 3 channels, got (2, 10, 3, 4)"),
    "integers": (([LEVEL.long()], IDS, 5), {}, TypeError,
                 "levels[0] must be float32, bfloat16, float16 or float64, got torch.int64"),
    "classes": (([LEVEL], IDS, 0), {}, ValueError, "num_classes must be an int, at least 1, got 0"),
    "images": (([LEVEL, LEVEL[:1]], IDS, 5), {}, ValueError,
               "levels[1] must have the images, dtype and device of levels[0], 2, torch.float32 and cpu, "
               "got 1, torch.float32 and cpu"),
    "label shape": (([LEVEL], IDS[:, :-1], 5), {}, ValueError,
                    "labels must have shape (2, 24), one per anchor in (h, w, a) order, got (2, 23)"),
    "label count": (([LEVEL, LEVEL], [IDS], 5), {}, ValueError, "labels must have one tensor per level, 2, got 1"),
    "label dtype": (([LEVEL], IDS.float(), 5), {}, TypeError, "labels must be integer class ids, got torch.float32"),
    "label": (([LEVEL], IDS + 8, 5), {}, ValueError,
              "target 7 at row 0 is out of range: class ids are 0 to 4, -1 and 5 are background"),
    "none": (([LEVEL], IDS, 5), {"reduction": "none"}, ValueError,
             'reduction="none" has no meaning here: levels have no common layout; use sigmoid_focal_loss on each'),
    "weight": (([LEVEL], IDS, 5), {"weight": torch.ones(2, 23, 1)}, ValueError,
               "weight must broadcast to (N, M, C), (2, 24, 5), 1-d per class, got (2, 23, 1)"),
    "weight of images": (([LEVEL], IDS, 5), {"weight": torch.ones(3, 1, 1)}, ValueError,
                         "weight must broadcast to (N, M, C), (2, 24, 5), 1-d per class, got (3, 1, 1)"),
    "weight of one class": (([LEVEL], IDS, 5), {"weight": torch.ones(1), "normalizer": "positives_per_image"},
                            ValueError, "weight must broadcast to (N, M, C), (2, 24, 5), 1-d per class, got (1,)"),
    "weight dims": (([LEVEL], IDS, 5), {"weight": torch.ones(1, 2, 24, 1)}, ValueError,
                    "weight must broadcast to (N, M, C), (2, 24, 5), 1-d per class, got (1, 2, 24, 1)"),
    "weight list": (([LEVEL], IDS, 5), {"weight": [1.0] * 5, "normalizer": "positives_per_image"}, TypeError,
                    "weight must be a Tensor or None, got list: pass torch.tensor(...)"),
    "weight grad": (([LEVEL], IDS, 5), {"weight": torch.ones(5, requires_grad=True)}, ValueError,
                    "weight requires grad, but no gradient is computed for it: pass weight.detach()"),
    "pos_weight": (([LEVEL], IDS, 5), {"pos_weight": torch.ones(4)}, ValueError,
                   "pos_weight must broadcast to (N, M, C), (2, 24, 5), 1-d per class, got (4,)"),
    "formula": (([LEVEL], IDS, 5), {"formula": "focla"}, ValueError,
                'formula must be "focal", "quality_focal", "varifocal", "asymmetric" or an imbal_kernels.Formula, '
                "got 'focla'"),
    "a function": (([LEVEL], IDS, 5), {"formula": max}, ValueError,
                   'formula must be "focal", "quality_focal", "varifocal", "asymmetric" or an imbal_kernels.Formula, '
                   f"got {max}"),
    "clip of focal": (([LEVEL], IDS, 5), {"clip": 0.1}, ValueError,
                      'clip has no meaning in formula="focal", which takes alpha, gamma'),
    "gamma_pos": (([LEVEL], IDS, 5), {"gamma_pos": 0.0, "formula": "varifocal"}, ValueError,
                  'gamma_pos has no meaning in formula="varifocal", which takes alpha, gamma'),
    "alpha": (([LEVEL], IDS, 5, 0.25), {"formula": "quality_focal"}, ValueError,
              'alpha has no meaning in formula="quality_focal", which takes gamma'),
    "gamma of one's own": (([LEVEL], IDS, 5), {"gamma": 2.0, "formula": SQUARED}, ValueError,
                           "gamma has no meaning in a Formula of your own, which takes none"),
    "pos_weight of one's own": (([LEVEL], IDS, 5), {"pos_weight": torch.ones(5), "formula": SQUARED}, ValueError,
                                "pos_weight has no meaning in a Formula of your own, which takes none"),
    "smoothing of one's own": (([LEVEL], IDS, 5), {"label_smoothing": 0.1, "formula": SQUARED}, ValueError,
                               "label_smoothing has no meaning in a Formula of your own, which takes none"),
    "beta": (([LEVEL], IDS, 5), {"gamma": 0.5, "formula": "quality_focal"}, ValueError,
             "gamma must be finite and at least 1, got 0.5"),
    "gamma": (([LEVEL], IDS, 5), {"gamma": "2"}, TypeError, "gamma must be a number, got str"),
    "alpha per class": (([LEVEL], IDS, 5), {"alpha": torch.ones(5), "formula": "varifocal"}, TypeError,
                        "alpha must be a number, got Tensor"),
    "clip": (([LEVEL], IDS, 5), {"clip": 1.5, "formula": "asymmetric"}, ValueError,
             "clip must be in [0, 1], got 1.5"),
    "score shape": (([LEVEL], IDS, 5), {"scores": SCORES[:, 1:], "formula": "varifocal"}, ValueError,
                    "scores must have shape (2, 24), one per anchor in (h, w, a) order, got (2, 23)"),
    "score count": (([LEVEL], IDS, 5), {"scores": [SCORES] * 2, "formula": "varifocal"}, ValueError,
                    "scores must have one tensor per level, 1, got 2"),
    "score list": (([LEVEL], IDS, 5), {"scores": [1.0], "formula": "varifocal"}, TypeError,
                   "scores[0] must be a Tensor, got float"),
    "a number of scores": (([LEVEL], IDS, 5), {"scores": 1.0, "formula": "varifocal"}, TypeError,
                           "scores must be a Tensor or a list of one per level, got float"),
    "score dtype": (([LEVEL], IDS, 5), {"scores": IDS, "formula": "varifocal"}, TypeError,
                    "scores must be float32, bfloat16, float16 or float64, got torch.int64"),
    "score": (([LEVEL], IDS + 1, 5), {"scores": SCORES - 2, "formula": "varifocal"}, ValueError,
              "score -2 at row 0 is out of range: scores must be in [0, 1]"),
    "normalizer": (([LEVEL], IDS, 5), {"normalizer": "negatives"}, ValueError,
                   'normalizer must be a number, a 0-d tensor, "positives" or "positives_per_image", got "negatives"'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, options, error, message = BAD[name]
    with pytest.raises(error) as caught:
        ik.dense_focal_loss(*arguments, **options)
    assert str(caught.value) == message


def test_the_first_bad_label_in_the_users_order():
    level, labels = torch.zeros(2, 10, 3, 4), torch.full((2, 24), -1)
    labels[1, 7], labels[1, 2] = 9, 8  # anchor 1 of position 3; anchor 0 of position 1
    with pytest.raises(ValueError, match="target 8 at row 26 is out of range"):
        ik.dense_focal_loss([level], labels, 5)


@pytest.mark.parametrize("classes_first", [True, False], ids=["contiguous", "channels last"])
def test_the_first_bad_label_of_several_levels(classes_first):
    levels = [torch.zeros(1, 10, 3, 4), torch.zeros(1, 10, 2, 2), torch.zeros(1, 10, 1, 3)]
    levels[1] = levels[1] if classes_first else levels[1].to(memory_format=torch.channels_last)
    labels = torch.full((1, 24 + 8 + 6), -1)
    labels[0, 24 + 8 + 1] = 77
    with pytest.raises(ValueError, match=r"target 77 at row 1 of levels\[2\] is out of range"):
        ik.dense_focal_loss(levels, labels, 5)
    labels[0, 24 + 5] = 66
    with pytest.raises(ValueError, match=r"target 66 at row 5 of levels\[1\] is out of range"):
        ik.dense_focal_loss(levels, labels, 5)


@pytest.mark.parametrize("sides, images", [([(8, 8)], 0), ([(8, 8), (0, 4), (1, 1)], 2), ([(3, 0)], 2)], ids=str)
def test_nothing_in_it(sides, images):
    """No images, or levels without a position, beside factors of rows."""
    levels = [torch.randn(images, 12, *side).requires_grad_() for side in sides]
    count = 3 * sum(h * w for h, w in sides)
    labels = torch.arange(images * count).reshape(images, count) % 5 - 1
    for options in (
        {"normalizer": "positives_per_image"},
        {"weight": torch.rand(images, count, 1)},
        {"pos_weight": torch.rand(images, count, 4)},
        {"scores": torch.rand(images, count)},
    ):
        loss, expected = (f.dense_focal_loss(levels, labels, 4, **options) for f in (ik, ik.reference))
        torch.testing.assert_close(loss, expected)
        for got, true in zip(gradients(loss, levels), gradients(expected, levels), strict=True):
            torch.testing.assert_close(got, true)


@pytest.mark.parametrize("formula", ["focal", "asymmetric"])
def test_vmap(formula):
    levels, labels = torch.randn(3, 2, 12, 4, 4), torch.randint(-1, 5, (3, 2, 48))

    def loss(level, ids):
        return ik.dense_focal_loss([level], ids, 4, formula=formula)

    each = torch.stack([loss(*one) for one in zip(levels, labels, strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(levels, labels), each)


def test_same_bits_for_any_number_of_threads(backend, on_threads):
    """Threads share out the chunks of all levels: a share may span several, and some have nothing in them."""
    generator = torch.Generator().manual_seed(0)
    sides = [(40, 41), (0, 7), (9, 9), (3, 3), (1, 1), (20, 30), (5, 0)]
    levels = [torch.randn(2, 3 * 16, *side, generator=generator).requires_grad_() for side in sides]
    labels = torch.randint(-1, 200, (2, 3 * sum(h * w for h, w in sides)), generator=generator).clamp(max=16)

    def loss_and_gradients():
        loss = ik.dense_focal_loss(levels, labels, 16)
        return loss, *torch.autograd.grad(loss, levels)

    results = on_threads((1, 2, 7), loss_and_gradients)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_the_first_bad_score_in_the_users_order(format, backend):
    """Before a bad label, or behind it; those of ignored and background anchors are not looked at."""
    level, labels = torch.zeros(2, 10, 3, 4).to(memory_format=format), torch.full((2, 24), -1)
    scores = torch.full((2, 24), 7.0)
    labels[0, 5] = labels[1, 3] = -100
    labels[1, 2] = labels[1, 7] = 4
    scores[1, 7] = float("nan")
    scores[1, 2] = 0.5
    loss = functools.partial(ik.dense_focal_loss, [level], labels, 5, formula="quality_focal", scores=scores)
    with pytest.raises(ValueError, match="score nan at row 31 is out of range"):
        loss()
    labels[1, 4] = 9
    with pytest.raises(ValueError, match="target 9 at row 28 is out of range"):
        loss()
    scores[1, 2] = 1.5
    with pytest.raises(ValueError, match="score 1.5 at row 26 is out of range"):
        loss()
