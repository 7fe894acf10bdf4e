"""From a user's arguments to one checked problem: every shape, dtype, device and range is looked at here.

Both the kernels and the reference start from a `SigmoidProblem`, so neither checks anything again.
"""

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NORMALIZERS = ("positives", "positives_per_image")
# Formula -> its exponent's name and least value; that of a user's formula is not used.
FORMULAS = {
    "focal": ("gamma", 0.0),
    "quality_focal": ("beta", 1.0),
    "varifocal": ("gamma", 0.0),
    "asymmetric": ("gamma_neg", 0.0),
}


class SigmoidProblem(NamedTuple):
    """A sigmoid loss with nothing left to decide; the tensors come first.

    L = scale * scale_tensor * weight * formula(input, target), summed unless `elementwise`; `weight`,
    `pos_weight` and `alpha_per_class` are 2-d and broadcast to `input`. Like `scores` they have the dtype that
    arithmetic is done in.

    A detector's head keeps its layout: `input` is then (images, anchors, C, positions), `target` (images, anchors,
    positions), and rows are counted in that order.
    """

    input: Tensor  # (N, C), contiguous
    target: Tensor  # (N,) class ids or (N, C) values, contiguous
    weight: Tensor | None
    pos_weight: Tensor | None
    alpha_per_class: Tensor | None
    scores: Tensor | None  # (N,): the target of a row's class, 1 without it
    scale_tensor: Tensor | None
    formula: str  # one of FORMULAS, or the key of a user's own
    alpha: float
    gamma: float  # of the formula's negatives, where it has two exponents; quality focal loss's beta
    gamma_pos: float
    clip: float
    label_smoothing: float
    scale: float
    ignore_index: int
    elementwise: bool
    fp32_loss: bool

    @property
    def dense(self) -> bool:
        return self.target.dim() == self.input.dim()

    def class_last(self) -> "SigmoidProblem":
        """The same with (N, C) logits, whatever the layout."""
        if self.input.dim() == 2:
            return self
        input = self.input.transpose(2, 3).reshape(-1, self.input.shape[2])
        return self._replace(input=input, target=self.target.reshape(-1))


# count(target, num_classes, ignore_index, dense, positives) -> 0-d integer tensor
Count = Callable[[Tensor, int, int, bool, bool], Tensor]


def sigmoid_problem(
    input_name: str,
    target_name: str,
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor,
    gamma: float,
    reduction: str,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    normalizer: float | Tensor | str | None,
    loss_weight: float | Tensor,
    process_group: Any,
    count: Count,
    formula: str = "focal",
    scores: Tensor | None = None,
    gamma_pos: float = 0.0,
    clip: float = 0.0,
    class_ids: bool = False,
) -> SigmoidProblem:
    """Checks the arguments of a sigmoid loss and folds reduction and normalizer into a scale. class_ids: the target
    is known to hold them."""
    check_reduction(reduction, normalizer, process_group)
    _check_logits(input_name, input)
    dense = not class_ids and _targets_are_dense(input_name, target_name, input, target)
    classes = max(input.shape[-1], 1) if input.dim() else 1  # an empty 1-d input has none
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    exponent, least = FORMULAS.get(formula, ("gamma", 0.0))
    check_options(gamma, label_smoothing, ignore_index, loss_weight, exponent, least)
    check_number("gamma_pos", gamma_pos, 0.0, math.inf)
    check_number("clip", clip, 0.0, 1.0)

    if formula == "varifocal":
        check_number("alpha", alpha, 0.0, math.inf)  # a factor of negatives alone, so it may pass 1
        alpha_scalar, alphas = float(alpha), None
    else:
        alpha_scalar, alphas = _alpha(alpha, input, classes, dtype)
    weights = None if weight is None else _weight(weight, input, input_name, dtype)
    pos_weights = None if pos_weight is None else _pos_weight(pos_weight, input, input_name, dtype)
    flat_scores = None if scores is None else _scores(scores, input, input_name, target_name, dense, dtype)
    head = None if dense or reduction == "none" else _head(input)
    if head is None:
        rows = input.reshape(-1, classes).contiguous()
        flat_target = target.reshape(rows.shape if dense else (rows.shape[0],)).contiguous()
    else:
        rows = head
        flat_target = _by_anchor(target, head).contiguous()

    divisor: float | Tensor = 1.0
    if isinstance(normalizer, Tensor):
        divisor = scalar_tensor("normalizer", normalizer, input)
    elif normalizer == "positives":
        divisor = count(flat_target, classes, ignore_index, dense, True).clamp(min=1)
    elif normalizer == "positives_per_image":
        per_row = _per_image(target, input, input_name, classes, ignore_index, dense, dtype)
        weights = per_row if weights is None else (weights * per_row).contiguous()
    elif normalizer is not None:
        divisor = float(normalizer)  # checked with the reduction
    elif reduction == "mean":
        divisor = count(flat_target, classes, ignore_index, dense, False)
        divisor = divisor if dense else divisor * classes
    scale, scale_tensor = scale_of(loss_weight, divisor, input, dtype)
    if head is not None:
        weights, pos_weights = _rows_by_anchor(weights, head), _rows_by_anchor(pos_weights, head)
        flat_scores = None if flat_scores is None else _by_anchor(flat_scores, head).flatten()
    return SigmoidProblem(
        input=rows,
        target=flat_target,
        weight=weights,
        pos_weight=pos_weights,
        alpha_per_class=alphas,
        scores=flat_scores,
        scale_tensor=scale_tensor,
        formula=formula,
        alpha=alpha_scalar,
        gamma=float(gamma),
        gamma_pos=float(gamma_pos),
        clip=float(clip),
        label_smoothing=float(label_smoothing),
        scale=scale,
        ignore_index=ignore_index,
        elementwise=reduction == "none",
        fp32_loss=under_autocast(input),
    )


