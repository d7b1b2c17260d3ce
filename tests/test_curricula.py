"""Curricula by property: intervals stay intervals, a threshold is found, a saved state goes on bit for bit; and schedules by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.helpers  # noqa: F401  (hypothesis' profile)
from adaback_lite.checks import CHECKS, any_history, check_curriculum
from adaback_lite.config import CurriculumSettings
from adaback_lite.curricula import UFT, AdaBack, Anneal, Constant, Curriculum, Frontier, R3Staged, make_curriculum, tokens_shown

NAMES = ["none", "constant", "adaback", "r3", "r3-staged", "uft", "anneal", "frontier"]
SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))
ADABACK = st.fixed_dictionaries(
    {
        "tau": st.floats(0, 1.5),
        "alpha": SHARES,
        "ema_init": st.sampled_from(["both", "max", "none"]),
        "zero_prob": SHARES,
        "zero_updates": st.sampled_from(["never", "success", "always"]),
        "recovery": SHARES,
    }
)
VISITS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2**32 - 1)), min_size=1, max_size=12)  # batch size, seed of ids and rewards


def ids_and_rewards(size, seed, n):
    """Any samples, the same one twice among them, and rewards that bring all kinds of outcome."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, n, size), rng.choice([0.0, 0.25, 0.5, 1.0, 1.1], size)


@given(ADABACK, VISITS, st.integers(0, 100))
def test_adaback_intervals_stay_intervals(options, visits, seed):
    curriculum = AdaBack(7, seed, **options)
    for step, (size, visit_seed) in enumerate(visits):
        ids, reward = ids_and_rewards(size, visit_seed, 7)
        rho = curriculum.reveal(ids, step)
        assert rho.shape == (size,) and ((rho >= 0) & (rho <= 1)).all()
        inside = (rho >= curriculum.rho_min[ids]) & (rho <= curriculum.rho_max[ids])
        assert (inside | (curriculum.forced[ids] & (rho == 0))).all()
        before = curriculum.rho_max.copy()
        curriculum.update(ids, rho, reward)
        assert (curriculum.rho_min >= 0).all() and (curriculum.rho_min <= curriculum.rho_max).all() and (curriculum.rho_max <= 1).all()
        assert 0 <= curriculum.mean_min <= 1 and 0 <= curriculum.mean_max <= 1
        if options["recovery"] == 0:
            assert (curriculum.rho_max <= before).all()  # the ratchet


@given(
    st.sampled_from(NAMES),
    st.builds(
        CurriculumSettings,
        tau=st.floats(0, 1.5),
        alpha=SHARES,
        ema_init=st.sampled_from(["both", "max", "none"]),
        zero_prob=SHARES,
        zero_updates=st.sampled_from(["never", "success", "always"]),
        recovery=SHARES,
        cuts=st.integers(1, 9),
        horizon=st.integers(1, 20),
        shape=st.sampled_from(["linear", "cosine"]),
        uft_start=SHARES,
        uft_end=SHARES,
        probe=SHARES,
        patience=st.integers(1, 4),
        rise=st.floats(0.01, 1),
        rho=SHARES,
    ),
    any_history(wide=True),
)
def test_every_curriculum_has_the_properties_of_one(name, s, history):
    """checks.py: shares in bounds, same seed same shares, a saved state goes on to the bit, and so on."""

    def make(n_samples, seed):
        return make_curriculum(name, s, n_samples, seed, n_steps=[1 + i % 9 for i in range(n_samples)])

    for check in CHECKS:
        check(make, history)


@pytest.mark.parametrize("name", NAMES)
def test_every_curriculum_passes_what_a_class_of_ones_own_must(name):
    report = check_curriculum(lambda n, seed: make_curriculum(name, CurriculumSettings(), n, seed, n_steps=[1 + i % 9 for i in range(n)]), 30)
    assert report.ok, report


def test_a_state_of_another_kind_or_size_is_refused():
    state = AdaBack(7).state_dict()
    for other in (AdaBack(8), Frontier(7), Curriculum(7)):
        with pytest.raises(ValueError, match="another kind"):
            other.load_state_dict(state)


