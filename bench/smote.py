"""SMOTE's workloads, end to end: rows and labels in, balanced rows and labels out.

Two classes; the search among the minority, the draws, the new rows and the copy of the old ones are all timed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import imbal_kernels as ik
from bench import neighbors
from bench.harness import OURS, Contestant, Workload
from bench.inputs import sizes
from imbal_kernels.reference.sampling import synthesize
from imbal_kernels.sampling.resampling import draw_key

PEERS = ("imbalanced-learn",)
SHAPES = {"cpu": ("100000x32", "80000x128"), "cuda": ("100000x32", "80000x128")}
MORE_SHAPES: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": ()}
DTYPES = {"cpu": ("float32",), "cuda": ("float32",)}
PERCENT = {"80000x128": 25}  # of the rows that are the minority's; 10 in other shapes
K = 5
ESTIMATOR = "ours, estimator"


@dataclass(frozen=True)
class Problem:
    """Standard normal rows; class 1 is the minority and shall grow to the majority's size."""

    x: Tensor  # (n, d)
    y: Tensor  # (n,) 0 or 1

    @classmethod
    def random(
        cls, rows: int, columns: int, percent: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Problem":
        g = torch.Generator().manual_seed(0)
        x, order = torch.randn(rows, columns, generator=g), torch.randperm(rows, generator=g)
        return cls(x.to(device, dtype), (order < rows * percent // 100).long().to(device))

    @cached_property
    def rows(self) -> Tensor:
        """The minority's: (m,) int64."""
        return self.y.nonzero()[:, 0]

    @property
    def new(self) -> int:
        return len(self.y) - 2 * len(self.rows)

    @property
    def flops(self) -> int:
        return neighbors.Problem(self.x[self.rows]).flops

    @property
    def model(self) -> str:
        written = (len(self.y) + self.new) * self.x.shape[1] * self.x.element_size()
        return (
            "flops of the search, the products of all pairs of the minority's m rows, each pair once: m (m - 1) d; "
            f"m = {len(self.rows)}, {K} neighbours; {written / 1e6:.0f} MB of rows are written besides; "
            "memory is that of tensors"
        )

    def check_exact(self) -> None:
        """Ours, bit for bit: the neighbours of a sample, then all rows that the reference makes from them."""
        minority = self.x[self.rows]
        found = ik.knn(minority, K)
        neighbors.Problem(minority).check_exact(f"{OURS}, neighbours", found)
        key = draw_key(torch.Generator().manual_seed(0))
        made = synthesize(self.x, self.rows, self.rows[found[0]], 1, key, self.new)[0]
        x, y = ik.smote(self.x, self.y, generator=torch.Generator().manual_seed(0))
        if not (torch.equal(x, torch.cat((self.x, made))) and torch.equal(y, self._labels)):
            raise AssertionError(f"{OURS}: not the rows or labels of the reference")

    def check(self, name: str, x: Tensor, y: Tensor) -> None:
        """A peer's: the old rows first, and a sample of the new ones on a segment between a row and a neighbour of it,
        |s - a| + |s - b| = |a - b|, to fp32's rounding."""
        n = len(self.y)
        if not (torch.equal(x[:n], self.x) and torch.equal(y, self._labels)):
            raise AssertionError(f"{name}: not the old rows first, or other labels")
        minority, new = self.x[self.rows].double(), x[n:][:: max(1, self.new // 64)].double()
        indices, squared = ik.knn(self.x[self.rows], K)
        distances = torch.cdist(new, minority, compute_mode="donot_use_mm_for_euclid_dist")
        detour = distances[:, :, None] + distances[:, indices] - squared.sqrt()
        if detour.flatten(1).min(1).values.max() > 1e-5 * squared.max().sqrt():
            raise AssertionError(f"{name}: a new row is not between a row and one of its {K} nearest")

    @cached_property
    def _labels(self) -> Tensor:
        return torch.cat((self.y, self.y.new_ones(self.new)))


def _estimator(sampler: type, problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    from threadpoolctl import threadpool_limits

    x, y = problem.x.cpu().numpy(), problem.y.cpu().numpy()
    device = problem.x.device

    def run() -> tuple[Tensor, Tensor]:
        with threadpool_limits(torch.get_num_threads()):
            found = sampler(k_neighbors=K, random_state=0).fit_resample(x, y)
        return torch.from_numpy(found[0]).to(device), torch.from_numpy(found[1]).to(device)

    return run


def contestants(problem: Problem, chosen: Sequence[str] = PEERS) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Everyone by name, and the peers that are missing with the reason."""
    entries = {
        neighbors.ROOF: neighbors.matmul(problem.x.device),
        OURS: Contestant(lambda: ik.smote(problem.x, problem.y, k_neighbors=K), problem.flops, problem.check_exact),
    }

    def enter(name: str, run: Callable[[], tuple[Tensor, Tensor]]) -> None:
        entries[name] = Contestant(run, problem.flops, lambda: problem.check(name, *run()), in_tensors=False)

    peers = [name for name in PEERS if name in chosen]
    if problem.x.dtype != torch.float32:
        return entries, dict.fromkeys(peers, f"not run in {problem.x.dtype}")
    try:
        from imblearn import over_sampling as theirs

        from imbal_kernels import imblearn as ours
    except ModuleNotFoundError:
        return entries, dict.fromkeys(peers, "not installed")
    if not problem.x.is_cuda:
        enter(ESTIMATOR, _estimator(ours.SMOTE, problem))
    for name in peers:
        enter(name, _estimator(theirs.SMOTE, problem))
    return entries, {}


def workloads(
    device: str, dtypes: Sequence[str], shapes: Sequence[str], chosen: Sequence[str], compiled: bool
) -> Iterator[Workload]:
    """One at a time; `compiled` is the losses' concern."""
    for rows, columns, dtype in sizes(shapes, dtypes):
        percent = PERCENT.get(f"{rows}x{columns}", 10)
        problem = Problem.random(rows, columns, percent, device, getattr(torch, dtype))
        entries, missing = contestants(problem, chosen)
        name = f"smote, {rows} x {columns}, {percent} % minority, {dtype}"
        yield Workload(name, device, problem.model, entries, missing, roof=neighbors.ROOF, unit="GFLOP/s")
