"""A run that trains in a thread of its own, so that the notebook stays free; and where a run stands, from its events.

    run = live_run(make_config(out="runs/a"))    the same object for the same folder, however often a cell is run
    run.start(); run.pause(); run.change({"curriculum.alpha": 0.3}); run.go_on(); run.stop()
    status(run)

Nothing of the training lives in a view. When the kernel ends, the run is asked to stop and writes a checkpoint; when it is
killed, the folder is as after any kill, and `start` goes on from there.
"""

import atexit
import json
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from .config import LIVE, Config, flat, override
from .control import Control, check_change, steerable
from .errors import UserError
from .resume import finished
from .runs import Run, being_written, read_events

RECENT = 10  # steps that "now" means, in a status


class FollowedRun(Run):
    """A run's folder, read again and again: `events` parses only what is new since the last look. For one thread at a time."""

    def __init__(self, folder):
        super().__init__(folder)
        self._seen: list[dict] = []
        self._size = 0
        self._lock = threading.Lock()

    @property
    def events(self) -> list[dict]:
        path = self.folder / "events.jsonl"
        with self._lock:
            size = path.stat().st_size if path.is_file() else 0
            if size < self._size:  # cut back to a checkpoint: the run was resumed
                self._seen, self._size = [], 0
            if size > self._size:
                with open(path, "rb") as file:
                    file.seek(self._size)
                    new = file.read(size - self._size)
                whole = new[: new.rfind(b"\n") + 1]
                try:
                    self._seen = self._seen + [json.loads(line) for line in whole.splitlines()]
                except ValueError:  # says which line is bad
                    return read_events(path)
                self._size += len(whole)
            return self._seen

    @property
    def so_far(self) -> list[dict]:
        return self.events


class LiveRun(FollowedRun):
    """A run that this process may train. Made by `live_run`."""

    def __init__(self, config: Config, curriculum=None):
        super().__init__(config.out)
        self.started_with = config
        self.curriculum = curriculum
        self.error = ""  # one sentence
        self.traceback = ""  # of an error that is not the user's
        self._control = Control()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def config(self) -> Config:
        """The settings now: those it was started with, and every change since."""
        return settings_now(self.started_with, self.events)

    @property
    def active(self) -> bool:
        """Whether it trains, or waits in a pause, in this process."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def state(self) -> str:
        """new, running, pausing (the step under way is finished first), paused, stopped, finished, failed, or elsewhere: written by another process."""
        if self.active:
            if not self._control.paused:
                return "running"
            return "paused" if self._control.waits else "pausing"
        if being_written(self.folder):
            return "elsewhere"
        if self.error:
            return "failed"
        summary = self.summary
        if summary is not None and finished(self, self.started_with):
            return "finished"
        return "stopped" if (self.folder / "config.yaml").is_file() else "new"

    def start(self) -> None:
        """Begin, or go on where the folder stands. Raises UserError when it is under way already, here or in another process."""
        with self._starting:
            if self.active:
                raise UserError(f"{self.folder} is training already; pause or stop it first.")
            if being_written(self.folder):
                raise UserError(f"{self.folder} is being written by another process; wait for it, stop it, or choose another out.")
            self.error = self.traceback = ""
            self._thread = threading.Thread(target=self._train, name=f"training {self.folder}", daemon=True)
            self._thread.start()

    def _train(self) -> None:
        from .trainer import train

        try:
            train(self.started_with, curriculum=self.curriculum, resume=True, progress=False, control=self._control)
        except KeyboardInterrupt:  # stopped: the checkpoint is written
            pass
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # not the user's doing; it would vanish with the thread
            self.error = f"Training failed with {type(error).__name__}: {str(error) or 'no message'}; the traceback stands below, and the last checkpoint is whole."
            self.traceback = traceback.format_exc()
        finally:
            waiting, self._control = self._control.asked, Control()
            self._control.change(waiting)  # what was changed after the last step acts when it goes on

    def pause(self) -> None:
        """Finish the step under way, write a checkpoint, and wait."""
        if not self.active:
            raise UserError(f"{self.folder} is not training, so there is nothing to pause.")
        self._control.pause()

    def go_on(self) -> None:
        """End a pause."""
        self._control.go_on()

    def stop(self) -> None:
        """Finish the step under way, write a checkpoint, and end; `start` goes on from there."""
        if not self.active:
            raise UserError(f"{self.folder} is not training, so there is nothing to stop.")
        self._control.stop()

    def change(self, settings: dict[str, Any]) -> None:
        """Settings of config.LIVE by dotted name; they act at the next step, also when that comes after a later start.

        Raises UserError for one that cannot change or is out of bounds.
        """
        if self.state == "elsewhere":
            raise UserError(f"{self.folder} is being written by another process, so nothing can be changed from here.")
        check_change(self.config, settings, steerable(self.config, self.curriculum))
        self._control.change(settings)

    @property
    def asked(self) -> dict[str, Any]:
        """The changes that wait for the next step."""
        return self._control.asked

    def wait(self, seconds: float | None = None) -> bool:
        """Until training ends in this process, at most so long; whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.active