def test_same_seed_same_draws_and_another_seed_others():
    draws = [AdaBack(50, seed, zero_prob=0).reveal(np.arange(50), 0).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def scripted(curriculum, draws):
    """Replace the curriculum's random numbers: each call of random(n) takes the next of `draws`."""

    class Script:
        def random(self, n):
            return np.full(n, draws.pop(0))

    curriculum.rng = Script()
    return curriculum


def test_adaback_by_hand():
    """tau 0.5: [0, 1], draw 0.6, reward 0.25 -> [0.6, 1]; draw 0.8, reward 0.5 -> [0, 0.8]; draw 0.4, reward 0 -> [0.4, 0.8]."""
    c = scripted(AdaBack(1, ema_init="none"), [0.6, 0.9, 0.5, 0.9, 0.5, 0.9])  # each visit takes a place in the interval, then whether it is forced
    only = np.array([0])
    for place, reward, low, high in ((0.6, 0.25, 0.6, 1.0), (0.8, 0.5, 0.0, 0.8), (0.4, 0.0, 0.4, 0.8)):
        rho = c.reveal(only, 0)
        assert rho[0] == pytest.approx(place)
        c.update(only, rho, np.array([reward]))
        assert (c.rho_min[0], c.rho_max[0]) == pytest.approx((low, high))


def test_recovery_by_hand():
    c = AdaBack(1, recovery=0.5, zero_prob=0)
    c.seen[0], c.rho_min[0], c.rho_max[0] = True, 0.1, 0.4
    c.update(np.array([0]), np.array([0.3]), np.array([0.0]))
    assert (c.rho_min[0], c.rho_max[0]) == pytest.approx((0.3, 0.7))
    c.update(np.array([0]), np.array([0.5]), np.array([1.0]))
    assert (c.rho_min[0], c.rho_max[0]) == pytest.approx((0.0, 0.5))


@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_a_threshold_learner_is_tracked(seed, threshold):
    """Succeeds exactly when rho reaches its threshold: rho_max comes down to it, never below, and the interval closes on it."""
    c, ids = AdaBack(16, seed, tau=0.5, zero_prob=0.1), np.arange(16)
    for step in range(200):
        rho = c.reveal(ids, step)
        c.update(ids, rho, (rho >= threshold).astype(float))
        assert (c.rho_max >= threshold).all()
    assert (c.rho_max < threshold + 0.05).all()


def test_a_falling_threshold_is_followed_from_above():
    """As the learner improves from 0.9 to 0, mean rho_max follows and ends near 0."""
    c, ids, gaps = AdaBack(64, 0), np.arange(64), []
    for step in range(400):
        threshold = max(0.9 - step / 300, 0.0)
        rho = c.reveal(ids, step)
        c.update(ids, rho, (rho >= threshold).astype(float))
        assert (c.rho_max >= threshold).all()
        gaps.append(c.rho_max.mean() - threshold)
    assert max(gaps[40:]) < 0.15 and c.rho_max.max() < 0.02


def test_luck_drags_the_ratchet_and_recovery_frees_it():
    """PAPER.md, "Seen when tried": a learner that needs 0.7 but is lucky below it one time in five."""
    means = {}
    for recovery in (0.0, 0.1):
        c, ids, rng = AdaBack(200, 0, recovery=recovery), np.arange(200), np.random.default_rng(0)
        for step in range(150):
            rho = c.reveal(ids, step)
            c.update(ids, rho, ((rho >= 0.7) | (rng.random(200) < 0.2)).astype(float))
        means[recovery] = c.rho_max.mean()
    assert means[0.0] < 0.1 and means[0.1] > 0.4


@given(SHARES, VISITS, st.sampled_from(["never", "success", "always"]))
def test_vectorised_average_equals_the_loop(alpha, visits, zero_updates):
    c = AdaBack(40, 0, alpha=alpha, zero_prob=0.3, zero_updates=zero_updates)
    for step, (size, seed) in enumerate(visits):
        rng = np.random.default_rng(seed)
        ids = rng.permutation(40)[:size]  # distinct
        rho, reward = c.reveal(ids, step), rng.random(size)
        mean_min, mean_max = c.mean_min, c.mean_max
        c.update(ids, rho, reward)
        for i, r in zip(ids, reward):
            counts = not c.forced[i] or zero_updates == "always" or (zero_updates == "success" and r >= c.tau)
            if counts:
                mean_min = alpha * c.rho_min[i] + (1 - alpha) * mean_min
                mean_max = alpha * c.rho_max[i] + (1 - alpha) * mean_max
        assert (c.mean_min, c.mean_max) == pytest.approx((mean_min, mean_max), abs=1e-9)


def first_interval(**options):
    """What sample 9 starts with after sample 0 ended at [0.6, 1] and then sample 1 at [0, 0.3]; nothing is forced."""
    c = AdaBack(10, 0, zero_prob=0, **options)
    c.reveal(np.array([0, 1]), 0)
    c.update(np.array([0]), np.array([0.6]), np.array([0.0]))
    c.update(np.array([1]), np.array([0.3]), np.array([1.0]))
    c.reveal(np.array([9]), 1)
    return c.rho_min[9], c.rho_max[9]


def test_what_the_averages_give_an_unseen_sample():
    assert first_interval(alpha=0.0) == (0.0, 1.0)  # the averages never move
    assert first_interval(alpha=1.0) == pytest.approx((0.0, 0.3))  # the newest interval itself
    assert first_interval(alpha=0.5) == pytest.approx((0.5 * 0.0 + 0.5 * 0.3, 0.5 * 0.3 + 0.5 * 1.0))
    assert first_interval(alpha=0.5, ema_init="max") == pytest.approx((0.0, 0.65))
    assert first_interval(alpha=0.5, ema_init="none") == (0.0, 1.0)


def test_a_seen_sample_keeps_its_own_interval():
    c = AdaBack(2, 0, alpha=1.0, zero_prob=0)
    c.reveal(np.array([0, 1]), 0)
    c.update(np.array([1]), np.array([0.1]), np.array([1.0]))
    c.reveal(np.array([0]), 1)
    assert (c.rho_min[0], c.rho_max[0]) == (0.0, 1.0)


@pytest.mark.parametrize("zero_prob", [0.0, 0.1, 0.5, 1.0])
def test_share_of_forced_visits(zero_prob):
    c, ids = AdaBack(1000, 0, zero_prob=zero_prob), np.arange(1000)
    share = np.mean([(c.reveal(ids, t) == 0).mean() for t in range(20)])  # 20,000 visits; a draw of exactly 0 by itself has probability 2^-53
    assert abs(share - zero_prob) <= 4 * math.sqrt(zero_prob * (1 - zero_prob) / 20_000)


@pytest.mark.parametrize(
    ("zero_updates", "reward", "after"),
    [
        ("never", 0.0, (0.2, 0.8)),
        ("never", 1.0, (0.2, 0.8)),
        ("success", 0.0, (0.2, 0.8)),
        ("success", 1.0, (0.0, 0.0)),
        ("always", 0.0, (0.0, 0.8)),
        ("always", 1.0, (0.0, 0.0)),
    ],
)
def test_what_a_forced_visit_updates(zero_updates, reward, after):
    c, only = AdaBack(1, 0, zero_prob=1.0, zero_updates=zero_updates, alpha=0.5), np.array([0])
    c.seen[0], c.rho_min[0], c.rho_max[0] = True, 0.2, 0.8
    rho = c.reveal(only, 0)
    assert rho.tolist() == [0.0]
    c.update(only, rho, np.array([reward]))
    assert (c.rho_min[0], c.rho_max[0]) == after
    moved = after != (0.2, 0.8)
    assert (c.mean_max != 1.0) == moved


def test_a_sample_twice_in_a_batch_counts_once_by_its_last_visit():
    """batch_size > n_train, or a batch that straddles two epochs: the visits draw from one interval, and the last one's outcome stands."""
    c, twice = AdaBack(3, 0, zero_prob=0), np.array([1, 2, 1])
    rho = c.reveal(twice, 0)
    assert rho[0] != rho[2]
    c.update(twice, np.array([0.3, 0.5, 0.6]), np.array([1.0, 1.0, 0.0]))
    assert (c.rho_min[1], c.rho_max[1]) == (0.6, 1.0)
    c.update(twice, np.array([0.7, 0.5, 0.8]), np.array([0.0, 1.0, 1.0]))
    assert (c.rho_min[1], c.rho_max[1]) == (0.0, 0.8)
    forced = AdaBack(1, 0, zero_prob=0.5)
    for step in range(20):  # and its visits of one batch are forced to 0 all together or not at all
        assert len(set((forced.reveal(np.zeros(4, dtype=int), step) == 0).tolist())) == 1


def test_frontier_by_hand():
    c, only = Frontier(1, 0, probe=0.25, patience=2, rise=0.1), np.array([0])

    def visit(rho, reward):
        c.update(only, np.array([rho]), np.array([reward]))
        return c.frontier[0]

    assert visit(0.4, 1.0) == 0.4  # solved: falls there
    assert visit(0.4, 0.0) == 0.4  # one failure at the frontier
    assert visit(0.1, 0.0) == 0.4  # a failed probe below does not count
    assert visit(0.4, 0.0) == pytest.approx(0.5)  # the second: it rises
    assert visit(0.5, 0.0) == pytest.approx(0.5)  # counting starts anew
    assert visit(0.5, 0.5) == pytest.approx(0.5)  # reward = tau is solved, and clears the count
    assert visit(0.5, 0.0) == pytest.approx(0.5)
    assert visit(0.5, 0.0) == pytest.approx(0.6)
    for _ in range(20):
        visit(c.frontier[0], 0.0)
    assert c.frontier[0] == 1.0
    c.frontier[0] = 0.5
    shares = np.concatenate([c.reveal(np.zeros(1000, dtype=int), t) for t in range(20)])
    assert abs((shares < 0.5).mean() - 0.25) < 0.02 and shares.max() == 0.5
    assert abs(shares[shares < 0.5].mean() - 0.25) < 0.01  # probes are uniform below it


def test_frontier_escapes_luck():
    """The learner of the ratchet test: the frontier settles near the 0.7 that is needed."""
    c, ids, rng = Frontier(200, 0), np.arange(200), np.random.default_rng(0)
    for step in range(300):
        rho = c.reveal(ids, step)
        c.update(ids, rho, ((rho >= 0.7) | (rng.random(200) < 0.05)).astype(float))
    assert c.frontier.mean() > 0.45


def test_schedules_by_hand():
    one = np.array([0])
    linear, cosine = Anneal(1, shape="linear", horizon=100), Anneal(1, shape="cosine", horizon=100)
    assert [linear.reveal(one, t)[0] for t in (0, 25, 100, 200)] == [1.0, 0.75, 0.0, 0.0]
    assert [cosine.reveal(one, t)[0] for t in (0, 25, 50, 100, 200)] == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.0, 0.0])
    staged = R3Staged(1, cuts=4, horizon=100)
    assert [staged.reveal(one, t)[0] for t in (0, 24, 25, 50, 75, 99, 100, 10_000)] == [0.75, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert Constant(1, rho=0.3).reveal(one, 7).tolist() == [0.3]
    assert Curriculum(1).reveal(one, 7).tolist() == [0.0]


def test_r3_draws_all_cuts_equally():
    c = make_curriculum("r3", CurriculumSettings(cuts=5), 1, 0)
    rho = c.reveal(np.zeros(10_000, dtype=int), 0)
    values, counts = np.unique(rho, return_counts=True)
    assert values.tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]  # the whole task among them, the whole rationale never
    assert ((counts - 2000) ** 2 / 2000).sum() < 4 + 4 * math.sqrt(8)  # chi-square, four standard deviations


