"""Checks of single arguments, the same for every loss: user errors in PyTorch's wording, by the argument's name."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NORMALIZERS = ("positives", "positives_per_image")
# float and int before Real, an abstract class that takes a microsecond to ask
REALS = (float, int, Real, torch.SymFloat, torch.SymInt)
MOST = 1e30  # of an exponent: its products with logits stay in the range of float32


def kind_of(value: object) -> str:
    return type(value).__name__


def check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, (bool, Tensor)) or not isinstance(value, REALS):
        raise TypeError(f"{name} must be a number, got {kind_of(value)}")
    if not low <= value <= high or value in (-math.inf, math.inf):  # type: ignore[operator]  # typeshed's Real
        half_open = f"finite and at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        bound = "finite" if math.isinf(low) else half_open
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_exponent(name: str, value: Any, least: float = 0.0) -> None:
    check_number(name, value, least, math.inf)
    if value > MOST:
        raise ValueError(f"{name} must be at most {MOST:g}, got {value}")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {kind_of(value)}")


def check_tensor(name: str, input: Tensor) -> None:
    """Logits: a strided tensor of a float dtype."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {kind_of(input)}")
    if input.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {input.dtype}")
    if input.layout != torch.strided:
        raise ValueError(f"{name} must be a strided tensor, got {input.layout}")


def check_optional_tensor(name: str, value: object) -> None:
    """An optional argument that, where it is given, is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {kind_of(value)}: pass torch.tensor(...)")


def check_same_device(name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise ValueError(f"{name} must be on the device of the logits, {input.device}, got {tensor.device}")


def check_constant(name: str, tensor: Tensor, input: Tensor) -> None:
    check_same_device(name, tensor, input)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but no gradient is computed for it: pass {name}.detach()")


def scalar_tensor(name: str, value: Tensor, input: Tensor) -> Tensor:
    check_constant(name, value, input)
    if value.dim():
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
    return value


def check_options(
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    loss_weight: float | Tensor,
    input: Tensor,
    exponent: str = "gamma",
    least: float = 0.0,
) -> None:
    """The numbers that every family takes, loss_weight also as a tensor; the exponent by the name its loss gives it."""
    check_exponent(exponent, gamma, least)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {kind_of(ignore_index)}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit int64, got {ignore_index}")
    if isinstance(loss_weight, Tensor):
        scalar_tensor("loss_weight", loss_weight, input)
    else:
        check_number("loss_weight", loss_weight, -math.inf, math.inf)


def check_reduction(reduction: str, normalizer: float | Tensor | str | None, process_group: Any) -> None:
    """The reduction by PyTorch's names, and a normalizer only where there is a sum to divide."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if normalizer is not None:
        _check_normalizer(reduction, normalizer)
    if process_group is not None:
        raise ValueError("process_group is not supported yet: pass normalizer, averaged over ranks, instead")


def _check_normalizer(reduction: str, normalizer: float | Tensor | str) -> None:
    if reduction == "none":
        raise ValueError('normalizer divides a sum: it needs reduction="mean" or "sum", got "none"')
    if isinstance(normalizer, str):
        if normalizer not in NORMALIZERS:
            names = " or ".join(f'"{name}"' for name in NORMALIZERS)
            raise ValueError(f'normalizer must be a number, a 0-d tensor, {names}, got "{normalizer}"')
    elif not isinstance(normalizer, Tensor):
        check_number("normalizer", normalizer, -math.inf, math.inf)
        if normalizer <= 0:
            raise ValueError(f"normalizer must be positive, got {normalizer}")


def under_autocast(input: Tensor) -> bool:
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)
