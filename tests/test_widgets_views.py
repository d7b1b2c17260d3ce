"""Looking at samples and comparing runs: what is shown comes from the runs' folders, and what cannot be shown is said."""

import shutil
from collections import namedtuple

import ipywidgets as w
import numpy as np
import pytest

from adaback_lite import UserError, charts, train
from adaback_lite.outputs import Visit
from adaback_lite.simulate import LearnerSettings, simulate
from adaback_lite.widgets import compare_panel, sample_panel, simulator_panel
from adaback_lite.widgets.sample_text import REVEALED, WRONG, marked, step_span, visit_html

from .conftest import TINY

Kept = namedtuple("Kept", "parts update")


def shown(view) -> list:
    """Give a panel places to put its static output, as after it was shown; returns what was put there last."""
    parts = [None] * view.places
    view._kept = [Kept(parts, lambda part, n=n, raw=False: parts.__setitem__(n, part)) for n in range(view.places)]
    view.keep()
    return parts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Eight samples, six steps of four: each is visited three times."""
    return train({**TINY, "trainer.max_steps": 6, "out": str(tmp_path_factory.mktemp("a") / "run")}, progress=False)


# ---------------------------------------------------------------- one visit as HTML


def span(style: str, text: str) -> str:
    return f'<span style="{style}">{text}</span>'


@pytest.mark.parametrize(
    ("revealed", "wrong", "html"),
    [
        (0, (0, 0), "01&lt;10"),
        (2, (0, 0), span(REVEALED, "01") + "&lt;10"),
        (2, (2, 4), span(REVEALED, "01") + span(WRONG, "&lt;1") + "0"),
        (3, (2, 4), span(REVEALED, "01") + span(REVEALED + ";" + WRONG, "&lt;") + span(WRONG, "1") + "0"),
        (9, (0, 0), span(REVEALED, "01&lt;10")),
    ],
)
def test_marked_by_hand(revealed, wrong, html):
    assert marked("01<10", revealed, wrong) == html


@pytest.mark.parametrize(
    ("text", "step", "parity", "place"),
    [
        ("011010", 2, True, (2, 4)),
        ("011010", 3, True, (4, 6)),
        ("011010", 4, True, (0, 0)),
        ("a\nbb\n\nc", 2, False, (2, 6)),
        ("a\nbb", 9, False, (0, 0)),
        ("0110", None, True, (0, 0)),
    ],
)
def test_where_a_step_stands(text, step, parity, place):
    assert step_span(text, step, parity) == place


def test_a_visit_is_escaped_and_complete():
    text = "<b>48/2</b> = 24\n#### 24"
    visit = Visit(3, 7, "<script>x</script>?", text, "24", 5, [text, text[:5] + "\n& no"], [1.0, 0.0], ["right", "wrong"], [None, 2], ["", 'not "24"'])
    html = visit_html(visit, parity=False)
    assert "<script>" not in html and "<b>48" not in html and "&lt;script&gt;x&lt;/script&gt;?" in html
    assert "Sample 7, step 3." in html and "Mean reward 0.50 over 2 rollouts" in html
    assert "Rollout 1: reward 1, ✓ right" in html and "Rollout 2: reward 0, ✗ wrong, first wrong step 2, not &quot;24&quot;" in html
    assert html.count(span(REVEALED, "&lt;b&gt;48")) == 3  # in the rationale, and in both rollouts
    assert span(WRONG, "&amp; no") in html


# ---------------------------------------------------------------- samples


def slow_ranking(events) -> list[int]:
    """Every sample's value after every step since its first visit, averaged."""
    steps = [e for e in events if e["event"] == "step"]
    values, now = {}, {}
    for s in steps:
        now |= dict(zip(s["ids"], s["high"] or s["rho"]))
        for i, value in now.items():
            values.setdefault(i, []).append(value)
    return sorted(sorted(values), key=lambda i: np.mean(values[i]))


