"""A run while it trains: start, pause, go on, stop, and move the settings that may move.

The panel holds nothing of the run. It reads the run's events and state, so any number of panels of one run agree.
"""

import html
import os
import threading
import time
import weakref
from typing import Any

import ipywidgets as w

from .. import charts
from ..config import Config, make_config, override, setting_names
from ..control import steerable
from ..errors import UserError
from ..live import LiveRun, live_run, status
from ..runs import Run, load_run
from .kinds import as_text
from .panel import Panel, blank, chart_widget
from .rows import SettingRow, paragraph
from .settings_panel import Controls

EVERY = 1.0  # seconds between two looks at a run
DRAWN = {"Reward and accuracy": charts.reward, "Revealed share ρ": charts.rho, "Heat map": charts.heatmap, "Health": charts.health}
WHAT = {  # state: what is said of it
    "new": "Not started yet.",
    "running": "Training.",
    "pausing": "Pausing: the step under way is finished first.",
    "paused": "Paused, with a checkpoint written: Resume goes on.",
    "stopped": "Stopped, with a checkpoint written: Start goes on from there.",
    "finished": "Finished.",
    "failed": "Failed: Start goes on from the last checkpoint.",
    "elsewhere": "Another process is writing this run: it can be watched from here, but not steered.",
}
BUTTONS = {  # button: states in which it can be pressed
    "Start": ("new", "stopped", "failed"),
    "Pause": ("running",),
    "Resume": ("pausing", "paused"),
    "Stop": ("running", "pausing", "paused"),
}
MOVING = ("running", "pausing", "paused", "elsewhere")  # states that may become another without this panel

_panels: weakref.WeakSet = weakref.WeakSet()


def live(config=None, *, curriculum=None, headless: bool | None = None, **settings) -> "LivePanel":
    """A run with its buttons, numbers and charts, refreshed every second while it trains in a thread of its own.

    Args:
        config: a Config, a dict of settings, the `controls` of another cell, a run, or the folder of one; more settings may be given by name.
        curriculum: an instance, in place of the method's own.
        headless: train now, in the foreground, and show a chart and a table; None does so where there is no front end.

    A folder that holds a finished run is shown, and not trained again; an unfinished one goes on, here at the press of Start.
    Raises UserError for settings that are not valid, and for a folder that does not exist.
    """
    run = live_run(_config(config, settings), curriculum)
    panel = LivePanel(run, headless)
    if panel.headless:
        from ..trainer import train

        train(run.started_with, curriculum=curriculum, resume=True)
    return panel


def _config(given, settings: dict[str, Any]) -> Config:
    if isinstance(given, Controls):
        given = given.config
    if isinstance(given, str | os.PathLike):
        given = load_run(given)
    if isinstance(given, Run):
        start = given.started_with if isinstance(given, LiveRun) else override(given.config, {"out": str(given.folder)})
        return override(start, settings)
    return override(given, settings) if isinstance(given, Config) else make_config(given, **settings)


