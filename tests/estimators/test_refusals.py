"""What the samplers refuse, word for word: the texts are imbalanced-learn's and scikit-learn's."""

import re
import runpy
import sys

import imblearn
import numpy as np
import pandas as pd
import polars as pl
import pytest

import imbal_kernels.imblearn as ours

rng = np.random.RandomState(0)
X = rng.randn(60, 3)
Y = np.r_[np.zeros(45, int), np.ones(15, int)]
Y3 = np.r_[np.zeros(30, int), np.ones(20, int), np.full(10, 2)]
FEW = np.r_[np.zeros(57, int), np.ones(3, int)]


def put(value, where=(0, 0)):
    """X with one value changed."""
    changed = X.astype(object if isinstance(value, str) else float)
    changed[where] = value
    return changed


STRATEGY = (
    "The 'sampling_strategy' parameter of SMOTE must be a float in the range (0.0, 1.0], a str among {…}, an instance "
    "of 'collections.abc.Mapping' or a callable. Got %s instead."
)
K = (
    "The 'k_neighbors' parameter of SMOTE must be an int in the range [1, inf) or an object implementing 'kneighbors' "
    "and 'kneighbors_graph'. Got %s instead."
)
STATE = (
    "The 'random_state' parameter of SMOTE must be an int in the range [0, 4294967295], an instance of "
    "'numpy.random.mtrand.RandomState' or None. Got %s instead."
)
NAN = "Input X contains NaN.\nSMOTE does not accept missing values encoded as NaN natively. …"
TOO_FEW = "Expected n_neighbors <= n_samples_fit, but n_neighbors = 6, n_samples_fit = 3, n_samples = 3"
NOT_FEWER = (
    "With over-sampling methods, the number of samples in a class should be greater or equal to the original number of "
    "samples. Originally, there is 15 samples and 5 samples are asked."
)
NO_CLUSTER = (
    "No clusters found with sufficient samples of class 1. Try lowering the cluster_balance_threshold or increasing "
    "the number of clusters."
)
NOISE = (
    "All support vectors are considered as noise. SVM-SMOTE is not adapted to your dataset. Try another SMOTE variant."
)

# sampler, arguments, X, y, error; "…" stands for the rest of a long text and for the order of a set
CASES = {
    "k of the class": ("SMOTE", {}, X, FEW, TOO_FEW),
    "k of the class, ADASYN": ("ADASYN", {}, X, FEW, TOO_FEW),
    "a class of one": (
        "SMOTE", {"k_neighbors": 1}, X, np.arange(60) == 0,
        "Expected n_neighbors <= n_samples_fit, but n_neighbors = 2, n_samples_fit = 1, n_samples = 1",
    ),
    "too few, KMeans": ("KMeansSMOTE", {"random_state": 0}, X, FEW, NO_CLUSTER),
    "only noise, SVM": ("SVMSMOTE", {"k_neighbors": 2}, X, FEW, NOISE),
    "one class": (
        "SMOTE", {}, X, np.zeros(60), "The target 'y' needs to have more than 1 class. Got 1 class instead"
    ),
    "fewer than there are": ("SMOTE", {"sampling_strategy": {1: 5}}, X, Y, NOT_FEWER),
    "unknown class": (
        "SMOTE", {"sampling_strategy": {7: 50}}, X, Y, "The {7} target class is/are not present in the data."
    ),
    "negative count": (
        "SMOTE", {"sampling_strategy": {1: -5}}, X, Y,
        "The number of samples in a class cannot be negative.'sampling_strategy' contains some negative value: {1: -5}",
    ),
    "float, three classes": (
        "SMOTE", {"sampling_strategy": 0.5}, X, Y3,
        '"sampling_strategy" can be a float only when the type of target is binary. For multi-class, use a dict.',
    ),
    "float too low": (
        "SMOTE", {"sampling_strategy": 0.1}, X, Y,
        "The specified ratio required to remove samples from the minority class while trying to generate new samples. "
        "Please increase the ratio.",
    ),
    "float above 1": ("SMOTE", {"sampling_strategy": 1.5}, X, Y, STRATEGY % "1.5"),
    "unknown word": ("SMOTE", {"sampling_strategy": "foo"}, X, Y, STRATEGY % "'foo'"),
    "list": ("SMOTE", {"sampling_strategy": [1]}, X, Y, STRATEGY % "[1]"),
    "k = 0": ("SMOTE", {"k_neighbors": 0}, X, Y, K % "0"),
    "k = 2.5": ("SMOTE", {"k_neighbors": 2.5}, X, Y, K % "2.5"),
    "k = 'a'": ("SMOTE", {"k_neighbors": "a"}, X, Y, K % "'a'"),
    "seed -1": ("SMOTE", {"random_state": -1}, X, Y, STATE % "-1"),
    "seed 'a'": ("SMOTE", {"random_state": "a"}, X, Y, STATE % "'a'"),
    "NaN": ("SMOTE", {}, put(np.nan), Y, NAN),
    "NaN, ADASYN": ("ADASYN", {}, put(np.nan), Y, NAN.replace("SMOTE", "ADASYN")),
    "NaN in a frame": ("SMOTE", {}, pd.DataFrame(put(np.nan)), Y, NAN),
    "infinity": (
        "SMOTE", {}, put(np.inf), Y, "Input X contains infinity or a value too large for dtype('float64')."
    ),
    "NaN in y": ("SMOTE", {}, X, np.where(np.arange(60) == 3, np.nan, Y), "Input y contains NaN."),
    "3-d X": ("SMOTE", {}, X[None], Y, "Found array with dim 3, while dim <= 2 is required by SMOTE."),
    "1-d X": ("SMOTE", {}, X[:, 0], Y, "Expected 2D array, got 1D array instead:\n…"),
    "no rows": (
        "SMOTE", {}, X[:0], Y[:0],
        "Found array with 0 sample(s) (shape=(0, 3)) while a minimum of 1 is required by SMOTE.",
    ),
    "no columns": (
        "SMOTE", {}, X[:, :0], Y,
        "Found array with 0 feature(s) (shape=(60, 0)) while a minimum of 1 is required by SMOTE.",
    ),
    "unequal lengths": (
        "SMOTE", {}, X, Y[:59], "Found input variables with inconsistent numbers of samples: [60, 59]"
    ),
    "continuous y": (
        "SMOTE", {}, X, X[:, 0],
        "Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects discrete classes on a "
        "regression target with continuous values.",
    ),
    "multilabel y": (
        "SMOTE", {}, X, np.ones((60, 2), int) * (np.arange(60) % 2)[:, None],
        "Imbalanced-learn currently supports binary, multiclass and binarized encoded multiclasss targets. Multilabel "
        "and multioutput targets are not supported.",
    ),
    "a string in X": ("SMOTE", {}, put("b"), Y, "could not convert string to float: 'b'"),
    "complex X": ("SMOTE", {}, X * 1j, Y, "Complex data not supported\n…"),
    "no y": ("SMOTE", {}, X, None, "Expected array-like (array or non-string sequence), got None"),
    "no majority near, ADASYN": (
        "ADASYN", {}, X + 100 * Y[:, None], Y,
        "Not any neigbours belong to the majority class. This case will induce a NaN case with a division by zero. "
        "ADASYN is not suited for this specific dataset. Use SMOTE instead.",
    ),
    "no categories": (
        "SMOTENC", {"categorical_features": []}, X, Y,
        "SMOTE-NC is not designed to work only with numerical features. It requires some categorical features.",
    ),
    "only categories": (
        "SMOTENC", {"categorical_features": [0, 1, 2]}, X, Y,
        "SMOTE-NC is not designed to work only with categorical features. It requires some numerical features.",
    ),
    "a column that isn't there": (
        "SMOTENC", {"categorical_features": [5]}, X, Y, "all features must be in [0, 2] or [-3, 0]"
    ),
    "auto without a frame": (
        "SMOTENC", {"categorical_features": "auto"}, X, Y,
        "When `categorical_features='auto'`, the input data should be a pandas.DataFrame. Got <class 'numpy.ndarray'> "
        "instead.",
    ),
    "NaN among numbers": ("SMOTENC", {"categorical_features": [2]}, put(np.nan), Y, "Input contains NaN."),
}  # fmt: skip


