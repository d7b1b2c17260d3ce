"""Charts for word problems: where a rationale is cut, how success depends on what is revealed, and which groups carry a gradient.

    cut_text(task, sample, rho)     a rationale's tokens, with what is shown at one share, cut at a token and between lines
    cut_ladder(task, sample)        the same for many shares, a narrow row each
    success_curve(tables)           right outputs, and groups that carry a gradient, over the revealed share, with intervals
    gradient_share(table)           share of groups that carried a gradient, a row for each run, with intervals
    groups(steps)                   every group of some runs: its share, its step, and whether it carried a gradient
    gradient_so_far(steps)          how many groups have carried a gradient, over steps
    by_task, steps_of, by_share     tables and events in the form that these take, and counts by the revealed share

`charts` holds the charts of any run, and what these here have in common with them.
"""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from .charts import WIDTH, _colour, _data, _share_scale, _thinned, _titled, colours_of
from .curricula import tokens_shown
from .evaluate import wilson
from .reveal import SHARES

REVEALED, WRITTEN, NEVER = "revealed", "written by the model", "never shown: the answer"
PARTS = alt.Scale(domain=[REVEALED, WRITTEN, NEVER], range=["#0072B2", "#E4E4E4", "#F2C879"])
KINDS = {"all wrong": ("#BBBBBB", "triangle-down"), "mixed: carries a gradient": ("#0072B2", "circle"), "all right": ("#E69F00", "square")}
COLUMNS = 88  # characters of a line of a drawn rationale
MOST_GROUPS = 3000  # points of a chart


# --- cuts ---------------------------------------------------------------------------------------------------------------


