"""The softmax losses' definition in fp64 on top of PyTorch's cross-entropy, and the call that is compared with it."""

import torch
import torch.nn.functional as F

from imbal_kernels.kernels import softmax_loss


def call(x, target, *, gamma=0.0, smoothing=0.0, scale=1.0, ignore_index=-100, weight=None, adjustment=None,
         scale_tensor=None, upstream=None):  # fmt: skip
    """(sum, losses, gradient) from the kernels."""
    tensors = (weight, adjustment, scale_tensor)
    options = (gamma, smoothing, scale, ignore_index)
    total, grad = softmax_loss(x, target, *tensors, upstream, *options, 2, True, False)
    losses, none = softmax_loss(x, target, *tensors, None, *options, 1, False, True)
    assert none.numel() == 0 and total.dim() == 0
    return total, losses, grad


def definition(x, target, *, gamma=0.0, smoothing=0.0, scale=1.0, ignore_index=-100, weight=None, adjustment=None,
               scale_tensor=None, upstream=None):  # fmt: skip
    """(losses, gradient) in fp64: F.cross_entropy times (1 - p of the target) ** gamma."""
    x = x.double().requires_grad_()
    per_class = (1, -1) + (1,) * (x.dim() - 2)
    shifted = x if adjustment is None else x + adjustment.double().view(per_class)
    probabilities = target.shape == x.shape
    target = target.double() if probabilities else target.long()
    options = {} if probabilities else dict(ignore_index=ignore_index)
    weight = None if weight is None else weight.double()
    losses = F.cross_entropy(shifted, target, weight, label_smoothing=smoothing, reduction="none", **options)
    if gamma:
        log_p = torch.log_softmax(shifted, 1)
        if probabilities:
            k = -(target * torch.expm1(log_p)).sum(1)
        else:
            k = -torch.expm1(log_p.gather(1, target.clamp(min=0)[:, None]))[:, 0]
        losses = k.clamp(min=1e-300) ** gamma * losses  # the only class has k = 0, where the slope is not defined
    losses = losses * scale * (1.0 if scale_tensor is None else scale_tensor)
    (grad,) = torch.autograd.grad(losses, x, torch.ones_like(losses) if upstream is None else
                                  upstream.double().expand_as(losses))  # fmt: skip
    return losses.detach(), grad


def compare(x, target, rtol=None, **options):
    """A gradient's tolerance is the largest of its row: where it crosses zero its terms are of that size."""
    rtol = rtol or {torch.float64: 1e-12, torch.float32: 5e-6}[x.dtype]
    losses, grad = definition(x, target, **options)
    total, got, slope = call(x, target, **options)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert got.dtype == total.dtype == wide and slope.dtype == x.dtype and slope.shape == x.shape
    assert ((got - losses).abs() <= rtol * (losses.abs() + 1)).all()
    assert abs(total - losses.sum()) <= rtol * (losses.abs().sum() + 1)
    largest = grad.abs().amax(1, keepdim=True) + 1e-30
    assert ((slope - grad).abs() <= rtol * largest).all(), ((slope - grad).abs() / largest).max()
