"""Bad input of the search: one table of calls with the exact exception and message, ours and the reference's."""

import re

import pytest
import torch
from torch.autograd import forward_ad

import imbal_kernels as ik

X = torch.zeros(6, 2)
DTYPE = "must be float32, bfloat16, float16 or float64, got"
NAN = torch.zeros(6, 2).index_put_((torch.tensor(4), torch.tensor(1)), torch.tensor(float("nan")))
CASES = [
    (([[1.0]], 1), {}, TypeError, "x must be a Tensor, got list"),
    ((X.long(), 1), {}, TypeError, f"x {DTYPE} torch.int64"),
    ((X + 0j, 1), {}, TypeError, f"x {DTYPE} torch.complex64"),
    ((X.to_sparse(), 1), {}, ValueError, "x must be a strided tensor, got torch.sparse_coo"),
    ((X[0], 1), {}, ValueError, "x must be 2-d, rows of coordinates, got shape (2,)"),
    ((X[None], 1), {}, ValueError, "x must be 2-d, rows of coordinates, got shape (1, 6, 2)"),
    ((X[:, :0], 1), {}, ValueError, "x must have 1 to 4096 columns, got shape (6, 0)"),
    ((torch.zeros(2, 4097), 1), {}, ValueError, "x must have 1 to 4096 columns, got shape (2, 4097)"),
    ((X.clone().requires_grad_(), 1), {}, ValueError,
     "x requires grad, but no gradient is computed for it: pass x.detach()"),
    ((NAN, 1), {}, ValueError, "x must be finite, got nan at row 4, column 1"),
    ((NAN.nan_to_num(-torch.inf), 1), {}, ValueError, "x must be finite, got -inf at row 4, column 1"),
    ((X, 1), {"query": NAN}, ValueError, "query must be finite, got nan at row 4, column 1"),
    ((X, 0), {}, ValueError, "k must be in [1, 4096], got 0"),
    ((X, 4097), {}, ValueError, "k must be in [1, 4096], got 4097"),
    ((X, 2.5), {}, TypeError, "k must be an int, got float"),
    ((X, "a"), {}, TypeError, "k must be an int, got str"),
    ((X, True), {}, TypeError, "k must be an int, got bool"),
    ((X, 6), {}, ValueError,
     "Expected n_neighbors < n_samples_fit, but n_neighbors = 6, n_samples_fit = 6, n_samples = 6"),
    ((X[:0], 1), {}, ValueError,
     "Expected n_neighbors < n_samples_fit, but n_neighbors = 1, n_samples_fit = 0, n_samples = 0"),
    ((X, 7), {"include_self": True}, ValueError,
     "Expected n_neighbors <= n_samples_fit, but n_neighbors = 7, n_samples_fit = 6, n_samples = 6"),
    ((X[:3], 6), {"query": X[:2]}, ValueError,
     "Expected n_neighbors <= n_samples_fit, but n_neighbors = 6, n_samples_fit = 3, n_samples = 2"),
    ((X, 3), {"ptr": torch.tensor([0, 0, 4, 6])}, ValueError,
     "Expected n_neighbors < n_samples_fit, but n_neighbors = 3, n_samples_fit = 2, n_samples = 2 in segment 2"),
    ((X, 1), {"query": [0]}, TypeError, "query must be a Tensor, got list"),
    ((X, 1), {"query": X[:, :1]}, ValueError, "query must have the columns of x, 2, got shape (6, 1)"),
    ((X, 1), {"query": X.double()}, TypeError, "query must have the dtype of x, torch.float32, got torch.float64"),
    ((X, 1), {"query": X.to("meta")}, ValueError, "query must be on the device of x, cpu, got meta"),
    ((X, 1), {"query": X, "include_self": True}, ValueError,
     "include_self is for x against itself: rows of query are never excluded"),
    ((X, 1), {"include_self": 1}, TypeError, "include_self must be a bool, got int"),
    ((X, 1), {"return_counts": 1}, TypeError, "return_counts must be a bool, got int"),
    ((X, 1), {"ptr": [0, 6]}, TypeError, "ptr must be a Tensor or None, got list"),
    ((X, 1), {"ptr": torch.tensor([0, 6]).int()}, TypeError, "ptr must be int64, got torch.int32"),
    ((X, 1), {"ptr": torch.tensor([[0, 6]])}, ValueError,
     "ptr must hold the segments' ends, 0 first, got shape (1, 2)"),
    ((X, 1), {"ptr": torch.tensor([0, 6], device="meta")}, ValueError, "ptr must be on the device of x, cpu, got meta"),
    ((X, 1), {"ptr": torch.tensor([0, 4, 2, 6])}, ValueError,
     "ptr must rise from 0 to the rows of x, 6, without falling, got [0, 4, 2, 6]"),
    ((X, 1), {"ptr": torch.tensor([0, 5])}, ValueError,
     "ptr must rise from 0 to the rows of x, 6, without falling, got [0, 5]"),
    ((X, 1), {"ptr": torch.arange(1, 13)}, ValueError,
     "ptr must rise from 0 to the rows of x, 6, without falling, got [1, 2, 3, 4, ..., 11, 12]"),
    ((X, 1), {"ptr": torch.tensor([0, 6]), "query": X}, ValueError,
     "ptr needs query_ptr, which splits the rows of query the same way"),
    ((X, 1), {"query_ptr": torch.tensor([0, 6])}, ValueError, "query_ptr splits the rows of query: it needs query"),
    ((X, 1), {"query": X, "query_ptr": torch.tensor([0, 6])}, ValueError,
     "query_ptr needs ptr, which splits the rows of x the same way"),
    ((X, 1), {"query": X, "ptr": torch.tensor([0, 6]), "query_ptr": torch.tensor([0, 3, 6])}, ValueError,
     "query_ptr must have the shape of ptr, (2,), got (3,)"),
    ((X, 1), {"query": X, "ptr": torch.tensor([0, 6]), "query_ptr": torch.tensor([0, 3])}, ValueError,
     "query_ptr must rise from 0 to the rows of query, 6, without falling, got [0, 3]"),
]  # fmt: skip

FUNCTIONS = pytest.mark.parametrize("functions", [ik, ik.reference], ids=["ours", "reference"])


@FUNCTIONS
@pytest.mark.parametrize("args, options, exception, message", CASES, ids=[case[3][:60] for case in CASES])
def test_message(args, options, exception, message, functions):
    with pytest.raises(exception) as raised:
        functions.knn(*args, **options)
    assert type(raised.value) is exception
    assert str(raised.value) == message


@FUNCTIONS
@pytest.mark.parametrize("name", ["x", "query"])
def test_no_tangent_is_lost(functions, name):
    """A distance has a derivative: forward-mode AD would find a zero, and say nothing."""

    def search(points):
        return functions.knn(points, 2)[1] if name == "x" else functions.knn(X, 2, query=points)[1]

    message = f"{name} has a tangent, but no derivative is computed for it: pass {name}.detach()"
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.func.jvp(search, (X,), (X,))
    with forward_ad.dual_level(), pytest.raises(ValueError, match=re.escape(message)):
        search(forward_ad.make_dual(X, X))
    with forward_ad.dual_level():
        assert torch.equal(search(forward_ad.make_dual(X, X).detach()), search(X))
