"""What the losses' workloads share: logits that are written anew before each run, and results held to the reference."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


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
