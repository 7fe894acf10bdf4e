"""What this installation can do, and what to do about what it can't.

A probe yields findings and may fail in any way: an exception is a finding too. "note" is a fallback
or a thing worth knowing; only "broken" makes the exit code 1.
"""

import ctypes
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import imbal_kernels as ik
from imbal_kernels.ops import backends

OK, NOTE, BROKEN = "ok", "note", "broken"
TORCH, TRITON = (2, 10), (3, 6)  # the oldest supported
TOLERANCE = (
    1e-5  # of a float32 loss and gradient against the float64 reference; they keep below 5e-6
)
REINSTALL = "`pip install --no-build-isolation --force-reinstall --no-deps .` in a checkout"
GET_TORCH = "https://pytorch.org/get-started/locally/"


class Finding(NamedTuple):
    status: str
    subject: str
    text: str
    advice: str = ""


def main() -> int:
    """Prints every finding; 1 if something is broken, else 0."""
    found = findings()
    for status, subject, text, advice in found:
        print(f"{status:<8}{subject:<16}{text}")
        if advice:
            print(f"{'':<8}{'':<16}-> {advice}")
    broken = [f.subject for f in found if f.status == BROKEN]
    print(f"Broken: {', '.join(broken)}." if broken else "Nothing is broken.")
    return 1 if broken else 0


def findings() -> list[Finding]:
    probes: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("versions", _versions),
        ("environment", _environment),
        ("cpu", _cpu),
        ("cuda", _cuda),
        ("cuda library", _cuda_library),
        ("self-check", _self_checks),
    )
    found: list[Finding] = []
    for subject, probe in probes:
        try:
            found.extend(probe())
        except Exception as error:  # the doctor's own failure is news as well
            found.append(Finding(BROKEN, subject, _describe(error), f"reinstall: {REINSTALL}"))
    return found


def _versions() -> Iterator[Finding]:
    yield Finding(OK, "imbal_kernels", f"{ik.__version__} in {Path(ik.__file__).parent}")
    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}")
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    old_torch = _older(torch.__version__, TORCH)
    advice = f"torch >= {_dotted(TORCH)} is needed: {GET_TORCH}" if old_torch else ""
    yield Finding(BROKEN if old_torch else OK, "torch", f"{torch.__version__}, {build}", advice)
    if backends.MISSING["cuda"]:
        yield Finding(OK, "triton", "not installed; only a GPU needs it")
        return
    import triton

    old_triton = _older(triton.__version__, TRITON)
    advice = f"triton >= {_dotted(TRITON)} is needed: `pip install -U triton`" if old_triton else ""
    yield Finding(BROKEN if old_triton else OK, "triton", triton.__version__, advice)


def _environment() -> Iterator[Finding]:
    if backends.checks_requested():
        yield Finding(
            NOTE,
            "environment",
            "IMBAL_KERNELS_CHECK is set: every call on a GPU checks its targets and waits for it",
            "unset it to train at full speed",
        )
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        advice = "unset it to run Triton kernels on the GPU"
        yield Finding(
            NOTE, "environment", "TRITON_INTERPRET is set: Triton interprets, slowly", advice
        )


def _cpu() -> Iterator[Finding]:
    reason = backends.MISSING["cpu"]
    if reason is None:
        capability = torch.ops.imbal_kernels._cpu_capability("")
        yield Finding(OK, "cpu", f"C++ kernels, {capability}, {torch.get_num_threads()} threads")
        return
    text = f"PyTorch reference, right but slow. The C++ library is not loaded: {reason}"
    compiler = os.environ.get("CXX", "c++")
    if any(Path(ik.__file__).parent.glob("_C*.so")):
        yield Finding(BROKEN, "cpu", text, f"build it again for this PyTorch: {REINSTALL}")
    elif shutil.which(compiler):
        yield Finding(
            NOTE, "cpu", text, f"{compiler} is on the path: {REINSTALL}; with -v it shows the build"
        )
    else:
        advice = f"no {compiler} on the path: install one (`apt install g++`), then {REINSTALL}"
        yield Finding(NOTE, "cpu", text, advice)


def _cuda() -> Iterator[Finding]:
    driver = _driver_cuda()
    with warnings.catch_warnings(record=True) as said:  # PyTorch warns of a driver that is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        yield from map(_gpu, range(torch.cuda.device_count()))
        if driver:
            yield Finding(OK, "cuda driver", f"up to CUDA {driver}")
    elif driver is None:
        yield Finding(OK, "cuda", "no NVIDIA driver here, so no GPU to use")
    elif torch.version.cuda is None:
        text = f"the driver (up to CUDA {driver}) is not used: this PyTorch is built without CUDA"
        yield Finding(NOTE, "cuda", text, f"for a GPU install a CUDA build: {GET_TORCH}")
    else:
        text = f"no usable GPU; PyTorch's CUDA is {torch.version.cuda}, the driver's {driver}"
        reasons = [str(w.message).partition("\n")[0] for w in said]
        advice = (
            "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES; update a driver older than the build"
        )
        yield Finding(NOTE, "cuda", ": ".join([text, *reasons]), advice)
    yield Finding(OK, "other devices", "PyTorch reference")


