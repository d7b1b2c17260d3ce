"""The panel of a live run, driven by its traits: it steers, it agrees with others, and it says what is wrong."""

import fcntl
import threading
import time

import ipywidgets as w
import numpy as np
import pytest

from adaback_lite import Curriculum, UserError, live, load_run, make_config, train
from adaback_lite.widgets import controls, live_panel, panel
from adaback_lite.widgets.live_panel import changes_html, duration, facts_html

ENDLESS = {"trainer.max_steps": 100_000, "trainer.eval_every": 50, "trainer.checkpoint_every": 1000, "trainer.target_accuracy": 0.0}


class Shown:
    """Stands for a display handle: `parts` is all that was put there."""

    def __init__(self):
        self.parts = []

    def update(self, part):
        self.parts.append(part)


@pytest.fixture
def show(monkeypatch):
    """Show a panel as JupyterLab would; returns its handles."""

    def fake(part, display_id=None):
        return Shown() if display_id else None

    monkeypatch.setattr(panel, "display", fake)

    def do(view):
        view._ipython_display_()
        return view._kept

    return do


@pytest.fixture(autouse=True)
def soon_and_stopped(monkeypatch):
    """Panels look often; and no training outlives its test."""
    monkeypatch.setattr(live_panel, "EVERY", 0.02)
    yield
    live.stop_all()


