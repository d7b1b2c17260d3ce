"""Charts of runs, from their events alone: finished, live or killed, alone or side by side.

    compare(runs)       held-out accuracy, or training reward, of methods against rollouts, seconds or steps
    rho(runs)           how much is revealed, over steps
    intervals(run)      the intervals of single samples as they narrow
    heatmap(run)        how much every sample needs, over steps
    reward(runs)        training reward and held-out accuracy
    health(runs)        share of groups with a gradient, entropy, outputs that cannot be read
    ladder, curves      two drawings for teaching: a rationale ever less revealed; curves from plain numbers
    save(chart, path)   .png, .svg, or .html that needs no network

`runs` is a Run, the path of its folder or a simulation that kept its visits, a list of them (grouped by method, so that seeds fall
together), or a dict {label: run or list of runs}. The values are averaged here, in Python: no chart holds more than `MAX_ROWS` rows, however long
the run. What the trainer found wrong with a run stands under the chart's title.

Importing this module switches Altair to a renderer that needs no network (`use_offline`).
"""

import math
import os
import struct
import textwrap
from pathlib import Path

import altair as alt
import numpy as np
from altair.utils.mimebundle import spec_to_mimebundle

from .config import CurriculumSettings
from .errors import UserError
from .runs import Run

MAX_ROWS = 5000  # Altair's own limit, and about what a page can redraw every second
BINS = 120  # points of a line
WIDTH, HEIGHT = 560, 260

# One colour for each method, everywhere. Okabe and Ito's colours, then Tol's: told apart by colour-blind readers.
COLOURS = {
    "adaback": "#0072B2",
    "rl": "#D55E00",
    "sft": "#555555",
    "sft+rl": "#E69F00",
    "r3": "#009E73",
    "sft+adaback": "#56B4E9",
    "uft": "#CC79A7",
    "frontier": "#332288",
    "anneal": "#882255",
    "r3-staged": "#44AA99",
    "constant": "#999933",
}
OTHER_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#555555", "#882255", "#999933")
SOLVED = alt.Scale(domain=["solved", "not solved"], range=["#0072B2", "#D55E00"])
# What JupyterLab 4 and VS Code draw by themselves. Altair writes version 6; nothing used here is newer than 5.
VEGALITE_MIME = "application/vnd.vegalite.v5+json"
VEGALITE_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
X_TITLES = {"rollouts": "Rollouts", "wall": "Seconds of training", "step": "RL steps"}


# --- what the charts read ---------------------------------------------------------------------------------------------


def events_of(run) -> list[dict]:
    """The events of a Run, a run's folder, or a simulation that kept its visits (simulate.py). Raises UserError where there are none."""
    if not isinstance(run, Run | str | os.PathLike):
        return run.events
    folder = run.folder if isinstance(run, Run) else Path(run)
    if not (folder / "events.jsonl").is_file():
        raise UserError(f"{folder} has no events.jsonl, so there is nothing to draw; name the folder of a run that has started.")
    return (run if isinstance(run, Run) else Run(folder)).so_far


