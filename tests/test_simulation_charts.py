"""Charts of simulations: their rows are the simulations' numbers, they stay small, and charts.py draws a simulation as it draws a run."""

import csv
import io
import json

import numpy as np
import pytest

import adaback_lite as ab
from adaback_lite import charts, simulation_charts
from adaback_lite.config import CurriculumSettings
from adaback_lite.simulate import LearnerSettings, side_by_side, simulate

SMALL = LearnerSettings(samples=40, lr=20.0)


@pytest.fixture(scope="module")
def simulations():
    return side_by_side({"adaback": {}, 'τ = 0.9, "high"': {"tau": 0.9}, "rl": {"method": "rl"}}, SMALL, 50, 10, [0, 1, 2])


def panels(chart) -> list[list[dict]]:
    """The rows of each panel, numbers as numbers, read back from the specification."""
    spec = chart.to_dict()
    found = []
    for panel in spec["hconcat"]:
        rows = csv.DictReader(io.StringIO(spec["datasets"][panel["data"]["name"]]))
        found.append([{k: v if k == "curriculum" else float(v) for k, v in row.items()} for row in rows])
    return found


def test_overview_holds_the_simulations_numbers(simulations):
    right, shown = panels(simulation_charts.overview(simulations))
    for label, group in simulations.items():
        mine = [r for r in right if r["curriculum"] == label]
        values = np.array([s.accuracy for s in group])
        assert [mine[0]["visit"], mine[-1]["visit"]] == [1, 50]
        for row in mine:
            column = values[:, int(row["visit"]) - 1]
            assert (row["mean"], row["low"], row["high"]) == pytest.approx((column.mean(), column.min(), column.max()), rel=1e-4)
        mine = [r for r in shown if r["curriculum"] == label]
        assert np.mean([r["mean"] for r in mine]) == pytest.approx(np.mean([s.rho.mean() for s in group]), abs=1e-4)  # all steps are in, each once
        assert mine[-1]["visit"] == 50 and all(r["low"] <= r["high"] for r in mine)


@pytest.mark.parametrize("visits", [1, 7, 39, 40, 41, 500])
def test_it_stays_small_however_long_the_simulation_is(visits):
    chart = simulation_charts.overview([simulate(m, LearnerSettings(samples=4), visits, 2) for m in ("adaback", "r3", "rl", "uft", "frontier")])
    for rows in panels(chart):
        assert 5 * min(visits, 40) <= len(rows) <= 200
    assert len(json.dumps(chart.to_dict())) < 40_000


def test_one_a_list_and_a_dict(simulations):
    one, other = simulations["adaback"][0], simulations["rl"][0]
    assert list(simulation_charts.grouped(one)) == ["adaback"]
    assert simulation_charts.grouped([one, other, one]) == {"adaback": [one, one], "rl": [other]}
    assert simulation_charts.grouped({"a": one, "b": [other, one]}) == {"a": [one], "b": [other, one]}
    titles = [simulation_charts.overview(x).to_dict()["title"]["subtitle"][0] for x in (one, [one, one])]
    assert titles == ["Left: one seed, so no spread is known.", "Left: mean over 2 seeds, band from the lowest to the highest."]


def test_cold_start_shows_the_first_intervals():
    group = [simulate("adaback", SMALL, 2, 5, seed, settings=CurriculumSettings(alpha=0.5)) for seed in (0, 1)]
    intervals, taught = panels(simulation_charts.cold_start({"α = 0.5": group}))
    assert [r["seen"] for r in intervals] == list(range(40))  # as many points as samples: nothing is averaged but the seeds
    for key, values in (("low", [s.first_low for s in group]), ("high", [s.first_high for s in group])):
        assert [r[key] for r in intervals] == pytest.approx(np.mean(values, axis=0), rel=1e-4, abs=1e-6)
    assert [r["mean"] for r in taught] == pytest.approx([np.mean([s.grad_groups[:8].mean() for s in group]), np.mean([s.grad_groups[8:].mean() for s in group])], rel=1e-4)


def test_ratchet_shows_upper_ends_and_who_is_stuck(simulations):
    ends, stuck = panels(simulation_charts.ratchet({"adaback": simulations["adaback"]}))
    assert np.mean([r["mean"] for r in ends]) == pytest.approx(np.mean([s.high.mean() for s in simulations["adaback"]]), abs=1e-4)
    assert np.mean([r["mean"] for r in stuck]) == pytest.approx(np.mean([s.stuck.mean() for s in simulations["adaback"]]), abs=1e-4)


def test_the_learners_picture_by_hand():
    right, mixed = panels(simulation_charts.learner(LearnerSettings(steps=4, guess=0.1, group_size=2), chances=(0.5,)))
    q = [0.1 + 0.9 * 0.5**h for h in (4, 3, 2, 1)]
    assert [r["x"] for r in right] == [0, 0.25, 0.5, 0.75] and [r["right"] for r in right] == pytest.approx(q, rel=1e-4)
    assert [r["mixed"] for r in mixed] == pytest.approx([2 * x * (1 - x) for x in q], rel=1e-4)  # of two rollouts, one right and one wrong


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda s: simulation_charts.overview([]), "There are no simulations to draw"),
        (lambda s: simulation_charts.overview({"a": []}), "There are no simulations to draw"),
        (lambda s: simulation_charts.cold_start({"rl": s["rl"]}), "one of these curricula keeps none; leave it out"),
        (lambda s: simulation_charts.ratchet(s), "one of these curricula keeps nothing of the kind; leave it out"),
    ],
)
def test_what_cannot_be_drawn_is_said(simulations, draw, words):
    with pytest.raises(ab.UserError, match=words):
        draw(simulations)


def test_it_renders_without_a_network(simulations, tmp_path):
    for chart in (simulation_charts.overview(simulations), simulation_charts.learner()):
        assert charts.save(chart, tmp_path / "c.png").stat().st_size > 10_000
    page = charts.save(simulation_charts.overview(simulations), tmp_path / "c.html").read_text()
    assert 'src="http' not in page


# ---------------------------------------------------------------- a simulation in charts.py


def test_charts_of_runs_draw_a_simulation():
    s = simulate("adaback", SMALL, 20, 10, settings=CurriculumSettings(tau=0.8), keep=True)
    rows = charts.rho({"simulated": s}).to_dict()["data"]["values"]
    assert {r["method"] for r in rows} == {"simulated"} and rows[-1]["x"] == 80
    for draw in (charts.reward, charts.heatmap, charts.compare, charts.health):
        assert json.dumps(draw(s).to_dict()).count('"values": [{') >= 1, draw
    values = charts.intervals(s, ids=[3]).to_dict()["data"]["values"]
    points = [r for r in values if "rho" in r]
    assert len(points) == 20
    assert {r["result"] for r in points if r["reward"] >= 0.8} == {"solved"} and {r["result"] for r in points if r["reward"] < 0.8} == {"not solved"}
    assert any(0.5 <= r["reward"] < 0.8 for r in points)  # so the simulation's own tau was used


def test_a_run_beside_its_simulation(tiny):
    real = ab.train(tiny, progress=False)
    simulated = simulate("adaback", LearnerSettings(samples=8, steps=5), 1, 4, keep=True)
    rows = charts.rho({"trained": real, "simulated": simulated}).to_dict()["data"]["values"]
    assert [(r["method"], r["x"]) for r in rows] == [("trained", 1), ("trained", 2), ("simulated", 1), ("simulated", 2)]


def test_a_simulation_without_its_visits_says_so():
    with pytest.raises(ab.UserError, match="simulate with keep=True"):
        charts.rho(simulate("adaback", SMALL, 1, 10))
