"""The command line: help, a round trip of train, eval, show and resume, YAML files, several seeds, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from adaback_lite import cli
from adaback_lite.config import METHODS, bounds, load_config, make_config, setting_names
from adaback_lite.evaluate import interval
from adaback_lite.runs import load_run
from tests.conftest import TINY

SUMMARY_KEYS = {"method", "seed", "steps", "rollouts", "generated_tokens", "wall_seconds", "test_accuracy", "test_accuracy_ci95", "stopped_by"}  # the issue's


def same(events: list[dict]) -> list[dict]:
    """Events without what may differ between equal runs."""
    return [{k: v for k, v in e.items() if k not in ("wall", "machine")} for e in events]


def flat(text: str) -> str:
    """Text without argparse's and rich's line breaks."""
    return re.sub(r"\s+", " ", text)


# ---------------------------------------------------------------- help


def test_help_shows_every_setting_with_type_default_bounds_and_meaning(command):
    status, out, err = command("train", "--help")
    out = re.sub(r"- (?=[a-z])", "-", flat(out))  # argparse also breaks lines at hyphens
    assert status == 0 and not err
    for name, field in setting_names().items():
        assert f" --{name} " in out
        assert re.sub(r"- (?=[a-z])", "-", flat(cli.setting_help(field))) in out
        low, high = bounds(field)
        for bound in (low, high):
            assert bound is None or cli.in_words(bound) in cli.setting_bounds(field)
        assert cli.setting_default(field) in cli.setting_help(field) and field.description in cli.setting_help(field)
    assert all(method in out for method in METHODS)


def test_setting_help_by_hand():
    fields = setting_names()
    assert cli.setting_help(fields["curriculum.tau"]).startswith("(number; 0 to 1.5; default 0.5) adaback, frontier: ")
    assert cli.setting_bounds(fields["grpo.lr"]) == "above 0, up to 1"
    assert cli.setting_bounds(fields["trainer.sft_lrs"]) == "1 to 16 of them, each above 0, up to 1"
    assert cli.setting_type(fields["grpo.scale_std"]) == "true or false"
    assert cli.setting_type(fields["grpo.norm"]) == "one of grpo, dapo, dr_grpo"


@pytest.mark.parametrize("words", [("--help",), (), ("eval", "--help"), ("show", "--help"), ("base", "--help"), ("--version",)])
def test_other_help(command, words):
    status, out, err = command(*words)
    assert status == 0 and out and not err


def test_every_option_of_a_setting_reaches_the_config(tiny):
    """Each setting's default, typed as an option, gives the default configuration back."""
    argv = ["train", "parity"]
    for name, field in setting_names().items():
        argv += [f"--{name}", *cli.setting_default(field).split()]
    args, words = cli.make_parsers()[0].parse_known_args(argv)
    assert cli.chosen_config(cli.given_settings(args), cli.start_settings(words[0]), False, None) == make_config()


# ---------------------------------------------------------------- the round trip


def test_round_trip(command, tiny):
    status, out, err = command("train", "parity", "--method", "adaback", tiny, "--quiet")
    assert (status, err) == (0, "") and "test accuracy 0." in out and tiny["out"] in out and "stopped by max_steps" in out
    folder = Path(tiny["out"])
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= SUMMARY_KEYS
    assert (summary["method"], summary["seed"], summary["steps"], summary["rollouts"], summary["stopped_by"]) == ("adaback", 0, 2, 2 * 4 * 8, "max_steps")
    assert load_config(folder / "config.yaml") == make_config(tiny) and (folder / "checkpoints").is_dir()

    status, out, err = command("show", folder)
    assert status == 0 and "finished" in out and "2 of 2" in out and "max_steps" in out
    status, out, err = command("eval", folder, "--k", 1, 4, "--samples", 8, "--json")
    result = json.loads(out)
    assert status == 0 and set(result["pass_at_k"]) == {"1", "4"} and result["samples"] == 8
    assert result["right"] + result["wrong"] + result["unparseable"] == 4 * 8
    for value in result["pass_at_k"].values():
        assert 0 <= value["ci95"][0] <= value["value"] <= value["ci95"][1] <= 1
    status, out, err = command("eval", folder, "--split", "val", "--n", 5)
    assert status == 0 and "5 val problems" in flat(out) and "pass@1" in out

    # Finished: nothing is left to do, and what is there is not touched.
    before = (folder / "events.jsonl").read_bytes()
    assert command("train", "--resume", "--out", folder, "--quiet")[0] == 0
    assert (folder / "events.jsonl").read_bytes() == before
    # Two steps more, with the saved settings.
    status, out, err = command("train", "--resume", "--out", folder, "--trainer.max_steps", 4, "--quiet")
    assert status == 0 and "4 steps" in out
    assert load_run(folder).summary["steps"] == 4 and load_run(folder).config.task.length == tiny["task.length"]


def test_a_run_from_config_yaml_is_the_same_run(command, tiny, tmp_path):
    assert command("train", "parity", tiny, "--quiet")[0] == 0
    again = tmp_path / "again"
    assert command("train", Path(tiny["out"]) / "config.yaml", "--out", again, "--quiet")[0] == 0
    assert same(load_run(again).events) == same(load_run(tiny["out"]).events)


