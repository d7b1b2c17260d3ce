"""A run in a thread of its own, and where it stands."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import adaback_lite as ab
from adaback_lite import live
from adaback_lite.live import FollowedRun, live_run, status
from adaback_lite.runs import being_written
from tests import crash
from tests.helpers import taught_config

ROOT = Path(__file__).resolve().parent.parent


def long(out, **settings):
    """A run that lasts until it is told to stop."""
    return taught_config(out, **{"trainer.max_steps": 100_000, "trainer.target_accuracy": 0, "trainer.eval_every": 1000, "trainer.checkpoint_every": 1000, **settings})


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


@pytest.fixture
def running(tmp_path):
    run = live_run(long(tmp_path / "run"))
    run.start()
    until(lambda: status(run)["step"] >= 3 if (run.folder / "config.yaml").exists() else False)
    yield run
    if run.active:
        run.stop()
        run.wait(60)


def test_new_running_paused_running_stopped(running):
    assert running.state == "running"
    running.pause()
    assert running.state in ("pausing", "paused")
    until(lambda: running.state == "paused")
    assert running.events[-1]["event"] == "checkpoint"  # paused is said when the step is over and saved, not before
    step = status(running)["step"]
    time.sleep(0.3)
    assert status(running)["step"] == step
    running.go_on()
    until(lambda: status(running)["step"] > step)
    running.stop()
    assert running.wait(60) and running.state == "stopped" and not running.error
    assert running.checkpoints() and not being_written(running.folder)


def test_a_finished_run(tmp_path):
    run = live_run(taught_config(tmp_path / "run"))
    assert run.state == "new" and status(run)["step"] == 0
    run.start()
    assert run.wait(60) and run.state == "finished"
    s = status(run)
    assert s["step"] == s["steps"] == 12 and s["seconds_left"] == 0 and s["test_accuracy"] == run.summary["test_accuracy"]


def test_a_second_start_is_refused_and_the_first_goes_on(running):
    with pytest.raises(ab.UserError, match="is training already; pause or stop it first"):
        running.start()
    assert running.state == "running"


def test_the_same_cell_gives_the_same_run(running):
    assert live_run(running.started_with) is running
    with pytest.raises(ab.UserError, match="is training with curriculum.tau 0.5, not 0.25; stop it"):
        live_run(long(running.folder, **{"curriculum.tau": 0.25}))


def test_changes_are_seen_by_all_and_bad_ones_by_nobody(running):
    other = live_run(running.started_with)
    other.change({"curriculum.alpha": 0.75})
    until(lambda: status(running)["settings"]["curriculum.alpha"] == 0.75)
    assert running.config.curriculum.alpha == other.config.curriculum.alpha == 0.75
    with pytest.raises(ab.UserError, match="between 0 and 1"):
        running.change({"curriculum.alpha": 7})
    assert status(running)["settings"]["curriculum.alpha"] == 0.75


def test_a_change_to_a_stopped_run_acts_when_it_goes_on(running):
    running.stop()
    running.wait(60)
    step = status(running)["step"]
    running.change({"curriculum.tau": 0.125})
    assert status(running)["settings"]["curriculum.tau"] == 0.5
    running.start()
    until(lambda: status(running)["step"] > step)
    (change,) = [e for e in running.events if e["event"] == "change"]
    assert (change["step"], change["name"], change["before"], change["value"]) == (step, "curriculum.tau", 0.5, 0.125)


@pytest.mark.parametrize("act", ["pause", "stop"])
def test_nothing_to_pause_or_stop(tmp_path, act):
    with pytest.raises(ab.UserError, match=f"not training, so there is nothing to {act}"):
        getattr(live_run(long(tmp_path / "run")), act)()


def test_a_user_error_in_the_thread_is_the_runs_sentence(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    run = live_run(long(tmp_path / "run"))
    run.start()
    run.wait(60)
    assert run.state == "failed" and "holds files but no run" in run.error and not run.traceback


def test_any_other_error_keeps_its_traceback_and_the_run_goes_on_later(tmp_path, monkeypatch):
    from adaback_lite import trainer

    plain = trainer.rl_step

    def step(state, *args):
        if state.step == 2:
            raise ZeroDivisionError("a bug")
        return plain(state, *args)

    monkeypatch.setattr(trainer, "rl_step", step)
    run = live_run(taught_config(tmp_path / "run", **{"trainer.checkpoint_every": 1}))
    run.start()
    run.wait(60)
    assert run.state == "failed" and "ZeroDivisionError: a bug" in run.error and "rl_step" in run.traceback
    monkeypatch.undo()
    run.start()
    assert run.wait(60) and run.state == "finished" and not run.error


def test_a_run_of_another_process_can_be_looked_at_and_not_steered(tmp_path):
    config = long(tmp_path / "run")
    process = crash.start(config, tmp_path / "run")
    try:
        until(lambda: (tmp_path / "run" / "events.jsonl").exists() and '"event": "step"' in (tmp_path / "run" / "events.jsonl").read_text())
        run = live_run(config)
        assert run.state == "elsewhere" and status(run)["step"] >= 1
        for act in (run.start, lambda: run.change({"curriculum.alpha": 0.5})):
            with pytest.raises(ab.UserError, match="being written by another process"):
                act()
    finally:
        process.kill()
        process.join()
    assert run.state == "stopped"


CODE = """
import sys, time
sys.path.insert(0, {root!r})
from tests.test_live import long
from adaback_lite.live import live_run, status
run = live_run(long({folder!r}))
run.start()
while not run.folder.joinpath("config.yaml").exists() or status(run)["step"] < 3:
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_when_python_ends_the_run_has_a_checkpoint_of_its_last_step(tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE.format(root=str(ROOT), folder=str(tmp_path / "run"))], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    run = ab.load_run(tmp_path / "run")
    steps = [e["step"] for e in run.events if e["event"] == "step"]
    assert run.events[-1] == {"event": "checkpoint", "stage": "rl", "step": steps[-1]}


