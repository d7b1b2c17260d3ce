"""A steered run, trained again from its folder alone."""

import json
import random
import time

import pytest

import adaback_lite as ab
from adaback_lite.control import Control
from adaback_lite.live import live_run
from adaback_lite.replay import differences, replay
from tests import crash
from tests.helpers import taught_config

CHANGES = [(2, "curriculum.alpha", 0.9), (2, "grpo.lr", 0.01), (5, "curriculum.tau", 0.9), (7, "curriculum.zero_prob", 0.5)]


def steered(out, **settings):
    return taught_config(out, **{"trainer.max_steps": 10, **settings})


def test_a_steered_run_is_replayed_event_for_event(tmp_path):
    run = ab.train(steered(tmp_path / "a"), progress=False, control=Control(CHANGES))
    plain = ab.train(steered(tmp_path / "plain"), progress=False)
    again = replay(run.folder, tmp_path / "b", progress=False)
    assert differences(run, again) == [] and len([e for e in again.events if e["event"] == "change"]) == 4
    assert again.summary["test_right"] == run.summary["test_right"]
    assert "change" in " ".join(differences(run, plain))  # a run without the changes does differ, and says where


def test_an_interactive_run_with_pauses_and_stops_is_replayed(tmp_path):
    """In its own thread, changed at moments that nobody chose, paused, stopped and started again."""
    config = steered(tmp_path / "a", **{"trainer.max_steps": 150, "trainer.target_accuracy": 0, "trainer.checkpoint_every": 40})
    run, rng = live_run(config), random.Random(4)
    run.start()
    for _ in range(6):
        time.sleep(rng.uniform(0.02, 0.15))
        run.change({"curriculum.alpha": rng.random(), "grpo.lr": 10 ** rng.uniform(-4, -2)})
        if run.active and rng.random() < 0.5:
            run.pause()
            run.change({"curriculum.tau": rng.random()})
            run.go_on()
        if run.active and rng.random() < 0.4:
            run.stop()
            run.wait(60)
            run.start()
    assert run.wait(120) and run.state == "finished", run.error + run.traceback
    assert len([e for e in run.events if e["event"] == "change"]) >= 3
    again = replay(run.folder, tmp_path / "b", progress=False)
    assert differences(run, again) == []


@pytest.mark.slow
def test_a_steered_run_that_was_killed_and_resumed_is_replayed(tmp_path):
    """SIGKILL at any moment, resumed in other processes: the changes are still at their steps."""
    config = steered(tmp_path / "a", **{"trainer.checkpoint_every": 100})
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=Control(CHANGES[:3], stop_at=6))
    folder = tmp_path / "a"
    for die_at in (8, 20, 35):
        crash.finish(crash.start(config, folder, die_at), folder)
    assert crash.finish(crash.start(config, folder), folder) == 0
    run = ab.load_run(folder)
    assert [e["name"] for e in run.events if e["event"] == "change"] == [name for _, name, _ in CHANGES[:3]]
    assert differences(run, replay(folder, tmp_path / "b", progress=False)) == []


