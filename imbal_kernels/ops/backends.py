"""Which kernels this installation has: a compiled C++ library for a CPU; for a GPU Triton (the losses) and a compiled
CUDA library (neighbours and samplers)."""

import functools
import importlib.util
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

library = torch.library.Library("imbal_kernels", "DEF")


_REINSTALL = (
    "Reinstall with `pip install --no-build-isolation .` "
    "(-e . to run in the checkout, where Python finds the source first)"
)


def _load(name: str, compiler: str) -> str | None:
    """None once a compiled library is loaded, else why it is not."""
    found = sorted(Path(__file__).parent.parent.glob(f"{name}.*so"))
    if not found:
        return f"it was not built: is there {compiler}? {_REINSTALL}"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0].name} does not load ({error.__cause__ or error}); it needs torch >= 2.10"
    return None


def _load_cuda_library() -> str | None:
    """The same for the CUDA one, whose symbols only a CUDA build of PyTorch has."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    return _load("_CUDA", "nvcc")


def _find_triton() -> str | None:
    """None when Triton can be imported, else what to do."""
    return None if importlib.util.find_spec("triton") else "triton is not installed: `pip install triton`"


# Device type -> None where it has kernels, else why not. Settled at import: a compiler may trace what follows.
MISSING = {"cpu": _load("_C", "a C++ compiler"), "cuda": _find_triton()}
# The same for neighbours and samplers, whose kernels on a GPU are not Triton's.
MISSING_SAMPLING = {"cpu": MISSING["cpu"], "cuda": _load_cuda_library()}


def has_kernels(tensor: Tensor, missing: dict[str, str | None] = MISSING) -> bool:
    """Whether this tensor's device has kernels here; says once why not."""
    device = tensor.device.type
    reason = missing.get(device, f"there are none for {device}")
    if reason and not torch.compiler.is_compiling():
        _warn(device, reason)
    return reason is None


def has_op(name: str, dispatch_key: str) -> bool:
    """Whether a compiled library brought this op for this kind of device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"imbal_kernels::{name}", dispatch_key)


@functools.cache
def _warn(device: str, reason: str) -> None:
    warnings.warn(
        f"imbal_kernels runs on its PyTorch reference on {device}, which is right but slow: {reason}", stacklevel=2
    )


def in_transform() -> bool:
    """Inside torch.func, vmap or forward-mode autograd, whose tensors no kernel can read."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# Traced, the stack of transforms would never look empty. This is all that torch.compiler.assume_constant_result does
# but for importing the compiler, which takes as long as PyTorch itself.
in_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def checks_requested() -> bool:
    return os.environ.get("IMBAL_KERNELS_CHECK", "0") not in ("", "0")


def refuse_capture(tensor: Tensor) -> None:
    """A check that reads a tensor on the host has no place in a CUDA graph."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("IMBAL_KERNELS_CHECK=1 reads tensors on the host, which a CUDA graph can't capture")
