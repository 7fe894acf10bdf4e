"""The CUDA kernels on the host: their logic from their own headers, and the ops that launch them without a driver."""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

import imbal_kernels  # noqa: F401  declares the ops

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")
HOST_FLAGS = ("-march=native", "-ffp-contract=off", "-fPIC")  # fused only where it says so
FLAGS = ("-std=c++20", "-O3", "-shared")
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


class Options(ctypes.Structure):
    _fields_ = [("processors", ctypes.c_int), ("backwards", ctypes.c_int)] + [
        (name, ctypes.c_int64) for name in ("references", "queries", "lists", "scored_panels")
    ]


def _cached(name, sources, make):
    """What make(path) leaves at a path that stands for the sources' contents; made once, whoever asks first."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources)))
    digest.update(f"{FLAGS} {HOST_FLAGS} {torch.__version__} {os.uname()}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbal_kernels" / "emulation"
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}-{digest.hexdigest()[:24]}"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            partial = path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.replace(path)
    return path


def _emulation(source, *compiler):
    """A library of tests/cuda, built on the CUDA sources' headers."""
    includes = [f"-I{folder}" for folder in [*include_paths(), ROOT / "csrc", ROOT / "csrc/cuda"]]

    def make(path):
        subprocess.run([*compiler, *FLAGS, *includes, HERE / source, "-o", path], check=True)

    headers = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.h"), *HERE.glob("*.h")]
    return str(_cached(source, [HERE / source, *headers], make))


@pytest.fixture(scope="session")
def cuda_library():
    """What setup.py makes of csrc/cuda where it has to, and no C++ compiler."""
    if NVCC is None:
        pytest.skip("needs nvcc")

    def make(path):
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(path), "--build-temp", str(path)]
        environment = os.environ | {"FORCE_CUDA": "1", "CC": "/bin/false", "CXX": "/bin/false"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert "the C++ extension was not built" in done.stderr and "the CUDA" not in done.stderr, done.stderr

    sources = [ROOT / "setup.py", *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*")]
    return _cached("library", sources, make) / "imbal_kernels" / "_CUDA.abi3.so"


class HostRuntime:
    """The CUDA library on a runtime that launches on the host: runtime.cpp."""

    def __init__(self, library):
        # nvcc, as host compiler: it knows where the runtime's header is.
        host = f"-Xcompiler={','.join(HOST_FLAGS)}"
        path = _emulation("runtime.cpp", NVCC, "-x", "c++", "-cudart=none", host)
        self.library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)  # in front of the CUDA library's own runtime
        torch.ops.load_library(str(library))

    def __call__(self, name, *args, backwards=False, fail_at=0):
        """The CUDA kernel of an op on CPU tensors."""
        self.library.emulate(int(backwards), fail_at)
        op = getattr(torch.ops.imbal_kernels, name).default
        return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args)


@pytest.fixture(scope="session")
def on_host(cuda_library):
    if torch.version.cuda:
        pytest.skip("PyTorch has a CUDA runtime of its own")
    return HostRuntime(cuda_library)


@pytest.fixture(scope="session")
def emulated_knn():
    """knn(x, query, ptr, query_ptr, k, exclude_self, **options) -> indices, distances, totals, workspace bytes."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    library = ctypes.CDLL(_emulation("emulation.cpp", COMPILER, *HOST_FLAGS))
    library.knn.restype = library.workspace.restype = library.tile_blocks.restype = ctypes.c_int64

    def knn(x, query, ptr, query_ptr, k, exclude_self, *, processors=1, backwards=False,
            references=256 << 20, queries=64 << 20, lists=192 << 20, scored_panels=256):  # fmt: skip
        (n, d), m = x.shape, query.shape[0]
        indices = torch.full((m, k), -7)
        distances = torch.full((m, k), float("nan"), dtype=torch.float64)
        totals = torch.zeros(2, dtype=torch.int64)
        options = Options(processors, backwards, references, queries, lists, scored_panels)
        used = library.knn(
            *(ctypes.c_void_p(t.data_ptr()) for t in (x, query, ptr, query_ptr)),
            *map(ctypes.c_int64, (ptr.numel() - 1, n, m, d, k)), ELEMENTS[x.dtype], int(exclude_self),
            ctypes.byref(options), *(ctypes.c_void_p(t.data_ptr()) for t in (indices, distances, totals)),
        )  # fmt: skip
        return indices, distances, totals.tolist(), used

    def planned(function):
        return lambda *sizes: function(*map(ctypes.c_int64, sizes[:-1]), ctypes.c_int(sizes[-1]))

    knn.workspace, knn.tile_blocks = planned(library.workspace), planned(library.tile_blocks)
    return knn