def test_samples_stand_as_in_the_heat_map(run):
    assert sample_panel.ranked(run.events) == slow_ranking(run.events) and sorted(sample_panel.ranked(run.events)) == list(range(8))
    last = {}
    for e in run.events:
        if e["event"] == "step":
            last |= dict(zip(e["ids"], e["high"]))
    cells = charts.heatmap(run).to_dict()["data"]["values"]
    end = {c["bottom"]: c["value"] for c in cells if c["right"] == 6}
    assert [end[row] for row in range(8)] == [last[i] for i in sample_panel.ranked(run.events)]
    synthetic = [{"event": "step", "ids": [0, 1], "rho": [0.9, 0.1], "high": None}, {"event": "step", "ids": [2, 0], "rho": [0.3, 0.2], "high": None}]
    assert sample_panel.ranked(synthetic) == [1, 2, 0]  # 0.1, 0.3 since it was first visited, (0.9 + 0.2) / 2
    assert sample_panel.ranked([]) == []


def test_a_sample_by_id_choice_step_and_click(run):
    view = sample_panel.sample(run.folder, headless=False)
    parts = shown(view)
    order = slow_ranking(run.events)
    assert view.id == order[-1] and [i for _, i in view.choice.options] == order[::-1]
    view.typed.value = "3"
    visits = [e["step"] for e in run.events if e["event"] == "step" and 3 in e["ids"]]
    assert view.sentence == "" and view.choice.value == 3 and [s for _, s in view.when.options] == visits and view.when.value == visits[-1]
    assert f"Sample 3, step {visits[-1]}." in parts[0].data and "sample 3" in str(parts[1].to_dict())
    view.when.value = visits[0]
    assert f"Sample 3, step {visits[0]}." in parts[0].data and view.typed.value == "3"
    view.choice.value = 5
    assert "Sample 5, step" in parts[0].data and view.typed.value == "5"
    cell = {"left": 3, "right": 4, "bottom": 2, "top": 3}
    view._clicked({"new": namedtuple("Selection", "value")([cell])})
    before = [e["step"] for e in run.events if e["event"] == "step" and order[2] in e["ids"] and e["step"] <= 4]
    assert view.id == order[2] and (f"Sample {view.id}, step {before[-1]}." in parts[0].data if before else "keeps no outputs" in view.sentence)
    view._clicked({"new": namedtuple("Selection", "value")([{"left": 5, "right": 6, "bottom": 0, "top": 3}])})
    assert view.id == order[2] and f"{order[2]}, {order[1]}, {order[0]}" in view.note.value
    assert "cell" in view.map.selections.trait_names()


def test_samples_that_cannot_be_shown(run, tmp_path, tiny):
    view = sample_panel.sample(run, headless=False)
    parts = shown(view)
    for typed, said in (("99", "keeps no outputs of sample 99"), ("-1", "The sample's id is '-1', but it must be a whole number from 0."), ("x", "is 'x'")):
        view.typed.value = typed
        assert said in view.sentence
    view.typed.value = "2"
    assert view.sentence == "" and "Sample 2" in parts[0].data
    assert "99" in sample_panel.sample(run, 99, headless=True).static()[0].data
    none = shutil.copytree(run.folder, tmp_path / "none")
    (none / "outputs.jsonl").unlink()
    silent = sample_panel.sample(none, 2, headless=False)
    assert "keeps no outputs (there is no outputs.jsonl); train with trainer.keep_outputs 1" in silent.sentence
    (tmp_path / "new").mkdir()
    shutil.copy(run.folder / "config.yaml", tmp_path / "new")
    unborn = sample_panel.sample(tmp_path / "new", headless=False)
    assert "has visited no sample yet" in unborn.sentence and unborn.choice.options == ()
    with pytest.raises(UserError, match="the folder does not exist"):
        sample_panel.sample(tmp_path / "nowhere", headless=False)


def test_a_killed_run_and_one_that_goes_on(run, tmp_path):
    killed = shutil.copytree(run.folder, tmp_path / "killed")
    for name in ("events.jsonl", "outputs.jsonl"):
        whole = (killed / name).read_bytes()
        (killed / name).write_bytes(whole[: whole.rindex(b"\n", 0, -1) - 20])  # in the middle of a line
    view = sample_panel.sample(killed, headless=False)
    parts = shown(view)
    assert view.sentence == "" and "Sample" in parts[0].data
    for name in ("events.jsonl", "outputs.jsonl"):
        shutil.copy(run.folder / name, killed)
    view.again.click()
    assert view.sentence == "" and [i for _, i in view.choice.options] == slow_ranking(run.events)[::-1]


