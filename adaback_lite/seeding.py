"""Randomness as a function of names, not of history.

Every random draw of a run comes from a generator seeded by `derive(seed, name, index)`, for instance
`derive(0, "rollout", 17)`. A resumed run draws in step 17 what the undisturbed run draws there, with no state to save.
A hash, not a sum: with `seed + index`, item 1 of seed 42 would be item 0 of seed 43 and neighbouring runs would share data.
"""

import hashlib

import numpy as np
import torch


def derive(*names) -> int:
    """A 63-bit integer from any sequence of names and numbers, the same on every machine. `derive(0, "a") != derive("0", "a")`."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(*names) -> np.random.Generator:
    """A numpy generator for this purpose and no other."""
    return np.random.Generator(np.random.PCG64(derive(*names)))


def torch_generator(*names) -> torch.Generator:
    """A torch generator (CPU) for this purpose and no other."""
    return torch.Generator().manual_seed(derive(*names))
