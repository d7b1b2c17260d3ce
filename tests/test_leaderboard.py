"""The leader board: places and ties by hand, the simulator's and the trainer's own numbers in it, and nothing trained twice."""

from pathlib import Path

import numpy as np
import papermill
import pytest

from adaback_lite import AdaBack, Curriculum, UserError, load_run
from adaback_lite.curricula import Constant
from adaback_lite.leaderboard import Board, Score, better, fingerprint, leaderboard, parity_leaderboard
from adaback_lite.simulate import LearnerSettings, simulate
from tests.conftest import TINY


class Half(Curriculum):
    def reveal(self, sample_ids, step):
        return np.full(len(sample_ids), 0.5)


def score(name, *ends, until=()):
    """A score with these accuracies at the end; `until`: the rollouts at which each seed reaches 0.9, None for never."""
    return Score(name, ends, tuple(((0.0, 0.0), (x, 0.9) if x else (50.0, 0.5)) for x in until or [None] * len(ends)))


# --- who is better ----------------------------------------------------------------------------------------------------


def test_the_goal_is_first_reached():
    curve = ((0, 0.0), (100, 0.89), (200, 0.9), (300, 0.5), (400, 1.0))
    assert Score("a", (1.0, 0.2), (curve, ((0, 0.2),))).until == (200, None)


def test_accuracy_decides_first():
    """Differences 0.1, 0.12, 0.14: mean 0.12, standard deviation 0.02, so the interval is 0.12 -+ 4.3027 * 0.02 / sqrt(3) = 0.07 to 0.17."""
    a, b = score("a", 0.6, 0.72, 0.84), score("b", 0.5, 0.6, 0.7)
    assert better(a, b) and not better(b, a)
    far = score("c", 0.5, 0.6, 0.2)  # differences 0.1, 0.12, 0.64: the interval reaches from -0.48
    assert not better(a, far) and not better(far, a)


def test_pairs_count_and_not_the_spread_of_seeds():
    """The seeds lie far apart, but in every one of them `a` is ahead by nearly the same."""
    a, b = score("a", 0.15, 0.56, 0.95), score("b", 0.1, 0.5, 0.9)
    assert better(a, b)
    assert not better(a, score("b", 0.9, 0.1, 0.5))  # the same numbers in another order


def test_a_small_difference_is_a_tie_however_sure():
    assert not better(score("a", 0.959, 0.959, 0.959), score("b", 0.95, 0.95, 0.95))
    assert better(score("a", 0.97, 0.97, 0.97), score("b", 0.95, 0.95, 0.95))


def test_rollouts_decide_where_accuracy_ties_and_every_seed_got_there():
    fast, slow = score("f", 0.95, 0.95, 0.95, until=(100, 110, 105)), score("s", 0.95, 0.951, 0.949, until=(200, 220, 205))
    assert better(fast, slow) and not better(slow, fast)
    once = score("o", 0.95, 0.95, 0.95, until=(200, 220, None))
    assert not better(fast, once) and not better(once, fast)
    assert not better(fast, fast)


def test_one_seed_decides_nothing():
    assert not better(score("a", 0.9), score("b", 0.1))
    board = Board([score("b", 0.1), score("a", 0.9)], "What.")
    assert [(row["place"], row["curriculum"], row["95 % interval"]) for row in board.rows()] == [("1=", "a", ""), ("1=", "b", "")]
    assert board.notes == ["What.", "One seed: no spread is known, so all share a place."]


# --- the table --------------------------------------------------------------------------------------------------------


def board() -> Board:
    scores = [
        score("last", 0.1, 0.1, 0.1),
        score("tied too", 0.52, 0.5, 0.54),
        score("tied", 0.53, 0.56, 0.5),
        score("first", 0.95, 0.96, 0.97, until=(100, 3000, 200)),
        score("second", 0.9, 0.91, 0.92, until=(1000, None, 300)),
        score("alone", 0.3, 0.3, 0.3, until=(None, None, 2000)),
    ]
    return Board(scores, "What.", own=["tied"])


