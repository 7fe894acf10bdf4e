"""Ahead-of-time compilation of every Triton kernel, and the instruction budgets of sm_90 with 5 % slack."""

import pytest

pytest.importorskip("triton")

from bench import disassembly, sass, sass_triton  # noqa: E402

SLACK = 1.05
# Instructions an element and MUFU an element.
BUDGETS = {
    "focal fp32 C=80": (30, 2.1),
    "focal bf16 C=80": (26, 2.1),
    "focal fp16 C=80": (26, 2.1),
    "focal fp32 C=91": (36, 3.2),
    "focal bf16 C=91": (36, 3.2),
    "focal fp32 C=1203": (36, 3.2),
    "focal bf16 C=1203": (36, 3.2),
    "focal fp32 general gamma": (34, 3.2),
    "focal bf16 general gamma": (34, 3.2),
    "focal bf16 alpha 1": (27, 2.1),
    "quality fp32 scores C=80": (30, 2.1),
    "quality bf16 scores C=91": (36, 3.2),
    "varifocal fp32 scores C=80": (30, 2.1),
    "asymmetric fp32 no clip C=80": (30, 2.1),
    "asymmetric fp32 C=80": (37, 4.1),  # beside exponential and reciprocal a logarithm and 1 / (1 - y)
    "asymmetric bf16 C=80": (35, 4.1),
}
# H * W % 8 = 0, and any other.
HEAD = {
    "head fp32 C=80": 29,
    "head bf16 C=80": 29,
    "head fp16 C=80": 29,
    "head fp32 C=91": 29,
    "head bf16 C=91": 29,
    "head fp32 scores": 29,
    "head fp32 C=80 odd H * W": 38,
    "head bf16 C=80 odd H * W": 38,
    "head bf16 C=91 odd H * W": 38,
}
SOFTMAX = {
    "softmax fp32 C=64": 24,
    "softmax fp32 C=80": 24,
    "softmax bf16 C=80": 24,
    "softmax focal fp32 C=80": 24,
    "softmax fp32 C=512": 18,
    "softmax fp32 C=1000": 18,
    "softmax bf16 C=1000": 18,
    "softmax focal fp32 C=1000 general gamma, weight": 18,
    "softmax bf16 C=4096": 18,
    "softmax fp32 C=16384": 18,
}
NARROW = {  # beside an exponential a logit 3 functions of the row's own
    "softmax fp32 C=2": (60, 2.5),
    "softmax fp32 C=3": (60, 2.0),
    "softmax bf16 C=3": (60, 2.0),
    "softmax fp32 C=4": (60, 1.8),
    "softmax fp32 C=5": (60, 1.6),
    "softmax focal fp32 C=2 weight": (60, 2.5),
    "softmax focal fp32 C=3 probabilities": (60, 2.0),
    "softmax focal fp32 C=8 smoothing, weight": (60, 1.4),
}
PEELED = {
    "softmax fp32 C=17": (60, 2.2),  # a row's ends take 8 exponentials more
    "softmax fp32 C=81": (60, 1.5),
    "softmax bf16 C=91": (60, 1.5),
    "softmax fp32 C=1203": (24, 1.5),
    "softmax bf16 C=1203": (24, 1.5),
}
UNALIGNED = NARROW | PEELED | {
    "softmax fp32 C=9": (60, 1.5),
    "softmax fp32 C=10": (60, 1.4),
    "softmax bf16 C=33": (60, 1.6),
}  # fmt: skip


@pytest.mark.parametrize("name", sass.CASES)
def test_no_spills(name):
    assert sass.report(name).spills == 0


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(name):
    instructions, mufu = BUDGETS[name]
    report = sass.report(name)
    assert report.instructions <= instructions * SLACK
    assert report.mufu <= mufu
    assert report.registers <= 144 * SLACK


