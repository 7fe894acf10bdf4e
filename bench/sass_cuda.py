"""Every CUDA kernel of csrc/cuda, compiled ahead of time as setup.py compiles it."""

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from bench import disassembly

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@dataclass(frozen=True)
class Report:
    """Counts are of the code as it stands: what is in a loop counts once."""

    instructions: int
    registers: int
    spills: int  # bytes of stack and local memory a thread
    shared: int  # bytes of static shared memory a block; a launch adds its own
    ffma: int
    loads: dict[str, int]  # of global memory, by bits
    stores: dict[str, int]
    shared_loads: dict[str, int]
    loop: int  # instructions of the inner loop of products, 0 where there is none
    loop_ffma: int
    loop_loads: dict[str, int]  # of shared memory


def _run(kernel: str) -> str:
    return f"_ZN5imbal10run_kernelINS_{kernel}EEvT_"


SIZES = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}
MANGLED = {"fp32": "f", "fp64": "d", "bf16": "N3c108BFloat16E", "fp16": "N3c104HalfE"}
MANGLED |= {"int64": "l", "int32": "i", "int16": "s", "int8": "a", "uint8": "h"}
# Name here -> file, mangled name.
KERNELS = {
    "knn lists": ("knn.cu", "_ZN5imbal12tiles_kernelILb0EEEvNS_6SearchE"),
    "knn scores": ("knn.cu", "_ZN5imbal12tiles_kernelILb1EEEvNS_6SearchE"),
    "knn clear": ("knn.cu", _run("5ClearE")),
    "knn count": ("knn.cu", _run("11CountPanelsE")),
    "knn pack": ("knn.cu", _run("4PackE")),
    "knn finish": ("knn.cu", _run("6FinishE")),
    "knn fallback": ("knn.cu", _run("8FallbackE")),
    **{
        f"smote {dtype}{'' if width == 1 else ' 128-bit'}": (
            "smote.cu", _run(f"7NewRowsI{MANGLED[dtype]}Li{width}EEE")
        )
        for dtype, size in SIZES.items()
        for width in (1, 16 // size)
    },
    "philox": ("smote.cu", _run("11PhiloxWordsE")),
}  # fmt: skip


def compile_file(file: str, arch: int) -> dict[str, Report]:
    """Reports of a file's kernels by their mangled names."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        includes = [f"-I{path}" for path in include_paths()]
        flags = ["-optf", "csrc/cuda/nvcc.flags", f"-arch=sm_{arch}", "-cubin"]
        command = [str(NVCC), *flags, *includes, f"csrc/cuda/{file}", "-o", str(cubin)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{file} does not compile for sm_{arch}:\n{done.stderr}")
        return {name: _report(code) for name, code in disassembly.functions(cubin.read_bytes()).items()}


def _report(code: disassembly.Function) -> Report:
    path = [text for text in disassembly.instructions(code.sass) if not text.startswith("NOP")]
    loop = disassembly.inner_loop(code.sass, "FFMA") if disassembly.count(path, "FFMA") >= 64 else []
    executed = [text for text in path if not text.startswith("@!PT")]  # that predicate is never true: padding
    looped = [text for text in loop if not text.startswith("@!PT")]
    return Report(
        instructions=len(path),
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        ffma=disassembly.count(path, "FFMA"),
        loads=disassembly.widths(executed, "LDG"),
        stores=disassembly.widths(executed, "STG"),
        shared_loads=disassembly.widths(executed, "LDS"),
        loop=len(loop),
        loop_ffma=disassembly.count(loop, "FFMA"),
        loop_loads=disassembly.widths(looped, "LDS"),
    )


@functools.cache
def version() -> str:
    """What a count depends on besides the source: a baseline holds for one of these."""
    if NVCC is None:
        return "no nvcc"
    said = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {re.findall(r'V([0-9.]+)', said)[0]}"


def digest() -> str:
    """Of all that a report depends on but the file and the architecture."""
    here = Path(__file__)
    sources = sorted([*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*")])
    sources += [here, here.with_name("disassembly.py")]
    found = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    found.update(f"{version()}|{torch.__version__}".encode())
    return found.hexdigest()[:24]
