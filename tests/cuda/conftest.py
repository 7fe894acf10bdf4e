"""The CUDA search, compiled for the host from its own headers."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "emulation.cpp"
COMPILER = os.environ.get("CXX", "c++")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")  # fused only where it says so
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class Options(ctypes.Structure):
    _fields_ = [("processors", ctypes.c_int), ("backwards", ctypes.c_int)] + [
        (name, ctypes.c_int64) for name in ("references", "queries", "lists", "scored_panels")
    ]


def _build():
    headers = sorted([*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.h")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [SOURCE, *headers]))
    digest.update(f"{FLAGS} {torch.__version__} {os.uname()}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbal_kernels" / "emulation"
    library = root / f"{digest.hexdigest()[:24]}.so"
    if not library.exists():
        root.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{path}" for path in [*include_paths(), ROOT / "csrc", ROOT / "csrc/cuda"]]
        subprocess.run([COMPILER, *FLAGS, *includes, str(SOURCE), "-o", str(partial)], check=True)
        partial.replace(library)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def emulated_knn():
    """knn(x, query, ptr, query_ptr, k, exclude_self, **options) -> indices, distances, totals, workspace bytes."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    library = _build()
    library.knn.restype = ctypes.c_int64

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

    return knn
