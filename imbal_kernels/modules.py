"""The losses as modules: the arguments of a function, kept; tensors among them are buffers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from imbal_kernels import dense, functional, sigmoid_losses
from imbal_kernels.class_statistics import ClassStatistics
from imbal_kernels.formula import Formula
from imbal_kernels.normalizer import Normalizer


class _Loss(nn.Module):
    """Keeps keyword arguments, the tensors as buffers so that they follow `.to()` and are saved."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._names = tuple(arguments)
        for name, value in arguments.items():
            # set later, a tensor follows too
            if isinstance(value, Tensor) or name in ("weight", "pos_weight", "logit_adjustment"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        values = ((k, v) for k, v in self.arguments().items() if v is not None and not isinstance(v, nn.Module))
        return ", ".join(f"{k}=tensor{tuple(v.shape)}" if isinstance(v, Tensor) else f"{k}={v!r}" for k, v in values)


class SigmoidFocalLoss(_Loss):
    """`sigmoid_focal_loss` as a module: same arguments, same defaults; `scores` go to the call.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> loss = ik.SigmoidFocalLoss(reduction="sum", normalizer="positives")
        >>> loss(torch.zeros(2, 3), torch.tensor([1, -1]))
        tensor(0.6931)
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.25,
        gamma: float = 2.0,
        reduction: str = "none",
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalizer: Normalizer = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
        statistics: ClassStatistics | None = None,
    ) -> None:
        super().__init__(
            alpha=alpha, gamma=gamma, reduction=reduction, weight=weight, pos_weight=pos_weight,
            label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
            loss_weight=loss_weight, process_group=process_group, statistics=statistics,
        )  # fmt: skip

    def forward(self, inputs: Tensor, targets: Tensor, scores: Tensor | None = None) -> Tensor:
        return functional.sigmoid_focal_loss(inputs, targets, scores=scores, **self.arguments())


class BinaryCrossEntropyWithLogits(_Loss):
    """`binary_cross_entropy_with_logits` as a module: same arguments, same defaults; `scores` go to the
    call.

    Also under its PyTorch name, `BCEWithLogitsLoss`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalizer: Normalizer = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            weight=weight, reduction=reduction, pos_weight=pos_weight, label_smoothing=label_smoothing,
            ignore_index=ignore_index, normalizer=normalizer, loss_weight=loss_weight,
            process_group=process_group,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, scores: Tensor | None = None) -> Tensor:
        return functional.binary_cross_entropy_with_logits(input, target, scores=scores, **self.arguments())


BCEWithLogitsLoss = BinaryCrossEntropyWithLogits


class QualityFocalLoss(_Loss):
    """`quality_focal_loss` as a module: same arguments, same defaults; `scores` go to the call."""

    def __init__(
        self,
        beta: float = 2.0,
        reduction: str = "none",
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalizer: Normalizer = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            beta=beta, reduction=reduction, weight=weight, pos_weight=pos_weight,
            label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
            loss_weight=loss_weight, process_group=process_group,
        )  # fmt: skip

    def forward(self, inputs: Tensor, targets: Tensor, scores: Tensor | None = None) -> Tensor:
        return sigmoid_losses.quality_focal_loss(inputs, targets, scores=scores, **self.arguments())


class VarifocalLoss(_Loss):
    """`varifocal_loss` as a module: same arguments, same defaults; `scores` go to the call."""

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        reduction: str = "none",
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalizer: Normalizer = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            alpha=alpha, gamma=gamma, reduction=reduction, weight=weight, pos_weight=pos_weight,
            label_smoothing=label_smoothing, ignore_index=ignore_index, normalizer=normalizer,
            loss_weight=loss_weight, process_group=process_group,
        )  # fmt: skip

    def forward(self, inputs: Tensor, targets: Tensor, scores: Tensor | None = None) -> Tensor:
        return sigmoid_losses.varifocal_loss(inputs, targets, scores=scores, **self.arguments())


class AsymmetricLoss(_Loss):
    """`asymmetric_loss` as a module: same arguments, same defaults; `scores` go to the call."""

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        reduction: str = "none",
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalizer: Normalizer = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, reduction=reduction, weight=weight,
            pos_weight=pos_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
            normalizer=normalizer, loss_weight=loss_weight, process_group=process_group,
        )  # fmt: skip

    def forward(self, inputs: Tensor, targets: Tensor, scores: Tensor | None = None) -> Tensor:
        return sigmoid_losses.asymmetric_loss(inputs, targets, scores=scores, **self.arguments())


class CrossEntropyLoss(_Loss):
    """`cross_entropy` as a module: same arguments, same defaults."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_adjustment: Tensor | None = None,
        normalizer: float | Tensor | str | None = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
            logit_adjustment=logit_adjustment, normalizer=normalizer, loss_weight=loss_weight,
            process_group=process_group,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(input, target, **self.arguments())


class SoftmaxFocalLoss(_Loss):
    """`softmax_focal_loss` as a module: same arguments, same defaults."""

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_adjustment: Tensor | None = None,
        normalizer: float | Tensor | str | None = None,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            gamma=gamma, weight=weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=normalizer,
            loss_weight=loss_weight, process_group=process_group,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.softmax_focal_loss(input, target, **self.arguments())


class DenseFocalLoss(_Loss):
    """`dense_focal_loss` as a module: same arguments, same defaults; `scores` go to the call.

    Example:
        >>> import torch, imbal_kernels as ik
        >>> loss = ik.DenseFocalLoss(num_classes=4)
        >>> loss([torch.zeros(2, 3 * 4, 8, 8)], torch.full((2, 3 * 64), -1)).round(decimals=2)
        tensor(199.6300)
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float | Tensor | None = None,
        gamma: float | None = None,
        reduction: str = "sum",
        *,
        normalizer: Normalizer = "positives",
        formula: str | Formula = "focal",
        gamma_pos: float | None = None,
        clip: float | None = None,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        loss_weight: float | Tensor = 1.0,
        process_group: Any = None,
        statistics: ClassStatistics | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes, alpha=alpha, gamma=gamma, reduction=reduction, normalizer=normalizer,
            formula=formula, gamma_pos=gamma_pos, clip=clip, weight=weight, pos_weight=pos_weight,
            label_smoothing=label_smoothing, ignore_index=ignore_index, loss_weight=loss_weight,
            process_group=process_group, statistics=statistics,
        )  # fmt: skip

    def forward(
        self,
        levels: Sequence[Tensor],
        labels: Tensor | Sequence[Tensor],
        scores: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        return dense.dense_focal_loss(levels, labels, scores=scores, **self.arguments())
