"""Charts and tables from hand-written event logs, whose numbers can be worked out on paper."""

import json

import altair as alt
import pytest

import adaback_lite as ab
from adaback_lite import charts, report
from adaback_lite.errors import UserError
from adaback_lite.runs import Run

DIAGNOSIS = {"event": "diagnosis", "kind": "no_reward", "text": "Nothing is learnt.", "advice": "Show part of the rationale.", "step": 20}


def step(n, ids=(0, 1), rho=(0.5, 0.5), reward=(1.0, 0.0), low=(0.0, 0.5), high=(0.5, 1.0), **values):
    """A "step" event; `low` and `high` None for a curriculum without intervals."""
    mean = {"mean_reward": sum(reward) / len(reward), "mean_rho": sum(rho) / len(rho), "grad_groups": 0.5, "entropy": 0.3, "cut": 0.0, "unparseable": 0.0}
    lists = {"ids": list(ids), "rho": list(rho), "reward": list(reward), "shown": [1] * len(ids), "low": low and list(low), "high": high and list(high)}
    return {"event": "step", "step": n, "rollouts": 16 * n, "generated_tokens": 100 * n, "wall": 0.5 * n, **lists, **mean, **values}


def look(n, accuracy, stage="rl", wall=None):
    return {
        "event": "eval",
        "stage": stage,
        "step": n,
        "rollouts": 16 * n,
        "generated_tokens": 100 * n,
        "trained_tokens": 0,
        "n": 10,
        "right": int(10 * accuracy),
        "accuracy": accuracy,
        "wall": 0.5 * n if wall is None else wall,
    }


def end(n, accuracy, stopped_by="max_steps", **values):
    return {
        "event": "end",
        "steps": n,
        "rollouts": 16 * n,
        "generated_tokens": 100 * n,
        "trained_tokens": 0,
        "test_accuracy": accuracy,
        "stopped_by": stopped_by,
        "wall": 0.5 * n,
        **values,
    }