_runs: dict[Path, LiveRun] = {}
_guard = threading.Lock()


def live_run(config: Config, curriculum=None) -> LiveRun:
    """The run in `config.out`: a new object, or the one that this process has for the folder already.

    Raises UserError when that one is under way with other settings.
    """
    folder = Path(config.out).resolve()
    with _guard:
        known = _runs.get(folder)
        if known is not None and known.active:
            mine, its = flat(config), flat(known.started_with)
            for name in mine:
                if mine[name] != its[name] and name != "out":
                    raise UserError(f"{config.out} is training with {name} {its[name]}, not {mine[name]}; stop it, or choose another out.")
            return known
        if known is None:
            known = _runs[folder] = LiveRun(config, curriculum)
        known.started_with, known.curriculum = config, curriculum  # the same object, so that all views of the folder agree
        return known


@atexit.register
def stop_all(seconds: float = 10.0) -> None:
    """Ask every run of this process to stop, and wait for their checkpoints. Called when Python ends."""
    active = [run for run in _runs.values() if run.active]
    for run in active:
        run._control.stop()
    for run in active:
        run.wait(seconds)


# --- where a run stands ------------------------------------------------------------------------------------------------


def settings_now(config: Config, events: list[dict]) -> Config:
    """The settings after the changes in a run's events."""
    changes = {e["name"]: e["value"] for e in events if e["event"] == "change"}
    return override(config, changes) if changes else config


def status(run: Run) -> dict[str, Any]:
    """Where a run stands, from its events alone; None where nothing is known yet.

    step, steps     done, and at most
    mean_reward, mean_rho, rho_low, rho_high, grad_groups
                    over the last RECENT steps; rho_low and rho_high hold the middle 80 % of the draws
    accuracy        held-out accuracy, and accuracy_step, where it was measured
    test_accuracy   of a finished run
    tokens_per_second, seconds_left
                    from the last RECENT steps; seconds_left is for all steps, reaching trainer.target_accuracy may end it sooner
    wall            seconds of training
    settings        the settings of config.LIVE as they are now
    """
    events = run.so_far
    config = run.started_with if isinstance(run, LiveRun) else run.config
    now = flat(settings_now(config, events))
    steps = [e for e in events if e["event"] == "step"]
    recent = steps[-RECENT:]
    evals = [e for e in events if e["event"] == "eval"]
    ends = [e for e in events if e["event"] == "end"]
    facts: dict[str, Any] = dict.fromkeys(
        ("mean_reward", "mean_rho", "rho_low", "rho_high", "grad_groups", "accuracy", "accuracy_step", "test_accuracy", "tokens_per_second", "seconds_left")
    )
    facts |= {"step": steps[-1]["step"] if steps else 0, "steps": config.trainer.max_steps, "settings": {name: now[name] for name in LIVE}}
    facts["wall"] = max((e["wall"] for e in events[-5:] if "wall" in e), default=0.0)
    if recent:
        facts |= {key: float(np.mean([s[key] for s in recent])) for key in ("mean_reward", "mean_rho", "grad_groups")}
        low, high = np.quantile([r for s in recent for r in s["rho"]], [0.1, 0.9])
        facts |= {"rho_low": float(low), "rho_high": float(high)}
    if len(recent) > 1 and recent[-1]["wall"] > recent[0]["wall"]:
        seconds = recent[-1]["wall"] - recent[0]["wall"]
        facts["tokens_per_second"] = (recent[-1]["generated_tokens"] - recent[0]["generated_tokens"]) / seconds
        facts["seconds_left"] = seconds / (len(recent) - 1) * max(facts["steps"] - facts["step"], 0)
    if evals:
        facts |= {"accuracy": evals[-1]["accuracy"], "accuracy_step": evals[-1]["step"]}
    if ends:
        facts |= {"test_accuracy": ends[-1]["test_accuracy"], "seconds_left": 0.0}
    return facts