def _cuda_library() -> Iterator[Finding]:
    """The library of neighbours and samplers on a GPU: here, or why not and what to do."""
    subject, reason = "cuda library", backends.MISSING_SAMPLING["cuda"]
    built = any(Path(ik.__file__).parent.glob("_CUDA.*so"))
    if reason is None:
        yield Finding(OK, subject, "CUDA kernels for neighbours and samplers")
    elif torch.version.cuda is None:
        text = "built, but not loaded" if built else "not built, nor needed"
        yield Finding(OK, subject, f"{text}: this PyTorch is built without CUDA")
    elif built:
        advice = f"build it again for this PyTorch: {REINSTALL}"
        yield Finding(BROKEN, subject, f"not loaded: {reason}", advice)
    else:
        text = f"neighbours and samplers run on a GPU by the PyTorch reference, right but slow: {reason}"
        found = shutil.which("nvcc") or os.environ.get("CUDA_HOME")
        toolkit = "nvcc is here: with -v the build says what failed" if found else "install CUDA's"
        advice = f"{toolkit} (version {torch.version.cuda.partition('.')[0]}), then {REINSTALL}"
        yield Finding(NOTE, subject, text, advice)


def _gpu(index: int) -> Finding:
    gpu = torch.cuda.get_device_properties(index)
    hardware = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
    missing = backends.MISSING["cuda"]
    if missing is None:
        return Finding(OK, f"cuda:{index}", f"{hardware}: Triton kernels")
    return Finding(
        NOTE, f"cuda:{index}", f"{hardware}: PyTorch reference, right but slow: {missing}"
    )


def _driver_cuda() -> str | None:
    """The newest CUDA the NVIDIA driver runs, None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _self_checks() -> Iterator[Finding]:
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    advice = {
        "cpu": f"the library does not fit this PyTorch or is damaged: {REINSTALL}",
        "cuda": "Triton needs a C compiler and Python's headers at run time, and a GPU from sm_80 on",
    }
    for device in devices:
        subject, remedy = f"check {device}", advice[device.partition(":")[0]]
        try:
            error = disagreement(device)
            good = error <= TOLERANCE  # a NaN is not
            text = f"focal loss and gradient against the float64 reference: relative error {error:.1e}"
            yield Finding(OK if good else BROKEN, subject, text, "" if good else remedy)
            good = same_rows(device)
            text = f"rows of smote: {'the bits of' if good else 'other bits than'} the reference"
            yield Finding(OK if good else BROKEN, f"rows {device}", text, "" if good else f"reinstall: {REINSTALL}")
        except Exception as failure:  # whatever a kernel's compiler or driver throws
            yield Finding(BROKEN, subject, _describe(failure), remedy)


def same_rows(device: str) -> bool:
    """Whether neighbours and new rows made on `device` are those that the reference makes on a CPU."""
    points = torch.sin(torch.arange(120.0) ** 2).reshape(40, 3)
    labels = torch.arange(40) % 4 // 3

    def rows(family: Any, device: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return family.smote(points.to(device), labels.to(device), generator=generator)[0].cpu()

    with warnings.catch_warnings():  # a fallback is reported elsewhere
        warnings.simplefilter("ignore")
        return torch.equal(rows(ik, device), rows(ik.reference, "cpu"))


def disagreement(device: str) -> float:
    """Largest relative error of a small focal loss and its gradient on `device`; NaN if either is."""
    logits = torch.linspace(-9.0, 9.0, 30).reshape(10, 3)
    ids = torch.arange(10) % 5 - 1  # background twice, as -1 and as 3
    ids[4] = -100
    weight = torch.tensor([1.0, 2.0, 0.5])

    def values(family: Any, dtype: torch.dtype, device: str) -> torch.Tensor:
        inputs = logits.to(device, dtype).requires_grad_()
        loss = family.sigmoid_focal_loss(
            inputs,
            ids.to(device),
            reduction="sum",
            weight=weight.to(device),
            normalizer="positives",
        )
        (grad,) = torch.autograd.grad(loss, inputs)
        return torch.cat([loss.detach()[None], grad.flatten()]).double().cpu()

    expected = values(ik.reference, torch.float64, "cpu")
    with warnings.catch_warnings():  # a fallback is reported elsewhere
        warnings.simplefilter("ignore")
        actual = values(ik, torch.float32, device)
    tiny = torch.finfo(torch.float32).tiny
    return ((actual - expected).abs() / expected.abs().clamp(min=tiny)).max().item()


def _older(version: str, oldest: tuple[int, int]) -> bool:
    major, minor = re.findall(r"\d+", version)[:2]
    return (int(major), int(minor)) < oldest


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
