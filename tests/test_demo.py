"""The demo: its scenes, its targets and its report, on budgets far too small to learn anything."""

import argparse
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import imbal_kernels as ik
from imbal_kernels import demo
from imbal_kernels.demo import boxes, choice, evaluate, figures, remedies, scenes, tables
from imbal_kernels.demo.detector import Detector, giou_loss, normalize, rows
from imbal_kernels.demo.train import Data, data_order, train


@pytest.fixture(scope="module")
def data() -> Data:
    return Data.of(scenes.make_scenes("train", 40, seed=3))


def test_scenes_depend_on_seed_and_number_only(data):
    again = scenes.make_scenes("train", 5, seed=3)
    assert torch.equal(again.images, data.scenes.images[:5])
    for a, b in zip(again.boxes, data.scenes.boxes, strict=False):
        assert torch.equal(a, b)
    assert not torch.equal(scenes.make_scenes("train", 5, seed=4).images, again.images)


def test_splits_share_neither_digits_nor_photographs():
    parts = [scenes._digits(split)[0].reshape(-1, 64) for split in scenes.SPLITS]
    assert sum(map(len, parts)) == 1797
    rows = {tuple(row) for part in parts for row in part.tolist()}
    per_split = sum(len({tuple(row) for row in part.tolist()}) for part in parts)
    assert len(rows) == per_split
    widths = [scenes._photographs(split)[0].shape[1] for split in scenes.SPLITS]
    assert sum(widths) == 640


def test_positives_are_rarer_than_one_in_a_thousand(data):
    negatives, positives = remedies.output_counts(data.ids).tolist()
    assert negatives + positives == data.ids.numel() * scenes.NUM_CLASSES
    assert 0 < positives < (negatives + positives) / 10_000


def test_ink_is_brighter_than_any_photograph(data):
    for image, truth in zip(data.scenes.images, data.scenes.boxes, strict=True):
        for x1, y1, x2, y2 in truth.int().tolist():
            assert image[:, y1:y2, x1:x2].max() > scenes.BRIGHTNESS * 255


def test_each_loss_runs_at_the_best_rate_of_the_grid(data):
    rates = {r.name: r.lr for r in remedies.make_remedies(remedies.output_counts(data.ids))}
    assert rates == {"plain BCE": 0.004, "class-weighted BCE": 0.004, "focal loss": 0.002}
    assert all(tuple(by_rate) == choice.GRID for by_rate in choice.SWEEP.values())  # one for all


def test_targets_decode_to_the_boxes_they_came_from(data):
    centers, _ = boxes.grid()
    for ids, distances, truth, labels in zip(
        data.ids, data.distances, data.scenes.boxes, data.scenes.labels, strict=True
    ):
        rows = (ids != boxes.BACKGROUND).nonzero()[:, 0]
        error = (boxes.decode(distances)[rows][:, None] - truth[None]).abs().amax(-1)
        closest, owner = error.min(1)
        assert closest.max() < 0.5
        assert torch.equal(ids[rows], labels[owner])
        assert set(owner.tolist()) == set(range(len(truth)))
        middle = (truth[:, :2] + truth[:, 2:]) / 2
        assert (centers[rows] - middle[owner]).abs().max() <= max(boxes.STRIDES)


def test_perfect_outputs_score_one(data):
    logits = torch.full((*data.ids.shape, scenes.NUM_CLASSES), -10.0)
    positive = data.ids != boxes.BACKGROUND
    logits[positive, data.ids[positive]] = 10.0
    scores, _ = evaluate.score(logits, data.distances, data.scenes, data.ids, threshold=0.5)
    assert scores.output_ap == pytest.approx(1.0)
    assert scores.box_ap > 0.99
    assert scores.at_half == pytest.approx((1.0, 1.0, 1.0))


def test_one_box_is_matched_once():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    found = (box.expand(3, 4), torch.tensor([1, 2, 2]), torch.tensor([0.9, 0.8, 0.7]))
    assert evaluate.match(found, box, torch.tensor([2])) == [False, True, False]


def test_box_recall_counts_boxes_that_nothing_met():
    image = torch.zeros(1, 3, scenes.SIZE, scenes.SIZE, dtype=torch.uint8)
    truth = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70]])
    one = scenes.Scenes(image, [truth], [torch.tensor([4, 4])])
    found = (truth[:1], torch.tensor([4]), torch.tensor([0.9]))
    ap, (recall, _) = evaluate.box_scores([found], one)
    assert ap == pytest.approx(0.5)
    assert recall.max() == pytest.approx(0.5)


def test_always_background_is_accurate_and_worthless(data):
    scores = evaluate.background_scores(data.ids)
    precision, recall, accuracy = scores.at_half
    assert accuracy > 0.999
    assert precision == recall == scores.box_ap == 0.0
    assert scores.output_ap == pytest.approx(1 - accuracy)


