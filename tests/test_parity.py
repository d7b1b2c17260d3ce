"""Chain-of-Parities is the paper's task, its data are what they claim, and its verifier is right."""

import functools
import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.errors import UserError
from adaback_lite.policy import tiny_tokenizer
from adaback_lite.tasks import Parity, Sample
from adaback_lite.tasks.parity import prompt_positions
from tests.helpers import BOS, EQUALS, ONE, ZERO, small_task

DEGREES = range(1, 9)


def slow_z(x: str, y: str, degree: int) -> list[int]:
    """Z by the text of the task: 1 copies X_i, 2 adds Y_i, 3 adds Z_{i-1}, 4 and more add X_{i-1}, X_{i-2}, ... (0 before the start)."""
    z = []
    for i in range(len(x)):
        value = int(x[i])
        if degree >= 2:
            value ^= int(y[i])
        if degree >= 3 and i > 0:
            value ^= z[i - 1]
        for back in range(1, degree - 2):
            if i - back >= 0:
                value ^= int(x[i - back])
        z.append(value)
    return z


def interleave(y: str, z: list[int]) -> str:
    return "".join(f"{a}{b}" for a, b in zip(y, z))


def sample(x: str) -> Sample:
    return Sample(0, x + "=", "", "")


@functools.cache
def task_of(length: int, degree: int = 3) -> Parity:
    """For its rules alone, whatever its data: any length, too short for three splits too."""
    task = small_task(degree=degree)
    task.length = length
    return task


def test_the_docstrings_example():
    task = task_of(3)
    assert task.solve("101", "011") == "011010"
    assert task.verify(sample("101"), "011010").right


bits = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.text("01", min_size=n, max_size=n)] * 2))


@pytest.mark.parametrize("degree", DEGREES)
@given(bits)
def test_solve_and_verify_agree_with_the_slow_loop(degree, xy):
    x, y = xy
    task = task_of(len(x), degree)
    output = task.solve(x, y)
    assert output == interleave(y, slow_z(x, y, degree))
    assert task.verify(sample(x), output).right


@pytest.mark.parametrize("degree", DEGREES)
@given(bits, st.data())
def test_any_flipped_z_is_wrong_at_its_step(degree, xy, data):
    x, y = xy
    task = task_of(len(x), degree)
    flipped = data.draw(st.sets(st.integers(0, len(x) - 1), min_size=1))
    z = [v ^ (i in flipped) for i, v in enumerate(slow_z(x, y, degree))]
    verdict = task.verify(sample(x), interleave(y, z))
    assert (verdict.kind, verdict.step) == ("wrong", min(flipped) + 1)
    assert f"Z_{min(flipped) + 1} should be {1 - z[min(flipped)]}" in verdict.why


@pytest.mark.parametrize("degree", DEGREES)
def test_random_outputs_are_valid_with_probability_two_to_the_minus_length(degree):
    """All 256 outputs of length 4, for each of three inputs; and the first wrong step is i with probability 2^-i."""
    task = task_of(4, degree)
    for x in ("0000", "1011", "0110"):
        verdicts = [task.verify(sample(x), "".join(o)) for o in itertools.product("01", repeat=8)]
        assert Fraction(sum(v.right for v in verdicts), 256) == Fraction(1, 2**4)
        assert [sum(v.step == i for v in verdicts) for i in (1, 2, 3, 4)] == [128, 64, 32, 16]


@pytest.mark.parametrize("output", ["", "0", "000000000", "00000000000", "0a00000000", "0000 00000", "٠" * 10, "<eos>00000", "0000<bos>0", "-000000000", "0000000000\n"])
def test_what_is_not_bits_of_the_right_number_is_unparseable(output):
    for degree in (2, 3, 4):
        verdict = task_of(5, degree).verify(sample("00000"), output)
        assert verdict.kind == "unparseable" and verdict.step is None and verdict.why


@pytest.mark.parametrize("length", [6, 16])
def test_splits_are_disjoint_distinct_and_the_same_each_time(length):
    sizes = {"n_train": 16, "n_val": 6, "n_test": 7} if length == 6 else {"n_train": 2000, "n_val": 300, "n_test": 500}
    first, again, other = (Parity(tiny_tokenizer(), length, seed=seed, **sizes) for seed in (0, 0, 1))
    splits = [first.train, first.val, first.test]
    assert [len(s) for s in splits] == list(sizes.values())
    inputs = [s.prompt for split in splits for s in split]
    assert len(set(inputs)) == len(inputs)
    assert splits == [again.train, again.val, again.test]
    assert first.train != other.train
    assert all([s.id for s in split] == list(range(len(split))) for split in splits)
    for s in first.train:
        assert first.verify(s, s.rationale).right and s.answer == s.rationale[-1] and len(s.rationale) == 2 * length


def test_more_data_is_the_same_data_and_more():
    """The regime map varies n_train: a smaller training set is the start of a larger one, val and test stay."""
    small, large = (Parity(tiny_tokenizer(), 12, n_train=n, n_val=20, n_test=30) for n in (16, 400))
    assert large.train[:16] == small.train and (large.val, large.test) == (small.val, small.test)


def test_free_bits_and_inputs_are_balanced():
    task = Parity(tiny_tokenizer(), 16, n_train=4000, n_val=1, n_test=1)
    for column in zip(*((s.prompt[:-1] + s.rationale) for s in task.train)):
        assert abs(column.count("1") - 2000) < 4 * 4000**0.5 / 2


def test_neighbouring_seeds_share_no_more_than_chance():
    """PITFALLS: with seed + index, item 1 of seed 0 is item 0 of seed 1."""
    a, b = (Parity(tiny_tokenizer(), 16, n_train=500, n_val=1, n_test=1, seed=s) for s in (0, 1))
    shared = {s.prompt for s in a.train} & {s.prompt for s in b.train}
    assert len(shared) < 20  # 500 * 500 / 2^16 = 3.8 by chance


@pytest.mark.parametrize(("length", "n"), [(1, 1), (5, 12), (10, 400)])
def test_too_short_a_chain_is_refused_in_words(length, n):
    with pytest.raises(UserError, match=rf"task.length is {length}.*raise task.length"):
        Parity(tiny_tokenizer(), length, n_train=n, n_val=n, n_test=n)


def test_a_split_that_runs_out_says_so():
    with pytest.raises(UserError, match="has no more"):
        Parity(tiny_tokenizer(), 6, n_train=1, n_val=30, n_test=1)  # a quarter of 64 is val


def test_tokens_positions_and_steps_by_hand():
    task = small_task(length=5, positions="coupled")
    s = Sample(0, "01101=", "0110001110", "0")
    ids, positions, start = task.prompt_ids(s)
    assert ids == [BOS, ZERO, ONE, ONE, ZERO, ONE, EQUALS]
    assert (positions, start) == ([0, 1, 3, 5, 7, 9, 0], 1)
    assert task.rationale_ids(s) == [ZERO + int(c) for c in s.rationale]
    assert task.step_ends(s) == [2, 4, 6, 8, 10]
    assert small_task(length=5).prompt_ids(s) == (ids, [0, 1, 2, 3, 4, 5, 6], 7)


@pytest.mark.parametrize("length", [1, 2, 16])
def test_coupled_positions_put_each_input_bit_where_its_free_bit_goes(length):
    positions, start = prompt_positions(length, "coupled")
    output = range(start, start + 2 * length)
    assert positions[1 : length + 1] == list(output)[::2]
    assert prompt_positions(length, "sequential") == (list(range(length + 2)), length + 2)