def test_a_sample_headless(run):
    before = len(w.widgets.widget._instances)
    html, chart = sample_panel.sample(run, id=4, headless=True).static()
    assert "Sample 4" in html.data and "sample 4" in str(chart.to_dict()) and len(w.widgets.widget._instances) == before


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def several(run, tmp_path_factory):
    """Two seeds of adaback, two of another tau, one of rl."""
    root = tmp_path_factory.mktemp("several")
    for name, settings in {
        "a0": {},
        "deep/a1": {"seed": 1},
        "b0": {"curriculum.tau": 0.9},
        "b1": {"curriculum.tau": 0.9, "seed": 1},
        "rl": {"method": "rl"},
    }.items():
        train({**TINY, **settings, "out": str(root / name)}, progress=False)
    return root


def test_runs_are_grouped_by_what_they_differ_in(several):
    runs, unread = compare_panel.find_runs(several)
    assert list(runs) == ["a0", "b0", "b1", "deep/a1", "rl"] and unread == []
    names = {label: [str(r.folder.relative_to(several)) for r in group] for label, group in compare_panel.grouped(list(runs.values())).items()}
    assert names == {"adaback, tau 0.5": ["a0", "deep/a1"], "adaback, tau 0.9": ["b0", "b1"], "rl": ["rl"]}
    assert list(compare_panel.grouped([runs["a0"], runs["deep/a1"], runs["rl"]])) == ["adaback", "rl"]


def test_compare_follows_what_is_chosen(several, tmp_path):
    root = shutil.copytree(several, tmp_path / "runs")
    view = compare_panel.compare(root, headless=False)
    parts = shown(view)
    assert view.choice.value == ("a0", "b0", "b1", "deep/a1", "rl") and list(parts[1].index) == ["rl", "adaback, tau 0.5", "adaback, tau 0.9"]
    view.choice.value = ("a0", "deep/a1")
    assert list(parts[1].index) == ["adaback"] and parts[1].loc["adaback", "seeds"] == 2
    assert "mean over 2 seeds" in str(parts[0].to_dict()["title"])
    view.x_choice.value, view.measure_choice.value = "step", "reward"
    spec = str(parts[0].to_dict())
    assert "RL steps" in spec and "Mean training reward" in spec
    shutil.copytree(root / "rl", root / "rl2")
    shutil.rmtree(root / "a0")
    (root / "b1" / "config.yaml").write_text("version: 99")
    view.again.click()
    assert view.choice.options == ("b0", "deep/a1", "rl", "rl2") and view.choice.value == ("deep/a1",) == tuple(view.chosen)
    assert "b1" in view.sentence and "version is 99" in view.sentence and parts[1].loc["adaback", "seeds"] == 1
    view.choice.value = ()
    assert "No run is chosen" in parts[0].data and parts[1].data == ""


def test_compare_headless_and_bad_input(several, tmp_path):
    before = len(w.widgets.widget._instances)
    chart, table = compare_panel.compare(several, headless=True).static()
    assert "Accuracy on held-out inputs" in str(chart.to_dict()["title"]) and len(table) == 3
    assert len(w.widgets.widget._instances) == before
    assert "There are no runs in" in compare_panel.compare(tmp_path, headless=True).static()[0].data
    with pytest.raises(UserError, match="There is no folder"):
        compare_panel.compare(tmp_path / "none", headless=True)
    with pytest.raises(UserError, match="x must be one of rollouts, wall, step"):
        compare_panel.compare(several, x="time", headless=True)


# ---------------------------------------------------------------- the simulator


SMALL = {"samples": 300, "steps": 4}  # three batches: alpha matters in the second and third