def _head(input: Tensor) -> Tensor | None:
    """(images, anchors, C, positions) over the memory of logits (images, *positions, anchors, C) or (images,
    *positions, C) that a detector's head wrote as (images, anchors * C, *positions); None for any other layout."""
    if input.dim() < 3 or input.is_contiguous():
        return None
    places = tuple(range(1, input.dim() - 2))
    with_anchors = input.permute(0, -2, -1, *places) if places else input[:, None].transpose(2, 3)
    for view in (with_anchors, input.permute(0, -1, *places, -2)[:, None]):
        if view.is_contiguous():
            return view.flatten(3)
    return None


def _by_anchor(target: Tensor, head: Tensor) -> Tensor:
    """What has a value a row, (images, *positions, anchors), in the order of a head's memory."""
    images, anchors, _, positions = head.shape
    return target.reshape(images, positions, anchors).transpose(1, 2)


def _rows_by_anchor(rows: Tensor | None, head: Tensor) -> Tensor | None:
    """A 2-d factor with its rows in the order of a head's memory."""
    images, anchors, _, positions = head.shape
    if rows is None or rows.shape[0] == 1:
        return rows
    return rows.reshape(images, positions, anchors, -1).transpose(1, 2).reshape(rows.shape).contiguous()


def _wide(target: Tensor) -> Tensor:
    """Compared as it is, uint8 156 would be -100, and int8 ids would be less than -56 where C is 200."""
    return target if target.is_floating_point() else target.long()


def is_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Where a target equals ignore_index."""
    return _wide(target) == ignore_index


def holds_object(target: Tensor, num_classes: int, ignore_index: int, dense: bool) -> Tensor:
    """Which rows (class ids) or elements (values) are positives."""
    positive = (target > 0) if dense else (target >= 0) & (_wide(target) < num_classes)
    return positive & ~is_ignored(target, ignore_index)


def under_autocast(input: Tensor) -> bool:
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)


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


def _kind(value: object) -> str:
    return type(value).__name__


def check_number(name: str, value: object, low: float, high: float) -> None:
    # float and int before Real, an abstract class that takes a microsecond to ask
    if isinstance(value, (bool, Tensor)) or not isinstance(value, (float, int, Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    if not low <= value <= high or value in (-math.inf, math.inf):  # type: ignore[operator]  # typeshed's Real
        half_open = f"finite and at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        bound = "finite" if math.isinf(low) else half_open
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_options(
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    loss_weight: float | Tensor,
    exponent: str = "gamma",
    least: float = 0.0,
) -> None:
    """The numbers that every family takes; the exponent by the name that its loss gives it."""
    check_number(exponent, gamma, least, math.inf)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {_kind(ignore_index)}")
    if not isinstance(loss_weight, Tensor):
        check_number("loss_weight", loss_weight, -math.inf, math.inf)


def check_tensor(name: str, input: Tensor) -> None:
    """Logits: a strided tensor of a float dtype."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {_kind(input)}")
    if input.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {input.dtype}")
    if input.layout != torch.strided:
        raise ValueError(f"{name} must be a strided tensor, got {input.layout}")


def _check_logits(name: str, input: Tensor) -> None:
    check_tensor(name, input)
    if input.dim() > 1 and input.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one class in its last dimension, got shape {tuple(input.shape)}")


