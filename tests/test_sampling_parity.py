"""The samplers against imbalanced-learn's counts, scikit-learn's neighbours and NumPy's smoothed bootstrap."""

import imblearn
import numpy as np
import pytest
import torch
from sklearn import neighbors

import imbal_kernels as ik

SAMPLERS = {
    "smote": imblearn.over_sampling.SMOTE,
    "random_oversample": imblearn.over_sampling.RandomOverSampler,
    "random_undersample": imblearn.under_sampling.RandomUnderSampler,
}


def fifty_five_each(y):
    return {int(c): 55 for c in np.unique(y)}


OVER = [
    "auto", "minority", "not minority", "not majority", "all", {0: 60, 2: 45}, {1: 30}, {}, fifty_five_each,
]  # fmt: skip
UNDER = ["auto", "majority", "not minority", "not majority", "all", {0: 11, 1: 30}, {2: 0}, {}]
RATIOS = [0.45, 0.5, 0.999, 1.0, 1]


def table(sizes=(50, 30, 15)):
    generator = np.random.default_rng(0)
    y = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return generator.normal(size=(len(y), 4)), y


def counts(labels):
    return dict(zip(*(v.tolist() for v in np.unique(labels, return_counts=True)), strict=True))


def compare(name, x, y, strategy):
    _, expected = SAMPLERS[name](sampling_strategy=strategy).fit_resample(x, y)
    _, labels = getattr(ik, name)(torch.tensor(x), torch.tensor(y), sampling_strategy=strategy)
    assert counts(labels.numpy()) == counts(expected)
    assert torch.equal(labels, torch.tensor(expected)), "also the same order of classes"


@pytest.mark.parametrize("strategy", OVER, ids=lambda s: getattr(s, "__name__", str(s)))
@pytest.mark.parametrize("name", ["smote", "random_oversample"])
def test_over_sampling_counts(name, strategy):
    compare(name, *table(), strategy)


@pytest.mark.parametrize("strategy", UNDER, ids=str)
def test_under_sampling_counts(strategy):
    compare("random_undersample", *table(), strategy)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_counts_of_a_ratio(name, ratio):
    compare(name, *table((50, 20)), ratio)
    compare(name, *table((20, 50)), ratio)


@pytest.mark.parametrize("strategy", ["auto", "all", "minority", "not minority"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_counts_of_equal_classes(name, strategy):
    """Which of two smallest or largest classes is the one."""
    if name == "random_undersample" and strategy == "minority":
        strategy = "majority"
    compare(name, *table((20, 30, 20, 30)), strategy)


def on_segments(new, x, trace):
    """new = a + s (b - a) to rounding for some s in [0, 1]: its distance from the segment."""
    a, b = x[trace.seed_row].double(), x[trace.neighbour].double()
    s = (((new - a) * (b - a)).sum(1) / ((b - a) ** 2).sum(1)).clamp(0, 1)
    torch.testing.assert_close(s, trace.step, rtol=0, atol=1e-5)
    torch.testing.assert_close(a + s[:, None] * (b - a), new.double(), rtol=0, atol=1e-5)


def true_neighbours(fitted, k):
    found = neighbors.NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(fitted).kneighbors(
        fitted, return_distance=False
    )
    return [set(row.tolist()) - {i} for i, row in enumerate(found)]


@pytest.mark.parametrize("name", ["smote", "borderline-1", "borderline-2", "adasyn"])
def test_rows_lie_between_true_neighbours(name):
    x, y = table((200, 90, 60))
    x, y = torch.tensor(x).float(), torch.tensor(y)
    function = {"smote": ik.smote, "adasyn": ik.adasyn}.get(name, ik.borderline_smote)
    options = {"kind": name} if name.startswith("border") else {}
    new, labels, trace = function(x, y, return_provenance=True, **options)
    on_segments(new[len(x) :], x, trace)
    assert labels.bincount().tolist() == [200, 200, 200]
    k = 5
    everywhere = true_neighbours(x, k)
    for label in (1, 2):
        rows = (y == label).nonzero()[:, 0]
        within = true_neighbours(x[rows], k)
        near = {int(r): {int(rows[j]) for j in within[i]} for i, r in enumerate(rows)}
        mine = labels[len(x) :] == label
        for seed, neighbour in zip(trace.seed_row[mine].tolist(), trace.neighbour[mine].tolist(), strict=True):
            assert neighbour in (everywhere[seed] if name == "borderline-2" else near[seed])


def test_rows_in_danger_are_imbalanced_learns():
    """Its in_danger_indices: new rows start from all of those and from no other."""
    x, y = table((300, 80))
    theirs = imblearn.over_sampling.BorderlineSMOTE(random_state=0)
    theirs.fit_resample(x, y)
    trace = ik.borderline_smote(
        torch.tensor(x), torch.tensor(y), sampling_strategy={1: 300}, return_provenance=True
    )[2]
    assert set(trace.seed_row.tolist()) <= set(theirs.in_danger_indices[1].tolist())
    many = ik.borderline_smote(
        torch.tensor(x), torch.tensor(y), sampling_strategy={1: 20_000}, return_provenance=True
    )[2]
    assert set(many.seed_row.tolist()) == set(theirs.in_danger_indices[1].tolist())


def test_adasyn_shares_are_imbalanced_learns_to_rounding():
    """It rounds each row's share, so its total misses the target; ours is within one of each and exact in sum."""
    x, y = table((400, 60))
    new_x, new_y = imblearn.over_sampling.ADASYN(random_state=0).fit_resample(x, y)
    trace = ik.adasyn(torch.tensor(x), torch.tensor(y), return_provenance=True)[2]
    rows = np.flatnonzero(y == 1)
    found = neighbors.NearestNeighbors(n_neighbors=6).fit(x).kneighbors(x[rows], return_distance=False)[:, 1:]
    ratio = (y[found] != 1).sum(1)
    quota = ratio / ratio.sum() * 340
    ours = trace.seed_row.bincount(minlength=460).numpy()[rows]
    assert ours.sum() == 340 and (new_y == 1).sum() != 400
    assert (abs(ours - quota) < 1).all()


def test_smoothed_bootstrap_has_numpys_deviation():
    """The deviation of the noise per feature, h sigma, within six standard errors of its estimate."""
    x, y = table((2000, 500))
    x = x * np.array([1.0, 10.0, 0.1, 100.0])
    count = 40_000
    copies, noisy = (
        ik.random_oversample(
            torch.tensor(x), torch.tensor(y), sampling_strategy={1: count + 500}, shrinkage=s,
            generator=torch.Generator().manual_seed(0),
        )[0][2500:]
        for s in (None, 1.5)
    )  # fmt: skip
    expected = 1.5 * (4 / ((4 + 2) * 2500)) ** (1 / (4 + 4)) * x[y == 1].std(0)
    noise = (noisy - copies).numpy()
    assert (abs(noise.std(0) / expected - 1) < 6 / np.sqrt(2 * count)).all()
    assert (abs(noise.mean(0) / expected) < 6 / np.sqrt(count)).all()