def test_the_simulator_answers_to_every_control():
    view = simulator_panel.simulator({"curriculum.tau": 0.4}, methods=("adaback", "frontier"), learner=SMALL, headless=False)
    parts = shown(view)
    assert set(view.rows) == {"curriculum.alpha", "curriculum.tau", "curriculum.zero_prob", "curriculum.recovery", "curriculum.ema_init", "seed"} | {
        f"learner.{name}" for name in LearnerSettings.model_fields
    }
    assert view.rows["curriculum.tau"].entry.value == "0.4" and view.rows["learner.samples"].entry.value == "300"
    for name, value in {
        "curriculum.alpha": "0.9", "curriculum.tau": "0.9", "curriculum.zero_prob": "0.4", "curriculum.recovery": "0.3", "curriculum.ema_init": "none",
        "learner.lr": "2", "learner.samples": "400", "learner.start": "0.6", "seed": "5",
    }.items():  # fmt: skip
        before = view.simulations["adaback"].accuracy.tolist()
        parts[0] = None
        view.rows[name].entry.value = value
        assert view.sentence == "" and view.rows[name].error == ""
        assert view.simulations["adaback"].accuracy.tolist() != before, name
        assert charts.VEGALITE_MIME in parts[0] and list(parts[1].index) == ["adaback", "frontier"]
    assert view.learner == LearnerSettings(samples=400, steps=4, lr=2, start=0.6) and view.config.curriculum.ema_init == "none"
    again = simulate("adaback", view.learner, seed=5, settings=view.config.curriculum)
    assert view.simulations["adaback"].accuracy.tolist() == again.accuracy.tolist()  # the very same as without a panel
    view.close()


def test_only_what_can_have_changed_is_simulated_again():
    view = simulator_panel.simulator(methods=("adaback", "r3", "frontier"), learner=SMALL, headless=False)

    def again(name, value):
        before = dict(view.simulations)
        view.rows[name].entry.value = value
        for method, s in view.simulations.items():
            assert s.accuracy.tolist() == simulate(method, view.learner, seed=view.config.seed, settings=view.config.curriculum).accuracy.tolist()
        return [method for method in before if view.simulations[method] is not before[method]]

    assert again("curriculum.alpha", "0.5") == ["adaback"]
    assert again("curriculum.tau", "0.8") == ["adaback", "frontier"]
    assert again("learner.lr", "0.5") == again("seed", "3") == ["adaback", "r3", "frontier"]
    view.choice.value = ("r3",)
    assert list(view.simulations) == ["r3"]
    view.close()


def test_the_picture_follows_when_nothing_moves(monkeypatch):
    monkeypatch.setattr(simulator_panel, "REST", 0.01)
    view = simulator_panel.simulator(methods="adaback", learner=SMALL, headless=False)
    parts = shown(view)
    view.rows["curriculum.alpha"].slider.value = 0.5
    view._later.join(60)
    assert hasattr(parts[0], "to_dict") and view.sentence == ""  # a chart again, which the handle draws with its picture


def test_the_simulators_bad_input():
    view = simulator_panel.simulator(learner=SMALL, headless=False)
    before = view.simulations
    for name, typed, said in (("curriculum.tau", "9", "'curriculum.tau' is '9'"), ("learner.samples", "0", "'samples' is '0', but should be greater than or equal to 1")):
        view.rows[name].entry.value = typed
        assert said in view.rows[name].error and view.simulations is before
    view.rows["curriculum.tau"].entry.value = "0.5"
    assert view.rows["curriculum.tau"].error == "" and view.rows["learner.samples"].error
    view.choice.value = ("rl",)
    assert list(view.simulations) == ["rl"]
    parts = shown(view)
    view.drawn.value = "The ratchet"
    assert "None of rl keeps intervals" in view.sentence
    view.choice.value = ("adaback", "rl")
    assert view.sentence == "" and parts[0]["text/plain"]
    view.drawn.value = "First intervals"
    assert parts[0].to_dict()["title"]["text"] == "The first interval of each sample"
    view.choice.value = ()
    assert view.static() == [] and view.sentence == ""
    view.close()
    with pytest.raises(UserError, match="methods names 'sft', but what can be simulated is: adaback, rl"):
        simulator_panel.simulator(methods=("sft",), headless=True)
    with pytest.raises(UserError, match="Did you mean 'samples'"):
        simulator_panel.simulator(learner={"sample": 3}, headless=True)


def test_the_simulator_headless():
    before = len(w.widgets.widget._instances)
    chart, table = simulator_panel.simulator(learner=SMALL, headless=True).static()
    assert chart.to_dict() and list(table.index) == ["adaback", "r3"] and len(w.widgets.widget._instances) == before
