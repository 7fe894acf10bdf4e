import re
import subprocess
import sys
import types

import pytest
import torch

import imbal_kernels
from imbal_kernels import __main__ as command
from imbal_kernels import doctor
from imbal_kernels.ops import backends


def statuses():
    return {f.subject: f.status for f in doctor.findings()}


def test_no_command_prints_help_and_fails():
    run = subprocess.run([sys.executable, "-m", "imbal_kernels"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "doctor" in run.stderr and "demo" in run.stderr


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--version"])
    assert capsys.readouterr().out == f"imbal_kernels {imbal_kernels.__version__}\n"


def test_the_version_is_the_one_in_pyproject(pytestconfig):
    project = (pytestconfig.rootpath / "pyproject.toml").read_text()
    assert f'version = "{imbal_kernels.__version__}"' in project


def test_demo_gets_its_arguments(monkeypatch):
    seen = []
    demo = types.SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--steps", type=int),
        main=lambda args: seen.append(args.steps) or 3,
    )
    monkeypatch.setitem(sys.modules, "imbal_kernels.demo", demo)
    monkeypatch.setattr(imbal_kernels, "demo", demo, raising=False)
    assert command.main(["demo", "--steps", "5"]) == 3
    assert seen == [5]


@pytest.mark.parametrize("package", command.DEMO_EXTRA)
def test_demo_without_its_extra_says_what_to_install(package, monkeypatch, capsys):
    def main(args):
        raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part")

    demo = types.SimpleNamespace(add_arguments=lambda parser: None, main=main)
    monkeypatch.setitem(sys.modules, "imbal_kernels.demo", demo)
    monkeypatch.setattr(imbal_kernels, "demo", demo, raising=False)
    assert command.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert package in said and 'pip install --no-build-isolation ".[demo]"' in said


def test_an_interrupted_demo_says_so(monkeypatch, capsys):
    def main(args):
        raise KeyboardInterrupt

    demo = types.SimpleNamespace(add_arguments=lambda parser: None, main=main)
    monkeypatch.setitem(sys.modules, "imbal_kernels.demo", demo)
    monkeypatch.setattr(imbal_kernels, "demo", demo, raising=False)
    assert command.main(["demo"]) == 130
    assert "no report written" in capsys.readouterr().err


def test_another_missing_module_is_not_blamed_on_the_extra(monkeypatch):
    def main(args):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    demo = types.SimpleNamespace(add_arguments=lambda parser: None, main=main)
    monkeypatch.setitem(sys.modules, "imbal_kernels.demo", demo)
    monkeypatch.setattr(imbal_kernels, "demo", demo, raising=False)
    with pytest.raises(ModuleNotFoundError, match="other"):
        command.main(["demo"])


def test_doctor_is_content_here(capsys):
    assert command.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for subject in ("imbal_kernels", "python", "torch", "triton", "cpu", "cuda library", "check cpu", "rows cpu"):
        assert re.search(rf"^(ok|note) +{subject} ", said, re.MULTILINE)


def test_a_missing_library_is_a_note_with_advice(monkeypatch, tmp_path):
    monkeypatch.setitem(backends.MISSING, "cpu", "it was not built")
    monkeypatch.setattr(imbal_kernels, "__file__", str(tmp_path / "__init__.py"))
    cpu = next(f for f in doctor.findings() if f.subject == "cpu")
    assert cpu.status == doctor.NOTE
    assert "it was not built" in cpu.text and "pip install" in cpu.advice


def test_the_fallback_passes_the_check(monkeypatch):
    monkeypatch.setitem(backends.MISSING, "cpu", "it was not built")
    assert statuses()["check cpu"] == doctor.OK


def test_a_library_that_does_not_load_is_broken(monkeypatch, tmp_path, capsys):
    (tmp_path / "_C.abi3.so").touch()
    monkeypatch.setitem(backends.MISSING, "cpu", "_C.abi3.so does not load")
    monkeypatch.setattr(imbal_kernels, "__file__", str(tmp_path / "__init__.py"))
    assert doctor.main() == 1
    assert re.search(r"^broken +cpu .*does not load", capsys.readouterr().out, re.MULTILINE)


CUDA_LIBRARY = [
    ("13.0", False, "it was not built", doctor.NOTE, "reference, right but slow: it was not built", "version 13"),
    ("13.0", True, "it does not load", doctor.BROKEN, "not loaded: it does not load", "build it again"),
    ("13.0", True, None, doctor.OK, "CUDA kernels for neighbours and samplers", ""),
    (None, False, "no CUDA", doctor.OK, "not built, nor needed: this PyTorch is built without CUDA", ""),
    (None, True, "no CUDA", doctor.OK, "built, but not loaded: this PyTorch is built without CUDA", ""),
]


@pytest.mark.parametrize("cuda, built, reason, status, text, advice", CUDA_LIBRARY)
def test_cuda_library(cuda, built, reason, status, text, advice, monkeypatch, tmp_path):
    if built:
        (tmp_path / "_CUDA.abi3.so").touch()
    monkeypatch.setattr(imbal_kernels, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setitem(backends.MISSING_SAMPLING, "cuda", reason)
    (found,) = doctor._cuda_library()
    assert found.status == status and text in found.text
    assert advice in found.advice and bool(found.advice) == bool(advice)


def test_other_rows_are_broken(monkeypatch):
    right = imbal_kernels.smote
    assert doctor.same_rows("cpu")
    monkeypatch.setattr(imbal_kernels, "smote", lambda X, *a, **k: right(X + 1e-3, *a, **k))
    assert statuses()["rows cpu"] == doctor.BROKEN


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_wrong_value_is_broken(error, monkeypatch):
    monkeypatch.setattr(doctor, "disagreement", lambda device: error)
    assert statuses()["check cpu"] == doctor.BROKEN


def test_a_wrong_gradient_is_seen(monkeypatch):
    right = imbal_kernels.sigmoid_focal_loss
    monkeypatch.setattr(
        imbal_kernels, "sigmoid_focal_loss", lambda x, *a, **k: right(x + 1e-3, *a, **k)
    )
    assert doctor.disagreement("cpu") > doctor.TOLERANCE


def test_a_kernel_that_fails_is_broken_and_the_rest_is_still_said(monkeypatch):
    def fail(device):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(doctor, "disagreement", fail)
    check = next(f for f in doctor.findings() if f.subject == "check cpu")
    assert check.status == doctor.BROKEN
    assert check.text == "RuntimeError: no such operator"
    assert check.advice


@pytest.mark.parametrize(
    "version, status", [("2.9.1", "broken"), ("2.10.0+cpu", "ok"), ("3.0.0a0", "ok")]
)
def test_torch_that_is_too_old_is_broken(version, status, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert next(f.status for f in doctor._versions() if f.subject == "torch") == status


def test_a_driver_that_pytorch_cannot_use_is_a_note(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver_cuda", lambda: "12.4")
    assert next(doctor._cuda()).status == doctor.NOTE
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = next(doctor._cuda())
    assert found.status == doctor.NOTE
    assert "13.0" in found.text and "12.4" in found.text and "nvidia-smi" in found.advice


def test_checks_that_synchronise_are_said(monkeypatch):
    monkeypatch.setenv("IMBAL_KERNELS_CHECK", "1")
    assert statuses()["environment"] == doctor.NOTE
