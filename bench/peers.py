"""Other projects' losses.

torchvision's function is called as it is. mmcv and apex are CUDA extensions that need a GPU and a build;
only their arithmetic is rewritten here, from the maths, to see what it does to the digits. What a paper gives and no
package is written as its users write it, from F.binary_cross_entropy_with_logits or logarithms.
"""

import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ALPHA, GAMMA = 0.25, 2.0
TINY = torch.finfo(torch.float32).tiny


def torchvision_focal_loss() -> Callable[..., Tensor]:
    """torchvision's Python function. Without its compiled operators (a CPU torch beside another build of
    torchvision) only the registration of their fakes would fail, so that module is left out."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss


def mmcv_formula(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient with p = 1 / (1 + exp(-x)) and 1 - p subtracted, logarithms clamped at FLT_MIN."""
    p = 1 / (1 + torch.exp(-x))
    q = 1 - p
    if positive:
        log_p = torch.log(p.clamp(min=TINY))
        return -ALPHA * q**gamma * log_p, -ALPHA * q**gamma * (q - gamma * p * log_p)
    log_q = torch.log(q.clamp(min=TINY))
    return -(1 - ALPHA) * p**gamma * log_q, -(1 - ALPHA) * p**gamma * (gamma * q * log_q - p)


def apex_formula(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient with softplus(-x) = max(-x, 0) + log(1 + exp(-|x|)), which a negative adds to x:
    a small softplus(x) is then a difference of large numbers."""
    sigma = 1 / (1 + torch.exp(-x))
    entropy = (-x).clamp(min=0) + torch.log(1 + torch.exp(-x.abs()))
    if positive:
        factor = ALPHA * (1 - sigma) ** gamma
        return factor * entropy, -factor * (gamma * sigma * entropy + (1 - sigma))
    entropy = x + entropy
    factor = (1 - ALPHA) * sigma**gamma
    return factor * entropy, factor * (gamma * (1 - sigma) * entropy + sigma)


def mmcv_focal_loss(x: Tensor, ids: Tensor) -> Tensor:
    """Its CUDA op, summed; background is C there."""
    from mmcv.ops import sigmoid_focal_loss

    classes = x.shape[1]
    return sigmoid_focal_loss(x, torch.where(ids < 0, classes, ids), GAMMA, ALPHA, None, "sum")


def apex_focal_loss(x: Tensor, ids: Tensor, positives: Tensor) -> Tensor:
    """Its CUDA op, summed over the positives."""
    from apex.contrib.focal_loss import focal_loss

    return focal_loss(x, ids, positives, x.shape[1], ALPHA, GAMMA)


def liger_cross_entropy(x: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    """Liger-Kernel's, which writes its gradient over x."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(x, ids, weight=weight)


def quack_cross_entropy(x: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    from quack.cross_entropy import cross_entropy

    return cross_entropy(x, ids, weight=weight)


def quality_focal(x: Tensor, t: Tensor) -> Tensor:
    """|p - t|^2 BCE(x, t), summed: Li et al., "Generalized Focal Loss" (2020)."""
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return ((torch.sigmoid(x) - t).abs() ** GAMMA * entropy).sum()


def varifocal(x: Tensor, t: Tensor) -> Tensor:
    """BCE(x, t) times t for positives and 0.75 p^2 for negatives, summed: Zhang et al., "VarifocalNet" (2021)."""
    p = torch.sigmoid(x)
    weight = torch.where(t > 0, t, 0.75 * p**GAMMA)
    return (weight * F.binary_cross_entropy_with_logits(x, t, reduction="none")).sum()


def asymmetric(x: Tensor, t: Tensor) -> Tensor:
    """Margin 0.05, exponents 4 and 1, summed: Ridnik et al., "Asymmetric Loss" (2021)."""
    p = torch.sigmoid(x)
    rejected = (1 - p + 0.05).clamp(max=1)
    entropy = t * torch.log(p.clamp(min=1e-8)) + (1 - t) * torch.log(rejected.clamp(min=1e-8))
    p_t = p * t + rejected * (1 - t)
    return -(entropy * (1 - p_t) ** (1.0 * t + 4.0 * (1 - t))).sum()


def poly1_focal(x: Tensor, t: Tensor) -> Tensor:
    """(1 - p_t)^2 BCE + (1 - p_t)^3, summed: Leng et al., "PolyLoss" (2022)."""
    p = torch.sigmoid(x)
    missed = p + t - 2 * p * t
    return (missed**2 * F.binary_cross_entropy_with_logits(x, t, reduction="none") + missed**3).sum()
