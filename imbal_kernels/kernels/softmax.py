"""The raw op softmax_loss on tensors: outputs, specialisation and launches."""

import math

import torch

from . import formulas, rows, streaming
from .launch import Launch, cdiv, interpreted, on_device

NO_LOSS, ELEMENTWISE, SUM = 0, 1, 2
LOSSES = {NO_LOSS: "none", ELEMENTWISE: "elementwise", SUM: "sum"}
# Up to so many classes a row -> rows a program, width of a tile, warps: 32 to 80 logits a thread.
ROWS = {16: (64, 4, 1), 128: (32, 16, 1), 256: (8, 32, 1), 512: (4, 64, 1), 2048: (2, 128, 1), 16384: (1, 512, 4)}


def kind_of(gamma):
    return int(2 * gamma) if gamma in (0, 0.5, 1, 1.5, 2, 2.5, 3) else formulas.GENERAL.value