def parts_of(task, sample, rho: float, unit: str) -> list[str]:
    """For each token of the rationale: REVEALED, WRITTEN or NEVER, at a share `rho`, cut at a "token" or between lines ("step"), as in training."""
    n, answer = len(task.rationale_ids(sample)), task.answer_tokens(sample)
    shown = tokens_shown(rho, task.step_ends(sample), unit, max(1, answer))
    return [REVEALED if i < shown else NEVER if i >= n - answer else WRITTEN for i in range(n)]


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds. Where several tokens make up one character, the last of them has it."""
    texts, done = [], ""
    for i in range(len(ids)):
        so_far = tokenizer.decode(ids[: i + 1])
        texts.append("" if so_far.endswith("\ufffd") else so_far[len(done) :])
        done += texts[-1]
    return texts


def placed(texts: Sequence[str], width: int = COLUMNS) -> list[dict]:
    """Where tokens stand in monospaced text of `width` columns: text, row, left, right, and where the text itself starts, since spaces in front are not drawn.

    A line is broken between tokens; a newline is drawn as ↵.
    """
    places, row, column = [], 0, 0
    for text in texts:
        drawn = text.replace("\n", "↵")
        if column and column + len(drawn) > width:
            row, column = row + 1, 0
        start = column + len(drawn) - len(drawn.lstrip(" "))
        places.append({"text": drawn.lstrip(" "), "row": row, "left": column, "right": column + len(drawn), "start": start})
        row, column = (row + 1, 0) if text.endswith("\n") else (row, column + len(drawn))
    return places


def cut_text(task, sample, rho: float = 0.5, title: str | None = None) -> alt.VConcatChart:
    """A rationale, token by token, at a share `rho`: above cut at a token, below between lines. `task` is a TextTask."""
    places = placed(token_texts(task.tokenizer, task.rationale_ids(sample)))
    height, columns, panels = 19 * (places[-1]["row"] + 1), max(60, *(p["right"] for p in places)), []
    legend = alt.Legend(orient="bottom", title=None)
    for unit, name in (("token", "cut at a token"), ("step", "cut between lines")):
        parts = parts_of(task, sample, rho, unit)
        rows = [p | {"part": part, "bottom": p["row"] + 0.9, "middle": p["row"] + 0.47} for p, part in zip(places, parts)]
        base, x = alt.Chart(_data(rows)), alt.Scale(domain=[0, columns], nice=False)
        y = alt.Scale(domain=[places[-1]["row"] + 1, 0], nice=False)
        ink = alt.condition(f"datum.part == '{REVEALED}'", alt.value("white"), alt.value("#222222"))
        panels.append(
            alt.layer(
                base.mark_rect(stroke="white", strokeWidth=1).encode(
                    alt.X("left:Q", axis=None, scale=x),
                    alt.X2("right:Q"),
                    alt.Y("row:Q", axis=None, scale=y),
                    alt.Y2("bottom:Q"),
                    color=alt.Color("part:N", scale=PARTS, legend=legend),
                ),
                base.mark_text(align="left", baseline="middle", font="monospace", fontSize=11.5).encode(
                    alt.X("start:Q", axis=None, scale=x), alt.Y("middle:Q", axis=None, scale=y), text="text:N", color=ink
                ),
            ).properties(width=7 * columns, height=height, title=_small(f"{name}: {parts.count(REVEALED)} of {len(parts)} tokens are shown"))
        )
    return _titled(alt.vconcat(*panels, spacing=12), title or f"What the model is shown at ρ = {rho:g}", [], 105)


def cut_ladder(task, sample, shares: Sequence[float] = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0), title: str | None = None) -> alt.HConcatChart:
    """A row for each share, a cell for each token, coloured by whether it is shown: on the left cut at a token, on the right between lines."""
    n, ends, panels = len(task.rationale_ids(sample)), task.step_ends(sample), []
    names = {1.0: "ρ = 1", 0.0: "ρ = 0 (RL)"}
    for unit, name in (("token", "cut at a token"), ("step", "cut between lines")):
        rows = [{"row": names.get(rho, f"ρ = {rho:g}"), "left": i, "right": i + 1, "part": part} for rho in shares for i, part in enumerate(parts_of(task, sample, rho, unit))]
        x = alt.X("left:Q", title="Token of the rationale; white: a line ends", scale=alt.Scale(domain=[0, n], nice=False), axis=alt.Axis(grid=False, tickCount=5))
        y = alt.Y("row:N", title=None, sort=None, axis=alt.Axis(ticks=False, domain=False, grid=False) if unit == "token" else None)
        cells = alt.Chart(_data(rows)).mark_rect().encode(x, alt.X2("right:Q"), y, color=alt.Color("part:N", title=None, scale=PARTS, legend=alt.Legend(orient="bottom")))
        lines = alt.Chart(_data([{"left": end} for end in ends[:-1]])).mark_rule(color="white", strokeWidth=2).encode(x)
        panels.append(alt.layer(cells, lines).properties(width=WIDTH / 2, height=24 * len(shares), title=_small(name)))
    note = "The answer is never shown, so even at ρ = 1 there is something left to write."
    return _titled(alt.hconcat(*panels, spacing=16), title or "From everything shown to nothing shown", [note], 105)


# --- the curve ----------------------------------------------------------------------------------------------------------


def success_curve(tables, title: str | None = None) -> alt.HConcatChart:
    """Over the revealed share: the share of right outputs, and beside it the share of groups that carry a gradient.

    `tables` is what `success_by_share` returns, or {label: table}. Labels stand a little apart, so that their intervals can be told from each other.
    """
    tables = tables if isinstance(tables, dict) else {"measured": tables}
    apart = 0.012 * (np.arange(len(tables)) - (len(tables) - 1) / 2)
    rows = [row | {"method": label, "x": row["share"] + shift} for (label, table), shift in zip(tables.items(), apart) for row in table.to_dict("records")]
    color, every = _colour(tables), pd.concat(list(tables.values()))
    panels = [
        _panel(rows, color, "right", "low", "high", "Outputs that are right"),
        _panel(rows, color, "mixed", "mixed_low", "mixed_high", "Groups that carry a gradient"),
    ]
    note = f"Bars: 95 % intervals. {_range(every.problems)} problems, {_range(every.samples)} outputs of each at every share; a group is the outputs for one problem."
    return _titled(alt.hconcat(*panels, spacing=24), title or "How success depends on the revealed share", [note], 112).configure_legend(orient="bottom")


def by_task(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table of the study `curve` as `success_curve` takes it: {task: rows}, with ", between lines" where cuts were made there."""
    return {task + (", between lines" if unit == "step" else ""): rows for (task, unit), rows in table.groupby(["task", "unit"], sort=False)}


