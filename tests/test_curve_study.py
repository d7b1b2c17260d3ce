"""The study `curve`, with a random model of bytes in place of SmolLM2: which runs it makes, what it writes, and that a second call only reads."""

import json

import pandas as pd
import pytest

from adaback_lite import language_charts as lc
from adaback_lite import language_studies as studies
from adaback_lite import results
from tests.language import CHATML, GSM8K, byte_model, byte_tokenizer, saved


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(saved(tmp_path_factory.mktemp("model") / "bytes", byte_model(context=4096), byte_tokenizer(CHATML)))


def test_the_runs_are_of_an_untrained_model_in_full_precision(tmp_path):
    one, two = studies.curve_config(tmp_path, "gsm-symbolic", n=5), studies.curve_config(tmp_path, "gsm-symbolic-tensor2", unit="step")
    assert (one.method, one.trainer.max_steps, one.policy.quantize, one.policy.dtype) == ("rl", 0, "none", "float32")
    assert (one.task.n_val, two.task.n_val, one.curriculum.unit, two.curriculum.unit) == (5, 12, "token", "step")
    assert studies.curve_config(tmp_path, "gsm-symbolic", settings={"task.max_new": 7}).task.max_new == 7


def test_both_cuts_are_measured_for_one_task_only():
    assert [task for task, unit in studies.CURVES if unit == "step"] == ["gsm-symbolic"]
    assert len(set(studies.CURVES)) == len(studies.CURVES) == 5


@pytest.mark.slow
def test_the_study_is_written_with_its_provenance_and_a_second_call_only_reads(tmp_path, model, monkeypatch):
    assert (GSM8K / "train.jsonl").is_file()
    short = studies.curve_config
    monkeypatch.setattr(studies, "CURVES", (("gsm8k", "token"), ("gsm-symbolic", "step")))
    monkeypatch.setattr(studies, "curve_config", lambda *args: short(*args[:-1], {**args[-1], "task.max_new": 12}))
    argv = ["curve", "--model", model, "--problems", "3", "--data", str(GSM8K), "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert studies.main(argv) == 0
    table, facts = results.stored("reveal_curve", tmp_path / "results")
    expected = [["gsm8k", "token", share] for share in lc.SHARES] + [["gsm-symbolic", "step", share] for share in (0.5, 0.75, 0.9, 1.0)]
    assert table[["task", "unit", "share"]].values.tolist() == expected
    assert set(table.problems) == {3} and set(table.samples) == {8} and (table.lines > 1).all()
    assert (table.right == 0).all() and (table.high > 0.3).all()  # a random model; 0 of 3 says little
    assert facts["tokens"] == table.tokens.sum() > 0 and facts["command"].endswith(" ".join(argv)) and len(facts["commit"]) == 40
    assert list(lc.by_task(table)) == ["gsm8k", "gsm-symbolic, between lines"]

    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.jsonl")}
    assert len(before) == 2 + 2 + 6 + 4  # each run's events and outputs, and a file for each share
    assert studies.main(argv) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.jsonl")} == before
    pd.testing.assert_frame_equal(results.stored("reveal_curve", tmp_path / "results").table, table)


def test_without_a_folder_gsm8k_is_left_out(tmp_path, model, monkeypatch):
    monkeypatch.setattr(studies, "CURVES", (("gsm8k", "token"), ("gsm-symbolic", "token")))
    monkeypatch.setattr(studies, "success_by_share", lambda run, shares, n, progress: pd.DataFrame({"share": [0.0], "tokens": [n]}))
    table = studies.curve_study(tmp_path / "runs", tmp_path / "results", "", 2, model, "a command")
    assert table.task.tolist() == ["gsm-symbolic"]
    assert json.loads((tmp_path / "results" / "reveal_curve.json").read_text())["settings"]["task"]["n_val"] == 2


def test_another_number_of_problems_in_the_same_folder_is_one_sentence(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setattr(studies, "CURVES", (("gsm-symbolic", "token"),))
    monkeypatch.setattr(studies, "success_by_share", lambda run, shares, n, progress: pd.DataFrame({"share": [0.0], "tokens": [n]}))
    argv = ["curve", "--model", model, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--problems"]
    assert studies.main([*argv, "1"]) == 0
    assert studies.main([*argv, "2"]) == 2
    assert "task.n_val" in capsys.readouterr().err
