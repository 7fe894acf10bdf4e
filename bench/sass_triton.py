"""Every Triton kernel as the wrappers would launch it, compiled ahead of time."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import disassembly
from imbal_kernels.kernels import count, levels, rescale, sigmoid, softmax
from imbal_kernels.kernels.launch import Launch

TYPES = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
ROWS = 100_000


@dataclass(frozen=True)
class Report:
    instructions: float | None  # per element; None where the case asks for no count
    mufu: float
    registers: int
    spills: int  # bytes of local memory a thread
    shared: int  # bytes of shared memory a program
    ffma: float
    loads: dict[str, int]
    stores: dict[str, int]
    programs: int
    bytes: int  # an element: what it reads of the logits and writes of their gradient

    def issue_bound(self, slots_per_byte: float) -> float | None:
        """The fraction of the memory roofline that instruction issue leaves; None without a count."""
        if not self.instructions or not self.bytes:
            return None
        return min(1.0, slots_per_byte * self.bytes / self.instructions)


@dataclass(frozen=True)
class Case:
    """A launch to compile. taken: the outcome of each longer conditional branch, or the most branches of which the
    shorter way counts; None: no count. repeats: how often its loop goes back."""

    launch: Callable[[], Launch]
    taken: Sequence[bool] | int | None = ()
    repeats: int = 0

    def path(self, sass: str) -> list[str]:
        if self.taken is None:
            return disassembly.instructions(sass)
        if isinstance(self.taken, int):
            return disassembly.shortest(sass, self.taken)
        return disassembly.executed(sass, self.taken, self.repeats)


def sigmoid_launch(classes=80, dtype=torch.float32, gamma=2.0, target=torch.int64, dense=False, smoothing=0.0,
                   loss=sigmoid.SUM, weight=None, upstream=None, alpha=0.25, index=0,
                   scored=False, formula="focal", gamma_pos=0.0, clip=0.0):  # fmt: skip
    """The launch that the wrapper would make, on tensors without data."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits = torch.empty(ROWS, classes, dtype=dtype, device="meta")
    targets = torch.empty((ROWS, classes) if dense else ROWS, dtype=target, device="meta")
    weights = None if weight is None else torch.empty(weight, dtype=compute, device="meta")
    grads = None if upstream is None else torch.empty(upstream, dtype=compute, device="meta")
    scores = torch.empty(ROWS, dtype=compute, device="meta") if scored else None
    _, _, launches = sigmoid.plan(
        logits, targets, weights, None, None, None, grads, alpha, gamma, smoothing, 1.0, -100, loss, True, False,
        scores, formula, gamma_pos, clip,
    )
    return launches[index]


def head_launch(classes=80, dtype=torch.float32, gamma=2.0, smoothing=0.0, weight=None, scored=False, alpha=0.25,
                formula="focal", index=0, by_class=False, rows=False):  # fmt: skip
    """One of the two launches for the five levels of RetinaNet on 800 x 1344: the first two levels have H * W % 8 = 0,
    the others' is odd or leaves 2. rows: the one launch for them as channels-last rows."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(1, 9, h * w) for h, w in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))]
    logits = [torch.empty(n, a, classes, s, dtype=dtype, device="meta") for n, a, s in shapes]
    if rows:
        sizes = [x.shape[1] * x.shape[3] for x in logits]
        logits = [torch.empty(n, classes, dtype=dtype, device="meta").t()[None, None] for n in sizes]
    labels = [torch.empty(shape, dtype=torch.int64, device="meta") for shape in shapes]
    weights = [] if weight is None else [torch.empty(weight, dtype=compute, device="meta")] * len(shapes)
    scores = [torch.empty(n * a * s, dtype=compute, device="meta") for n, a, s in shapes] if scored else []
    return levels.plan(
        logits, labels, weights, [], None, None, None, alpha, gamma, smoothing, 1.0, -100, sigmoid.SUM, True, scores,
        formula, 0.0, 0.0, by_class, rows,
    )[3][index]  # fmt: skip


def softmax_launch(shape=(ROWS, 80), dtype=torch.float32, gamma=0.0, probabilities=False, smoothing=0.0, weight=False):
    """The launch that the wrapper would make for int64 class ids or probabilities, on tensors without data."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits = torch.empty(shape, dtype=dtype, device="meta")
    ids = torch.empty((shape[0], *shape[2:]), dtype=torch.int64, device="meta")
    weights = torch.empty(shape[1], dtype=compute, device="meta") if weight else None
    _, _, launches = softmax.plan(
        logits, logits if probabilities else ids, weights, None, None, None, gamma, smoothing, 1.0, -100,
        softmax.SUM, True, False,
    )  # fmt: skip
    return launches[0]


