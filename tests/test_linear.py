"""A linear layer with its loss: equal to the two apart, and never with the logits in full."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import imbal_kernels as ik
from bench.harness import Contestant, peak_memory
from imbal_kernels.ops import backends, linear

ROWS, DIM, CLASSES = 37, 6, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks and a remainder: 5 rows of fp32."""
    monkeypatch.setattr(linear, "CHUNK_BYTES", 5 * CLASSES * 4)


def make(device, dtype=torch.float32, background=True):
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=g) for shape in ((ROWS, DIM), (CLASSES, DIM), (CLASSES,))]
    labels = torch.randint(-1 if background else 0, CLASSES, (ROWS,), generator=g)
    labels[::6] = -100
    return [t.to(device, dtype).requires_grad_() for t in tensors], labels.to(device)


def compare(ours, apart, tensors, **tolerance):
    torch.testing.assert_close(ours, apart, **tolerance)
    given = [t for t in tensors if t is not None]
    for got, true in zip(torch.autograd.grad(ours * 3, given), torch.autograd.grad(apart * 3, given), strict=True):
        torch.testing.assert_close(got, true, **tolerance)


FOCAL = {
    "default": {},
    "mean": {"reduction": "mean", "normalizer": None},
    "sum": {"normalizer": None},
    "number": {"normalizer": 3.0, "loss_weight": 0.5},
    "weights": {"class_weight": torch.rand(CLASSES), "pos_weight": torch.rand(CLASSES), "label_smoothing": 0.1},
    "gamma": {"gamma": 0.5, "alpha": -1},
}
SOFTMAX = {
    "default": {},
    "sum": {"reduction": "sum"},
    "weights": {"class_weight": torch.rand(CLASSES), "label_smoothing": 0.1},
    "adjusted": {"logit_adjustment": torch.rand(CLASSES).log()},
    "number": {"normalizer": 3.0, "loss_weight": 0.5},
    "positives": {"normalizer": "positives", "class_weight": torch.rand(CLASSES)},
}


def on(options, device):
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return moved, {"weight" if k == "class_weight" else k: v for k, v in moved.items()}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", FOCAL)
def test_focal_equals_the_two_apart(name, with_bias, device):
    (x, w, b), labels = make(device)
    b = b if with_bias else None
    options, flat = on(FOCAL[name], device)
    flat = {"reduction": "sum", "normalizer": "positives", **flat}
    compare(ik.linear_focal_loss(x, w, b, labels, **options), ik.sigmoid_focal_loss(F.linear(x, w, b), labels, **flat),
            (x, w, b), rtol=1e-5, atol=1e-6)  # fmt: skip  # sums in another order


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", SOFTMAX)
def test_cross_entropy_equals_the_two_apart(name, with_bias, device):
    (x, w, b), labels = make(device, background=False)
    b = b if with_bias else None
    options, flat = on(SOFTMAX[name], device)
    compare(ik.linear_cross_entropy(x, w, b, labels, **options), ik.cross_entropy(F.linear(x, w, b), labels, **flat),
            (x, w, b), rtol=1e-5, atol=1e-6)  # fmt: skip  # sums in another order


def test_ema_normalizer(device):
    (x, w, b), labels = make(device)
    normalizer, same = (ik.EMANormalizer(initial=50.0).to(device) for _ in range(2))
    for _ in range(2):
        ours = ik.linear_focal_loss(x, w, b, labels, normalizer=normalizer)
        apart = ik.sigmoid_focal_loss(F.linear(x, w, b), labels, reduction="sum", normalizer=same)
        torch.testing.assert_close(ours, apart)
    assert torch.equal(normalizer.value, same.value) and normalizer.value < 50


def test_cross_entropy_equals_pytorch(device):
    (x, w, b), labels = make(device, background=False)
    ours = ik.linear_cross_entropy(x, w, b, labels)
    compare(ours, F.cross_entropy(F.linear(x, w, b), labels), (x, w, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype, device):
    (x, w, b), labels = make(device, dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
    ours = ik.linear_focal_loss(x, w, b, labels)
    assert ours.dtype == torch.float32
    true = ik.sigmoid_focal_loss(F.linear(*exact), labels, reduction="sum", normalizer="positives")
    step = 8 * torch.finfo(dtype).eps  # logits, their gradient and the products are rounded to the type
    torch.testing.assert_close(ours.double(), true, rtol=step, atol=0)
    pairs = zip(torch.autograd.grad(ours, (x, w, b)), torch.autograd.grad(true, exact), strict=True)
    for got, expected in pairs:
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=step, atol=step * float(expected.abs().max()))


def test_autocast(device):
    (x, w, b), labels = make(device)
    with torch.autocast(x.device.type, torch.bfloat16):
        ours = ik.linear_focal_loss(x, w, b, labels)
        apart = ik.sigmoid_focal_loss(F.linear(x, w, b), labels, reduction="sum", normalizer="positives")
    step = 8 * torch.finfo(torch.bfloat16).eps
    compare(ours, apart, (x, w, b), rtol=step, atol=step)


def test_derivatives(device):
    (x, w, b), labels = make(device, torch.float64)
    x = x[:7].detach().requires_grad_()  # four chunks

    def focal(*tensors):
        return ik.linear_focal_loss(*tensors, labels[:7])

    assert torch.autograd.gradcheck(focal, (x, w, b))
    assert torch.autograd.gradgradcheck(focal, (x, w, b))


def test_backward_twice_and_frozen_layers(device):
    (x, w, b), labels = make(device)
    loss = ik.linear_focal_loss(x, w, b, labels)
    first = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(loss, (x, w, b)), strict=True):
        assert torch.equal(one, two)
    frozen = ik.linear_focal_loss(x, w.detach(), b.detach(), labels)
    torch.testing.assert_close(torch.autograd.grad(frozen, x)[0], first[0])
    with torch.no_grad():
        assert ik.linear_focal_loss(x, w, b, labels) == loss


