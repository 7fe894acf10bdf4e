"""The advice: every row of the strategy table, the ratios between its rows, and calls that run."""

from collections import Counter

import numpy as np
import pandas
import pytest
import torch

import imbal_kernels as ik
from imbal_kernels import __main__ as command

TABLE = [
    ([70, 30], "classification", "nothing"),  # under 5:1
    ([10_000, 1_000], "classification", "class weights"),  # moderate
    ([10_000, 200], "classification", "class weights"),  # 20:1 to 100:1
    ([9_900, 99], "classification", "class weights"),  # severe
    ([10_000, 10], "classification", "class weights"),
    ([10_000, 500], "tabular", "SMOTE"),
    ([10_000, 5], "tabular", "oversampling"),  # no neighbours
    ([1_000_000, 10_000], "tabular", "undersampling"),  # large, with an abundant majority
    ([1_000_000, 10_000], "detection", "focal loss"),
    ([3, 2], "detection", "focal loss"),
    ([70, 30], "tabular", "nothing"),
]


@pytest.mark.parametrize("counts, task, remedy", TABLE)
def test_table(counts, task, remedy):
    advice = ik.recommend(counts, task)
    assert advice.remedy.startswith(remedy)
    assert advice.ratio == counts[0] / counts[1] and advice.task == task and advice.reasons
    text = str(advice)
    assert advice.call in text and all(reason in text for reason in advice.reasons)
    assert f"{advice.ratio:.3g}:1" in text


@pytest.mark.parametrize(
    "counts, other",
    [([900, 90], "oversampling"), ([200_000, 20_000], "undersampling"), ([10_000, 200], "logit adjustment"),
     ([50_000, 100], "oversampling"), ([100, 30], "gentle class weights")],
)  # fmt: skip
def test_others(counts, other):
    """Small data: copies; large: undersampling; severe: perhaps with oversampling."""
    assert any(remedy.startswith(other) for remedy, _, _ in ik.recommend(counts).others)


def test_the_silent_ratios_say_why():
    assert "calibrated" in str(ik.recommend([100, 30]))
    assert "between 20:1 and 100:1" in str(ik.recommend([3000, 100]))


@pytest.mark.parametrize("counts, task, remedy", TABLE)
def test_the_calls_run(counts, task, remedy):
    """With logits, labels, X and scores that a user would have; counts are the advice's own."""
    advice = ik.recommend(counts, task)
    generator = torch.Generator().manual_seed(0)
    names = {
        "ik": ik, "counts": torch.tensor(counts), "labels": torch.tensor([0] * 40 + [1] * 10),
        "logits": torch.randn(50, 2, generator=generator), "X": torch.randn(50, 3, generator=generator),
        "scores": torch.rand(50, generator=generator),
    }  # fmt: skip
    for call in (advice.call, *(call for _, call, _ in advice.others)):
        scope = dict(names)
        if call.startswith("X, labels = "):
            exec(call, scope)
            assert len(set(Counter(scope["labels"].tolist()).values())) == 1
        else:
            assert torch.isfinite(eval(call, scope))


def test_the_weight_is_class_weights():
    heaviest = ik.class_weights(torch.tensor([9_900, 100])).max().item()
    assert f"one wrong label count {heaviest:.3g} times" in str(ik.recommend([9_900, 100]))


LABELS = [0] * 60 + [1] * 6
SAME = {
    "list": [60, 6], "tensor": torch.tensor([60, 6]), "array": np.array([60, 6]), "mapping": {0: 60, 1: 6},
    "counter": Counter(LABELS), "ids": LABELS, "tensor of ids": torch.tensor(LABELS), "array of ids": np.array(LABELS),
    "series of text": pandas.Series(["a"] * 60 + ["b"] * 6), "bools": [False] * 60 + [True] * 6,
}  # fmt: skip


@pytest.mark.parametrize("values", SAME.values(), ids=SAME)
def test_counts_and_labels(values):
    assert list(ik.recommend(values).counts.values()) == [60, 6]
    if not isinstance(values, dict) and len(values) > 2:
        assert ik.recommend(labels=values).counts == ik.recommend(values).counts


def test_labels_that_could_be_counts_go_in_by_name():
    assert ik.recommend(labels=[1, 1, 1, 1, 1, 1, 2]).counts == {1: 6, 2: 1}


def recommend(tmp_path, text, *options):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return command.main(["recommend", str(path), *options])


def test_command(tmp_path, capsys):
    rows = "".join(f"{i},{'ok' if i % 25 else 'fraud'}\n" for i in range(1000))
    assert recommend(tmp_path, "id,y\n" + rows, "--column", "y") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["class", "examples", "share", "weight"]
    assert lines[1].split() == ["ok", "960", "96.00%", "0.5208"]
    assert lines[2].split() == ["fraud", "40", "4.00%", "12.5"]
    assert str(ik.recommend({"ok": 960, "fraud": 40}, "tabular")) in out
    assert "SMOTE" in out


def test_command_takes_a_task(tmp_path, capsys):
    assert recommend(tmp_path, "y\na\nb\n", "--column", "y", "--task", "detection") == 0
    assert "focal loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "no column named 'y'; there are 'a', 'b'"),
        ("", "no column named 'y'; there are none"),
        ("y,y\n1,2\n", "more than one column named 'y'"),
        ("x,y\n1,2\n1\n", "line 3 has no value in column 'y'"),
        ("x,y\n1, \n", "line 2 has no value in column 'y'"),
        ("y\n", "column 'y' has no rows"),
        ("y\n1\n1\n", "an imbalance needs two classes or more, got 1"),
    ],
)
def test_bad_files(text, message, tmp_path, capsys):
    assert recommend(tmp_path, text, "--column", "y") == 1
    assert message in capsys.readouterr().err


def test_no_file(tmp_path, capsys):
    assert command.main(["recommend", str(tmp_path / "none.csv"), "--column", "y"]) == 1
    assert "none.csv: No such file or directory" in capsys.readouterr().err
