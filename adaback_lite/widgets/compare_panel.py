"""Choose runs below a folder and see them together."""

import html
import os
from pathlib import Path

import ipywidgets as w
from IPython.display import HTML

from .. import charts
from ..config import Config, flat
from ..errors import UserError
from ..runs import Run, load_run
from .kinds import as_text
from .panel import Panel
from .rows import LABEL, paragraph, sentence_html

# What may differ between two runs that are the same but for chance.
CHANCE = ("seed", "out")
MEASURES = {"held-out accuracy": "accuracy", "reward in training": "reward"}


def compare(root: str | os.PathLike = "runs", x: str = "rollouts", measure: str = "accuracy", headless: bool | None = None) -> "ComparePanel":
    """Runs below a folder, side by side: lines with a band over seeds, and a table.

    Args:
        root: a folder; every run below it can be chosen, and at first all are.
        x: "rollouts", "wall" (seconds of training) or "step".
        measure: "accuracy" (held-out inputs) or "reward" (training).
        headless: static output in place of widgets; None finds out whether there is a front end.

    Runs that differ only in their seed are drawn as one line. Raises UserError for a folder that does not exist, and another x or measure.
    """
    return ComparePanel(root, x, measure, headless)


def find_runs(root: str | os.PathLike) -> tuple[dict[str, Run], list[str]]:
    """The runs below a folder that have begun, by their path in it, and a sentence for each that cannot be read. Raises UserError when there is no folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; train a run into it first, or name another root.")
    runs, sentences = {}, []
    for path in sorted(root.rglob("config.yaml")):
        if (path.parent / "events.jsonl").is_file():
            try:
                run = load_run(path.parent)
                charts.events_of(run)
            except UserError as error:
                sentences.append(str(error))
            else:
                runs[str(path.parent.relative_to(root))] = run
    return runs, sentences


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by what they are called: their method or own curriculum, and where several of one name differ in more than chance, what they differ in.

    A run that was changed by hand stands alone.
    """
    same: dict[str, list[tuple[Config, list[Run]]]] = {}
    for run in runs:
        config, events = run.config, charts.events_of(run)
        name = charts.method_of(events) if any(e["event"] == "start" for e in events) else config.method
        if any(e["event"] == "change" for e in events):
            name += f", steered ({run.folder.name})"
        for other, group in same.setdefault(name, []):
            if not _differing([config, other]):
                group.append(run)
                break
        else:
            same[name].append((config, [run]))
    labels = {}
    for method, groups in same.items():
        names = _differing([config for config, _ in groups])
        for config, group in groups:
            values = flat(config)
            what = ", ".join(f"{name.rpartition('.')[2]} {as_text(values[name])}" for name in names)
            labels[f"{method}, {what}" if what else method] = group
    return labels


def _differing(configs: list[Config]) -> list[str]:
    """The settings, but for chance, in which the configurations are not all the same."""
    values = [flat(config) for config in configs]
    return [name for name in values[0] if name not in CHANCE and any(v[name] != values[0][name] for v in values)]


class ComparePanel(Panel):
    """See `compare`. `runs` are those found, by their path below `root`; `chosen` the paths that are drawn."""

    places = 2

    def __init__(self, root="runs", x="rollouts", measure="accuracy", headless=None):
        super().__init__(headless)
        if x not in charts.X_TITLES or measure not in MEASURES.values():
            raise UserError(f"x is {x!r} and measure is {measure!r}, but x must be one of {', '.join(charts.X_TITLES)}, and measure one of {', '.join(MEASURES.values())}.")
        self.root, self.x, self.measure = Path(root), x, measure
        self.runs, self.unread = find_runs(root)
        self.chosen = list(self.runs)
        if not self.headless:
            self.box = self._build()
            self._tell_unread()

    def static(self) -> list:
        from ..report import methods_table

        if not self.runs:
            return [HTML(sentence_html(" ".join([f"There are no runs in {self.root}; train one into it first.", *self.unread])))]
        if not self.chosen:
            return [HTML("<p>No run is chosen.</p>")]
        groups = grouped([self.runs[name] for name in self.chosen])
        if self.headless and self.unread:
            return [charts.compare(groups, self.x, self.measure), methods_table(groups), HTML(sentence_html(" ".join(self.unread)))]
        return [charts.compare(groups, self.x, self.measure), methods_table(groups)]

    def refresh(self) -> None:
        """Look for runs again: new ones can be chosen, and those that went on are longer. What was chosen stays so."""
        self.runs, self.unread = find_runs(self.root)
        self.chosen = [name for name in self.chosen if name in self.runs]
        if not self.headless:
            keep = self.chosen
            self.choice.options = list(self.runs)
            self.choice.value = self.chosen = keep
            self._tell_unread()
        self.keep()

    # --- inside

    def _tell_unread(self) -> None:
        self.say(" ".join(self.unread[:3]) + (f" And {len(self.unread) - 3} more." if len(self.unread) > 3 else ""))

    def _set(self, what: str, value) -> None:
        setattr(self, what, value)
        self.keep()

    def _build(self) -> w.Widget:
        names = list(self.runs)
        self.choice = w.SelectMultiple(options=names, value=names, description="Runs", rows=min(max(len(names), 3), 12), style=LABEL, layout=w.Layout(width="520px"))
        self.x_choice = w.Dropdown(options=[(title, key) for key, title in charts.X_TITLES.items()], value=self.x, description="Over", style=LABEL)
        self.measure_choice = w.Dropdown(options=list(MEASURES.items()), value=self.measure, description="Draw", style=LABEL)
        self.again = w.Button(description="Look for runs again", layout=w.Layout(width="auto"))
        self.choice.observe(self.guarded(lambda change: self._set("chosen", list(change["new"])), clears=False), "value")
        self.x_choice.observe(self.guarded(lambda change: self._set("x", change["new"]), clears=False), "value")
        self.measure_choice.observe(self.guarded(lambda change: self._set("measure", change["new"]), clears=False), "value")
        self.again.on_click(self.guarded(lambda _: self.refresh(), clears=False))
        hint = w.HTML(paragraph(f"Runs below <code>{html.escape(str(self.root))}</code>; Ctrl and Shift choose several."))
        return w.VBox([self.message, hint, self.choice, w.HBox([self.x_choice, self.measure_choice, self.again])])
