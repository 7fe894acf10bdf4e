"""The search's workloads: exact neighbours of a set against itself, and whoever else finds them.

Each is asked for K neighbours of every point besides itself.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import imbal_kernels as ik
from bench.harness import OURS, Contestant, Workload
from bench.inputs import sizes

PEERS = ("scikit-learn", "faiss-cpu", "cdist + topk", "torch-cluster", "pykeops")
SHAPES = {"cpu": ("10000x32", "20000x128"), "cuda": ("100000x32", "100000x128")}
MORE_SHAPES = {"cpu": (), "cuda": ("100000x16", "100000x256")}
DTYPES = {"cpu": ("float32",), "cuda": ("float32",)}
K = 5
ROOF = "matmul, 2048 x 2048"
MODEL = (
    "flops of the products of all pairs, each pair once: n (n - 1) d; fp32; "
    f"{K} neighbours; memory is that of tensors"
)
CHUNK = 2048  # rows that cdist + topk works on at a time


@dataclass(frozen=True)
class Problem:
    """Standard normal points."""

    x: Tensor

    @classmethod
    def random(cls, rows: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Problem":
        return cls(torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device, dtype))

    @property
    def flops(self) -> int:
        n, d = self.x.shape
        return n * (n - 1) * d

    @cached_property
    def sample(self) -> Tensor:
        """Rows that are compared with the reference; all of them would take it minutes."""
        n = self.x.shape[0]
        return torch.arange(0, n, max(1, n // 256), device=self.x.device)

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Indices and squared distances of the sample, by the reference."""
        indices, distances = ik.reference.knn(self.x, min(K + 1, len(self.x)), query=self.x[self.sample])
        others = indices != self.sample[:, None]
        others[others.all(1), -1] = False
        return indices[others].view(-1, K), distances[others].view(-1, K)

    def check_exact(self, name: str, result: tuple[Tensor, Tensor]) -> None:
        for what, got, true in zip(("indices", "distances"), result, self.expected, strict=True):
            if not torch.equal(got[self.sample], true):
                raise AssertionError(f"{name}, {what}: not those of the reference")

    def check(self, name: str, indices: Tensor) -> None:
        """A peer's neighbours, own index among them or not: as near as the true ones, to fp32's rounding."""
        own = self.sample[:, None]
        found = indices.to(self.x.device)[self.sample]
        others = found != own
        if found.shape[1] > K:
            others[others.all(1), -1] = False
        chosen = self.x[found[others].view(-1, K)].double()
        distances = (chosen - self.x[own].double()).square().sum(2).sort(1).values
        try:
            torch.testing.assert_close(distances, self.expected[1], rtol=1e-4, atol=0)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def _scikit_learn(x: Tensor) -> Callable[[], Tensor]:
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    points = x.numpy()

    def run() -> Tensor:
        with threadpool_limits(torch.get_num_threads()):
            return torch.from_numpy(NearestNeighbors(n_neighbors=K).fit(points).kneighbors(return_distance=True)[1])

    return run


def _faiss(x: Tensor) -> Callable[[], Tensor]:
    import faiss

    points = x.numpy()

    def run() -> Tensor:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        return torch.from_numpy(index.search(points, K + 1)[1])

    return run


def _cdist(x: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.cat([torch.cdist(part, x).topk(K + 1, largest=False).indices for part in x.split(CHUNK)])


def _torch_cluster(x: Tensor) -> Callable[[], Tensor]:
    from torch_cluster import knn

    return lambda: knn(x, x, K + 1)[1].view(-1, K + 1)


def _pykeops(x: Tensor) -> Callable[[], Tensor]:
    from pykeops.torch import LazyTensor

    return lambda: ((LazyTensor(x[:, None]) - LazyTensor(x[None])) ** 2).sum(2).argKmin(K + 1, dim=1)


# How to build each, the module it comes in, and whether it takes tensors of a GPU.
_PEERS: dict[str, tuple[Callable[[Tensor], Callable[[], Tensor]], str, bool]] = {
    "scikit-learn": (_scikit_learn, "sklearn", False),
    "faiss-cpu": (_faiss, "faiss", False),
    "cdist + topk": (_cdist, "torch", True),
    "torch-cluster": (_torch_cluster, "torch_cluster", True),
    "pykeops": (_pykeops, "pykeops", True),
}


def matmul(device: torch.device) -> Contestant:
    """The roof: what BLAS makes of the machine. A kernel for a wider instruction set than BLAS picks can pass it."""
    square = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)).to(device)
    return Contestant(lambda: square @ square, 2 * 2048**3)


def contestants(problem: Problem, chosen: Sequence[str] = PEERS) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Everyone by name, and the peers that are missing with the reason."""
    x, flops = problem.x, problem.flops
    entries, missing = {ROOF: matmul(x.device)}, {}

    def enter(name: str, run: Callable[[], Tensor], in_tensors: bool = True) -> None:
        entries[name] = Contestant(run, flops, lambda: problem.check(name, run()), in_tensors=in_tensors)

    entries[OURS] = Contestant(lambda: ik.knn(x, K), flops, lambda: problem.check_exact(OURS, ik.knn(x, K)))
    # The same work without the symmetry: what other queries than x cost.
    apart = x.clone()
    enter("ours, x as query", lambda: ik.knn(x, K + 1, query=apart)[0])
    for name in chosen:
        if name not in _PEERS:
            continue
        build, module, on_gpu = _PEERS[name]
        if importlib.util.find_spec(module) is None:
            missing[name] = "not installed"
        elif x.is_cuda and not on_gpu:
            missing[name] = "runs on a CPU"
        elif x.dtype != torch.float32:
            missing[name] = f"not run in {x.dtype}"
        else:
            enter(name, build(x), on_gpu)
    return entries, missing


def workloads(
    device: str, dtypes: Sequence[str], shapes: Sequence[str], chosen: Sequence[str], compiled: bool
) -> Iterator[Workload]:
    """One at a time; `compiled` is the losses' concern."""
    for rows, columns, dtype in sizes(shapes, dtypes):
        entries, missing = contestants(Problem.random(rows, columns, device, getattr(torch, dtype)), chosen)
        yield Workload(
            f"knn, {rows} x {columns} {dtype}", device, MODEL, entries, missing, roof=ROOF, unit="GFLOP/s"
        )
