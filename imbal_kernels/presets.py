"""The losses of other projects, by their arguments: each is one call of a loss here.

What they pass as background is taken as it comes (-1 or C); one-hot targets are never written.
"""

import torch
from torch import Tensor

from imbal_kernels.functional import binary_cross_entropy_with_logits, cross_entropy, sigmoid_focal_loss
from imbal_kernels.sigmoid_losses import asymmetric_loss, quality_focal_loss, varifocal_loss
from imbal_kernels.weights import class_weights


def torchvision_retinanet(logits: Tensor, ids: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """RetinaNet's classification loss: of each image's anchors, over its objects, then the mean over images.

    logits (images, anchors, C); ids (images, anchors): a class, -1 background, -2 between the thresholds.
    """
    return sigmoid_focal_loss(
        logits, ids, alpha, gamma, "sum", ignore_index=-2, normalizer="positives_per_image"
    )  # fmt: skip


def detectron2_retinanet(
    logits: Tensor, ids: Tensor, loss_normalizer: float | Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """RetinaNet's classification loss: ids a class, C background, -1 ignored; over the moving average of the
    objects, which may stay on the device: `ema.mul_(0.9).add_(0.1 * objects.clamp(min=1))`.
    """
    return sigmoid_focal_loss(logits, ids, alpha, gamma, "sum", ignore_index=-1, normalizer=loss_normalizer)


def mmdet_focal(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: str = "mean",
    loss_weight: float = 1.0,
) -> Tensor:
    """FocalLoss: pred (N, C), target (N,) with C background, weight (N,) or (N, C)."""
    return sigmoid_focal_loss(
        pred, target, alpha, gamma, reduction, weight=_by_anchor(weight), normalizer=avg_factor, loss_weight=loss_weight
    )


def mmdet_quality_focal(
    pred: Tensor,
    target: tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    *,
    beta: float = 2.0,
    loss_weight: float = 1.0,
) -> Tensor:
    """QualityFocalLoss with reduction "mean": pred (N, C), target (labels, scores), weight (N,). An anchor's classes
    are added up and the mean is over anchors.
    """
    labels, scores = target
    divisor = float(pred.shape[0]) if avg_factor is None else avg_factor
    return quality_focal_loss(
        pred, labels, beta, "sum", scores=scores, weight=_by_anchor(weight), normalizer=divisor, loss_weight=loss_weight
    )


def mmdet_varifocal(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: str = "mean",
    loss_weight: float = 1.0,
) -> Tensor:
    """VarifocalLoss with iou_weighted: pred and target (N, C), weight (N, C)."""
    return varifocal_loss(
        pred, target, alpha, gamma, reduction, weight=weight, normalizer=avg_factor, loss_weight=loss_weight
    )


def apex_focal(
    cls_output: Tensor,
    targets: Tensor,
    num_positives_sum: Tensor,
    num_real_classes: int,
    alpha: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """focal_loss: columns from num_real_classes on are padding; targets a class, -1 background, -2 ignored."""
    return sigmoid_focal_loss(
        cls_output[..., :num_real_classes], targets, alpha, gamma, "sum", label_smoothing=label_smoothing,
        ignore_index=-2, normalizer=num_positives_sum.reshape(()),
    )  # fmt: skip


def timm_bce(x: Tensor, target: Tensor, smoothing: float = 0.1, pos_weight: Tensor | None = None) -> Tensor:
    """BinaryCrossEntropy: x (N, C), target (N,) ids or (N, C). Ids are smoothed to eps / C and 1 - eps + eps / C, which
    is not what `label_smoothing` does, so with smoothing the targets are written out.
    """
    if target.dim() == 1 and smoothing > 0:
        off = smoothing / x.shape[-1]
        smooth = torch.full_like(x, off, requires_grad=False)
        target = smooth.scatter_(1, target[:, None].long(), 1 - smoothing + off)
    return binary_cross_entropy_with_logits(x, target, pos_weight=pos_weight)


def asl(x: Tensor, y: Tensor, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> Tensor:
    """AsymmetricLoss of the ASL repository: the sum over a batch's labels. timm's AsymmetricLossMultiLabel is the same
    with reduction="sum"; its "batchmean" (the default in 1.0.31) is this over the batch.

    Theirs cuts the logarithm at 1e-8, and with disable_torch_grad_focal_loss leaves the focusing factor out of the
    gradient; this one has the gradient of the loss.
    """
    return asymmetric_loss(x, y, gamma_neg, gamma_pos, clip, "sum")


def class_balanced_focal(
    logits: Tensor, labels: Tensor, counts: Tensor, beta: float = 0.9999, gamma: float = 2.0
) -> Tensor:
    """Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (2019), with the sigmoid focal loss: each
    example weighs what its class does; over the examples. logits (N, C), labels (N,), counts (C,).
    """
    weight = class_weights(counts, "effective", beta=beta)[labels][:, None]
    return sigmoid_focal_loss(logits, labels, -1.0, gamma, "sum", weight=weight, normalizer=float(labels.shape[0]))


def ldam(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    max_margin: float = 0.5,
    scale: float = 30.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss" (2019): the label's logit
    less a margin that goes with n_c^(-1/4), then scaled cross-entropy. logits are cosines, (N, C).
    """
    margins = counts.to(logits.dtype).pow(-0.25)
    margins = margins * (max_margin / margins.max())
    shifted = logits.scatter_add(1, labels[:, None], -margins[labels][:, None])
    return cross_entropy(scale * shifted, labels, weight)


def _by_anchor(weight: Tensor | None) -> Tensor | None:
    return weight[:, None] if weight is not None and weight.dim() == 1 else weight
