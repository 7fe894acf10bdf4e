"""Scenes for the demo: scikit-learn's handwritten digits, one a scene, on its two sample photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

SIZE = 128
NUM_CLASSES = 10
MIN_DIGIT, MAX_DIGIT = 16, 48
BRIGHTNESS = 0.6  # of the photographs, so that the ink stands out wherever it falls
INK = 215  # darkest level of a colour channel of the ink
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Scenes:
    """images: (N, 3, SIZE, SIZE) uint8. boxes: N arrays (K, 4) of x1, y1, x2, y2 in pixels.
    labels: N arrays (K,) of digits 0 … 9."""

    images: torch.Tensor
    boxes: list[torch.Tensor]
    labels: list[torch.Tensor]

    def __len__(self) -> int:
        return len(self.boxes)


@cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (M, 8, 8) in [0, 1] and labels (M,) of a split: 60 % train, 20 % val, 20 % test."""
    pictures, labels = load_digits(return_X_y=True)
    pictures = pictures.reshape(-1, 8, 8).astype(np.float32) / 16.0
    train, rest = train_test_split(
        np.arange(len(labels)), test_size=0.4, stratify=labels, random_state=0
    )
    val, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    chosen = {"train": train, "val": val, "test": test}[split]
    return pictures[chosen], labels[chosen]


@cache
def _photographs(split: str) -> tuple[np.ndarray, ...]:
    """The columns of each photograph that belong to a split: no pixel is in two splits."""
    columns = {"train": slice(0, 320), "val": slice(320, 460), "test": slice(460, 640)}[split]
    return tuple(image[:, columns] for image in load_sample_images().images)


def _resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) or (h, w, c) floats resampled to (height, width[, c])."""
    tensor = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32))
    planes = tensor[None, None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)[None]
    planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    return (planes[0, 0] if tensor.ndim == 2 else planes[0].permute(1, 2, 0)).numpy()


def _background(split: str, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a dimmed photograph, mirrored half of the time: (SIZE, SIZE, 3)."""
    photographs = _photographs(split)
    photo = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(80, min(photo.shape[:2]) + 1))
    top = rng.integers(photo.shape[0] - side + 1)
    left = rng.integers(photo.shape[1] - side + 1)
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return _resize(crop, SIZE, SIZE) * BRIGHTNESS


def _paste(image: np.ndarray, digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend a digit (8, 8) into `image` in place, somewhere in some size; its tight box (4,)."""
    side = int(round(np.exp(rng.uniform(np.log(MIN_DIGIT), np.log(MAX_DIGIT)))))
    ink = _resize(digit, side, side)
    rows, cols = np.nonzero((ink > 0.25).any(1))[0], np.nonzero((ink > 0.25).any(0))[0]
    ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    height, width = ink.shape
    x, y = rng.integers(SIZE - width + 1), rng.integers(SIZE - height + 1)
    patch = image[y : y + height, x : x + width]
    opacity = rng.uniform(0.75, 1.0) * ink[..., None]
    patch += opacity * (rng.uniform(INK, 255, 3) - patch)
    return np.array([x, y, x + width, y + height], dtype=np.float32)


def _scene(split: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image (SIZE, SIZE, 3) uint8 with its box (1, 4) and label (1,)."""
    image = _background(split, rng)
    pictures, digits = _digits(split)
    chosen = rng.integers(len(digits))
    box = _paste(image, pictures[chosen], rng)
    return image.clip(0, 255).astype(np.uint8), box[None], digits[chosen : chosen + 1]


def make_scenes(split: str, count: int, seed: int = 0) -> Scenes:
    """`count` scenes of a split. Scene i depends on (seed, split, i) only, not on `count`."""
    if split not in SPLITS:
        raise ValueError(f"expected split to be one of {SPLITS}, but got {split!r}")
    images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
    boxes, labels = [], []
    for i in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), i])
        image, scene_boxes, scene_labels = _scene(split, rng)
        images[i] = torch.from_numpy(image).permute(2, 0, 1)
        boxes.append(torch.from_numpy(scene_boxes))
        labels.append(torch.from_numpy(scene_labels))
    return Scenes(images, boxes, labels)
