"""The study of cost measures what it says, goes on where it was stopped, and finds a machine again that it is given. No assertion here looks at a clock."""

import json

import numpy as np
import pytest
import torch

from adaback_lite import results
from adaback_lite.cost import SHAPES, Machine, Work, step_cost
from tests.benchmarks import cost as study

MACHINE = Machine(flops=5e10, bandwidth=8e9, step_seconds=3e-4, layer_seconds=2e-4)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def lines_of(machine: Machine, prompts: int = study.PROMPTS) -> list[dict]:
    """What `measure` would give on a machine that keeps to the model, but for one round in three that is disturbed."""
    lines = []
    for cell in study.CELLS:
        work = Work(prompts=prompts, group=cell.group, prompt=study.PROMPT_TOKENS, rationale=32, reveal=cell.reveal)
        c = step_cost(work, study.shape(cell.size), machine)
        for n, slower in enumerate((1.0, 3.0, 1.0)):
            seconds = {"sampling": slower * c.sampling_seconds, "update": slower * c.update.seconds}
            seconds |= {f"wall_{part}": 2 * value for part, value in seconds.items()}
            lines.append({"round": n, "cell": list(cell), **seconds, "flops": machine.flops / slower, "load": 0.5 * slower, "grad_groups": 1.0})
    return lines


def test_measuring_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PRODUCT", (8, 8, 8))
    cells, log, made = [study.Cell("0.13 M", 2, 0.0), study.Cell("0.13 M", 3, 0.75)], tmp_path / "a" / "measured.jsonl", []
    plain = study.Ours
    monkeypatch.setattr(study, "Ours", lambda cell, prompts: made.append(plain(cell, prompts)) or made[-1])
    first = study.measure(1, log, cells, prompts=2)
    assert [line["round"] for line in first] == [0, 0] and len(made) == 2
    assert [side.expected for side in made] == [2 * 2 * 32, 2 * 3 * 8] and all(side.state.step == 2 for side in made)
    log.write_text(log.read_text().splitlines()[0] + "\n")  # stopped after the first
    lines = study.measure(2, log, cells, prompts=2)
    assert [(line["round"], line["cell"][1]) for line in lines] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{**line, "cell": list(line["cell"])} for line in lines]
    assert {line["grad_groups"] for line in lines} == {1.0} and all(line[k] > 0 for line in lines for k in ("sampling", "update", "wall_sampling", "wall_update"))
    assert len(study.measure(2, log, cells, prompts=2)) == 4 and len(made) == 4


def test_sizes_are_what_they_are_called():
    shapes = {name: study.shape(name) for name in study.POLICIES}
    assert {name: f"{s.parameters / 1e6:.2g} M" for name, s in shapes.items()} == {name: name for name in shapes}
    assert shapes["0.13 M"].parameters == SHAPES["tiny"].parameters


@pytest.mark.parametrize("change", [{}, {"step_seconds": 0.0}, {"layer_seconds": 0.0}])
def test_a_machine_is_found_again(change):
    machine = MACHINE.model_copy(update=change)
    grid = study.grid_steps(lines_of(machine))
    found = study.fitted([m for cell, (m, _) in grid.items() if cell.group == 8], machine.flops)
    assert found.bandwidth == pytest.approx(machine.bandwidth, rel=1e-4)
    assert found.step_seconds == pytest.approx(machine.step_seconds, abs=8e-5) and found.layer_seconds == pytest.approx(machine.layer_seconds, rel=0.05, abs=1e-5)


def test_results_of_a_machine_that_keeps_to_the_model():
    table, facts = study.results(lines_of(MACHINE), results.facts_of("step_benchmark"))
    grid = table[table.source == "grid"]
    assert len(grid) == 72 and (grid.used == "calibration").sum() == 16 and grid.error.abs().max() < 1e-3
    assert set(grid[grid.used == "calibration"]["size"]) == {"0.13 M", "1.2 M"} and set(grid[grid.used == "calibration"].group) == {8}
    assert facts["calibrated"]["flops"] == MACHINE.flops  # the median over rounds, not the disturbed one
    steps = table[table.source == "step benchmark"]
    for way in ("packed", "padded"):  # one factor: right on average at reveal 0
        mine = steps[(steps.way == way) & (steps.reveal == 0)]
        assert np.log(mine.predicted / mine.measured).mean() == pytest.approx(0, abs=1e-3)
    assert facts["step_benchmark_padded_over_packed"]["reveal 0.75"]["measured"] == pytest.approx((0.1716 + 0.3591) / (0.0444 + 0.0877), abs=1e-3)
    assert facts["errors"]["grid, held out, update"]["n"] == 28


def test_stored_steps_are_the_benchmarks():
    stored = results.facts_of("step_benchmark")
    steps = study.stored_steps(stored)
    assert steps["packed", 0.75].work.hidden().tolist() == stored["settings"]["hidden_reveal_075"]
    assert steps["padded", 0.75].options["update_tokens"] == 256 * (48 + 14) and steps["padded", 0.0].options["update_tokens"] == 512 * 50
    assert step_cost(steps["padded", 0.75].work, SHAPES["tiny"], MACHINE, **steps["padded", 0.75].options).update.tokens == 31_744  # as README.md has it
    assert steps["packed", 0.0].update == stored["split"]["ours"]["update"] and steps["padded", 0.75].sampling == stored["split_reveal_075"]["trl"]["generate"]


def test_report(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(study, "measure", lambda rounds, log: asked.append((rounds, log)) or lines_of(MACHINE))
    argv = ["--rounds", "3", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert study.main(argv) == 0 and asked == [(3, tmp_path / "runs" / "measured.jsonl")]
    table, facts = results.stored("cost", tmp_path / "results")
    assert len(table) == 80 and json.loads(capsys.readouterr().out) == facts["errors"]
    assert facts["command"] == " ".join(["python -m tests.benchmarks.cost", *argv]) and facts["machine"]["load_average"] == {"lowest": 0.5, "median": 0.5, "highest": 1.5}
    assert facts["disturbance"] == {"processor_share_of_clock": {"lowest": 0.5, "median": 0.5}} and facts["machine"]["threads"] == 1
    assert results.provenance("cost", tmp_path / "results").startswith("cost: measured on 20")
