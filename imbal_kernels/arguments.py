"""From a user's arguments to one checked problem: every shape, dtype, device and range is looked at here.

Both the kernels and the reference start from a `SigmoidProblem`, so neither checks anything again.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbal_kernels.checks import (
    check_exponent,
    check_number,
    check_options,
    check_reduction,
    check_same_device,
    check_tensor,
    scalar_tensor,
    under_autocast,
)
from imbal_kernels.class_statistics import ClassStatistics, check_statistics
from imbal_kernels.factors import alpha_of, per_image_of, pos_weight_of, scale_of, scores_of, weight_of
from imbal_kernels.layout import by_anchor, head_of, rows_by_anchor
from imbal_kernels.normalizer import EMANormalizer, Normalizer
from imbal_kernels.targets import targets_are_dense

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
    normalizer: Normalizer,
    loss_weight: float | Tensor,
    process_group: Any,
    count: Count,
    formula: str = "focal",
    scores: Tensor | None = None,
    gamma_pos: float = 0.0,
    clip: float = 0.0,
    class_ids: bool = False,
    statistics: ClassStatistics | None = None,
) -> SigmoidProblem:
    """Checks the arguments of a sigmoid loss and folds reduction and normalizer into a scale. class_ids: the target
    is known to hold them."""
    check_divisor(normalizer, reduction, process_group)
    _check_logits(input_name, input)
    check_statistics(statistics, input.shape[-1] if input.dim() else 1, input)
    dense = not class_ids and targets_are_dense(input_name, target_name, input, target)
    classes = max(input.shape[-1], 1) if input.dim() else 1  # an empty 1-d input has none
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    exponent, least = FORMULAS.get(formula, ("gamma", 0.0))
    check_options(gamma, label_smoothing, ignore_index, loss_weight, input, exponent, least)
    check_exponent("gamma_pos", gamma_pos)
    check_number("clip", clip, 0.0, 1.0)

    if formula == "varifocal":
        check_number("alpha", alpha, 0.0, math.inf)  # a factor of negatives alone, so it may pass 1
        alpha_scalar, alphas = float(alpha), None
    else:
        alpha_scalar, alphas = alpha_of(alpha, input, classes, dtype)
    weights = None if weight is None else weight_of(weight, input, input_name, dtype)
    pos_weights = None if pos_weight is None else pos_weight_of(pos_weight, input, input_name, dtype)
    flat_scores = None if scores is None else scores_of(scores, input, input_name, target_name, dense, dtype)
    head = None if dense or reduction == "none" else head_of(input)

    # Last of all that may be refused: counting moves an EMANormalizer.
    divisor = divisor_of(normalizer, reduction, target, classes, ignore_index, dense, input, count)
    if isinstance(normalizer, str) and normalizer == "positives_per_image":
        per_row = per_image_of(target, input, input_name, classes, ignore_index, dense, dtype)
        weights = per_row if weights is None else (weights * per_row).contiguous()
    scale, scale_tensor = scale_of(loss_weight, divisor, dtype)
    return SigmoidProblem(
        **in_memory_order(input, head, target, weights, pos_weights, flat_scores),
        alpha_per_class=alphas,
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


def in_memory_order(
    input: Tensor, head: Tensor | None, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None,
    scores: Tensor | None,
) -> dict[str, Any]:  # fmt: skip
    """Logits and all that goes with their rows, for a problem: as a head in its own layout, or as rows of `input`."""
    if head is not None:
        return {
            "input": head,
            "target": by_anchor(target, head).contiguous(),
            "weight": rows_by_anchor(weight, head),
            "pos_weight": rows_by_anchor(pos_weight, head),
            "scores": None if scores is None else by_anchor(scores, head).flatten(),
        }
    if input.dim() != 2:  # a view of what is 2-d would be a node more in autograd's graph
        dense = target.dim() == input.dim()
        input = input.reshape(-1, max(input.shape[-1], 1) if input.dim() else 1)
        target = target.reshape(input.shape if dense else input.shape[:1])
    rows, flat = input.contiguous(), target.contiguous()
    return {"input": rows, "target": flat, "weight": weight, "pos_weight": pos_weight, "scores": scores}


def check_divisor(normalizer: Normalizer, reduction: str, process_group: Any) -> None:
    """The reduction and the normalizer, of which an average counts as the "positives" that it is an average of."""
    check_reduction(reduction, "positives" if isinstance(normalizer, EMANormalizer) else normalizer, process_group)


def divisor_of(
    normalizer: Normalizer, reduction: str, target: Tensor, classes: int, ignore_index: int, dense: bool,
    input: Tensor, count: Count,
) -> float | Tensor:  # fmt: skip
    """What the sum over all of a batch is divided by."""
    if isinstance(normalizer, Tensor):
        return scalar_tensor("normalizer", normalizer, input)
    if isinstance(normalizer, EMANormalizer):
        check_same_device("normalizer", normalizer.value, input)
        return normalizer.update(count(target, classes, ignore_index, dense, True))
    if normalizer == "positives":
        return count(target, classes, ignore_index, dense, True).clamp(min=1)
    if normalizer is None and reduction == "mean":
        counted = count(target, classes, ignore_index, dense, False)
        return counted if dense else counted * classes
    return 1.0 if normalizer in (None, "positives_per_image") else float(normalizer)


def _check_logits(name: str, input: Tensor) -> None:
    check_tensor(name, input)
    if input.dim() > 1 and input.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one class in its last dimension, got shape {tuple(input.shape)}")
