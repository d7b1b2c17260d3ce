"""The command line: help, a round trip of train, eval, show and resume, YAML files, several seeds, Ctrl-C."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from adaback_lite import cli, options
from adaback_lite.config import METHODS, PRESETS, TASKS, PolicySettings, bounds, load_config, make_config, setting_names
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
        assert re.sub(r"- (?=[a-z])", "-", flat(options.setting_help(field))) in out
        low, high = bounds(field)
        for bound in (low, high):
            assert bound is None or options.in_words(bound) in options.setting_bounds(field)
        assert options.setting_default(field) in options.setting_help(field) and field.description in options.setting_help(field)
    assert all(method in out for method in METHODS)
    assert all(task in out for task in TASKS) and re.search(rf"--preset X .*{', '.join(list(PRESETS)[:-1])} or {list(PRESETS)[-1]}\b", out)


def test_setting_help_by_hand():
    fields = setting_names()
    assert options.setting_help(fields["curriculum.tau"]).startswith("(number; 0 to 1.5; default 0.5) adaback, frontier: ")
    assert options.setting_bounds(fields["grpo.lr"]) == "above 0, up to 1"
    assert options.setting_bounds(fields["trainer.sft_lrs"]) == "1 to 16 of them, each above 0, up to 1"
    assert options.setting_type(fields["grpo.scale_std"]) == "true or false"
    assert options.setting_type(fields["grpo.norm"]) == "one of grpo, dapo, dr_grpo"
    assert options.setting_bounds(fields["policy.lora_dropout"]) == "0 to below 1"
    assert options.setting_help(fields["task.data"]).startswith("(text; default '') word problems: ")


@pytest.mark.parametrize("words", [("--help",), (), ("eval", "--help"), ("show", "--help"), ("base", "--help"), ("compare", "--help"), ("models", "--help"), ("--version",)])
def test_other_help(command, words):
    status, out, err = command(*words)
    assert status == 0 and out and not err


def test_every_option_of_a_setting_reaches_the_config(tiny):
    """Each setting's default, typed as an option, gives the default configuration back."""
    argv = ["train", "parity"]
    for name, field in setting_names().items():
        argv += [f"--{name}", *shlex.split(options.setting_default(field))]
    args, words = cli.make_parsers()[0].parse_known_args(argv)
    assert options.chosen_config(options.given_settings(args), options.start_settings(words[0]), False, None) == make_config()


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
    deadline = time.time() + 600  # for a crowded machine; it takes seconds
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
def test_a_seed_that_had_not_begun_starts_on_resume(command, tiny):
    assert command("train", "parity", tiny, "--method", "rl", "--seeds", 0, "--quiet")[0] == 0
    assert command("train", "--resume", "--seeds", 0, 2, "--out", tiny["out"], "--quiet")[0] == 0
    first, late = (load_config(Path(tiny["out"]) / f"seed-{n}" / "config.yaml") for n in (0, 2))
    assert late.seed == 2 and late.method == "rl" and late.task == first.task and late.trainer == first.trainer
    status, out, _ = command("show", tiny["out"])
    assert status == 0 and "seed-0" in flat(out) and "seed-2" in flat(out)
    status, _, err = command("train", "--resume", "--out", tiny["out"])
    assert status == 2 and "holds one run a seed" in err


@pytest.mark.slow
def test_ctrl_c_of_several_seeds(tiny):
    """Only the parent is told, and more runs wait than are trained: all stop, with a checkpoint, and none is started after."""
    settings = {**TINY, "out": tiny["out"], "trainer.max_steps": 1000000, "trainer.checkpoint_every": 1000000}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "adaback_lite", "train", "parity", *options, "--seeds", "0", "1", "2", "3", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    logs = [Path(tiny["out"]) / f"seed-{seed}" / "events.jsonl" for seed in (0, 1)]
    deadline = time.time() + 600  # for a crowded machine; it takes seconds
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


def test_base_takes_the_settings_that_a_base_depends_on():
    """Those in its name, and no others of the policy's."""
    from adaback_lite.pretrain import base_name

    plain = PolicySettings()
    others = {"positions": "sequential", "layers": 3, "width": 128, "heads": 8, "kv_heads": 2, "rope_theta": 60.0}
    no_matter = {"quantize": "nf4", "lora_rank": 4, "device": "cpu", "revision": "a", "sampling": "adapter", "checkpointing": True}
    changed = [name for name, value in {**others, **no_matter}.items() if base_name(plain.model_copy(update={name: value}), 16) != base_name(plain, 16)]
    assert tuple(changed) == cli.BASE_SETTINGS
    flags = cli.make_parsers()[1]["base"]._option_string_actions
    assert {flag.removeprefix("--policy.") for flag in flags if flag.startswith("--policy.")} == set(cli.BASE_SETTINGS)


# ---------------------------------------------------------------- presets

# A model of bytes, and a run of one step: what stays of the preset stays.
WORDS = {
    "method": "rl", "policy.quantize": "none", "task.n_train": 2, "task.n_val": 1, "task.n_test": 1, "task.max_new": 8, "task.shots": 0,
    "trainer.batch_size": 2, "trainer.max_steps": 1, "trainer.threads": 1, "grpo.group_size": 2,
}  # fmt: skip


@pytest.fixture
def words(tmp_path, monkeypatch) -> dict:
    """Settings of a run on word problems with a model of bytes, where torch sees no GPU."""
    import torch

    from tests.language import CHATML, byte_model, byte_tokenizer, saved

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "model").mkdir()
    return {**WORDS, "policy.name": str(saved(tmp_path / "model", byte_model(context=4096), byte_tokenizer(CHATML))), "out": str(tmp_path / "run")}


