"""Charts for word problems, from hand-written tables and events, and from a task whose tokens are bytes."""

import pandas as pd
import pytest

from adaback_lite import language_charts as lc
from adaback_lite.config import TaskSettings
from adaback_lite.evaluate import wilson
from adaback_lite.runs import Run
from adaback_lite.tasks import Sample
from adaback_lite.tasks.text import TextTask
from tests.language import CHATML, byte_tokenizer
from tests.test_charts import look, step, write

# Two lines of 8 bytes, then "#### 12": 23 tokens, of which the last two are the answer.
PROBLEM = Sample(0, "How many?", "2*3 = 6\n6*2 =12\n#### 12", "12")


@pytest.fixture(scope="module")
def task():
    return TextTask(byte_tokenizer(CHATML), [PROBLEM], [PROBLEM], [PROBLEM], TaskSettings(name="gsm8k"))


def rows(chart) -> list[dict]:
    """All rows that a chart holds, in the order of its parts."""
    spec = chart.to_dict()
    return [row for data in values(spec) for row in data]


def values(spec) -> list:
    if isinstance(spec, list):
        return [v for part in spec for v in values(part)]
    if not isinstance(spec, dict):
        return []
    own = [spec["data"]["values"]] if "values" in spec.get("data", {}) else []
    return own + [v for part in spec.values() for v in values(part)]


def title(spec) -> str:
    return spec["title"]["text"]


def draws(chart, tmp_path):
    """Altair's own checks come with to_dict; a wrong encoding shows only when it is drawn."""
    path = tmp_path / "chart.png"
    chart.save(str(path))
    assert path.read_bytes()[:4] == b"\x89PNG"


# --- cuts


@pytest.mark.parametrize(
    ("rho", "unit", "shown"),
    [(0.0, "token", 0), (0.5, "token", 11), (0.5, "step", 8), (0.9, "token", 20), (0.9, "step", 16), (1.0, "token", 21), (1.0, "step", 16), (0.3, "step", 0)],
)
def test_parts_by_hand(task, rho, unit, shown):
    assert lc.parts_of(task, PROBLEM, rho, unit) == [lc.REVEALED] * shown + [lc.WRITTEN] * (21 - shown) + [lc.NEVER] * 2


def test_token_texts_add_up_and_a_character_of_several_tokens_is_whole():
    tokenizer = byte_tokenizer()
    text = "12 ÷ 3 €\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    texts = lc.token_texts(tokenizer, ids)
    assert len(texts) == len(ids) == len(text.encode()) and "".join(texts) == text
    assert texts[3:5] == ["", "÷"] and texts[-4:] == ["", "", "€", "\n"]


def test_placed_by_hand():
    places = lc.placed(["ab", " cd", "\n", "efgh", "ij", "k"], width=6)
    assert [(p["row"], p["left"], p["right"]) for p in places] == [(0, 0, 2), (0, 2, 5), (0, 5, 6), (1, 0, 4), (1, 4, 6), (2, 0, 1)]
    assert places[1]["text"] == "cd" and places[1]["start"] == 3  # spaces in front take room and are not drawn
    assert places[2]["text"] == "↵"


def test_cut_text_shows_every_token_once_for_each_kind_of_cut(task, tmp_path):
    chart = lc.cut_text(task, PROBLEM, rho=0.5)
    spec = chart.to_dict()
    assert [title(panel) for panel in spec["vconcat"]] == ["cut at a token: 11 of 23 tokens are shown", "cut between lines: 8 of 23 tokens are shown"]
    for panel, shown in zip(spec["vconcat"], (11, 8)):
        found = values(panel)[0]
        assert len(found) == 23 and [r["part"] for r in found].count(lc.REVEALED) == shown and [r["row"] for r in found] == [0] * 8 + [1] * 8 + [2] * 7
    draws(chart, tmp_path)


def test_cut_ladder_never_shows_the_answer(task, tmp_path):
    chart = lc.cut_ladder(task, PROBLEM, shares=(1.0, 0.5, 0.0))
    token, step_ = (values(panel) for panel in chart.to_dict()["hconcat"])
    for panel, shown in ((token, (21, 11, 0)), (step_, (16, 8, 0))):
        cells, ends = panel
        assert [r["left"] for r in ends] == [8, 16]
        for name, k in zip(("ρ = 1", "ρ = 0.5", "ρ = 0 (RL)"), shown):
            parts = [r["part"] for r in cells if r["row"] == name]
            assert parts == [lc.REVEALED] * k + [lc.WRITTEN] * (21 - k) + [lc.NEVER] * 2
    draws(chart, tmp_path)


# --- the curve


def curve(right, mixed, n=12):
    table = []
    for share, r, m in zip((0.0, 0.5, 1.0), right, mixed):
        (low, high), (mixed_low, mixed_high) = wilson(r * n, n), wilson(m * n, n)
        interval = {"low": low, "high": high, "mixed": m, "mixed_low": mixed_low, "mixed_high": mixed_high}
        table.append({"share": share, "problems": n, "samples": 8, "right": r, **interval, "unparseable": 0.1, "tokens": 100})
    return pd.DataFrame(table)


