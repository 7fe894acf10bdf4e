"""The raw op sigmoid_loss on tensors: outputs, specialisation and launches."""

import torch

from imbal_kernels.formula import by_key

from . import formulas, streaming
from .launch import Launch, cdiv, interpreted, on_device

NO_LOSS, ELEMENTWISE, SUM = 0, 1, 2
# itemsize of the logits -> vectors a tile, tiles a program: the longest that stay within 144 registers
TILE = {2: (128, 9), 4: (128, 7), 8: (64, 1)}
MIXED_TILES = 2  # at most, where a tile holds targets of its own, or weights and p is clipped; 1 for both
WEIGHTED_TILES = 4  # at most, where it holds weights by element
CLIPPED_TILES = 5  # at most, where p is clipped
SUM_BLOCK = 1024
TWO_ROWS_TILES = 8
# Formula -> its form for any target.
SOFT = {
    "focal": formulas.soft,
    "quality_focal": formulas.quality,
    "varifocal": formulas.varifocal,
    "asymmetric": formulas.asymmetric,
}
LOSSES = {NO_LOSS: "none", ELEMENTWISE: "elementwise", SUM: "sum"}


def mode_of(tensor: torch.Tensor | None, shape: tuple[int, int]) -> str:
    """How the kernel reads an optional tensor, told by its shape."""
    if tensor is None:
        return "none"
    rows, columns = (tensor.dim() == 2 and tensor.shape) or (1, 1)
    if rows * columns == 1:
        return "scalar"
    if rows == 1:
        return "class" if columns == shape[1] else _bad_shape(tensor, shape)
    if rows == shape[0]:
        return "row" if columns == 1 else "full"
    return _bad_shape(tensor, shape)


def _bad_shape(tensor, shape):
    raise AssertionError(f"{tuple(tensor.shape)} does not broadcast to {tuple(shape)}")


def _span(classes: int) -> str:
    if classes % 16 == 0:
        return "one row"
    return "two rows" if classes > 16 else "many rows"


def _kind(gamma: float) -> int:
    """2 * gamma where a product of multiplications and one square root gives the power."""
    return int(2 * gamma) if gamma in (0, 0.5, 1, 1.5, 2, 2.5, 3, 4) else formulas.GENERAL.value


def _terms(itemsize: int, kind: int) -> int:
    """Terms of the logarithm's polynomial; a bound of (1 + gamma) * 1.5e-6 leaves room for 7 from 1 on."""
    if itemsize == 2:
        return 5
    return 7 if kind >= 2 else 8


def specialise(
    itemsize, mixed, patched, weight, pos_weight, alpha_per_class, scores, alpha, gamma, label_smoothing, scale, name,
    gamma_pos, clip,
):  # fmt: skip
    """A kernel's arguments that say how an element is evaluated, whatever the layout.

    mixed: targets may lie between 0 and 1; patched: positives may be written after the background.
    """
    positive, own = None, name not in SOFT
    formula = soft = by_key(name).triton if own else SOFT[name]
    targets = "soft"
    if patched and not mixed:
        formula, targets = (soft if own else formulas.background), "background"
        positive = soft if own or scores is not None else formulas.positive
    elif not (own or mixed or scores is not None or clip):
        formula, targets = formulas.hard, "hard"
    kind = _kind(gamma)
    kind_pos = formulas.SAME.value if name in ("focal", "quality_focal") else _kind(gamma_pos)
    least_kind = kind if kind_pos == formulas.SAME.value else min(kind, kind_pos)
    alpha_pos, alpha_neg = (1.0, 1.0) if alpha < 0 or alpha_per_class is not None else (alpha, 1.0 - alpha)
    if name == "varifocal":
        alpha_pos, alpha_neg = 1.0, alpha
    # A pos_weight is the patch's, where there is one. A scale_tensor of 0 would have to be read.
    factors = (weight, alpha_per_class) if positive is not None else (weight, pos_weight, alpha_per_class)
    zero = any(f is not None for f in factors) or 0 in (alpha_pos * scale, alpha_neg * scale) or label_smoothing != 0
    return dict(
        alpha_pos=alpha_pos * scale, alpha_neg=alpha_neg * scale, smoothing=label_smoothing, gamma=gamma,
        gamma_pos=gamma_pos, clip=clip, FORMULA=formula, POSITIVE=positive, TARGETS=targets, KIND=kind,
        KIND_POS=kind_pos, CLIP=clip > 0, APART=name == "varifocal", OWN=own, ZERO=zero,
        TERMS=_terms(itemsize, least_kind), FAST=itemsize < 8 and not interpreted(),
    )  # fmt: skip


