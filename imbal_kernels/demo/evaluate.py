"""What a detector is worth on scenes it has not seen: scores of outputs and of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from .boxes import detect, iou
from .detector import Detector, normalize, rows
from .scenes import NUM_CLASSES, Scenes

MATCH_IOU = 0.5
Curve = tuple[np.ndarray, np.ndarray]
Detections = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Scores:
    """Figures of one run; `at_half` and `at_best` are precision, recall, accuracy of the outputs
    at p >= 0.5 and at the threshold `best`. Curves are (recall, precision)."""

    output_ap: float
    box_ap: float
    at_half: tuple[float, float, float]
    at_best: tuple[float, float, float]
    output_curve: Curve
    box_curve: Curve


def one_hot(ids: Tensor) -> np.ndarray:
    """Class ids (...) to 0/1 truth of every output, flat: (... * 10,)."""
    return (ids[..., None] == torch.arange(NUM_CLASSES)).numpy().ravel()


@torch.no_grad()
def predict(model: Detector, scenes: Scenes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (N, A, 10) and distances (N, A, 4) on the CPU."""
    model.eval()
    parts = [model(normalize(batch.to(device))) for batch in scenes.images.split(32)]
    model.train()
    return torch.cat([rows(p[0]) for p in parts]).cpu(), torch.cat([p[1] for p in parts]).cpu()


def at_threshold(truth: np.ndarray, p: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """Precision (0 when nothing is predicted), recall and accuracy of p >= threshold."""
    predicted = p >= threshold
    hits, found = int((predicted & truth).sum()), int(predicted.sum())
    recall = hits / max(int(truth.sum()), 1)
    return hits / max(found, 1), recall, float((predicted == truth).mean())


def best_threshold(truth: np.ndarray, p: np.ndarray) -> float:
    """The threshold with the highest F1: taken on validation scenes, used on test scenes."""
    precision, recall, thresholds = precision_recall_curve(truth, p)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(thresholds[f1[:-1].argmax()])


def match(found: Detections, boxes: Tensor, labels: Tensor) -> list[bool]:
    """Which detections, best first, are right: an unclaimed box, the same label, IoU >= 0.5."""
    overlap = iou(found[0], boxes) * (found[1][:, None] == labels[None])
    free = torch.ones(len(boxes))
    right = []
    for row in overlap:
        value, i = (row * free).max(0)
        right.append(bool(value >= MATCH_IOU))
        if right[-1]:
            free[i] = 0.0
    return right


def box_scores(detections: list[Detections], scenes: Scenes) -> tuple[float, Curve]:
    """Average precision of the boxes, pooled over classes, and its (recall, precision) curve.

    scikit-learn counts recall over what was detected; boxes that no detection met are missing
    there, so recall, and with it the area, is scaled by matched / all boxes.
    """
    right = [
        hit
        for found, boxes, labels in zip(detections, scenes.boxes, scenes.labels, strict=True)
        for hit in match(found, boxes, labels)
    ]
    if not any(right):
        return 0.0, (np.array([0.0]), np.array([0.0]))
    score = torch.cat([found[2] for found in detections]).numpy()
    scale = sum(right) / sum(len(boxes) for boxes in scenes.boxes)
    precision, recall, _ = precision_recall_curve(right, score)
    return float(average_precision_score(right, score)) * scale, (recall * scale, precision)


def score(
    logits: Tensor, distances: Tensor, scenes: Scenes, ids: Tensor, threshold: float
) -> tuple[Scores, list[Detections]]:
    """All figures of one run, and its detections scene by scene.

    logits: (N, A, 10), distances: (N, A, 4), ids: (N, A); `threshold` comes from other scenes.
    """
    truth, p = one_hot(ids), logits.sigmoid().numpy().ravel()
    detections = [detect(x, d) for x, d in zip(logits, distances, strict=True)]
    box_ap, box_curve = box_scores(detections, scenes)
    precision, recall, _ = precision_recall_curve(truth, p)
    scores = Scores(
        output_ap=float(average_precision_score(truth, p)),
        box_ap=box_ap,
        at_half=at_threshold(truth, p, 0.5),
        at_best=at_threshold(truth, p, threshold),
        output_curve=(recall, precision),
        box_curve=box_curve,
    )
    return scores, detections


def background_scores(ids: Tensor) -> Scores:
    """The figures of a detector that calls everything background."""
    truth = one_hot(ids)
    nothing = np.zeros(len(truth))
    empty = (np.array([0.0]), np.array([0.0]))
    half = at_threshold(truth, nothing, 0.5)
    base_rate = float(average_precision_score(truth, nothing))
    return Scores(base_rate, 0.0, half, half, empty, empty)