def pyramid(images):
    """Logits as the detector's class head writes them, channels last."""
    generator = torch.Generator().manual_seed(0)
    sizes = [scenes.SIZE // stride for stride in boxes.STRIDES]
    levels = [torch.randn(images, scenes.NUM_CLASSES, n, n, generator=generator) for n in sizes]
    return [level.to(memory_format=torch.channels_last) for level in levels]


def test_eager_formula_is_the_same_loss(data):
    levels, ids = pyramid(4), data.ids[:4]
    focal = remedies.make_remedies(remedies.output_counts(data.ids))[-1]
    torch.testing.assert_close(focal.loss(levels, ids), remedies.eager_focal_loss(levels, ids))


def test_the_other_losses_are_pytorchs(data):
    levels, ids = pyramid(4), data.ids[:4]
    counts = remedies.output_counts(data.ids)
    plain, weighted, _ = remedies.make_remedies(counts)
    logits, truth = rows(levels).reshape(-1), torch.from_numpy(evaluate.one_hot(ids)).float()
    total = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    torch.testing.assert_close(plain.loss(levels, ids), total / truth.sum())
    negative, positive = ik.class_weights(counts)
    weight = torch.where(truth == 1, positive, negative)
    mean = F.binary_cross_entropy_with_logits(logits, truth, weight=weight)
    torch.testing.assert_close(weighted.loss(levels, ids), mean)


def test_balanced_weights_are_one_on_average(data):
    weighted = remedies.make_remedies(remedies.output_counts(data.ids))[1]
    flat = [torch.zeros_like(level) for level in pyramid(len(data.ids))]
    assert float(weighted.loss(flat, data.ids)) == pytest.approx(np.log(2), rel=1e-4)
    assert remedies.background_share(flat, data.ids, weighted) == pytest.approx(0.5, abs=1e-3)


def test_giou_of_equal_boxes_is_zero_and_has_a_gradient():
    sides = torch.rand(5, 4, dtype=torch.float64) + 0.5
    assert float(giou_loss(sides, sides)) == pytest.approx(0.0)
    other = (sides + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: giou_loss(d, sides), (other,))


def test_detector_starts_at_the_prior():
    levels, sides = Detector(prior=0.01)(normalize(torch.zeros(2, 3, 128, 128, dtype=torch.uint8)))
    assert [level.shape for level in levels] == [level.shape for level in pyramid(2)]
    logits = rows(levels)
    assert logits.shape == (2, len(boxes.grid()[0]), scenes.NUM_CLASSES)
    assert sides.shape == (2, len(boxes.grid()[0]), 4)
    assert bool((sides > 0).all())
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)


def test_data_order_is_repeatable_and_covers_the_scenes():
    settings = demo.Settings(steps=5, batch=4)
    order = data_order(10, settings, seed=1)
    assert torch.equal(order, data_order(10, settings, seed=1))
    assert order.shape == (5, 4)
    assert set(order.flatten()[:10].tolist()) == set(range(10))


TINY = demo.Settings(steps=3, batch=2, train_scenes=6, val_scenes=4, test_scenes=7, checks=1)
TINY_TABLES = {"abalone19": tables.TableSettings(folds=2, repeats=1, steps=5)}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    path = demo.run(TINY, TINY_TABLES, tmp_path_factory.mktemp("demo") / "new", seed=0, device="cpu")
    return path.read_text(encoding="utf-8")


def test_report_is_complete_and_self_contained(report):
    remedy_names = ("plain BCE", "class-weighted BCE", "focal loss")
    for row in ("always background", *remedy_names):
        assert f"<td>{row}</td>" in report
    sources = re.findall(r"(?:src|href)\s*=\s*['\"]([^'\"]{0,30})", report)
    assert len(sources) >= 3
    assert "abalone19" in report
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "http://" not in report and "https://" not in report


def test_training_is_repeatable():
    data = Data.of(scenes.make_scenes("train", 6, seed=5))
    remedy = remedies.make_remedies(remedies.output_counts(data.ids))[-1]
    torch.manual_seed(5)
    start = Detector()
    before = start.classes.bias.clone()
    ends = [train(remedy, start, data, data, TINY, 5, tqdm(disable=True))[0] for _ in range(2)]
    assert torch.equal(start.classes.bias, before)
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(a, b)


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(options)


def test_options():
    args = parse("--quick", "--seed", "3", "--threads", "2")
    assert args.quick and args.seed == 3 and args.threads == 2 and args.device == "auto"


@pytest.mark.parametrize("options", [("--threads", "0"), ("--seed", "-1"), ("--seed", str(2**32)), ("--seed", "1.5")])
def test_numbers_out_of_range(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(*options)
    assert f"argument {options[0]}: expected an integer from" in capsys.readouterr().err


def test_asking_for_an_absent_gpu_is_explained(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert demo.main(parse("--device", "cuda")) == 2
    assert "there is none" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_noticed_before_training(capsys, tmp_path):
    (tmp_path / "notes").touch()
    assert demo.main(parse("--out", str(tmp_path / "notes"))) == 2
    assert "notes: File exists" in capsys.readouterr().err


def test_one_place_is_drawn_once_with_all_its_labels():
    box = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70], [0, 0, 10, 9], [5, 5, 5, 5]])
    found = (box, torch.tensor([1, 2, 7, 3]), torch.tensor([0.9, 0.8, 0.7, 0.6]))
    assert list(figures._places(found)) == [(0, "1 7"), (1, "2"), (3, "3")]
