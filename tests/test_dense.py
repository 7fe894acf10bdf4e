"""Losses straight from a head's levels: equal to the flat loss, and to torchvision's heads as they are."""

import sys
import types

import pytest
import torch

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


def test_nothing_of_the_size_of_the_logits_is_copied(device):
    """A head's contiguous level goes to the kernel as it is."""
    level, labels = torch.zeros(1, ANCHORS * CLASSES, 4, 4), torch.full((1, 48), -1)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= level.numel() and out.data_ptr() != level.data_ptr():
                seen.append(function)
            return out

    with Watch():
        ik.dense_focal_loss([level], labels, CLASSES)
    assert not seen


def test_gradcheck(device):
    levels, labels = make(device, torch.float64, sizes=((3, 2),))
    labels = labels[:, : 6 * ANCHORS]

    def loss(level):
        return ik.dense_focal_loss([level], labels, CLASSES, ignore_index=-2)

    assert torch.autograd.gradcheck(loss, levels)
    assert torch.autograd.gradgradcheck(loss, levels)


def test_backward_twice_and_another_upstream(device):
    levels, labels = make(device)
    loss = ik.dense_focal_loss(levels, labels, CLASSES, ignore_index=-2)
    first = torch.autograd.grad(loss, levels, retain_graph=True)
    again = torch.autograd.grad(loss * 3, levels)
    for one, three in zip(first, again, strict=True):
        torch.testing.assert_close(one * 3, three)


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


def flat(levels, classes):
    parts = [x.view(x.shape[0], -1, classes, *x.shape[2:]).permute(0, 3, 4, 1, 2) for x in levels]
    return torch.cat([part.reshape(part.shape[0], -1, classes) for part in parts], 1)


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


LEVEL, IDS = torch.zeros(2, 10, 3, 4), torch.full((2, 24), -1)
BAD = {
    "no levels": (([], IDS, 5), {}, TypeError, "levels must be a list of at least one Tensor, got list"),
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
                    "labels must have shape (2, 24), one id per anchor in (h, w, a) order, got (2, 23)"),
    "label count": (([LEVEL, LEVEL], [IDS], 5), {}, ValueError, "labels must have one tensor per level, 2, got 1"),
    "label dtype": (([LEVEL], IDS.float(), 5), {}, TypeError, "labels must be integer class ids, got torch.float32"),
    "label": (([LEVEL], IDS + 8, 5), {}, ValueError,
              "target 7 at row 0 is out of range: class ids are 0 to 4, -1 and 5 are background"),
    "none": (([LEVEL], IDS, 5), {"reduction": "none"}, ValueError,
             'reduction="none" has no meaning here: levels have no common layout; use sigmoid_focal_loss on each'),
    "weight": (([LEVEL], IDS, 5), {"weight": torch.ones(2, 23, 1)}, ValueError,
               "weight and pos_weight must broadcast to (N, M, C), M = 24 anchors, got (2, 23, 1)"),
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
