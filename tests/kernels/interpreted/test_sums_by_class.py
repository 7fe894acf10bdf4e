"""The sums by class that a GPU makes of the kernel's losses and gradients, against the reference."""

import pytest
import torch

from imbal_kernels.arguments import SigmoidProblem
from imbal_kernels.ops.sigmoid import sums_from_elements
from imbal_kernels.reference.sigmoid import sums_by_class


@pytest.mark.parametrize("formula", ("focal", "varifocal"))
@pytest.mark.parametrize("kind", ("ids", "values", "head"))
@pytest.mark.parametrize("dtype, rtol", ((torch.float32, 2e-5), (torch.bfloat16, 2**-7)))  # gradients truncated to it
def test_sums(dtype, rtol, kind, formula):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(42, 5, generator=generator).to(dtype)
    target = torch.arange(42) % 8 - 2
    scores = torch.rand(42, generator=generator) if formula == "varifocal" and kind != "values" else None
    if kind == "values":
        target = torch.rand(42, 5, generator=generator).round()
    if kind == "head":
        x, target = x.reshape(2, 3, 5, 7), target.reshape(2, 3, 7)
    scale = torch.tensor(0.25)
    options = dict(alpha=0.75, gamma=2.0, label_smoothing=0.0, scale=2.0, ignore_index=-2)
    problem = SigmoidProblem(
        x, target, None, None, None, scores, scale, formula, gamma_pos=0.0, clip=0.0, elementwise=False,
        fp32_loss=False, **options,
    )  # fmt: skip
    got = sums_from_elements(
        x, target, None, None, None, scale, None, *options.values(), 2, True, False, scores, formula
    )
    torch.testing.assert_close(got, sums_by_class(problem), rtol=rtol, atol=0)
