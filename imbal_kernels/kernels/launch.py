"""One kernel launch as data, so that the ahead-of-time compiler sees exactly what would run."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from triton import knobs


@dataclass
class Launch:
    kernel: Any
    programs: int
    args: dict[str, Any] = field(repr=False)
    num_warps: int = 4

    def run(self) -> None:
        self.kernel[(self.programs,)](**self.args, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        # Named because Triton is about to change its default; the instruction counts rely on it.
        return {"num_warps": self.num_warps, "enable_fp_fusion": True}


def cdiv(a: int, b: int) -> int:
    """triton.cdiv takes 3 microseconds on the host."""
    return -(-a // b)


def on_device(tensor: torch.Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def interpreted() -> bool:
    return knobs.runtime.interpret
