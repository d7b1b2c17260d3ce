"""What all panels share: widgets where somebody can click, static output where nobody can, and errors as sentences.

A notebook that papermill, nbclient or nbconvert runs has no front end: their execute requests have allow_stdin off. There no
widget is made at all, because a saved widget shows nothing without its kernel; charts and tables are.
"""

import functools
import html
import sys
import traceback
from collections.abc import Callable
from typing import Any

import altair as alt
import ipywidgets as w
from IPython import get_ipython
from IPython.display import HTML, display

from .. import charts
from ..errors import UserError
from .rows import sentence_html


def nobody_there() -> bool:
    """Whether the cell that runs now has no front end: no IPython kernel, or a request that allows no input."""
    request = _request()
    return request is None or request.get("content", {}).get("allow_stdin", True) is False


def _request() -> dict | None:
    """The message that the kernel is answering; None outside a kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    return None if kernel is None else (kernel.get_parent("shell") or {})


@functools.cache
def prepare_front_end() -> None:
    """Once, before the first widget: charts that need no network, and what Colab documents for widgets that are not its own."""
    alt.JupyterChart.enable_offline()
    if "google.colab" in sys.modules:
        sys.modules["google.colab"].output.enable_custom_widget_manager()


class Panel:
    """A view, shown by being the last expression of a cell. `box` is its widgets (None where `headless`); `static()` what stays.

    Args:
        headless: no widgets, only static output; None finds out.
    """

    box: w.Widget | None = None
    places = 1  # outputs that static() may have

    def __init__(self, headless: bool | None = None):
        self.headless = nobody_there() if headless is None else headless
        self.sentence, self.trace = "", ""
        self._kept: list[Any] = []  # display handles under the widgets
        if not self.headless:
            prepare_front_end()
            self.message = w.HTML()

    # --- for panels to fill in

    def static(self) -> list:
        """What stands for the panel where no widget can: charts, tables, HTML."""
        return []

    # --- showing

    def _ipython_display_(self) -> None:
        if self.headless:
            for part in self.static():
                display(part)
            return
        _close_earlier(self)
        display(self.box)
        self._kept = [display(HTML(""), display_id=True) for _ in range(self.places)]
        self.guarded(self.shown, clears=False)()

    def shown(self) -> None:
        """Called when the panel has been put on the page."""
        self.keep()

    def keep(self, quickly: bool = False) -> None:
        """Put the static output under the widgets, where the saved notebook has it. Any thread may call it; before the panel is shown it does nothing.

        `quickly`: charts without their picture. JupyterLab draws and adds it itself, others need another call when there is time.
        """
        if self._kept:
            parts = self.static()
            for handle, part in zip(self._kept, [*parts, *[HTML("")] * (self.places - len(parts))]):
                if quickly and isinstance(part, alt.TopLevelMixin):
                    handle.update(specification(part), raw=True)
                else:
                    handle.update(part)

    def close(self) -> None:
        """Take the widgets away. What they show is kept elsewhere, so nothing is lost."""
        if self.box is not None:
            self.box.close()

    # --- errors

    def say(self, sentence: str, trace: str = "") -> None:
        """A sentence at the head of the panel; '' takes it away."""
        self.sentence, self.trace = sentence, trace
        if not self.headless:
            details = f'<details><summary>Traceback</summary><pre style="white-space:pre-wrap">{html.escape(trace)}</pre></details>' if trace else ""
            self.message.value = sentence_html(sentence) + details

    def guarded(self, do: Callable, clears: bool = True) -> Callable:
        """`do` as a callback whose errors become the panel's sentence: nobody sees what ipywidgets or a thread prints. `clears` takes an older sentence away."""

        def callback(*args):
            if clears and self.sentence:
                self.say("")
            try:
                return do(*args)
            except UserError as error:
                self.say(str(error))
            except Exception as error:  # ours; it must not vanish
                self.say(f"Something went wrong in this panel ({type(error).__name__}: {str(error) or 'no message'}); nothing is lost, run the cell again.", traceback.format_exc())
            return None

        return callback


_shown: dict[str, tuple[str, list[Panel]]] = {}  # of each cell the request it was last run by, and the panels that this showed


def _close_earlier(panel: Panel) -> None:
    """Close what an earlier run of the same cell showed: its output is gone from the page, and its widgets would live on unseen."""
    request = _request() or {}
    cell, run = request.get("metadata", {}).get("cellId"), request.get("header", {}).get("msg_id")
    if cell is None:
        return
    before, panels = _shown.get(cell, (run, []))
    if before != run:
        elsewhere = [p for other, (_, shown) in _shown.items() if other != cell for p in shown]
        for old in panels:
            if old is not panel and old not in elsewhere:
                old.close()
        panels = []
    _shown[cell] = (run, [*panels, panel])


def specification(chart) -> dict:
    """A chart for raw display, without the picture that charts.use_offline adds, which takes a tenth of a second."""
    return {charts.VEGALITE_MIME: chart.to_dict() | {"$schema": charts.VEGALITE_SCHEMA}, "text/plain": "<an Altair chart>"}


def chart_widget(chart=None) -> alt.JupyterChart:
    """A chart that changes with its `.chart`."""
    return alt.JupyterChart(chart or blank(), embed_options={"actions": False})


def blank(text: str = "Nothing to draw yet: no step is done.") -> alt.Chart:
    """A chart with a line of text only."""
    return alt.Chart(alt.Data(values=[{}])).mark_text(fontSize=13, color="#555555").encode(text=alt.value(text)).properties(width=charts.WIDTH, height=60)