@pytest.mark.parametrize("name", BUDGETS)
def test_logits_and_gradients_move_in_128_bits(name):
    """16 elements a thread and tile: 2 accesses of halves, 4 of fp32; the rest are labels and the patch."""
    report = sass.report(name)
    launch = sass.CASES[name].launch()
    wide = launch.args["TILES"] * (2 if "fp32" not in name else 4)
    assert report.loads["128"] == report.stores["128"] == wide
    assert sum(report.stores.values()) - wide <= launch.args["PATCHES"] + 1


@pytest.mark.parametrize("name", HEAD)
def test_head_budget(name):
    """On every architecture; 80 registers leave room for 24 warps, which have a tile each to wait for."""
    for arch in sass.ARCHITECTURES:
        report = sass.report(name, arch)
        assert report.instructions <= HEAD[name] * SLACK
        assert report.mufu <= 2.1 and report.registers <= 80 * SLACK and report.spills == 0


@pytest.mark.parametrize("name", [name for name in HEAD if "odd" not in name])
def test_a_head_moves_in_128_bits(name):
    """Logits and gradients; the rest are labels, and the patch of four places a thread."""
    launch, report = sass.CASES[name].launch(), sass.report(name)
    args, threads = launch.args, 32 * launch.num_warps
    steps = -(-args["C"] // args["STEP"])
    wide = steps * args["STEP"] * args["POSITIONS"] * args["x_ptrs"][0].element_size() / (16 * threads)
    assert report.stores["128"] == wide and report.loads["128"] >= wide
    assert sum(report.stores.values()) - wide <= args["POSITIONS"] / threads + 1


@pytest.mark.parametrize("name", SOFTMAX | UNALIGNED)
def test_softmax_budget(name):
    """One exponential a logit, padding included, and a few a row: 1.1 where rows are aligned."""
    instructions, mufu = UNALIGNED.get(name) or (SOFTMAX[name], 1.1 * SLACK)
    report = sass.report(name)
    assert report.instructions <= instructions * SLACK
    assert report.mufu <= mufu
    assert report.registers <= 168


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_rows_move_in_128_bits(name):
    """The rest is a row's label, logit and weight, and its gradient and loss."""
    launch, report = sass.CASES[name].launch(), sass.report(name)
    args, threads = launch.args, 32 * launch.num_warps
    wide = args["ROWS"] * args["PIECES"] * args["WIDTH"] * args["grad_ptr"].element_size() / (16 * threads)
    assert report.loads["128"] >= wide and report.stores["128"] == wide
    assert sum(report.stores.values()) - wide <= 2


@pytest.mark.parametrize("name", [name for name in NARROW if "fp32" in name])
def test_rows_of_a_few_classes_move_in_128_bits(name):
    """Four rows a thread, whatever C is: C vectors of logits and of gradients."""
    report, classes = sass.report(name), sass.CASES[name].launch().args["CLASSES"]
    assert report.loads["128"] >= classes and report.stores["128"] == classes
    assert report.shared <= 64  # for the program's loss: nothing goes from thread to thread


@pytest.mark.parametrize("name", PEELED)
def test_unaligned_rows_move_in_128_bits(name):
    """All but a row's ends, an element a thread at a time."""
    launch, report = sass.CASES[name].launch(), sass.report(name)
    args, threads = launch.args, 32 * launch.num_warps
    wide = args["ROWS"] * args["PIECES"] * args["WIDTH"] * args["grad_ptr"].element_size() / (16 * threads)
    assert report.loads["128"] == report.stores["128"] == wide
    ends = max(1, args["ROWS"] * 2 * args["VECTOR"] / threads)
    assert sum(report.stores.values()) - wide <= ends + 2


@pytest.mark.parametrize("name", ("softmax fp32 C=32001", "softmax fp32 C=131072", "softmax fp32 19 classes inside"))
def test_two_passes_move_in_128_bits(name):
    """STEP accesses a pass."""
    report = sass.report(name)
    step = sass.CASES[name].launch().args["STEP"]
    assert report.loads["128"] >= 2 * step and report.stores["128"] == step


@pytest.mark.parametrize("name", ("focal fp32 (C,) weight", "focal fp32 C=1203 (C,) weight"))
def test_weights_by_class_move_in_128_bits(name):
    """As the logits do, whether or not rows are aligned; scalar loads are the patch's, of logit and weight."""
    launch = sass.CASES[name].launch()
    loads = sass.report(name).loads
    assert loads["128"] == launch.args["TILES"] * (4 + 4)
    assert loads["32"] <= 2 * launch.args["PATCHES"]


@pytest.mark.parametrize("arch", (80, 100))
@pytest.mark.parametrize(
    "name", ("focal fp32 C=80", "focal bf16 C=91", "focal fp32 dense float", "sum", "count ids", "rescale bf16",
             "softmax fp32 C=3", "softmax fp32 C=80", "softmax bf16 C=1000", "softmax fp32 C=131072",
             "softmax fp32 C=16384 probabilities", "softmax fp32 19 classes inside")
)
def test_other_architectures(name, arch):
    assert sass.report(name, arch).spills == 0


MEASURES = ("instructions", "mufu", "ffma", "registers", "spills", "shared")


@pytest.mark.parametrize("name", sass.CASES)
def test_no_worse_than_the_baseline(name):
    """By more than 3 %, for the compilers that the baseline knows; `python -m bench.sass --baseline` renews it."""
    known = sass.baseline(sass_triton.version())
    if not known:
        pytest.skip(f"no baseline for {sass_triton.version()}")
    found = sass.report(name)
    for measure in MEASURES:
        assert (getattr(found, measure) or 0) <= 1.03 * (known[name]["90"][measure] or 0) + 1e-9, measure


def _sass(*lines):
    return "\n".join(f"/*{16 * i:04x}*/  {text} ;" for i, text in enumerate(lines))


def test_a_loop_is_not_counted():
    with pytest.raises(ValueError, match="loop"):
        disassembly.executed(_sass("FADD R0, R0, R0", "@P0 BRA 0x0", "EXIT"), (True,))


@pytest.mark.parametrize("back", (("@P0 BRA 0x10",), ("@!P0 CALL.REL.NOINC 0x40", "BRA 0x10")))
def test_a_loop_counts_as_often_as_is_stated(back):
    code = _sass("MOV R0, R1", "FADD R0, R0, R0", *back, *["MOV R1, R0"] * (3 - len(back)), "EXIT")
    path = disassembly.executed(code, (), 3)
    assert disassembly.count(path, "FADD") == 4
    with pytest.raises(ValueError, match="repeats were not met"):
        disassembly.executed(_sass("MOV R0, R1", "EXIT"), (), 3)


def test_an_unstated_long_branch_is_not_counted():
    block = ["FADD R0, R0, R0"] * (disassembly.SHORT_BLOCK + 1)
    code = _sass(f"@P0 BRA {16 * (len(block) + 1):#x}", *block, "EXIT")
    with pytest.raises(ValueError, match="not stated"):
        disassembly.executed(code, ())
    assert len(disassembly.executed(code, (True,))) == 2
    with pytest.raises(ValueError, match="were not met"):
        disassembly.executed(code, (True, True))


def test_the_shorter_way_round_a_rare_block_counts():
    block = ["FADD R0, R0, R0"] * (disassembly.SHORT_BLOCK + 1)
    code = _sass(f"@P0 BRA {16 * (len(block) + 1):#x}", *block, "EXIT")
    assert len(disassembly.shortest(code, 1)) == 2
    with pytest.raises(ValueError, match="not stated"):
        disassembly.shortest(code, 0)


def test_a_branch_for_diverged_threads_is_not_followed():
    assert len(disassembly.executed(_sass("BRA.DIV UR4, 0x20", "FADD R0, R0, R0", "EXIT"), ())) == 3


def test_a_short_block_counts_as_executed():
    assert len(disassembly.executed(_sass("@P0 BRA 0x20", "FADD R0, R0, R0", "NOP", "EXIT"), ())) == 3
