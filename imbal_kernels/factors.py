"""weight, pos_weight, alpha and scores as the kernels take them: in the dtype of the arithmetic, 2-d, as small as they
come."""

import math

import torch
from torch import Tensor

from imbal_kernels.checks import (
    FLOATS,
    REALS,
    check_constant,
    check_number,
    check_optional_tensor,
    check_same_device,
    kind_of,
)
from imbal_kernels.targets import holds_object, per_image


def alpha_of(
    alpha: float | Tensor, input: Tensor, classes: int, dtype: torch.dtype
) -> tuple[float, Tensor | None]:
    if not isinstance(alpha, Tensor):
        if not isinstance(alpha, REALS) or isinstance(alpha, bool):
            raise TypeError(f"alpha must be a number (below 0: off) or a ({classes},) tensor, got {kind_of(alpha)}")
        check_number("alpha", alpha, -math.inf, math.inf)
        if alpha > 1:
            raise ValueError(f"alpha must be at most 1 (below 0 switches it off), got {alpha}")
        return float(alpha), None
    check_constant("alpha", alpha, input)
    if alpha.dim() > 1 or (alpha.dim() == 1 and alpha.shape[0] != classes):
        raise ValueError(f"alpha must be a number or have shape ({classes},), got {tuple(alpha.shape)}")
    return -1.0, alpha.to(dtype).reshape(1, -1).contiguous()


def weight_of(weight: Tensor, input: Tensor, input_name: str, dtype: torch.dtype) -> Tensor:
    check_optional_tensor("weight", weight)
    check_constant("weight", weight, input)
    classes = input.shape[-1] if input.dim() else 1
    if weight.dim() == 1 and weight.shape[0] != classes:
        raise ValueError(
            f"a 1-d weight is per class and must have shape ({classes},), got {tuple(weight.shape)}; "
            "for one weight per row pass weight[:, None], for one per label weight[labels][:, None]"
        )
    return _broadcast("weight", weight, input, input_name, dtype)


def pos_weight_of(pos_weight: Tensor, input: Tensor, input_name: str, dtype: torch.dtype) -> Tensor:
    check_optional_tensor("pos_weight", pos_weight)
    check_constant("pos_weight", pos_weight, input)
    return _broadcast("pos_weight", pos_weight, input, input_name, dtype)


def _broadcast(name: str, value: Tensor, input: Tensor, input_name: str, dtype: torch.dtype) -> Tensor:
    """A 2-d tensor that broadcasts to (N, C), as small as the value allows."""
    try:
        fits = torch.broadcast_shapes(value.shape, input.shape) == input.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must broadcast to {input_name} of shape {tuple(input.shape)}, got {tuple(value.shape)}"
        )
    value = value.to(dtype)
    if value.dim() == 0 or all(size == 1 for size in value.shape[:-1]):
        return value.reshape(1, -1).contiguous()
    columns = value.shape[-1]
    rows = value.expand(*input.shape[:-1], columns)
    return rows.reshape(-1, columns).contiguous()


def scores_of(
    scores: Tensor, input: Tensor, input_name: str, target_name: str, dense: bool, dtype: torch.dtype
) -> Tensor:
    """One score a row, (N,); its values are checked with the class ids."""
    check_optional_tensor("scores", scores)
    if dense:
        raise ValueError(f"scores go with class ids; {target_name} of the shape of {input_name} are scores themselves")
    check_same_device("scores", scores, input)
    if scores.dtype not in FLOATS:
        raise TypeError(f"scores must be float32, bfloat16, float16 or float64, got {scores.dtype}")
    if scores.shape != input.shape[:-1]:
        raise ValueError(f"scores must have the shape of {target_name}, {tuple(input.shape[:-1])}, "
                         f"got {tuple(scores.shape)}")  # fmt: skip
    return scores.to(dtype).reshape(-1).contiguous()


def per_image_of(
    target: Tensor, input: Tensor, name: str, classes: int, ignore: int, dense: bool, dtype: torch.dtype
) -> Tensor:
    """1 / (images * max(1, positives of the row's image)) as an (N, 1) factor."""
    if input.dim() < 3:
        raise ValueError(
            f'normalizer="positives_per_image" needs {name} of shape (images, ..., C), got {tuple(input.shape)}'
        )
    factors = per_image(holds_object(target, classes, ignore, dense), dtype)
    rows = math.prod(input.shape[1:-1])
    return factors[:, None].expand(-1, rows).reshape(-1, 1).contiguous()  # of one image the reshape is a view


def scale_of(
    loss_weight: float | Tensor, divisor: float | Tensor, dtype: torch.dtype
) -> tuple[float, Tensor | None]:
    """loss_weight / divisor as a number and, where either is a tensor, a 0-d tensor."""
    if isinstance(loss_weight, Tensor):
        numerator = loss_weight.to(dtype)
        if isinstance(divisor, Tensor):
            return 1.0, numerator / divisor.to(dtype)
        return 1.0 / divisor, numerator
    if isinstance(divisor, Tensor):
        return float(loss_weight), divisor.to(dtype).reciprocal()
    return float(loss_weight) / divisor, None
