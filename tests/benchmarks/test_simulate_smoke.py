"""The simulator's benchmark runs and reports what it says. No assertion here looks at a clock."""

import json

from adaback_lite.simulate import LearnerSettings, simulate
from tests.benchmarks import simulate as benchmark


def test_report_has_all_fields(tmp_path, capsys):
    out = tmp_path / "results" / "simulator.json"
    assert benchmark.main(["--samples", "20", "--visits", "2", "--batch-size", "10", "--repeats", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    result, written = json.loads(printed), json.loads(out.read_text())
    assert {k: written[k] for k in result} == result and written["command"].startswith("python -m tests.benchmarks.simulate --samples 20")
    for field in ("reached", "seconds", "cpu_seconds", "curriculum_seconds"):
        assert list(result[field]) == list(benchmark.METHODS)
    assert all(list(q) == ["lowest", "lower_quartile", "median", "upper_quartile"] for q in (*result["seconds"].values(), result["chart_seconds"]))
    assert result["settings"] == {**LearnerSettings(samples=20).model_dump(), "visits": 2, "batch_size": 10, "repeats": 2}
    assert all(result["reached"][m] == (result["seconds"][m]["median"] < result["goal_seconds"]) for m in benchmark.METHODS)


def test_the_timed_curriculum_changes_nothing():
    learner = LearnerSettings(samples=30)
    timed = benchmark.Timed(benchmark.make_curriculum("adaback", benchmark.CurriculumSettings(), 30, 0, 16))
    assert simulate(timed, learner, 5, 10).skill.tobytes() == simulate("adaback", learner, 5, 10).skill.tobytes()
    assert timed.seconds > 0


def test_the_benchmark_is_of_what_the_issue_asks_for():
    """A thousand samples over two hundred visits, in batches, so that there is a cold start."""
    assert benchmark.LearnerSettings().samples == 1000 and benchmark.VISITS == 200 and benchmark.BATCH <= 250 and benchmark.GOAL == 0.1
