"""The bench of the search and of SMOTE: who is wrong is named, who is missing too."""

import pytest
import torch

import imbal_kernels as ik
from bench import neighbors, report, smote
from bench.harness import OURS, Workload, measure


@pytest.fixture(scope="module")
def search():
    return neighbors.Problem.random(700, 12)


@pytest.fixture(scope="module")
def sampling():
    return smote.Problem.random(900, 6, 10)


def test_every_contestant_finds_the_neighbours(search):
    entries, missing = neighbors.contestants(search)
    assert {neighbors.ROOF, OURS, "scikit-learn", "faiss-cpu", "cdist + topk"} <= entries.keys()
    assert entries.keys() | missing.keys() >= set(neighbors.PEERS), "in or named as missing"
    for contestant in entries.values():
        contestant.check()


def test_every_contestant_samples_between_neighbours(sampling):
    entries, missing = smote.contestants(sampling)
    assert list(entries) == [neighbors.ROOF, OURS, smote.ESTIMATOR, "imbalanced-learn"] and not missing
    for contestant in entries.values():
        contestant.check()
    balanced = entries[OURS].run()
    assert balanced[1].bincount().tolist() == [810, 810]
    sampling.check(OURS, *balanced)


def test_wrong_neighbours_are_named(search):
    indices, distances = ik.knn(search.x, neighbors.K + 1)
    wrong = indices[:, 1:]  # all but the nearest
    with pytest.raises(AssertionError, match="^the wrong one: "):
        search.check("the wrong one", wrong)
    with pytest.raises(AssertionError, match="^ours, indices: not those of the reference"):
        search.check_exact("ours", (wrong, distances[:, 1:]))
    search.check("a right one", indices[:, :-1])


def test_wrong_rows_are_named(sampling, monkeypatch):
    x, y = ik.smote(sampling.x, sampling.y)
    n = len(sampling.y)
    moved = x.clone()
    moved[n] += 0.01
    with pytest.raises(AssertionError, match="^the wrong one: a new row is not between"):
        sampling.check("the wrong one", moved, y)
    far = x.clone()
    far[n:] = (sampling.x[sampling.rows[0]] + sampling.x[sampling.rows[1:]].mean(0)) / 2
    with pytest.raises(AssertionError, match="^the wrong one: a new row is not between"):
        sampling.check("the wrong one", far, y)
    with pytest.raises(AssertionError, match="^the wrong one: not the old rows first, or other labels"):
        sampling.check("the wrong one", x, y.flip(0))
    with monkeypatch.context() as patch:
        patch.setattr(ik, "smote", lambda *args, **options: (moved, y))
        with pytest.raises(AssertionError, match="^ours: not the rows or labels of the reference"):
            sampling.check_exact()


def test_missing_peers_are_named_with_the_reason():
    for module, problem in (
        (neighbors, neighbors.Problem.random(300, 4, dtype=torch.bfloat16)),
        (smote, smote.Problem.random(300, 4, 10, dtype=torch.bfloat16)),
    ):
        entries, missing = module.contestants(problem)
        assert OURS in entries and missing.keys() == set(module.PEERS)
        assert set(missing.values()) <= {"not run in torch.bfloat16", "not installed"}
        assert not module.contestants(problem, ())[1]


def test_measured_in_flops_of_all_pairs(search, sampling):
    """Each pair of rows once, a multiplication and an addition for each column."""
    for module, problem, rows, columns in ((neighbors, search, 700, 12), (smote, sampling, 90, 6)):
        entries, _ = module.contestants(problem, ())
        assert entries[OURS].amount == rows * (rows - 1) // 2 * 2 * columns
    workload = next(smote.workloads("cpu", ["float32"], ["900x6"], (), True))
    result = measure(workload, rounds=2)
    assert result.name == "smote, 900 x 6, 10 % minority, float32" and result.unit == "GFLOP/s"
    assert "m = 90, 5 neighbours; 0 MB of rows" in result.model and result.roof == neighbors.ROOF
    assert result.row(OURS).rate > 0


def test_memory_that_is_not_seen_is_not_zero(search):
    entries, _ = neighbors.contestants(search, ("scikit-learn", "cdist + topk"))
    result = measure(Workload("w", "cpu", "", entries, roof=neighbors.ROOF), rounds=2)
    assert result.row("scikit-learn").peak_mib is None and result.row("cdist + topk").peak_mib > 0
    assert report.text_table(result).count("\nscikit-learn") == 1
