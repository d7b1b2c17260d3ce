"""Charts of simulations (simulate.py): small enough to be drawn anew while a slider moves.

    overview(simulations)      accuracy and revealed share over the visits
    learner(settings)          what the simulated learner gets right, and when its groups teach
    cold_start(simulations)    the first interval of each sample, in the order in which they were first visited
    ratchet(simulations)       upper ends of the intervals, and the share of samples that are stuck

`simulations` is one, a list of them (grouped by their labels, so that seeds fall together), or a dict {label: one or a list}.
A simulation that kept its visits can also be given to charts.rho, charts.intervals, charts.heatmap and charts.reward, beside runs.
"""

import csv
import io

import altair as alt
import numpy as np

from .charts import _share_scale, _some, _titled, colours_of
from .errors import UserError
from .simulate import LearnerSettings, Simulation

POINTS = 40  # of a line
SIZE = {"width": 265, "height": 190}  # of a panel, two side by side


def overview(simulations, title: str = "Curricula before a simulated learner") -> alt.HConcatChart:
    """Test accuracy and the revealed share over the visits of each sample.

    Accuracy: mean over seeds, band from the lowest to the highest. Share: mean of the draws, band that holds the middle 80 % of each step's.
    """
    groups = grouped(simulations)
    seeds = sorted({len(group) for group in groups.values()})
    right, shown = [], []
    for label, group in groups.items():
        epochs = min(len(s.accuracy) for s in group)
        values = np.stack([s.accuracy[:epochs] for s in group])  # [seeds, epochs]
        for e in _places(epochs):
            low, high = values[:, e].min(), values[:, e].max()
            right.append({"curriculum": label, "visit": int(e) + 1, "mean": float(values[:, e].mean()), "low": float(low), "high": float(high)})
        shown += _lines(label, group, "rho", "rho_low", "rho_high")
    notes = [f"Left: mean over {_some(seeds)}, band from the lowest to the highest." if seeds[-1] > 1 else "Left: one seed, so no spread is known."]
    notes += ["Right: mean of the draws, and a band that holds the middle 80 % of them."]
    panels = [
        _bands(right, groups, "Accuracy, nothing revealed", 0.18),
        _bands(shown, groups, "Revealed share ρ", 0.2 if len(groups) == 1 else 0.1),
    ]
    return _titled(alt.hconcat(*panels, spacing=24), title, notes, 112)


def learner(settings: LearnerSettings | None = None, chances: tuple[float, ...] = (0.5, 0.8, 0.95, 0.99), title: str = "The simulated learner") -> alt.HConcatChart:
    """What it gets right at each revealed share, and how often a group teaches, for a sample of average difficulty.

    `chances`: that a single step is right; the learner starts at `settings.start` and gets better. All steps are equally well known here.
    """
    settings = settings or LearnerSettings()
    rows = []
    for p in chances:
        for shown in range(settings.steps):
            q = settings.guess + (1 - settings.guess) * p ** (settings.steps - shown)
            mixed = 1 - q**settings.group_size - (1 - q) ** settings.group_size
            rows.append({"curriculum": f"{p:g}", "x": shown / settings.steps, "right": q, "mixed": mixed})
    labels = [f"{p:g}" for p in chances]
    color = alt.Color("curriculum:N", title="A step is right", sort=labels, scale=alt.Scale(domain=labels, scheme="viridis"))
    panels = []
    for key, y_title in (("right", "Chance that a rollout is right"), ("mixed", f"Chance that a group of {settings.group_size} teaches")):
        x = alt.X("x:Q", title="Revealed share ρ", scale=alt.Scale(domain=[0, 1], nice=False))
        tips = [alt.Tooltip("curriculum:N", title="a step is right"), alt.Tooltip("x:Q", title="ρ", format=".3f"), alt.Tooltip(f"{key}:Q", title=y_title, format=".3f")]
        y = alt.Y(f"{key}:Q", title=y_title, scale=alt.Scale(domain=[0, 1], nice=False))
        panels.append(alt.Chart(_table(rows)).mark_line(strokeWidth=2, point=True).encode(x, y, color=color, tooltip=tips).properties(**SIZE))
    guess = f", else {settings.guess:g} by a guess" if settings.guess else ""
    notes = [f"{settings.steps} steps; a rollout is right when all hidden steps are{guess}.", "A group teaches when it holds right and wrong rollouts."]
    return _titled(alt.hconcat(*panels, spacing=24), title, notes, 112)