@pytest.mark.parametrize("name, arguments, x, y, text", CASES.values(), ids=CASES)
def test_refused_in_these_words(name, arguments, x, y, text, pair):
    pattern = re.escape(text).replace("…", "(?s:.*)")
    for sampler in pair(name, **arguments):
        with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
            sampler.fit_resample(x, y)
        assert re.fullmatch(pattern, str(error.value)), str(error.value)


@pytest.mark.parametrize("name", [name for name in ours.__all__ if name not in ("NearestNeighbors", "SMOTENC")])
def test_polars_is_refused_by_name(name, pair):
    """imbalanced-learn fails inside NumPy and names nothing; what the message says to pass works."""
    frame, labels = pl.DataFrame(X.round(), schema=["a", "b", "c"]), pl.Series("amount", Y)
    theirs, ours = pair(name, random_state=0)
    with pytest.raises(TypeError, match=r"^X must be .* got polars.DataFrame, .* pass X.to_pandas\(\) or"):
        ours.fit_resample(frame, Y)
    with pytest.raises(TypeError, match="Field elements"):  # once it takes them, so shall we
        theirs.fit_resample(frame, Y)
    found, found_y = ours.fit_resample(frame.to_numpy(), labels)
    assert type(found) is np.ndarray and type(found_y) is pd.Series and len(found) == len(found_y)


def test_borderline_without_points_in_danger_returns_the_data():
    """Their interface, kept: docs/imblearn.md."""
    found, found_y = ours.BorderlineSMOTE(random_state=0).fit_resample(X + 100 * Y[:, None], Y)
    np.testing.assert_array_equal(found, X + 100 * Y[:, None])
    np.testing.assert_array_equal(found_y, Y)


def test_without_imbalanced_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn", None)
    with pytest.raises(ImportError, match=r"needs imbalanced-learn 0\.14 .*pip install 'imbalanced-learn>=0\.14,"):
        runpy.run_path(ours.__file__)


@pytest.mark.parametrize("version", ["0.15.0", "0.13.1", "1.0"])
def test_an_untested_version_says_so(monkeypatch, version):
    monkeypatch.setattr(imblearn, "__version__", version)
    with pytest.warns(UserWarning, match=rf"is tested with imbalanced-learn 0\.14, this is {re.escape(version)}"):
        runpy.run_path(ours.__file__)
