"""What workloads share: their sizes; of a loss logits that are written anew before each run, results held to the
reference, and backward by recomputation."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from imbal_kernels.ops.fused import NO_LOSS, SUM

Raw = Callable[[Tensor, Tensor | None, int, bool], tuple[Tensor, Tensor]]  # logits, upstream, loss mode, want_grad


def sizes(shapes: Sequence[str], dtypes: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(rows, columns, dtype) of each combination, shapes such as 100000x80."""
    for shape in shapes:
        rows, columns = (int(n) for n in shape.split("x"))
        for dtype in dtypes:
            yield rows, columns, dtype


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Raw) -> Tensor:
        ctx.save_for_backward(x)
        ctx.raw = raw
        return raw(x, None, SUM, False)[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.raw(*ctx.saved_tensors, upstream, NO_LOSS, True)[1], None


def recomputed(x: Tensor, raw: Raw) -> Tensor:
    """The third strategy, fp16's: a forward that keeps no gradient, a backward that works from the logits."""
    return _Recomputed.apply(x, raw)


class Inputs:
    @property
    def tensors(self) -> Sequence[Tensor]:
        """The logits, in as many tensors as the loss takes."""
        raise NotImplementedError

    @functools.cached_property
    def _source(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors]

    def write(self) -> None:
        """The logits anew, the same ones: what the layer before does."""
        for tensor, source in zip(self.tensors, self._source, strict=True):
            tensor.detach().copy_(source)

    def run(self, loss_of: Callable[[], Tensor], upstream: float = 1.0) -> list[Tensor]:
        """Loss and gradients. They go with the run that made them: left in `grad`, they would be freed in the time of
        whoever comes next."""
        loss = loss_of()
        return [loss.detach(), *torch.autograd.grad(loss if upstream == 1.0 else loss * upstream, self.tensors)]

    def hold(self, name: str, results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """A contestant's loss, then its gradients, against those of the reference in fp64."""
        # Peers that compute and sum in half precision are held to what that type can give.
        dtype = self.tensors[0].dtype
        step = torch.finfo(dtype).eps
        rtol = 1e-4 if dtype == torch.float32 else 8 * step
        for i, (got, true) in enumerate(zip(results, expected, strict=True)):
            try:
                atol = step * float(true.abs().max()) if i else 0.0
                torch.testing.assert_close(got.double(), true, rtol=rtol, atol=atol)
            except AssertionError as error:
                what = f"gradient {i} of {len(self.tensors)}" if i else "loss"
                raise AssertionError(f"{name}, {what}: {error}") from None
