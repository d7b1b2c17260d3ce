"""What a sweep says about one parameter: accuracy and cost against its values, in one panel a regime, over seeds.

`table` is a sweep's table or a stored one: a row a run, with the parameter's column, one that tells the regimes apart, `seed`,
`test_accuracy`, `rollouts` and `stopped_by`.
"""

import json

import altair as alt
import numpy as np
import pandas as pd

from .errors import UserError

REACHED = "target_accuracy"  # a run's `stopped_by` when it reached its target
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # 97.5 % quantiles for 1 to 10 degrees of freedom


def student(freedom: int) -> float:
    """Student's 97.5 % quantile; above 10 degrees of freedom by an expansion around the normal one (error below 0.0002)."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)


def mean_interval(values) -> tuple[float, float, float]:
    """(mean, low, high): the mean of `values` [n] and Student's 95 % interval of it; without an interval (nan) where n is 1."""
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    half = float(student(n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return mean, mean - half, mean + half


def by_value(table: pd.DataFrame, parameter: str, regime: str = "n_train") -> pd.DataFrame:
    """A row for each regime and value of `parameter`: seeds, mean test accuracy with the interval of the mean, how many runs reached their
    target, and the mean of the rollouts that took with its interval, where all of them did (nan where not: the mean of those that did would flatter).
    """
    check(table, parameter, regime)
    rows = []
    for (where, value), runs in table.groupby([regime, parameter], sort=True):
        reached = runs.stopped_by == REACHED
        accuracy = mean_interval(runs.test_accuracy)
        rollouts = mean_interval(runs.rollouts) if reached.all() else (float("nan"),) * 3
        row = {regime: where, parameter: value, "seeds": len(runs), "accuracy": accuracy[0], "accuracy_low": accuracy[1], "accuracy_high": accuracy[2]}
        rows.append(row | {"reached": int(reached.sum()), "rollouts": rollouts[0], "rollouts_low": rollouts[1], "rollouts_high": rollouts[2]})
    return pd.DataFrame(rows)


def sensitivity(table: pd.DataFrame, parameter: str, regime: str = "n_train", regime_title: str = "training inputs", title: str | None = None) -> alt.Chart:
    """Test accuracy (above) and rollouts until the target (below) against a parameter's values, a column for each regime.

    Dots are single runs, hollow where the target was not reached (below they stand at the rollouts that were spent). The black tick is the mean
    over seeds and the grey bar its 95 % interval (Student's t), below drawn only where every run reached the target. Values stand at equal distances.
    Raises UserError when the table lacks a column or has no row.
    """
    means = by_value(table, parameter, regime)
    order = sorted(table.seed.unique().tolist())
    side = {seed: 0.3 * (2 * i - len(order) + 1) / max(len(order) - 1, 1) for i, seed in enumerate(order)}  # seeds side by side, in the same order everywhere
    runs = table.assign(reached=np.where(table.stopped_by == REACHED, "yes", "no"), side=table.seed.map(side))
    rows = [
        alt.hconcat(*[panel(runs, means, parameter, regime, where, regime_title, *what) for where in sorted(means[regime].unique())])
        for what in (("test_accuracy", "accuracy", "test accuracy"), ("rollouts", "rollouts", "rollouts until the target"))
    ]
    least, most = means.seeds.min(), means.seeds.max()
    seeds = f"{least} seeds" if least == most else f"{least} to {most} seeds"
    subtitle = [f"A dot is a run, hollow if it did not reach its target. Tick: mean over {seeds}; bar: 95 % interval of that mean (below, where all runs reached it)."]
    return alt.vconcat(*rows, title=alt.TitleParams(title or f"What {symbol(parameter)} does", subtitle=subtitle, anchor="start", offset=10)).resolve_scale(fill="shared")


def symbol(parameter: str) -> str:
    """A parameter's Greek letter, where it has one."""
    return {"alpha": "α (alpha)", "tau": "τ (tau)"}.get(parameter, parameter)


def panel(runs, means, parameter, regime, where, regime_title, field, prefix, title) -> alt.Chart:
    """One regime's runs and means: `field` of the runs, `prefix`, its low and high of the means."""
    order = sorted(means[parameter].unique().tolist())
    lowest, highest = (0.0, 1.0) if field == "test_accuracy" else (0.0, 1.08 * float(np.nanmax([*runs[field], *means[f"{prefix}_high"]])))
    name = f"{where:,} {regime_title}" if isinstance(where, int | float | np.number) else f"{regime_title} {where}"
    mine, line = runs[runs[regime] == where], means[means[regime] == where].dropna(subset=[prefix])
    place = {value: i for i, value in enumerate(order)}
    mine, line = mine.assign(place=mine[parameter].map(place) + mine.side), line.assign(place=line[parameter].map(place))
    labels = alt.Axis(values=list(place.values()), labelExpr=f"{json.dumps([f'{v:g}' if isinstance(v, int | float) else str(v) for v in order])}[datum.value]", grid=False)
    x = alt.X("place:Q", title=symbol(parameter), scale=alt.Scale(domain=[-0.5, len(order) - 0.5], nice=False), axis=labels)

    def y(column: str) -> alt.Y:
        # Zoomed in where all is at the top, the seeds would look far apart: the axis starts at 0.
        return alt.Y(f"{column}:Q", title=title, scale=alt.Scale(domain=[lowest, highest], clamp=True, nice=False), axis=alt.Axis(minExtent=52))

    tips = [parameter, "seed", field, alt.Tooltip("reached:N", title="target reached")]
    fill = alt.Fill("reached:N", legend=None, scale=alt.Scale(domain=["yes", "no"], range=["#0072b2", "white"]))
    dots = alt.Chart(mine[[parameter, field, "reached", "seed", "place"]]).mark_point(size=32, color="#0072b2", opacity=1, strokeWidth=1.2)
    bars = alt.Chart(line.dropna(subset=[f"{prefix}_low"])).mark_bar(color="#bbbbbb", opacity=0.55, width=40)
    ticks = alt.Chart(line).mark_tick(orient="horizontal", color="#111111", thickness=2.5, width=40)
    layers = [bars.encode(x, y(f"{prefix}_low"), alt.Y2(f"{prefix}_high")), ticks.encode(x, y(prefix)), dots.encode(x, y(field), fill, tooltip=tips)]
    return alt.layer(*layers).properties(width=330, height=190, title=alt.TitleParams(name, anchor="start", fontSize=12))


def check(table: pd.DataFrame, parameter: str, regime: str) -> None:
    missing = [name for name in (parameter, regime, "seed", "test_accuracy", "rollouts", "stopped_by") if name not in table.columns]
    if missing:
        raise UserError(f"The table has no column '{missing[0]}'; it has: {', '.join(table.columns)}.")
    if table.empty:
        raise UserError(f"The table has no run to draw '{parameter}' from; widen what it was cut to.")
