"""The property tests of a curriculum: every sound one passes, and each broken one fails the very property that names its fault, with the smallest history."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.helpers  # noqa: F401  (hypothesis' profile)
from adaback_lite import AdaBack, Curriculum, UserError
from adaback_lite.checks import CHECKS, History, any_history, check_curriculum
from adaback_lite.curricula import R3, Constant

NAMES = [check.__name__ for check in CHECKS]


class Search(Curriculum):
    """Sound: a share for each sample, drawn around, moved by what comes of it. The broken ones derive from it."""

    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.share = np.full(n_samples, 0.5)

    def reveal(self, sample_ids, step):
        return self.share[sample_ids] * (0.9 + 0.1 * self.rng.random(len(sample_ids)))

    def update(self, sample_ids, rho, reward):
        self.share[sample_ids] = np.where(reward >= 0.5, rho, np.minimum(rho + 0.2, 1.0))


class TooMuch(Search):
    def reveal(self, sample_ids, step):
        return np.full(len(sample_ids), 1.2)


class Climbs(Search):
    """0.5, 0.75, 1, 1.25: too much after the third failure."""

    def reveal(self, sample_ids, step):
        return self.share[sample_ids]

    def update(self, sample_ids, rho, reward):
        self.share[sample_ids] = np.where(reward >= 0.5, rho, rho + 0.25)


class JustTooMuch(Search):
    def reveal(self, sample_ids, step):
        return np.full(len(sample_ids), 1 + 2**-52)


class NotANumber(Search):
    def reveal(self, sample_ids, step):
        return np.full(len(sample_ids), np.nan)


class AllOfThem(Search):
    """Right for whole batches only."""

    def reveal(self, sample_ids, step):
        return self.share


class OneNumber(Search):
    def reveal(self, sample_ids, step):
        return 0.5


class OneMissing(Search):
    def reveal(self, sample_ids, step):
        return [0.5, None][: len(sample_ids)]


class NoReveal:
    def __init__(self, n_samples, seed):
        pass

    def update(self, sample_ids, rho, reward):
        pass


class FailsInReveal(Search):
    def reveal(self, sample_ids, step):
        return {0: 0.5}[int(sample_ids[0])] + np.zeros(len(sample_ids))


class NotWritten(Search):
    def update(self, sample_ids, rho, reward):
        raise NotImplementedError


class OnlyWholeRewards(Search):
    def update(self, sample_ids, rho, reward):
        assert set(reward) <= {0.0, 1.0}


class SortsIds(Search):
    def reveal(self, sample_ids, step):
        sample_ids.sort()
        return super().reveal(sample_ids, step)


class RoundsRewards(Search):
    def update(self, sample_ids, rho, reward):
        reward[:] = reward >= 0.5
        super().update(sample_ids, rho, reward)


class LendsItsMemory(Search):
    """What reveal gave is its own array, which update moves."""

    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.last = np.zeros(0)

    def reveal(self, sample_ids, step):
        self.last = super().reveal(sample_ids, step)
        return self.last

    def update(self, sample_ids, rho, reward):
        super().update(sample_ids, rho, reward)
        self.last *= 0.5


class GlobalRandom(Search):
    def reveal(self, sample_ids, step):
        return np.random.random(len(sample_ids))


class GlobalPythonRandom(Search):
    def reveal(self, sample_ids, step):
        return [random.random() for _ in sample_ids]


class SharedMemory(Search):
    """All its instances share one list."""

    visits = []

    def reveal(self, sample_ids, step):
        return np.full(len(sample_ids), 1 / (1 + len(self.visits)))

    def update(self, sample_ids, rho, reward):
        self.visits.append(1)


class OneSeed(Search):
    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples)


class PythonGeneratorOfOneSeed(Search):
    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self._own = random.Random(7)

    def reveal(self, sample_ids, step):
        return [self._own.random() for _ in sample_ids]

    def state_dict(self):
        version, numbers, gauss = self._own.getstate()
        return {"numbers": [version, list(numbers), gauss]}

    def load_state_dict(self, state):
        version, numbers, gauss = state["numbers"]
        self._own.setstate((version, tuple(numbers), gauss))


class ForgetsTheGenerator(Search):
    def state_dict(self):
        return {"share": self.share.tolist()}

    def load_state_dict(self, state):
        self.share = np.array(state["share"])


class ForgetsTheShares(Search):
    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]


class KeysBecomeText(Curriculum):
    """JSON has no number keys, and so `1` comes back as `"1"`."""

    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.memory = {}

    def reveal(self, sample_ids, step):
        return [self.memory.get(int(i), 1.0) for i in sample_ids]

    def update(self, sample_ids, rho, reward):
        self.memory |= {int(i): r / 2 for i, r in zip(sample_ids, rho)}


class NoJson(Search):
    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.told = set()


class NoState:
    """Two methods are enough to train, but not to go on."""

    def __init__(self, n_samples, seed):
        pass

    def reveal(self, sample_ids, step):
        return np.zeros(len(sample_ids))

    def update(self, sample_ids, rho, reward):
        pass


class UpdatesEverybody(Search):
    def update(self, sample_ids, rho, reward):
        self.share *= 0.5 + 0.5 * reward.mean()


class UpdatesEverybodysRows(Search):
    """One row for the lower ends, one for the upper."""

    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.ends = np.stack([np.zeros(n_samples), np.ones(n_samples)])

    def update(self, sample_ids, rho, reward):
        self.ends[1] = 0.5


class UpdatesEverybodyInADict(Search):
    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self._failures = {}

    def update(self, sample_ids, rho, reward):
        self._failures |= {int(i): 0 for i in sample_ids if int(i) not in self._failures}
        self._failures = {i: n + 1 for i, n in self._failures.items()}


class UpdatesTheNeighbour(Search):
    def __init__(self, n_samples, seed=0):
        super().__init__(n_samples, seed)
        self.visits = [0] * n_samples

    def update(self, sample_ids, rho, reward):
        for i in sample_ids:
            self.visits[i - 1] += 1


BROKEN = [
    (TooMuch, "reveal_gives_shares"),
    (Climbs, "reveal_gives_shares"),
    (JustTooMuch, "reveal_gives_shares"),
    (NotANumber, "reveal_gives_shares"),
    (AllOfThem, "reveal_gives_shares"),
    (OneNumber, "reveal_gives_shares"),
    (OneMissing, "reveal_gives_shares"),
    (NoReveal, "reveal_gives_shares"),
    (FailsInReveal, "reveal_gives_shares"),
    (NotWritten, "update_takes_any_reward"),
    (OnlyWholeRewards, "update_takes_any_reward"),
    (SortsIds, "inputs_stay"),
    (RoundsRewards, "inputs_stay"),
    (LendsItsMemory, "inputs_stay"),
    (GlobalRandom, "same_seed_same_shares"),
    (GlobalPythonRandom, "same_seed_same_shares"),
    (SharedMemory, "same_seed_same_shares"),
    (OneSeed, "another_seed_other_draws"),
    (PythonGeneratorOfOneSeed, "another_seed_other_draws"),
    (ForgetsTheGenerator, "a_saved_state_goes_on"),
    (ForgetsTheShares, "a_saved_state_goes_on"),
    (KeysBecomeText, "a_saved_state_goes_on"),
    (NoJson, "a_saved_state_goes_on"),
    (NoState, "a_saved_state_goes_on"),
    (UpdatesEverybody, "update_touches_only_its_samples"),
    (UpdatesEverybodysRows, "update_touches_only_its_samples"),
    (UpdatesEverybodyInADict, "update_touches_only_its_samples"),
    (UpdatesTheNeighbour, "update_touches_only_its_samples"),
]


@pytest.mark.parametrize(("make", "fault"), BROKEN, ids=[make.__name__ for make, _ in BROKEN])
def test_each_fault_fails_its_own_property_and_no_other(make, fault):
    SharedMemory.visits.clear()
    assert check_curriculum(make, 25).failed == [fault]


@pytest.mark.parametrize("make", [Search, AdaBack, R3, Constant, lambda n, seed: AdaBack(n, seed, zero_prob=1.0)])
def test_a_sound_curriculum_passes(make):
    report = check_curriculum(make, 30)
    assert report.ok and report.failed == []
    assert [(r.name, r.status, r.sentence) for r in report] == [(name, "ok", "") for name in NAMES]


def sentence(make, fault, histories=40) -> str:
    (result,) = (r for r in check_curriculum(make, histories) if r.name == fault)
    assert result.status == "failed"
    return result.sentence


def test_the_smallest_history_is_told():
    assert sentence(TooMuch, "reveal_gives_shares") == "With n_samples=1, seed=0: reveal([0], 0) gave [1.2], but a share lies between 0 and 1."
    assert sentence(Climbs, "reveal_gives_shares") == (
        "With n_samples=1, seed=0, after reveal([0], 0) gave [0.5] and update([0], [0.5], [0]), then reveal([0], 1) gave [0.75] and update([0], [0.75], [0]), "
        "then reveal([0], 2) gave [1] and update([0], [1], [0]): reveal([0], 3) gave [1.25], but a share lies between 0 and 1."
    )
    assert sentence(SortsIds, "inputs_stay") == "With n_samples=2, seed=0: reveal([1, 0], 0) changed its sample_ids into [0, 1]."
    assert sentence(KeysBecomeText, "a_saved_state_goes_on") == (
        "With n_samples=1, seed=0, after reveal([0], 0) gave [1] and update([0], [1], [0]): reveal([0], 1) gave [0.5], but [1] "
        "to a curriculum that was loaded from what state_dict() gave before visit 2; JSON turns the keys of a dict into text."
    )
    assert sentence(UpdatesEverybodyInADict, "update_touches_only_its_samples") == (
        "With n_samples=102, seed=0, after reveal([100], 0) gave [0.4787] and update([100], [0.4787], [0]): "
        "reveal([101], 1) gave [0.4848] and update([101], [0.4848], [0]) changed _failures[100] from 1 to 2, but was not told of sample 100."
    )


def test_every_digit_is_told_where_it_matters():
    assert "gave [1.0000000000000002], but" in sentence(JustTooMuch, "reveal_gives_shares")


def test_an_exception_is_told_with_its_line():
    assert sentence(NoReveal, "reveal_gives_shares").endswith("reveal([0], 0) raised AttributeError: 'NoReveal' object has no attribute 'reveal'.")
    assert sentence(FailsInReveal, "reveal_gives_shares").endswith("raised KeyError: 1 in the line 'return {0: 0.5}[int(sample_ids[0])] + np.zeros(len(sample_ids))'.")
    assert sentence(NotWritten, "update_takes_any_reward").endswith("update([0], [0.4787], [0]) is not written yet in the line 'raise NotImplementedError'.")


def test_a_fault_that_needs_many_visits_is_found_and_its_history_told_in_short():
    class Slow(Climbs):
        """0.5, 0.53125, ..., 1, 1.03125 after 17 failures."""

        def update(self, sample_ids, rho, reward):
            self.share[sample_ids] = np.where(reward >= 0.5, rho, rho + 1 / 32)

    told = sentence(Slow, "reveal_gives_shares", 300)
    assert "then 13 more visits, then reveal([0], 15)" in told and told.endswith("reveal([0], 17) gave [1.03125], but a share lies between 0 and 1.") and len(told) < 500


def test_what_hangs_on_a_failed_property_is_left_open():
    assert [r.status for r in check_curriculum(TooMuch, 10)] == ["failed", *["open"] * 6]
    assert [r.status for r in check_curriculum(NotWritten, 10)] == ["ok", "failed", *["open"] * 5]
    states = {r.name: r for r in check_curriculum(GlobalRandom, 10)}
    assert states["a_saved_state_goes_on"].sentence == "Not decided until what failed above is mended."
    assert [name for name, r in states.items() if r.status == "ok"] == [n for n in NAMES if n not in ("same_seed_same_shares", "a_saved_state_goes_on")]


def test_a_class_that_fails_now_and_then_gets_a_sentence_all_the_same():
    calls = []

    class Fickle(Search):
        """Wrong once in all its life."""

        def reveal(self, sample_ids, step):
            calls.append(step)
            return np.full(len(sample_ids), 7.0 if len(calls) == 100 else 0.5)

    report = check_curriculum(Fickle, 30)
    (failed,) = (r for r in report if r.status == "failed")
    assert "gave [7" in failed.sentence


def test_the_same_report_every_time():
    class OnlyBelowSeven(Search):
        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 0.5 if self.rng.random() < 0.7 else 2.0)

    assert check_curriculum(OnlyBelowSeven, 40) == check_curriculum(OnlyBelowSeven, 40)


@pytest.mark.parametrize("kind", [list, np.array])
def test_means_and_windows_over_all_samples_may_move(kind):
    """Also a window that happens to be as long as there are samples, and counts that stand under other keys than samples."""

    class Means(Search):
        def __init__(self, n_samples, seed=0):
            super().__init__(n_samples, seed)
            self.mean, self.recent, self.by_cut = 0.0, [0.0] * 101, {}

        def update(self, sample_ids, rho, reward):
            self.mean = 0.9 * self.mean + 0.1 * float(reward.mean())
            self.recent = list(kind([*self.recent[1:], self.mean]))
            for r in rho:
                self.by_cut[str(round(10 * r))] = self.by_cut.get(str(round(10 * r)), 0) + 1

    assert check_curriculum(Means, 40).failed == []


def test_what_a_class_prints_is_not_shown_a_thousand_times(capsys):
    class Talks(Search):
        def reveal(self, sample_ids, step):
            print(sample_ids)
            return super().reveal(sample_ids, step)

    assert check_curriculum(Talks, 10).ok
    assert capsys.readouterr().out == ""


def test_an_instance_is_refused():
    with pytest.raises(UserError, match="needs the class itself, or a function"):
        check_curriculum(Search(3))


def test_a_class_that_cannot_be_made():
    class NoSeed:
        def __init__(self, n_samples):
            pass

    assert sentence(NoSeed, "reveal_gives_shares").startswith("make(1, 0) raised TypeError: ")


def test_the_report_as_text_and_as_a_table():
    class Markup(Search):
        def reveal(self, sample_ids, step):
            raise ValueError("<script>")

    report = check_curriculum(Markup, 5)
    text, page = repr(report), report._repr_html_()
    assert text.splitlines()[0] == "failed  `reveal` gives one share between 0 and 1 for each sample that it is asked about: for one or for many, in any order."
    assert text.splitlines()[1].startswith("        With n_samples=1, seed=0: reveal([0], 0) raised ValueError: <script>")
    assert page.count("<tr>") == len(CHECKS) and "&lt;script&gt;" in page and "<script>" not in page
    assert check_curriculum(Constant, 5)._repr_html_().count("ok</td>") == len(CHECKS)


# --- the histories ----------------------------------------------------------------------------------------------------


@given(any_history())
def test_histories_are_what_training_brings(history):
    steps = [step for step, _, _ in history.steps()]
    assert steps == list(range(history.first_step, history.first_step + len(steps))) and len(steps) == len(history.visits) * history.times
    for _, ids, reward in history.steps():
        assert ids.shape == reward.shape and len(ids) > 0 and len(set(ids.tolist())) == len(ids)  # a step never holds a sample twice
        assert ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < history.n_samples
        assert (reward >= 0).all() and (reward <= 1).all()


def test_histories_bring_all_that_the_properties_speak_of():
    seen = set()

    @settings(max_examples=1000, deadline=None, derandomize=True)
    @given(st.data())
    def look(data):
        history = data.draw(any_history(wide=True))
        for _, ids, reward in history.steps():
            seen.update({"twice"} if len(set(ids.tolist())) < len(ids) else set())
            seen.update({"one"} if len(ids) == 1 else set(), {"all"} if len(set(ids.tolist())) == history.n_samples > 2 else set())
            seen.update({"unsorted"} if sorted(ids.tolist()) != ids.tolist() else set())
            seen.update({"bonus"} if reward.max() > 1 else set(), {"0"} if 0 in reward else set(), {"1"} if 1 in reward else set())
            seen.update({"between"} if ((reward > 0) & (reward < 1)).any() else set())

    look()
    assert seen == {"twice", "one", "all", "unsorted", "bonus", "0", "1", "between"}


def test_wide_saves_between_a_reveal_and_its_update():
    class ForgetsWhatItRevealed(Search):
        """Sound in training, which saves between visits only."""

        def reveal(self, sample_ids, step):
            self._last = super().reveal(sample_ids, step)
            return self._last.copy()

        def update(self, sample_ids, rho, reward):
            super().update(sample_ids, self._last, reward)

    history = History(1, 0, (((0,), (0.0,)),), times=3, saved=1)
    check = next(c for c in CHECKS if c.__name__ == "a_saved_state_goes_on")
    check(ForgetsWhatItRevealed, history)
    assert check_curriculum(ForgetsWhatItRevealed, 20).ok
    assert check_curriculum(ForgetsWhatItRevealed, 20, wide=True).failed == ["a_saved_state_goes_on"]
