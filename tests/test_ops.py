"""The raw ops as PyTorch sees them: opcheck, torch.compile, torch.func."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import imbal_kernels as ik
from imbal_kernels.ops import sigmoid as ops

raw = torch.ops.imbal_kernels
SQUARED = ik.Formula(lambda x, t: (torch.sigmoid(x) - t) ** 2)
LOSSES = {
    "focal": lambda x, t: ik.sigmoid_focal_loss(x, t, reduction="mean"),
    "focal, none": lambda x, t: ik.sigmoid_focal_loss(x, t),
    "focal, positives": lambda x, t: ik.sigmoid_focal_loss(x, t, gamma=1.5, reduction="sum", normalizer="positives"),
    "bce": lambda x, t: ik.binary_cross_entropy_with_logits(x, t, pos_weight=torch.full((5,), 2.0, device=x.device)),
    "quality": lambda x, t: ik.quality_focal_loss(x, t, reduction="mean"),
    "quality, scores": lambda x, t: ik.quality_focal_loss(
        x, t, reduction="sum", **({} if t.shape == x.shape else {"scores": x[..., 0].detach().clamp(0, 1)})
    ),
    "varifocal": lambda x, t: ik.varifocal_loss(x, t, reduction="sum", normalizer="positives"),
    "asymmetric": lambda x, t: ik.asymmetric_loss(x, t),
    "own formula": lambda x, t: ik.elementwise_loss(SQUARED, x, t, "mean"),
    "focal module": ik.SigmoidFocalLoss(reduction="sum", label_smoothing=0.1),
    "bce module": ik.BCEWithLogitsLoss(),
}


def test_raw_ops_work_before_the_first_loss():
    call = "torch.ops.imbal_kernels.count_targets(torch.zeros(3).long(), 2, 0, False, True)"
    code = f"import torch, imbal_kernels; {call}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_leaves_the_compiler_alone():
    """torch._dynamo takes as long to import as all of PyTorch."""
    code = "import sys, imbal_kernels; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def problem(device, n=33, kind="ids", dtype=torch.float32):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).to(device, dtype).requires_grad_()
    ids = torch.arange(n, device=device) % 7 - 1
    return x, ids if kind == "ids" else (ids[:, None] == torch.arange(5, device=device)).float()


@pytest.mark.parametrize("mode, want_grad", [(ops.NO_LOSS, True), (ops.ELEMENTWISE, False), (ops.SUM, True)])
@pytest.mark.parametrize("dtype, kind", [(torch.float32, "ids"), (torch.bfloat16, "dense")], ids=str)
def test_opcheck_of_sigmoid_loss(dtype, kind, want_grad, mode, device):
    x, t = problem(device, kind=kind, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, scale = torch.rand(33, 1, device=device, dtype=wide), torch.tensor(0.5, device=device, dtype=wide)
    upstream = torch.tensor(2.0, device=device, dtype=wide) if mode == ops.NO_LOSS else None
    arguments = (x.detach(), t, weight, None, None, scale, upstream, 0.25, 2.0, 0.1, 1.0, -100, mode, want_grad, False)
    torch.library.opcheck(raw.sigmoid_loss.default, arguments)


@pytest.mark.parametrize("formula", ["quality_focal", "varifocal", "asymmetric"])
@pytest.mark.parametrize("mode, want_grad", [(ops.NO_LOSS, True), (ops.ELEMENTWISE, False), (ops.SUM, True)])
def test_opcheck_of_the_other_formulas(formula, mode, want_grad, device):
    x, ids = problem(device)
    upstream = torch.tensor(2.0, device=device) if mode == ops.NO_LOSS else None
    arguments = (x.detach(), ids, None, None, None, None, upstream, 0.75, 2.0, 0.0, 1.0, -100, mode, want_grad, False)
    scores = None if formula == "asymmetric" else torch.rand(33, device=device)
    options = {"scores": scores, "formula": formula, "gamma_pos": 1.0, "clip": 0.05}
    torch.library.opcheck(raw.sigmoid_loss.default, arguments, options)


@pytest.mark.parametrize("mode", [ops.NO_LOSS, ops.SUM])
def test_opcheck_of_a_heads_layout(mode, device):
    x = torch.randn(2, 3, 5, 7, device=device)  # images, anchors, classes, positions
    ids = torch.arange(42, device=device).reshape(2, 3, 7) % 7 - 1
    upstream = torch.tensor(2.0, device=device) if mode == ops.NO_LOSS else None
    arguments = (x, ids, None, None, None, None, upstream, 0.25, 2.0, 0.0, 1.0, -100, mode, True, False)
    torch.library.opcheck(raw.sigmoid_loss.default, arguments)
    scores = torch.rand(42, device=device)
    for formula in ("quality_focal", "varifocal"):
        torch.library.opcheck(raw.sigmoid_loss.default, arguments, {"scores": scores, "formula": formula})


def test_levels_that_do_not_belong_together():
    """The op on a CPU, whose callers check all this: errors, not reads out of bounds."""
    x, ids, rest = torch.zeros(3, 2), torch.tensor([0, 1, -1]), (-100, 2, True, [], "focal", 0.0, 0.0)
    one = (None, None, None, 0.25, 2.0, 0.0, 1.0)
    for inputs, targets, weights in (([x, x], [ids], []), ([x, x], [ids, ids], [torch.ones(1, 2)])):
        with pytest.raises(RuntimeError, match="a list must have a tensor for each level"):
            raw.sigmoid_loss_levels(inputs, targets, weights, [], *one, *rest)
    with pytest.raises(RuntimeError, match="levels must be of one dtype"):
        raw.sigmoid_loss_levels([x, x.double()], [ids, ids], [], [], *one, *rest)
    with pytest.raises(RuntimeError, match="the losses of several levels are added up"):
        raw.sigmoid_loss_levels([x, x], [ids, ids], [], [], *one, -100, 1, *rest[2:])


@pytest.mark.parametrize("formula", ["focal", "varifocal"])
@pytest.mark.parametrize("mode, want_grad", [(ops.NO_LOSS, True), (ops.SUM, False), (ops.SUM, True)])
def test_opcheck_of_levels(mode, want_grad, formula, device):
    """Two of a head's layout, one with its classes last."""
    shapes = [(2, 3, 5, 7), (2, 1, 5, 4), (6, 5)]
    inputs = [torch.randn(shape, device=device) for shape in shapes]
    targets = [torch.arange(42).reshape(2, 3, 7), torch.arange(8).reshape(2, 1, 4), torch.arange(6)]
    targets = [ids.to(device) % 7 - 1 for ids in targets]
    weights = [torch.rand(ids.numel(), 1, device=device) for ids in targets]
    scores = [] if formula == "focal" else [torch.rand(ids.numel(), device=device) for ids in targets]
    upstream = torch.tensor(2.0, device=device) if mode == ops.NO_LOSS else None
    scale = torch.tensor(0.5, device=device)
    numbers = (0.25, 2.0, 0.1, 1.0, -100)
    last = (mode, want_grad, scores, formula, 0.0, 0.0)
    arguments = (inputs, targets, weights, [], None, scale, upstream, *numbers, *last)
    for op in (raw.sigmoid_loss_levels, raw.sigmoid_loss_levels_by_class):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("positives", [False, True])
