"""The simulator: its learner against the slow obvious way, its gradient against GRPO's own, and what it is to show, over seeds."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adaback_lite as ab
import tests.helpers  # noqa: F401  (hypothesis' profile)
from adaback_lite.config import CurriculumSettings
from adaback_lite.curricula import AdaBack, Curriculum, make_curriculum, tokens_shown
from adaback_lite.grpo import advantages
from adaback_lite.seeding import numpy_generator
from adaback_lite.sft import batch_ids
from adaback_lite.simulate import LearnerSettings, hidden_steps, in_numbers, make_learner, side_by_side, simulate, visits_until

SEEDS = range(3)


def small(**settings) -> LearnerSettings:
    return LearnerSettings(**{"samples": 200, **settings})


def run(curriculum="adaback", learner=None, visits=60, batch_size=50, seed=0, keep=False, **settings):
    return simulate(curriculum, learner or small(), visits, batch_size, seed, settings=CurriculumSettings(**settings), keep=keep)


# ---------------------------------------------------------------- the learner


def slowly(name, settings, s: LearnerSettings, visits, B, seed):
    """A simulation one sample and one step at a time: (rewards, skills, accuracies, stuck)."""
    N, L, G = s.samples, s.steps, s.group_size
    c, rng = make_curriculum(name, settings, N, seed, L), numpy_generator(seed, "learner")
    difficulty = s.spread * rng.standard_normal(N)
    skill = [math.log(s.start / (1 - s.start))] * L  # the first step first
    rewards, skills, accuracies, stuck = [], [], [], []

    def p(i, j):
        return 1 / (1 + math.exp(difficulty[i] - skill[j]))

    def q(i, hidden):
        return math.prod(p(i, j) for j in range(L - hidden, L))

    for step in range(visits * (N // B)):
        if step % (N // B) == 0:
            luck = rng.random((N // B, G, B))
        ids = batch_ids(N, B, seed, step)
        rho = c.reveal(ids, step)
        hidden = [L - tokens_shown(r, list(range(1, L + 1)), "step", 1) for r in rho]
        reward = [sum(luck[step % (N // B), g, b] < s.guess + (1 - s.guess) * q(i, h) for g in range(G)) / G for b, (i, h) in enumerate(zip(ids, hidden))]
        c.update(ids, rho, np.array(reward))
        ends = getattr(c, "rho_max", getattr(c, "frontier", None))
        stuck.append(np.mean([q(i, L - tokens_shown(ends[i], list(range(1, L + 1)), "step", 1)) < 0.1 <= p(i, L - 1) for i in ids]) if ends is not None else None)
        growth = [0.0] * L
        for i, h, r in zip(ids, hidden, reward):
            right = s.guess + (1 - s.guess) * q(i, h)
            g = [math.sqrt(r * (1 - r)) * (1 - p(i, j)) / (1 - q(i, h)) * q(i, h) / right / h if j >= L - h and 0 < r < 1 else 0.0 for j in range(L)]
            growth = [a + s.lr / N * ((1 - s.transfer) * b + s.transfer * sum(g)) for a, b in zip(growth, g)]
        skill = [a + b for a, b in zip(skill, growth)]
        rewards.append(np.mean(reward))
        skills.append(skill)
        if (step + 1) % (N // B) == 0:
            accuracies.append(s.guess + (1 - s.guess) * np.mean([q(i, L) for i in range(N)]))
    return rewards, skills, accuracies, stuck


@pytest.mark.parametrize("name", ["adaback", "frontier", "uft", "r3"])
@pytest.mark.parametrize("learner", [{"guess": 0.0, "transfer": 0.1}, {"guess": 0.25, "transfer": 0.7, "lr": 20.0}])
def test_equals_the_slow_way(name, learner):
    s, settings = LearnerSettings(samples=8, steps=5, group_size=4, spread=1.0, **learner), CurriculumSettings(alpha=0.3, recovery=0.05, horizon=9)
    fast = simulate(name, s, 6, 4, 7, settings=settings)
    rewards, skills, accuracies, stuck = slowly(name, settings, s, 6, 4, 7)
    assert fast.reward.tolist() == rewards and len(fast.reward) == 12
    assert fast.skill == pytest.approx(np.array(skills), abs=1e-12)
    assert fast.accuracy == pytest.approx(accuracies, abs=1e-12) and len(fast.accuracy) == 6
    assert fast.stuck is None if name in ("uft", "r3") else fast.stuck.tolist() == stuck
    assert fast.skill[-1, 0] != fast.skill[-1, -1]  # the steps were not practised equally


def true_gradient(p, guess, rewards):
    """GRPO's expected gradient by the skills of the hidden steps, given a group's rewards: every outcome of the steps, with its probability."""
    h, total = len(p), {0: 0.0, 1: 0.0}
    score = {0: np.zeros(h), 1: np.zeros(h)}
    for outcome in itertools.product([0, 1], repeat=h):
        chance = math.prod(x if ok else 1 - x for x, ok in zip(p, outcome))
        derivative = np.array([1 - x if ok else -x for x, ok in zip(p, outcome)])
        for reward, share in ((1, 1.0 if all(outcome) else guess), (0, 0.0 if all(outcome) else 1 - guess)):
            total[reward] += chance * share
            score[reward] += chance * share * derivative
    a = advantages(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
    return sum(x * score[r] / total[r] for x, r in zip(a, rewards)) / len(rewards) / h  # grpo: the mean over rollouts of the mean over tokens


@pytest.mark.parametrize("guess", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_growth_is_grpos_expected_gradient(guess, share):
    seen = set()
    for seed in range(12):
        s = LearnerSettings(samples=1, steps=4, start=0.7, spread=1.5, lr=2.0, group_size=5, transfer=0.0, guess=guess)
        simulation = simulate("constant", s, 1, 1, seed, settings=CurriculumSettings(rho=share), keep=True)
        right = round(simulation.kept.reward[0, 0] * 5)
        p = 1 / (1 + math.exp(1.5 * numpy_generator(seed, "learner").standard_normal(1)[0] - math.log(0.7 / 0.3)))
        hidden = 4 - int(4 * share)
        expected = np.zeros(4)
        if 0 < right < 5:
            expected[4 - hidden :] = 2.0 * true_gradient([p] * hidden, guess, [1] * right + [0] * (5 - right))
        assert simulation.skill[0] - math.log(0.7 / 0.3) == pytest.approx(expected, abs=2e-5)  # the advantages' own 1e-6
        seen.add(right)
    assert len(seen & {1, 2, 3, 4}) >= 2


@pytest.mark.parametrize(("rho", "hidden"), [(0.0, 6), (0.5, 3), (0.99, 1), (1.0, 1)])
def test_a_rollout_is_right_when_all_hidden_steps_are(rho, hidden):
    s = LearnerSettings(samples=500, steps=6, start=0.8, spread=0.0, lr=0.0)
    share = simulate("constant", s, 5, 500, settings=CurriculumSettings(rho=rho)).reward.mean()
    assert share == pytest.approx(0.8**hidden, abs=4 * math.sqrt(0.25 / (500 * 5 * 8)))
    assert simulate("rl", s, 1).accuracy.tolist() == pytest.approx([0.8**6])


@given(st.floats(0, 1), st.integers(1, 64))
def test_hidden_steps_are_those_of_tokens_shown(rho, steps):
    assert hidden_steps(np.array([rho]), steps)[0] == steps - tokens_shown(rho, list(range(1, steps + 1)), "step", 1)


@given(
    st.builds(
        LearnerSettings,
        samples=st.integers(1, 30),
        steps=st.sampled_from([1, 2, 16, 64]),
        start=st.sampled_from([1e-9, 0.01, 0.5, 1 - 1e-12]),
        spread=st.floats(0, 3),
        lr=st.sampled_from([0.0, 1.0, 100.0]),
        group_size=st.sampled_from([2, 8, 64]),
        transfer=st.floats(0, 1),
        guess=st.sampled_from([0.0, 0.1, 0.9]),
    ),
    st.sampled_from(["adaback", "rl", "r3", "r3-staged", "uft", "anneal", "frontier", "constant"]),
    st.integers(1, 8),
)
def test_no_learner_breaks_it(learner, name, batch_size):
    with np.errstate(invalid="raise", divide="raise"):
        s = simulate(name, learner, 6, batch_size, 1, settings=CurriculumSettings(horizon=4), keep=True)
    for values in (s.rho, s.reward, s.grad_groups, s.accuracy, s.rho_low, s.rho_high, s.stuck, s.low, s.high, s.first_low, s.first_high):
        assert values is None or ((values >= 0) & (values <= 1)).all()
    assert np.isfinite(s.skill).all() and (np.diff(s.skill, axis=0) >= 0).all()
    json.dumps(s.events, allow_nan=False)


# ---------------------------------------------------------------- the frame


def test_same_seed_same_bits():
    a, b, c = (run(seed=seed, visits=5, keep=True) for seed in (3, 3, 4))
    assert json.dumps(a.events) == json.dumps(b.events)
    assert a.skill.tobytes() == b.skill.tobytes() and a.accuracy.tobytes() == b.accuracy.tobytes()
    assert a.events != c.events
    assert run(seed=3, visits=5).skill.tobytes() == a.skill.tobytes()  # keeping the visits changes nothing


def test_the_curricula_are_those_of_training():
    """A name, a class, a function and an instance come to the same."""
    by_name = run(visits=4, alpha=0.4).skill
    for curriculum in (lambda n, seed: AdaBack(n, seed, alpha=0.4), AdaBack(200, 0, alpha=0.4)):
        other = simulate(curriculum, small(), 4, 50)
        assert other.skill.tobytes() == by_name.tobytes() and other.label == "AdaBack"
    assert simulate(AdaBack, small(), 4, 50).skill.tobytes() == run(visits=4).skill.tobytes()


@pytest.mark.parametrize(("samples", "batch"), [(20, 6), (20, 20), (7, 30)])
def test_batches_are_those_of_training(samples, batch):
    s = simulate("rl", LearnerSettings(samples=samples), 3, batch, 5, keep=True)
    assert len(s.kept.ids) == 3 * (samples // min(batch, samples)) == 3 * s.steps_an_epoch
    assert all(ids.tolist() == batch_ids(samples, batch, 5, step).tolist() for step, ids in enumerate(s.kept.ids))
    assert s.visit[s.steps_an_epoch - 1 :: s.steps_an_epoch].tolist() == [1, 2, 3]


def test_aggregates_are_those_of_the_visits():
    s = run(visits=3, keep=True)
    k = s.kept
    assert s.rho == pytest.approx(k.rho.mean(axis=1)) and s.reward == pytest.approx(k.reward.mean(axis=1))
    assert s.low == pytest.approx(k.low.mean(axis=1)) and s.high == pytest.approx(k.high.mean(axis=1))
    assert s.grad_groups == pytest.approx(((k.reward > 0) & (k.reward < 1)).mean(axis=1))
    assert ((k.rho >= s.rho_low[:, None]) & (k.rho <= s.rho_high[:, None])).mean() == pytest.approx(0.8, abs=0.05)
    assert run("r3", visits=3, keep=True).high is None and run("frontier", visits=3).low is None


def test_events_have_a_runs_form(tiny):
    """Those of a real run of a few steps, field for field and type for type."""
    real = ab.train(tiny, progress=False).events
    simulated = run(visits=2, keep=True).events
    for kind in ("step", "eval"):
        a, b = ([e for e in events if e["event"] == kind][-1] for events in (real, simulated))
        assert list(a) == list(b)
        assert {k: type(v) for k, v in a.items() if k != "right"} == {k: type(v) for k, v in b.items() if k != "right"}
        assert {k: type(v[0]) for k, v in a.items() if isinstance(v, list)} == {k: type(v[0]) for k, v in b.items() if isinstance(v, list)}
    assert simulated[0]["event"] == "start" and set(simulated[0]) - {"simulated"} <= set(real[0])
    steps = [e for e in simulated if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 9)) and steps[-1]["rollouts"] == 2 * 200 * 8
    assert steps[-1]["generated_tokens"] == 8 * sum(16 - k for e in steps for k in e["shown"])
    with pytest.raises(ab.UserError, match="simulate with keep=True"):
        _ = run(visits=1).events


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: simulate("adabak"), "There is no curriculum 'adabak' to simulate; there are: adaback, rl, r3, r3-staged, uft, anneal, frontier, constant."),
        (lambda: simulate("sft"), "There is no curriculum 'sft' to simulate; there are: adaback, rl, r3, r3-staged, uft, anneal, frontier, constant."),
        (lambda: simulate(visits=0), "visits is 0, but it must be 1 or more."),
        (lambda: simulate(batch_size=-1), "batch_size is -1, but it must be 1 or more."),
        (lambda: make_learner(start=1), "The learner's setting 'start' is 1, but should be less than 1."),
        (lambda: make_learner(lr="fast"), "The learner's setting 'lr' is 'fast', but should be a valid number, unable to parse string as a number."),
        (lambda: make_learner({"grup_size": 4}), "The simulated learner has no setting 'grup_size'. Did you mean 'group_size'?"),
        (
            lambda: make_learner(xyz=4),
            "The simulated learner has no setting 'xyz'. It has: samples, steps, start, spread, lr, group_size, transfer, guess.",
        ),
        (lambda: side_by_side({"a": {"taus": 1}}), "There is no setting 'curriculum.taus'. Did you mean 'curriculum.tau'?"),
        (lambda: side_by_side({"a": {"tau": 7}}), "The setting 'curriculum.tau' is 7, but should be less than or equal to 1.5. It lies between 0 and 1.5."),
    ],
)
def test_bad_input_gives_one_sentence(call, sentence):
    with pytest.raises(ab.UserError) as error:
        call()
    assert str(error.value) == sentence


def test_a_number_may_be_text():
    assert make_learner({"lr": "1e-1"}, steps="8") == LearnerSettings(lr=0.1, steps=8)


def test_a_curriculum_of_ones_own_that_is_wrong_is_refused():
    class Wrong(Curriculum):
        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 1.5)

    with pytest.raises(ab.UserError, match=r"must return 50 shares between 0 and 1"):
        simulate(Wrong, small(), 1, 50)


def test_numbers_of_a_comparison():
    simulations = side_by_side({"a": {}, "none": {"method": "rl"}}, small(lr=20.0), 30, 50, [0, 1, 2])
    table = in_numbers(simulations).set_index("curriculum")
    ends = [s.accuracy[-1] for s in simulations["a"]]
    assert table.loc["a", ["seeds", "accuracy", "lowest", "highest"]].tolist() == pytest.approx([3, np.mean(ends), min(ends), max(ends)])
    until = [next(i + 1 for i, a in enumerate(s.accuracy) if a >= 0.5) for s in simulations["a"]]
    assert table.loc["a", "visits until 0.5"] == sorted(until)[1] and until == [visits_until(s) for s in simulations["a"]]
    assert visits_until(simulations["none"][0]) is None and math.isnan(table.loc["none", "visits until 0.5"]) and math.isnan(table.loc["none", "stuck"])
    assert table.loc["a", "groups with a gradient"] == pytest.approx(np.mean([s.grad_groups.mean() for s in simulations["a"]]))


# ---------------------------------------------------------------- what it shows, over seeds


def test_binary_search_by_visit():
    """A learner that does not learn, whose groups are so large that luck hardly counts: 0.9^h is at least 0.5 up to h = 6 of 64 steps."""
    for seed in SEEDS:
        s = run(learner=small(steps=64, start=0.9, spread=0.0, lr=0.0, group_size=64), seed=seed, zero_prob=0.0, alpha=0.0)
        assert s.high[0] > 0.95 and 1 - 9 / 64 < s.high[-4:].mean() < 1 - 5 / 64  # 7 and 8 hidden steps are solved by luck now and then
        assert (np.diff(s.high.reshape(-1, 4).mean(axis=1)) < 1e-12).all()  # over all samples it only falls: it closes in from above
        assert s.high[-4:].mean() - s.low[-4:].mean() < s.high[:4].mean() - s.low[:4].mean()


def test_the_search_follows_a_learner_that_improves():
    for seed in SEEDS:
        s = run(visits=150, seed=seed)
        assert s.accuracy[0] < 0.005 and s.accuracy[-1] > 0.8
        assert s.rho[:4].mean() > 0.5 and s.rho[-4:].mean() < 0.05 and s.stuck[-4:].mean() == 0
        assert s.grad_groups.mean() > 0.6


def test_plain_rl_sees_nothing():
    for seed in SEEDS:
        s = run("rl", visits=150, seed=seed)
        assert s.grad_groups.mean() < 0.02 and s.accuracy[-1] < 0.01


def cold(alpha, seed, samples=2000, **learner):
    return run(learner=LearnerSettings(samples=samples, **learner), visits=3, batch_size=50, seed=seed, alpha=alpha)


def test_alpha_decides_about_a_cold_start():
    for seed in SEEDS:
        none, some = cold(0.0, seed), cold(0.05, seed)
        assert (none.first_low == 0).all() and (none.first_high == 1).all()
        late_low, late_high = some.first_low[1000:].mean(), some.first_high[1000:].mean()
        assert late_low > 0.6 and late_high < 0.95
        assert some.grad_groups[:40].mean() > 1.6 * none.grad_groups[:40].mean()  # 40 steps: the first visits


def test_with_alpha_1_a_sample_starts_where_the_one_before_ended():
    s = run(visits=1, alpha=1.0, zero_prob=0.0, keep=True)
    for batch in range(1, 4):
        first = s.first_low[50 * batch : 50 * (batch + 1)], s.first_high[50 * batch : 50 * (batch + 1)]
        assert (first[0] == s.kept.low[batch - 1, -1]).all() and (first[1] == s.kept.high[batch - 1, -1]).all()


def test_averages_hand_luck_on_from_sample_to_sample():
    """The other side of alpha: rho_max of new samples falls below what they need, although no sample was visited more than three times."""
    for seed in SEEDS:
        assert cold(0.0, seed, 5000, lr=0.0).stuck[-100:].mean() < 0.02
        assert cold(0.1, seed, 5000, lr=0.0).stuck[-100:].mean() > 0.12


def stuck(seed, method="adaback", guess=0.2, visits=150, **settings):
    """Share of samples that are stuck at the end, with a learner that does not learn and guesses right one time in five."""
    return run(method, small(lr=0.0, guess=guess), visits, 50, seed, **settings).stuck[-4:].mean()


def test_the_ratchet_and_its_cures():
    for seed in SEEDS:
        paper = stuck(seed)
        assert paper > 0.9  # nearly all, at one lucky rollout in five
        assert stuck(seed, guess=0.05) < 0.25  # few, at one in twenty
        assert stuck(seed, recovery=0.1) < 0.4
        assert stuck(seed, recovery=0.3) < 0.2
        assert stuck(seed, tau=0.75) < 0.15
        assert stuck(seed, "frontier") < 0.4
        assert stuck(seed, visits=40, zero_updates="always") > stuck(seed, visits=40)  # no cure: a lucky visit that shows nothing now counts


def test_what_the_ratchet_costs_a_learner_that_learns():
    learner = small(guess=0.2)
    table = in_numbers(side_by_side({"paper": {}, "recovery": {"recovery": 0.3}, "tau": {"tau": 0.75}}, learner, 120, 50, SEEDS), 0.5).set_index("curriculum")
    assert table.loc["recovery", "lowest"] > table.loc["paper", "highest"] + 0.03
    assert table.loc["tau", "lowest"] > table.loc["recovery", "highest"]


def test_high_against_low_tau():
    for seed in SEEDS:
        low, middle, high = (run(visits=150, seed=seed, tau=tau) for tau in (0.1, 0.5, 0.9))
        assert high.rho[:80].mean() > middle.rho[:80].mean() > low.rho[:80].mean()  # high tau reveals more
        assert visits_until(low) > 1.3 * visits_until(middle)  # low tau takes luck for success
        assert abs(visits_until(high) - visits_until(middle)) < 0.25 * visits_until(middle)  # and between these two it matters little


def test_adaback_against_the_others():
    for seed in SEEDS:
        until = {m: visits_until(run(m, visits=150, seed=seed)) for m in ("adaback", "r3")}
        assert until["adaback"] < 0.85 * until["r3"]
        in_time, too_late = (visits_until(run("anneal", visits=150, seed=seed, horizon=horizon)) for horizon in (300, 3000))
        assert in_time < 1.25 * until["adaback"]  # a schedule that fits the learner is about as good
        assert too_late is None  # but somebody must know the horizon


def test_with_one_skill_for_all_steps_showing_all_but_the_last_is_enough():
    """Where the simulator's own assumption decides, and not the curriculum (see the module's docstring)."""
    for transfer, best in ((1.0, True), (0.1, False)):
        learner = small(transfer=transfer, lr=1.0 if transfer == 1 else 5.0)
        shown, searched = (run(m, learner, 100, rho=1.0).accuracy[-1] for m in ("constant", "adaback"))
        assert (shown > searched - 0.05) == best, (shown, searched)
