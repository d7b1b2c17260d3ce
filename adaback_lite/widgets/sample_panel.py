"""Look at one sample of a run: what it was shown, what was written, and how its interval moved."""

import altair as alt
import ipywidgets as w
from IPython.display import HTML

from .. import charts
from ..charts import ranked
from ..errors import UserError
from ..live import FollowedRun
from ..runs import Run, load_run
from .live_panel import LivePanel
from .panel import Panel, blank, chart_widget
from .rows import LABEL, paragraph, sentence_html
from .sample_text import visit_html

NO_VISIT = [("–", 0)]  # the only choice where a sample has no visit; steps count from 1


def sample(run, id: int | None = None, step: int | None = None, headless: bool | None = None) -> "SamplePanel":
    """One sample of a run, picked from the heat map or by its id: prompt, revealed part, each rollout with reward and first wrong step, its interval.

    Args:
        run: a Run, the `live` panel of one, or the folder of one; it may be training, killed or finished.
        id: the sample; None begins with the one that needed most.
        step: its last visit up to this step; None takes the last of all.
        headless: static output in place of widgets; None finds out whether there is a front end.

    Raises UserError when the folder holds no run. A sample that was not visited is said in the panel.
    """
    run = run.run if isinstance(run, LivePanel) else run
    return SamplePanel(run if isinstance(run, FollowedRun) else FollowedRun((run if isinstance(run, Run) else load_run(run)).folder), id, step, headless)


def selectable(heatmap: alt.Chart) -> alt.Chart:
    """The heat map, with a click on a cell as the selection "cell"; the cell keeps its colour and gets a border."""
    cell = alt.selection_point(name="cell", fields=["left", "right", "bottom", "top"], empty=False)
    return heatmap.add_params(cell).encode(stroke=alt.condition(cell, alt.value("#D55E00"), alt.value(None)), strokeWidth=alt.value(2))


class SamplePanel(Panel):
    """See `sample`. `id` and `step` say which visit is shown."""

    places = 2

    def __init__(self, run: Run, id: int | None = None, step: int | None = None, headless: bool | None = None):
        super().__init__(headless)
        self.run, self.id, self.step = run, id, step
        self._filling = False
        if not self.headless:
            self.box = self._build()
            self.guarded(self.refresh)()
        elif self.id is None:
            self.id = next(reversed(ranked(run.events)), None)

    def static(self) -> list:
        try:
            visit = self._visit()
        except UserError as error:
            return [HTML(sentence_html(str(error)))] if self.headless else []
        return [HTML(visit_html(visit, self._parity)), charts.intervals(self.run, ids=[visit.id])]

    def _visit(self):
        if self.id is None:
            raise UserError(f"{self.run.folder} has visited no sample yet; train at least one step.")
        return self.run.outputs(self.id, self.step)

    @property
    def _parity(self) -> bool:
        return self.run.config.task.name == "parity"

    def show(self, id: int, step: int | None = None) -> None:
        """Show another sample, at its last visit up to `step`."""
        self.id, self.step = id, step
        self._fill()

    def refresh(self) -> None:
        """Read the run again: it may have gone on."""
        order = ranked(self.run.events)
        self._order = order
        self._filling = True
        try:
            self.choice.options = [(f"sample {i}", i) for i in reversed(order)]
        finally:
            self._filling = False
        self.map.chart = selectable(charts.heatmap(self.run)) if order else blank()
        if order:
            self.map.selections.observe(self.guarded(self._clicked), "cell")
        if self.id is None and order:
            self.id = order[-1]
        self._fill()

    # --- inside

    def _fill(self) -> None:
        """The controls and the output under them, in line with `id` and `step`."""
        visits = [e["step"] for e in self.run.events if e["event"] == "step" and self.id in e["ids"]]
        self._filling = True
        try:
            self.typed.value = "" if self.id is None else str(self.id)
            self.choice.value = self.id if self.id in self._order else None
            self.when.options = [(str(s), s) for s in visits] or NO_VISIT
            self.when.value = max((s for s in visits if self.step is None or s <= self.step), default=self.when.options[0][1])
        finally:
            self._filling = False
        self.note.value = ""
        self.keep()
        self._visit()  # says why there is nothing

    def _typed(self, change) -> None:
        if self._filling:
            return
        text = change["new"].strip()
        if not text.isdecimal():
            raise UserError(f"The sample's id is {text!r}, but it must be a whole number from 0.")
        self.show(int(text))

    def _chosen(self, change) -> None:
        if not self._filling and change["new"] is not None:
            self.show(change["new"])

    def _moved(self, change) -> None:
        if not self._filling and change["new"]:
            self.show(self.id, change["new"])

    def _clicked(self, change) -> None:
        """A cell of the heat map: several samples over several steps. The hardest of them is shown; the others are named."""
        for cell in change["new"].value or []:
            ids = self._order[cell["bottom"] : cell["top"]]
            self.show(ids[-1], cell["right"])
            more = f"This cell holds the samples {', '.join(map(str, reversed(ids)))}; the first is shown." if len(ids) > 1 else ""
            self.note.value = paragraph(more) if more else ""
            return

    def _build(self) -> w.Widget:
        wide = w.Layout(width="330px")
        self._order: list[int] = []
        self.map = chart_widget()
        self.note = w.HTML()
        self.choice = w.Dropdown(description="Sample", tooltip="Samples that were visited, the one that needed most first", style=LABEL, layout=wide)
        self.typed = w.Text(description="or its id", continuous_update=False, style=LABEL, layout=wide)
        self.when = w.SelectionSlider(options=NO_VISIT, description="Visit at step", continuous_update=False, style=LABEL, layout=w.Layout(width="420px"))
        self.again = w.Button(description="Read the run again", layout=w.Layout(width="auto"))
        self.choice.observe(self.guarded(self._chosen), "value")
        self.typed.observe(self.guarded(self._typed), "value")
        self.when.observe(self.guarded(self._moved), "value")
        self.again.on_click(self.guarded(lambda _: self.refresh()))
        hint = w.HTML(paragraph("Click on a cell of the heat map, or choose a sample:"))
        return w.VBox([hint, self.map, self.note, w.HBox([self.choice, self.typed]), w.HBox([self.when, self.again]), self.message])
