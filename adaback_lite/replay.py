"""A run that somebody steered by hand, trained again with nobody at the wheel.

    again = replay("runs/live", out="runs/again")
    differences("runs/live", again)        [] : the same, event for event

A run's folder holds all that this needs: its settings, and a `change` event for each thing that was changed, with its step.
"""

from pathlib import Path

from .config import override
from .control import Control
from .errors import UserError
from .runs import Run, by_trl, go_on_command, load_run

# What says when the folder was saved, how long it took and on what, not what was learnt.
NOT_COMPARED = ("checkpoint", "resume")
NOT_EQUAL = ("wall", "machine")


def replay(folder, out, *, curriculum=None, progress: bool = True) -> Run:
    """Train the run in `folder` again, into `out`, up to where it stands: to its end, or to its last step. Returns the new run.

    `curriculum` is an instance as the run was started with, where it was not its method's own. A replay that was stopped goes on.
    Raises UserError as `train` does.
    """
    from .trainer import train

    run = load_run(folder)
    events = run.so_far
    if run.folder.resolve() == Path(out).resolve():
        raise UserError(f"The replay of {folder} cannot be written over it; choose another out.")
    if by_trl(events):
        raise UserError(f"{folder} is a run of TRL, which our own trainer cannot train again; start {go_on_command(out, events).replace(' --resume', '')} with its config.yaml.")
    own = next((e["curriculum"] for e in events if e["event"] == "start" and "curriculum" in e), None)
    if own and curriculum is None:
        raise UserError(f"{folder} was trained with a curriculum of your own, {own}; replay it from Python, with adaback_lite.replay.replay(folder, out, curriculum=...).")
    changes = [(e["step"], e["name"], e["value"]) for e in events if e["event"] == "change"]
    steps = run.steps_done
    control = Control(changes, stop_at=None if run.summary else steps)
    try:
        train(override(run.config, {"out": str(out)}), curriculum=curriculum, resume=True, progress=progress, control=control)
    except KeyboardInterrupt:  # as far as the run went; or Ctrl-C before that
        if Run(out).steps_done < steps:
            raise
    return Run(out)


def differences(a: Run | str, b: Run | str, most: int = 10) -> list[str]:
    """In words, where run `b` differs from run `a`, event for event; [] when it does not. At most `most` sentences.

    Times, the machine, and when checkpoints were written are not compared. Where `a` is not finished, `b` may go further.
    """
    a, b = (run if isinstance(run, Run) else load_run(run) for run in (a, b))
    first, second = (_comparable(run.so_far) for run in (a, b))
    found = []
    for number, (x, y) in enumerate(zip(first, second), 1):
        for key in [*x, *(k for k in y if k not in x)]:
            if x.get(key) != y.get(key):
                where = f"event {number} ({x['event']}" + (f", step {x['step']}" if "step" in x else "") + ")"
                found.append(f"{where}: {key} is {_short(x.get(key))} in {a.folder} and {_short(y.get(key))} in {b.folder}.")
    if len(second) < len(first) or (a.summary and len(second) > len(first)):
        found.append(f"{a.folder} has {len(first)} events and {b.folder} has {len(second)}.")
    return found[:most] + ([f"And {len(found) - most} more."] if len(found) > most else [])


def _comparable(events: list[dict]) -> list[dict]:
    kept = [{k: v for k, v in e.items() if k not in NOT_EQUAL} for e in events if e["event"] not in NOT_COMPARED]
    while kept and kept[-1]["event"] == "change":  # made before a step that never came
        kept.pop()
    return kept


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