def _targets_are_dense(input_name: str, name: str, input: Tensor, target: Tensor) -> bool:
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {_kind(target)}")
    check_same_device(name, target, input)
    if target.dtype not in FLOATS + INTEGERS + (torch.bool,):
        raise TypeError(f"{name} must be real, integer or bool, got {target.dtype}")
    if target.shape == input.shape:
        return True
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"{name} must have the shape of {input_name}, {tuple(input.shape)}, or {tuple(input.shape[:-1])} "
            f"for class ids, got {tuple(target.shape)}"
        )
    if target.dtype not in INTEGERS:
        values = f", values the shape of {input_name}: {name}[:, None]" if target.dim() and input.shape[-1] == 1 else ""
        raise TypeError(
            f"{name} of shape {tuple(target.shape)}: class ids must be integers{values}, got {target.dtype}"
        )
    if input.shape[-1] == 1 and not torch.compiler.is_compiling():
        warnings.warn(
            f"{name} without the class dimension are class ids, and with one class id 0 is the object, 1 and -1 are "
            f"background: for the 0 / 1 labels of a binary task pass {name}[..., None]",
            stacklevel=4,
        )
    return False


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


def _alpha(
    alpha: float | Tensor, input: Tensor, classes: int, dtype: torch.dtype
) -> tuple[float, Tensor | None]:
    if not isinstance(alpha, Tensor):
        if not isinstance(alpha, (Real, torch.SymFloat, torch.SymInt)) or isinstance(alpha, bool):
            raise TypeError(f"alpha must be a number (below 0: off) or a ({classes},) tensor, got {_kind(alpha)}")
        check_number("alpha", alpha, -math.inf, math.inf)
        if alpha > 1:
            raise ValueError(f"alpha must be at most 1 (below 0 switches it off), got {alpha}")
        return float(alpha), None
    check_constant("alpha", alpha, input)
    if alpha.dim() > 1 or (alpha.dim() == 1 and alpha.shape[0] != classes):
        raise ValueError(f"alpha must be a number or have shape ({classes},), got {tuple(alpha.shape)}")
    return -1.0, alpha.to(dtype).reshape(1, -1).contiguous()


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


def _weight(weight: Tensor, input: Tensor, input_name: str, dtype: torch.dtype) -> Tensor:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a Tensor or None, got {_kind(weight)}: pass torch.tensor(...)")
    check_constant("weight", weight, input)
    classes = input.shape[-1] if input.dim() else 1
    if weight.dim() == 1 and weight.shape[0] != classes:
        raise ValueError(
            f"a 1-d weight is per class and must have shape ({classes},), got {tuple(weight.shape)}; "
            "for one weight per row pass weight[:, None], for one per label weight[labels][:, None]"
        )
    return _broadcast("weight", weight, input, input_name, dtype)


def _pos_weight(pos_weight: Tensor, input: Tensor, input_name: str, dtype: torch.dtype) -> Tensor:
    if not isinstance(pos_weight, Tensor):
        raise TypeError(f"pos_weight must be a Tensor or None, got {_kind(pos_weight)}: pass torch.tensor(...)")
    check_constant("pos_weight", pos_weight, input)
    return _broadcast("pos_weight", pos_weight, input, input_name, dtype)


def _scores(
    scores: Tensor, input: Tensor, input_name: str, target_name: str, dense: bool, dtype: torch.dtype
) -> Tensor:
    """One score a row, (N,); its values are checked with the class ids."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a Tensor or None, got {_kind(scores)}: pass torch.tensor(...)")
    if dense:
        raise ValueError(f"scores go with class ids; {target_name} of the shape of {input_name} are scores themselves")
    check_same_device("scores", scores, input)
    if scores.dtype not in FLOATS:
        raise TypeError(f"scores must be float32, bfloat16, float16 or float64, got {scores.dtype}")
    if scores.shape != input.shape[:-1]:
        raise ValueError(f"scores must have the shape of {target_name}, {tuple(input.shape[:-1])}, "
                         f"got {tuple(scores.shape)}")  # fmt: skip
    return scores.to(dtype).reshape(-1).contiguous()


def _per_image(
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


def per_image(positive: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (images * max(1, positives of the image)), (images,), from (images, ...) marks."""
    return (positive.flatten(1).sum(1).clamp(min=1) * positive.shape[0]).to(dtype).reciprocal()


def scale_of(
    loss_weight: float | Tensor, divisor: float | Tensor, input: Tensor, dtype: torch.dtype
) -> tuple[float, Tensor | None]:
    """loss_weight / divisor as a number and, where either is a tensor, a 0-d tensor."""
    if isinstance(loss_weight, Tensor):
        numerator = scalar_tensor("loss_weight", loss_weight, input).to(dtype)
        if isinstance(divisor, Tensor):
            return 1.0, numerator / divisor.to(dtype)
        return 1.0 / divisor, numerator
    if isinstance(divisor, Tensor):
        return float(loss_weight), divisor.to(dtype).reciprocal()
    return float(loss_weight) / divisor, None
