"""The measuring stand: it checks before it times, counts memory, keeps records, and the README says what they say."""

import dataclasses
import json
import sys
import time

import pytest
import torch

from bench import __main__ as command
from bench import formulas, gpu_check, losses, report, results, softmax, targets
from bench.harness import COPY, OURS, Contestant, Record, Result, Row, Workload, measure, peak_memory


def _row(contestant, ratio):
    return Row(contestant, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, ratio, 0.0)


def _result(*rows, **missing):
    return Result("w", "bytes", COPY, "GB/s", list(rows), missing)


@pytest.fixture(scope="module")
def problem():
    return losses.Problem.random(4000, 80)


@pytest.fixture(scope="module")
def entries(problem):
    return losses.contestants(problem, compiled=False)[0]


def test_every_contestant_agrees_with_the_reference(entries):
    assert {COPY, OURS, "torchvision eager, dense", "ours, recomputed"} <= entries.keys()
    for contestant in entries.values():
        contestant.check()


@pytest.mark.parametrize("gamma", (0.0, 2.0))
def test_softmax_contestants_agree_with_the_reference(gamma):
    problem = softmax.Problem.random(300, 81, "cpu", torch.float32, gamma)
    entries, missing = softmax.contestants(problem, compiled=False)
    assert {COPY, OURS, "ours, upstream 2", "ours, recomputed", "torch eager"} <= entries.keys()
    assert missing.keys() == (set() if gamma else {"liger_kernel", "quack"})
    for contestant in entries.values():
        contestant.check()
    wrong = torch.zeros(()), torch.zeros_like(problem.logits)
    with pytest.raises(AssertionError, match="the wrong one, loss"):
        problem.check("the wrong one", wrong)


@pytest.mark.parametrize("loss", formulas.LOSSES, ids=lambda loss: loss.name)
def test_contestants_of_other_formulas_agree_with_the_reference(loss):
    problem = formulas.Problem.random(loss, 700, 20, "cpu", torch.float32)
    entries = formulas.contestants(problem, compiled=False)
    assert {COPY, OURS, "torch eager, dense"} <= entries.keys()
    for contestant in entries.values():
        contestant.check()
    wrong = torch.zeros(()), torch.zeros_like(problem.logits)
    with pytest.raises(AssertionError, match="the wrong one, loss"):
        problem.hold("the wrong one", wrong, problem.expected)


def test_a_wrong_contestant_is_named_and_not_timed(entries, problem):
    def wrong():
        return torch.zeros(()), torch.zeros_like(problem.logits)

    prepared = []
    contestant = Contestant(wrong, 1, lambda: problem.check("the wrong one", wrong()))
    entries = {**entries, "wrong": contestant}
    with pytest.raises(AssertionError, match="the wrong one, loss"):
        measure(Workload("w", "cpu", "", entries, prepare=lambda: prepared.append(1)), rounds=2)
    assert not prepared  # which precedes every timed run


def test_the_command_says_who_is_wrong(monkeypatch, capsys):
    def wrong(self, targets):
        return self.logits.sum() * 0

    monkeypatch.setattr(losses.Problem, "ours", wrong)
    threads = torch.get_num_threads()
    try:
        assert command.main("sigmoid --device cpu --shapes 300x7 --rounds 2 --no-compile --peers".split()) == 1
    finally:
        torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert "a contestant's result is wrong: ours, loss" in err and "ours" not in out


def test_each_run_finds_the_logits_written_anew(problem):
    """In place, with the same values, and before every timed run of every contestant."""
    workload = next(losses.workloads("cpu", ["float32"], ["300x7"], (), False))
    seen, prepare = [], workload.prepare
    entries = {name: Contestant(lambda name=name: seen.append(name), 1) for name in (COPY, OURS)}
    measure(Workload("w", "cpu", "", entries, prepare=lambda: seen.append("prepared")), rounds=9)
    timed = seen[2:38]
    assert timed[::2] == ["prepared"] * 18
    rounds = {tuple(timed[i + 1 : i + 4 : 2]) for i in range(0, 36, 4)}
    assert rounds == {(COPY, OURS), (OURS, COPY)}, "everyone once a round, in an order that changes"
    before, address = problem.logits.detach().clone(), problem.logits.data_ptr()
    problem.write()
    problem.logits.detach().zero_()
    problem.write()
    assert torch.equal(problem.logits, before) and problem.logits.data_ptr() == address
    assert prepare.__func__ is losses.Problem.write