def test_opcheck_of_the_small_ops(positives, device):
    x, ids = problem(device)
    torch.library.opcheck(raw.count_targets.default, (ids, 5, -100, False, positives))
    torch.library.opcheck(raw.count_targets.default, ((x > 0).float().detach(), 5, -100, True, positives))
    grads = [torch.ones(shape, device=device) for shape in ((5,), (3, 2))]
    torch.library.opcheck(raw.rescale_.default, (grads, torch.tensor(2.0, device=device)))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_count_targets(kind, device):
    ids = torch.tensor([0, 1, 4, 5, 5, 3], device=device, dtype=kind)
    assert ops.count_targets(ids, 5, 1, False, False) == 5
    assert ops.count_targets(ids, 5, 1, False, True) == 3
    dense = torch.tensor([[0, 1, 100]], device=device, dtype=kind)
    assert ops.count_targets(dense, 3, 100, True, False) == 2
    assert ops.count_targets(dense, 3, 100, True, True) == 1
    assert ops.count_targets(ids[:0], 5, 1, False, True) == 0
    if device == "cpu":  # where a loss is about to raise an error, -1 keeps an EMANormalizer where it is
        for positives in (False, True):
            assert ops.count_targets(ids, 4, 1, False, positives) == -1
            assert ops.count_targets(dense, 3, -100, True, positives) == -1


