"""What compiled GPU code does, read from its disassembly."""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from triton import knobs

SHORT_BLOCK = 32
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);")


class Function(NamedTuple):
    """A kernel's SASS, registers, bytes of stack and local memory a thread, and of static shared memory a block."""

    sass: str
    registers: int
    spills: int
    shared: int


def functions(cubin: bytes) -> dict[str, Function]:
    """The kernels of a cubin by their mangled names."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {
        name: dict(re.findall(r"(\w+):(\d+)", numbers))
        for name, numbers in re.findall(r"^ *Function (\S+):\s+(.*)$", text, re.MULTILINE)
    }
    found = {}
    for part in text.split("Function : ")[1:]:
        name = part.split(maxsplit=1)[0]
        number = {key: int(value) for key, value in usage[name].items()}
        found[name] = Function(part, number["REG"], number["STACK"] + number["LOCAL"], number["SHARED"])
    return found


def instructions(sass: str) -> list[str]:
    """All of them, in the order they stand in."""
    return [text.strip() for _, text in _LINE.findall(sass)]


def inner_loop(sass: str, op: str) -> list[str]:
    """The shortest loop that holds most of the code's `op`; nothing where none does."""
    code = [(int(at, 16), text.strip()) for at, text in _LINE.findall(sass)]
    index = {at: i for i, (at, _) in enumerate(code)}
    total = count([text for _, text in code], op)
    best: list[str] = []
    for i, (at, text) in enumerate(code):
        branch = re.match(r"(?:@!?\w+ )?BRA\b.*?0x([0-9a-f]+)", text)
        if branch and int(branch.group(1), 16) <= at:
            body = [text for _, text in code[index[int(branch.group(1), 16)] : i + 1]]
            if 2 * count(body, op) > total and (not best or len(body) < len(best)):
                best = body
    return best


def count(path: Sequence[str], op: str) -> int:
    return sum(bool(re.search(rf"\b{op}", text)) for text in path)


def executed(sass: str, taken: Sequence[bool], repeats: int = 0) -> list[str]:
    """The instructions from entry to exit. A block of a few instructions that a forward branch jumps
    over counts as executed, as predicated code does; for a longer one the outcome must be stated, and how often
    the one loop repeats."""
    code = [(int(at, 16), text.strip()) for at, text in _LINE.findall(sass)]
    index, path, outcomes, i = {at: i for i, (at, _) in enumerate(code)}, [], list(taken), 0
    left, loops = repeats, set()
    while True:
        at, text = code[i]
        predicate, op = re.findall(r"^(@!?\w+ )?(\S+)", text)[0]
        path.append(text)
        if op == "EXIT" and not predicate:
            break
        leaves = re.match(r"@!?\w+ CALL\.REL\.NOINC 0x([0-9a-f]+)", text)
        if leaves and repeats:  # sm_80's way out of a long loop, before the branch back
            i = i + 1 if left else index[int(leaves.group(1), 16)]
            continue
        if re.match(r"(CALL|RET|BRX|JMP|JMX|BREAK|BRXU)\b", op):
            raise ValueError(f"cannot count: {text} at {at:#x}")
        i += 1
        if op.split(".")[0] == "BRA" and op != "BRA.DIV":  # that leaves for threads that have diverged: none here
            target = index[int(re.findall(r"0x([0-9a-f]+)", text)[0], 16)]
            conditional = predicate or re.search(r"\bU?P\d", text)
            block = [skipped for _, skipped in code[i:target]]
            short = len(block) <= SHORT_BLOCK and not any("BRA" in text or "EXIT" in text for text in block)
            if target < i:
                loops.add(at)
                if not repeats or len(loops) > 1 or not (conditional or "CALL" in path[-2]):
                    raise ValueError(f"cannot count: loop {text} at {at:#x}")
                i, left = (target, left - 1) if left else (i, 0)
            elif not conditional:
                i = target
            elif not short:
                if not outcomes:
                    raise ValueError(f"cannot count: the outcome of {text} at {at:#x} is not stated")
                i = target if outcomes.pop(0) else i
    if outcomes:
        raise ValueError(f"cannot count: {len(outcomes)} stated branches were not met")
    if left:
        raise ValueError(f"cannot count: {left} stated repeats were not met")
    return [text for text in path if not text.startswith("NOP")]


def shortest(sass: str, branches: int) -> list[str]:
    """The shortest way from entry to exit through at most so many long branches: round blocks that are hardly ever
    needed."""
    paths, errors = [], []
    for taken in (outcome for n in range(branches + 1) for outcome in itertools.product((True, False), repeat=n)):
        try:
            paths.append(executed(sass, taken))
        except ValueError as error:
            errors.append(str(error))
    if not paths:
        raise ValueError("; ".join(errors))
    return min(paths, key=len)


def widths(path: Sequence[str], op: str) -> dict[str, int]:
    """Accesses by width in bits, predicated or not."""
    found = [re.search(rf"\b{op}(\.\S+)?(?= )", text) for text in path]
    names = [re.search(r"\.(128|64|U16|U8|S8)\b", m.group(0)) for m in found if m]
    widths = [re.sub(r"\D", "", n.group(1)) if n else "32" for n in names]
    return {width: widths.count(width) for width in sorted(set(widths))}
