"""A linear layer and its loss as one torch op for each family: the logits exist a chunk of rows at a time.

The op runs on every device: products through the BLAS, the loss of a chunk by its family's op. Autograd is that of
fused.py, with three gradients in place of one.
"""

from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from imbal_kernels.ops import backends, sigmoid, softmax
from imbal_kernels.ops.fused import FAMILIES, NO_LOSS, SUM, compact, rescaled
from imbal_kernels.targets import out_of_range

# A chunk's logits take at most this, and their gradient the same: large enough for the matrix product to run at full
# speed, small against what it replaces (4 GB for 50,000 rows of 20,000 classes in fp32).
CHUNK_BYTES = 32 << 20

Layer = tuple[Tensor, Tensor, Tensor | None]  # features (N, D), weight (C, D), bias (C,)

_SCHEMA_TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", float: "float", int: "int", bool: "bool"
}  # fmt: skip


def linear_loss(family: str, layer: Layer, ids: Tensor, problem: Any) -> Tensor:
    """The loss of F.linear(*layer) and class ids (N,) under the options of `problem`, which has no rows."""
    problem = problem._replace(target=ids.reshape(-1, *problem.target.shape[1:]))
    if backends.in_transform():
        return FAMILIES[family].reference(_of_rows(problem, F.linear(*layer), ids))
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in layer]
    return _LinearLoss.apply(family, wanted, *layer, *problem)


def _of_rows(problem: Any, logits: Tensor, ids: Tensor) -> Any:
    """The problem of these rows: logits (N, C) and ids (N,) in the shapes of its family."""
    return problem._replace(
        input=logits.reshape(-1, *problem.input.shape[1:]), target=ids.reshape(-1, *problem.target.shape[1:])
    )


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, wanted: list[bool], features: Tensor, weight: Tensor, bias: Tensor | None,
                *fields: Any) -> Tensor:  # fmt: skip
        tensors = FAMILIES[name].tensors
        ctx.kept = any(wanted) and fields[0].dtype != torch.float16
        loss, *grads = _raw(name)(features, weight, bias, None, wanted if ctx.kept else [False] * 3, *fields)
        ctx.save_for_backward(features, weight, bias, *fields[:tensors])
        ctx.name, ctx.wanted, ctx.options = name, wanted, fields[tensors:]
        ctx.grads = grads if ctx.kept else None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, *tensors = ctx.saved_tensors
        layer, fields = (features, weight, bias), (*tensors, *ctx.options)
        grads, ctx.grads = ctx.grads, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative may follow
            grads = _in_full(ctx.name, layer, ctx.wanted, fields, upstream)
        elif not ctx.kept:
            _, *grads = _raw(ctx.name)(*layer, compact(upstream), ctx.wanted, *fields)
        else:
            if grads is None:
                _, *grads = _raw(ctx.name)(*layer, None, ctx.wanted, *fields)
            grads = rescaled(grads, upstream)
        asked_for = [g if asked else None for g, asked in zip(grads, ctx.wanted, strict=True)]
        return (None, None, *asked_for, *[None] * len(fields))


def _raw(name: str) -> Any:
    return getattr(torch.ops.imbal_kernels, f"linear_{name}_loss")


