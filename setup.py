"""Builds the C++ extension against the PyTorch stable ABI: one library for every Python and torch >= 2.10.

Without a compiler the package still installs, and runs on its PyTorch reference.
"""

import glob
import sys

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

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


class OptionalBuild(BuildExtension):
    """A failed build is reported and leaves a package that runs on the reference."""

    def build_extensions(self):
        try:
            super().build_extensions()
        except Exception as error:  # compilers fail in many ways; none may stop the install
            print(f"imbal_kernels: the C++ extension was not built: {error}", file=sys.stderr)
            self.extensions = []


setup(
    ext_modules=[
        CppExtension(
            "imbal_kernels._C",
            sorted(glob.glob("csrc/cpu/*.cpp")),
            extra_compile_args=CPU_FLAGS,
            depends=sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h")),
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
