"""A linear layer and its loss in one: the logits exist a chunk of rows at a time, never in full."""

from typing import Any

import torch
from torch import Tensor

from imbal_kernels import ops
from imbal_kernels.arguments import check_divisor, divisor_of, sigmoid_problem
from imbal_kernels.checks import INTEGERS, check_reduction, check_same_device, check_tensor
from imbal_kernels.normalizer import Normalizer
from imbal_kernels.softmax_arguments import per_class, softmax_divisor, softmax_problem


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
    normalizer: Normalizer = "positives",
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`sigmoid_focal_loss(F.linear(features, weight, bias), labels, ...)` without the logits.

    Rows are taken in chunks of at most 32 MiB of logits (one row at least): product, loss and gradient, then the
    products of the backward pass. Peak memory beyond the arguments and their gradients, whatever the number of rows
    and classes: two such chunks, and in half precision 4 bytes for each element of `weight`. fp16 waits for the
    upstream gradient, and its product is taken twice.

    Args:
        features: (..., D), float32, bfloat16, float16 or float64; under autocast its dtype.
        weight: (C, D), the layer's. bias: (C,) or None.
        labels: class ids, `features.shape[:-1]`: 0 to C - 1 a class, -1 and C both background. With one class, 0 is
            the object.
        reduction: "sum" | "mean".
        class_weight, pos_weight: (C,).
        alpha, gamma, label_smoothing, ignore_index, loss_weight: as in `sigmoid_focal_loss`.
        normalizer: "positives", an `EMANormalizer`, a number, a 0-d tensor or None.

    Returns:
        A 0-d tensor, float32 for half inputs. Differentiable twice; the second derivative has the logits in full.

    Raises:
        ValueError, TypeError: as `sigmoid_focal_loss`; a bad label by its row.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> features, layer = torch.randn(6, 16), torch.nn.Linear(16, 1203)
        >>> labels = torch.tensor([-1, 7, -1, -1, 1000, -1])
        >>> loss = ik.linear_focal_loss(features, layer.weight, layer.bias, labels)
        >>> torch.testing.assert_close(
        ...     loss, ik.sigmoid_focal_loss(layer(features), labels, reduction="sum", normalizer="positives")
        ... )
    """
    if isinstance(normalizer, str) and normalizer == "positives_per_image":
        raise ValueError('normalizer="positives_per_image" needs images; rows of features have none')
    check_divisor(normalizer, reduction, process_group)
    _check(features, weight, bias, labels, reduction)
    rows, ids, none = _rows(features, weight, labels)
    classes, count = weight.shape[0], ops.count_targets
    problem = sigmoid_problem(
        "inputs", "labels", none, ids[:0], alpha=alpha, gamma=gamma, reduction="sum", weight=class_weight,
        pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        normalizer=divisor_of(normalizer, reduction, ids, classes, ignore_index, False, none, count),
        loss_weight=loss_weight, process_group=None, count=count, class_ids=True,
    )  # fmt: skip
    return ops.linear_loss("sigmoid", (rows, weight, bias), ids, problem)


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
    rows, ids, none = _rows(features, weight, labels)
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    weights = per_class("weight", class_weight, features, weight.shape[0], wide)
    divisor = softmax_divisor(
        normalizer, reduction, ids, weights, weight.shape[0], ignore_index, False, none, ops.sum_weights
    )
    problem = softmax_problem(
        none, ids[:0], gamma=0.0, weight=class_weight, ignore_index=ignore_index, reduction="sum",
        label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=divisor,
        loss_weight=loss_weight, process_group=None, sum_weights=ops.sum_weights,
    )  # fmt: skip
    return ops.linear_loss("softmax", (rows, weight, bias), ids, problem)


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
    if labels.dtype not in INTEGERS:
        raise TypeError(f"labels must be integer class ids, got {labels.dtype}")
    check_same_device("labels", labels, features)
    dtypes = {weight.dtype, features.dtype} | ({bias.dtype} if bias is not None else set())
    if len(dtypes) > 1 and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(f"features, weight and bias must have one dtype, got {features.dtype} and {weight.dtype}")


def _rows(features: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """features (N, D), labels (N,), and logits of no rows, (0, C), in the dtype of the products."""
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    rows = features.reshape(-1, features.shape[-1])
    return rows, labels.reshape(-1).contiguous(), features.new_empty((0, weight.shape[0]), dtype=dtype)