def logs_of(runs) -> dict[str, list[list[dict]]]:
    """Events by label: {label: [events of one run, ...]}.

    A run, or a list of runs, is labelled by its method; a dict's keys are the labels. Raises UserError when nothing is given.
    """
    if isinstance(runs, dict):
        logs = {str(label): [events_of(r) for r in (group if isinstance(group, list | tuple) else [group])] for label, group in runs.items()}
    else:
        logs = {}
        for run in runs if isinstance(runs, list | tuple) else [runs]:
            events = events_of(run)
            logs.setdefault(method_of(events), []).append(events)
    if not any(logs.values()):
        raise UserError("There are no runs to draw; give a run, a list of runs, or {label: [runs]}.")
    order = list(COLOURS)  # methods in one order too, other labels as they come
    return dict(sorted(logs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def colours_of(labels) -> dict[str, str]:
    """A colour for each label: the method's own, or for other labels the next free one."""
    labels = list(labels)
    taken = {COLOURS[label] for label in labels if label in COLOURS}
    free = [c for c in OTHER_COLOURS if c not in taken] or list(OTHER_COLOURS)
    others = [label for label in labels if label not in COLOURS]
    return {label: COLOURS[label] if label in COLOURS else free[others.index(label) % len(free)] for label in labels}


def diagnoses(logs: dict[str, list[list[dict]]]) -> list[str]:
    """What the trainer found wrong, each kind once for a label: "Diagnosis (rl, step 20): text Advice: advice". At most four."""
    found = {}
    for label, group in logs.items():
        for event in (e for events in group for e in events if e["event"] == "diagnosis"):
            found.setdefault((label, event["kind"]), f"Diagnosis ({label}, step {event['step']}): {event['text']} Advice: {event['advice']}")
    texts = list(found.values())
    return texts[:4] + ([f"And {len(texts) - 4} more, in the runs' events."] if len(texts) > 4 else [])


def method_of(events: list[dict]) -> str:
    """The run's method, or the class of the curriculum that was given in its place."""
    return next((e.get("curriculum", e["method"]) for e in events if e["event"] == "start"), "run")


def _of(events: list[dict], kind: str) -> list[dict]:
    return [e for e in events if e["event"] == kind]


def _one(runs, what: str) -> tuple:
    """(label, events, Run or simulation) of the only one given."""
    if isinstance(runs, dict):
        runs = [r for group in runs.values() for r in (group if isinstance(group, list | tuple) else [group])]
    runs = list(runs) if isinstance(runs, list | tuple) else [runs]
    if len(runs) != 1:
        raise UserError(f"{what} draws one run, but {len(runs)} were given; pick one of them.")
    events = events_of(runs[0])
    return method_of(events), events, Run(runs[0]) if isinstance(runs[0], str | os.PathLike) else runs[0]


# --- averaging --------------------------------------------------------------------------------------------------------


def carried(points: list[tuple[float, float]], grid: np.ndarray) -> np.ndarray:
    """The last value at or before each place of the grid; NaN before the first point. A run that stopped keeps its last value.

    >>> carried([(1, 0.2), (3, 0.6)], np.array([0, 1, 2, 3, 9])).tolist()
    [nan, 0.2, 0.2, 0.6, 0.6]
    """
    x, y = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)
    place = np.searchsorted(x, grid, side="right") - 1
    return np.where(place >= 0, y[np.maximum(place, 0)], np.nan)


def over_seeds(seeds: list[list[tuple[float, float]]]) -> list[dict]:
    """Mean, lowest and highest over seeds, at every x that any seed has (at most BINS of them). Begins where all seeds have a value."""
    seeds = [sorted(points) for points in seeds if points]
    if not seeds:
        return []
    grid = np.unique([x for points in seeds for x, _ in points]).astype(float)
    grid = grid[grid >= max(points[0][0] for points in seeds)]
    if len(grid) > BINS:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, BINS).round().astype(int))]
    values = np.stack([carried(points, grid) for points in seeds])  # [seeds, places]
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    return [{"x": float(x), "mean": float(m), "low": float(lo), "high": float(hi), "seeds": len(seeds)} for x, m, lo, hi in zip(grid, mean, low, high)]


def _binned(steps: list[dict], key: str) -> list[tuple[float, float]]:
    """(step, mean of `key`) of a run, neighbouring steps taken together where there are more than BINS."""
    if not steps:
        return []
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    return [(steps[part[-1]]["step"], float(np.mean([steps[i][key] for i in part]))) for part in parts]


# --- charts -----------------------------------------------------------------------------------------------------------


