"""How many digits survive: the focal losses and their gradients in fp32 against 50 digits.

    python -m bench.accuracy [--write docs/accuracy.md]

Contestants, all in fp32 with alpha = 0.25: ours; torchvision's own function through autograd; and the
formulas of the mmcv and apex kernels rewritten from the maths in `bench.peers`, evaluated op by op in
PyTorch. Assumed of apex: no label smoothing, sigma = 1 / (1 + exp(-x)), softplus(-x) in its stable form,
added to x for a negative; its kernel may fuse a multiply and an add where PyTorch rounds twice.
An error counts only where the true value is a normal fp32 number.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import imbal_kernels as ik
from bench import accuracy_family, harness, peers

GAMMAS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
BANDS = ((20.0, 1.5e-6), (80.0, 1e-5))  # |x| up to, and the bound there over 1 + gamma
SAMPLES = (-12.0, -16.0, -20.0)
FLOAT = torch.finfo(torch.float32)

Formula = Callable[[Tensor, bool, float], tuple[Tensor, Tensor]]


def exact(x: float, positive: bool, gamma: float, alpha: float = peers.ALPHA) -> tuple[float, float]:
    """Loss and gradient to 50 digits: with z = (1 - 2t) x and m = sigmoid(z), alpha_t m^gamma softplus(z)."""
    import mpmath

    with mpmath.workdps(50):
        sign = -1 if positive else 1
        z = mpmath.mpf(x) * sign
        m, rest = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
        softplus = z + mpmath.log1p(mpmath.exp(-z)) if z > 0 else mpmath.log1p(mpmath.exp(z))
        factor = m**gamma * (alpha if positive else 1 - alpha)
        return float(factor * softplus), float(sign * factor * (m + gamma * rest * softplus))


def ours(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    return _by_autograd(lambda x, t: ik.sigmoid_focal_loss(x, t, peers.ALPHA, gamma), x, positive)


def torchvision(x: Tensor, positive: bool, gamma: float) -> tuple[Tensor, Tensor]:
    focal = peers.torchvision_focal_loss()
    return _by_autograd(lambda x, t: focal(x, t, peers.ALPHA, gamma), x, positive)


def _by_autograd(loss_of: Callable[[Tensor, Tensor], Tensor], x: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    x = x[:, None].detach().requires_grad_()
    loss = loss_of(x, torch.full_like(x, float(positive)))
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach()[:, 0], grad[:, 0]


# The softmax's row: the label's logit is x, and these are the others'.
OTHERS = tuple((7 * j) % 9 - 4.0 for j in range(9))

SoftmaxFormula = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def exact_softmax(x: float, gamma: float) -> tuple[float, ...]:
    """Loss and gradient of a row to 50 digits: with s the sum of the others' exponentials, p = e^x / (e^x + s) and
    q = 1 - p, it is q^gamma times u = log1p(s e^-x); of the slope logit j gets its share in s."""
    import mpmath

    with mpmath.workdps(50):
        others = [mpmath.exp(o) for o in OTHERS]
        own, rest = mpmath.exp(x), mpmath.fsum(others)
        p, q, u = own / (own + rest), rest / (own + rest), mpmath.log1p(rest / own)
        slope = q**gamma * (q + gamma * p * u)
        return float(q**gamma * u), float(-slope), *(float(slope * other / rest) for other in others)


def our_softmax(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    return _of_row(lambda x, t: ik.softmax_focal_loss(x, t, gamma, reduction="none"), x)


def usual_softmax(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """(1 - p)^gamma on top of F.cross_entropy."""

    def loss_of(x: Tensor, t: Tensor) -> Tensor:
        entropy = torch.nn.functional.cross_entropy(x, t, reduction="none")
        return (1 - torch.exp(-entropy)) ** gamma * entropy

    return _of_row(loss_of, x)


def _of_row(loss_of: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.cat([x[:, None], torch.tensor(OTHERS).expand(len(x), -1)], 1).requires_grad_()
    loss = loss_of(rows, torch.zeros(len(x), dtype=torch.long))
    (grad,) = torch.autograd.grad(loss.sum(), rows)
    return loss.detach(), grad


SOFTMAX: dict[str, SoftmaxFormula] = {"ours": our_softmax, "PyTorch": usual_softmax}

IMPLEMENTATIONS: dict[str, Formula] = {
    "ours": ours,
    "torchvision": torchvision,
    "mmcv's formula": peers.mmcv_formula,
    "apex's formula": peers.apex_formula,
}


def relative_error(got: Tensor, true: Tensor) -> Tensor:
    """0 where the true value is not a normal fp32 number, infinite where NaN was got."""
    normal = (true.abs() >= FLOAT.tiny) & (true.abs() <= FLOAT.max)
    error = ((got.double() - true) / true).abs().nan_to_num(nan=math.inf)
    return torch.where(normal, error, 0.0)


def logits() -> Tensor:
    """-80 to 80 in steps of 1/4, exact in fp32."""
    return torch.arange(-320, 321) / 4


def errors(gamma: float) -> dict[tuple[str, bool], tuple[Tensor, Tensor]]:
    """The error of loss and gradient at every logit, by (implementation, positive)."""
    x = logits()
    found = {}
    for positive in (False, True):
        true = torch.tensor([exact(v, positive, gamma) for v in x.tolist()], dtype=torch.float64)
        for name, formula in IMPLEMENTATIONS.items():
            loss, grad = formula(x, positive, gamma)
            found[name, positive] = relative_error(loss, true[:, 0]), relative_error(grad, true[:, 1])
    return found


def softmax_errors(gamma: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The error of the loss and the largest of the gradient's at every x, by implementation."""
    x = logits()
    true = torch.tensor([exact_softmax(v, gamma) for v in x.tolist()], dtype=torch.float64)
    found = {}
    for name, formula in SOFTMAX.items():
        loss, grad = formula(x, gamma)
        found[name] = relative_error(loss, true[:, 0]), relative_error(grad, true[:, 1:]).amax(1)
    return found