def _count_launch(dense):
    shape, dtype = ((ROWS, 80), torch.float32) if dense else (ROWS, torch.int64)
    return count.plan(torch.empty(shape, dtype=dtype, device="meta"), 80, -100, dense, True)[1][0]


def _rescale_launch(dtype):
    return rescale.plan([torch.empty(ROWS, dtype=dtype, device="meta")], torch.empty((), device="meta"))


def _case(taken=(), **options):
    return Case(lambda: sigmoid_launch(**options), taken)


def _softmax(classes, taken=3, positions=(), **options):
    """taken: round what a row with a +inf needs, or of a few classes what the last program does for each tensor."""
    return Case(lambda: softmax_launch((16 if positions else ROWS, classes, *positions), **options), taken)


def _head(classes=80, taken=(False,), **options):  # there are classes enough for the loop
    step = levels.BY_CLASS[0] if options.get("by_class") else levels.STEP
    if options.get("rows"):
        step = levels.ROWS_BY_CLASS[0]
    repeats = classes // step - 1
    return Case(lambda: head_launch(classes, **options), taken, repeats)


BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
TAIL = (True,)  # the branch over the last elements of the last program
ASYMMETRIC = {"alpha": -1.0, "gamma": 4.0, "gamma_pos": 1.0, "clip": 0.05, "formula": "asymmetric"}
CASES = {
    "focal fp32 C=80": _case(),
    "focal bf16 C=80": _case(dtype=BF16),
    "focal fp16 C=80": _case(dtype=FP16),
    "focal fp32 C=91": _case(TAIL, classes=91),
    "focal bf16 C=91": _case(TAIL, classes=91, dtype=BF16),
    "focal fp32 C=1203": _case(TAIL, classes=1203),
    "focal bf16 C=1203": _case(TAIL, classes=1203, dtype=BF16),
    "focal fp32 general gamma": _case(gamma=2.7),
    "focal bf16 general gamma": _case(gamma=2.7, dtype=BF16),
    "focal bf16 alpha 1": _case(dtype=BF16, alpha=1.0),
    "bce fp32 C=80": _case(gamma=0.0),
    "focal fp32 (C,) weight": _case(weight=(1, 80)),
    "focal fp32 C=1203 (C,) weight": _case(TAIL, classes=1203, weight=(1, 1203)),
    "focal fp32 elementwise": _case(loss=sigmoid.ELEMENTWISE, upstream=(ROWS, 80)),
    "focal fp32 C=4": _case(None, classes=4),
    "focal fp32 dense bool": _case(target=torch.bool, dense=True),
    "focal fp32 dense float": _case(target=FP32, dense=True),
    "focal fp32 smoothing, general gamma": _case(gamma=2.7, smoothing=0.1),
    "focal fp64": _case(None, dtype=FP64),
    "quality fp32 scores C=80": _case(alpha=-1.0, scored=True, formula="quality_focal"),
    "quality bf16 scores C=91": _case(TAIL, classes=91, dtype=BF16, alpha=-1.0, scored=True, formula="quality_focal"),
    "quality fp32 dense float": _case(alpha=-1.0, target=FP32, dense=True, formula="quality_focal"),
    "varifocal fp32 scores C=80": _case(alpha=0.75, scored=True, formula="varifocal"),
    "varifocal fp32 dense float": _case(alpha=0.75, target=FP32, dense=True, formula="varifocal"),
    "asymmetric fp32 C=80": _case(**ASYMMETRIC),
    "asymmetric bf16 C=80": _case(dtype=BF16, **ASYMMETRIC),
    "asymmetric fp32 dense bool": _case(target=torch.bool, dense=True, **ASYMMETRIC),
    "asymmetric fp32 no clip C=80": _case(**ASYMMETRIC | {"clip": 0.0}),
    "head fp32 C=80": _head(),
    "head bf16 C=80": _head(dtype=BF16),
    "head fp16 C=80": _head(dtype=FP16),
    "head fp32 C=80 odd H * W": _head(index=1),
    "head bf16 C=80 odd H * W": _head(index=1, dtype=BF16),
    "head fp32 C=91": _head(91),
    "head bf16 C=91": _head(91, dtype=BF16),
    "head bf16 C=91 odd H * W": _head(91, index=1, dtype=BF16),
    "head fp32 C=4": _head(4),
    "head fp32 (C,) weight": _head(weight=(1, 80)),
    "head fp32 scores": _head(scored=True, alpha=-1.0, formula="quality_focal"),
    "head fp32 smoothing": _head(smoothing=0.1),
    "head fp32 sums by class": _head(by_class=True),
    "head bf16 sums by class": _head(dtype=BF16, by_class=True),
    "rows fp32 sums by class": _head(by_class=True, rows=True),
    "rows bf16 sums by class": _head(dtype=BF16, by_class=True, rows=True),
    "head fp64": _head(taken=None, dtype=FP64),
    "softmax fp32 C=2": _softmax(2),
    "softmax fp32 C=3": _softmax(3),
    "softmax fp32 C=4": _softmax(4),
    "softmax fp32 C=5": _softmax(5),
    "softmax bf16 C=3": _softmax(3, dtype=BF16),
    "softmax focal fp32 C=2 weight": _softmax(2, gamma=2.0, weight=True),
    "softmax focal fp32 C=3 probabilities": _softmax(3, gamma=2.0, probabilities=True),
    "softmax focal fp32 C=8 smoothing, weight": _softmax(8, gamma=2.0, smoothing=0.1, weight=True),
    "softmax fp64 C=4": _softmax(4, None, dtype=FP64),
    "softmax fp32 C=9": _softmax(9),
    "softmax fp32 C=10": _softmax(10),
    "softmax fp32 C=17": _softmax(17),
    "softmax bf16 C=33": _softmax(33, dtype=BF16),
    "softmax fp32 C=64": _softmax(64),
    "softmax fp32 C=80": _softmax(80),
    "softmax bf16 C=80": _softmax(80, dtype=BF16),
    "softmax fp32 C=81": _softmax(81),
    "softmax bf16 C=91": _softmax(91, dtype=BF16),
    "softmax fp32 C=512": _softmax(512),
    "softmax fp32 C=1000": _softmax(1000),
    "softmax bf16 C=1000": _softmax(1000, dtype=BF16),
    "softmax fp32 C=1203": _softmax(1203),
    "softmax bf16 C=1203": _softmax(1203, dtype=BF16),
    "softmax bf16 C=4096": _softmax(4096, dtype=BF16),
    "softmax fp32 C=16384": _softmax(16384),
    "softmax focal fp32 C=80": _softmax(80, gamma=2.0),
    "softmax focal fp32 C=1000 general gamma, weight": _softmax(1000, gamma=2.7, weight=True),
    "softmax fp32 C=16384 probabilities": _softmax(16384, None, probabilities=True),
    "softmax focal bf16 C=16384 probabilities": _softmax(16384, None, dtype=BF16, gamma=2.0, probabilities=True),
    "softmax fp32 C=8192 probabilities": _softmax(8192, probabilities=True),
    "softmax focal fp32 C=80 smoothing, weight": _softmax(80, gamma=2.0, smoothing=0.1, weight=True),
    "softmax focal fp32 C=80 probabilities": _softmax(80, gamma=2.0, probabilities=True),
    "softmax fp64 C=1000": _softmax(1000, None, dtype=FP64),
    "softmax fp32 C=32001": _softmax(32001, None),
    "softmax fp32 C=131072": _softmax(131072, None),
    "softmax bf16 C=131072": _softmax(131072, None, dtype=BF16),
    "softmax fp32 19 classes inside": _softmax(19, None, (512 * 512,)),
    "softmax focal bf16 19 classes inside": _softmax(19, None, (512 * 512,), dtype=BF16, gamma=2.0),
    "sum": Case(lambda: sigmoid_launch(index=1), None),
    "count ids": Case(lambda: _count_launch(False), None),
    "count dense": Case(lambda: _count_launch(True), None),
    "rescale fp32": Case(lambda: _rescale_launch(FP32), None),
    "rescale bf16": Case(lambda: _rescale_launch(BF16), None),
}