def write(folder, method, events, torn=""):
    folder.mkdir(parents=True)
    lines = [json.dumps(e) for e in ({"event": "start", "method": method, "seed": 0}, *events)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n" + torn)
    return folder


@pytest.fixture
def two_seeds(tmp_path):
    """Two seeds of adaback: the first reaches 0.9 at step 20 and stops, the second goes on to step 30."""
    a = write(tmp_path / "a", "adaback", [look(0, 0.0), step(10), look(10, 0.4), step(20), look(20, 0.9), end(20, 0.8, "target_accuracy")])
    b = write(tmp_path / "b", "adaback", [look(0, 0.0), step(10), look(10, 0.2), step(20), look(20, 0.3), step(30), look(30, 0.5), end(30, 0.6)])
    return [a, b]


@pytest.fixture
def long_run(tmp_path):
    """1,000 steps of 128 samples out of 1,000, with intervals."""
    events = [look(0, 0.0)]
    for n in range(1, 1001):
        ids = [(n * 128 + i) % 1000 for i in range(128)]
        rho = [((7 * i + n) % 100) / 100 for i in ids]
        events.append(step(n, ids, rho, [float(r > 0.5) for r in rho], [0.0] * 128, rho))
        events.append(look(n, n / 1000))
    return write(tmp_path / "long", "adaback", events)


def layer_values(chart) -> list[list[dict]]:
    """The rows of each layer, its own or the chart's."""
    spec = chart.to_dict()
    return [layer.get("data", spec.get("data"))["values"] for layer in spec["layer"]]


def all_rows(spec) -> int:
    """Rows anywhere in a specification."""
    if isinstance(spec, dict):
        return sum(len(v) if k == "values" and v and isinstance(v[0], dict) else all_rows(v) for k, v in spec.items() if k != "datasets") + sum(
            map(len, spec.get("datasets", {}).values())
        )
    return sum(map(all_rows, spec)) if isinstance(spec, list) else 0


def subtitle(chart) -> str:
    return " ".join(chart.to_dict()["title"].get("subtitle", []))


def test_compare_mean_and_band_by_hand(two_seeds):
    band = layer_values(charts.compare(two_seeds))[0]
    assert [row["x"] for row in band] == [0, 160, 320, 480]
    assert [row["low"] for row in band] == [0.0, 0.2, 0.3, 0.5]
    assert [row["high"] for row in band] == [0.0, 0.4, 0.9, 0.9]  # 0.9 is carried on from step 20
    assert [row["mean"] for row in band] == pytest.approx([0.0, 0.3, 0.6, 0.7])
    assert {row["method"] for row in band} == {"adaback"}


def test_compare_says_that_a_seed_was_carried_on(two_seeds):
    assert "carried on" in subtitle(charts.compare(two_seeds))
    assert "carried on" not in subtitle(charts.compare(two_seeds[0]))


@pytest.mark.parametrize(("x", "places"), [("rollouts", [0, 160, 320, 480]), ("wall", [0, 5, 10, 15]), ("step", [0, 10, 20, 30])])
def test_compare_against(two_seeds, x, places):
    chart = charts.compare(two_seeds, x=x)
    assert [row["x"] for row in layer_values(chart)[0]] == places
    assert chart.to_dict()["layer"][0]["encoding"]["x"]["title"] == charts.X_TITLES[x]


def test_compare_reward(two_seeds):
    rows = layer_values(charts.compare(two_seeds, measure="reward"))[0]
    assert [(row["x"], row["mean"]) for row in rows] == [(160, 0.5), (320, 0.5), (480, 0.5)]


def test_a_seed_that_began_later_does_not_enter_early():
    rows = charts.over_seeds([[(0, 0.0), (4, 1.0)], [(2, 0.5), (4, 0.0)]])
    assert [(r["x"], r["low"], r["high"]) for r in rows] == [(2, 0.0, 0.5), (4, 0.0, 1.0)]


def test_sft_is_a_dashed_line_at_its_held_out_accuracy(tmp_path, two_seeds):
    sft = [write(tmp_path / f"sft{i}", "sft", [look(0, accuracy, "sft", wall=3.0), end(0, 0.7, "sft")]) for i, accuracy in enumerate((0.6, 0.8))]
    chart = charts.compare({"adaback": two_seeds, "sft": sft})
    rule = layer_values(chart)[3]
    assert [(row["x"], row["mean"], row["low"], row["high"]) for row in rule] == [(0, pytest.approx(0.7), 0.6, 0.8), (480, pytest.approx(0.7), 0.6, 0.8)]
    assert chart.to_dict()["layer"][3]["mark"]["strokeDash"]
    assert "without rollouts" in subtitle(chart)
    assert layer_values(charts.compare({"adaback": two_seeds, "sft": sft}, x="wall"))[3][0]["x"] == 3.0  # it is not there before its training has ended


def test_one_colour_for_a_method_everywhere(tmp_path, two_seeds):
    rl = write(tmp_path / "rl", "rl", [look(0, 0.0), step(10)])
    for make in (charts.compare, charts.rho, charts.reward):
        scale = make({"rl": rl, "adaback": two_seeds}).to_dict()["layer"][0]["encoding"]["color"]["scale"]
        assert dict(zip(scale["domain"], scale["range"])) == {"adaback": charts.COLOURS["adaback"], "rl": charts.COLOURS["rl"]}
    colours = charts.colours_of(["rl", "tau 0.3", "tau 0.7"])
    assert colours["rl"] == charts.COLOURS["rl"]
    assert len(set(colours.values())) == 3


def test_rho_spread(tmp_path):
    run = write(tmp_path / "run", "r3", [step(1, range(11), [i / 10 for i in range(11)], [0.0] * 11, None, None)])
    (row,) = layer_values(charts.rho(run))[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.5, 0.1, 0.9))