def test_success_curve_draws_both_shares_with_their_intervals(tmp_path):
    chart = lc.success_curve({"a": curve([0.0, 0.25, 0.75], [0.0, 0.5, 0.25]), "b": curve([0.0, 0.0, 1.0], [0.0, 0.0, 0.0], n=24)})
    spec = chart.to_dict()
    assert [title(panel) for panel in spec["hconcat"]] == ["Outputs that are right", "Groups that carry a gradient"]
    assert " ".join(spec["title"]["subtitle"]) == "Bars: 95 % intervals. 12 to 24 problems, 8 outputs of each at every share; a group is the outputs for one problem."
    found = rows(chart)
    assert len(values(spec["hconcat"][0])[0]) == 6
    first = [r for r in found if r["method"] == "a"][:3]
    assert [r["right"] for r in first] == [0.0, 0.25, 0.75] and first[1]["low"] == pytest.approx(wilson(3, 12)[0])
    assert [r["x"] - r["share"] for r in first] == pytest.approx([-0.006] * 3)  # the two labels stand beside each other
    fields = [layer["encoding"]["y"]["field"] for panel in spec["hconcat"] for layer in panel["layer"]]
    assert fields == ["low", "right", "right", "mixed_low", "mixed", "mixed"]
    draws(chart, tmp_path)


def test_one_table_needs_no_label():
    found = rows(lc.success_curve(curve([0.0, 0.5, 1.0], [0.0, 1.0, 0.0])))
    assert {r["method"] for r in found} == {"measured"} and all(r["x"] == r["share"] for r in found)


def test_by_task_keeps_the_order_and_names_the_cut():
    table = pd.DataFrame({"task": ["b", "b", "a", "a"], "unit": ["token", "step", "token", "token"], "share": [0.0, 0.1, 0.2, 0.3]})
    found = lc.by_task(table)
    assert {name: part.share.tolist() for name, part in found.items()} == {"b": [0.0], "b, between lines": [0.1], "a": [0.2, 0.3]}
    assert list(found) == ["b", "b, between lines", "a"]


# --- gradient


def event(n, rho, reward):
    mixed = sum(0 < r < 1 for r in reward)
    return {"step": n, "ids": list(range(len(rho))), "rho": rho, "reward": reward, "grad_groups": mixed / len(rho), "mean_rho": sum(rho) / len(rho)}


STEPS = {
    "adaback": [event(1, [0.0, 0.5], [0.0, 0.125]), event(2, [0.8, 1.0], [0.5, 1.0]), event(3, [0.25, 0.9], [0.0, 0.875])],
    "rl": [event(n, [0.0, 0.0], [0.0, 0.0]) for n in (1, 2, 3)],
}


def test_groups_are_told_apart_by_their_rewards(tmp_path):
    chart = lc.groups(STEPS)
    spec = chart.to_dict()
    assert [title(panel) for panel in spec["vconcat"]] == ["adaback: 3 of 6 groups carry a gradient", "rl: 0 of 6 groups carry a gradient"]
    found = values(spec["vconcat"][0])[0]
    assert [r["x"] for r in found] == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    assert [r["kind"] for r in found] == ["all wrong", "mixed: carries a gradient", "mixed: carries a gradient", "all right", "all wrong", "mixed: carries a gradient"]
    draws(chart, tmp_path)


def test_very_many_groups_are_thinned_and_said_to_be_and_all_are_counted():
    many = [event(n, [0.5] * 32, [0.5, 1.0] * 16) for n in range(1, 301)]
    spec = lc.groups({"a": many, "b": many}).to_dict()
    assert len(rows(lc.groups({"a": many, "b": many}))) == lc.MOST_GROUPS
    assert title(spec["vconcat"][0]) == "a: 4800 of 9600 groups carry a gradient"
    assert "only a part" in spec["title"]["subtitle"][0] and "subtitle" not in lc.groups(STEPS).to_dict()["title"]


def test_so_far_counts_up(tmp_path):
    chart = lc.gradient_so_far(STEPS)
    found = rows(chart)  # both panels draw the same rows
    assert [(r["method"], r["x"], r["carrying"]) for r in found] == [("adaback", 1, 1), ("adaback", 2, 2), ("adaback", 3, 3), ("rl", 1, 0), ("rl", 2, 0), ("rl", 3, 0)]
    assert [r["rho"] for r in found[:3]] == pytest.approx([0.25, 0.9, 0.575])
    draws(chart, tmp_path)


def test_by_share_counts_each_group_once():
    table = lc.by_share(STEPS["adaback"]).set_index("revealed")
    assert table.index.tolist() == ["nothing", "above 0, up to 0.25", "above 0.25, up to 0.5", "above 0.5, up to 0.75", "above 0.75, up to 0.9", "above 0.9, up to 1"]
    assert table.groups.tolist() == [1, 1, 1, 0, 2, 1]
    assert table.carrying.tolist() == [0, 0, 1, 0, 2, 0]
    assert table.low["nothing"] == 0 and table.high["nothing"] == pytest.approx(wilson(0, 1)[1])
    assert table.loc["above 0.5, up to 0.75", ["share", "low", "high"]].isna().all()


def test_gradient_share_says_the_counts(tmp_path):
    runs = (("adaback", 48, 0.6), ("rl", 0, 0.0))
    counts = [{"method": m, "groups": 96, "carrying": k, "share": k / 96, "mean_rho": rho} for m, k, rho in runs]
    table = pd.DataFrame([row | dict(zip(("low", "high"), wilson(row["carrying"], 96))) for row in counts])
    chart = lc.gradient_share(table)
    found = values(chart.to_dict())[0]
    assert [r["words"] for r in found] == ["48 of 96, mean ρ 0.60", "0 of 96, mean ρ 0.00"]
    assert found[1]["low"] == 0 < found[1]["high"] < found[0]["low"] < 0.5 < found[0]["high"]
    draws(chart, tmp_path)


def test_steps_of_runs(tmp_path):
    folder = write(tmp_path / "run", "rl", [look(0, 0.0), step(1), step(2), look(2, 0.5)])
    assert [e["step"] for e in lc.steps_of({"rl": Run(folder)})["rl"]] == [1, 2]
