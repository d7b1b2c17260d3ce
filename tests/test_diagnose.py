"""Each diagnosis is made when it is true, and a healthy run gets none."""

import pytest

from adaback_lite.diagnose import WINDOW, diagnose

HEALTHY = {"mean_reward": 0.5, "mean_rho": 0.5, "grad_groups": 0.4, "entropy": 0.4, "cut": 0.02, "unparseable": 0.05, "high": [0.6]}


def steps(n, **changes):
    """n healthy steps whose rho falls, with some values changed; a changed value may be a function of the step."""
    rows = []
    for i in range(n):
        row = HEALTHY | {"mean_rho": max(0.8 - 0.005 * i, 0.0), "mean_reward": min(0.4 + 0.003 * i, 1.0)}
        rows.append(row | {k: v(i) if callable(v) else v for k, v in changes.items()})
    return rows


def kinds(rows):
    return [d.kind for d in diagnose(rows)]


@pytest.mark.parametrize("n", [0, 1, WINDOW - 1, WINDOW, 5 * WINDOW, 200])
def test_a_healthy_run_gets_none(n):
    assert kinds(steps(n)) == []


def test_a_solved_run_gets_none():
    """Everything right, nothing shown, no gradient and no entropy left: that is success."""
    assert kinds(steps(200, mean_reward=1.0, mean_rho=0.0, grad_groups=0.0, entropy=lambda i: 0.4 if i < 50 else 0.001)) == []


CASES = {
    "no_reward": {"mean_reward": 0.001, "grad_groups": 0.005},
    "no_gradient": {"mean_reward": 0.6, "grad_groups": 0.03},
    "entropy_collapsed": {"entropy": lambda i: 0.5 if i < 5 else 0.01, "mean_reward": 0.4, "grad_groups": 0.07},
    "cut_at_limit": {"cut": 0.7, "unparseable": 0.7},
    "unparseable": {"cut": 0.1, "unparseable": 0.8},
    "rho_stuck": {"mean_rho": 0.4},
}


@pytest.mark.parametrize("kind", CASES)
def test_each_is_seen_alone(kind):
    [found] = diagnose(steps(200, **CASES[kind]))
    assert found.kind == kind and found.text.endswith(".") and found.advice.endswith(".")


@pytest.mark.parametrize("kind", CASES)
def test_none_before_there_are_enough_steps(kind):
    enough = {"rho_stuck": 5 * WINDOW, "entropy_collapsed": 5 + WINDOW}.get(kind, WINDOW)  # the entropy of the first 5 steps is compared with a window after them
    rows = steps(enough, **CASES[kind])
    assert diagnose(rows[: WINDOW - 1]) == [] and kind not in kinds(rows[: min(enough, 5 * WINDOW) - 5])
    assert kind in kinds(rows)


@pytest.mark.parametrize("kind", CASES)
def test_only_the_last_steps_count(kind):
    """A trouble that is over is not reported; one that has just begun is not yet."""
    after = steps(200, **CASES[kind])[-60:] + steps(WINDOW, entropy=0.5, mean_rho=0.1)
    assert kind not in kinds(after)
    assert kind not in kinds([*steps(WINDOW - 1), steps(10, **CASES[kind])[-1]])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("no_reward", {"grad_groups": 0.03, "mean_reward": 0.001}),  # then it is no_gradient
        ("no_reward", {"grad_groups": 0.005, "mean_reward": 0.3}),
        ("no_gradient", {"grad_groups": 0.06, "mean_reward": 0.6}),
        ("no_gradient", {"grad_groups": 0.0, "mean_reward": 0.97}),
        ("entropy_collapsed", {"entropy": lambda i: 0.5 if i < 5 else 0.06, "mean_reward": 0.4, "grad_groups": 0.07}),
        ("entropy_collapsed", {"entropy": lambda i: 0.5 if i < 5 else 0.01, "mean_reward": 0.95, "grad_groups": 0.07}),
        ("entropy_collapsed", {"entropy": lambda i: 0.5 if i < 5 else 0.01, "mean_reward": 0.4}),  # sure of itself, but learning
        ("cut_at_limit", {"cut": 0.45, "unparseable": 0.45}),
        ("unparseable", {"cut": 0.6, "unparseable": 0.9}),  # mostly cut, and said so
        ("rho_stuck", {"mean_rho": 0.1}),
        ("rho_stuck", {"mean_rho": 0.5, "high": None}),  # a curriculum without intervals, say constant
    ],
)
def test_just_inside_the_healthy_side(kind, changes):
    assert kind not in kinds(steps(200, **changes))


def test_the_text_names_the_numbers():
    [found] = diagnose(steps(WINDOW, mean_reward=0.001, grad_groups=0.005))
    assert "0.5%" in found.text and "0.001" in found.text and "adaback" in found.advice