def test_an_unfinished_run_is_replayed_as_far_as_it_went(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ab.train(steered(tmp_path / "a"), progress=False, control=Control(CHANGES, stop_at=6))
    again = replay(tmp_path / "a", tmp_path / "b", progress=False)
    assert again.summary is None and [e["step"] for e in again.events if e["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert differences(tmp_path / "a", again) == []


def test_a_run_stopped_in_its_sft_stage_is_replayed(tmp_path):
    control = Control()
    control.stop()
    with pytest.raises(KeyboardInterrupt):
        ab.train(steered(tmp_path / "a", method="sft+adaback"), progress=False, control=control)
    again = replay(tmp_path / "a", tmp_path / "b", progress=False)
    assert differences(tmp_path / "a", again) == []


def test_a_replay_that_was_stopped_goes_on(tmp_path):
    run = ab.train(steered(tmp_path / "a"), progress=False, control=Control(CHANGES))
    with pytest.raises(KeyboardInterrupt):
        ab.train(steered(tmp_path / "b"), progress=False, control=Control(CHANGES, stop_at=3))
    assert differences(run, replay(run.folder, tmp_path / "b", progress=False)) == []


def test_a_run_with_a_curriculum_of_ones_own(tmp_path):
    n = taught_config().task.n_train

    def mine():
        return ab.AdaBack(n, seed=5, recovery=0.3)

    run = ab.train(steered(tmp_path / "a"), curriculum=mine(), progress=False, control=Control(CHANGES))
    assert differences(run, replay(run.folder, tmp_path / "b", curriculum=mine(), progress=False)) == []
    with pytest.raises(ab.UserError, match="curriculum of your own, AdaBack; replay it from Python"):
        replay(run.folder, tmp_path / "c", progress=False)


def test_a_run_is_not_replayed_over_itself(tmp_path):
    run = ab.train(steered(tmp_path / "a", **{"trainer.max_steps": 2}), progress=False)
    with pytest.raises(ab.UserError, match="cannot be written over it"):
        replay(run.folder, tmp_path / "x" / ".." / "a", progress=False)


def test_a_change_before_a_step_that_never_came_is_no_difference(tmp_path):
    """The learning rate is set to what breaks the loss: the log ends with the change."""
    with pytest.raises(KeyboardInterrupt):
        ab.train(steered(tmp_path / "a"), progress=False, control=Control(CHANGES, stop_at=4))
    with open(tmp_path / "a" / "events.jsonl", "a") as log:
        log.write(json.dumps({"event": "change", "step": 4, "name": "grpo.lr", "value": 1.0, "before": 0.01}) + "\n")
    assert differences(tmp_path / "a", replay(tmp_path / "a", tmp_path / "b", progress=False)) == []


def test_differences_in_words(tmp_path):
    run = ab.train(steered(tmp_path / "a", **{"trainer.max_steps": 2}), progress=False)
    other = ab.train(steered(tmp_path / "b", **{"trainer.max_steps": 2}), progress=False)
    log = tmp_path / "b" / "events.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    at = next(i for i, e in enumerate(lines) if e["event"] == "step" and e["step"] == 2)
    lines[at]["loss"] = 7.5
    log.write_text("".join(json.dumps(e) + "\n" for e in lines))
    (found,) = differences(run, other)
    assert "(step, step 2): loss is" in found and f"7.5 in {other.folder}" in found
    log.write_text("".join(json.dumps(e) + "\n" for e in lines[:at]))
    assert "events and" in differences(run, other)[-1]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ab.UserError, match="no run"):
        replay(tmp_path / "none", tmp_path / "b")


def test_a_replay_does_not_write_over_another_run(tmp_path):
    run = ab.train(steered(tmp_path / "a", **{"trainer.max_steps": 2}), progress=False)
    ab.train(steered(tmp_path / "b", **{"trainer.max_steps": 2, "seed": 3}), progress=False)
    before = (tmp_path / "b" / "events.jsonl").read_bytes()
    with pytest.raises(ab.UserError, match="was trained with seed 3"):
        replay(run.folder, tmp_path / "b", progress=False)
    assert (tmp_path / "b" / "events.jsonl").read_bytes() == before


def test_from_the_command_line(tmp_path, command):
    with pytest.raises(KeyboardInterrupt):
        ab.train(steered(tmp_path / "a"), progress=False, control=Control(CHANGES, stop_at=6))
    status, out, err = command("replay", tmp_path / "a", "--out", tmp_path / "b", "--quiet")
    assert (status, out) == (0, f"{tmp_path / 'b'}: 6 steps, 3 changes by hand: the same as {tmp_path / 'a'}, event for event\n"), err
    status, out, err = command("replay", tmp_path / "none", "--out", tmp_path / "c")
    assert status == 2 and "There is no run in" in err and len(err.splitlines()) == 1
    log = tmp_path / "a" / "events.jsonl"
    log.write_text(log.read_text().replace('"before": 0.05', '"before": 0.06'))
    status, out, err = command("replay", tmp_path / "a", "--out", tmp_path / "d", "--quiet")
    assert status == 1 and "(change, step 2): before is 0.06" in out