def plan(
    input, target, weight, pos_weight, alpha_per_class, scale_tensor, upstream, alpha, gamma,
    label_smoothing, scale, ignore_index, loss_mode, want_grad, fp32_loss, scores=None, name="focal", gamma_pos=0.0,
    clip=0.0,
):  # fmt: skip
    """(loss, grad, launches) for the raw op's arguments."""
    rows, classes = input.shape
    numel, itemsize = input.numel(), input.element_size()
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    dense = target.dim() == 2
    if target.dtype == torch.bool:
        target = target.view(torch.uint8)
    span = _span(classes)
    vectors, tiles = TILE[itemsize]
    element = specialise(
        itemsize, label_smoothing != 0 or (dense and target.is_floating_point()), not dense and span != "many rows",
        weight, pos_weight, alpha_per_class, scores, alpha, gamma, label_smoothing, scale, name, gamma_pos, clip,
    )  # fmt: skip
    positive = element["POSITIVE"]
    weights = (weight, pos_weight, alpha_per_class)
    modes = [mode_of(tensor, input.shape) for tensor in weights]
    if element["FORMULA"] is formulas.asymmetric:
        tiles = 1
    elif positive is None:
        tiles = min(tiles, MIXED_TILES)
    elif any(mode in ("class", "full") for mode in modes):
        tiles = min(tiles, MIXED_TILES if clip > 0 else WEIGHTED_TILES)
    elif clip > 0:
        tiles = min(tiles, CLIPPED_TILES)
    if span == "two rows":
        tiles = min(tiles, TWO_ROWS_TILES)
        weight, pos_weight, alpha_per_class = (
            tensor.repeat(1, streaming.PERIODS) if mode == "class" else tensor
            for tensor, mode in zip(weights, modes, strict=True)
        )
    block = vectors * tiles * 16
    patches = cdiv(block // classes + 2, vectors) if positive is not None else 0
    programs = cdiv(numel, block)
    log2_classes = classes.bit_length() - 1

    grad = torch.empty_like(input) if want_grad else input.new_empty(0)
    partial = None
    if loss_mode == ELEMENTWISE:
        loss = partial = torch.empty_like(input, dtype=compute if fp32_loss else input.dtype)
    elif loss_mode == SUM:
        loss = input.new_empty((), dtype=compute)
        partial = input.new_empty(programs, dtype=compute)
    else:
        loss = input.new_empty(0)

    args = element | dict(
        x_ptr=input, target_ptr=target, weight_ptr=weight, pos_weight_ptr=pos_weight, alpha_ptr=alpha_per_class,
        scores_ptr=scores, scale_ptr=scale_tensor, upstream_ptr=upstream, loss_ptr=partial,
        grad_ptr=grad if want_grad else None, numel=numel, C=classes, ignore_index=ignore_index,
        # Quotients by C are multiplications in the kernel.
        multiplier=(1 << 31 + log2_classes) // classes + 1, shift=log2_classes, row_multiplier=(1 << 63) // classes + 1,
        DENSE=dense, WEIGHT=modes[0], POS_WEIGHT=modes[1], ALPHA=modes[2], SCORES="none" if scores is None else "row",
        UPSTREAM=mode_of(upstream, input.shape), LOSS=LOSSES[loss_mode], SPAN=span, PATCHES=patches, VECTORS=vectors,
        TILES=tiles,
    )  # fmt: skip
    launches = [Launch(streaming.sigmoid_kernel, programs, args)] if numel else []
    if loss_mode == SUM:
        launches.append(sum_of(partial, scale_tensor, loss))
    return loss, grad, launches


def sum_of(partial, scale_tensor, loss):
    """The launch that adds up what the programs left."""
    args = dict(partial_ptr=partial, scale_ptr=scale_tensor, out_ptr=loss, count=partial.numel(), BLOCK=SUM_BLOCK)
    return Launch(streaming.sum_kernel, 1, args)


def sigmoid_loss(
    input, target, weight, pos_weight, alpha_per_class, scale_tensor, upstream, alpha, gamma,
    label_smoothing, scale, ignore_index, loss_mode, want_grad, fp32_loss, scores=None, formula="focal", gamma_pos=0.0,
    clip=0.0,
):  # fmt: skip
    """Loss and gradient of the sigmoid family: the raw op, see ops."""
    with on_device(input):
        loss, grad, launches = plan(
            input, target, weight, pos_weight, alpha_per_class, scale_tensor, upstream, alpha, gamma,
            label_smoothing, scale, ignore_index, loss_mode, want_grad, fp32_loss, scores, formula, gamma_pos, clip,
        )  # fmt: skip
        for launch in launches:
            launch.run()
    return loss, grad