def test_uft_is_binomial_with_the_schedules_chance():
    c, ids = UFT(1, 0, n_steps=8, start=0.95, end=0.05, horizon=100), np.zeros(5000, dtype=int)
    for step, p in ((0, 0.95), (50, 0.5), (25, 0.05 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))):
        rho = c.reveal(ids, step)
        assert np.allclose(rho * 8, np.round(rho * 8))
        assert abs(rho.mean() - p) < 4 * math.sqrt(p * (1 - p) / 8 / 5000)
        assert abs(rho.var() - p * (1 - p) / 8) < 0.1 * p * (1 - p) / 8 + 1e-4
    assert (c.reveal(ids, 100) == 0).all()


def test_uft_takes_each_samples_own_number_of_steps():
    c = UFT(3, 0, n_steps=[1, 2, 3], start=0.5, end=0.5)
    rho = np.array([c.reveal(np.arange(3), 0) for _ in range(200)])
    assert [sorted(set(np.round(column, 6).tolist())) for column in rho.T] == [[0, 1], [0, 0.5, 1], [0, 0.333333, 0.666667, 1]]


STEPS = [3, 5, 9, 10]


@pytest.mark.parametrize(
    ("rho", "ends", "unit", "min_hidden", "k"),
    [
        (0.0, [100], "token", 1, 0),
        (0.29, [100], "token", 1, 29),  # 0.29 * 100 is 28.999...
        (0.2899, [100], "token", 1, 28),
        (0.999, [100], "token", 1, 99),
        (1.0, [100], "token", 1, 99),
        (1.0, [100], "token", 30, 70),
        (1.0, [100], "token", 200, 0),
        (0.5, STEPS, "token", 1, 5),
        (0.49, STEPS, "token", 1, 4),
        (0.49, STEPS, "step", 1, 3),
        (0.5, STEPS, "step", 1, 5),
        (0.29, STEPS, "step", 1, 0),
        (0.3, STEPS, "step", 1, 3),
        (1.0, STEPS, "step", 1, 9),
        (1.0, STEPS, "step", 2, 5),
    ],
)
def test_tokens_shown_by_hand(rho, ends, unit, min_hidden, k):
    assert tokens_shown(rho, ends, unit, min_hidden) == k


@settings(max_examples=300)
@given(SHARES, st.lists(st.integers(1, 40), min_size=1, max_size=10), st.sampled_from(["token", "step"]), st.integers(1, 60))
def test_tokens_shown_bounds(rho, gaps, unit, min_hidden):
    ends = np.cumsum(gaps).tolist()
    k, m = tokens_shown(rho, ends, unit, min_hidden), ends[-1]
    assert 0 <= k <= rho * m + 1e-6 and m - k >= min(min_hidden, m)
    if unit == "step":
        assert k in [0, *ends]
    elif min_hidden == 1 and rho < 1:
        assert k > rho * m - 1 or k == m - 1
    assert tokens_shown(min(rho + 0.1, 1.0), ends, unit, min_hidden) >= k


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="adabck"):
        make_curriculum("adabck", CurriculumSettings(), 3)