def _softmax_tables() -> list[str]:
    x, by_gamma, parts = logits(), {gamma: softmax_errors(gamma) for gamma in GAMMAS}, [_SOFTMAX_HEAD]
    for index, quantity in enumerate(("loss", "gradient")):
        for edge, bound in BANDS:
            parts.append(f"\n## Softmax: worst error of the {quantity}, |x| <= {edge:g}\n")
            band = x.abs() <= edge
            rows = [
                [f"{gamma:g}", f"{(1 + gamma) * bound:.1e}", *(_digits(found[name][index][band]) for name in SOFTMAX)]
                for gamma, found in by_gamma.items()
            ]
            parts.append(_table(["gamma", "our bound", *SOFTMAX], rows))
    return parts


def report() -> str:
    x, by_gamma = logits(), {gamma: errors(gamma) for gamma in GAMMAS}
    names = list(IMPLEMENTATIONS)
    parts = [_HEAD.format(torch=torch.__version__, isa=harness.instruction_set())]
    for index, quantity in enumerate(("loss", "gradient")):
        parts.append(f"\n## Easy negatives: error of the {quantity}\n\nAt single logits, target 0, gamma = 2.\n")
        negatives = [by_gamma[2.0][name, False][index] for name in names]
        rows = [[f"{v:g}", *(_digits(error[x == v]) for error in negatives)] for v in SAMPLES]
        parts.append(_table(["x", *names], rows))
    for index, quantity in enumerate(("loss", "gradient")):
        for edge, bound in BANDS:
            parts.append(f"\n## Worst error of the {quantity}, |x| <= {edge:g}\n\nBoth targets.\n")
            band = x.abs() <= edge
            rows = []
            for gamma, found in by_gamma.items():
                worst = [torch.stack([found[n, t][index][band] for t in (False, True)]) for n in names]
                rows.append([f"{gamma:g}", f"{(1 + gamma) * bound:.1e}", *map(_digits, worst)])
            parts.append(_table(["gamma", "our bound", *names], rows))
    return "\n".join(parts + _family_table() + _softmax_tables()) + "\n"


def _family_table() -> list[str]:
    x = logits()[::4]
    rows = []
    for name, loss in accuracy_family.LOSSES.items():
        row = [name]
        for edge, bound in BANDS:
            worst = accuracy_family.worst(name, x[x.abs() <= edge])
            row += [f"{(1 + loss.exponent) * bound:.1e}", *map(_digits, worst)]
        rows.append(row)
    band = [f"{what}, {edge:g}" for edge, _ in BANDS for what in ("bound", "loss", "gradient")]
    return [_FAMILY, _table(["loss", *band], rows)]


_FAMILY = """
## Quality focal, varifocal and asymmetric loss: ours

Targets 0, 0.25, 0.9 and 1, x in steps of 1, up to 20 and up to 80. The error is relative to the value for a hard
target, and to the sum of the magnitudes of its terms where p - t or p - clip cancel (`bench/truth.py`).
"""

_SOFTMAX_HEAD = """
# Accuracy of the softmax focal loss

The same for rows of ten classes, the label's logit x, the others' from -4 to 4; the gradient's is the worst of all
ten. At gamma = 0 it is the cross-entropy. PyTorch: (1 - p)^gamma on top of `F.cross_entropy`, p = exp(-loss)."""

_HEAD = """# Accuracy of the sigmoid focal loss

Relative error in fp32 against 50 digits, x from -80 to 80 in steps of 1/4, alpha = 0.25, wherever the true
value is a normal fp32 number. From 1 up no digit is right (1.0e+00 most often: the value came out as 0); NaN is
no number at all. Our bound is (1 + gamma) times 1.5e-6 for |x| <= 20 and 1e-5 for |x| <= 80.

Written by `python -m bench.accuracy --write docs/accuracy.md` with torch {torch}, instruction set {isa}. Other
instruction sets and versions round differently: digits may change, the bounds hold. What was assumed of mmcv
and apex stands in `bench/accuracy.py`."""


def _digits(error: Tensor) -> str:
    worst = error.max().item()
    return f"{worst:.1e}" if math.isfinite(worst) else "NaN"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE")
    file = parser.parse_args().write
    text = report()
    if file:
        file.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
