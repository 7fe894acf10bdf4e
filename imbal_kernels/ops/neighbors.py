"""The nearest-neighbour search as a torch op: schema, fake, and the way to a kernel or to the reference.

What the tensors hold is checked on a CPU, and on a GPU with IMBAL_KERNELS_CHECK=1: looking at it synchronises. Without
that a ptr that does not fit is met on the device, and nothing is found.
"""

import torch
from torch import Tensor

from imbal_kernels.ops import backends
from imbal_kernels.reference import neighbors as reference
from imbal_kernels.sampling.arguments import KnnProblem, check_values

_ARGUMENTS = "Tensor x, Tensor query, Tensor ptr, Tensor query_ptr, int k, bool exclude_self"

# indices (m, k), squared distances (m, k), counts (2,): candidates rescored, queries that fell back
backends.library.define(f"knn({_ARGUMENTS}) -> (Tensor indices, Tensor distances, Tensor counts)")
# The C++ side of the above, with nothing checked.
backends.library.define(f"_knn_cpu({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")

_ops = torch.ops.imbal_kernels


@torch.library.register_fake("imbal_kernels::knn", lib=backends.library)
def _knn_fake(
    x: Tensor, query: Tensor, ptr: Tensor, query_ptr: Tensor, k: int, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (query.shape[0], k)
    return (
        x.new_empty(shape, dtype=torch.int64),
        x.new_empty(shape, dtype=torch.float64),
        x.new_empty((2,), dtype=torch.int64),
    )


@torch.library.impl("imbal_kernels::knn", "CPU", lib=backends.library)
def _knn_cpu(
    x: Tensor, query: Tensor, ptr: Tensor, query_ptr: Tensor, k: int, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor]:
    problem = KnnProblem(x, query, ptr, query_ptr, k, exclude_self)
    check_values(problem)
    if backends.has_op("_knn_cpu", "CPU"):
        return _ops._knn_cpu(*problem)
    return reference.search(problem)


@torch.library.impl("imbal_kernels::knn", "CompositeExplicitAutograd", lib=backends.library)
def _knn_anywhere(
    x: Tensor, query: Tensor, ptr: Tensor, query_ptr: Tensor, k: int, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where no library brought the op. It reads ptr on the host anyway, so it also looks at what it holds."""
    backends.has_kernels(x, backends.MISSING_SAMPLING)  # says so once
    problem = KnnProblem(x, query, ptr, query_ptr, k, exclude_self)
    check_values(problem)
    return reference.search(problem)


def knn(problem: KnnProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, squared distances and counts, by the kernel of the tensors' device where there is one."""
    if problem.x.is_cuda and backends.checks_requested() and not torch.compiler.is_compiling():
        backends.refuse_capture(problem.x)
        check_values(problem)
    return _ops.knn(*problem)
