"""From the arguments of a dense loss to one checked problem for each level, as arguments.py does for flat logits."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbal_kernels.arguments import (
    FORMULAS,
    Count,
    SigmoidProblem,
    check_divisor,
    divisor_of,
    in_memory_order,
    sigmoid_problem,
)
from imbal_kernels.checks import (
    FLOATS,
    INTEGERS,
    check_constant,
    check_exponent,
    check_optional_tensor,
    check_same_device,
    check_tensor,
    kind_of,
)
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.factors import pos_weight_of, scale_of, scores_of, weight_of
from imbal_kernels.formula import Formula
from imbal_kernels.normalizer import Normalizer
from imbal_kernels.targets import holds_object, per_image

# What each formula takes besides what all take, with the defaults of its own function.
OPTIONS: dict[str, dict[str, float]] = {
    "focal": {"alpha": 0.25, "gamma": 2.0},
    "quality_focal": {"gamma": 2.0},
    "varifocal": {"alpha": 0.75, "gamma": 2.0},
    "asymmetric": {"gamma": 4.0, "gamma_pos": 1.0, "clip": 0.05},
}


def formula_options(
    formula: str | Formula, *, pos_weight: Any, label_smoothing: Any, **given: Any
) -> dict[str, Any]:
    """formula, alpha, gamma, gamma_pos and clip as `sigmoid_problem` takes them: at the formula's own default where
    they are None, refused where they have no meaning."""
    takes: dict[str, float] = {}
    if isinstance(formula, Formula):
        name = "a Formula of your own"
        given = {**given, "pos_weight": pos_weight, "label_smoothing": label_smoothing or None}
    elif formula in OPTIONS:
        name, takes = f'formula="{formula}"', OPTIONS[formula]
    else:
        names = ", ".join(f'"{name}"' for name in OPTIONS)
        raise ValueError(f"formula must be {names} or an imbal_kernels.Formula, got {formula!r}")
    for option, value in given.items():
        if value is not None and option not in takes:
            raise ValueError(f"{option} has no meaning in {name}, which takes {', '.join(takes) or 'none'}")
    chosen = {option: takes[option] if given[option] is None else given[option] for option in takes if option in given}
    if "gamma" in chosen:
        check_exponent("gamma", chosen["gamma"], FORMULAS[str(formula)][1])
    key = formula.key if isinstance(formula, Formula) else formula
    return {"formula": key, "alpha": -1.0, "gamma": 0.0, "gamma_pos": 0.0, "clip": 0.0} | chosen


def dense_problems(
    levels: Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    num_classes: int,
    *,
    reduction: str,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    normalizer: Normalizer,
    loss_weight: float | Tensor,
    process_group: Any,
    scores: Tensor | Sequence[Tensor] | None,
    count: Count,
    statistics: ClassStatistics | None = None,
    **formula: Any,
) -> list[SigmoidProblem]:
    """One problem for each level, whose losses add up to the whole. `formula`: from `formula_options`."""
    if reduction == "none":
        raise ValueError(
            'reduction="none" has no meaning here: levels have no common layout; use sigmoid_focal_loss on each'
        )
    check_divisor(normalizer, reduction, process_group)
    heads = _levels(levels, num_classes)
    ids = _per_anchor("labels", labels, heads, INTEGERS, "must be integer class ids")
    all_scores = [None] * len(heads) if scores is None else _per_anchor(
        "scores", scores, heads, FLOATS, "must be float32, bfloat16, float16 or float64"
    )  # fmt: skip
    whole = labels if isinstance(labels, Tensor) else torch.cat(list(labels), 1)
    shape = (*whole.shape, num_classes)
    _check_factor("weight", weight, shape, levels[0])
    _check_factor("pos_weight", pos_weight, shape, levels[0])

    # What all have in common, from a level without an image: nothing of a level's size is made for it.
    common = sigmoid_problem(
        "levels", "labels", heads[0].view().detach()[:0], ids[0][:0], reduction="sum", weight=None, pos_weight=None,
        label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=None, loss_weight=loss_weight,
        process_group=None, count=count, class_ids=True, statistics=statistics, **formula,
    )  # fmt: skip
    divisor = divisor_of(normalizer, reduction, whole, num_classes, ignore_index, False, levels[0], count)
    dtype = torch.float64 if levels[0].dtype == torch.float64 else torch.float32
    scale, scale_tensor = scale_of(loss_weight, divisor, dtype)
    if isinstance(normalizer, str) and normalizer == "positives_per_image":
        each = per_image(holds_object(whole, num_classes, ignore_index, False), dtype)[:, None, None]
        weight = each if weight is None else weight.to(dtype) * each
    each_level = zip(heads, ids, all_scores, _pieces(weight, heads), _pieces(pos_weight, heads), strict=True)
    return [
        common._replace(scale=scale, scale_tensor=scale_tensor, **_of_level(dtype, *own)) for own in each_level
    ]


class _Level(NamedTuple):
    logits: Tensor  # (N, A * C, H, W)
    shape: tuple[int, ...]  # (N, H, W, A, C)

    def view(self) -> Tensor:
        """The logits in that shape."""
        return self.logits.unflatten(1, self.shape[3:]).permute(0, 3, 4, 1, 2)

    def head(self) -> Tensor | None:
        """As layout.head_of(self.view()), by a single view: each is a node more in autograd's graph."""
        images, height, width, *channels = self.shape
        positions = height * width
        as_rows = positions <= 1 or math.prod(channels) == 1 or images == 0  # what the view is already
        return None if as_rows or not self.logits.is_contiguous() else self.logits.view(images, *channels, positions)


