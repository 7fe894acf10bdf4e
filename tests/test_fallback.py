"""Without a compiler the package installs, runs on the reference, and says so once."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import imbal_kernels as ik
from imbal_kernels.ops import backends

ROOT = Path(__file__).parent.parent


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setitem(backends.MISSING, "cpu", "it was not built")
    backends._warn.cache_clear()
    yield
    backends._warn.cache_clear()


def test_reference_takes_over_and_says_so_once(no_library):
    x = torch.randn(7, 5, requires_grad=True)
    ids = torch.tensor([0, 4, -1, 5, -100, 2, 3])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            loss = ik.sigmoid_focal_loss(x, ids, reduction="sum", normalizer="positives")
    assert [str(w.message) for w in seen] == [
        "imbal_kernels runs on its PyTorch reference on cpu, which is right but slow: it was not built"
    ]
    loss.backward()
    expected = ik.reference.sigmoid_focal_loss(x.detach(), ids, reduction="sum", normalizer="positives")
    assert torch.equal(loss, expected)
    assert torch.isfinite(x.grad).all()


@pytest.mark.filterwarnings("ignore:imbal_kernels runs on its PyTorch reference")
def test_bad_labels_are_still_errors(no_library):
    with pytest.raises(ValueError, match="target 9 at row 1 is out of range: class ids are 0 to 4"):
        ik.sigmoid_focal_loss(torch.zeros(3, 5), torch.tensor([0, 9, 12]))
    with pytest.raises(ValueError, match="target 2 at row 1, class 0 is out of range"):
        ik.sigmoid_focal_loss(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [2.0, 0.0]]))


SAMPLERS_WITHOUT_A_LIBRARY = """
import warnings
import torch

def missing(path):
    raise OSError("not there")

torch.ops.load_library = missing
import imbal_kernels as ik

x, y = torch.arange(80.0).view(40, 2) % 7, torch.arange(40) % 5 // 3
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for name in ("smote", "borderline_smote", "adasyn", "random_oversample", "random_undersample"):
        generator = torch.Generator().manual_seed(0)
        print(getattr(ik, name)(x, y, generator=generator)[0].double().mul(2 ** 40).long().flatten().tolist())
assert len(seen) == 1, [str(w.message) for w in seen]
assert "runs on its PyTorch reference on cpu" in str(seen[0].message)
"""


def test_samplers_without_a_library():
    """The same rows, and one warning."""
    command = [sys.executable, "-c", SAMPLERS_WITHOUT_A_LIBRARY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    x, y = torch.arange(80.0).view(40, 2) % 7, torch.arange(40) % 5 // 3
    names = ("smote", "borderline_smote", "adasyn", "random_oversample", "random_undersample")
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        rows = getattr(ik, name)(x, y, generator=torch.Generator().manual_seed(0))[0]
        assert line == str(rows.double().mul(2**40).long().flatten().tolist())


def test_build_without_a_compiler_succeeds(tmp_path):
    broken = {"CC": "/bin/false", "CXX": "/bin/false"}
    command = ["setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | broken, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the C++ extension was not built" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_cuda_build_without_a_compiler_succeeds(tmp_path):
    """An nvcc that fails, and a C++ compiler that fails beside it: each is said."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho release 13.0, V13.0.88; test $1 = --version\n")
    nvcc.chmod(0o755)
    environment = {"CC": "/bin/false", "CXX": "/bin/false", "FORCE_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    command = ["setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the C++ extension was not built" in done.stderr and "the CUDA extension was not built" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_neighbours_of_a_device_without_a_library(monkeypatch):
    """What runs there is the reference, which looks at ptr first, and says so once. XLA stands for such a device."""
    backends._warn.cache_clear()
    monkeypatch.setitem(backends.MISSING_SAMPLING, "cpu", "it was not built")
    xla, knn = torch._C.DispatchKeySet(torch._C.DispatchKey.XLA), torch.ops.imbal_kernels.knn
    x, ptr = torch.randn(30, 3), torch.tensor([0, 12, 30])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            found = knn.default.redispatch(xla, x, x, ptr, ptr, 4, True)
    assert [str(w.message) for w in seen] == [
        "imbal_kernels runs on its PyTorch reference on cpu, which is right but slow: it was not built"
    ]
    assert all(torch.equal(a, b) for a, b in zip(found[:2], ik.knn(x, 4, ptr=ptr), strict=True))
    with pytest.raises(ValueError, match="ptr must rise from 0 to the rows of x, 30"):
        knn.default.redispatch(xla, x, x, ptr - 1, ptr, 4, True)
    backends._warn.cache_clear()
