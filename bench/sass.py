"""What the Triton kernels cost, read from ahead-of-time compiled code: no GPU needed.

    python -m bench.sass [--arch 80 90 100] [--json FILE] [--baseline]

An instruction count is the warp instructions that a program executes x 32 / its elements: prologue,
reduction and patch included, NOP left out. Kernels are straight-line code but for short predicated
blocks and branches whose outcome the case states; any other control flow is an error, never a guess.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from imbal_kernels.kernels import count, rescale, sigmoid, softmax
from imbal_kernels.kernels.launch import Launch

TYPES = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
ROWS = 100_000
BASELINE = Path(__file__).parent / "static.json"
ARCHITECTURES = (80, 90, 100)
# Issue slots (lanes of warp instructions) that a machine has while it moves a byte: SMs x 4 x 32 x clock over
# memory bandwidth. An element that needs more than its bytes' worth of them is bound by issue.
SLOTS_PER_BYTE = {80: {"A100": 9.6}, 90: {"H100": 9.75, "H200": 6.75}, 100: {"B200": 4.4}}
SHORT_BLOCK = 32


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
    """A launch to compile. taken: the outcome of each longer conditional branch; None: no count."""

    launch: Callable[[], Launch]
    taken: Sequence[bool] | None = ()


def sigmoid_launch(classes=80, dtype=torch.float32, gamma=2.0, target=torch.int64, dense=False, smoothing=0.0,
                   loss=sigmoid.SUM, weight=None, upstream=None, alpha=0.25, index=0):  # fmt: skip
    """The launch that the wrapper would make, on tensors without data."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits = torch.empty(ROWS, classes, dtype=dtype, device="meta")
    targets = torch.empty((ROWS, classes) if dense else ROWS, dtype=target, device="meta")
    weights = None if weight is None else torch.empty(weight, dtype=compute, device="meta")
    grads = None if upstream is None else torch.empty(upstream, dtype=compute, device="meta")
    _, _, launches = sigmoid.plan(
        logits, targets, weights, None, None, None, grads, alpha, gamma, smoothing, 1.0, -100, loss, True, False
    )
    return launches[index]


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
    return rescale.plan(torch.empty(ROWS, dtype=dtype, device="meta"), torch.empty((), device="meta"))


def _case(taken=(), **options):
    return Case(lambda: sigmoid_launch(**options), taken)


def _softmax(classes, taken=(), positions=(), **options):
    return Case(lambda: softmax_launch((16 if positions else ROWS, classes, *positions), **options), taken)


BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
TAIL = (True,)  # the branch over the last elements of the last program
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
    "softmax fp32 C=10": _softmax(10),
    "softmax fp32 C=64": _softmax(64),
    "softmax fp32 C=80": _softmax(80),
    "softmax bf16 C=80": _softmax(80, dtype=BF16),
    "softmax fp32 C=81": _softmax(81),
    "softmax bf16 C=91": _softmax(91, dtype=BF16),
    "softmax fp32 C=512": _softmax(512),
    "softmax fp32 C=1000": _softmax(1000),
    "softmax bf16 C=1000": _softmax(1000, dtype=BF16),
    "softmax fp32 C=1203": _softmax(1203),
    "softmax bf16 C=4096": _softmax(4096, dtype=BF16),
    "softmax fp32 C=16384": _softmax(16384),
    "softmax focal fp32 C=80": _softmax(80, gamma=2.0),
    "softmax focal fp32 C=1000 general gamma, weight": _softmax(1000, gamma=2.7, weight=True),
    "softmax focal fp32 C=80 smoothing, weight": _softmax(80, gamma=2.0, smoothing=0.1, weight=True),
    "softmax focal fp32 C=80 probabilities": _softmax(80, gamma=2.0, probabilities=True),
    "softmax fp64 C=1000": _softmax(1000, None, dtype=FP64),
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
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.args[parameter.name]
        aligned = isinstance(value, torch.Tensor)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif aligned:
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = parameter.annotation_type
            aligned = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def executed(sass: str, taken: Sequence[bool]) -> list[str]:
    """The instructions from entry to exit. A block of a few instructions that a forward branch jumps
    over counts as executed, as predicated code does; for a longer one the outcome must be stated."""
    code = [(int(at, 16), text.strip()) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", sass)]
    index, path, outcomes, i = {at: i for i, (at, _) in enumerate(code)}, [], list(taken), 0
    while True:
        at, text = code[i]
        predicate, op = re.findall(r"^(@!?\w+ )?(\S+)", text)[0]
        path.append(text)
        if op == "EXIT" and not predicate:
            break
        if re.match(r"(CALL|RET|BRX|JMP|JMX|BREAK|BRXU)\b", op):
            raise ValueError(f"cannot count: {text} at {at:#x}")
        i += 1
        if op.split(".")[0] == "BRA":
            target = index[int(re.findall(r"0x([0-9a-f]+)", text)[0], 16)]
            if target < i:
                raise ValueError(f"cannot count: loop {text} at {at:#x}")
            block = [skipped for _, skipped in code[i:target]]
            short = len(block) <= SHORT_BLOCK and not any("BRA" in text or "EXIT" in text for text in block)
            conditional = predicate or re.search(r"\bU?P\d", text)
            if not conditional:
                i = target
            elif not short:
                if not outcomes:
                    raise ValueError(f"cannot count: the outcome of {text} at {at:#x} is not stated")
                i = target if outcomes.pop(0) else i
    if outcomes:
        raise ValueError(f"cannot count: {len(outcomes)} stated branches were not met")
    return [text for text in path if not text.startswith("NOP")]


def _disassemble(cubin: bytes) -> tuple[str, int, int]:
    """SASS, registers, and bytes of stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return text, int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _widths(path: Sequence[str], op: str) -> dict[str, int]:
    """Accesses by width in bits, predicated or not."""
    found = [re.search(rf"\b{op}\.E\S*", text) for text in path]
    names = [re.search(r"\.(128|64|U16|U8|S8)\b", m.group(0)) for m in found if m]
    widths = [re.sub(r"\D", "", n.group(1)) if n else "32" for n in names]
    return {width: widths.count(width) for width in sorted(set(widths))}


def _elements(args: dict[str, Any]) -> int:
    """What a program works on: true logits of whole rows, what its tiles hold, or what one step of a loop does."""
    if "ROWS" in args:
        return args["ROWS"] * args["groups"] * args["VECTOR"]
    if "STEP" in args:
        return args["STEP"] * args["LANES"]
    return args.get("TILES", 1) * args.get("VECTORS", 1) * 16


def _compile(case: Case, arch: int) -> Report:
    launch = case.launch()
    compiled = triton.compile(_source(launch), target=GPUTarget("cuda", arch, 32), options=launch.options)
    sass, registers, spills = _disassemble(compiled.asm["cubin"])
    path = re.findall(r"/\*[0-9a-f]{4,}\*/\s+([^;/]+);", sass) if case.taken is None else executed(sass, case.taken)
    grad = launch.args.get("grad_ptr")
    per_thread = _elements(launch.args) / (32 * launch.num_warps)
    return Report(
        instructions=None if case.taken is None else len(path) / per_thread,
        mufu=sum("MUFU" in text for text in path) / per_thread,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        ffma=sum(bool(re.search(r"\bFFMA", text)) for text in path) / per_thread,
        loads=_widths(path, "LDG"),
        stores=_widths(path, "STG"),
        programs=launch.programs,
        bytes=0 if grad is None else 2 * grad.element_size(),
    )


def _key(name: str, arch: int) -> str:
    kernels = Path(sigmoid.__file__).parent
    sources = [Path(__file__), *sorted(kernels.glob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    digest.update(f"{name}|{arch}|{triton.__version__}|{torch.__version__}|{knobs.nvidia.ptxas.version}".encode())
    return digest.hexdigest()[:24]


def report(name: str, arch: int = 90) -> Report:
    """A case's report, from the cache when neither the sources nor the compilers have changed."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "imbal_kernels" / "sass" / f"{_key(name, arch)}.json"
    if path.exists():
        return Report(**json.loads(path.read_text()))
    result = _compile(CASES[name], arch)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(result)))
    partial.replace(path)
    return result


def version() -> str:
    """What a count depends on besides the source: a baseline holds for one of these."""
    return f"triton {triton.__version__}, ptxas {knobs.nvidia.ptxas.version}"


def baseline() -> dict[str, dict[str, dict[str, object]]]:
    """Committed reports by case and architecture, for the compilers in use; empty for others."""
    return json.loads(BASELINE.read_text()).get(version(), {}) if BASELINE.exists() else {}


def _row(name: str, arch: int, r: Report) -> str:
    instructions = "-" if r.instructions is None else f"{r.instructions:.2f}"
    bounds = {machine: r.issue_bound(slots) for machine, slots in SLOTS_PER_BYTE[arch].items()}
    bound = ", ".join(f"{machine} {value:.0%}" for machine, value in bounds.items() if value)
    row = f"{name:50}{arch:>5}{instructions:>9}{r.ffma:>7.2f}{r.mufu:>6.2f}{r.registers:>6}{r.spills:>7}{r.shared:>8}"
    return f"{row}  {bound:20} {r.loads} {r.stores}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the kernels cost, from ahead-of-time compiled code.")
    parser.add_argument("--arch", type=int, nargs="+", default=[90], choices=ARCHITECTURES)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports there")
    parser.add_argument(
        "--baseline", action="store_true", help=f"make them what the tests compare with, {BASELINE.name}"
    )
    options = parser.parse_args()
    print(version())
    print("instr, FFMA, MUFU: an element. loads, stores: accesses by bits. bound: what issue leaves of the roofline")
    heads = f"{'instr':>9}{'FFMA':>7}{'MUFU':>6}{'regs':>6}{'spills':>7}{'shared':>8}"
    print(f"{'case':50}{'sm':>5}{heads}  {'bound':20} loads, stores")
    found: dict[str, dict[str, dict[str, object]]] = {}
    for name in (name for name in CASES if options.only in name):
        for arch in options.arch:
            r = report(name, arch)
            found.setdefault(name, {})[str(arch)] = asdict(r)
            print(_row(name, arch, r), flush=True)
    if options.json:
        options.json.write_text(json.dumps({version(): found}, indent=1) + "\n")
    if options.baseline:
        kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        for name, reports in found.items():
            kept.setdefault(version(), {}).setdefault(name, {}).update(reports)
        BASELINE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
