"""Builds the C++ and CUDA extensions on the PyTorch stable ABI: one library each for every Python and torch >= 2.10.

Without a compiler the package still installs, and runs on its PyTorch reference. The CUDA library is built where torch
is a CUDA build and nvcc is found, or with FORCE_CUDA=1; no GPU is needed.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths, library_paths

CPU_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # multiply-adds fuse where the instruction set has them
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-maybe-uninitialized",  # a false alarm in GCC's own AVX-512 header
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
CUDA = "imbal_kernels._CUDA"
ARCHITECTURES = (80, 90, 100)  # and PTX of the last, for what comes after


def find_nvcc():
    """The path of nvcc, None without one."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc", path=os.pathsep.join([f"{root}/bin" for root in roots if root] + [os.environ["PATH"]]))


def check_nvcc(nvcc):
    """Raises where there is no nvcc, or one whose libraries torch does not come with."""
    if nvcc is None:
        raise RuntimeError("there is no nvcc: it is looked for in CUDA_HOME, /usr/local/cuda and PATH")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release (\d+)\.", said).group(1)
    if torch.version.cuda and version != torch.version.cuda.split(".")[0]:
        raise RuntimeError(f"{nvcc} is of CUDA {version}, this torch of CUDA {torch.version.cuda}: one major version")


def build_cuda(extension, target):
    """One run of nvcc. A CPU build of torch will do for it: what it lacks stays undefined."""
    inputs = [*extension.sources, *extension.depends]
    if target.exists() and all(os.path.getmtime(path) <= target.stat().st_mtime for path in inputs):
        return
    nvcc = find_nvcc()
    check_nvcc(nvcc)
    target.parent.mkdir(parents=True, exist_ok=True)
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    code.append("-gencode=arch=compute_{0},code=compute_{0}".format(ARCHITECTURES[-1]))
    (folder,) = library_paths()
    names = [name for name in ("torch_cpu", "torch_cuda") if Path(folder, f"lib{name}.so").exists()]
    torch_paths = [*(f"-I{path}" for path in include_paths()), f"-L{folder}", *(f"-l{name}" for name in names)]
    flags = ["-optf", "csrc/cuda/nvcc.flags", "-shared", "-cudart=shared", "--threads=0"]
    subprocess.run([nvcc, *flags, *code, *torch_paths, *extension.sources, "-o", target], check=True)


class OptionalBuild(BuildExtension):
    """A failed build is reported and leaves a package that runs on the reference."""

    def build_extensions(self):
        wanted, built = self.extensions, []
        for extension in wanted:
            self.extensions = [extension]
            try:
                if extension.name == CUDA:
                    build_cuda(extension, Path(self.get_ext_fullpath(extension.name)))
                else:
                    super().build_extensions()
            except Exception as error:  # compilers fail in many ways; none may stop the install
                kind = "CUDA" if extension.name == CUDA else "C++"
                print(f"imbal_kernels: the {kind} extension was not built: {error}", file=sys.stderr)
            else:
                built.append(extension)
        self.extensions = built


extensions = [
    CppExtension(
        "imbal_kernels._C",
        sorted(glob.glob("csrc/cpu/*.cpp")),
        extra_compile_args=CPU_FLAGS,
        depends=sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h")),
        py_limited_api=True,
    )
]
if os.environ.get("FORCE_CUDA", "0") not in ("", "0") or (torch.version.cuda and find_nvcc()):
    headers = [path for path in glob.glob("csrc/cuda/*") if not path.endswith(".cu")]
    extensions.append(
        Extension(
            CUDA,
            sorted(glob.glob("csrc/cuda/*.cu")),
            depends=["setup.py", *sorted(glob.glob("csrc/*.h") + headers)],
            py_limited_api=True,
        )
    )

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
