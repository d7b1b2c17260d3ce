"""Numbers that are reported: verdicts, shares, intervals, pass@k."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.evaluate import evaluate, judge, make_prefix, pass_at_k, wilson
from adaback_lite.policy import tiny_tokenizer
from adaback_lite.rollout import Rollouts
from tests.helpers import BOS, EOS, PAD, ZERO, small_model, small_task


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 100, 0.0, 0.03699),  # known values, e.g. Brown, Cai and DasGupta (2001) and R's prop.test(correct = FALSE)
        (100, 100, 0.96301, 1.0),
        (50, 100, 0.40383, 0.59617),
        (1, 10, 0.01788, 0.40415),
        (5, 10, 0.23659, 0.76341),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_known_values(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=2e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_root_of_the_score_test(right_n):
    """Its ends are the shares p at which (right/n - p)^2 = z^2 p (1 - p) / n."""
    right, n = right_n
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1
    for p in (low, high):
        assert (right / n - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n, abs=1e-9)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(n):
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match=f"pass@{n + 1}"):
        pass_at_k(n, 0, n + 1)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_bounds(nrk):
    n, right, k = nrk
    value = pass_at_k(n, right, k)
    assert 0 <= value <= 1 and pass_at_k(n, right, 1) == pytest.approx(right / n) and value >= right / n - 1e-12
    assert value == 1 or math.comb(n - right, k) > 0


def as_rollouts(groups: list[list[list[int]]]) -> Rollouts:
    S = max(len(w) for group in groups for w in group)
    tokens = torch.tensor([[w + [PAD] * (S - len(w)) for w in group] for group in groups])
    mask = torch.tensor([[[i < len(w) for i in range(S)] for w in group] for group in groups])
    return Rollouts(tokens, mask, torch.tensor([[w[-1] == EOS for w in group] for group in groups]), 0.0)


def test_judge_by_hand():
    """Two samples, the second with 4 tokens revealed; every way in which an output can end."""
    task, tokenizer = small_task(length=4, n_train=2, n_val=1, n_test=1), tiny_tokenizer()
    a, b = task.train
    ra, rb = task.rationale_ids(a), task.rationale_ids(b)
    flip = [*ra[:3], 2 * ZERO + 1 - ra[3], *ra[4:]]
    rollouts = as_rollouts(
        [
            [[*ra, EOS], [*flip, EOS], [*ra[:7], EOS], [*ra, ra[0]]],
            [[*rb[4:], EOS], [*rb, EOS], [EOS], [rb[4], BOS, EOS]],
        ]
    )
    judged = judge(task, tokenizer, [a, b], [0, 4], rollouts)
    kinds = [[v.kind for v in group] for group in judged.verdicts]
    assert kinds == [["right", "wrong", "unparseable", "unparseable"], ["right", "unparseable", "unparseable", "unparseable"]]
    assert judged.verdicts[0][1].step == 2
    assert judged.verdicts[0][3].why == "cut at the length limit"
    assert judged.outputs[0][0] == a.rationale and judged.outputs[1][0] == b.rationale  # the revealed part in front
    assert judged.outputs[1][3].endswith("<bos>")  # a foreign token is not dropped in silence
    assert (judged.share("right"), judged.share("wrong"), judged.share("unparseable")) == (2 / 8, 1 / 8, 5 / 8)


@pytest.mark.parametrize("shown", [0, 1, 7, 9])
def test_make_prefix_by_hand(shown):
    task = small_task(length=5, positions="coupled")
    p = make_prefix(task, task.train[0], shown)
    ids, positions, start = task.prompt_ids(task.train[0])
    assert p.ids == ids + task.rationale_ids(task.train[0])[:shown]
    assert p.positions == positions + list(range(start, start + shown)) and p.next_position == start + shown
    assert p.max_new == 10 - shown + 1  # what is hidden, and the end token


def test_evaluate_is_a_function_of_the_seed_and_shows_nothing():
    task, model = small_task(), small_model()
    first, again, other = (evaluate(model, tiny_tokenizer(), task, task.train, k=3, seed=s) for s in (0, 0, 1))
    assert first == again and first.outputs != other.outputs
    assert [len(group) for group in first.outputs] == [3] * len(task.train)
    cut = evaluate(model, tiny_tokenizer(), task, task.train, k=3, seed=0, rows=4)
    assert cut.outputs == first.outputs