def _panel(rows: list[dict], color, y: str, low: str, high: str, name: str) -> alt.LayerChart:
    chart, scale = alt.Chart(_data(rows)), alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("x:Q", title="Revealed share ρ", scale=alt.Scale(domain=[-0.05, 1.05], nice=False), axis=alt.Axis(values=list(SHARES), format=".2~f"))
    tips = _tips_of(("method:N", "problems"), ("share:Q", "ρ"), (f"{y}:Q", "share"), (f"{low}:Q", "from"), (f"{high}:Q", "to"), ("unparseable:Q", "unparseable"))
    return alt.layer(
        chart.mark_rule(strokeWidth=1.5, opacity=0.55).encode(x, alt.Y(f"{low}:Q", title="Share", scale=scale), alt.Y2(f"{high}:Q"), color=color),
        chart.mark_line(strokeWidth=2).encode(x, alt.Y(f"{y}:Q", title="Share", scale=scale), color=color),
        chart.mark_point(filled=True, size=45, opacity=1).encode(x, alt.Y(f"{y}:Q", title="Share", scale=scale), color=color, tooltip=tips),
    ).properties(width=WIDTH / 2, height=220, title=_small(name))


def _range(values) -> str:
    low, high = int(min(values)), int(max(values))
    return str(low) if low == high else f"{low} to {high}"


# --- gradient -----------------------------------------------------------------------------------------------------------


def gradient_share(table: pd.DataFrame, title: str = "Groups that carried a gradient") -> alt.LayerChart:
    """A row for each run: the share of its groups that carried a gradient, with Wilson's 95 % interval, and the count in words.

    `table` has the columns of `language_studies.gradient_row`: method, groups, carrying, share, low, high, mean_rho.
    """
    rows = [
        {"method": r["method"], "share": r["share"], "low": r["low"], "high": r["high"], "words": f"{r['carrying']} of {r['groups']}, mean ρ {r['mean_rho']:.2f}"}
        for r in table.to_dict("records")
    ]
    colours = colours_of(dict.fromkeys(row["method"] for row in rows))
    color = alt.Color("method:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
    chart, y = alt.Chart(_data(rows)), alt.Y("method:N", title=None, sort=None, axis=alt.Axis(ticks=False, labelFontSize=12, labelPadding=10))
    x = alt.Scale(domain=[0, 1], nice=False)
    tips = _tips_of(("method:N", "method"), ("share:Q", "share"), ("low:Q", "from"), ("high:Q", "to"), ("words:N", "groups"))
    return _titled(
        alt.layer(
            chart.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title="Share of groups", scale=x), alt.X2("high:Q"), y, color=color),
            chart.mark_point(filled=True, size=80, opacity=1).encode(alt.X("share:Q", title="Share of groups", scale=x), y, color=color, tooltip=tips),
            chart.mark_text(align="left", dx=8, fontSize=11).encode(alt.X("high:Q"), y, text="words:N"),
        ).properties(width=WIDTH, height=44 * len(rows)),
        title,
        ["Bars: 95 % intervals (Wilson), as if the groups were independent of each other."],
        112,
    )


def kind_of(reward: float) -> str:
    """What a group's mean reward says of it, where a right output has reward 1 and any other 0."""
    return "all wrong" if reward == 0 else "all right" if reward == 1 else "mixed: carries a gradient"


def steps_of(runs: dict) -> dict[str, list[dict]]:
    """{label: run} as {label: its "step" events}."""
    return {label: [e for e in run.events if e["event"] == "step"] for label, run in runs.items()}


def by_share(events: list[dict], edges: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)) -> pd.DataFrame:
    """Groups counted by how much was revealed to them: a row for nothing, and for each band above `edges[i]` up to `edges[i + 1]`.

    Columns: revealed, groups, carrying (a gradient), share, low, high (Wilson; empty without groups). Rewards as for `groups`.
    """
    drawn = [(rho, kind_of(reward).startswith("mixed")) for e in events for rho, reward in zip(e["rho"], e["reward"])]
    bands = {"nothing": [m for rho, m in drawn if rho == 0]}
    for low, high in zip(edges, edges[1:]):
        bands[f"above {low:g}, up to {high:g}"] = [m for rho, m in drawn if low < rho <= high]
    rows = []
    for name, mixed in bands.items():
        low, high = wilson(sum(mixed), len(mixed)) if mixed else (None, None)
        rows.append({"revealed": name, "groups": len(mixed), "carrying": sum(mixed), "share": sum(mixed) / len(mixed) if mixed else None, "low": low, "high": high})
    return pd.DataFrame(rows)


