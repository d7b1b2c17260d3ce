"""What a person may do to a run while it trains: change a setting, pause it, go on, stop it.

    control = Control()
    train(config, control=control)              in one thread
    control.change({"curriculum.alpha": 0.3})   in another; acts before the next step

The trainer writes every change into the run's events with its step. So a run that was steered by hand can be trained
again without anybody at the wheel: `Control(changes=...)` makes the same changes at the same steps (replay.py).
"""

import threading
from typing import Any

from .config import LIVE, Config, flat, override
from .curricula import make_curriculum
from .errors import UserError


class Control:
    """Any thread may call. `paused` says whether a pause is asked for, not whether the step under way is over.

    Args:
        changes: [(step, name, value), ...], made when so many steps are done.
        stop_at: stop, as on Ctrl-C, when so many steps are done.
    """

    def __init__(self, changes: list[tuple[int, str, Any]] = (), stop_at: int | None = None):
        self._lock = threading.Lock()
        self._asked: dict[str, Any] = {}
        self._planned = list(changes)
        self._stop_at = stop_at
        self._stop = False
        self._waits = False
        self._go = threading.Event()
        self._go.set()
        self._allowed: tuple[str, ...] | None = None  # known once a run has this control
        self._config: Config | None = None

    # --- for people

    def change(self, settings: dict[str, Any]) -> None:
        """Settings by dotted name, to act from the next step on. Raises UserError for one that cannot change, or out of bounds; then nothing changes."""
        with self._lock:
            checked = check_change(self._config or Config(), {**self._asked, **settings}, LIVE if self._allowed is None else self._allowed)
            self._asked = checked

    def pause(self) -> None:
        """Finish the step under way, write a checkpoint, and wait."""
        self._go.clear()

    def go_on(self) -> None:
        self._go.set()

    def stop(self) -> None:
        """Finish the step under way, write a checkpoint, and end as on Ctrl-C."""
        self._stop = True
        self._go.set()

    @property
    def asked(self) -> dict[str, Any]:
        """The changes that wait for the next step."""
        with self._lock:
            return dict(self._asked)

    @property
    def paused(self) -> bool:
        return not self._go.is_set()

    @property
    def waits(self) -> bool:
        """Whether the run stands still in a pause: its step is over, and its checkpoint written."""
        return self._waits

    # --- for the trainer

    def begin(self, config: Config, curriculum) -> None:
        """The run that is steered. Raises UserError when a change asked for earlier does not fit it."""
        with self._lock:
            self._config, self._allowed = config, steerable(config, curriculum)
            self._asked = check_change(config, self._asked, self._allowed)

    def due(self, step: int, config: Config) -> dict[str, Any]:
        """The changes to make now that `step` steps are done; those that change nothing are left out."""
        with self._lock:
            planned = {name: value for at, name, value in self._planned if at == step}
            asked, self._asked = {**planned, **self._asked}, {}
            self._config = override(config, asked)
        now, new = flat(config), flat(self._config)
        return {name: new[name] for name in asked if new[name] != now[name]}

    def stopping(self, step: int) -> bool:
        return self._stop or (self._stop_at is not None and step >= self._stop_at)

    def wait(self, seconds: float) -> None:
        """Until the pause ends, at most so long."""
        self._waits = True
        self._go.wait(seconds)
        self._waits = False


def steerable(config: Config, curriculum=None) -> tuple[str, ...]:
    """The settings of LIVE that a run uses: of the curriculum those that it has, and the learning rate wherever there is an RL stage."""
    if config.curriculum_name is None and curriculum is None:
        return ()
    if curriculum is None:
        curriculum = make_curriculum(config.curriculum_name, config.curriculum, 1)
    return tuple(name for name in LIVE if not name.startswith("curriculum.") or hasattr(curriculum, name.partition(".")[2]))


def check_change(config: Config, settings: dict[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    """The settings with their values as config.py reads them. Raises UserError in one sentence."""
    for name in settings:
        if name not in LIVE:
            override(config, {name: settings[name]})  # an unknown name says so
            raise UserError(f"The setting '{name}' cannot change while a run trains; only {', '.join(LIVE)} can.")
        if name not in allowed:
            raise UserError(f"The setting '{name}' does nothing in this run (method {config.method}), so it was not changed.")
    checked = flat(override(config, settings))
    return {name: checked[name] for name in settings}