def test_the_table_by_hand():
    """95 % intervals: a standard deviation of 0.01 over three seeds gives 4.3027 * 0.01 / sqrt(3) = 0.025 to either side, 0.02 gives 0.050, 0.03 gives 0.075."""
    assert [list(row.values()) for row in board().rows()] == [
        ["1", "first", "0.960", "0.935 to 0.985", "0.950 to 0.970", "1,100 (100 to 3,000)"],
        ["2", "second", "0.910", "0.885 to 0.935", "0.900 to 0.920", "2 of 3 seeds: 300 to 1,000"],
        ["3=", "tied", "0.530", "0.455 to 0.605", "0.500 to 0.560", "never"],
        ["3=", "tied too", "0.520", "0.470 to 0.570", "0.500 to 0.540", "never"],
        ["5", "alone", "0.300", "0.300 to 0.300", "0.300 to 0.300", "1 of 3 seeds: 2,000"],
        ["6", "last", "0.100", "0.100 to 0.100", "0.100 to 0.100", "never"],
    ]
    assert list(board().rows()[0]) == ["place", "curriculum", "accuracy at the end", "95 % interval", "lowest to highest", "rollouts until 0.9"]


def test_places_are_shared_with_the_first_of_them():
    """0.900 is no further from 0.905 than a tie, nor is 0.894 from 0.900; but it is from 0.905, so it has the next place."""
    scores = [score("c", 0.894, 0.894), score("b", 0.9, 0.9), score("d", 0.893, 0.893), score("a", 0.905, 0.905), score("e", 0.1, 0.1)]
    assert Board(scores, "What.").places == {"a": 1, "b": 1, "c": 3, "d": 3, "e": 5}
    wide = [score("a", 0.7, 0.9, 0.2), score("b", 0.2, 0.21, 0.19), score("c", 0.1, 0.11, 0.09)]  # c is clearly behind b only
    assert Board(wide, "What.").places == {"a": 1, "b": 1, "c": 1}


def test_who_needs_fewer_rollouts_stands_first_among_equals_in_accuracy():
    scores = [score("slow", 0.955, 0.955, 0.955, until=(500, 500, 510)), score("fast", 0.95, 0.95, 0.95, until=(300, 310, 300))]
    assert Board(scores, "What.").places == {"fast": 1, "slow": 2}


def test_an_interval_does_not_leave_0_to_1():
    (row,) = Board([score("a", 0.9, 1.0, 1.0)], "What.").rows()
    assert row["95 % interval"] == "0.823 to 1.000"  # 0.967 -+ 4.3027 * 0.0577 / sqrt(3)


def test_the_board_as_text_and_as_a_table():
    text, page = repr(board()), board()._repr_html_()
    assert text.splitlines()[1].split() == ["1", "first", "0.960", "0.935", "to", "0.985", "0.950", "to", "0.970", "1,100", "(100", "to", "3,000)"]
    assert text.splitlines()[-3] == "What." and "Means over 3 seeds" in text
    assert page.count("<tr>") == 7 and "<b>tied</b>" in page and "<b>first</b>" not in page
    assert "<i>" not in Board([score("<i>", 0.5, 0.6)], "What.")._repr_html_()


def test_the_chart_has_the_means_and_the_spread():
    chart = Board([score("a", 0.9, 0.9, until=(100, 200)), score("r3", 0.1, 0.1)], "What.").chart().to_dict()
    values = chart["data"]["values"]
    assert [(v["x"], v["mean"], v["low"], v["high"]) for v in values if v["method"] == "a"] == [(0, 0, 0, 0), (100, 0.45, 0, 0.9), (200, 0.9, 0.9, 0.9)]
    assert [(v["x"], v["mean"]) for v in values if v["method"] == "r3"] == [(0, 0), (50, 0.5)]
    assert chart["title"]["subtitle"] == ["What.", "Line: mean over 2 seeds. Band: lowest to highest seed."]


# --- the simulator ----------------------------------------------------------------------------------------------------