def compare(runs, x: str = "rollouts", measure: str = "accuracy", title: str | None = None) -> alt.LayerChart:
    """Methods side by side: a line for the mean over seeds, a band from the lowest to the highest seed.

    Args:
        runs: see the module's docstring.
        x: "rollouts", "wall" (seconds of training) or "step".
        measure: "accuracy" (held-out inputs, nothing revealed) or "reward" (training, with whatever each method reveals).

    A seed that stopped early is carried on at its last value. SFT has no rollouts: a dashed line at its held-out accuracy.
    """
    if x not in X_TITLES:
        raise UserError(f"x is {x!r}, but it must be one of {', '.join(X_TITLES)}.")
    if measure not in ("accuracy", "reward"):
        raise UserError(f"measure is {measure!r}, but it must be accuracy or reward.")
    logs = logs_of(runs)
    lines, rules, drawn_points = {}, {}, []
    for label, group in logs.items():
        kind, key = ("eval", "accuracy") if measure == "accuracy" else ("step", "mean_reward")
        seeds = [[(e[x], e[key]) for e in _of(events, kind)] for events in group]
        if measure == "accuracy" and all(method_of(events) == "sft" for events in group):
            rules[label] = over_seeds(seeds)[-1:]
        else:
            lines[label] = over_seeds(seeds)
            drawn_points.append([points for points in seeds if points])
    right = max([row["x"] for rows in lines.values() for row in rows] + [row["x"] for rows in rules.values() for row in rows] + [1])
    line_rows = [row | {"method": label} for label, rows in lines.items() for row in rows]
    rule_rows = [row | {"method": label, "x": place} for label, rows in rules.items() for row in rows for place in (row["x"] if x == "wall" else 0, right)]
    counts = sorted({len(group) for group in logs.values()})
    notes = [f"Line: mean over {_some(counts)}. Band: lowest to highest seed." if counts[-1] > 1 else "One run for each method: no spread is known."]
    if measure == "reward":
        notes += ["This reward is earned with part of the rationale shown, a different part for each method."]
    if any(len({points[-1][0] for points in seeds}) > 1 for seeds in drawn_points) and x != "wall":
        notes += ["A seed that stopped early is carried on at its last value."]
    if x != "wall" and any(method_of(events).startswith("sft+") for group in logs.values() for events in group):
        notes += ["sft+...: the SFT stage comes before the first rollout."]
    if rules:
        notes += ["Dashed: trained without rollouts; its held-out accuracy after training."]
    color = _colour(logs)
    y_title = "Held-out accuracy (share right)" if measure == "accuracy" else "Mean training reward"
    base_x = alt.X("x:Q", title=X_TITLES[x], axis=alt.Axis(format="~s", tickCount=6), scale=alt.Scale(domain=[0, right], nice=False))
    base_y = alt.Y("mean:Q", title=y_title, scale=_share_scale([*line_rows, *rule_rows]))
    tips = [
        alt.Tooltip("method:N", title="method"),
        alt.Tooltip("x:Q", title=X_TITLES[x], format=",.0f"),
        *(alt.Tooltip(f"{k}:Q", title=k, format=".3f") for k in ("mean", "low", "high")),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    drawn, dashed = alt.Chart(_data(line_rows)), alt.Chart(_data(rule_rows))
    last = alt.Chart(_data([rows[-1] | {"method": label} for label, rows in lines.items() if rows]))
    return _finish(
        alt.layer(
            drawn.mark_area(opacity=0.18).encode(base_x, alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), color=color),
            dashed.mark_area(opacity=0.12).encode(base_x, alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), color=color),
            drawn.mark_line(strokeWidth=2.2).encode(base_x, base_y, color=color, tooltip=tips),
            dashed.mark_line(strokeWidth=2.2, strokeDash=[7, 5]).encode(base_x, base_y, color=color, tooltip=tips),
            last.mark_point(filled=True, size=50, opacity=1).encode(base_x, base_y, color=color, tooltip=tips),
        ),
        title or ("Accuracy on held-out inputs, nothing revealed" if measure == "accuracy" else "Reward in training"),
        [*notes, *diagnoses(logs)],
    )


