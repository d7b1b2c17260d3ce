"""Changing, pausing and stopping a run from another thread."""

import threading
import time

import pytest

import adaback_lite as ab
from adaback_lite.config import LIVE, flat, setting_names
from adaback_lite.control import Control, check_change, steerable
from tests.helpers import taught_config


def events_of(run, kind):
    return [e for e in run.events if e["event"] == kind]


def test_live_settings_are_settings():
    assert set(LIVE) <= set(setting_names())
    assert {"curriculum.alpha", "curriculum.tau", "curriculum.zero_prob", "grpo.lr"} <= set(LIVE)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("adaback", set(LIVE)),
        ("sft+adaback", set(LIVE)),
        ("frontier", {"curriculum.tau", "grpo.lr"}),
        ("r3", {"grpo.lr"}),
        ("uft", {"grpo.lr"}),
        ("rl", {"grpo.lr"}),
        ("sft", set()),
    ],
)
def test_what_can_be_steered_is_what_the_method_has(method, expected):
    assert set(steerable(ab.make_config(method=method))) == expected


def test_a_curriculum_of_ones_own_is_steered_by_what_it_has():
    class Mine(ab.Curriculum):
        def __init__(self):
            super().__init__(4)
            self.tau = 0.2

    assert steerable(ab.make_config(method="adaback"), Mine()) == ("curriculum.tau", "grpo.lr")


def test_a_change_becomes_a_value_of_the_settings_type():
    assert check_change(ab.make_config(), {"grpo.lr": "1e-4", "curriculum.alpha": 1}, LIVE) == {"grpo.lr": 1e-4, "curriculum.alpha": 1.0}


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("adaback", {"curriculum.alpha": 1.5}, "'curriculum.alpha' is 1.5.*between 0 and 1"),
        ("adaback", {"curriculum.unit": "step"}, "cannot change while a run trains; only curriculum.alpha"),
        ("adaback", {"curriculum.alhpa": 1}, "no setting 'curriculum.alhpa'. Did you mean 'curriculum.alpha'"),
        ("rl", {"curriculum.alpha": 0.5}, r"does nothing in this run \(method rl\)"),
        ("adaback", {"grpo.lr": "fast"}, "'grpo.lr' is 'fast'"),
    ],
)
def test_what_cannot_change_says_so_and_changes_nothing(method, settings, words):
    config = ab.make_config(method=method)
    with pytest.raises(ab.UserError, match=words):
        check_change(config, settings, steerable(config))
    control = Control()
    control.begin(config, None)
    control.change({"grpo.lr": 0.5})
    with pytest.raises(ab.UserError, match=words):
        control.change(settings)
    assert control.asked == {"grpo.lr": 0.5}


def test_due_gives_planned_and_asked_changes_once_and_none_that_change_nothing():
    config = ab.make_config()
    control = Control([(3, "curriculum.tau", 0.2), (4, "curriculum.tau", 0.5)])
    control.begin(config, None)
    assert control.due(0, config) == {}
    control.change({"curriculum.alpha": 0.5})
    control.change({"curriculum.alpha": 0.6, "grpo.lr": config.grpo.lr})  # the newest counts; the same value is no change
    assert control.due(1, config) == {"curriculum.alpha": 0.6}
    assert control.due(2, config) == {}
    assert control.due(3, config) == {"curriculum.tau": 0.2}


def test_every_change_is_an_event_that_acts_at_the_next_step(tmp_path):
    """A change of everything after two steps: the first two steps are those of an undisturbed run, and the third begins with the new values."""
    settings = {"trainer.max_steps": 5, "trainer.checkpoint_every": 100}
    plain = ab.train(taught_config(tmp_path / "plain", **settings), progress=False)
    control, seen = Control(), {}

    def ask(event):
        if event["event"] == "step" and event["step"] == 2:
            control.change({"curriculum.alpha": 1.0, "curriculum.tau": 0.0, "curriculum.zero_prob": 0.0, "grpo.lr": 0.5})
        if event["event"] == "checkpoint":
            seen[event["step"]] = True

    steered = ab.train(taught_config(tmp_path / "steered", **settings), progress=False, control=control, on_event=ask)
    changes = events_of(steered, "change")
    assert {e["name"]: (e["step"], e["before"], e["value"]) for e in changes} == {
        "curriculum.alpha": (2, 0.05, 1.0),
        "curriculum.tau": (2, 0.5, 0.0),
        "curriculum.zero_prob": (2, 0.1, 0.0),
        "grpo.lr": (2, flat(plain.config)["grpo.lr"], 0.5),
    }
    assert seen[2]  # a kill after the change loses nothing
    ours, theirs = events_of(steered, "step"), events_of(plain, "step")

    def untimed(event):
        return {k: v for k, v in event.items() if k != "wall"}

    assert [untimed(e) for e in ours[:2]] == [untimed(e) for e in theirs[:2]]
    assert ours[2]["high"] == pytest.approx(ours[2]["rho"], abs=1e-4)  # tau 0: every visit counts as solved, and none is forced to show nothing
    assert ours[2]["low"] == [0.0] * len(ours[2]["ids"])
    assert ours[3] != theirs[3]
    state = steered.load_checkpoint()[2]
    assert state["curriculum"]["alpha"] == 1.0 and state["curriculum"]["tau"] == 0.0