def test_intervals_by_hand(tmp_path):
    events = [
        step(1, (0, 1), (0.6, 0.4), (1.0, 0.25), (0.0, 0.4), (0.6, 1.0)),
        step(2, (0, 1), (0.2, 0.0), (0.0, 0.0), (0.2, 0.4), (0.6, 1.0)),
        step(3, (2,), (0.9,), (1.0,), (0.0,), (0.9,)),
    ]
    chart = charts.intervals(write(tmp_path / "run", "adaback", events), ids=[0])
    rows = chart.to_dict()["data"]["values"]
    assert [(r["x"], r["low"], r["high"]) for r in rows if "high" in r] == [(1, 0.0, 0.6), (2, 0.2, 0.6), (3, 0.2, 0.6)]  # drawn on to the run's end
    assert [(r["x"], r["rho"], r["result"]) for r in rows if "rho" in r] == [(1, 0.6, "solved"), (2, 0.2, "not solved")]


def test_solved_is_what_the_run_calls_solved(tmp_path):
    run = write(tmp_path / "run", "adaback", [step(1, reward=(0.75, 0.25))])
    assert [r["result"] for r in charts.intervals(run).to_dict()["data"]["values"] if "rho" in r] == ["solved", "not solved"]
    (run / "config.yaml").write_text("curriculum: {tau: 0.2}\n")
    assert [r["result"] for r in charts.intervals(run).to_dict()["data"]["values"] if "rho" in r] == ["solved", "solved"]


def test_heatmap_by_hand(tmp_path):
    events = [step(1, (0, 1), high=(0.5, 1.0)), step(2, (0,), (0.3,), (1.0,), (0.0,), (0.3,)), step(3, (1, 2), high=(0.8, 0.2))]
    rows = charts.heatmap(write(tmp_path / "run", "adaback", events)).to_dict()["data"]["values"]
    cells = {(r["bottom"], r["right"]): r["value"] for r in rows}
    # Sorted by need: sample 2 (0.2), sample 0 (0.37), sample 1 (0.93). Sample 2 is blank until step 3; values stay between visits.
    assert cells == {(0, 3): 0.2, (1, 1): 0.5, (1, 2): 0.3, (1, 3): 0.3, (2, 1): 1.0, (2, 2): 1.0, (2, 3): 0.8}


def test_heatmap_without_intervals_shows_the_draws(tmp_path):
    run = write(tmp_path / "run", "r3", [step(1, rho=(0.5, 0.25), low=None, high=None)])
    chart = charts.heatmap(run).to_dict()
    assert [r["value"] for r in chart["data"]["values"]] == [0.25, 0.5]
    assert chart["encoding"]["color"]["title"] == "ρ drawn"


@pytest.mark.parametrize("make", [charts.compare, charts.rho, charts.intervals, charts.heatmap, charts.reward, charts.health])
def test_a_long_run_stays_small(long_run, make):
    spec = make(long_run).to_dict()
    assert 0 < all_rows(spec) < charts.MAX_ROWS
    if make is charts.heatmap:
        assert all_rows(spec) <= 60 * 40


@pytest.mark.parametrize("make", [charts.compare, charts.rho, charts.intervals, charts.heatmap, charts.reward, charts.health])
def test_diagnoses_stand_under_the_title(tmp_path, make):
    run = write(tmp_path / "run", "rl", [look(0, 0.0), step(20), DIAGNOSIS, DIAGNOSIS])
    assert subtitle(make(run)).count("Diagnosis (rl, step 20): Nothing is learnt. Advice: Show part of the rationale.") == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [charts.compare, charts.rho, charts.intervals, charts.heatmap, charts.reward, charts.health])
def test_a_killed_run_is_drawn_without_its_torn_line(tmp_path, make):
    events = [look(0, 0.0), step(1), look(1, 0.1)]
    whole = make(write(tmp_path / "whole", "adaback", events)).to_dict()
    assert make(write(tmp_path / "torn", "adaback", events, torn='{"event": "step", "ste')).to_dict() == whole


@pytest.mark.parametrize("make", [charts.compare, charts.rho, charts.intervals, charts.heatmap, charts.reward, charts.health])
@pytest.mark.parametrize("events", [[], [look(0, 0.3, "sft"), end(0, 0.3, "sft")]])
def test_runs_without_steps_are_drawn(tmp_path, make, events):
    chart = make(write(tmp_path / "run", "sft", events))
    charts.save(chart, tmp_path / "chart.svg")
    if make in (charts.rho, charts.intervals, charts.heatmap):
        assert "no RL step" in subtitle(chart)