@pytest.mark.parametrize(
    "classes, dtype",
    [(1203, torch.float32), (1203, torch.float16), (20_000, torch.float32), (20_000, torch.bfloat16)],
    ids=str,
)
def test_peak_memory_is_what_the_docstring_says(classes, dtype, monkeypatch, device):
    """Two chunks of 32 MiB beside the gradients; where they are half, a weight's in fp32 too."""
    monkeypatch.undo()
    rows, width = 100_000_000 // dtype.itemsize // classes, 8
    x = torch.randn(rows, width, device=device, dtype=dtype).requires_grad_()
    w = torch.randn(classes, width, device=device, dtype=dtype).requires_grad_()
    labels = torch.randint(classes, (rows,), device=device)
    gradients = (x.numel() + w.numel()) * dtype.itemsize
    more = 4 * w.numel() if dtype != torch.float32 else 0
    for loss in (ik.linear_focal_loss, ik.linear_cross_entropy):
        work = Contestant(lambda loss=loss: torch.autograd.grad(loss(x, w, None, labels) * 3, (x, w)), 0)
        peak = peak_memory(work, device)
        # labels counted and checked take some bytes a row, the products of a chunk those of its rows
        small = 40 * rows + linear.CHUNK_BYTES // classes * width
        assert linear.CHUNK_BYTES < peak - gradients <= 2 * linear.CHUNK_BYTES + more + small
        assert peak < rows * classes * dtype.itemsize  # the logits alone, without their gradient


COMPILED = {
    "focal": lambda x, w, b, labels: ik.linear_focal_loss(x * 2, w, b, labels),
    "focal, mean": lambda x, w, b, labels: ik.linear_focal_loss(x * 2, w, b, labels, 0.5, 1.5, "mean", normalizer=None),
    "cross-entropy": lambda x, w, b, labels: ik.linear_cross_entropy(x * 2, w, b, labels.clamp(min=0)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole_and_once_for_any_number_of_rows(name, device):
    torch._dynamo.reset()
    (x, w, b), labels = make(device)
    loss, compiled = COMPILED[name], torch.compile(COMPILED[name], fullgraph=True, backend="aot_eager")
    for rows, stance in ((12, "default"), (20, "default"), (31, "fail_on_recompile"), (37, "fail_on_recompile")):
        with torch.compiler.set_stance(stance):
            ours = compiled(x[:rows], w, b, labels[:rows])
            compare(ours, loss(x[:rows], w, b, labels[:rows]), (x, w, b), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, w, b, labels), loss(x, w, b, labels))


def test_compiles_under_autocast(device):
    torch._dynamo.reset()
    (x, w, b), labels = make(device)

    def loss(x, w, b):
        with torch.autocast(x.device.type, torch.bfloat16):
            return ik.linear_focal_loss(x, w, b, labels)

    compare(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, w, b), loss(x, w, b), (x, w, b))


@pytest.mark.parametrize("family", ["sigmoid", "softmax"])
def test_chunks_read_no_tensor_on_the_host(family, monkeypatch, device):
    """But for the check of the class ids, which is a CPU's: a GPU must not wait for one."""

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return function(*args, **(kwargs or {}))

    (x, w, b), labels = make(device, background=False)
    none = torch.empty(0, CLASSES, device=device)
    sigmoid = (none, labels, *[None] * 5, "focal", 0.25, 2.0, 0.0, 0.0, 0.0, 1.0, -100, False, False)
    softmax = (none[:, :, None], labels[:, None], None, None, None, 0.0, 0.0, 1.0, -100, False, False)
    fields = sigmoid if family == "sigmoid" else softmax
    with pytest.raises(AssertionError), Refuse():
        bool(labels.any())
    monkeypatch.setattr(linear, "_check", lambda *args: None)
    with Refuse():
        linear._chunks(family, x.detach(), w.detach(), b.detach(), None, [True] * 3, *fields)