def rho(runs, title: str | None = None) -> alt.LayerChart:
    """How much of the rationales is revealed over the steps: the mean of all draws, and a band that holds the middle 80 % of them."""
    logs = logs_of(runs)
    rows = []
    for label, group in logs.items():
        steps = [_of(events, "step") for events in group]
        longest = max(map(len, steps))
        for part in np.array_split(np.arange(longest), min(BINS // 2, longest)) if longest else []:
            draws = [r for seed in steps for i in part if i < len(seed) for r in seed[i]["rho"]]
            low, high = np.quantile(draws, [0.1, 0.9])
            at = max(seed[i]["step"] for seed in steps for i in part if i < len(seed))
            rows.append({"method": label, "x": at, "mean": float(np.mean(draws)), "low": float(low), "high": float(high)})
    notes = ["Line: mean of the draws. Band: the middle 80 % of the draws."] if rows else [_no_steps(logs)]
    color, chart = _colour(logs), alt.Chart(_data(rows))
    x, y_title = _step_axis(), "Revealed share ρ of the rationale"
    return _finish(
        alt.layer(
            chart.mark_area(opacity=0.2 if len(logs) == 1 else 0.1).encode(x, alt.Y("low:Q", title=y_title, scale=alt.Scale(domain=[0, 1])), alt.Y2("high:Q"), color=color),
            chart.mark_line(strokeWidth=2.2).encode(x, alt.Y("mean:Q", title=y_title), color=color, tooltip=_tips("method", "x", "mean", "low", "high")),
        ),
        title or "How much is revealed",
        [*notes, *diagnoses(logs)],
    )


def intervals(run, ids: list[int] | None = None, title: str | None = None) -> alt.Chart:
    """The intervals [ρ_min, ρ_max] of a few samples as they narrow, with every draw as a point, solved or not.

    Args:
        run: one run, whose curriculum has intervals (others show their draws only).
        ids: samples to draw, at most 6; by default four, from the one that needed least revealed to the one that needed most.

    A group whose mean reward reached the curriculum.tau of its step counts as solved (0.5 where neither config.yaml nor the first event tells).
    """
    label, events, run = _one(run, "intervals")
    has_config = isinstance(run, Run) and (run.folder / "config.yaml").is_file()
    told = next((e["settings"] for e in _of(events, "start") if "settings" in e), {})  # a run inside TRL (trl.py)
    tau = run.config.curriculum.tau if has_config else told.get("tau", getattr(run, "settings", CurriculumSettings()).tau)
    changes = [(e["step"], e["value"]) for e in _of(events, "change") if e["name"] == "curriculum.tau"]

    def solved(visit: dict) -> bool:
        return visit["reward"] >= next((value for step, value in reversed(changes) if step < visit["step"]), tau)

    visits = _visits(_of(events, "step"))
    ids = _four(visits) if ids is None else list(ids)
    unknown = [i for i in ids if i not in visits]
    if unknown or len(ids) > 6:
        raise UserError(f"ids is {ids}: give at most 6 samples that the run has visited" + (f"; it has not visited {unknown[0]}." if unknown else "."))
    bands, points, end = [], [], max((e["step"] for e in _of(events, "step")), default=0)
    for i in ids:
        kept = _thinned(visits[i], 300)
        name = f"sample {i}"
        points += [{"sample": name, "x": v["step"], "rho": v["rho"], "result": "solved" if solved(v) else "not solved", "reward": v["reward"]} for v in kept]
        after = {v["step"]: v for v in kept if v["high"] is not None}  # the last visit of a step has the interval after it
        band = [{"sample": name, "x": v["step"], "low": v["low"] or 0.0, "high": v["high"]} for v in after.values()]
        bands += band + [row | {"x": end} for row in band[-1:] if row["x"] < end]
    notes = ["Shaded: the interval that the next draw comes from. Points: the draws."] if points else [_no_steps({label: [events]})]
    y_title = "Revealed share ρ"
    x = alt.X("x:Q", title="RL step", axis=alt.Axis(tickMinStep=1, tickCount=5))
    panel = alt.layer(
        alt.Chart()
        .mark_area(opacity=0.25, color="#777777", interpolate="step-after")
        .transform_filter("isValid(datum.high)")
        .encode(x, alt.Y("low:Q", title=y_title, scale=alt.Scale(domain=[0, 1])), alt.Y2("high:Q")),
        alt.Chart()
        .mark_point(filled=True, size=38, opacity=0.9)
        .transform_filter("isValid(datum.rho)")
        .encode(
            x,
            alt.Y("rho:Q", title=y_title),
            color=alt.Color("result:N", title="Group", scale=SOLVED),
            shape=alt.Shape("result:N", title="Group", scale=alt.Scale(domain=["solved", "not solved"], range=["circle", "triangle-up"])),
            tooltip=_tips("sample", "x", "rho", "reward", "result"),
        ),
        data=_data(bands + points),
    ).properties(width=250, height=150)
    chart = panel.facet(facet=alt.Facet("sample:N", title=None, sort=[f"sample {i}" for i in ids]), columns=2)
    return _titled(chart, title or f"Intervals of single samples ({label})", [*notes, *diagnoses({label: [events]})], 105)


def ranked(events: list[dict]) -> list[int]:
    """The visited samples from the one that needed least to the one that needed most: the rows of `heatmap`, from the bottom."""
    steps = [e for e in events if e["event"] == "step"]
    key = _needed(steps)
    total: dict[int, float] = {}  # of each sample the sum over the steps since its first visit of its value after them
    held: dict[int, tuple[int, float]] = {}  # (since which step, value)
    first: dict[int, int] = {}
    for t, s in enumerate(steps):
        for i, value in zip(s["ids"], s[key] or s["rho"]):
            since, before = held.get(i, (t, 0.0))
            total[i] = total.get(i, 0.0) + (t - since) * before
            first.setdefault(i, t)
            held[i] = (t, value)
    ids = sorted(held)
    mean = [(total[i] + (len(steps) - held[i][0]) * held[i][1]) / (len(steps) - first[i]) for i in ids]
    return [ids[n] for n in np.argsort(mean, kind="stable")]


def _needed(steps: list[dict]) -> str:
    """The key of the "step" events that says what a sample needs: its upper end, or where there is none the draw."""
    return "high" if any(s.get("high") for s in steps) else "rho"


def heatmap(run, title: str | None = None) -> alt.Chart:
    """What every sample needs, over the steps: ρ_max where the curriculum keeps one, else the ρ drawn. At most 60 by 40 cells.

    Samples stand from the one that needed most (top) to the one that needed least; a cell is the mean over its samples and
    steps. Between its visits a sample keeps the value of the last one.
    """
    label, events, _ = _one(run, "heatmap")
    steps = _of(events, "step")
    key = _needed(steps)
    rows = []
    if steps:
        seen = ranked(events)
        place = {i: n for n, i in enumerate(seen)}
        table = np.full((len(seen), len(steps)), np.nan)  # [samples, steps]
        last = np.full(len(seen), np.nan)
        for t, s in enumerate(steps):
            for i, value in zip(s["ids"], s[key] or s["rho"]):
                last[place[i]] = value
            table[:, t] = last
        tops = np.array_split(np.arange(len(seen)), min(40, len(seen)))
        lefts = np.array_split(np.arange(len(steps)), min(60, len(steps)))
        for r in tops:
            for c in lefts:
                cell = table[np.ix_(r, c)]
                if not np.isnan(cell).all():  # all unseen so far: left blank
                    rows.append({"left": steps[c[0]]["step"] - 1, "right": steps[c[-1]]["step"], "bottom": int(r[0]), "top": int(r[-1]) + 1, "value": float(np.nanmean(cell))})
    name = "ρ_max" if key == "high" else "ρ drawn"
    chart = (
        alt.Chart(_data(rows))
        .mark_rect()
        .encode(
            alt.X("left:Q", title="RL step", scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(tickMinStep=1)),
            alt.X2("right:Q"),
            alt.Y("bottom:Q", title="Samples, hardest at the top", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1)),
            alt.Y2("top:Q"),
            color=alt.Color("value:Q", title=name, scale=alt.Scale(scheme="viridis", domain=[0, 1])),
            tooltip=[
                alt.Tooltip("left:Q", title="after step"),
                alt.Tooltip("right:Q", title="to step"),
                alt.Tooltip("bottom:Q", title="rank of sample"),
                alt.Tooltip("value:Q", title=name, format=".2f"),
            ],
        )
    )
    note = ("The largest share that may still be shown." if key == "high" else "The share that was shown.") + " Blank: not visited yet."
    return _finish(chart, title or f"How much each sample is shown ({label})", [note if rows else _no_steps({label: [events]}), *diagnoses({label: [events]})])


def reward(runs, title: str | None = None) -> alt.LayerChart:
    """Mean training reward (line, something revealed) and held-out accuracy (points, nothing revealed) over the steps. Mean over seeds."""
    logs = logs_of(runs)
    rows = [row | {"method": label, "what": "training reward"} for label, group in logs.items() for row in over_seeds([_binned(_of(e, "step"), "mean_reward") for e in group])]
    held = [
        row | {"method": label, "what": "held-out accuracy"}
        for label, group in logs.items()
        for row in over_seeds([[(e["step"], e["accuracy"]) for e in _of(g, "eval")] for g in group])
    ]
    color, y_title = _colour(logs), "Share right"
    tips = _tips("method", "what", "x", "mean")
    y = alt.Y("mean:Q", title=y_title, scale=_share_scale([*rows, *held]))
    return _finish(
        alt.layer(
            alt.Chart(_data(rows)).mark_line(strokeWidth=2).encode(_step_axis(), y, color=color, tooltip=tips),
            alt.Chart(_data(held)).mark_line(strokeWidth=1, strokeDash=[3, 3]).encode(_step_axis(), y, color=color),
            alt.Chart(_data(held)).mark_point(filled=True, size=45, opacity=1).encode(_step_axis(), y, color=color, tooltip=tips),
        ),
        title or "Training reward and held-out accuracy",
        ["Line: mean reward in training, with part of the rationale shown.", "Points: held-out accuracy, nothing shown.", *diagnoses(logs)],
    )


def health(runs, title: str | None = None) -> alt.VConcatChart:
    """Three signs of a run's health over the steps: groups with a gradient, entropy, outputs that cannot be read. Mean over seeds."""
    logs = logs_of(runs)
    color, panels = _colour(logs), []
    for key, name, unit in (
        ("grad_groups", "Groups with a gradient", "share"),
        ("entropy", "Entropy of the policy", "nats a token"),
        ("unparseable", "Outputs that cannot be read", "share"),
    ):
        rows = [row | {"method": label} for label, group in logs.items() for row in over_seeds([_binned(_of(e, "step"), key) for e in group])]
        scale = alt.Scale(domainMin=0) if key == "entropy" else _share_scale(rows)
        panels.append(
            alt.Chart(_data(rows))
            .mark_line(strokeWidth=2)
            .encode(_step_axis(), alt.Y("mean:Q", title=unit, scale=scale), color=color, tooltip=_tips("method", "x", "mean"))
            .properties(width=WIDTH, height=105, title=alt.TitleParams(name, anchor="start", fontSize=11, fontWeight="normal"))
        )
    note = "A group whose rewards are all equal teaches nothing. Entropy near 0 means that its outputs are all the same."
    return _titled(alt.vconcat(*panels, spacing=8), title or "Health of the training", [note, *diagnoses(logs)], 112)


# --- drawings for teaching --------------------------------------------------------------------------------------------


def ladder(rationale: str, shares=(1.0, 0.75, 0.5, 0.25, 0.0), title: str = "Between SFT and RL") -> alt.LayerChart:
    """One rationale, a row for each share: the revealed tokens dark, those the model must write itself light."""
    names = {1.0: "all shown (SFT)", 0.0: "none shown (RL)"}
    rows = []
    for share in shares:
        for i, token in enumerate(rationale):
            rows.append(
                {"row": names.get(share, f"ρ = {share:g}"), "place": i + 1, "token": token, "who": "revealed" if i < int(share * len(rationale)) else "written by the model"}
            )
    base = alt.Chart(_data(rows)).encode(
        alt.X("place:O", title="Token of the rationale", axis=alt.Axis(labelAngle=0, ticks=False, domain=False, grid=False)),
        alt.Y("row:N", title=None, sort=None, axis=alt.Axis(ticks=False, domain=False, grid=False, labelLimit=200)),
    )
    who = alt.Scale(domain=["revealed", "written by the model"], range=["#0072B2", "#E8E8E8"])
    ink = alt.condition("datum.who == 'revealed'", alt.value("white"), alt.value("#222222"))
    return _titled(
        alt.layer(
            base.mark_rect(stroke="white", strokeWidth=2).encode(color=alt.Color("who:N", title=None, scale=who)),
            base.mark_text(fontSize=12).encode(text="token:N", color=ink),
        ).properties(width=min(22 * len(rationale), WIDTH), height=28 * len(shares)),
        title,
        [],
        100,
    )


def curves(table: dict[str, list[tuple[float, float]]], x: str, y: str, title: str, log: bool = False, dots: tuple[str, ...] = ()) -> alt.LayerChart:
    """Curves from plain numbers.

    Args:
        table: {name: [(x, y), ...]}.
        x, y, title: the axes' titles and the chart's.
        log: draw y on a logarithmic axis; zeros are left out.
        dots: names to draw as points without a line.
    """
    rows = [{"name": name, "x": float(a), "y": float(b), "line": name not in dots} for name, points in table.items() for a, b in points if b > 0 or not log]
    names, colours = list(table), colours_of(table)
    positive = [row["y"] for row in rows if row["y"] > 0] if log else []
    decades = [10.0**e for e in range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)] if positive else []
    y_axis = {"scale": alt.Scale(type="log"), "axis": alt.Axis(format="~g", values=decades)} if decades else {}
    chart = alt.Chart(_data(rows)).encode(
        alt.X("x:Q", title=x, scale=alt.Scale(zero=False, nice=False, padding=8)),
        alt.Y("y:Q", title=y, **y_axis),
        color=alt.Color("name:N", title=None, sort=names, scale=alt.Scale(domain=names, range=[colours[n] for n in names])),
        shape=alt.Shape("name:N", title=None, sort=names, scale=alt.Scale(domain=names)),
        tooltip=[alt.Tooltip("name:N", title="curve"), alt.Tooltip("x:Q", title=x), alt.Tooltip("y:Q", title=y, format=".3g")],
    )
    return _finish(alt.layer(chart.mark_line(strokeWidth=1.5).transform_filter("datum.line"), chart.mark_point(filled=True, size=40, opacity=1)), title, [])