def test_runs_and_folders_and_dicts_are_the_same(two_seeds):
    a, b = two_seeds
    wanted = charts.compare([a, b]).to_dict()
    assert charts.compare([Run(a), Run(b)]).to_dict() == wanted
    assert charts.compare({"adaback": [str(a), Run(b)]}).to_dict() == wanted


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: charts.compare(a / "nowhere"), "has no events.jsonl"),
        (lambda a: charts.compare([]), "no runs to draw"),
        (lambda a: charts.compare(a, x="tokens"), "x is 'tokens'"),
        (lambda a: charts.compare(a, measure="loss"), "measure is 'loss'"),
        (lambda a: charts.intervals([a, a]), "draws one run, but 2"),
        (lambda a: charts.intervals(a, ids=[99]), "has not visited 99"),
        (lambda a: charts.save(charts.rho(a), a / "x.pdf"), ".png, .svg or .html"),
    ],
)
def test_mistakes_are_told(two_seeds, call, words):
    with pytest.raises(UserError, match=words):
        call(two_seeds[0])


def test_renderer_needs_no_network(two_seeds):
    assert alt.renderers.active == "adaback-offline"
    bundle, metadata = charts.rho(two_seeds[0])._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[charts.VEGALITE_MIME]["$schema"] == charts.VEGALITE_SCHEMA
    assert "text/html" not in bundle
    assert 500 < metadata["image/png"]["width"] < 900  # shown at its size, not at twice that


def test_saved_files(two_seeds, tmp_path):
    chart = charts.rho(two_seeds[0])
    assert charts.save(chart, tmp_path / "new" / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in charts.save(chart, tmp_path / "c.svg").read_text()
    page = charts.save(chart, tmp_path / "c.html").read_text()
    assert not report.NETWORK.search(page)
    assert "vegaEmbed" in page


def test_teaching_drawings():
    rows = layer_values(charts.ladder("0110", shares=(1.0, 0.5, 0.0)))[0]
    assert [(r["row"], r["who"] == "revealed") for r in rows if r["place"] == 2] == [("all shown (SFT)", True), ("ρ = 0.5", True), ("none shown (RL)", False)]
    rows = layer_values(charts.curves({"p": [(1, 0.1), (2, 0.0)], "q": [(1, 1.0)]}, "x", "y", "title", log=True, dots=("q",)))[0]
    assert [(r["name"], r["y"], r["line"]) for r in rows] == [("p", 0.1, True), ("q", 1.0, False)]  # a zero has no logarithm


def test_methods_table(tmp_path, two_seeds):
    killed = write(tmp_path / "k", "rl", [look(0, 0.0), step(10), look(10, 0.1), step(15)])
    table = report.methods_table([*two_seeds, killed])
    assert list(table.index) == ["adaback", "rl"]
    assert table.loc["adaback"].to_dict() == {
        "seeds": 2,
        "test accuracy": "0.700",
        "lowest to highest": "0.600 to 0.800",
        "rollouts": "400",
        "seconds": "12",
        "generated tokens": "2,500",
        "SFT tokens": "0",
        "stopped by": "target_accuracy, max_steps",
    }
    assert table.loc["rl", "test accuracy"] == "0.100"
    assert table.loc["rl", "rollouts"] == "240"
    assert "not ended" in table.loc["rl", "stopped by"]


def test_shown_accuracy_hides_as_much_as_it_says(tiny):
    """An untrained policy guesses a last Z right half of the time, if it ends there at all; the seed decides, so two calls agree."""
    run = ab.train(
        {
            **tiny,
            "task.n_test": 200,
            "policy.base": "copy",
            "policy.layers": 2,
            "policy.width": 64,
            "policy.heads": 4,
            "policy.kv_heads": 4,
            "task.length": 16,
            "trainer.max_steps": 0,
        },
        progress=False,
    )
    one = report.shown_accuracy(run)
    assert 0.4 < one < 0.6
    assert report.shown_accuracy(run) == one
    assert report.shown_accuracy(run, hidden=32) == 0.0  # all of it: one in 65,536