class LivePanel(Panel):
    """See `live`. `run` is the LiveRun that it shows, `buttons` its buttons by name, `rows` the settings that may change."""

    places = 2

    def __init__(self, run: LiveRun, headless: bool | None = None):
        super().__init__(headless)
        self.run = run
        self._lock = threading.RLock()  # one refresh at a time
        self._closed, self._asked, self._watcher = threading.Event(), False, None
        self._drawn = self._kept_at = None
        self._broken = False
        if not self.headless:
            self.box = self._build()
            _panels.add(self)
            self._look()
            if run.state in MOVING:
                self._watch()

    # --- what is shown

    def static(self) -> list:
        from ..report import methods_table

        if not self.run.events:
            return []
        return [DRAWN[self.chosen](self.run), methods_table(self.run)]

    @property
    def chosen(self) -> str:
        """The chart that is shown, a key of DRAWN."""
        return next(iter(DRAWN)) if self.headless else self.choice.value

    def refresh(self) -> str:
        """Bring all that is shown in line with the run, and return its state."""
        with self._lock:
            state, facts, events = self.run.state, status(self.run), self.run.events
            what = self.run.error if state == "failed" else ""
            if what and what != self.sentence:
                self.say(what, self.run.traceback)
            self.state.value = f"<b>{WHAT[state]}</b> <code>{html.escape(str(self.run.folder))}</code>"
            self.facts.value = facts_html(facts)
            self.progress.max, self.progress.value = max(facts["steps"], 1), facts["step"]
            for name, button in self.buttons.items():
                button.disabled = state not in BUTTONS[name]
            asked = self.run.asked
            for name, row in self.rows.items():
                row.enable(state not in ("finished", "elsewhere"))
                if not row.error:
                    row.show(asked.get(name, facts["settings"][name]))
            self.changes.value = changes_html(events, asked)
            if self._drawn != (self.chosen, len(events)):
                self.chart.chart = DRAWN[self.chosen](self.run) if any(e["event"] in ("step", "eval") for e in events) else blank()
                self._drawn = (self.chosen, len(events))
            rests = state not in ("running", "pausing", "elsewhere") and bool(self._kept)
            if rests and self._kept_at != (state, *self._drawn):
                self._kept_at = (state, *self._drawn)
                self.keep()
            self.chart.layout.display = "none" if rests and events else None  # the picture under the panel shows the same
            return state

    def shown(self) -> None:
        self._kept_at = None
        if self.refresh() in ("running", "elsewhere"):
            self.keep()

    def close(self) -> None:
        """Close the view. The run goes on."""
        self._closed.set()
        super().close()

    # --- the thread that looks

    def _watch(self) -> None:
        """See to it that a thread refreshes this panel until the run rests."""
        with self._lock:
            self._asked = True
            if self._watcher is None and not self._closed.is_set():
                self._watcher = threading.Thread(target=self._keep_looking, name=f"view of {self.run.folder}", daemon=True)
                self._watcher.start()

    def _look(self) -> str | None:
        """Refresh. What goes wrong is said, and the sentence goes when it has passed; None where it went wrong."""
        with self._lock:
            state = self.guarded(self.refresh, clears=self._broken)()
            self._broken = state is None
            return state

    def _keep_looking(self) -> None:
        while True:
            began = time.monotonic()
            self._asked = False
            state = self._look()
            with self._lock:
                if self._closed.is_set() or (state is not None and state not in MOVING and not self._asked):
                    self._watcher = None
                    return
            took = time.monotonic() - began
            self._closed.wait(max(EVERY - took, took))  # drawing takes at most half of the time: training needs the rest

    # --- what is pressed

    def _press(self, name: str) -> None:
        do = {"Start": self.run.start, "Pause": self.run.pause, "Resume": self.run.go_on, "Stop": self.run.stop}[name]
        try:
            do()
        finally:
            for panel in list(_panels):  # all views of the run, so that they agree
                if panel.run is self.run:
                    panel._watch()
        self._look()

    def _change(self, name: str, value: Any) -> None:
        row = self.rows[name]
        row.say("")
        try:
            self.run.change({name: value})
        except UserError as error:
            row.say(str(error))

    def _build(self) -> w.Widget:
        self.state, self.facts, self.changes = w.HTML(), w.HTML(), w.HTML()
        self.progress = w.IntProgress(description="Steps", layout=w.Layout(width="330px"), style={"bar_color": charts.COLOURS["adaback"]})
        self.buttons = {name: w.Button(description=name, layout=w.Layout(width="90px")) for name in BUTTONS}
        for name, button in self.buttons.items():
            button.on_click(self.guarded(lambda _, name=name: self._press(name)))
        fields, now = setting_names(), status(self.run)["settings"]
        names = steerable(self.run.started_with, self.run.curriculum)
        self.rows = {name: SettingRow(name, fields[name], now[name], self.guarded(self._change)) for name in names}
        self.choice = w.ToggleButtons(options=list(DRAWN), description="Chart", style={"description_width": "50px", "button_width": "auto"})
        self.choice.observe(lambda _: self._look(), "value")
        self.chart = chart_widget()
        steering = [w.HTML(paragraph("These act at the next step:")), *(row.widget for row in self.rows.values())] if self.rows else []
        top = w.HBox([*self.buttons.values(), self.progress], layout=w.Layout(align_items="center"))
        return w.VBox([self.message, self.state, top, self.facts, *steering, self.changes, self.choice, self.chart])


def facts_html(facts: dict[str, Any]) -> str:
    """The numbers of live.status as a table; a dash where nothing is known yet."""

    def number(key: str, form: str = "{:.2f}") -> str:
        return "–" if facts[key] is None else form.format(facts[key])

    held = number("accuracy") + (f" (step {facts['accuracy_step']})" if facts["accuracy"] is not None else "")
    spread = "" if facts["rho_low"] is None else f" ({facts['rho_low']:.2f} to {facts['rho_high']:.2f})"
    cells = {
        "step": f"{facts['step']} of {facts['steps']}",
        "reward": number("mean_reward"),
        "held-out accuracy": held,
        **({"test accuracy": number("test_accuracy", "{:.3f}")} if facts["test_accuracy"] is not None else {}),
        "mean ρ (middle 80 %)": number("mean_rho") + spread,
        "tokens a second": number("tokens_per_second", "{:,.0f}"),
        "time left, at most": "–" if facts["seconds_left"] is None else duration(facts["seconds_left"]),
    }
    cell = "padding:2px 14px 2px 0;text-align:left"
    head = "".join(f'<th scope="col" style="{cell};font-weight:normal;color:#555">{name}</th>' for name in cells)
    body = "".join(f'<td style="{cell};font-size:115%">{html.escape(value)}</td>' for value in cells.values())
    return f"<table><tr>{head}</tr><tr>{body}</tr></table>"


def duration(seconds: float) -> str:
    """
    >>> duration(42.4), duration(200), duration(7384)
    ('42 s', '3 min 20 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def changes_html(events: list[dict], asked: dict[str, Any]) -> str:
    """The changes made by hand, newest first, and before them those that wait for the next step."""
    waiting = [f"waits for the next step: {name} {as_text(value)}" for name, value in asked.items()]
    done = [f"after step {e['step']}: {e['name']} {as_text(e['before'])} → {as_text(e['value'])}" for e in events if e["event"] == "change"]
    lines = [*waiting, *reversed(done)]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:12]) + ("<li>…</li>" if len(lines) > 12 else "")
    return paragraph("Changed by hand:") + f'<ul style="margin:0">{items}</ul>'
