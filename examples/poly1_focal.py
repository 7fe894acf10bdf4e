"""A loss of one's own: Poly-1 focal loss, with a Triton twin for the fused kernel.

Leng et al., "PolyLoss" (2022): focal loss plus epsilon (1 - p_t)^(gamma + 1); here gamma is 2.

    python examples/poly1_focal.py
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

import imbal_kernels as ik

EPSILON = tl.constexpr(1.0)  # a number to PyTorch is EPSILON.value


def in_torch(x, t):
    """The definition: x and t have one shape; autograd gives the gradient."""
    missed = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)  # 1 - p_t, for soft targets too
    entropy = t * F.softplus(-x) + (1 - t) * F.softplus(x)
    return missed**2 * entropy + EPSILON.value * missed**3


@triton.jit
def in_triton(x, t):
    """The same, and its gradient by x."""
    e = tl.exp(-tl.abs(x))
    large, tail = 1.0 / (1.0 + e), tl.log(1.0 + e)
    p, q = tl.where(x < 0, e * large, large), tl.where(x < 0, large, e * large)
    missed, slope = t * q + (1.0 - t) * p, (1.0 - 2.0 * t) * p * q
    entropy = tail + t * tl.maximum(-x, 0.0) + (1.0 - t) * tl.maximum(x, 0.0)
    loss = missed * missed * (entropy + EPSILON * missed)
    grad = missed * (2.0 * slope * entropy + missed * (p - t) + 3.0 * EPSILON * missed * slope)
    return loss, grad


POLY1_FOCAL = ik.Formula(in_torch, in_triton)


def main():
    POLY1_FOCAL.check("cuda" if torch.cuda.is_available() else "cpu")
    logits = torch.randn(8, 100, 80, requires_grad=True)
    ids = torch.randint(-1, 80, (8, 100))
    loss = ik.elementwise_loss(POLY1_FOCAL, logits, ids, "sum", normalizer="positives")
    loss.backward()
    print(f"loss {loss.item():.4f}, gradient's norm {logits.grad.norm().item():.4f}")


if __name__ == "__main__":
    main()
