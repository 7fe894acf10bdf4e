"""nvcc compiles every CUDA kernel for every architecture; budgets of the search, read from the disassembly."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
pytest.importorskip("triton", reason="needs the cuobjdump that triton brings")

from bench import disassembly, sass, sass_cuda  # noqa: E402

pytestmark = pytest.mark.skipif(sass_cuda.NVCC is None, reason="needs nvcc")
FILES = sorted(path.name for path in ROOT.glob("csrc/cuda/*.cu"))
EVERY = [(name, arch) for name in sass.KERNELS for arch in sass.ARCHITECTURES]
SEARCHES = [(name, arch) for name in ("knn lists", "knn scores") for arch in sass.ARCHITECTURES]


@pytest.mark.parametrize("arch", sass.ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_has_a_row(file, arch):
    assert set(sass.cuda_reports(file, arch)) == {name for of, name in sass.KERNELS.values() if of == file}


def test_the_library_is_built_for_the_same_architectures():
    assert f"ARCHITECTURES = {sass.ARCHITECTURES}" in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("name, arch", EVERY)
def test_no_spills(name, arch):
    assert sass.cuda_report(name, arch).spills == 0


@pytest.mark.parametrize("name, arch", SEARCHES)
def test_most_of_what_the_search_issues_multiplies(name, arch):
    """Eight dimensions of 8 x 8 products a thread: at least 86 % of the loop, and four 128-bit loads a dimension."""
    report = sass.cuda_report(name, arch)
    assert report.loop_ffma == 8 * 64 and report.loop_ffma >= 0.86 * report.loop
    assert report.loop_loads == {"128": 8 * 4}


@pytest.mark.parametrize("name, arch", [case for case in EVERY if case[0].endswith("128-bit")])
def test_rows_move_in_128_bits(name, arch):
    """Both end points and the new row; what else is moved is the draw's."""
    wide, narrow = sass.cuda_report(name, arch), sass.cuda_report(name.removesuffix(" 128-bit"), arch)
    assert wide.loads["128"] >= 2 and wide.stores["128"] >= 1
    assert "128" not in narrow.loads and "128" not in narrow.stores


@pytest.mark.parametrize("name, arch", EVERY)
def test_no_worse_than_the_baseline(name, arch):
    """By more than 3 %, for the compiler that the baseline knows; `python -m bench.sass --baseline` renews it."""
    known = sass.baseline(sass_cuda.version())
    if not known:
        pytest.skip(f"no baseline for {sass_cuda.version()}")
    found, before = sass.cuda_report(name, arch), known[name][str(arch)]
    for measure in ("instructions", "registers", "spills", "shared", "loop"):
        assert getattr(found, measure) <= 1.03 * before[measure], measure
    assert found.loop_ffma >= 0.97 * before["loop_ffma"]


def test_the_inner_loop_is_the_shortest_that_has_the_products():
    lines = ["MOV R0, R1", "FFMA R0, R0, R0, R0", "FFMA R0, R0, R0, R0", "@P0 BRA 0x10", "FADD R0, R0, R0", "BRA 0x0"]
    code = "\n".join(f"/*{16 * i:04x}*/  {text} ;" for i, text in enumerate(lines))
    assert disassembly.inner_loop(code, "FFMA") == lines[1:4]
    assert disassembly.inner_loop(code, "MUFU") == []
    loads = ["LDS.128 R4, [R3]", "@P0 LDS R5, [R3]", "LDSM.16 R5, [R3]"]
    assert disassembly.widths(loads, "LDS") == {"128": 1, "32": 1}


def test_a_file_that_does_not_compile_is_named(monkeypatch, tmp_path):
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "broken.cu").write_text("int f() { return x; }\n")
    flags = (ROOT / "csrc" / "cuda" / "nvcc.flags").read_text()
    (tmp_path / "csrc" / "cuda" / "nvcc.flags").write_text(flags)
    monkeypatch.setattr(sass_cuda, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=re.escape("broken.cu does not compile for sm_90")):
        sass_cuda.compile_file("broken.cu", 90)