def cold_start(simulations, title: str = "The first interval of each sample") -> alt.HConcatChart:
    """The interval that each sample starts with, in the order of first visits (mean over neighbours and seeds), and how much is learnt from these visits.

    Raises UserError for a curriculum that keeps no intervals.
    """
    groups = grouped(simulations)
    if any(s.first_low is None or s.first_high is None for group in groups.values() for s in group):
        raise UserError("cold_start draws the first intervals [rho_min, rho_max], but one of these curricula keeps none; leave it out.")
    intervals, taught = [], []
    for label, group in groups.items():
        low, high = (np.mean([getattr(s, name) for s in group], axis=0) for name in ("first_low", "first_high"))  # [N], [N]
        for part in np.array_split(np.arange(len(low)), min(POINTS, len(low))):
            intervals.append({"curriculum": label, "seen": int(part[0]), "low": float(low[part].mean()), "high": float(high[part].mean())})
        for epoch in range(min(len(s.accuracy) for s in group)):
            shares = [s.grad_groups[epoch * s.steps_an_epoch : (epoch + 1) * s.steps_an_epoch].mean() for s in group]
            taught.append({"curriculum": label, "visit": epoch + 1, "mean": float(np.mean(shares)), "low": float(min(shares)), "high": float(max(shares))})
    chart = alt.Chart(_table(intervals)).encode(alt.X("seen:Q", title="Samples seen before", axis=alt.Axis(format="~s", tickCount=5)), color=_colour(groups))
    scale = alt.Scale(domain=[0, 1], nice=False)
    tips = [alt.Tooltip("curriculum:N", title="curriculum"), alt.Tooltip("seen:Q", title="samples seen before"), *_numbers("low", "high")]
    ends = alt.layer(
        chart.mark_line(strokeWidth=2).encode(alt.Y("high:Q", title="First interval: ρ_max, and ρ_min dashed", scale=scale), tooltip=tips),
        chart.mark_line(strokeWidth=2, strokeDash=[5, 4]).encode(alt.Y("low:Q", scale=scale), tooltip=tips),
    ).properties(**SIZE)
    visits = _bands(taught, groups, "Share of groups that teach", 0.15, points=True)
    notes = ["Left: means over neighbours and seeds.", "Right: one point for each epoch, a visit of each sample; band from the lowest to the highest seed."]
    return _titled(alt.hconcat(ends, visits, spacing=24), title, notes, 112)


def ratchet(simulations, title: str = "The one-way ratchet") -> alt.HConcatChart:
    """The upper ends of the intervals, and the share of samples that are stuck (simulate.Simulation), over the visits. Means over seeds.

    Raises UserError for a curriculum that keeps no upper end.
    """
    groups = grouped(simulations)
    if any(s.high is None for group in groups.values() for s in group):
        raise UserError("ratchet draws what no draw of a sample goes above, but one of these curricula keeps nothing of the kind; leave it out.")
    ends = [row for label, group in groups.items() for row in _lines(label, group, "high")]
    stuck = [row for label, group in groups.items() for row in _lines(label, group, "stuck")]
    panels = [_bands(ends, groups, "Mean upper end (ρ_max)"), _bands(stuck, groups, "Share of samples that are stuck")]
    notes = ["Stuck: even with ρ_max shown less than one rollout in ten gets all its steps right, though with all but one step shown more would."]
    return _titled(alt.hconcat(*panels, spacing=24), title, notes, 112)


# --- helpers ----------------------------------------------------------------------------------------------------------


def grouped(simulations) -> dict[str, list[Simulation]]:
    """{label: simulations}. Raises UserError when none is given."""
    if isinstance(simulations, dict):
        groups = {str(label): list(group) if isinstance(group, list | tuple) else [group] for label, group in simulations.items()}
    else:
        groups = {}
        for s in simulations if isinstance(simulations, list | tuple) else [simulations]:
            groups.setdefault(s.label, []).append(s)
    if not groups or not all(groups.values()):
        raise UserError("There are no simulations to draw; give one, a list of them, or {label: [simulations]}.")
    return groups


def _table(rows: list[dict]) -> alt.InlineData:
    """Rows as CSV: Altair checks each of a list's values, which would take longer than the simulation and the rest of the chart together."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return alt.InlineData(values=text.getvalue(), format=alt.CsvDataFormat(type="csv"))


def _places(n: int) -> np.ndarray:
    """At most POINTS of 0 to n - 1, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(POINTS, n)).round().astype(int))


def _lines(label: str, group: list[Simulation], mean: str, low: str = "", high: str = "") -> list[dict]:
    """Values over the steps, averaged over seeds and over neighbouring steps."""
    steps = min(len(s.visit) for s in group)
    parts = np.array_split(np.arange(steps), min(POINTS, steps))
    starts, sizes = [part[0] for part in parts], [len(part) for part in parts]

    def averaged(name: str) -> np.ndarray:
        return np.add.reduceat(np.mean([getattr(s, name)[:steps] for s in group], axis=0), starts) / sizes

    columns = {"visit": group[0].visit[[part[-1] for part in parts]]} | {key: averaged(name) for key, name in (("mean", mean), ("low", low), ("high", high)) if name}
    return [{"curriculum": label} | dict(zip(columns, map(float, row))) for row in zip(*columns.values())]


def _bands(rows: list[dict], groups, y_title: str, opacity: float = 0.0, points: bool = False) -> alt.LayerChart:
    """A panel: lines over visits, with bands where `opacity` is not 0."""
    chart = alt.Chart(_table(rows))
    x = alt.X("visit:Q", title="Visits of each sample", axis=alt.Axis(tickCount=5, format="d", tickMinStep=1), scale=alt.Scale(nice=False, zero=True))
    y = alt.Y("mean:Q", title=y_title, scale=_share_scale(rows))
    keys = ("mean", "low", "high") if opacity else ("mean",)
    tips = [alt.Tooltip("curriculum:N", title="curriculum"), alt.Tooltip("visit:Q", title="visits", format=".4~g"), *_numbers(*keys)]
    line = chart.mark_line(strokeWidth=2, point=points).encode(x, y, color=_colour(groups), tooltip=tips)
    if not opacity:
        return alt.layer(line).properties(**SIZE)
    band = chart.mark_area(opacity=opacity).encode(x, alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), color=_colour(groups))
    return alt.layer(band, line).properties(**SIZE)


def _colour(groups) -> alt.Color:
    colours = colours_of(groups)
    legend = alt.Legend(title=None, symbolOpacity=1, labelLimit=220) if len(colours) > 1 else None
    return alt.Color("curriculum:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), sort=list(colours), legend=legend)


def _numbers(*keys: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{key}:Q", title=key, format=".3f") for key in keys]
