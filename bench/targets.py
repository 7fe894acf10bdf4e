"""What is to be reached on a CPU with 2 threads in fp32, as ratios within one run."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness import COPY, Result


@dataclass(frozen=True)
class Target:
    """At most `goal` times a contestant's time, or at least `goal` times faster than it."""

    workload: str
    against: str
    goal: float

    @property
    def wanted(self) -> str:
        return f"at most {self.goal:g}x its time" if self.against == COPY else f"at least {self.goal:g}x faster"

    def verdict(self, results: Sequence[Result]) -> tuple[str, str]:
        """What was measured, and "reached", "not reached" or "not measured"."""
        result = next((r for r in results if r.name == self.workload), None)
        row = result.row(self.against) if result else None
        if row is None:
            return "", "not measured"
        if self.against == COPY:
            return f"{1 / row.ratio:.2f}x", "reached" if 1 / row.ratio <= self.goal else "not reached"
        return f"{row.ratio:.1f}x", "reached" if row.ratio >= self.goal else "not reached"


FOCAL = "sigmoid focal, 100000 x 80 float32"
CROSS_ENTROPY = "weighted cross-entropy, 20000 x 1000 float32"
SOFTMAX_FOCAL = "softmax focal, 20000 x 1000 float32"
DENSE = "dense multi-level focal, RetinaNet 800x1333 float32"
NEIGHBORS = ("knn, 10000 x 32 float32", "knn, 20000 x 128 float32")
SMOTE = ("smote, 100000 x 32, 10 % minority, float32", "smote, 80000 x 128, 25 % minority, float32")

TARGETS = (
    Target(FOCAL, COPY, 1.3),
    Target(FOCAL, "torchvision eager, dense", 45),
    Target(FOCAL, "torchvision compiled, dense", 14),
    Target(CROSS_ENTROPY, "torch eager", 10),
    Target(CROSS_ENTROPY, "torch compiled", 4),
    Target(SOFTMAX_FOCAL, "cross-entropy, torch eager", 10),
    Target(SOFTMAX_FOCAL, "cross-entropy, torch compiled", 4),
    Target(DENSE, "torchvision eager", 60),
    Target(DENSE, "torchvision compiled", 15),
    *(
        Target(name, against, goal)
        for name in NEIGHBORS
        for against, goal in (("scikit-learn", 3), ("faiss-cpu", 1.5), ("cdist + topk", 3))
    ),
    *(Target(name, "imbalanced-learn", 3) for name in SMOTE),
)


def table(results: Sequence[Result], all_of_them: bool = True) -> str:
    """A line for each target, or for those that were measured."""
    lines = [f"{'workload':54}{'against':30}{'goal':24}{'measured':>10}"]
    for target in TARGETS:
        measured, verdict = target.verdict(results)
        if measured or all_of_them:
            lines.append(f"{target.workload:54}{target.against:30}{target.wanted:24}{measured:>10}  {verdict}")
    return "\n".join(lines)