def test_opcheck(device):
    (x, w, b), labels = make(device)
    none, on = torch.empty(0, CLASSES, device=device), torch.ops.imbal_kernels
    layer = [t.detach() for t in (x, w, b)]
    for upstream in (None, torch.tensor(2.0, device=device)):
        sigmoid = (none, labels, *[None] * 5, "focal", 0.25, 2.0, 0.0, 0.0, 0.0, 1.0, -100, False, False)
        torch.library.opcheck(on.linear_sigmoid_loss.default, (*layer, upstream, [True, False, True], *sigmoid))
        ids, softmax = labels.clamp(min=0)[:, None], (None, None, None, 0.0, 0.0, 1.0, -100, False, False)
        torch.library.opcheck(
            on.linear_softmax_loss.default, (*layer, upstream, [True] * 3, none[:, :, None], ids, *softmax)
        )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_gradscaler(half, device):
    """Under autocast with a scaler: gradients after unscaling as without either, none lost to fp16's underflow."""
    (x, w, b), labels = make(device)
    exact = torch.autograd.grad(ik.linear_focal_loss(x, w, b, labels, normalizer=1e6), (x, w, b))
    scaler, optimizer = torch.amp.GradScaler(device, init_scale=2.0**24), torch.optim.SGD([x, w, b], lr=0.0)
    with torch.autocast(device, half):
        loss = ik.linear_focal_loss(x, w, b, labels, normalizer=1e6)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for t, expected in zip((x, w, b), exact, strict=True):
        assert t.grad.dtype == torch.float32
        step = 8 * torch.finfo(half).eps
        torch.testing.assert_close(t.grad, expected, rtol=step, atol=step * float(expected.abs().max()))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**24  # no gradient was infinite


def test_func_transforms(device):
    (x, w, b), labels = make(device)
    expected = torch.autograd.grad(ik.linear_focal_loss(x, w, b, labels), (x, w, b))
    x, w, b = (t.detach() for t in (x, w, b))
    for got, true in zip(torch.func.grad(ik.linear_focal_loss, (0, 1, 2))(x, w, b, labels), expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)
    x, labels = x[:36].view(4, 9, DIM), labels[:36].view(4, 9).clamp(min=0)
    mapped = torch.func.vmap(ik.linear_cross_entropy, (0, None, None, 0))(x, w, b, labels)
    apart = [ik.linear_cross_entropy(part, w, b, ids) for part, ids in zip(x, labels, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(apart))


@pytest.mark.filterwarnings("ignore:imbal_kernels runs on its PyTorch reference")
@pytest.mark.parametrize("loss", [ik.linear_focal_loss, ik.linear_cross_entropy])
def test_without_kernels(loss, monkeypatch):
    (x, w, b), labels = make("cpu", background=False)
    expected = loss(x, w, b, labels)
    monkeypatch.setitem(backends.MISSING, "cpu", "it was not built")
    compare(loss(x, w, b, labels), expected, (x, w, b), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loss(x, w, b, labels), expected)


def test_no_rows(device):
    (x, w, b), labels = make(device)
    assert ik.linear_focal_loss(x[:0], w, b, labels[:0]) == 0
    assert ik.linear_cross_entropy(x[:0], w, b, labels[:0]).isnan()  # as F.cross_entropy


X, W, B, IDS = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(5), torch.zeros(4).long()
BAD = {
    "weight": ((X, W.T, B, IDS), {}, ValueError, "weight must have shape (C, D), D = 3 as features, got (3, 5)"),
    "bias": ((X, W, B[:4], IDS), {}, ValueError, "bias must have shape (5,), got (4,)"),
    "labels": ((X, W, B, IDS[:3]), {}, ValueError, "labels must be class ids of shape (4,), got (3,)"),
    "values": ((X, W, B, IDS.float()), {}, TypeError,
               "labels must be integer class ids, got torch.float32"),
    "dtype": ((X, W.double(), B.double(), IDS), {}, TypeError,
              "features, weight and bias must have one dtype, got torch.float32 and torch.float64"),
    "integers": ((X.long(), W, B, IDS), {}, TypeError,
                 "features must be float32, bfloat16, float16 or float64, got torch.int64"),
    "none": ((X, W, B, IDS), {"reduction": "none", "normalizer": None}, ValueError,
             'reduction="none" would hold the loss of every logit: it needs "mean" or "sum"'),
    "images": ((X, W, B, IDS), {"normalizer": "positives_per_image"}, ValueError,
               'normalizer="positives_per_image" needs images; rows of features have none'),
    "label": ((X, W, B, IDS + 9), {}, ValueError,
              "target 9 at row 0 is out of range: class ids are 0 to 4, -1 and 5 are background"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, options, error, message = BAD[name]
    with pytest.raises(error) as caught:
        ik.linear_focal_loss(*arguments, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("loss", [ik.linear_focal_loss, ik.linear_cross_entropy])
def test_the_first_bad_label_by_its_row_in_the_whole(loss, compiled):
    torch._dynamo.reset()
    (x, w, b), labels = make("cpu", background=False)
    labels[31], labels[33] = CLASSES + 4, CLASSES + 3
    called = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    with pytest.raises(ValueError, match=f"target {CLASSES + 4} at row 31 is out of range: class ids are 0 to 10"):
        called(x, w, b, labels)


def test_alpha_above_one():
    with pytest.raises(ValueError, match="alpha must be at most 1"):
        ik.linear_focal_loss(X, W, B, IDS, torch.full((5,), 2.0))
