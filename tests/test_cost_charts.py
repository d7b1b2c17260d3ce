"""Charts of the model of cost hold its numbers."""

import pandas as pd
import pytest

from adaback_lite import UserError, charts, cost_charts, results
from adaback_lite.cost import PARTS
from adaback_lite.cost_predictions import predictions


@pytest.fixture(scope="module")
def rows():
    return predictions(reveals=(0.0, 0.75), groups=(4,))


def test_check_holds_the_stored_table(tmp_path):
    table = results.stored("cost").table
    spec = cost_charts.check(table).to_dict()
    points = spec["layer"][-1]["data"]["values"]
    assert [(p["measured"], p["predicted"]) for p in points] == list(zip(table.measured, table.predicted))
    assert {p["side"] for p in points} == set(cost_charts.SIDES) and {p["used"] for p in points} == set(cost_charts.USED)
    low, high = spec["layer"][-1]["encoding"]["x"]["scale"]["domain"]
    assert low <= table[["measured", "predicted"]].min().min() and high >= table[["measured", "predicted"]].max().max()
    held = table[table.used == "held out"].error.abs()
    assert f"{len(held)} numbers, median error {100 * held.median():.0f} %, worst {100 * held.max():.0f} %" in " ".join(spec["title"]["subtitle"])
    assert charts.save(cost_charts.check(table), tmp_path / "check.png").stat().st_size > 10_000


def test_parts_holds_the_predictions(rows, tmp_path):
    mine = [r for r in rows if r["trained"] == "adapter"]
    chart = cost_charts.parts(mine)
    values = chart.to_dict()["data"]["values"]
    assert cost_charts.parts(pd.DataFrame(rows).query("trained == 'adapter'")).to_dict()["data"]["values"] == values
    assert [v["seconds"] for v in values] == [r[part] for r in mine for part in PARTS]
    assert list(dict.fromkeys(v["model"] for v in values)) == ["llama-3.2-1b, 1 GPU", "llama-3.1-8b, 1 GPU", "llama-3.1-70b, 8 GPUs"]
    assert chart.to_dict()["title"]["subtitle"][0].startswith("ARITHMETIC, NOT MEASURED.")
    assert charts.save(chart, tmp_path / "parts.svg").stat().st_size > 10_000


def test_mistakes(rows):
    with pytest.raises(UserError, match="one of the kinds of training at a time, but was given adapter, all weights; pick rows"):
        cost_charts.parts(rows)
    with pytest.raises(UserError, match="one of the group sizes at a time, but was given no rows"):
        cost_charts.parts([])
    with pytest.raises(UserError, match="holds no measured step"):
        cost_charts.check(pd.DataFrame())
