"""One setting as a row: a slider, choice, check box or text box with its help, and a place for a sentence about it.

A number has a text box, which takes what a slider cannot reach; where its range allows it a slider stands beside. The text is
what counts.
"""

import html
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as w

from ..options import setting_help
from .kinds import Kind, as_text, as_value, kind_of

LABEL = {"description_width": "120px"}


def sentence_html(sentence: str) -> str:
    """A sentence about something wrong: set off by a sign and a line, not by colour alone. '' for none."""
    if not sentence:
        return ""
    return f'<div role="alert" style="border-left:4px solid #D55E00;padding:2px 8px;margin:2px 0;line-height:1.4;white-space:normal">⚠ {html.escape(sentence)}</div>'


def paragraph(inner: str) -> str:
    """A line of HTML with less space around it than the page gives a <p>."""
    return f'<div style="margin:4px 0;line-height:1.4;white-space:normal">{inner}</div>'


class SettingRow:
    """A setting's row.

    Args:
        name: dotted name.
        field: its pydantic field.
        value: its value now.
        on_change: called with (name, what was entered) when a person changes it, not on `show`.
        live: whether a slider answers while it is being dragged, not only when it is let go.
    """

    def __init__(self, name: str, field, value: Any, on_change: Callable[[str, Any], None], live: bool = False):
        self.name, self.kind = name, kind_of(field)
        self._on_change = on_change
        self._showing = threading.local()  # .on in a thread that shows a value: its changes are nobody's wish
        label, tip = name.rpartition(".")[2], f"{name} {setting_help(field)}"
        self.slider = _slider(self.kind, label, tip, live)
        self.entry = _entry(self.kind, "" if self.slider else label, tip)
        self.help = w.HTML(f'<span style="color:#555;line-height:1.3;display:inline-block">{html.escape(field.description or "")}</span>', layout=w.Layout(flex="1 1 200px"))
        self.sentence = w.HTML()
        parts = [part for part in (self.slider, self.entry, self.help) if part is not None]
        self.widget = w.VBox([w.HBox(parts, layout=w.Layout(align_items="center")), self.sentence])
        self.error = ""
        self.show(value)
        self.entry.observe(self._entered, "value")
        if self.slider:
            self.slider.observe(self._slid, "value")

    def enable(self, on: bool) -> None:
        for part in (self.slider, self.entry):
            if part is not None:
                part.disabled = not on

    def show(self, value: Any) -> None:
        """Show a valid value, and no sentence."""
        self._showing.on = True
        try:
            self.entry.value = value if self.kind.shape in ("choice", "check") else as_text(value)
            self._slide_to(value)
        finally:
            self._showing.on = False
        self.say("")

    def say(self, sentence: str) -> None:
        """The sentence beside this control; '' takes it away."""
        self.error = sentence
        self.sentence.value = sentence_html(sentence)

    def _slide_to(self, value: Any) -> None:
        if self.slider:
            lowest, highest = (10**self.kind.low, 10**self.kind.high) if self.kind.scale == "log" else (self.kind.low, self.kind.high)
            self.slider.value = min(max(value, lowest), highest)

    def _entered(self, change) -> None:
        if getattr(self._showing, "on", False):
            return
        entered = change["new"] if self.kind.shape in ("choice", "check") else as_value(self.kind, change["new"])
        self._on_change(self.name, entered)

    def _slid(self, change) -> None:
        if getattr(self._showing, "on", False):
            return
        value = change["new"]
        if self.kind.scale == "log":
            value = float(f"{value:.2g}")  # nobody means 0.00030199517
        elif not self.kind.whole:
            value = float(f"{value:.10g}")
        self._showing.on = True
        try:
            self.entry.value = as_text(value)
        finally:
            self._showing.on = False
        self._on_change(self.name, value)


def _slider(kind: Kind, label: str, tip: str, live: bool):
    common = {"description": label, "tooltip": tip, "readout": False, "continuous_update": live, "style": LABEL, "layout": w.Layout(width="330px", flex="0 0 auto")}
    if kind.scale == "log":
        return w.FloatLogSlider(value=10**kind.low, base=10, min=kind.low, max=kind.high, step=kind.step, **common)
    if kind.scale == "linear":
        slider = w.IntSlider if kind.whole else w.FloatSlider
        return slider(value=kind.low, min=kind.low, max=kind.high, step=kind.step, **common)
    return None


def _entry(kind: Kind, label: str, tip: str):
    wide = w.Layout(width="420px" if label else "90px", flex="0 0 auto")
    common = {"description": label, "tooltip": tip, "layout": wide, "style": LABEL if label else {"description_width": "0px"}}
    if kind.shape == "choice":
        return w.Dropdown(options=kind.choices, **common)
    if kind.shape == "check":
        return w.Checkbox(indent=True, **common)
    return w.Text(continuous_update=False, **common)