def test_following_reads_what_a_fresh_look_reads(running):
    follower = FollowedRun(running.folder)
    for _ in range(5):
        assert len(follower.events) > 0
        time.sleep(0.05)
    running.stop()
    running.wait(60)
    assert follower.events == ab.load_run(running.folder).events


def test_following_a_log_that_is_cut_back_torn_or_damaged(tmp_path):
    log, run = tmp_path / "events.jsonl", FollowedRun(tmp_path)
    assert run.events == []
    log.write_text('{"event": "a"}\n{"event": "b"}\n{"ev')
    assert [e["event"] for e in run.events] == ["a", "b"]
    log.write_text('{"event": "a"}\n')
    assert [e["event"] for e in run.events] == ["a"]
    with open(log, "a") as file:
        file.write('{"event": "c"}\nnonsense\n')
    with pytest.raises(ab.UserError, match="damaged at line 3"):
        _ = run.events


def test_status_by_hand(tmp_path):
    """Twelve steps of two samples: the last ten count, of which the first stands at 4 s and 300 tokens."""
    config = taught_config(tmp_path / "run")
    (tmp_path / "run").mkdir()
    from adaback_lite.config import dump_config

    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    steps = [
        {"event": "step", "step": n, "generated_tokens": 100 * n, "rho": [n / 100, n / 50], "mean_reward": n / 10, "mean_rho": n / 40, "grad_groups": 0.5, "wall": n + 1.0}
        for n in range(1, 13)
    ]
    events = [{"event": "eval", "step": 4, "accuracy": 0.25, "wall": 5.0}, {"event": "change", "step": 5, "name": "curriculum.tau", "value": 0.1, "before": 0.5}]
    (tmp_path / "run" / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in steps + events))
    s = status(ab.Run(tmp_path / "run"))
    assert (s["step"], s["steps"], s["accuracy"], s["accuracy_step"], s["wall"]) == (12, 12, 0.25, 4, 13.0)
    assert s["mean_reward"] == pytest.approx(np.mean([n / 10 for n in range(3, 13)]))
    assert s["tokens_per_second"] == pytest.approx(100.0) and s["seconds_left"] == 0
    draws = [r for n in range(3, 13) for r in (n / 100, n / 50)]
    assert (s["rho_low"], s["rho_high"]) == tuple(np.quantile(draws, [0.1, 0.9]))
    assert s["settings"]["curriculum.tau"] == 0.1 and s["test_accuracy"] is None


def test_stop_all_stops_all(running):
    live.stop_all()
    assert running.state == "stopped"


def test_another_look_at_a_resting_folder_is_the_same_run(tmp_path):
    """Also by another path and with more steps: all views of a folder share one run, so that they agree."""
    first = live_run(taught_config(tmp_path / "run"))
    (tmp_path / "x").mkdir()
    second = live_run(taught_config(tmp_path / "x" / ".." / "run", **{"trainer.max_steps": 7}))
    assert second is first and first.started_with.trainer.max_steps == 7