def _of_level(
    dtype: torch.dtype, level: _Level, target: Tensor, scores: Tensor | None, weight: Tensor | None,
    pos_weight: Tensor | None,
) -> dict[str, Any]:  # fmt: skip
    """What a level's problem has of its own."""
    head = level.head()
    plain = head is not None and weight is None and pos_weight is None and scores is None
    view = level.logits if plain else level.view()  # of a head only the factors look at it, for its shape
    weights = None if weight is None else weight_of(weight, view, "levels", dtype)
    pos_weights = None if pos_weight is None else pos_weight_of(pos_weight, view, "levels", dtype)
    flat_scores = None if scores is None else scores_of(scores, view, "levels", "labels", False, dtype)
    return in_memory_order(view, head, target, weights, pos_weights, flat_scores)


def _levels(levels: Sequence[Tensor], num_classes: int) -> list[_Level]:
    if not isinstance(levels, (list, tuple)) or not levels:
        got = "none" if isinstance(levels, (list, tuple)) else kind_of(levels)
        raise TypeError(f"levels must be a list of at least one Tensor, got {got}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, torch.SymInt)) or num_classes < 1:
        raise ValueError(f"num_classes must be an int, at least 1, got {num_classes!r}")
    heads = []
    for i, level in enumerate(levels):
        name = f"levels[{i}]"
        check_tensor(name, level)
        if level.dim() != 4 or level.shape[1] % num_classes or not level.shape[1]:
            raise ValueError(
                f"{name} must have shape (N, A * C, H, W), a multiple of C = {num_classes} channels, "
                f"got {tuple(level.shape)}"
            )
        if level.shape[0] != levels[0].shape[0] or level.dtype != levels[0].dtype or level.device != levels[0].device:
            raise ValueError(
                f"{name} must have the images, dtype and device of levels[0], {levels[0].shape[0]}, "
                f"{levels[0].dtype} and {levels[0].device}, got {level.shape[0]}, {level.dtype} and {level.device}"
            )
        images, channels, height, width = level.shape
        heads.append(_Level(level, (images, height, width, channels // num_classes, num_classes)))
    return heads


def _anchors(heads: list[_Level]) -> list[int]:
    """H * W * A of each level."""
    return [math.prod(level.shape[1:4]) for level in heads]


def _per_anchor(
    name: str, given: Tensor | Sequence[Tensor], heads: list[_Level], dtypes: tuple[torch.dtype, ...], kind: str
) -> list[Tensor]:
    """What has a value per anchor, (N, M) or a list of (N, H * W * A), as (N, H, W, A) of each level."""
    sizes, images = _anchors(heads), heads[0].shape[0]
    whole = isinstance(given, Tensor)
    if not whole and not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a Tensor or a list of one per level, got {kind_of(given)}")
    tensors = [given] if isinstance(given, Tensor) else list(given)
    expected = [sum(sizes)] if whole else sizes
    if len(tensors) != len(expected):
        raise ValueError(f"{name} must have one tensor per level, {len(sizes)}, got {len(tensors)}")
    for i, (tensor, size) in enumerate(zip(tensors, expected, strict=True)):
        own = name if whole else f"{name}[{i}]"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{own} must be a Tensor, got {kind_of(tensor)}")
        if tensor.dtype not in dtypes:
            raise TypeError(f"{own} {kind}, got {tensor.dtype}")
        check_same_device(own, tensor, heads[0].logits)
        if tensor.shape != (images, size):
            raise ValueError(
                f"{own} must have shape ({images}, {size}), one per anchor in (h, w, a) order, "
                f"got {tuple(tensor.shape)}"
            )
    pieces = tensors[0].split(sizes, 1) if whole else tensors
    return [piece.reshape(level.shape[:4]) for piece, level in zip(pieces, heads, strict=True)]


def _check_factor(name: str, factor: Tensor | None, shape: tuple[int, ...], input: Tensor) -> None:
    if factor is None:
        return
    check_optional_tensor(name, factor)
    check_constant(name, factor, input)
    aligned = zip(factor.shape[::-1], shape[::-1], strict=False)
    fits = factor.dim() <= 3 and all(own in (1, size) for own, size in aligned)
    if not fits or (name == "weight" and factor.dim() == 1 and factor.shape[0] != shape[2]):
        raise ValueError(
            f"{name} must broadcast to (N, M, C), {shape}, 1-d per class, got {tuple(factor.shape)}"
        )


def _pieces(factor: Tensor | None, heads: list[_Level]) -> list[Tensor | None]:
    """A factor that broadcasts to (N, M, C), a piece for each level's (N, H, W, A, C)."""
    if factor is None or factor.dim() < 2:
        return [factor] * len(heads)
    if factor.shape[-2] == 1:
        return [factor.unflatten(-2, (1, 1, 1))] * len(heads)
    pieces = factor.split(_anchors(heads), -2)
    return [piece.unflatten(-2, level.shape[1:4]) for piece, level in zip(pieces, heads, strict=True)]
