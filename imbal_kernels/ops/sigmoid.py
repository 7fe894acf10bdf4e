"""The sigmoid losses as torch ops: schema, fake and backends."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbal_kernels.arguments import FORMULAS, SigmoidProblem
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.formula import by_key
from imbal_kernels.ops import backends
from imbal_kernels.ops.fused import ELEMENTWISE, FAMILIES, NO_LOSS, SUM, Family, fused_loss, place_of
from imbal_kernels.reference import sigmoid as reference
from imbal_kernels.targets import holds_object, out_of_range

_ARGUMENTS = (
    "Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? alpha_per_class, "
    "Tensor? scale_tensor, Tensor? upstream, float alpha, float gamma, float label_smoothing, float scale, "
    "int ignore_index, int loss_mode, bool want_grad, bool fp32_loss, Tensor? scores=None, str formula='focal', "
    "float gamma_pos=0.0, float clip=0.0"
)
# Several levels of a head at once, each as the tensors of a problem; a list is empty where it would hold None.
_LEVELS = (
    "Tensor[] inputs, Tensor[] targets, Tensor[] weights, Tensor[] pos_weights, Tensor? alpha_per_class, "
    "Tensor? scale_tensor, Tensor? upstream, float alpha, float gamma, float label_smoothing, float scale, "
    "int ignore_index, int loss_mode, bool want_grad, Tensor[] scores, str formula, float gamma_pos, float clip"
)
_COUNT = "Tensor target, int num_classes, int ignore_index, bool dense, bool positives"

backends.library.define(f"sigmoid_loss({_ARGUMENTS}) -> (Tensor, Tensor)")
backends.library.define(f"sigmoid_loss_levels({_LEVELS}) -> (Tensor, Tensor[])")
backends.library.define(f"count_targets({_COUNT}) -> Tensor")
backends.library.define("rescale_(Tensor(a!)[] grads, Tensor upstream) -> ()")
# The two with their sums by class as well, (4, C) as in ClassStatistics.
backends.library.define(f"sigmoid_loss_by_class({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
backends.library.define(f"sigmoid_loss_levels_by_class({_LEVELS}) -> (Tensor, Tensor[], Tensor)")
# What the four ops of losses call on a CPU; it also returns the level and the row of the first bad target, or -1.
# count_targets and rescale_ are C++ there as they stand.
backends.library.define(
    f"_sigmoid_loss_cpu({_LEVELS}, bool fp32_loss, bool by_class) -> (Tensor, Tensor[], Tensor, int, int)"
)
backends.library.define("_cpu_capability(str name) -> str")
backends.library.define("keep_memory(bool keep) -> ()")

_ops = torch.ops.imbal_kernels


@torch.library.register_fake("imbal_kernels::sigmoid_loss", lib=backends.library)
def _sigmoid_loss_fake(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    loss_mode, want_grad, fp32_loss = args[10:13]
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    shape = {NO_LOSS: (0,), ELEMENTWISE: input.shape, SUM: ()}[loss_mode]
    dtype = input.dtype if loss_mode == ELEMENTWISE and not fp32_loss else wide
    return input.new_empty(shape, dtype=dtype), input.new_empty(input.shape if want_grad else (0,))


@torch.library.register_fake("imbal_kernels::sigmoid_loss_levels", lib=backends.library)
def _levels_fake(inputs: list[Tensor], targets: list[Tensor], *args: Any) -> tuple[Tensor, list[Tensor]]:
    loss_mode, want_grad = args[10:12]
    wide = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    loss = inputs[0].new_empty(() if loss_mode == SUM else (0,), dtype=wide)
    return loss, [torch.empty_like(input) for input in inputs] if want_grad else []


@torch.library.register_fake("imbal_kernels::sigmoid_loss_by_class", lib=backends.library)
def _by_class_fake(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    sums = input.new_empty((4, input.shape[1 if input.dim() == 2 else 2]), dtype=torch.float64)
    return *_sigmoid_loss_fake(input, target, *args), sums


@torch.library.register_fake("imbal_kernels::sigmoid_loss_levels_by_class", lib=backends.library)
def _levels_by_class_fake(
    inputs: list[Tensor], targets: list[Tensor], *args: Any
) -> tuple[Tensor, list[Tensor], Tensor]:
    first = inputs[0]
    sums = first.new_empty((4, first.shape[1 if first.dim() == 2 else 2]), dtype=torch.float64)
    return *_levels_fake(inputs, targets, *args), sums


@torch.library.register_fake("imbal_kernels::count_targets", lib=backends.library)
def _count_targets_fake(target: Tensor, *args: Any) -> Tensor:
    return target.new_empty((), dtype=torch.int64)


@torch.library.register_fake("imbal_kernels::rescale_", lib=backends.library)
def _rescale_fake(grads: list[Tensor], upstream: Tensor) -> None:
    return None


@torch.library.impl("imbal_kernels::sigmoid_loss", "CPU", lib=backends.library)
def _sigmoid_loss_cpu(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    loss, grads, _ = _run_cpu(*_one_level(input, target, *args), fp32_loss=args[12])
    return loss, _only(grads, input)


@torch.library.impl("imbal_kernels::sigmoid_loss_by_class", "CPU", lib=backends.library)
def _by_class_cpu(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, grads, sums = _run_cpu(*_one_level(input, target, *args), fp32_loss=args[12], by_class=True)
    return loss, _only(grads, input), sums


@torch.library.impl("imbal_kernels::sigmoid_loss_levels", "CPU", lib=backends.library)
def _levels_cpu(*args: Any) -> tuple[Tensor, list[Tensor]]:
    loss, grads, _ = _run_cpu(*args)
    return loss, grads


@torch.library.impl("imbal_kernels::sigmoid_loss_levels_by_class", "CPU", lib=backends.library)
def _levels_by_class_cpu(*args: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    return _run_cpu(*args, by_class=True)


def _run_cpu(
    inputs: list[Tensor], targets: list[Tensor], *args: Any, fp32_loss: bool = False, by_class: bool = False
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, gradients and sums by class; the arguments of sigmoid_loss_levels. The C++ kernel reads any layout."""
    loss, grads, sums, level, row = _ops._sigmoid_loss_cpu(inputs, targets, *args, fp32_loss, by_class)
    if row >= 0:
        ignore_index, scores = args[9], args[12]
        own = scores[level] if scores else None
        raise_bad_row(inputs[level], targets[level], own, row, ignore_index, place_of(level, inputs))
    return loss, grads, sums