def test_peak_memory_is_the_gradient_and_less_than_a_mebibyte(entries, problem):
    """Of the loss: design's promise. Of a known pair of tensors: the bytes themselves."""
    size = problem.logits.nbytes
    for name in (OURS, "ours, upstream 2", "ours, dense"):
        assert size <= peak_memory(entries[name], "cpu") < size + 2**20
    assert peak_memory(Contestant(lambda: torch.zeros(1000) + torch.zeros(1000), 0), "cpu") == 3 * 4000

    def backward_twice():
        problem.ours(problem.ids).backward(retain_graph=True)

    assert peak_memory(Contestant(backward_twice, 0), "cpu") < 2 * size


def test_measure_relates_everyone_to_the_copy_and_to_ours(entries):
    result = measure(Workload("w", "cpu", "bytes", entries, {"apex": "not installed"}), rounds=3)
    assert [row.contestant for row in result.rows] == list(entries)
    assert result.row(COPY).times_roof == result.row(OURS).ratio == 1.0
    for row in result.rows:
        assert row.best <= row.median
        assert row.rate == pytest.approx(entries[row.contestant].amount / row.median / 1e6)
    text = report.text_table(result)
    assert "missing: apex: not installed" in text and "torchvision eager, dense" in text


@pytest.mark.parametrize(
    "against, ratio, verdict",
    [(COPY, 1 / 1.2, "reached"), (COPY, 1 / 1.4, "not reached"), ("peer", 9.9, "not reached"), ("peer", 10, "reached")],
)
def test_target(against, ratio, verdict):
    target = targets.Target("w", against, 1.3 if against == COPY else 10)
    result = _result(_row(OURS, 1.0), _row(against, ratio))
    assert target.verdict([result])[1] == verdict
    assert target.verdict([])[1] == "not measured"


def test_table_of_targets():
    some = [dataclasses.replace(_result(_row(OURS, 1.0), _row(COPY, 0.9)), name=targets.FOCAL)]
    whole, measured = targets.table(some).splitlines(), targets.table(some, all_of_them=False).splitlines()
    assert len(whole) == 1 + len(targets.TARGETS) and len(measured) == 2
    assert measured[1] in whole and measured[1].endswith("1.11x  reached") and "not measured" in whole[2]


def test_record_survives_its_file(tmp_path):
    record = Record({"device": "d", "date": "2026-01-01"}, [_result(_row(OURS, 1.0), p="why")])
    record.save(tmp_path / "device" / "2026-01-01.json")
    assert Record.load(tmp_path / "device" / "2026-01-01.json") == record


def test_newest_result_of_each_workload(tmp_path):
    """A record of some workloads leaves the others as an older one has them."""
    for name, workloads in (("2026-01-01", "ab"), ("2026-01-02-b", "b"), ("2026-01-03", "c")):
        found = [dataclasses.replace(_result(_row(OURS, 1.0)), name=workload) for workload in workloads]
        Record({"device": "d", "date": name}, found).save(tmp_path / "device" / f"{name}.json")
    Record({"device": "e"}, [_result(_row(OURS, 1.0))]).save(tmp_path / "other" / "2026-01-01.json")
    found = [(r.environment["device"], [result.name for result in r.results]) for r in results.newest(tmp_path)]
    assert found == [("d", ["c"]), ("d", ["b"]), ("d", ["a"]), ("e", ["w"])]


def test_readme_and_docs_say_what_the_records_say():
    records = results.newest()
    for path, figures in ((results.README, report.summary(records)), (results.PAGE, report.page(records))):
        text = path.read_text()
        assert text == results.rewritten(text, figures), f"{path.name}: run `make results`"
    drawn = [(record, result) for record in records for result in record.results]
    shown = {f"{report.plot_name(*each)}.svg": report.fingerprint(*each) for each in drawn}
    assert {path.name for path in results.PLOTS.glob("*.svg")} == shown.keys(), "run `make results`"
    for name, fingerprint in shown.items():
        assert fingerprint in (results.PLOTS / name).read_text(), f"{name} shows other figures: run `make results`"
        assert f"plots/{name}" in text