def test_a_task_of_words_starts_from_a_preset_and_says_so(command, words):
    status, out, err = command("train", "gsm-symbolic", words, "--quiet")
    assert status == 0 and "gsm-symbolic starts from the preset cpu, for there is no GPU to run on; --preset names another.\n" in err
    config = load_run(words["out"]).config
    assert config == make_config({**PRESETS["cpu"], "task.name": "gsm-symbolic", **words})
    assert (config.policy.lora_rank, config.trainer.sft_max_steps, config.trainer.max_steps) == (16, 40, 1)  # the preset's, the preset's, the option's

    # The saved run goes on as it is: no preset comes in, whether one is named or not.
    status, out, err = command("train", "--resume", "--out", words["out"], "--preset", "gpu", "--trainer.max_steps", 2, "--quiet")
    assert status == 0 and "2 steps" in out and "--preset gpu is left aside" in err and "starts from" not in err
    assert load_run(words["out"]).config == make_config({**PRESETS["cpu"], "task.name": "gsm-symbolic", **words, "trainer.max_steps": 2})
    status, out, err = command("train", "gsm-symbolic", "--resume", "--out", words["out"], "--quiet")
    assert status == 0 and "preset" not in err


def test_a_named_preset_goes_without_saying(command, words):
    status, out, err = command("train", "gsm-symbolic", "--preset", "quick", words, "--quiet")
    assert status == 0 and "preset" not in err
    assert load_run(words["out"]).config == make_config({**PRESETS["quick"], "task.name": "gsm-symbolic", **words})


def test_presets_with_several_seeds(command, words, monkeypatch):
    from adaback_lite import parallel

    handed = []
    monkeypatch.setattr(parallel, "train_many", lambda configs, **named: handed.append(configs) or [])
    status, out, err = command("train", "gsm-symbolic", words, "--seeds", 4, 5)
    assert status == 0 and err.count("starts from the preset cpu") == 1
    expected = [make_config({**PRESETS["cpu"], "task.name": "gsm-symbolic", **words, "seed": n, "out": f"{words['out']}/seed-{n}"}) for n in (4, 5)]
    assert handed.pop() == expected
    assert command("train", "gsm-symbolic", "--preset", "quick", words, "--seeds", 4)[::2] == (0, "")
    assert handed.pop()[0].grpo.group_size == 2 and handed == []


def test_parity_takes_no_preset(command, tiny):
    status, out, err = command("train", "parity", tiny, "--quiet")
    assert (status, err) == (0, "")


# ---------------------------------------------------------------- models


def test_models_lists_all_that_are_known(command, monkeypatch, tmp_path):
    from huggingface_hub import constants

    from adaback_lite.models import LISTED

    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    status, out, err = command("models")
    assert (status, err) == (0, "") and len(LISTED) == 3
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    named = {row[0]: row for row in rows if row[0]}
    assert list(named) == list(LISTED)
    for m in LISTED.values():
        assert named[m.name][1:4] == [m.source, m.parameters, m.licence] and m.note.split(";")[0].split(",")[0] in named[m.name][5]
    assert named["qwen2.5-0.5b"][4] == "to be fetched from the Hub"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """An empty cache of the Hub's files, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_models_get_what_is_at_hand(command, hub, monkeypatch, tmp_path):
    from adaback_lite import models

    model = models.LISTED["qwen2.5-0.5b"]
    snapshot = hub / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / model.revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert command("models", "--get", "qwen2.5-0.5b") == (0, f"{snapshot}\n", "")
    monkeypatch.setattr(models, "smollm2_folder", lambda: tmp_path / "smollm2")
    assert command("models", "--get", "smollm2")[:2] == (0, f"{tmp_path / 'smollm2'}\n")


def test_models_get_without_a_network(command, hub):
    status, out, err = command("models", "--get", "qwen2.5-0.5b")
    first, second = err.splitlines()
    assert (status, out, first) == (2, "", "qwen2.5-0.5b: to be fetched from the Hub")
    assert second.startswith("adaback: The Hub cannot be reached, and Qwen/Qwen2.5-0.5B is not in the local cache; ") and not hub.exists()


def refusals():
    import httpx
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    yield GatedRepoError("403", response=response), "The model meta-llama/Llama-3.2-1B is gated: accept its licence on the Hub"
    yield RevisionNotFoundError("404", response=response), "The Hub has no model meta-llama/Llama-3.2-1B that you may see"
    yield OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "is full; free some space, or set HF_HOME"
    yield ValueError("odd"), "The model meta-llama/Llama-3.2-1B cannot be loaded (odd)"


@pytest.mark.parametrize(("error", "sentence"), list(refusals()), ids=lambda x: type(x).__name__)
def test_models_get_what_the_hub_refuses(command, hub, monkeypatch, error, sentence):
    import huggingface_hub

    asked = []

    def refuse(source, **named):
        asked.append((source, named["revision"]))
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    status, out, err = command("models", "--get", "llama-3.2-1b")
    assert (status, out) == (2, "") and err.splitlines()[-1].startswith("adaback: ") and sentence in err.splitlines()[-1] and "Traceback" not in err
    assert asked == [("meta-llama/Llama-3.2-1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08")]


def test_models_get_takes_what_transformers_reads(command, hub, monkeypatch):
    """Not the same weights again in Meta's own format, which the repository of Llama 3.2 also holds."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "model.safetensors", "tokenizer.json", "merges.txt", "chat_template.jinja", "original/consolidated.00.pth", "original/params.json", "README.md"]
    taken = []

    def download(source, revision, allow_patterns, ignore_patterns):
        taken.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert command("models", "--get", "llama-3.2-1b")[:2] == (0, f"{hub}\n") and taken == files[:5]


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