def until(true):
    """Wait for another thread."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def steps(run) -> int:
    return sum(e["event"] == "step" for e in run.events)


def enabled(view) -> list[str]:
    return [name for name, button in view.buttons.items() if not button.disabled]


def test_start_pause_resume_stop(tiny, show):
    view = live_panel.live({**tiny, **ENDLESS}, headless=False)
    kept = show(view)
    assert "Not started yet." in view.state.value and enabled(view) == ["Start"]
    assert [type(k.parts[-1]).__name__ for k in kept] == ["HTML", "HTML"]  # nothing to keep yet
    view.buttons["Start"].click()
    assert enabled(view) == ["Pause", "Stop"] and "Training." in view.state.value
    until(lambda: steps(view.run) > 3)
    view.buttons["Start"].click()
    assert view.sentence == f"{tiny['out']} is training already; pause or stop it first." and view.sentence in view.message.value
    view.buttons["Pause"].click()
    assert enabled(view) == ["Resume", "Stop"] and "Paus" in view.state.value and view.sentence == ""
    until(lambda: "Paused" in view.state.value)
    assert view.run.checkpoints()
    until(lambda: hasattr(kept[0].parts[-1], "to_dict"))  # a chart stands there
    at = steps(view.run)
    time.sleep(0.1)
    assert steps(view.run) == at
    view.buttons["Resume"].click()
    until(lambda: steps(view.run) > at)
    view.buttons["Stop"].click()
    view.run.wait()
    until(lambda: enabled(view) == ["Start"] and view._watcher is None)
    assert "Stopped" in view.state.value and f"{steps(view.run)} of 100000" in view.facts.value and view.progress.value == steps(view.run)
    chart, table = (k.parts[-1] for k in kept)
    assert chart.to_dict()["title"]["text"] == "Training reward and held-out accuracy"
    assert view.chart.layout.display == "none"  # not twice the same
    view.choice.value = "Heat map"
    assert kept[0].parts[-1].to_dict()["title"]["text"].startswith("How much each sample is shown")
    assert table.loc["adaback", "rollouts"] == f"{8 * 4 * steps(view.run):,}"
    view.buttons["Start"].click()  # and on from there
    assert view.chart.layout.display is None
    at = steps(view.run)
    until(lambda: steps(view.run) > at)


def test_a_change_acts_at_the_next_step_and_stands_in_the_list(tiny):
    view = live_panel.live({**tiny, **ENDLESS}, headless=False)
    assert list(view.rows) == ["curriculum.alpha", "curriculum.tau", "curriculum.zero_prob", "grpo.lr"]
    view.buttons["Start"].click()
    until(lambda: steps(view.run) > 2)
    view.buttons["Pause"].click()
    until(lambda: view.run.checkpoints())
    view.rows["curriculum.alpha"].entry.value = "0.3"
    view.rows["grpo.lr"].entry.value = "7"
    assert "'grpo.lr' is '7', but should be less than or equal to 1" in view.rows["grpo.lr"].error
    assert [name for name, row in view.rows.items() if row.error] == ["grpo.lr"]
    view.refresh()
    assert "waits for the next step: curriculum.alpha 0.3" in view.changes.value
    assert view.rows["grpo.lr"].entry.value == "7"  # what was refused stays, to be mended
    assert view.rows["curriculum.alpha"].slider.value == 0.3  # follows what was typed
    view.buttons["Resume"].click()
    until(lambda: any(e["event"] == "change" for e in view.run.events))
    view.rows["grpo.lr"].slider.value = 0.01
    until(lambda: sum(e["event"] == "change" for e in view.run.events) == 2)
    view.run.stop()
    view.run.wait()
    first, second = [e for e in view.run.events if e["event"] == "change"]
    assert (first["name"], first["before"], first["value"]) == ("curriculum.alpha", 0.05, 0.3)
    assert (second["name"], second["before"], second["value"]) == ("grpo.lr", 3e-4, 0.01) and view.rows["grpo.lr"].error == ""
    view.refresh()
    assert f"<li>after step {second['step']}: grpo.lr 3e-4 → 0.01</li><li>after step {first['step']}: curriculum.alpha 0.05 → 0.3</li>" in view.changes.value


def test_a_run_offers_only_what_it_can_change(tiny):
    assert list(live_panel.live({**tiny, "method": "r3"}, headless=False).rows) == ["grpo.lr"]
    assert list(live_panel.live({**tiny, "method": "sft", "out": tiny["out"] + "2"}, headless=False).rows) == []


def test_two_views_agree_and_a_view_is_only_a_view(tiny):
    one, two = (live_panel.live({**tiny, **ENDLESS}, headless=False) for _ in range(2))
    assert one.run is two.run
    one.buttons["Start"].click()
    until(lambda: steps(one.run) > 2)
    two.rows["curriculum.tau"].entry.value = "0.9"
    until(lambda: "curriculum.tau 0.5 → 0.9" in one.changes.value and one.rows["curriculum.tau"].entry.value == "0.9")
    one.close()
    at = steps(two.run)
    until(lambda: steps(two.run) > at and one._watcher is None)  # the run goes on, and nobody looks for the closed view any more
    two.buttons["Stop"].click()
    two.run.wait()
    three = live_panel.live(tiny["out"], headless=False)  # by its folder, from a cell that runs later
    until(lambda: two._watcher is None)
    assert (three.facts.value, three.changes.value, three.state.value) == (two.facts.value, two.changes.value, two.state.value)
    assert three.rows["curriculum.tau"].entry.value == "0.9"


def test_a_finished_run_is_shown_and_not_trained_again(tiny, show):
    run = train(tiny, progress=False)
    before = (run.folder / "events.jsonl").read_bytes()
    for given in (tiny["out"], run, make_config(tiny), controls(tiny, headless=True)):
        view = live_panel.live(given, headless=False)
        kept = show(view)
        assert view._watcher is None and enabled(view) == [] and "Finished." in view.state.value and "test accuracy" in view.facts.value
        assert kept[1].parts[-1].loc["adaback", "stopped by"] == "max_steps"
        assert all(row.entry.disabled and row.slider.disabled for row in view.rows.values())
    live_panel.live(tiny, headless=True)
    assert (run.folder / "events.jsonl").read_bytes() == before


def test_a_run_of_another_process_is_watched_not_steered(tiny):
    run = train(tiny, progress=False)
    with open(run.folder / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        view = live_panel.live({**tiny, "trainer.max_steps": 5}, headless=False)
        assert "Another process is writing this run" in view.state.value and enabled(view) == [] and view._watcher is not None
        assert all(row.entry.disabled for row in view.rows.values()) and "2 of 5" in view.facts.value
        view.buttons["Start"].click()
        assert view.sentence == f"{run.folder} is being written by another process; wait for it, stop it, or choose another out."
        with pytest.raises(UserError, match="being written by another process"):
            live_panel.live({**tiny, "trainer.max_steps": 5}, headless=True)
    until(lambda: view._watcher is None)
    assert "Stopped" in view.state.value and enabled(view) == ["Start"]


class Breaks(Curriculum):
    def reveal(self, sample_ids, step):
        if step == 1:
            raise ZeroDivisionError("a student's mistake")
        return np.zeros(len(sample_ids))


def test_a_run_that_fails_says_so_with_its_traceback(tiny):
    view = live_panel.live(tiny, curriculum=Breaks(8), headless=False)
    view.buttons["Start"].click()
    view.run.wait()
    until(lambda: view._watcher is None)
    assert "Failed" in view.state.value and "ZeroDivisionError: a student&#x27;s mistake" in view.message.value and "in reveal" in view.message.value
    assert enabled(view) == ["Start"]
    other = make_config({**tiny, "curriculum.tau": 0.1, "out": tiny["out"]})
    clash = live_panel.live(other, headless=False)
    clash.buttons["Start"].click()
    clash.run.wait()
    until(lambda: clash._watcher is None)
    assert "was trained with curriculum.tau 0.5, not 0.1" in clash.sentence


def test_settings_that_clash_with_a_run_under_way(tiny):
    view = live_panel.live({**tiny, **ENDLESS}, headless=False)
    view.buttons["Start"].click()
    with pytest.raises(UserError, match="is training with seed 0, not 1"):
        live_panel.live({**tiny, **ENDLESS}, seed=1, headless=False)


def test_an_error_while_looking_is_said_and_passes(tiny, monkeypatch):
    view = live_panel.live({**tiny, **ENDLESS}, headless=False)
    whole = live_panel.status

    def broken(run):
        raise ValueError("a bug of ours")

    monkeypatch.setattr(live_panel, "status", broken)
    view.buttons["Start"].click()
    until(lambda: "ValueError: a bug of ours" in view.sentence)
    assert "in broken" in view.message.value and view._watcher is not None
    monkeypatch.setattr(live_panel, "status", whole)
    until(lambda: view.sentence == "" and "of 100000" in view.facts.value)


def test_charts_to_choose(tiny):
    train(tiny, progress=False)
    view = live_panel.live(tiny, headless=False)
    titles = []
    for name in live_panel.DRAWN:
        view.choice.value = name
        titles.append(view.chart.spec["title"]["text"])
    assert titles == ["Training reward and held-out accuracy", "How much is revealed", "How much each sample is shown (adaback)", "Health of the training"]
    assert view.sentence == ""


def test_headless_trains_goes_on_and_makes_no_widget(tiny):
    before = len(w.widgets.widget._instances)
    view = live_panel.live(tiny, headless=True)
    assert view.run.state == "finished" and view.box is None
    chart, table = view.static()
    assert chart.to_dict()["title"]["text"] == "Training reward and held-out accuracy" and list(table.index) == ["adaback"]
    longer = live_panel.live(tiny["out"], headless=True, **{"trainer.max_steps": 4})
    assert steps(longer.run) == 4 and [e["event"] for e in longer.run.events].count("resume") == 1
    assert len(w.widgets.widget._instances) == before


def test_without_a_kernel_there_is_no_front_end(tiny):
    assert panel.nobody_there() and live_panel.live(tiny).headless


@pytest.mark.parametrize(("content", "headless"), [({"allow_stdin": False}, True), ({"allow_stdin": True}, False), ({}, False)])
def test_what_the_request_says(content, headless, monkeypatch):
    class Shell:
        class kernel:
            @staticmethod
            def get_parent(channel):
                return {"content": content}

    monkeypatch.setattr(panel, "get_ipython", Shell)
    assert panel.nobody_there() is headless


def test_running_a_cell_again_closes_the_views_it_showed(tiny, show, monkeypatch):
    request = {"metadata": {"cellId": "c1"}, "header": {"msg_id": "1"}}
    monkeypatch.setattr(panel, "_request", lambda: request)
    monkeypatch.setattr(panel, "_shown", {})
    one, two = (live_panel.live(tiny, headless=False) for _ in range(2))
    show(one)
    show(two)
    assert not one._closed.is_set() and not two._closed.is_set()  # one cell, two views
    request["metadata"] = {"cellId": "c2"}
    show(two)
    request |= {"metadata": {"cellId": "c1"}, "header": {"msg_id": "2"}}
    three = live_panel.live(tiny, headless=False)
    show(three)
    assert one._closed.is_set() and not two._closed.is_set() and not three._closed.is_set()  # the second is still shown elsewhere


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="the folder does not exist"):
        live_panel.live(str(tmp_path / "none"), headless=False)


def test_no_thread_is_left(tiny):
    view = live_panel.live(tiny, headless=False)
    view.buttons["Start"].click()
    view.run.wait()
    until(lambda: view._watcher is None)
    until(lambda: not any(str(load_run(tiny["out"]).folder) in t.name for t in threading.enumerate()))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (42.4, "42 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7384, "2 h 3 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_nothing_known_yet_is_a_dash():
    facts = dict.fromkeys(("mean_reward", "mean_rho", "rho_low", "rho_high", "accuracy", "accuracy_step", "test_accuracy", "tokens_per_second", "seconds_left"))
    text = facts_html(facts | {"step": 0, "steps": 9})
    assert text.count("–") == 5 and "0 of 9" in text and "test accuracy" not in text
    assert changes_html([], {}) == "" and changes_html([], {"grpo.lr": 1e-5}).count("<li>") == 1