def test_the_record_holds_what_is_promised():
    """Every workload of `--shapes all` on a CPU, and each way to a gradient; storing it, which the code does, is the
    fastest with an upstream gradient of 1."""
    cpu = [record for record in results.newest() if "cuda" not in record.environment]
    found = {result.name: result for record in cpu for result in record.results}
    for target in targets.TARGETS:
        assert found[target.workload].row(target.against), target
    for shape in (*softmax.SHAPES["cpu"], *softmax.MORE_SHAPES["cpu"]):
        for loss in ("weighted cross-entropy", "softmax focal"):
            assert f"{loss}, {shape.replace('x', ' x ')} float32" in found
    for loss in formulas.LOSSES:
        assert found[f"{loss.name}, 100000 x 80 float32"].row("torch eager, dense")
    for name in (targets.FOCAL, targets.CROSS_ENTROPY):
        assert min(found[name].row(f"ours, {way}").ratio for way in ("upstream 2", "recomputed")) >= 1


def test_figures_stand_between_the_marks_alone():
    environment = {"device": "d", "date": "2026-01-01", "torch": "2", "commit": "c"}
    record = Record(environment, [_result(_row(OURS, 1.0), _row("peer", 3.0), torch="not installed")])
    text = f"before\n\n{results.BEGIN}\n{results.END}\n\nafter\n"
    for figures in (report.summary([record]), report.page([record])):
        once = results.rewritten(text, figures)
        assert once.startswith("before\n\n<!--") and once.endswith("-->\n\nafter\n")
        assert results.rewritten(once, figures) == once
    assert "| w | 1.00 | 0% | 100% | peer 3.0x |" in report.summary([record])
    assert "Missing: torch: not installed." in report.summary([record])
    assert "On a GPU: not measured yet" in report.summary([record])
    page = report.page([record])
    assert "| peer | 1.0 | 1.00 | 0% | 1.0 | 100% | 3.00x | 0.0 |" in page and "Missing: torch: not installed." in page


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nonsense"], "there is no suite nonsense: choose from losses"),
        (["losses", "--peers", "nobody"], "there is no peer nobody"),
        (["losses", "--peers", "faiss-cpu"], "there is no peer faiss-cpu"),
        (["losses", "--shapes", "100"], '--shapes takes ROWSxCOLUMNS such as 100000x80, or "all" alone, got 100'),
        (["losses", "--shapes", "1e5x80"], "got 1e5x80"),
        (["losses", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--json", "/dev/null/r.json"], "--json: /dev/null can't be made"),
        (["--plot", "/dev/null/plots"], "--plot: /dev/null/plots can't be made"),
        (["losses", "--shapes", "0x80"], "got 0x80"),
        (["losses", "--shapes", "all", "2x2"], "got all"),
        (["losses", "--resume"], "--resume needs --json"),
        (["--rounds", "1"], "--rounds must be at least 2, for a spread is reported; got 1"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "there is none")]),
    ],
)
def test_command_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_command_saves_and_draws(tmp_path, capsys):
    threads = torch.get_num_threads()
    arguments = "sigmoid --device cpu --shapes 300x7 --rounds 2 --no-compile --peers --format png --resume".split()
    arguments += ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "plots")]
    try:
        assert command.main(arguments) == 0
        out = capsys.readouterr().out
        before = Record.load(tmp_path / "r.json")
        kept = Record(before.environment, before.results[:-1])
        kept.save(tmp_path / "r.json")
        assert command.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    again = Record.load(tmp_path / "r.json")  # the one that was missing is measured, the others are kept
    assert again.results[:-1] == kept.results and again.results[-1].name == before.results[-1].name
    assert capsys.readouterr().out.count("roof: copy in place") == 1
    assert "sigmoid focal, 300 x 7 float32" in out and "torchvision eager" not in out
    assert out.endswith("no goal is set for what was measured\n")
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["environment"]["torch"] == torch.__version__
    pictures = list((tmp_path / "plots").glob("*.png"))
    assert len(pictures) == len(record["results"]) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_groups_of_workloads_have_processes_of_their_own(tmp_path, capfd):
    """One record all the same; the former one is replaced."""
    path = tmp_path / "r.json"
    Record({"device": "d"}, [_result(_row(OURS, 1.0))]).save(path)
    arguments = "softmax knn --device cpu --shapes 300x7 --rounds 2 --no-compile --peers --json".split()
    assert command.main([*arguments, str(path)]) == 0
    names = [result.name for result in Record.load(path).results]
    assert names == [f"{name}, 300 x 7 float32" for name in ("weighted cross-entropy", "softmax focal", "knn")]
    out = capfd.readouterr().out
    assert [out.count(f"\n{name}  (") for name in names] == [1, 1, 1] and out.count("no goal is set") == 1