@torch.library.impl("imbal_kernels::sigmoid_loss", "CUDA", lib=backends.library)
def _sigmoid_loss_cuda(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    from imbal_kernels import kernels

    if input.dim() == 2:
        return kernels.sigmoid_loss(input, target, *args)
    loss, grads, _ = kernels.sigmoid_loss_levels(*_one_level(input, target, *args))
    return loss, _only(grads, input)


def _one_level(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, alpha_per_class: Tensor | None,
    scale_tensor: Tensor | None, upstream: Tensor | None, alpha: float, gamma: float, label_smoothing: float,
    scale: float, ignore_index: int, loss_mode: int, want_grad: bool, fp32_loss: bool, scores: Tensor | None = None,
    formula: str = "focal", gamma_pos: float = 0.0, clip: float = 0.0,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of sigmoid_loss as sigmoid_loss_levels takes them."""
    lists = [[] if tensor is None else [tensor] for tensor in (input, target, weight, pos_weight, scores)]
    return (
        *lists[:4], alpha_per_class, scale_tensor, upstream, alpha, gamma, label_smoothing, scale, ignore_index,
        loss_mode, want_grad, lists[4], formula, gamma_pos, clip,
    )  # fmt: skip


def _only(grads: list[Tensor], input: Tensor) -> Tensor:
    """The gradient of one level as sigmoid_loss returns it: empty where none was wanted."""
    return grads[0] if grads else input.new_empty(0)


@torch.library.impl("imbal_kernels::sigmoid_loss_levels", "CUDA", lib=backends.library)
def _levels_cuda(*args: Any) -> tuple[Tensor, list[Tensor]]:
    from imbal_kernels import kernels

    loss, grads, _ = kernels.sigmoid_loss_levels(*args)
    return loss, grads


@torch.library.impl("imbal_kernels::sigmoid_loss_by_class", "CUDA", lib=backends.library)
def _by_class_cuda(input: Tensor, target: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from imbal_kernels import kernels

    if target.dim() == input.dim() or args[10] == ELEMENTWISE:
        return *_ops.sigmoid_loss(input, target, *args), sums_from_elements(input, target, *args)
    loss, grads, sums = kernels.sigmoid_loss_levels(*(*_one_level(input, target, *args), True))
    return loss, _only(grads, input), sums


@torch.library.impl("imbal_kernels::sigmoid_loss_levels_by_class", "CUDA", lib=backends.library)
def _levels_by_class_cuda(*args: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    from imbal_kernels import kernels

    return kernels.sigmoid_loss_levels(*(*args, True))


def sums_from_elements(input: Tensor, target: Tensor, *args: Any) -> Tensor:
    """Of dense targets, and of elementwise losses, no kernel adds up anything by class: the losses and gradients of all
    elements are written, and PyTorch does."""
    from imbal_kernels import kernels

    each = (*args[:10], ELEMENTWISE, True, True, *args[13:])
    losses, grads = kernels.sigmoid_loss(input, target, *each)
    scores = args[13] if len(args) > 13 else None
    t, _, _ = reference.decode_targets(target, scores, input.shape[1], args[9], losses.dtype)
    return reference.add_by_class(t, losses, grads)


@torch.library.impl("imbal_kernels::count_targets", "CUDA", lib=backends.library)
def _count_targets_cuda(target: Tensor, *args: Any) -> Tensor:
    from imbal_kernels import kernels

    return kernels.count_targets(target, *args)


@torch.library.impl("imbal_kernels::rescale_", "CUDA", lib=backends.library)
def _rescale_cuda(grads: list[Tensor], upstream: Tensor) -> None:
    from imbal_kernels import kernels

    kernels.rescale_(grads, upstream)


def raise_bad_row(
    input: Tensor, target: Tensor, scores: Tensor | None, row: int, ignore_index: int, place: str = ""
) -> None:
    """The ValueError for a target out of range, or the score of a row that has a class. place: of the row."""
    if target.dim() == input.dim():
        values = target[row].double()
        column = int((((values < 0) | (values > 1)) & (values != ignore_index)).int().argmax())
        raise ValueError(
            f"target {values[column].item():g} at row {row}{place}, class {column} is out of range: "
            f"values must be in [0, 1] or ignore_index, {ignore_index}"
        )
    classes = input.shape[1]
    if input.dim() == 4:  # the first in the user's order of (image, position, anchor)
        classes, by_anchor = input.shape[2], target.shape
        target = target.transpose(1, 2).reshape(-1).long()
        wrong = out_of_range(target, -1, classes, ignore_index)
        if scores is not None:
            scores = scores.view(by_anchor).transpose(1, 2).reshape(-1)
            wrong |= holds_object(target, classes, ignore_index, False) & ~((scores >= 0) & (scores <= 1))
        row = int(wrong.int().argmax())
    if scores is not None and 0 <= target[row] < classes:
        raise ValueError(f"score {scores[row].item():g} at row {row}{place} is out of range: scores must be in [0, 1]")
    raise ValueError(
        f"target {target[row].item()} at row {row}{place} is out of range: class ids are 0 to {classes - 1}, "
        f"-1 and {classes} are background"
    )


def count_targets(target: Tensor, num_classes: int, ignore_index: int, dense: bool, positives: bool) -> Tensor:
    """Rows (class ids) or elements (values) that are not ignored, or that hold an object: a 0-d int64 tensor. On a CPU
    -1 where one is out of range."""
    if backends.in_transform() or not backends.has_kernels(target):
        return reference.count_targets(target, num_classes, ignore_index, dense, positives)
    return _ops.count_targets(target.contiguous(), num_classes, ignore_index, dense, positives)


def sigmoid_loss(problem: SigmoidProblem, statistics: ClassStatistics | None = None) -> Tensor:
    return sigmoid_losses([problem], statistics)


def sigmoid_losses(problems: list[SigmoidProblem], statistics: ClassStatistics | None = None) -> Tensor:
    """The loss of several levels, whose problems differ in their logits and what goes with them by place."""
    if statistics is None:
        return fused_loss("sigmoid", *problems)
    if backends.in_transform():
        raise ValueError("statistics are not kept inside torch.func, vmap or forward-mode autograd: pass None")
    result = fused_loss("sigmoid_by_class", *problems)
    if not isinstance(result, tuple):  # the reference's
        result = result, functools.reduce(torch.add, [reference.sums_by_class(problem) for problem in problems])
    loss, sums = result
    statistics.add(sums)
    return loss


def _raw(
    problems: Sequence[SigmoidProblem], upstream: Tensor | None, loss_mode: int, want_grad: bool,
    one: Any = _ops.sigmoid_loss, several: Any = _ops.sigmoid_loss_levels,
) -> tuple[Any, ...]:  # fmt: skip
    if len(problems) > 1:
        return several(*level_arguments(problems, upstream, loss_mode, want_grad))
    p = problems[0]
    loss, grad, *more = one(
        p.input, p.target, p.weight, p.pos_weight, p.alpha_per_class, p.scale_tensor, upstream, p.alpha, p.gamma,
        p.label_smoothing, p.scale, p.ignore_index, loss_mode, want_grad, p.fp32_loss, p.scores, p.formula,
        p.gamma_pos, p.clip,
    )  # fmt: skip
    return loss, [grad], *more


def level_arguments(
    problems: Sequence[SigmoidProblem], upstream: Tensor | None, loss_mode: int, want_grad: bool
) -> tuple[Any, ...]:
    """The arguments of sigmoid_loss_levels."""

    def each(name: str) -> list[Tensor]:
        return [value for value in (getattr(problem, name) for problem in problems) if value is not None]

    p = problems[0]
    return (
        each("input"), each("target"), each("weight"), each("pos_weight"), p.alpha_per_class, p.scale_tensor, upstream,
        p.alpha, p.gamma, p.label_smoothing, p.scale, p.ignore_index, loss_mode, want_grad, each("scores"), p.formula,
        p.gamma_pos, p.clip,
    )  # fmt: skip


def _raw_by_class(
    problems: Sequence[SigmoidProblem], upstream: Tensor | None, loss_mode: int, want_grad: bool
) -> tuple[Any, ...]:
    if loss_mode == NO_LOSS:
        return _raw(problems, upstream, loss_mode, want_grad)
    ops = _ops.sigmoid_loss_by_class, _ops.sigmoid_loss_levels_by_class
    return _raw(problems, upstream, loss_mode, want_grad, *ops)


def _fits(problem: SigmoidProblem) -> bool:
    gradient_of_target = problem.target.requires_grad or (problem.scores is not None and problem.scores.requires_grad)
    if gradient_of_target and torch.is_grad_enabled():
        return False
    own = problem.formula not in FORMULAS
    return not own or (problem.input.is_cuda and by_key(problem.formula).triton is not None)


def _check(problem: SigmoidProblem, by_kernel: bool, place: str) -> None:
    backends.refuse_capture(problem.input)
    alphas = problem.alpha_per_class
    if type(alphas) is Tensor and not bool((alphas <= 1).all()):
        raise ValueError(
            f"alpha must be at most 1 (below 0 switches it off), got a tensor with {alphas.max():g}; "
            "weights of classes go in as weight or pos_weight"
        )
    if by_kernel:
        return
    row = int(reference.first_bad_row(problem))
    if row < (problem.target.shape[0] if problem.dense else problem.target.numel()):
        raise_bad_row(problem.input, problem.target, problem.scores, row, problem.ignore_index, place)


FAMILIES["sigmoid"] = Family(SigmoidProblem, 7, _raw, reference.sigmoid_loss, _fits, _check)
FAMILIES["sigmoid_by_class"] = FAMILIES["sigmoid"]._replace(raw=_raw_by_class)