def test_yaml_with_overrides(command, tiny, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("method: rl\nseed: 3\ntask: {length: 6, n_train: 8, n_val: 4, n_test: 4}\ntrainer:\n  max_steps: 1\n  threads: 1\n  batch_size: 4\n")
    shape = {name: value for name, value in tiny.items() if name.startswith("policy.")}
    assert command("train", file, shape, {"method": "uft", "curriculum.horizon": "1e1", "out": tiny["out"]}, "--quiet")[0] == 2  # a whole number is 10, not '1e1'
    status, out, err = command("train", file, shape, {"method": "uft", "curriculum.horizon": 10, "out": tiny["out"]}, "--quiet")
    config = load_run(tiny["out"]).config
    assert status == 0 and (config.method, config.seed, config.task.length, config.curriculum.horizon, config.trainer.max_steps) == ("uft", 3, 6, 10, 1)


def test_the_task_may_stand_after_the_options(command, tiny):
    assert command("train", tiny, "--quiet", "parity")[0] == 0


def test_sft_run_and_show(command, tiny):
    settings = {**tiny, "method": "sft", "trainer.sft_max_steps": 4, "trainer.sft_eval_every": 2}
    argv = [part for name, value in settings.items() for part in (f"--{name}", value)]
    status, out, err = command("train", "parity", *argv, "--trainer.sft_lrs", "1e-3", "3e-3", "--quiet")
    assert status == 0 and "stopped by sft" in out
    assert load_run(tiny["out"]).config.trainer.sft_lrs == (1e-3, 3e-3)
    assert command("show", tiny["out"])[0] == 0


def test_show_of_several_and_of_an_unfinished_run(command, tiny, tmp_path):
    command("train", "parity", tiny, "--quiet")
    folder = Path(tiny["out"])
    (folder / "summary.json").unlink()
    with open(folder / "events.jsonl", "a") as log:
        log.write(json.dumps({"event": "diagnosis", "kind": "no_reward", "text": "Nothing is ever right.", "advice": "Show more.", "step": 2}) + "\n")
        log.write('{"event": "step", "st')  # killed while writing
    status, out, err = command("show", folder, folder)
    assert status == 0 and "stopped" in out and "Nothing is ever right. Show more." in flat(out)
    assert "the last line is torn" in err and err.startswith("adaback: warning: ")
    assert "stopped; go on with: adaback train --resume --out" in flat(command("show", folder)[1])


def test_show_of_a_live_run(command, tiny):
    command("train", "parity", tiny, "--quiet")
    folder = Path(tiny["out"])
    (folder / "summary.json").unlink()
    with hold_lock(folder):
        assert "running" in command("show", folder)[1]
    assert "running" not in command("show", folder)[1]


def hold_lock(folder: Path) -> subprocess.Popen:
    """Another process that holds a run's lock until the `with` ends."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


# ---------------------------------------------------------------- Ctrl-C, seeds, bases


def test_ctrl_c_saves_and_says_how_to_go_on(command, tiny, monkeypatch):
    """In process: the signal arrives while the third step is taken."""
    from adaback_lite import trainer

    plain = trainer.rl_step

    def step(state, *args):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(state, *args)

    monkeypatch.setattr(trainer, "rl_step", step)
    status, out, err = command("train", "parity", tiny, {"trainer.max_steps": 6, "trainer.checkpoint_every": 100}, "--quiet")
    assert status == 130 and f"Stopped at step 3; go on with: adaback train --resume --out {tiny['out']}" in err
    monkeypatch.undo()
    assert command("train", "--resume", "--out", tiny["out"], "--quiet")[0] == 0
    whole = Path(tiny["out"]).with_name("whole")
    assert command("train", "parity", {**tiny, "out": whole, "trainer.max_steps": 6, "trainer.checkpoint_every": 100}, "--quiet")[0] == 0
    assert steps(tiny["out"]) == steps(whole) and len(steps(whole)) == 6


def steps(folder) -> list[dict]:
    return [e for e in same(load_run(folder).events) if e["event"] == "step"]


@pytest.mark.slow
def test_ctrl_c_of_the_real_command(tiny):
    options = [part for name, value in {**TINY, "out": tiny["out"], "trainer.max_steps": 100000}.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, "-m", "adaback_lite", "train", "parity", *options], stderr=subprocess.PIPE, text=True)
    log = Path(tiny["out"]) / "events.jsonl"
    deadline = time.time() + 120
    while not (log.exists() and b'"step", "step": 5' in log.read_bytes()):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    stopped = int(re.search(r"Stopped at step (\d+); go on with: ", err).group(1))
    assert process.returncode == 130 and stopped == len(steps(tiny["out"])) >= 5 and "Traceback" not in err


@pytest.mark.slow
def test_several_seeds_and_resume(command, tiny):
    status, out, err = command("train", "parity", tiny, "--seeds", 0, 1, "--jobs", 2, "--quiet")
    assert status == 0 and out.count("test accuracy") == 2
    runs = [load_run(Path(tiny["out"]) / f"seed-{seed}") for seed in (0, 1)]
    assert [run.summary["seed"] for run in runs] == [0, 1] and [run.config.trainer.threads for run in runs] == [1, 1]
    status, out, err = command("train", "parity", tiny, "--seeds", 1, 2, "--quiet")
    assert status == 2 and "seed-1 holds a run already; add --resume" in err and not (Path(tiny["out"]) / "seed-2").exists()
    assert command("train", "--resume", "--seeds", 0, 1, "--out", tiny["out"], "--quiet")[0] == 0


@pytest.mark.slow
@pytest.mark.slow
def test_a_seed_that_had_not_begun_starts_on_resume(command, tiny):
    assert command("train", "parity", tiny, "--method", "rl", "--seeds", 0, "--quiet")[0] == 0
    assert command("train", "--resume", "--seeds", 0, 2, "--out", tiny["out"], "--quiet")[0] == 0
    first, late = (load_config(Path(tiny["out"]) / f"seed-{n}" / "config.yaml") for n in (0, 2))
    assert late.seed == 2 and late.method == "rl" and late.task == first.task and late.trainer == first.trainer
    status, out, _ = command("show", tiny["out"])
    assert status == 0 and "seed-0" in flat(out) and "seed-2" in flat(out)
    status, _, err = command("train", "--resume", "--out", tiny["out"])
    assert status == 2 and "holds one run a seed" in err


def test_ctrl_c_of_several_seeds(tiny):
    """Only the parent is told, and more runs wait than are trained: all stop, with a checkpoint, and none is started after."""
    settings = {**TINY, "out": tiny["out"], "trainer.max_steps": 1000000, "trainer.checkpoint_every": 1000000}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "adaback_lite", "train", "parity", *options, "--seeds", "0", "1", "2", "3", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    logs = [Path(tiny["out"]) / f"seed-{seed}" / "events.jsonl" for seed in (0, 1)]
    deadline = time.time() + 120
    while not all(log.exists() and b'"step", "step": 2' in log.read_bytes() for log in logs):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"Stopped; go on with: adaback train --resume --seeds 0 1 2 3 4 --out {tiny['out']}" in err and "Traceback" not in err
    assert sorted(p.name for p in Path(tiny["out"]).iterdir()) == ["seed-0", "seed-1"]
    assert all(load_run(log.parent).checkpoints() for log in logs)


def test_seeds_that_make_no_sense(command, tiny):
    assert "exclude each other" in command("train", "parity", {"seed": 1}, "--seeds", 1, 2)[2]
    assert "names a seed twice" in command("train", "parity", "--seeds", 1, 1)[2]
    assert "at least 1" in command("train", "parity", "--seeds", 1, "--jobs", 0)[2]


def test_base_is_made_once_and_cached(command, tmp_path, monkeypatch):
    from adaback_lite import pretrain

    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path / "cache"))
    plain = pretrain.train_base
    monkeypatch.setattr(pretrain, "train_base", lambda *args, **named: plain(*args, **{**named, "steps": 2}))
    shape = {"positions": "sequential", "length": 4, "layers": 1, "width": 16, "heads": 2, "kv_heads": 2}
    status, out, err = command("base", shape)
    (folder,) = (tmp_path / "cache").iterdir()
    assert status == 0 and out == f"The base is in {folder}\n" and "making the base" in err
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert command("base", shape)[1] == out and (folder / "model.safetensors").stat().st_mtime_ns == before

    shipped = tmp_path / "shipped"
    monkeypatch.setattr(pretrain, "SHIPPED", shipped)
    status, out, err = command("base", shape, "--ship")
    assert status == 0 and out == f"The base is in {shipped / folder.name}\n"
    assert (shipped / folder.name / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()  # the same weights again


def test_base_of_the_default_model_is_shipped(command):
    status, out, err = command("base", {"positions": "coupled", "length": 16})
    assert status == 0 and re.search(r"data.bases.tiny-coupled-L16", out) and not err


# ---------------------------------------------------------------- pass@k's intervals


def test_interval_of_pass_at_1_is_wilsons():
    assert interval([0.0] * 100, 1) == pytest.approx([0.0, 0.0370], abs=1e-4)
    assert interval([1.0] * 3 + [0.0], 1) == pytest.approx([0.3006, 0.9544], abs=1e-4)


def test_interval_of_pass_at_k_is_a_bootstrap_over_problems():
    """For n values with standard deviation s the interval is close to 1.96 s / sqrt(n) on both sides, and the same each time."""
    values = [0.2, 0.4, 0.6, 0.8] * 100
    low, high = interval(values, 8)
    half = 1.96 * 0.2236 / 20
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)
    assert interval(values, 8) == [low, high]
    assert interval([0.0] * 100, 8)[1] == pytest.approx(0.0370, abs=1e-4)  # not a width of 0


def test_config_yaml_is_plain_yaml(command, tiny):
    command("train", "parity", tiny, "--quiet")
    assert yaml.safe_load((Path(tiny["out"]) / "config.yaml").read_text())["task"]["length"] == 5
