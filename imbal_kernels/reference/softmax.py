"""The softmax family in plain PyTorch.

With log p = log_softmax(x + logit_adjustment), t the one-hot or given probabilities, t' = t (1 - eps) + eps / C and
k = sum_c t_c (1 - p_c), which is 1 - p_y for a class id:

    L = scale * k^gamma * sum_c weight_c t'_c (-log p_c)

k below 0, which probabilities outside [0, 1] can give, counts as 0. A logit of +inf takes all of the probability, or
its share among several; -inf none. (PyTorch's loss is NaN at +inf. The gradient of a +inf itself, which autograd has no
way to, is 0 here; the kernels give its limit.)

At gamma = 0 that is `F.cross_entropy`. At gamma > 0 it is the focal loss of Lin et al., "Focal Loss for Dense Object
Detection" (2017), over a softmax. The adjustment is that of Menon et al., "Long-tail learning via logit adjustment"
(2021).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imbal_kernels.reference.sigmoid import limited, weigh
from imbal_kernels.softmax_arguments import SoftmaxProblem, softmax_problem
from imbal_kernels.targets import holds_object, is_ignored, out_of_range


def softmax_loss(problem: SoftmaxProblem) -> Tensor:
    """The loss of a problem: (N, S) if elementwise, else a 0-d tensor. Bad class ids give NaN."""
    wide = torch.float64 if problem.input.dtype == torch.float64 else torch.float32
    x = problem.input.to(wide)
    if problem.logit_adjustment is not None:
        x = x + problem.logit_adjustment[:, None]
    if problem.probabilities:
        loss = _of_probabilities(x, problem.target.to(wide), problem)
    else:
        ids, ignored, bad = _decode_ids(problem)
        # Ignored rows leave the graph here, so a NaN in one reaches neither loss nor gradient.
        x = torch.where(ignored[:, None], 0.0, x)
        loss = _of_ids(x, torch.where(ignored | bad, 0, ids), problem)
        loss = torch.where(ignored, 0.0, loss)
        loss = torch.where(bad, torch.nan, loss)
    loss = loss * problem.scale
    if problem.scale_tensor is not None:
        loss = loss * problem.scale_tensor
    if problem.elementwise:
        return loss if problem.fp32_loss else loss.to(problem.input.dtype)
    total = loss.sum()
    # 0 * scale: a mean over nothing, whose scale is 1 / 0, is NaN.
    return total if problem.scale_tensor is None else total + problem.scale_tensor * 0.0


def _decode_ids(problem: SoftmaxProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Class ids as int64, the ignored and the bad among them: (N, S) each."""
    ids = problem.target.long()
    ignored = is_ignored(ids, problem.ignore_index)
    return ids, ignored, out_of_range(ids, 0, problem.input.shape[1] - 1, problem.ignore_index)


def _of_ids(x: Tensor, ids: Tensor, problem: SoftmaxProblem) -> Tensor:
    """(N, S) losses of class ids in range. log p_y = -log1p(sum of the others / own) never cancels."""
    y = ids[:, None]
    infinite, x = _settle(x)
    own = x.gather(1, y)
    others = torch.logsumexp(x.scatter(1, y, -torch.inf), 1, keepdim=True)
    beaten = infinite.any(1) & ~infinite.gather(1, y)[:, 0]
    entropy = F.softplus(others - own, threshold=80.0)[:, 0] + _infinity(beaten, x)  # -log p_y
    weight = problem.weight
    loss = entropy if weight is None else weigh(weight[ids], entropy)
    eps = problem.label_smoothing
    if eps:
        entropies = -torch.log_softmax(x, 1)
        entropies = entropies if weight is None else weigh(weight[:, None], entropies)
        loss = weigh(torch.full_like(loss, 1 - eps), loss) + entropies.sum(1) * (eps / x.shape[1])
        counted = ~infinite if weight is None else ~infinite & (weight != 0)[:, None]
        loss = loss + _infinity(infinite.any(1) & counted.any(1), x)
    if problem.gamma == 0:
        return loss
    log_k = F.logsigmoid(limited(others - own, problem.gamma))[:, 0]  # log(1 - p_y)
    return weigh(torch.exp(problem.gamma * log_k), loss)


def _settle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which logits are +inf, and the logits with 0 for them and the others far below."""
    infinite = x == torch.inf
    below = infinite.any(1, keepdim=True).to(x.dtype) * torch.finfo(x.dtype).max
    return infinite, torch.where(infinite, 0.0, x - below)


def _infinity(where: Tensor, like: Tensor) -> Tensor:
    """What is added to a loss whose limit is infinite: its gradient stays."""
    return torch.where(where, torch.inf, 0.0).to(like.dtype)


def _of_probabilities(x: Tensor, t: Tensor, problem: SoftmaxProblem) -> Tensor:
    infinite, x = _settle(x)
    log_p = torch.log_softmax(x, 1)
    smoothed = t * (1 - problem.label_smoothing) + problem.label_smoothing / x.shape[1]
    if problem.weight is not None:
        smoothed = smoothed * problem.weight[:, None]
    beaten = infinite.any(1) & ((smoothed != 0) & ~infinite).any(1)
    loss = _infinity(beaten, x) - (smoothed * log_p).sum(1)
    if problem.gamma == 0:
        return loss
    k = -(t * torch.expm1(log_p)).sum(1)
    return weigh(torch.where(k > 0, torch.where(k > 0, k, 1.0) ** problem.gamma, 0.0), loss)


def sum_weights(target: Tensor, weight: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    """The sum of the weights of all class ids that are not ignored; their number without weights."""
    known = holds_object(target, num_classes, ignore_index, dense=False)
    if weight is None:
        return known.sum()
    return (weight[torch.where(known, target, 0).long()] * known).sum()


def first_bad_row(problem: SoftmaxProblem) -> Tensor:
    """The first row, of (N, S) flattened, with a class id out of range, or their number: a 0-d tensor."""
    bad = _decode_ids(problem)[2].flatten()
    rows = torch.arange(bad.numel(), device=bad.device)
    return torch.where(bad, rows, bad.numel()).min() if bad.numel() else rows.sum()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_adjustment: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    loss_weight: float | Tensor = 1.0,
    process_group: Any = None,
) -> Tensor:
    """`imbal_kernels.cross_entropy` in plain PyTorch."""
    problem = softmax_problem(
        input, target, gamma=0.0, weight=weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, sum_weights=sum_weights,
    )  # fmt: skip
    return problem.shaped(softmax_loss(problem), input)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    """`imbal_kernels.softmax_focal_loss` in plain PyTorch."""
    problem = softmax_problem(
        input, target, gamma=gamma, weight=weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, logit_adjustment=logit_adjustment, normalizer=normalizer,
        loss_weight=loss_weight, process_group=process_group, sum_weights=sum_weights,
    )  # fmt: skip
    return problem.shaped(softmax_loss(problem), input)
