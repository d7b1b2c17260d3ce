"""Charts of the model of cost (cost.py).

check(table)            what was measured against what the model says: `results.stored("cost").table`
parts(predictions)      predicted seconds of a step by part, over the revealed share: rows of `cost_predictions.predictions()`
"""

import math

import altair as alt

from .charts import HEIGHT, _data, _finish, _titled
from .cost import PARTS
from .errors import UserError

USED = {"calibration": "#999999", "held out": "#0072B2"}
SIDES = {"ours, grid": "circle", "ours, step benchmark": "square", "TRL, step benchmark": "triangle-up"}
PART_COLOURS = {"prefill": "#E69F00", "decode": "#0072B2", "update": "#009E73"}
WAY_TITLES = {"packed": "packed (ours)", "padded": "padded (TRL)"}


def check(table, title: str = "The model of cost against the clock") -> alt.LayerChart:
    """Predicted against measured seconds, one point for sampling and one for the update of each step; on the diagonal they agree.

    `table`: a DataFrame with the columns source, way, size, group, reveal, part, used, measured, predicted and error, as data/results/cost.csv.
    Raises UserError when it is empty.
    """
    rows = [{k: row[k] for k in ("size", "group", "reveal", "part", "used", "measured", "predicted", "error")} | {"side": _side(row)} for row in table.to_dict("records")]
    if not rows:
        raise UserError("The table holds no measured step, so there is nothing to draw; give results.stored('cost').table.")
    values = [row[k] for row in rows for k in ("measured", "predicted")]
    ends = [10 ** (math.floor(10 * math.log10(min(values))) / 10), 10 ** (math.ceil(10 * math.log10(max(values))) / 10)]
    ticks = [m * 10.0**e for e in range(-6, 6) for m in (1, 3) if ends[0] <= m * 10.0**e <= ends[1]]
    scale, axis = alt.Scale(type="log", domain=ends, nice=False), alt.Axis(values=ticks, format="~g")
    lines = alt.Chart(_data([{"x": x, "equal": x, "more": 1.25 * x, "less": x / 1.25} for x in ends]))
    x = alt.X("x:Q", scale=scale)
    points = alt.Chart(_data(rows)).mark_point(filled=True, size=55, opacity=0.75)
    used = alt.Scale(domain=list(USED), range=list(USED.values()))
    held = [abs(row["error"]) for row in rows if row["used"] == "held out"]
    notes = ["Line: predicted as measured; dashed: a quarter more, a fifth less. FLOP/s from a matrix product, three constants fitted to the grey circles; TRL's and our speed in"]
    notes[0] += " the step benchmark, from another machine, one factor each, fitted to the grey squares and triangles."
    if held:
        notes += [f"Held out: {len(held)} numbers, median error {100 * _median(held):.0f} %, worst {100 * max(held):.0f} %."]
    tips = [alt.Tooltip(f"{k}:N") for k in ("side", "size", "group", "reveal", "part", "used")]
    return _finish(
        alt.layer(
            lines.mark_line(color="#555555", strokeWidth=1, clip=True).encode(x, alt.Y("equal:Q", scale=scale)),
            *(lines.mark_line(color="#BBBBBB", strokeWidth=1, strokeDash=[4, 4], clip=True).encode(x, alt.Y(f"{name}:Q", scale=scale)) for name in ("more", "less")),
            points.encode(
                alt.X("measured:Q", title="Measured seconds", scale=scale, axis=axis),
                alt.Y("predicted:Q", title="Predicted seconds", scale=scale, axis=axis),
                color=alt.Color("used:N", title=None, scale=used, sort=list(USED)),
                shape=alt.Shape("side:N", title=None, sort=list(SIDES), scale=alt.Scale(domain=list(SIDES), range=list(SIDES.values()))),
                tooltip=[*tips, *(alt.Tooltip(f"{k}:Q", format=".3g") for k in ("measured", "predicted", "error"))],
            ),
        ),
        title,
        notes,
    ).properties(width=340, height=340)


def parts(predictions, title: str = "Seconds of a step, predicted") -> alt.FacetChart:
    """Stacked bars of prefill, decode and update over the revealed share, both ways side by side; a panel for each model, each with its own scale.

    `predictions`: rows of `cost_predictions.predictions()`, a list or a DataFrame, with one group size and one kind of training. Raises UserError where there are
    several, or none.
    """
    predictions = predictions if isinstance(predictions, list) else predictions.to_dict("records")
    for key, what in (("group", "group sizes"), ("trained", "kinds of training")):
        found = sorted({str(row[key]) for row in predictions})
        if len(found) != 1:
            raise UserError(f"parts draws one of the {what} at a time, but was given {', '.join(found) or 'no rows'}; pick rows with one value of '{key}'.")
    rows = [
        {"model": _panel(row), "reveal": f"{row['reveal']:g}", "way": WAY_TITLES[row["way"]], "part": part, "order": i, "seconds": row[part]}
        for row in predictions
        for i, part in enumerate(PARTS)
    ]
    panels = list(dict.fromkeys(row["model"] for row in rows))
    color = alt.Color("part:N", title=None, sort=list(PARTS), scale=alt.Scale(domain=list(PARTS), range=[PART_COLOURS[p] for p in PARTS]))
    faint = alt.Opacity("way:N", title=None, sort=list(WAY_TITLES.values()), scale=alt.Scale(domain=list(WAY_TITLES.values()), range=[1.0, 0.45]))
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            alt.X("reveal:O", title="Revealed share ρ", axis=alt.Axis(labelAngle=0)),
            alt.XOffset("way:N", sort=list(WAY_TITLES.values())),
            alt.Y("seconds:Q", title="Seconds"),
            color=color,
            opacity=faint,
            order=alt.Order("order:Q"),
            tooltip=[*(alt.Tooltip(f"{k}:N") for k in ("model", "way", "reveal", "part")), alt.Tooltip("seconds:Q", format=".3g")],
        )
        .properties(width=165, height=HEIGHT - 60)
        .facet(facet=alt.Facet("model:N", title=None, sort=panels), columns=len(panels))
        .resolve_scale(y="independent")
    )
    one = predictions[0]
    notes = [f"ARITHMETIC, NOT MEASURED. Groups of {one['group']}, {one['trained']} trained; the GPUs in the titles are the fewest that hold it all, with ideal scaling."]
    return _titled(chart, title, notes, 120)


def _side(row: dict) -> str:
    return f"{'ours' if row['way'] == 'packed' else 'TRL'}, {row['source']}"


def _panel(row: dict) -> str:
    return f"{row['model']}, {row['gpus']} GPU{'' if row['gpus'] == 1 else 's'}"


def _median(values: list[float]) -> float:
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
