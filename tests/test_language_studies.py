"""The studies with a language model: what they count, that the kill is real, and that the GPU study is ready to start."""

import json
from pathlib import Path

import pytest
import torch

import adaback_lite as ab
from adaback_lite import language_studies as studies
from adaback_lite.config import make_config, preset
from adaback_lite.errors import UserError
from tests.helpers import taught_config

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "gsm8k"


def test_the_share_of_groups_that_carry_a_gradient_is_counted_from_the_events(tmp_path):
    run = ab.train(taught_config(tmp_path / "run", **{"trainer.max_steps": 9}), progress=False)
    row = studies.gradient_row(run)
    steps = [e for e in run.events if e["event"] == "step"]
    # A group of G rollouts with mean reward r carries a gradient unless all its rewards are equal: with rewards of 1.1, 0.1 and 0 only these means are pure.
    pure = sum(round(r, 4) in (0.0, 0.1, 1.1) for e in steps for r in e["reward"])
    assert row["groups"] == 9 * 6 and row["carrying"] == 54 - pure and 0 < row["carrying"] < 54
    assert row["low"] < row["share"] == row["carrying"] / 54 < row["high"]
    assert row["rollouts"] == 9 * 6 * 4 and row["mean_rho"] == pytest.approx(sum(e["mean_rho"] for e in steps) / 9)


@pytest.mark.slow
def test_a_study_kills_its_run_for_real_and_the_result_is_the_undisturbed_one(tmp_path):
    config = taught_config(tmp_path / "a" / "killed", **{"trainer.max_steps": 120, "trainer.checkpoint_every": 4, "trainer.keep_checkpoints": 1, "trainer.target_accuracy": 0.0})
    facts = studies.run_killed(config, 8)
    assert facts["signal"] == "SIGKILL" and 8 <= facts["steps_in_the_log_when_killed"] < 120
    assert len(facts["resumed_at_step"]) == 1 and 0 < facts["resumed_at_step"][0] <= facts["steps_in_the_log_when_killed"]
    undisturbed = ab.train(config, out=str(tmp_path / "b"), progress=False)
    told = [[{k: v for k, v in e.items() if k != "wall"} for e in r.events if e["event"] == "step"] for r in (ab.load_run(config.out), undisturbed)]
    assert len(told[0]) == 120 and told[0] == told[1]
    assert studies.run_killed(config, 8) == facts  # called again, it only reads


def test_cpu_configs_differ_in_the_method_alone(tmp_path):
    a, b = studies.cpu_configs(tmp_path, "", "gsm-symbolic")
    assert (a.method, b.method) == ("adaback", "rl")
    assert a.model_copy(update={"method": "rl", "out": b.out}) == b
    assert a.policy.quantize == "nf4" and a.policy.lora_rank > 0 and a.trainer.max_steps >= 20 and a.task.format_reward == 0


def test_gpu_configs_go_seed_by_seed(tmp_path):
    configs = studies.gpu_configs(tmp_path, "", seeds=2)
    assert [c.seed for c in configs] == [0] * 18 + [1] * 18
    assert len({c.out for c in configs}) == 36
    assert {(c.method, c.curriculum.unit) for c in configs} == {("sft", "token"), ("rl", "token"), ("sft+rl", "token"), ("r3", "step"), ("adaback", "token"), ("adaback", "step")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_gpu_study_says_what_to_do(tmp_path, capsys):
    assert studies.main(["gpu", "--runs", str(tmp_path), "--results", str(tmp_path / "results")]) == 2
    assert "torch sees no GPU here; give --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_dry_run_builds_every_task_from_the_real_training_set(tmp_path, capsys):
    assert (GSM8K / "train.jsonl").is_file()
    assert studies.main(["gpu", "--dry-run", "--data", str(GSM8K), "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 90 and all("training and" in line for line in lines)
    base7 = next(line for line in lines if "gsm8k-base7-adaback-token-0" in line)
    assert "6,000 training" not in base7 and "dropped" in base7 and "0 dropped" not in base7
    assert not list(tmp_path.rglob("events.jsonl"))


def test_the_presets_name_what_the_studies_need():
    with pytest.raises(UserError, match="There is no preset 'tpu'; there are: quick, cpu, gpu."):
        preset("tpu")
    assert json.loads(json.dumps(make_config({**preset("gpu"), "task.name": "gsm8k"}).model_dump(mode="json")))["policy"]["name"] == "smollm2"