def _chunks(
    name: str, features: Tensor, weight: Tensor, bias: Tensor | None, upstream: Tensor | None, wanted: list[bool],
    *fields: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, and the gradients of features, weight and bias, (0,) where not wanted."""
    problem = FAMILIES[name].problem(*fields)
    dtype, classes, ids = problem.input.dtype, weight.shape[0], problem.target
    _check(name, problem, classes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = features.new_zeros((), dtype=wide)
    of_features = features.new_empty(features.shape if wanted[0] else (0,))
    of_weight = features.new_zeros(weight.shape if wanted[1] else (0,), dtype=wide)
    of_bias = features.new_zeros(classes if wanted[2] else 0, dtype=wide)
    rows = max(1, CHUNK_BYTES // (classes * dtype.itemsize))
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
        for first in range(0, max(features.shape[0], 1), rows):
            x = features[first : first + rows].to(dtype)
            loss, grad = _chunk(name, _of_rows(problem, F.linear(x, w, b), ids[first : first + rows]), upstream, wanted)
            total += loss
            if wanted[0]:
                of_features[first : first + rows] = grad @ w
            if wanted[1] and dtype == wide:
                of_weight.addmm_(grad.T, x)
            elif wanted[1]:
                of_weight += grad.T @ x
            if wanted[2]:
                of_bias += grad.sum(0, dtype=wide)
            del grad  # or the next chunk would be a third beside its own two
    return total, of_features, of_weight.to(weight.dtype), of_bias.to((weight if bias is None else bias).dtype)


def _chunk(name: str, problem: Any, upstream: Tensor | None, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """The loss of some rows, and its gradient by the logits, (n, C), where there is one to make."""
    family, logits = FAMILIES[name], problem.input
    if backends.has_kernels(logits):
        loss, (grad,) = family.raw([problem], upstream, SUM if upstream is None else NO_LOSS, any(wanted))
    else:
        with torch.enable_grad():
            loss = family.reference(problem._replace(input=logits.requires_grad_()))
        (grad,) = torch.autograd.grad(loss, logits, upstream) if any(wanted) else (logits,)
    return loss.detach().sum(), grad.reshape(-1, logits.shape[1])


def _check(name: str, problem: Any, classes: int) -> None:
    """The ValueError for the first class id out of range: by its row in the whole, which no chunk knows."""
    ids = problem.target
    if ids.device.type != "cpu" and not backends.checks_requested():
        return
    backends.refuse_capture(ids)
    FAMILIES[name].check(problem, True, "")
    least, most = (-1, classes) if name == "sigmoid" else (0, classes - 1)
    wrong = out_of_range(ids, least, most, problem.ignore_index)
    if not wrong.any():
        return
    row = int(wrong.flatten().int().argmax())
    if name == "sigmoid":
        sigmoid.raise_bad_row(problem.input, ids, None, row, problem.ignore_index)
    softmax.raise_bad_row(ids, row, classes)


def _in_full(name: str, layer: Layer, wanted: list[bool], fields: Any, upstream: Tensor) -> list[Tensor | None]:
    """The gradients as a graph, through logits in full."""
    problem = FAMILIES[name].problem(*fields)
    with torch.autocast(upstream.device.type, enabled=False):
        x, w, b = (None if t is None else t.to(problem.input.dtype) for t in layer)
        logits = F.linear(x, w, b)  # type: ignore[arg-type]  # bias alone may be None
        loss = FAMILIES[name].reference(_of_rows(problem, logits, problem.target))
    asked = [t for t, needed in zip(layer, wanted, strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(loss, asked, upstream, create_graph=True))
    return [next(found) if needed else None for needed in wanted]


def _register(name: str) -> None:
    hints = get_type_hints(FAMILIES[name].problem)
    fields = ", ".join(f"{_SCHEMA_TYPES[kind]} {field}" for field, kind in hints.items())
    layer = "Tensor features, Tensor layer_weight, Tensor? layer_bias, Tensor? upstream, bool[] wanted"
    backends.library.define(f"linear_{name}_loss({layer}, {fields}) -> (Tensor, Tensor, Tensor, Tensor)")

    @torch.library.impl(f"imbal_kernels::linear_{name}_loss", "CompositeExplicitAutograd", lib=backends.library)
    def run(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _chunks(name, *args)

    @torch.library.register_fake(f"imbal_kernels::linear_{name}_loss", lib=backends.library)
    def fake(
        features: Tensor, weight: Tensor, bias: Tensor | None, upstream: Tensor | None, wanted: list[bool],
        input: Tensor, *fields: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        layer = (features, weight, bias)
        grads = [t.new_empty(t.shape if asked else (0,)) if t is not None else weight.new_empty((0,))
                 for t, asked in zip(layer, wanted, strict=True)]  # fmt: skip
        return features.new_empty((), dtype=wide), *grads


for _name in ("sigmoid", "softmax"):
    _register(_name)
