"""The study's charts: the interval of a mean, the table by value, and what the chart shows of each run."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite import UserError
from adaback_lite.sweep_charts import by_value, mean_interval, sensitivity, student

from . import helpers  # noqa: F401  (hypothesis' profile)


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["alpha", "n_train", "seed", "test_accuracy", "rollouts", "stopped_by"])


STUDY = table(
    [
        (0.1, 64, 0, 0.9, 100, "target_accuracy"), (0.1, 64, 1, 1.0, 300, "target_accuracy"),
        (0.5, 64, 0, 0.2, 900, "max_steps"), (0.5, 64, 1, 0.8, 400, "target_accuracy"),
        (0.1, 512, 0, 0.7, 200, "target_accuracy"),
    ]
)  # fmt: skip


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 10, 11, 12, 20, 50, 1000])
def test_students_quantile(freedom):
    """Against the density, integrated: 0.95 of it lies within."""
    x = np.linspace(0, student(freedom), 200_001)
    density = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi) * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert 2 * np.trapezoid(density, x) == pytest.approx(0.95, abs=2e-5)


def test_the_interval_of_a_mean_by_hand():
    # 1, 2, 3: mean 2, standard deviation 1, so 2 +- 4.3027 / sqrt(3)
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5))
    assert mean_interval([5, 5]) == (5, 5, 5)
    mean, low, high = mean_interval([7])
    assert mean == 7 and math.isnan(low) and math.isnan(high)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20))
def test_the_interval_of_a_mean_the_obvious_way(values):
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(statistics.mean(values)) and (low + high) / 2 == pytest.approx(mean, abs=1e-9)
    assert high - low == pytest.approx(2 * student(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5, abs=1e-9)


def test_by_value():
    rows = by_value(STUDY, "alpha").to_dict("records")
    assert [(r["n_train"], r["alpha"], r["seeds"], r["reached"]) for r in rows] == [(64, 0.1, 2, 2), (64, 0.5, 2, 1), (512, 0.1, 1, 1)]
    assert [r["accuracy"] for r in rows] == pytest.approx([0.95, 0.5, 0.7])
    assert rows[0]["accuracy_low"] == pytest.approx(0.95 - 12.7062 * 0.05) and rows[0]["rollouts"] == 200
    assert math.isnan(rows[1]["rollouts"])  # one of two reached the target: the mean of that one says little
    assert rows[2]["rollouts"] == 200 and math.isnan(rows[2]["rollouts_low"])


def panels(chart) -> list[list[dict]]:
    spec = chart.to_dict()
    data = spec["datasets"]
    return [[{"title": p["title"]["text"], "data": [data[layer["data"]["name"]] for layer in p["layer"]], "layers": p["layer"]} for p in row["hconcat"]] for row in spec["vconcat"]]


def test_every_run_is_a_dot_in_its_panel():
    accuracy, cost = panels(sensitivity(STUDY, "alpha"))
    assert [p["title"] for p in accuracy] == [p["title"] for p in cost] == ["64 training inputs", "512 training inputs"]
    dots = accuracy[0]["data"][2]
    assert [(d["alpha"], d["seed"], d["test_accuracy"], d["reached"]) for d in dots] == [(0.1, 0, 0.9, "yes"), (0.1, 1, 1.0, "yes"), (0.5, 0, 0.2, "no"), (0.5, 1, 0.8, "yes")]
    assert [d["place"] for d in dots] == pytest.approx([-0.3, 0.3, 0.7, 1.3])  # values at equal distances, the seeds side by side
    assert [d["rollouts"] for d in cost[0]["data"][2]] == [100, 300, 900, 400]


def test_means_stand_only_where_all_runs_reached_the_target():
    accuracy, cost = panels(sensitivity(STUDY, "alpha"))
    assert [m["alpha"] for m in accuracy[0]["data"][1]] == [0.1, 0.5] and [m["alpha"] for m in cost[0]["data"][1]] == [0.1]
    assert accuracy[1]["data"][0] == []  # a single seed has no interval
    axes = [layer["encoding"]["y"]["scale"]["domain"] for p in accuracy for layer in p["layers"]]
    assert axes == [[0.0, 1.0]] * 6  # a panel's axis is not fitted to its data
    assert [layer["encoding"]["y"]["scale"]["domain"] for p in cost for layer in p["layers"]] == [pytest.approx([0.0, 1.08 * (200 + 12.7062 * 100)])] * 6


def test_the_chart_draws_and_says_what_it_shows():
    chart = sensitivity(STUDY, "alpha")
    title = chart.to_dict()["title"]
    assert title["text"] == "What α (alpha) does" and "mean over 1 to 2 seeds" in title["subtitle"][0]
    other = sensitivity(STUDY.rename(columns={"alpha": "n"}).assign(n=["a", "a", "b", "b", "a"]), "n")
    assert '["a", "b"]' in str(other.to_dict()["vconcat"][0]["hconcat"][0]["layer"][0]["encoding"]["x"]["axis"]["labelExpr"])


@pytest.mark.parametrize(
    ("study", "parameter", "words"),
    [(STUDY, "tau", "no column 'tau'; it has: alpha, n_train"), (STUDY.drop(columns="seed"), "alpha", "no column 'seed'"), (STUDY[:0], "alpha", "no run to draw 'alpha' from")],
)
def test_one_sentence(study, parameter, words):
    with pytest.raises(UserError, match=words):
        sensitivity(study, parameter)
