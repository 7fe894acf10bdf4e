"""The samplers: imbalanced-learn's samples for imbalanced-learn's seeds, in the dtypes and containers that went in."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neighbors import NearestNeighbors as SklearnNeighbors

import imbal_kernels.imblearn as ours

STRATEGIES = ["auto", "all", "minority", "not minority", {1: 100, 2: 75}, lambda y: {2: 90}]
DTYPES = [np.float64, np.float32, np.int32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "SVMSMOTE", "KMeansSMOTE", "ADASYN", "SMOTENC", "SMOTEN"])
def test_same_seed_same_samples(name, seed, dtype, pair, table):
    X, y = table(seed, dtype)
    if name == "SMOTEN":
        X = X[:, -1:].astype(int)
    same_samples(*pair(name, random_state=seed), X, y)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["auto", "all", "minority", "not minority", "dict", "callable"])
def test_same_samples_for_every_strategy(dense, strategy, pair, table):
    same_samples(*pair(dense, sampling_strategy=strategy, random_state=0), *table())


@pytest.mark.parametrize("name, arguments", [
    ("SMOTE", {"sampling_strategy": 0.8, "k_neighbors": 1}),
    ("SMOTE", {"k_neighbors": 29}),
    ("BorderlineSMOTE", {"kind": "borderline-2", "sampling_strategy": 0.9}),
    ("BorderlineSMOTE", {"m_neighbors": 3, "k_neighbors": 2}),
    ("SVMSMOTE", {"out_step": 1.0, "m_neighbors": 7}),
    ("KMeansSMOTE", {"kmeans_estimator": 1}),
    ("ADASYN", {"n_neighbors": 9}),
    ("SMOTENC", {"categorical_features": [6, 7], "k_neighbors": 3}),
], ids=str)  # fmt: skip
def test_same_samples_for_other_arguments(name, arguments, pair, table):
    X, y = table(3, sizes=(120, 30))
    X[:, 6] = np.abs(X[:, 6]).round()
    same_samples(*pair(name, random_state=np.random.RandomState(5), **arguments), X, y)


def same_samples(theirs, ours, X, y):
    theirs.random_state, ours.random_state = (  # a RandomState is consumed: one for each
        np.random.RandomState(5) if isinstance(s.random_state, np.random.RandomState) else s.random_state
        for s in (theirs, ours)
    )
    expected, expected_y = theirs.fit_resample(X, y)
    found, found_y = ours.fit_resample(X, y)
    assert found.dtype == expected.dtype and len(found) > len(X)
    np.testing.assert_array_equal(found_y, expected_y)
    np.testing.assert_array_equal(found[: len(X)], X)
    # float32: they round the difference to float32, an error of 2^-24 * 2 max|X|; the results, up to 2 max|X|, are
    # rounded once each.
    atol = 6 * 2**-24 * np.abs(X).max() if found.dtype == np.float32 else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_our_search_is_used_for_a_number_only(pair, table):
    X, y = table()
    for name in ("SMOTE", "BorderlineSMOTE", "SVMSMOTE", "KMeansSMOTE", "SMOTENC"):
        sampler = pair(name)[1]
        sampler.fit_resample(X, y)
        assert isinstance(sampler.nn_k_, ours.NearestNeighbors) and not sparse.issparse(sampler.nn_k_._fit_X)
        sampler.set_params(k_neighbors=SklearnNeighbors(n_neighbors=4)).fit_resample(X, y)
        assert type(sampler.nn_k_) is SklearnNeighbors
        if hasattr(sampler, "nn_m_"):
            assert isinstance(sampler.nn_m_, ours.NearestNeighbors)
    assert isinstance(ours.ADASYN().fit(X, y), ours.ADASYN)


@pytest.mark.parametrize("kind", ["uint8", "int8", "bool"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array], ids=["dense", "csr", "csc_array"])
def test_integers_and_bools_stay_between_their_neighbours(dense, kind, form, pair, in_boxes):
    rng = np.random.RandomState(0)
    y = np.r_[np.zeros(60, int), np.ones(20, int)]
    X = rng.rand(80, 3) < 0.5 if kind == "bool" else rng.randint(0, 256, (80, 3)).astype(np.uint8).view(kind)
    arguments = {"out_step": 0.0} if dense == "SVMSMOTE" else {}  # no extrapolation
    found, found_y = pair(dense, random_state=0, **arguments)[1].fit_resample(form(X), y)
    assert type(found) is type(form(X)) and found.dtype == X.dtype and len(found_y) > 90
    found = found.toarray() if sparse.issparse(found) else found
    np.testing.assert_array_equal(found[:80], X)
    assert in_boxes(found[80:], X[y == 1]).all()


def test_extrapolated_integers_that_do_not_fit_are_an_error(table):
    X, y = table(sizes=(100, 60))
    X = np.clip(X * 60 + 128, 0, 255).astype(np.uint8)
    with pytest.raises(ValueError, match="^X has synthetic samples beyond the range of its dtype uint8; pass a wider"):
        ours.SVMSMOTE(random_state=0, out_step=1.0).fit_resample(X, y)
    found, _ = ours.SVMSMOTE(random_state=0, out_step=1.0).fit_resample(X.astype(np.int16), y)
    assert found.dtype == np.int16 and found.min() < 0


# Not KMeansSMOTE: k-means itself, of scikit-learn, ends in NaN on a column this far from zero.
@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "SVMSMOTE", "ADASYN"])
def test_original_rows_keep_integers_that_float64_cannot_hold(name, pair, table):
    X, y = table(dtype=np.int64)
    X[:, 0] += 2**53 + 1
    found, _ = pair(name, random_state=0)[1].fit_resample(X, y)
    np.testing.assert_array_equal(found[: len(X)], X)


@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "ADASYN"])
def test_float32_stays_finite_and_inside_where_differences_overflow(name, pair, table, in_boxes):
    X, y = table(sizes=(100, 25), d=3)
    X = (X / np.abs(X).max() * 3e38).astype(np.float32)
    found, _ = pair(name, random_state=0)[1].fit_resample(X, y)
    assert found.dtype == np.float32 and len(found) > 150
    assert in_boxes(found[125:], X[y == 1]).all()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_an_overflow_of_float64_is_an_error(form):
    X, y = np.array([[-1.7e308], [1.7e308], [1.7e308], [0.0]] * 2)[:7], np.array([1, 1, 1, 1, 0, 1, 1])
    with pytest.raises(ValueError, match="beyond the range of its dtype float64"):
        ours.SMOTE(k_neighbors=4, sampling_strategy={1: 60, 0: 1}, random_state=0).fit_resample(form(X), y)


@pytest.mark.parametrize("name", ["SMOTE", "ADASYN"])
def test_sparse_float32_stays_finite_and_inside_where_differences_overflow(name, pair, in_boxes):
    """6e38 apart, beyond what float32 holds."""
    X, y = np.zeros((40, 3), np.float32), np.arange(40) % 4 == 0
    X[:, 0] = np.where(np.arange(40) % 8 < 4, 3e38, -3e38)
    found, _ = pair(name, random_state=0)[1].fit_resample(sparse.csr_matrix(X), y)
    assert found.dtype == np.float32 and found.shape[0] > 50
    assert in_boxes(found.toarray()[40:], X[y]).all()


def test_a_missing_category_is_a_category(table):
    X, y = table()
    X[y == 2, 7] = np.nan
    found, _ = ours.SMOTENC([7], random_state=0).fit_resample(X, y)
    assert np.isnan(found[len(X) :][:, 7]).any()


def test_a_large_encoding_stays_sparse(monkeypatch, table, pair):
    X, y = table()
    samplers = [pair("SMOTENC", random_state=0)[1] for _ in range(2)]
    expected = samplers[0].fit_resample(X, y)[0]
    monkeypatch.setattr(ours, "DENSE_BYTES", 1000)
    np.testing.assert_array_equal(samplers[1].fit_resample(X, y)[0], expected)
    assert [sparse.issparse(sampler.nn_k_._fit_X) for sampler in samplers] == [False, True]


def test_duplicates_are_no_neighbours_of_their_own(pair):
    """Every row ten times: k = 9 reaches the copies only, and each sample is one of the rows."""
    X = np.tile(np.random.RandomState(0).randn(4, 3), (10, 1))
    y = np.zeros(40, int)
    nn = ours.SMOTE(k_neighbors=9)
    nn._validate_estimator()
    rest = nn.nn_k_.fit(X).kneighbors(X, return_distance=False)[:, 1:]
    assert not (rest == np.arange(40)[:, None]).any()
    X, y = np.vstack((X, np.random.RandomState(1).randn(60, 3))), np.r_[y, np.ones(60, int)]
    found, _ = pair("SMOTE", k_neighbors=9, random_state=0)[1].fit_resample(X, y)
    assert (found[100:, None] == X[None, :4]).all(axis=2).any(axis=1).all()


@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "SVMSMOTE", "KMeansSMOTE", "ADASYN", "SMOTENC"])
def test_frames_in_frames_out(name, pair, table):
    X, y = table()
    frame = pd.DataFrame(X, columns=list("abcdefgh")).astype({"a": np.float32, "b": np.float64, "h": np.int8})
    frame.index += 1000
    labels = pd.Series(np.array(["few", "some", "many"], dtype=object)[y], name="amount", index=frame.index)
    found, found_y = pair(name, random_state=0)[1].fit_resample(frame, labels)
    expected, expected_y = pair(name, random_state=0)[0].fit_resample(frame, labels)
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6 * np.abs(X).max())
    pd.testing.assert_series_equal(found_y, expected_y)
    assert found.dtypes.equals(frame.dtypes) and found_y.name == "amount" and set(found_y) == set(labels)


def test_smotenc_takes_the_categories_of_a_frame(table, pair):
    X, y = table()
    frame = pd.DataFrame(X).rename(columns=str)
    frame["7"] = pd.Categorical.from_codes(X[:, 7].astype(int), ["red", "green", "blue"])
    samplers = pair("SMOTENC", categorical_features="auto", random_state=0)
    expected, found = (sampler.fit_resample(frame, y)[0] for sampler in samplers)
    pd.testing.assert_frame_equal(found, expected)
    assert found["7"].dtype == frame["7"].dtype


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "csr_array"])
def test_sparse_in_sparse_out(dense, form, pair, table):
    X, y = table(sizes=(120, 40))
    X = getattr(sparse, form)(np.where(np.abs(X) > 0.3, X, 0))
    theirs, ours = (sampler.fit_resample(X, y)[0] for sampler in pair(dense, random_state=0))
    assert type(ours) is type(X) and ours.format == X.format
    np.testing.assert_array_equal(ours.toarray(), theirs.toarray())


def test_lists_in_lists_out(table):
    X, y = table(sizes=(30, 10))
    found, found_y = ours.SMOTE(random_state=0).fit_resample(X.tolist(), y.tolist())
    assert type(found) is list and type(found_y) is list and len(found) == 60


def test_samples_help_a_rare_class(table):
    """The point of it all: the recall of a rare class goes up."""
    X, y = table(sizes=(600, 30), d=4)
    test_X, test_y = table(1, sizes=(600, 30), d=4)
    plain = KNeighborsClassifier().fit(X, y)
    balanced = KNeighborsClassifier().fit(*ours.SMOTE(random_state=0).fit_resample(X, y))
    recalls = [(model.predict(X)[y == 1] == 1).mean() for model in (plain, balanced)]
    assert recalls[1] > recalls[0] + 0.2


@pytest.mark.parametrize("what", ["samplers", "search"])
def test_imbalanced_learns_own_tests(what):
    script = Path(__file__).with_name("their_tests.py")
    done = subprocess.run(
        [sys.executable, str(script), what], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
