"""Chain-of-Parities (paper, synthetic data).

The input is L bits X. The output is Y_1 Z_1 ... Y_L Z_L: each Y_i may be chosen freely, each Z_i must be the parity

    Z_i = Z_{i-1} xor Y_i xor X_i,   Z_0 = 0.

Written out for X = 101 and free bits Y = 011:

    Z_1 = 0 xor 0 xor 1 = 1,   Z_2 = 1 xor 1 xor 0 = 0,   Z_3 = 0 xor 1 xor 1 = 0   ->   01 10 10

A chain of random bits has every Z_i right with probability 2^-L: the reward that plain RL waits for.
The degree of the parity can be changed for teaching (our choice): 1 copies X_i, 2 leaves Z_{i-1} out, 4 and more add X_{i-1}, X_{i-2}, ...
"""

import itertools
from collections.abc import Iterator
from typing import Literal

from ..errors import UserError
from ..seeding import derive, numpy_generator
from . import Sample, Verdict

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def prompt_positions(length: int, positions: str) -> tuple[list[int], int]:
    """Position ids of `<bos>X=` and of the first output token. `i` counts from 1.

    coupled:    <bos> 0,  X_i 2i-1,  = 0,  then Y_i 2i-1 and Z_i 2i: X_i stands where Y_i stands, Z_{i-1} just before.
    sequential: 0, 1, 2, ... on into the output.
    """
    if positions == "sequential":
        return list(range(length + 2)), length + 2
    return [0, *range(1, 2 * length, 2), 0], 1


class Parity:
    """Chain-of-Parities of one length and degree, with seeded data whose splits share no input.

    Args:
        length: chain length L, in steps; the output has 2L tokens.
        degree: bits in each parity; 3 is the paper's.
        n_train, n_val, n_test: distinct inputs in each split.
        seed: seed of the data.
        positions: "sequential" numbers all tokens 0, 1, 2, ...; "coupled" gives X_i the position of Y_i (see `prompt_positions`).
        tokenizer: a tokenizer that knows the characters 0, 1 and =.

    Raises UserError when 2^L is too small for so many distinct inputs.
    """

    def __init__(self, tokenizer, length=16, degree=3, n_train=1024, n_val=128, n_test=512, seed=0, positions="coupled"):
        self.tokenizer, self.length, self.degree, self.seed, self.positions = tokenizer, length, degree, seed, positions
        needed = n_train + n_val + n_test
        if 2**length < 2 * needed:
            raise UserError(
                f"task.length is {length}, which has only {2**length} inputs, too few for {needed} distinct ones with room to spare; "
                "raise task.length or lower task.n_train, n_val, n_test."
            )
        self.train, self.val, self.test = (list(itertools.islice(self.stream(s), n)) for s, n in zip(SPLITS, (n_train, n_val, n_test)))
        zero, one = tokenizer.convert_tokens_to_ids(["0", "1"])
        self._token = {"0": zero, "1": one, "=": tokenizer.convert_tokens_to_ids("=")}

    def split_of(self, bits: str) -> Split:
        """The split that owns this input: a hash decides, so that no input is ever in two. A quarter each is val and test."""
        return ("train", "train", "val", "test")[derive(self.seed, "split", bits) % 4]

    def stream(self, split: Split) -> Iterator[Sample]:
        """Distinct samples of a split, the same ones in the same order for the same seed, until the inputs run out."""
        rng, seen, misses = numpy_generator(self.seed, "parity", split, self.length), set(), 0
        while misses < 10_000:
            x, y = ("".join(map(str, rng.integers(0, 2, self.length))) for _ in "xy")
            if x in seen or self.split_of(x) != split:
                misses += 1
                continue
            misses = 0
            seen.add(x)
            rationale = self.solve(x, y)
            yield Sample(len(seen) - 1, x + "=", rationale, rationale[-1])
        raise UserError(f"task.length is {self.length}: after {len(seen)} inputs the {split} split has no more; raise task.length or ask for fewer samples.")

    def parity(self, x: str, y: int, z_before: int, i: int) -> int:
        """Z_i from its `degree` bits; `i` counts from 0."""
        bits = [int(x[i]), y, z_before] + [int(x[i - d]) if i >= d else 0 for d in range(1, self.degree - 2)]
        return sum(bits[: self.degree]) % 2

    def solve(self, x: str, y: str) -> str:
        """The one valid output for input `x` and free bits `y`, both as strings of L bits."""
        z, out = 0, []
        for i in range(self.length):
            z = self.parity(x, int(y[i]), z, i)
            out.append(f"{y[i]}{z}")
        return "".join(out)

    def as_prompt(self, sample: Sample) -> str:
        """The prompt as it is told to a library: text, `<bos>` included, since the tokenizer adds none."""
        return self.tokenizer.bos_token + sample.prompt

    def steps(self, sample: Sample) -> list[str]:
        """The pairs Y_i Z_i."""
        return [sample.rationale[i : i + 2] for i in range(0, len(sample.rationale), 2)]

    def prompt_ids(self, sample: Sample) -> tuple[list[int], list[int], int]:
        """Token ids of `<bos>X=`, their position ids, and the position id of the first output token."""
        ids = [self.tokenizer.bos_token_id] + [self._token[c] for c in sample.prompt]
        return ids, *prompt_positions(self.length, self.positions)

    def rationale_ids(self, sample: Sample) -> list[int]:
        """The 2L token ids of the rationale."""
        return [self._token[c] for c in sample.rationale]

    def step_ends(self, sample: Sample) -> list[int]:
        """A reasoning step is one pair Y_i Z_i."""
        return list(range(2, 2 * self.length + 1, 2))

    def answer_tokens(self, sample: Sample) -> int:
        """The last bit at least stays hidden."""
        return 1

    def max_new(self, sample: Sample, shown: int) -> int:
        """What is hidden, and one token more, for the end."""
        return len(self.rationale_ids(sample)) - shown + 1

    def verify(self, sample: Sample, output: str) -> Verdict:
        """Judge an output, the revealed part included.

        Unparseable: not exactly 2L characters, or other characters than 0 and 1. Wrong: `step` is the first i whose Z_i fails.
        """
        if len(output) != 2 * self.length:
            return Verdict("unparseable", why=f"{len(output)} characters where {2 * self.length} were due")
        if output.strip("01"):
            return Verdict("unparseable", why="characters other than 0 and 1")
        x, z = sample.prompt, 0
        if self.degree == 3:  # the same as below, without a call a step: this runs for every rollout
            for i, (y, given) in enumerate(zip(output[::2], output[1::2])):
                z ^= (y != x[i]) & 1
                if z != (given == "1"):
                    return Verdict("wrong", i + 1, f"Z_{i + 1} should be {z}")
            return Verdict("right")
        for i in range(self.length):
            z = self.parity(x, int(output[2 * i]), z, i)
            if str(z) != output[2 * i + 1]:
                return Verdict("wrong", i + 1, f"Z_{i + 1} should be {z}")
        return Verdict("right")
