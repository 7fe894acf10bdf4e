"""The documentation runs, page blocks and docstring examples alike, and what it names exists."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import imbal_kernels

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
OPTIONAL = ("triton", "imblearn", "sklearn", "matplotlib", "tqdm")
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(
        imbal_kernels.__path__, "imbal_kernels.", onerror=lambda name: None
    )
    if not m.name.endswith(("._C", "__main__"))
)


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page):
    """Each python block with the line it starts after."""
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield match[1], text[: match.start(1)].count("\n")


def run_examples(example):
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    failed, _ = runner.run(example, out=report.append, clear_globs=False)
    assert not failed, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_run(page):
    torch.manual_seed(0)
    names: dict = {}
    for code, line in blocks(page):
        if ">>>" in code:
            example = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), line)
            example.globs = names
            run_examples(example)
        else:
            # Blank lines in front: a traceback then shows the page's own line.
            exec(compile("\n" * line + code, str(page), "exec"), names)


def test_the_readme_has_examples():
    assert len(list(blocks(PAGES[0]))) >= 3


@pytest.mark.parametrize("name", ["imbal_kernels", *MODULES])
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        run_examples(example)


@pytest.mark.parametrize("page", PROSE, ids=page_id)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_every_environment_variable_is_in_the_readme():
    code = [*ROOT.glob("imbal_kernels/**/*.py"), ROOT / "tests" / "conftest.py", ROOT / "setup.py"]
    used = set().union(
        *(re.findall(r"environ\S*?\"((?:IMBAL|FORCE)_\w+)\"", f.read_text()) for f in code)
    )
    named = set(re.findall(r"^\| `(\w+)=", PAGES[0].read_text(), re.MULTILINE))
    assert used == named


@pytest.mark.parametrize("page", PROSE, ids=page_id)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", page.read_text())) <= targets