SMALL = LearnerSettings(samples=40, start=0.6, lr=2.0)


def test_the_simulators_own_numbers_are_in_the_board():
    scores = {s.name: s for s in leaderboard({"half": Half}, SMALL, seeds=(3, 5), visits=30, batch_size=8).scores}
    assert set(scores) == {"half", "adaback", "r3", "rl"}
    for name, kind in {"half": Half, "adaback": "adaback", "r3": "r3", "rl": "rl"}.items():
        for i, seed in enumerate((3, 5)):
            alone = simulate(kind, SMALL, 30, 8, seed)
            curve = scores[name].curves[i]
            assert scores[name].accuracy[i] == alone.accuracy[-1] == curve[-1][1]
            assert [y for _, y in curve] == alone.accuracy.tolist()
            assert [x for x, _ in curve] == [epoch * 40 * 8 for epoch in range(1, 31)]  # 40 samples, 8 rollouts each


def test_the_same_board_every_time_and_a_class_is_as_good_as_a_function():
    boards = [leaderboard({"half": make}, SMALL, seeds=(0, 1), visits=20) for make in (Half, Half, lambda n, seed: Constant(n, seed, rho=0.5))]
    assert repr(boards[0]) == repr(boards[1]) == repr(boards[2])


def test_a_curriculum_that_is_a_rival_ties_with_it():
    places = leaderboard({"the same": AdaBack}, SMALL, seeds=(0, 1, 2), visits=20).places
    assert places["the same"] == places["adaback"]


def test_the_learner_is_told():
    assert leaderboard({}, SMALL, seeds=[0], visits=5).what == "Before a simulated learner (samples 40, start 0.6, lr 2): 5 visits of each sample."
    assert leaderboard({}, seeds=[0], visits=2).what == "Before a simulated learner: 2 visits of each sample."


@pytest.mark.parametrize("name", ["adaback", "rl", "../up", "", "a/b", ".hidden"])
def test_a_name_that_is_taken_or_no_folders_is_refused(name):
    with pytest.raises(UserError, match="cannot be called"):
        leaderboard({name: Half}, SMALL)
    with pytest.raises(UserError, match="cannot be called"):
        parity_leaderboard({name: Half})


def test_an_instance_and_no_seed_are_refused():
    with pytest.raises(UserError, match="must be given as a class"):
        leaderboard({"mine": Half(3)}, SMALL)
    with pytest.raises(UserError, match="seeds is empty"):
        leaderboard({"mine": Half}, SMALL, seeds=[])


def test_shares_out_of_bounds_are_refused():
    with pytest.raises(UserError, match="between 0 and 1"):
        leaderboard({"mine": lambda n, seed: Constant(n, seed, rho=1.2)}, SMALL, seeds=[0], visits=2)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(tmp_path, make=Half, **settings):
    return parity_leaderboard({"mine": make}, {**TINY, **settings}, seeds=(0, 1), out=str(tmp_path), progress=False)


def summaries(tmp_path) -> dict:
    return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}


def test_the_runs_own_numbers_are_in_the_board_and_nothing_is_trained_twice(tmp_path):
    first = trained(tmp_path)
    folders = summaries(tmp_path)
    assert sorted(name.split("-")[0] + name[-1] for name in folders) == ["adaback0", "adaback1", "mine0", "mine1", "r30", "r31", "rl0", "rl1"]
    assert first.what == "Trained on Chain-of-Parities, L = 5, 8 inputs: at most 2 steps."
    for s in first.scores:
        for seed in (0, 1):
            (folder,) = tmp_path.glob(f"{s.name}-*-seed{seed}")
            run = load_run(folder)
            assert run.config.seed == seed and run.config.trainer.threads == 1
            assert s.accuracy[seed] == run.summary["test_accuracy"]
            assert s.curves[seed] == tuple((e["rollouts"], e["accuracy"]) for e in run.events if e["event"] == "eval")
            shares = {r for e in run.events if e["event"] == "step" for r in e["rho"]}
            assert (shares == {0.5}) == (s.name == "mine") and (shares == {0.0}) == (s.name == "rl")
    assert repr(trained(tmp_path)) == repr(first)
    assert summaries(tmp_path) == folders