# --- showing and saving -----------------------------------------------------------------------------------------------


def use_offline() -> None:
    """Make Altair show charts without a network: the specification for JupyterLab, and beside it a picture for everyone else.

    JupyterLab draws the specification itself where it knows its version; GitHub, VS Code and exported HTML show the PNG.
    """

    def bundle(spec: dict, **_) -> tuple[dict, dict]:
        picture, metadata = spec_to_mimebundle(spec, format="png", mode="vega-lite", scale_factor=2)
        width, height = struct.unpack(">II", picture["image/png"][16:24])
        metadata["image/png"] = {"width": width // 2, "height": height // 2}  # twice as fine as it is shown
        return {VEGALITE_MIME: spec | {"$schema": VEGALITE_SCHEMA}, **picture, "text/plain": "<an Altair chart>"}, metadata

    alt.renderers.register("adaback-offline", bundle)
    alt.renderers.enable("adaback-offline")


def save(chart, path: str | os.PathLike) -> Path:
    """Write a chart as .png, .svg, or .html with all scripts inside. Returns the path. Raises UserError for another ending."""
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".html"):
        raise UserError(f"{path} has the ending {path.suffix or '(none)'}, but a chart is saved as .png, .svg or .html.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        path.write_text(chart.to_html(inline=True), encoding="utf-8")
    else:
        chart.save(str(path), **({"scale_factor": 2} if path.suffix == ".png" else {}))
    return path


# --- helpers ----------------------------------------------------------------------------------------------------------


def _data(rows: list[dict]) -> alt.Data:
    if len(rows) > MAX_ROWS:
        raise ValueError(f"{len(rows)} rows for one chart; at most {MAX_ROWS}: average them first")
    return alt.Data(values=rows)


def _colour(logs) -> alt.Color:
    colours = colours_of(logs)
    legend = alt.Legend(title=None, symbolOpacity=1) if len(colours) > 1 else None
    return alt.Color("method:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), sort=list(colours), legend=legend)


def _step_axis() -> alt.X:
    return alt.X("x:Q", title="RL step", axis=alt.Axis(tickMinStep=1))


def _share_scale(rows: list[dict]) -> alt.Scale:
    """0 to 1, or beyond where a format reward takes the mean above 1."""
    return alt.Scale(domain=[0, max([1.0, *(row.get("high", 0.0) for row in rows)])], nice=False)


def _tips(*fields: str) -> list[alt.Tooltip]:
    titles = {"x": "step", "rho": "ρ"}
    words = ("method", "sample", "result", "what")
    return [alt.Tooltip(f"{f}:{'N' if f in words else 'Q'}", title=titles.get(f, f), **({} if f in (*words, "x") else {"format": ".3f"})) for f in fields]


def _some(counts: list[int]) -> str:
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _no_steps(logs) -> str:
    return f"{', '.join(logs)}: no RL step in the log, so nothing to draw here."


def _visits(steps: list[dict]) -> dict[int, list[dict]]:
    """All visits of each sample: step, rho, reward, and the interval after it."""
    visits: dict[int, list[dict]] = {}
    for s in steps:
        nothing = [None] * len(s["ids"])
        for i, r, w, low, high in zip(s["ids"], s["rho"], s["reward"], s["low"] or nothing, s["high"] or nothing):
            visits.setdefault(i, []).append({"step": s["step"], "rho": r, "reward": w, "low": low, "high": high})
    return visits


def _four(visits: dict[int, list[dict]]) -> list[int]:
    """Four samples from the one that needed least to the one that needed most."""

    def need(i):
        return float(np.mean([v["rho"] if v["high"] is None else v["high"] for v in visits[i]]))

    often = 0.5 * max(map(len, visits.values()), default=0)  # a sample with few visits has little to show
    ranked = sorted((i for i in visits if len(visits[i]) >= often), key=lambda i: (need(i), i))
    return list(dict.fromkeys(ranked[round(q * (len(ranked) - 1))] for q in (0, 1 / 3, 2 / 3, 1))) if ranked else []


def _thinned(items: list, most: int) -> list:
    """At most `most` of the items, evenly spaced, the first and last among them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def _titled(chart, title: str, notes: list[str], columns: int):
    lines = [line for note in notes for line in textwrap.wrap(note, columns)]
    if not lines:
        return chart.properties(title=alt.TitleParams(title, anchor="start", offset=10)).configure_view(strokeWidth=0).configure_axis(grid=True, gridColor="#EEEEEE")
    text = alt.TitleParams(title, subtitle=lines, anchor="start", subtitleColor="#555555", subtitleFontSize=11, subtitlePadding=4, offset=10)
    return chart.properties(title=text).configure_view(strokeWidth=0).configure_axis(grid=True, gridColor="#EEEEEE")


def _finish(chart, title: str, notes: list[str]):
    return _titled(chart.properties(width=WIDTH, height=HEIGHT), title, notes, 112)


use_offline()
