"""A linear layer and its loss in one: the logits exist a chunk of rows at a time, never in full."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imbal_kernels import functional, ops
from imbal_kernels.checks import check_reduction, check_same_device, check_tensor
from imbal_kernels.softmax_arguments import per_class

# A chunk's logits take at most this, and their gradient the same: large enough for the matrix product to run at full
# speed, small against what it replaces (4 GB for 50,000 rows of 20,000 classes in fp32).
CHUNK_BYTES = 32 << 20

LossOf = Callable[[Tensor, Tensor], Tensor]  # logits and labels of some rows -> their share of the loss, 0-d


@torch.compiler.disable
def linear_focal_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
    *,
    class_weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalizer: float | Tensor | str | None = "positives",
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`sigmoid_focal_loss(F.linear(features, weight, bias), labels, ...)` without the logits.

    Rows are taken in chunks of at most 32 MiB of logits: product, loss and gradient, then the products of the
    backward pass. Memory beyond the inputs and their gradients: two such chunks, and `weight`'s gradient once
    more in float32. fp16 chunks wait for the upstream gradient, and their product is taken twice.

    Args:
        features: (..., D), float32, bfloat16, float16 or float64; under autocast its dtype.
        weight: (C, D), the layer's. bias: (C,) or None.
        labels: class ids, `features.shape[:-1]`: 0 to C - 1 a class, -1 and C both background.
        reduction: "sum" | "mean".
        class_weight, pos_weight: (C,).
        alpha, gamma, label_smoothing, ignore_index, loss_weight: as in `sigmoid_focal_loss`.
        normalizer: a number, a 0-d tensor, "positives" or None.

    Returns:
        A 0-d tensor, float32 for half inputs. Differentiable twice; the second derivative has the logits in full.
        `torch.compile` leaves it to eager mode, so it breaks the graph.

    Raises:
        ValueError, TypeError: as `sigmoid_focal_loss`; a bad label by its row in its chunk.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> features, layer = torch.randn(6, 16), torch.nn.Linear(16, 1203)
        >>> labels = torch.tensor([-1, 7, -1, -1, 1000, -1])
        >>> loss = ik.linear_focal_loss(features, layer.weight, layer.bias, labels)
        >>> torch.testing.assert_close(
        ...     loss, ik.sigmoid_focal_loss(layer(features), labels, reduction="sum", normalizer="positives")
        ... )
    """
    if normalizer == "positives_per_image":
        raise ValueError('normalizer="positives_per_image" needs images; rows of features have none')
    check_reduction(reduction, normalizer, process_group)
    _check(features, weight, bias, labels, reduction)
    divisor = normalizer
    if normalizer == "positives":
        divisor = ops.count_targets(labels, weight.shape[0], ignore_index, False, True).clamp(min=1)
    elif normalizer is None and reduction == "mean":
        divisor = ops.count_targets(labels, weight.shape[0], ignore_index, False, False) * weight.shape[0]
    loss_of = functools.partial(
        functional.sigmoid_focal_loss, alpha=alpha, gamma=gamma, reduction="sum", weight=class_weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=divisor,
        loss_weight=loss_weight,
    )  # fmt: skip
    return _apply(loss_of, features, weight, bias, labels)