def _source(launch: Launch) -> ASTSource:
    """The specialisation that the launch would pick, with 16-byte aligned tensors."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.args[parameter.name]
        aligned = isinstance(value, torch.Tensor)
        if isinstance(value, tuple):  # of tensors, or of sizes that Triton has nothing to specialise on
            signature[parameter.name] = tuple(TYPES[v.dtype] if isinstance(v, torch.Tensor) else "i32" for v in value)
            for j, v in enumerate(value):
                if isinstance(v, torch.Tensor):
                    attributes[(i, j)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif aligned:
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = parameter.annotation_type
            aligned = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _elements(args: dict[str, Any]) -> int:
    """What a program works on: true logits of whole rows, what its tiles hold, or what one step of a loop does."""
    if "CLASSES" in args:
        return 4 * args["THREADS"] * args["CLASSES"]
    if "ROWS" in args:
        return args["ROWS"] * args["x_ptr"].shape[1]
    if "POSITIONS" in args:
        return args["POSITIONS"] * args["C"]
    if "STEP" in args:
        return args["STEP"] * args["LANES"]
    return args.get("TILES", 1) * args.get("VECTORS", 1) * 16


def compile_case(case: Case, arch: int) -> Report:
    launch = case.launch()
    compiled = triton.compile(_source(launch), target=GPUTarget("cuda", arch, 32), options=launch.options)
    (code,) = disassembly.functions(compiled.asm["cubin"]).values()
    path = case.path(code.sass)
    grad = launch.args.get("grad_ptr")
    per_thread = _elements(launch.args) / (32 * launch.num_warps)
    return Report(
        instructions=None if case.taken is None else len(path) / per_thread,
        mufu=disassembly.count(path, "MUFU") / per_thread,
        registers=code.registers,
        spills=code.spills,
        shared=compiled.metadata.shared,
        ffma=disassembly.count(path, "FFMA") / per_thread,
        loads=disassembly.widths(path, "LDG"),
        stores=disassembly.widths(path, "STG"),
        programs=launch.programs,
        bytes=0 if grad is None else 2 * grad.element_size(),
    )


def version() -> str:
    """What a count depends on besides the source: a baseline holds for one of these."""
    return f"triton {triton.__version__}, ptxas {knobs.nvidia.ptxas.version}"


def digest() -> str:
    """Of all that a report depends on but the case and the architecture."""
    here, kernels = Path(__file__), Path(sigmoid.__file__).parent
    sources = [here, here.with_name("disassembly.py"), *sorted(kernels.glob("*.py"))]
    found = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    found.update(f"{version()}|{torch.__version__}".encode())
    return found.hexdigest()[:24]