def compare(function, compiled, x, t):
    expected, actual = function(x, t), compiled(x, t)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    (expected_grad,) = torch.autograd.grad(expected.sum() * 3, x)
    (grad,) = torch.autograd.grad(actual.sum() * 3, x)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["ids", "dense"])
@pytest.mark.parametrize("name", LOSSES)
def test_compile(name, kind, device):
    """Through AOTAutograd, which is where an op that breaks the graph or lies about its outputs shows."""
    torch._dynamo.reset()
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    x, t = problem(device, kind=kind)
    compare(LOSSES[name], compiled, x, t)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t), LOSSES[name](x, t), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "own formula"])
def test_compiled_code_calls_the_kernels(name, device):
    """And not the reference, which a compiler could trace just as well."""
    torch._dynamo.reset()
    called = []

    def record(graph, example_inputs):
        called.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    x, t = problem(device)
    torch.compile(LOSSES[name], fullgraph=True, backend=backend)(x, t).sum().backward()
    assert "imbal_kernels.sigmoid_loss.default" in called[0]
    assert not any("sigmoid." in target or "softplus" in target for targets in called for target in targets)


def test_compiled_code_refuses_a_bad_label(device):
    torch._dynamo.reset()
    x, ids = problem(device)
    ids[7] = 9
    compiled = torch.compile(LOSSES["focal"], fullgraph=True, backend="aot_eager")
    if x.is_cuda:
        assert compiled(x, ids).isnan()
    else:
        with pytest.raises(ValueError, match="target 9 at row 7 is out of range"):
            compiled(x, ids)


@pytest.mark.parametrize("loss", [ik.sigmoid_focal_loss, ik.softmax_focal_loss])
def test_compiled_autograd(loss, device):
    """The gradient that a compiled forward keeps reaches a backward that is compiled as it runs."""
    torch._dynamo.reset()
    x, ids = problem(device)
    ids = ids.clamp(0, x.shape[1] - 1)
    layer = torch.nn.Linear(x.shape[1], x.shape[1]).to(device)

    def step(x):
        (loss(layer(x), ids, reduction="sum") * 1.7).backward()

    step(x.detach())
    expected, layer.weight.grad = layer.weight.grad, None
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="aot_eager")(x.detach())
    torch.testing.assert_close(layer.weight.grad, expected)


COMPILED = [
    *((name, "aot_eager") for name in ("focal", "focal, positives", "quality, scores", "asymmetric", "own formula")),
    ("focal", "inductor"),
]


@pytest.mark.parametrize("name, backend", COMPILED)
def test_compiles_no_more_when_n_changes(name, backend, device):
    """Once for the first size and once for any size; the logits come out of a layer, as they do in training."""
    torch._dynamo.reset()

    def function(x, t):
        return LOSSES[name](x * 2, t)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for n in (8, 16):
        compare(function, compiled, *problem(device, n))
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (24, 100):
            compare(function, compiled, *problem(device, n))