def test_a_group_that_fails_ends_the_run(tmp_path, capfd):
    arguments = "knn softmax --device cpu --shapes 3x7 --rounds 2 --no-compile --peers --json".split()
    assert command.main([*arguments, str(tmp_path / "r.json")]) == 1  # 3 rows have no 5 neighbours
    assert not (tmp_path / "r.json").exists() and "cross-entropy" not in capfd.readouterr().out


def test_gpu_check_resumes(tmp_path, monkeypatch, capsys):
    """A part that failed runs again, one that passed does not."""
    flag = tmp_path / "mended"
    once = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    mended = f"import os, sys; sys.exit(not os.path.exists({str(flag)!r}))"

    def parts(folder):
        command = (sys.executable, "-c")
        return [
            gpu_check.Part("first", (), (*command, once), 60),
            gpu_check.Part("second", (), (*command, mended), 60),
            gpu_check.Part("third", (), None, 60),
        ]

    monkeypatch.setattr(gpu_check, "parts", parts)
    out = tmp_path / "out"
    assert gpu_check.main([str(out), "--dry"]) == 1
    text = (out / "summary.md").read_text()
    assert "| second | FAILED with exit status 1, see second.log |" in text and "| third | needs a GPU |" in text
    flag.touch()
    assert gpu_check.main([str(out), "--dry"]) == 0
    assert "| first | passed earlier |" in (out / "summary.md").read_text()
    assert (tmp_path / "runs").read_text() == "x"
    assert "second            passed in" in capsys.readouterr().out


def test_gpu_check_keeps_to_its_minutes(tmp_path, monkeypatch):
    """What no time is left for is said, counts as a failure, and runs the next time."""
    command = (sys.executable, "-c", "pass")
    monkeypatch.setattr(gpu_check, "parts", lambda folder: [gpu_check.Part("only", (), command, 60)])
    assert gpu_check.main([str(tmp_path), "--dry", "--minutes", "0"]) == 1
    assert "| only | NOT RUN: no time is left" in (tmp_path / "summary.md").read_text()
    assert gpu_check.main([str(tmp_path), "--dry"]) == 0
    assert "| only | passed in" in (tmp_path / "summary.md").read_text()


def test_gpu_check_covers_every_suite(tmp_path):
    parts = gpu_check.parts(tmp_path)
    names = [part.name for part in parts]
    run = {name.removeprefix("bench ") for name in names if name.startswith("bench ")}
    every = {suite for suites in command.SUITES.values() for suite in suites}
    assert {suite for name in run for suite in command.SUITES[name]} == every
    assert {"build", "memcheck", "racecheck", "suite", "static"} <= set(names)
    assert sum(part.seconds for part in parts) < 9 * 60, "each has its seconds within the nine minutes"


def test_gpu_check_ends_what_a_part_started(tmp_path):
    """Workers and compilers too: they would disturb what is timed next."""
    late = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    part = gpu_check.Part("the part", (), (sys.executable, "-c", code), 1)
    assert gpu_check._run(part, tmp_path, dry=True, left=1.0, later=0) == "FAILED: still running after 1 s"
    assert (tmp_path / "the-part.log").exists()
    time.sleep(2)
    assert not late.exists()


def test_gpu_check_gives_a_part_what_others_left(tmp_path):
    part = gpu_check.Part("p", (), (sys.executable, "-c", "import time; time.sleep(1.5)"), 1)
    assert gpu_check._run(part, tmp_path, dry=True, left=60, later=20).startswith("passed in")


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused where there is no GPU")
def test_gpu_check_refuses_to_pretend(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main([str(tmp_path)])
    assert "PyTorch sees no GPU here" in capsys.readouterr().err


def test_gpu_check_runs_the_cuda_kernels_under_both_sanitizers(tmp_path):
    parts = {part.name: part for part in gpu_check.parts(tmp_path)}
    for tool in ("memcheck", "racecheck"):
        command = parts[tool].command
        assert command[command.index("--tool") + 1] == tool and "tests/cuda/test_gpu.py" in command
    assert "-k" not in parts["suite"].command and "knn" in parts["static"].dry


def test_gpu_check_forces_the_cuda_build(tmp_path, monkeypatch):
    code = "import os, sys; sys.exit(os.environ.get('FORCE_CUDA') != '1')"
    part = gpu_check.Part("first", (), (sys.executable, "-c", code), 60)
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    monkeypatch.setattr(gpu_check, "parts", lambda folder: [part])
    assert gpu_check.main([str(tmp_path / "out"), "--dry"]) == 0