def test_a_changed_class_is_trained_anew_and_the_old_runs_stay(tmp_path):
    trained(tmp_path)
    before = summaries(tmp_path)

    class Changed(Curriculum):
        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 0.25)

    trained(tmp_path, Changed)
    after = summaries(tmp_path)
    assert before.items() <= after.items() and sorted(name[:4] for name in after.keys() - before.keys()) == ["mine", "mine"]
    (folder, _) = sorted(after.keys() - before.keys())
    assert {r for e in load_run(tmp_path / folder).events if e["event"] == "step" for r in e["rho"]} == {0.25}


def test_other_settings_are_trained_anew(tmp_path):
    trained(tmp_path)
    assert len(summaries(tmp_path)) == 8
    trained(tmp_path, **{"grpo.lr": 1e-3})
    assert len(summaries(tmp_path)) == 16


@pytest.mark.parametrize("name", ["method", "seed", "out"])
def test_what_the_board_sets_itself_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"must not hold '{name}'"):
        parity_leaderboard({}, {name: "x"}, out=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_fingerprints_tell_apart_what_differs():
    class Same(Curriculum):
        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 0.5)

    class Late(Curriculum):
        """Differs only in code that the made-up history does not reach."""

        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 0.5 if step < 10_000 else 0.4)

    level = 0.5

    class FromOutside(Curriculum):
        """Differs only in a value that stands outside the class."""

        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), level)

    class Holds(Curriculum):
        """Holds an object that stands elsewhere in memory every time."""

        def __init__(self, n_samples, seed=0):
            super().__init__(n_samples, seed)
            self._thing = object()

    assert fingerprint(Half, {}) == fingerprint(Half, {}) == fingerprint(Same, {})
    assert fingerprint(Holds, {}) == fingerprint(Holds, {})
    prints = [fingerprint(m, {}) for m in (None, Half, Late, Curriculum, AdaBack, lambda n, seed: AdaBack(n, seed, tau=0.6))]
    prints += [fingerprint(Half, {"grpo.lr": 1e-3}), fingerprint(None, {"grpo.lr": 1e-3}), fingerprint(FromOutside, {})]
    level = 0.6
    prints.append(fingerprint(FromOutside, {}))
    assert len(set(prints)) == len(prints)


# --- the exercise -----------------------------------------------------------------------------------------------------

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
NAME = "07_your_own_curriculum.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize(("path", "checked", "failed"), [(NOTEBOOKS / NAME, 5, 1), (NOTEBOOKS / "solutions" / NAME, 4, 0)], ids=["exercise", "solutions"])
def test_the_exercise_runs_unwritten_and_its_solutions_pass(path, checked, failed, tmp_path):
    """The exercise as it is handed out shows one failed check, that of the class with a fault on purpose; in the solutions none fails, and their curricula lead."""
    executed = papermill.execute_notebook(path, tmp_path / "n.ipynb", {"profile": "quick", "out": str(tmp_path / "runs")}, progress_bar=False, cwd=path.parent)
    outputs = [o for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs]
    texts = [o.data["text/plain"] for o in outputs if "text/html" in o.get("data", {})]
    reports, boards = [t for t in texts if t.startswith(("ok", "failed"))], [t for t in texts if t.startswith("place")]
    assert len(reports) == checked and sum(t.count("failed  ") for t in reports) == failed
    assert "reveal([0], 3) gave [1.25]" in reports[0] or not failed
    simulated, trained = boards[:-1], boards[-1]
    assert len(simulated) >= 4 and all("Before a simulated learner" in t for t in simulated) and "Trained on Chain-of-Parities" in trained
    leaders = {board.splitlines()[1].split()[1] for board in simulated}
    assert leaders == ({"adaback"} if failed else {"falling", "memory"})
    assert not [o for o in outputs if o.output_type == "stream" and "fails" in o.text]
