"""NearestNeighbors: exact, index-ordered, one copy of the query first; otherwise scikit-learn's."""

import numpy as np
import pytest
from imblearn.pipeline import make_pipeline
from imblearn.under_sampling import EditedNearestNeighbours
from scipy import sparse
from sklearn import neighbors
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import locally_linear_embedding
from sklearn.utils.estimator_checks import parametrize_with_checks

from imbal_kernels.imblearn import SMOTE, SMOTEN, NearestNeighbors


@parametrize_with_checks([NearestNeighbors()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def brute_force(points, query, k, first):
    """The k nearest by (d^2, index), row `first[i]` (-1: none) before all others."""
    points, query = points.astype(np.float64), query.astype(np.float64)
    squared = ((query[:, None] - points[None]) ** 2).sum(axis=2)
    index = np.broadcast_to(np.arange(len(points)), squared.shape)
    order = np.lexsort((index, squared, index != np.asarray(first)[:, None]))[:, :k]
    return np.sqrt(np.take_along_axis(squared, order, axis=1)), order


def first_equal(points, query):
    equal = (query[:, None] == points[None]).all(axis=2)
    return np.where(equal.any(axis=1), equal.argmax(axis=1), -1)


def check(found, expected):
    distances, indices = found
    np.testing.assert_array_equal(indices, expected[1])
    # Both sum d squares in fp64, in another order.
    np.testing.assert_allclose(distances, expected[0], rtol=1e-14)
    assert distances.dtype == np.float64 and indices.dtype == np.int64


POINTS = {
    "distinct": np.random.RandomState(0).randn(60, 4),
    "float32": np.random.RandomState(0).randn(60, 4).astype(np.float32),
    "small integers": np.random.RandomState(1).randint(0, 3, (60, 3)),
    "each row ten times": np.tile(np.random.RandomState(2).randn(6, 3), (10, 1)),
    "bools": np.random.RandomState(3).rand(60, 3) > 0.5,
    "far off": np.random.RandomState(4).randn(60, 4) + 1e8,
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("k", [1, 6, 59])
def test_the_fitted_rows_themselves(name, k, device):
    points = POINTS[name]
    nn = NearestNeighbors(n_neighbors=k, device=device).fit(points)
    expected = brute_force(points, points, 60, np.arange(60))
    check(nn.kneighbors(points.copy()), [part[:, :k] for part in expected])
    check(nn.kneighbors(), [part[:, 1 : k + 1] for part in expected])


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("k", [1, 6, 60])
def test_a_subset_of_them_and_other_rows(name, k, device):
    points = POINTS[name]
    query = np.vstack((points[::7], points[:9] + points[5:14]))
    found = NearestNeighbors(n_neighbors=k, device=device).fit(points).kneighbors(query)
    check(found, brute_force(points, query, k, first_equal(points, query)))


def test_dropping_the_first_column_drops_one_copy():
    points = POINTS["each row ten times"]
    rest = NearestNeighbors(n_neighbors=10).fit(points).kneighbors(points)[1][:, 1:]
    for i, row in enumerate(rest):
        np.testing.assert_array_equal(row, [j for j in range(i % 6, 60, 6) if j != i])


def test_an_equal_row_is_first_where_squares_underflow():
    tiny = 1e-200 * np.arange(1.0, 9.0)[:, None]
    nn = NearestNeighbors(n_neighbors=3).fit(tiny)
    assert nn.kneighbors(tiny[[6, 1]], return_distance=False).tolist() == [[6, 0, 1], [1, 0, 2]]


def test_a_wider_query_is_not_rounded():
    points = np.array([[1.0], [1.0 + 2**-20]], dtype=np.float32)
    query = np.array([[1.0 + 2**-21 + 2**-40]])  # in float32 the tie between both
    found = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(query, return_distance=False)
    assert found.tolist() == [[1]]


def test_the_graph_holds_the_neighbours():
    points = POINTS["distinct"]
    nn = NearestNeighbors(n_neighbors=4).fit(points)
    distances, indices = nn.kneighbors(points)
    graph = nn.kneighbors_graph(points, mode="distance")
    assert graph.shape == (60, 60)
    np.testing.assert_array_equal(graph.indices.reshape(60, 4), indices)
    np.testing.assert_array_equal(graph.data.reshape(60, 4), distances)
    assert nn.kneighbors_graph().diagonal().sum() == 0


@pytest.mark.parametrize("points, query, k", [
    (sparse.random_array((50, 6), density=0.4, rng=0, format="csr"), None, 3),
    (np.random.RandomState(0).randn(50, 6), sparse.random_array((5, 6), density=0.5, rng=0, format="csr"), 3),
    (np.random.RandomState(0).randn(3, 4097), None, 2),
    (np.random.RandomState(0).randn(4200, 1), np.zeros((2, 1)), 4097),
], ids=["sparse X", "sparse query", "columns", "k"])  # fmt: skip
def test_what_scikit_learn_searches(points, query, k):
    found = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(query)
    expected = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors(query)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


ROWS = np.random.RandomState(0).randn(5, 2)
REFUSED = {
    "k above n": lambda nn: nn.fit(ROWS).kneighbors(ROWS[:2], 6),
    "k above n - 1": lambda nn: nn.fit(ROWS).kneighbors(n_neighbors=5),
    "k = 0": lambda nn: nn.fit(ROWS).kneighbors(ROWS, 0),
    "k = 2.5": lambda nn: nn.fit(ROWS).kneighbors(ROWS, 2.5),
    "k = -1 at fit": lambda nn: nn.set_params(n_neighbors=-1).fit(ROWS),
    "k = 'a' at fit": lambda nn: nn.set_params(n_neighbors="a").fit(ROWS),
    "not fitted": lambda nn: nn.kneighbors(ROWS),
    "NaN": lambda nn: nn.fit([[1.0, np.nan]]),
    "infinite query": lambda nn: nn.fit(ROWS).kneighbors([[np.inf, 0.0]]),
    "1-d": lambda nn: nn.fit(ROWS[0]),
    "3-d": lambda nn: nn.fit(ROWS[None]),
    "no rows": lambda nn: nn.fit(ROWS[:0]),
    "no columns": lambda nn: nn.fit(ROWS[:, :0]),
    "other columns": lambda nn: nn.fit(ROWS).kneighbors(ROWS[:, :1]),
    "complex": lambda nn: nn.fit(ROWS * 1j),
    "strings": lambda nn: nn.fit([["a", "b"]]),
    "mode": lambda nn: nn.fit(ROWS).kneighbors_graph(ROWS, 2, "other"),
}  # fmt: skip


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_errors_are_scikit_learns(call):
    with pytest.raises(Exception) as theirs:
        call(neighbors.NearestNeighbors(n_neighbors=2))
    with pytest.raises(type(theirs.value)) as ours:
        call(NearestNeighbors(n_neighbors=2))
    assert str(ours.value) == str(theirs.value)


def test_the_device_is_checked():
    with pytest.raises(ValueError, match="The 'device' parameter of NearestNeighbors must be an instance of 'str'"):
        NearestNeighbors(device=3).fit(ROWS)
    with pytest.raises(RuntimeError, match="device type"):
        NearestNeighbors(n_neighbors=2, device="somewhere").fit(ROWS).kneighbors()


def test_in_place_of_scikit_learns(table):
    """As a parameter: cloned, set through a pipeline, given n_jobs by imbalanced-learn."""
    X, y = table()
    model = make_pipeline(
        EditedNearestNeighbours(n_neighbors=NearestNeighbors(n_neighbors=4), n_jobs=1),
        SMOTE(k_neighbors=NearestNeighbors(n_neighbors=6), random_state=0),
        LogisticRegression(),
    )
    model.set_params(smote__k_neighbors__n_neighbors=2)
    assert clone(model).get_params()["smote__k_neighbors__n_neighbors"] == 2
    cleaned = EditedNearestNeighbours(n_neighbors=neighbors.NearestNeighbors(n_neighbors=4)).fit_resample(X, y)
    np.testing.assert_array_equal(model[:-2].steps[0][1].fit_resample(X, y)[0], cleaned[0])
    assert model.fit(X, y).named_steps["smote"].nn_k_.n_samples_fit_ < len(X)


def test_functions_that_take_a_fitted_search():
    """scikit-learn's: they ask for its metric, and one refuses another."""
    points = POINTS["distinct"]
    ours, theirs = (search(n_neighbors=6).fit(points) for search in (NearestNeighbors, neighbors.NearestNeighbors))
    for mode in ("connectivity", "distance"):
        found, expected = (neighbors.kneighbors_graph(nn, 4, mode=mode).toarray() for nn in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    found, expected = (neighbors.radius_neighbors_graph(nn, 1.0).toarray() for nn in (ours, theirs))
    np.testing.assert_array_equal(found, expected)
    options = {"n_neighbors": 5, "n_components": 2, "random_state": 0}
    np.testing.assert_allclose(*(locally_linear_embedding(nn, **options)[1] for nn in (ours, theirs)), rtol=1e-6)
    with pytest.raises(ValueError, match="Got manhattan for metric, while the estimator has minkowski"):
        neighbors.kneighbors_graph(ours, 4, metric="manhattan")


@pytest.mark.parametrize("tree", [neighbors.KDTree, neighbors.BallTree, lambda x: NearestNeighbors().fit(x)])
def test_fitted_on_a_tree(tree):
    points = POINTS["distinct"]
    nn = NearestNeighbors(n_neighbors=3).fit(tree(points))
    check(nn.kneighbors(points[:5]), brute_force(points, points[:5], 3, np.arange(5)))


@pytest.mark.parametrize("option", [
    {"metric": "manhattan"}, {"p": 1}, {"metric_params": {"w": [1, 2, 3, 4]}}, {"metric": "cosine"},
], ids=str)  # fmt: skip
def test_another_metric_is_scikit_learns(option):
    points, query = POINTS["distinct"], POINTS["distinct"][:9] + 0.1
    found = NearestNeighbors(n_neighbors=4, **option).fit(points).kneighbors(query)
    expected = neighbors.NearestNeighbors(n_neighbors=4, algorithm="brute", **option).fit(points).kneighbors(query)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(found[0], NearestNeighbors(n_neighbors=4).fit(points).kneighbors(query)[0])


def test_distances_between_categories(table):
    """SMOTEN sets metric="precomputed"."""
    X, y = (part.astype(int) for part in table())
    found, expected = (
        SMOTEN(k_neighbors=k, random_state=0).fit_resample(X, y)[0] for k in (NearestNeighbors(n_neighbors=6), 5)
    )
    np.testing.assert_array_equal(found, expected)