def test_a_changed_learning_rate_is_the_optimizers(tmp_path):
    """With a learning rate that is nearly 0 from the first step on, the weights stay where they were."""
    control = Control([(0, "grpo.lr", 1e-12)])
    run = ab.train(taught_config(tmp_path / "run", **{"trainer.max_steps": 3}), progress=False, control=control)
    assert max(e["grad_norm"] for e in events_of(run, "step")) > 0
    from adaback_lite.build import build_policy

    start, _ = build_policy(run.config)
    end, _ = run.load_policy()
    assert max(float((p - q).detach().abs().max()) for p, q in zip(start.parameters(), end.parameters())) < 1e-9


def test_a_pause_writes_a_checkpoint_costs_no_training_time_and_ends(tmp_path):
    control = Control()
    config = taught_config(tmp_path / "run", **{"trainer.max_steps": 6, "trainer.checkpoint_every": 100})
    paused = threading.Event()

    def ask(event):
        if event["event"] == "step" and event["step"] == 3:
            control.pause()
            paused.set()

    thread = threading.Thread(target=ab.train, args=(config,), kwargs={"progress": False, "control": control, "on_event": ask})
    thread.start()
    assert paused.wait(60)
    run = ab.Run(config.out)
    while not run.checkpoints():
        time.sleep(0.01)
    time.sleep(1.0)
    assert [e["step"] for e in events_of(run, "step")] == [1, 2, 3] and control.paused
    control.go_on()
    thread.join(60)
    assert run.summary["steps"] == 6
    walls = {e["step"]: e["wall"] for e in events_of(run, "step")}
    assert walls[4] - walls[3] < 1.0  # the second of the pause is not counted as training


@pytest.mark.parametrize("method", ["adaback", "sft+adaback"])
def test_a_stop_goes_on_to_the_same_run(tmp_path, method):
    whole = ab.train(taught_config(tmp_path / "whole", method=method), progress=False)
    config, control = taught_config(tmp_path / "run", method=method), Control(stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=control)
    assert events_of(ab.Run(config.out), "step")[-1]["step"] == 4
    resumed = ab.train(config, resume=True, progress=False)
    keep = ("start", "checkpoint", "resume")
    assert [{**e, "wall": 0} for e in resumed.events if e["event"] not in keep] == [{**e, "wall": 0} for e in whole.events if e["event"] not in keep]


def test_a_stop_in_the_sft_stage(tmp_path):
    config, control = taught_config(tmp_path / "run", method="sft+adaback"), Control()
    control.stop()
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=control)
    assert not events_of(ab.Run(config.out), "step") and ab.Run(config.out).checkpoints()


def test_a_change_outlives_a_resume(tmp_path):
    config = taught_config(tmp_path / "run", **{"trainer.max_steps": 8, "trainer.checkpoint_every": 100})
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=Control([(2, "grpo.lr", 0.01), (2, "curriculum.zero_prob", 1.0)], stop_at=4))
    resumed = ab.train(config, resume=True, progress=False)
    assert all(set(e["rho"]) == {0.0} for e in events_of(resumed, "step") if e["step"] > 2)  # every visit shows nothing, after the resume too
    once = ab.train(taught_config(tmp_path / "once", **{"trainer.max_steps": 8}), progress=False, control=Control([(2, "grpo.lr", 0.01), (2, "curriculum.zero_prob", 1.0)]))
    assert [e["loss"] for e in events_of(resumed, "step")] == [e["loss"] for e in events_of(once, "step")]


def test_a_change_asked_for_before_the_start_must_fit_the_run(tmp_path):
    control = Control()
    control.change({"curriculum.alpha": 0.5})
    with pytest.raises(ab.UserError, match="does nothing in this run"):
        ab.train(taught_config(tmp_path / "run", method="rl"), progress=False, control=control)