def groups(steps: dict[str, list[dict]], title: str = "Every group of the training") -> alt.VConcatChart:
    """Every group: when it was rolled out, how much was revealed, and whether its outputs were all wrong, all right, or mixed.

    `steps` is {label: "step" events, or what a study kept of them}. The groups of a step stand beside each other. Of very many groups
    an evenly spaced part is drawn. Rewards must be 0 and 1 only (task.format_reward 0).
    """
    names, panels, thinned = list(KINDS), [], False
    kinds = {
        "scale": alt.Scale(domain=names, range=[colour for colour, _ in KINDS.values()]),
        "shapes": alt.Scale(domain=names, range=[shape for _, shape in KINDS.values()]),
    }
    for label, events in steps.items():
        last = max([e["step"] for e in events], default=1)
        points = [
            {"x": e["step"] - 1 + (i + 0.5) / len(e["ids"]), "step": e["step"], "rho": rho, "reward": reward, "kind": kind_of(reward)}
            for e in events
            for i, (rho, reward) in enumerate(zip(e["rho"], e["reward"]))
        ]
        kept = _thinned(points, MOST_GROUPS // len(steps))
        thinned |= len(kept) < len(points)
        mixed = sum(p["kind"] == names[1] for p in points)
        panels.append(
            alt.Chart(_data(kept))
            .mark_point(filled=True, size=42, opacity=0.9)
            .encode(
                alt.X("x:Q", title="RL step", axis=_whole(last, grid=False), scale=alt.Scale(domain=[0, last], nice=False)),
                alt.Y("rho:Q", title="Revealed share ρ", scale=alt.Scale(domain=[-0.05, 1.05], nice=False), axis=alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")),
                color=alt.Color("kind:N", title="Outputs of the group", scale=kinds["scale"], legend=alt.Legend(orient="bottom")),
                shape=alt.Shape("kind:N", title="Outputs of the group", scale=kinds["shapes"], legend=alt.Legend(orient="bottom")),
                tooltip=_tips_of(("step:Q", "step"), ("rho:Q", "ρ"), ("reward:Q", "share right"), ("kind:N", "outputs")),
            )
            .properties(width=WIDTH, height=130, title=_small(f"{label}: {mixed} of {len(points)} groups carry a gradient"))
        )
    return _titled(alt.vconcat(*panels, spacing=10), title, ["So many groups that only a part of them is drawn, evenly spaced."] if thinned else [], 112)


def gradient_so_far(steps: dict[str, list[dict]], title: str = "Where there was something to learn") -> alt.VConcatChart:
    """Over steps: how many groups have carried a gradient so far, and the mean share that was revealed in the step. `steps` as for `groups`."""
    rows = []
    for label, events in steps.items():
        carrying = np.cumsum([round(e["grad_groups"] * len(e["ids"])) for e in events]).tolist()
        rows += _thinned([{"method": label, "x": e["step"], "carrying": c, "rho": e["mean_rho"]} for e, c in zip(events, carrying)], 500)
    color, chart, last = _colour(steps), alt.Chart(_data(rows)), max([row["x"] for row in rows], default=1)
    x = alt.X("x:Q", title="RL step", axis=_whole(last), scale=alt.Scale(domain=[0, last], nice=False))
    tips = _tips_of(("method:N", "method"), ("x:Q", "step"), ("carrying:Q", "groups with a gradient"), ("rho:Q", "mean ρ"))
    panels = [
        chart.mark_line(strokeWidth=2.2, point={"size": 20} if len(rows) < 200 else False)
        .encode(x, alt.Y(f"{key}:Q", title=unit, scale=scale), color=color, tooltip=tips)
        .properties(width=WIDTH, height=height, title=_small(name))
        for key, unit, scale, height, name in (
            ("carrying", "groups", alt.Scale(domainMin=0), 160, "Groups that have carried a gradient so far"),
            ("rho", "mean ρ", _share_scale([]), 90, "Revealed in the step"),
        )
    ]
    return _titled(alt.vconcat(*panels, spacing=8), title, [], 112)


def _whole(last: int, **options) -> alt.Axis:
    """An axis of steps from 0 to `last` with whole numbers only."""
    return alt.Axis(tickCount=min(last, 12), format="d", **options)


def _tips_of(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    """Tooltips from (field, title); numbers with at most three decimals."""
    return [alt.Tooltip(field, title=title, **({"format": ".3~f"} if field.endswith(":Q") else {})) for field, title in fields]


def _small(text: str) -> alt.TitleParams:
    return alt.TitleParams(text, anchor="start", fontSize=11, fontWeight="normal")
