"""Tensor-k samples hold k different problems of one split, whole and in order, and use each at most once."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.errors import UserError
from adaback_lite.tasks import Sample
from adaback_lite.tasks.gsm8k import load_gsm8k, normalised
from adaback_lite.tasks.tensor import tensor

from . import helpers  # noqa: F401  (the hypothesis profile)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"


def made_up(questions: list[str]) -> list[Sample]:
    return [Sample(i, q, f"Step {i}.\n#### {i}", str(i), f"gsm8k/train/{i}") for i, q in enumerate(questions)]


def parts(sample: Sample) -> list[int]:
    return [int(source.removeprefix("gsm8k/train/")) for source in sample.source.split("+")]


def test_two_problems_by_hand():
    a, b = Sample(0, "How many?", "1+1=<<1+1=2>>2\n#### 2", "2", "gsm8k/train/17"), Sample(1, "Who?", "A\n#### 1,000", "1,000", "gsm8k/train/99")
    (found,) = tensor([a, b], 2, "train")
    forwards = Sample(
        0,
        "Problem 1: How many?\n\nProblem 2: Who?",
        "1+1=<<1+1=2>>2\n#### 2\nA\n#### 1,000",
        "2\n1,000",
        "gsm8k/train/17+gsm8k/train/99",
    )
    backwards = Sample(
        0,
        "Problem 1: Who?\n\nProblem 2: How many?",
        "A\n#### 1,000\n1+1=<<1+1=2>>2\n#### 2",
        "1,000\n2",
        "gsm8k/train/99+gsm8k/train/17",
    )
    assert found in (forwards, backwards)
    orders = {tensor([a, b], 2, f"name {i}")[0] for i in range(40)}
    assert orders == {forwards, backwards}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.text(max_size=3))
def test_every_problem_is_used_at_most_once_a_permutation(n, k, repeats, name):
    samples = made_up([f"Question {i}?" for i in range(n)])
    if n < k:
        with pytest.raises(UserError, match=f"needs {k} problems for one prompt and there are only {n}"):
            tensor(samples, k, name, repeats)
        return
    found = tensor(samples, k, name, repeats)
    assert found == tensor(samples, k, name, repeats)
    assert [s.id for s in found] == list(range(len(found)))
    assert max(Counter(i for s in found for i in parts(s)).values()) <= repeats
    assert all(len(set(parts(s))) == k for s in found)
    assert len({s.source for s in found}) == len(found)  # nothing comes twice
    once = tensor(samples, k, name)
    assert found[: len(once)] == once and len(once) == n // k
    if k > 1 and n >= 12:  # then groups hardly ever repeat
        assert len(found) > (repeats - 1) * (n // k)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30), st.integers(2, 4))
def test_equal_questions_never_share_a_prompt(questions, k):
    samples = made_up([q.upper() + "?" if i % 2 else q for i, q in enumerate(questions)])
    found = tensor(samples, min(k, len(samples)), "x")
    used = [i for s in found for i in parts(s)]
    assert len(set(used)) == len(used)
    for s in found:
        assert len({questions[i] for i in parts(s)}) == len(parts(s))
    left = [q for i, q in enumerate(questions) if i not in used]
    assert len(left) < k or len(set(left)) < k  # what is left would not make one more group


def test_equal_questions_wait_for_the_next_prompt():
    """Two questions, ten times each: greedy pairing finds all ten pairs, whatever the order."""
    for name in "abc":
        assert len(tensor(made_up(["a", "b"] * 10), 2, name)) == 10
    assert tensor(made_up(["a", "A?"]), 2, "x") == []


def test_names_repeats_and_sizes_change_the_pairing():
    samples = made_up([f"Question {i}?" for i in range(60)])
    sources = [[s.source for s in tensor(samples, k, name)] for k, name in ((2, "train"), (2, "val"), (3, "train"))]
    assert len({tuple(s) for s in sources}) == 3
    twice = tensor(samples, 2, "train", 2)
    assert len(twice) == 60 and {frozenset(parts(s)) for s in twice[:30]} != {frozenset(parts(s)) for s in twice[30:]}


def test_one_problem_a_prompt_is_the_problem():
    samples = made_up(["a", "b", "c"])
    assert tensor(samples, 1, "train") == samples


@pytest.mark.parametrize(("k", "repeats"), [(0, 1), (-1, 1), (2, 0)])
def test_senseless_numbers_are_refused(k, repeats):
    with pytest.raises(UserError, match="makes no sense; give at least 1"):
        tensor(made_up(["a", "b", "c"]), k, "train", repeats)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_real_set_s_splits_share_no_problem_after_pairing(k):
    splits = load_gsm8k(str(DATA))
    found = {name: tensor(samples, k, name) for name, samples in splits.items()}
    assert {name: len(s) for name, s in found.items()} == {name: len(s) // k for name, s in splits.items()}
    used, asked = {}, {}
    for name, samples in found.items():
        by_source = {s.source: s for s in splits[name]}
        used[name] = [source for s in samples for source in s.source.split("+")]
        assert len(set(used[name])) == len(used[name])
        for s in samples:
            group = [by_source[source] for source in s.source.split("+")]  # a KeyError would be a problem of another split
            assert s.prompt.split("\n\nProblem ") == [("Problem 1: " if n == 1 else f"{n}: ") + p.prompt for n, p in enumerate(group, 1)]
            lines = s.rationale.split("\n")
            assert [line.removeprefix("#### ") for line in lines if line.startswith("#### ")] == s.answer.split("\n") == [p.answer for p in group]
            assert lines == [line for p in group for line in p.rationale.split("\n")] and lines[-1].startswith("#### ")
        asked[name] = {normalised(by_source[source].prompt) for source in used[name]}
    assert not (asked["train"] & asked["val"] or asked["train"] & asked["test"] or asked["val"] & asked["test"])