@torch.compiler.disable
def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_adjustment: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`cross_entropy(F.linear(features, weight, bias), labels, ...)` without the logits; see `linear_focal_loss`.

    Args:
        features: (..., D). weight: (C, D). bias: (C,) or None.
        labels: class ids, `features.shape[:-1]`, 0 to C - 1.
        reduction: "mean", which divides by the sum of the rows' class weights, or "sum".
        class_weight, label_smoothing, ignore_index, logit_adjustment, normalizer, loss_weight: as in
            `cross_entropy`, whose `weight` is called class_weight here.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> features, layer = torch.randn(6, 16), torch.nn.Linear(16, 20_000)
        >>> labels = torch.randint(20_000, (6,))
        >>> loss = ik.linear_cross_entropy(features, layer.weight, layer.bias, labels)
        >>> torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(layer(features), labels))
    """
    check_reduction(reduction, normalizer, process_group)
    _check(features, weight, bias, labels, reduction)
    divisor = normalizer
    if normalizer == "positives" or (normalizer is None and reduction == "mean"):
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        weights = per_class("weight", class_weight, features, weight.shape[0], wide)
        counted = None if normalizer == "positives" else weights
        divisor = ops.sum_weights(labels.contiguous(), counted, weight.shape[0], ignore_index)
        divisor = divisor.clamp(min=1) if normalizer == "positives" else divisor
    loss_of = functools.partial(
        functional.cross_entropy, weight=class_weight, ignore_index=ignore_index, reduction="sum",
        label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=divisor, loss_weight=loss_weight,
    )  # fmt: skip
    return _apply(loss_of, features, weight, bias, labels)


def _check(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, reduction: str) -> None:
    if reduction == "none":
        raise ValueError('reduction="none" would hold the loss of every logit: it needs "mean" or "sum"')
    check_tensor("features", features)
    check_tensor("weight", weight)
    if features.dim() < 1 or weight.dim() != 2 or weight.shape[1] != features.shape[-1] or not weight.shape[0]:
        raise ValueError(
            f"weight must have shape (C, D), D = {features.shape[-1] if features.dim() else 'none'} as features, "
            f"got {tuple(weight.shape)}"
        )
    check_same_device("weight", weight, features)
    if bias is not None:
        check_tensor("bias", bias)
        check_same_device("bias", bias, features)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not isinstance(labels, Tensor) or labels.shape != features.shape[:-1]:
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be class ids of shape {tuple(features.shape[:-1])}, got {got}")
    check_same_device("labels", labels, features)
    dtypes = {weight.dtype, features.dtype} | ({bias.dtype} if bias is not None else set())
    if len(dtypes) > 1 and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(f"features, weight and bias must have one dtype, got {features.dtype} and {weight.dtype}")


def _apply(loss_of: LossOf, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    rows = features.reshape(-1, features.shape[-1])
    return _LinearLoss.apply(loss_of, dtype, labels.reshape(-1), rows, weight, bias)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss_of: LossOf, dtype: torch.dtype, labels: Tensor, features: Tensor, weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.loss_of, ctx.dtype = loss_of, dtype
        ctx.save_for_backward(labels, features, weight, bias)
        wanted = [needed and dtype != torch.float16 for needed in ctx.needs_input_grad[3:]]
        loss, grads = _chunks(loss_of, dtype, labels, features, weight, bias, wanted, None)
        ctx.grads = grads if any(wanted) else None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        labels, features, weight, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        grads, ctx.grads = ctx.grads, None
        if torch.is_grad_enabled():  # a second derivative may follow
            grads = _in_full(ctx.loss_of, ctx.dtype, labels, (features, weight, bias), wanted, upstream)
        elif grads is None:
            _, grads = _chunks(ctx.loss_of, ctx.dtype, labels, features, weight, bias, wanted, upstream)
        else:
            grads = [None if grad is None else grad * upstream.to(grad.dtype) for grad in grads]
        return (None, None, None, *grads)


def _chunks(
    loss_of: LossOf, dtype: torch.dtype, labels: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None,
    wanted: Any, upstream: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """The loss, and the gradients of features, weight and bias where wanted, a chunk of rows at a time."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    device, classes = features.device, weight.shape[0]
    with torch.autocast(device.type, enabled=False):
        w, b = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        total = torch.zeros((), dtype=wide, device=device)
        of_features = torch.empty_like(features) if wanted[0] else None
        of_weight = torch.zeros(weight.shape, dtype=wide, device=device) if wanted[1] else None
        of_bias = torch.zeros(classes, dtype=wide, device=device) if wanted[2] else None
        rows = max(1, CHUNK_BYTES // (classes * dtype.itemsize))
        for first in range(0, max(features.shape[0], 1), rows):
            x, ids = features[first : first + rows].detach().to(dtype), labels[first : first + rows]
            logits = F.linear(x, w, b)
            if not any(wanted):
                total += loss_of(logits, ids).detach()
                continue
            with torch.enable_grad():
                loss = loss_of(logits.requires_grad_(), ids)
            (grad,) = torch.autograd.grad(loss, logits, upstream)
            total += loss.detach()
            if of_features is not None:
                of_features[first : first + rows] = grad @ w
            if of_weight is not None:
                of_weight += grad.T @ x
            if of_bias is not None:
                of_bias += grad.sum(0, dtype=wide)
    return total, [
        of_features,
        None if of_weight is None else of_weight.to(weight.dtype),
        None if of_bias is None or bias is None else of_bias.to(bias.dtype),
    ]


def _in_full(
    loss_of: LossOf, dtype: torch.dtype, labels: Tensor, tensors: tuple[Any, ...], wanted: Any, upstream: Tensor
) -> list[Tensor | None]:
    """The gradients as a graph, through logits in full."""
    with torch.autocast(labels.device.type, enabled=False):
        features, weight, bias = tensors
        logits = F.linear(features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        loss = loss_of(logits, labels)
    asked = [t for t, needed in zip(tensors, wanted, strict=True) if needed]
    found = iter(torch.autograd.grad(loss, asked, upstream, create_graph=True))
    return [next(found) if needed else None for needed in wanted]
