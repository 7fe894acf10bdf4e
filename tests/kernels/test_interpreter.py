"""Runs tests/kernels/interpreted under Triton's interpreter, each file in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_kernels_under_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(FOLDER / file)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=FOLDER.parents[2], capture_output=True, text=True)
    summary = run.stdout.strip().splitlines()[-1:] or [""]
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d+ passed", summary[0]) and "skipped" not in summary[0], run.stdout
