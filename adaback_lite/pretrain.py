"""The base for the tiny policy: it knows how to find X_i from step i and how an output ends, and nothing of parities.

A pretrained language model brings the skill of looking things up in its context. A random one must first learn it, and
that, not the parity, is then what takes the time (PAPER.md, "Seen when tried"). So tiny starts from a model trained on
chains Y_1 Z_1 ... Y_L Z_L in which every Z_i of a chain follows one of four rules: X_i, Y_i, 0 or 1, drawn a chain at a time.
No rule combines two bits. `tests/test_pretrain.py` checks that the result knows no parity.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch

from .config import PolicySettings
from .packing import Prefix, packed_logprobs
from .policy import load_folder, tiny_model, tiny_tokenizer
from .seeding import numpy_generator

RECIPE = 1  # raise it when anything below changes what a base is
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "bases"


def copy_chains(rng: np.random.Generator, n: int, length: int) -> tuple[list[str], list[str]]:
    """n inputs X and n outputs Y_1 Z_1 ... whose Z follow one copying rule each."""
    x, y = rng.integers(0, 2, (2, n, length))
    rule = rng.integers(0, 4, (n, 1))
    z = np.select([rule == 0, rule == 1, rule == 2], [x, y, np.zeros_like(x)], np.ones_like(x))
    outputs = np.stack([y, z], axis=2).reshape(n, 2 * length)
    return ["".join(map(str, row)) for row in x], ["".join(map(str, row)) for row in outputs]