@pytest.mark.parametrize("option", ["gamma", "alpha", "label_smoothing", "normalizer", "loss_weight"])
def test_compiles_with_a_number_that_changes(option, device):
    """From its second value on a number is symbolic."""
    torch._dynamo.reset()

    def function(x, t, value):
        return ik.sigmoid_focal_loss(x, t, reduction="sum", **{option: value})

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value in (0.5, 0.25, 0.75):
        compare(lambda x, t, v=value: function(x, t, v), lambda x, t, v=value: compiled(x, t, v), *problem(device))


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_dynamic(name, device):
    torch._dynamo.reset()
    compiled = torch.compile(LOSSES[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (8, 24):
        compare(LOSSES[name], compiled, *problem(device, n))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_bad_labels_under_compile_and_func(reduction, device):
    """Compiled code calls the kernel, which says which row; torch.func runs the reference: NaN, gradient included."""
    torch._dynamo.reset()
    x, ids = problem(device)
    ids[7] = 90

    def loss(x):
        return ik.sigmoid_focal_loss(x, ids, reduction=reduction).sum()

    if device == "cpu":
        with pytest.raises(ValueError, match="target 90 at row 7 is out of range"):
            torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    grad, value = torch.func.grad_and_value(loss)(x.detach())
    assert value.isnan() and grad[7].isnan().all() and not grad[:7].isnan().any()


def test_meta_tensors_have_a_loss_and_a_gradient():
    x = torch.zeros(7, 3, device="meta", requires_grad=True)
    loss = ik.sigmoid_focal_loss(x, torch.zeros(7, device="meta", dtype=torch.long), reduction="sum")
    loss.backward()
    assert loss.shape == () and loss.is_meta and x.grad.shape == (7, 3)


@pytest.mark.parametrize("name", LOSSES)
def test_func_grad_and_vmap(name, device):
    x, t = problem(device)
    loss = LOSSES[name]
    (expected,) = torch.autograd.grad(loss(x, t).sum(), x)
    x = x.detach()
    grad = torch.func.grad(lambda x: loss(x, t).sum())(x)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)
    batch, targets = x[:32].view(4, 8, 5), t[:32].view(4, 8)
    mapped = torch.func.vmap(loss)(batch, targets)
    torch.testing.assert_close(mapped, torch.stack([loss(x, t) for x, t in zip(batch, targets, strict=True)]))
    mapped = torch.func.vmap(torch.func.grad(lambda x, t: loss(x, t).sum()))(batch, targets)
    torch.testing.assert_close(mapped[1], torch.func.grad(lambda x: loss(x, targets[1]).sum())(batch[1]))


@pytest.mark.parametrize("name", LOSSES)
def test_func_jvp(name, device):
    """Forward mode agrees with the gradient, in the dtype of the loss."""
    x, t = problem(device)
    direction = torch.linspace(-1, 1, x.numel(), device=device).view_as(x)
    (grad,) = torch.autograd.grad(LOSSES[name](x, t).sum(), x)
    loss, tangent = torch.func.jvp(lambda x: LOSSES[name](x, t), (x.detach(),), (direction,))
    assert tangent.dtype == loss.dtype
    torch.testing.assert_close(tangent.sum(), (grad * direction).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_vectorized_autograd(name, device):
    """torch.autograd maps backward over a batch of upstream gradients, or forward mode over directions."""
    x, t = problem(device)
    x = x.detach()

    def jacobian(**options):
        return torch.autograd.functional.jacobian(lambda x: LOSSES[name](x, t), x, **options)

    expected = jacobian()
    torch.testing.assert_close(jacobian(vectorize=True), expected)
    forward = jacobian(vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.7])
def test_forward_mode_of_hard_targets(gamma, device):
    x, t = problem(device, kind="dense")

    def loss(t):
        return ik.sigmoid_focal_loss(x.detach(), t, gamma=gamma, reduction="sum")

    tangent = torch.func.jvp(loss, (t,), (torch.ones_like(t),))[1]
    (grad,) = torch.autograd.grad(loss(t.requires_grad_()), t)
    torch.testing.assert_close(tangent, grad.sum(), rtol=1e-5, atol=1e-6)


def test_fakes_have_the_right_shapes(device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.zeros(7, 3, device=device, dtype=torch.bfloat16, requires_grad=True)
        loss = ik.sigmoid_focal_loss(x, torch.zeros(7, device=device, dtype=torch.long), reduction="mean")
        assert loss.shape == () and loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, x)
        assert grad.shape == (7, 3) and grad.dtype == torch.bfloat16
