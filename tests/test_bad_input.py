"""Bad input: one clear sentence that names the thing and what to do, exit status 2, and what was there before is intact."""

import builtins
import contextlib
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import adaback_lite as ab
from adaback_lite import runs, sft, trainer
from adaback_lite.evaluate import judge
from adaback_lite.policy import CHARACTERS, tiny_tokenizer
from adaback_lite.rollout import Rollouts
from adaback_lite.tasks import Parity
from tests.conftest import TINY
from tests.test_cli import hold_lock


def contents(folder) -> dict[str, bytes]:
    """Every file under a folder with its bytes, the lock aside."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.name != "lock"}


def sentence(result, *parts: str) -> str:
    """The one line of a refused command: status 2, nothing on stdout, every part in it."""
    status, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("adaback: warning: ")]
    assert status == 2 and out == "" and len(lines) == 1 and lines[0].startswith("adaback: "), result
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.fixture
def run(tiny) -> Path:
    """The folder of a finished run of two steps, with a checkpoint after each."""
    ab.train(tiny, progress=False)
    return Path(tiny["out"])


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--curriculm.tau", "0.3"), ("--curriculm.tau", "--curriculum.tau")),
        (("--curriculm.tau=0.3",), ("--curriculm.tau", "--curriculum.tau")),
        (("--tau", "0.3"), ("--tau", "--curriculum.tau")),
        (("--grpo.learning_rate", "0.3"), ("--grpo.learning_rate", "--help")),
        (("--curriculum.tau", "1.6"), ("curriculum.tau", "1.6", "between 0 and 1.5")),
        (("--grpo.lr", "0"), ("grpo.lr", "greater than 0")),
        (("--grpo.lr", "-1e-4"), ("grpo.lr", "-1e-4", "greater than 0")),
        (("--grpo.lr", "nan"), ("grpo.lr", "nan")),
        (("--grpo.lr", "abc"), ("grpo.lr", "abc", "number")),
        (("--grpo.lr",), ("--grpo.lr", "needs a value")),
        (("--seed", "-1"), ("seed", "-1", "greater than or equal to 0")),
        (("--seed", "1.5"), ("seed", "1.5")),
        (("--method", "adabak"), ("method", "adabak", "'adaback'")),
        (("--grpo.norm", "mean"), ("grpo.norm", "dr_grpo")),
        (("--grpo.scale_std", "perhaps"), ("grpo.scale_std", "perhaps")),
        (("--trainer.sft_lrs", "1e-3", "2"), ("trainer.sft_lrs", "less than or equal to 1")),
        (("--policy.width", "20", "--policy.heads", "4"), ("policy.width", "policy.heads")),
        (("--policy.heads", "4", "--policy.kv_heads", "3", "--policy.width", "64"), ("policy.heads", "policy.kv_heads")),
        (("--curriculum.min_hidden", "11", "--task.length", "5"), ("curriculum.min_hidden", "10 tokens")),
        (("--policy.quantize", "nf4"), ("policy.quantize nf4", "set policy.lora_rank")),
        (("--policy.lora_rank", "-1"), ("policy.lora_rank", "between 0 and 1024")),
        (("--policy.lora_dropout", "1"), ("policy.lora_dropout", "less than 1")),
        (("--policy.lora_targets", ""), ("policy.lora_targets",)),
        (("--task.name", "gsm8k"), ("policy.name is tiny", "task.name is gsm8k", "--preset cpu")),
        (("--task.name", "gsm9k"), ("task.name", "gsm9k", "'gsm8k'")),
        (("--task.max_new", "3"), ("task.max_new", "between 4 and 8192")),
        (("--preset", "cpu"), ("preset cpu", "parity", "leave --preset out")),
        (("--preset", "gup"), ("no preset 'gup'", "quick, cpu, gpu")),
        (("--preset",), ("--preset", "needs a value")),
        (("--perset", "cpu"), ("--perset", "'--preset'")),
        (("--version", "2"), ("version is 2", "reads version 1")),
        (("--out", ""), ("'out'",)),
    ],
)
def test_settings_on_the_command_line(command, tmp_path, monkeypatch, options, parts):
    monkeypatch.chdir(tmp_path)
    sentence(command("train", "parity", *options), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("trian", "parity"), ("'trian'", "'train'")),
        (("train", "partiy"), ("'partiy'", "'parity'")),
        (("train", "gsm9k"), ("'gsm9k'", "'gsm8k'")),
        (("train", "zzzz"), ("'zzzz'", "parity", "gsm8k", "deepscaler", ".yaml")),
        (("train", "--preset", "cpu"), ("preset cpu", "task.name is parity", "name another task")),
        (("train", "gsm8k", "--policy.name", "tiny"), ("policy.name is tiny", "task.name is gsm8k")),
        (("train", "gsm8k", "--policy.lora_rank", "0"), ("policy.quantize nf4", "policy.lora_rank")),
        (("train", "missing.yaml", "--preset", "cpu"), ("missing.yaml", "check the path")),
        (("train", "parity", "rl"), ("'rl'", "one word too many")),
        (("train", "missing.yaml"), ("missing.yaml", "check the path")),
        (("eval",), ("FOLDER",)),
        (("eval", "x", "--k", "0"), ("--k is 0",)),
        (("eval", "x", "--k", "one"), ("--k", "'one'")),
        (("eval", "x", "--k", "8", "--samples", "4"), ("pass@8", "--samples")),
        (("eval", "x", "--split", "train"), ("--split", "test or val")),
        (("eval", "x", "--n", "0"), ("--n is 0",)),
        (("eval", "x", "--sample", "4"), ("--sample", "--samples")),
        (("show",), ("FOLDER",)),
        (("base", "--quantize", "nf4"), ("no setting '--quantize'", "adaback base --help")),
        (("models", "smollm2"), ("'smollm2'", "one word too many")),
        (("models", "--get"), ("--get", "needs a value", "--get NAME")),
        (("models", "--get", "smolm2"), ("no listed model 'smolm2'", "'smollm2'")),
        (("models", "--get", "zzzz"), ("no listed model 'zzzz'", "smollm2, qwen2.5-0.5b, llama-3.2-1b", "owner/model")),
        (("modles",), ("'modles'", "'models'")),
        (("base", "--positions", "coupeld"), ("policy.positions", "coupeld", "coupled")),
        (("base", "--length", "0"), ("task.length", "between 1 and 64")),
    ],
)
def test_words_on_the_command_line(command, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    sentence(command(*words), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_real_process_prints_one_line_and_exits_2(tmp_path):
    result = subprocess.run([sys.executable, "-m", "adaback_lite", "train", "parity", "--curriculm.tau", "0.3"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "adaback: There is no setting '--curriculm.tau'. Did you mean '--curriculum.tau'?\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curriculm.tau": 0.3}, "no setting 'curriculm.tau'. Did you mean 'curriculum.tau'"),
        ({"curriculum": {"taw": 0.3}}, "no setting 'curriculum.taw'. Did you mean 'curriculum.tau'"),
        ({"sede": 1}, "no setting 'sede'. Did you mean 'seed'"),
        ({"seed.x": 1}, "no setting 'seed.x'"),
        ({"curriculum": 3}, "The setting 'curriculum'"),
        ({"grpo.group_size": 1}, "'grpo.group_size' is 1, but should be greater than or equal to 2. It lies between 2 and 1024."),
    ],
)
def test_settings_in_the_library(settings, message):
    with pytest.raises(ab.UserError, match=message.replace(".", r"\.")):
        ab.make_config(settings)


def test_numbers_as_text_are_numbers(tmp_path):
    """papermill -y and YAML itself give '1e-4' as text."""
    assert ab.make_config({"grpo.lr": "1e-4"}).grpo.lr == 1e-4
    file = tmp_path / "a.yaml"
    file.write_text("grpo:\n  lr: 1e-4\ntrainer:\n  max_steps: '20'\n")
    config = ab.load_config(file)
    assert (config.grpo.lr, config.trainer.max_steps) == (1e-4, 20)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [1, 2", ("cannot be read as YAML", "mend or replace")),
        ("- 1\n- 2\n", ("holds no settings",)),
        ("", ("holds no settings",)),
        ("method: rl\ncurriculum:\n  taw: 0.3\n", ("no setting 'curriculum.taw'", "'curriculum.tau'")),
        ("version: 2\nmethod: rl\n", ("version is 2", "reads version 1")),
        ("grpo:\n  lr: abc\n", ("grpo.lr", "abc")),
        ("1: 2\n", ("no setting '1'",)),
    ],
)
def test_configuration_files(command, tmp_path, text, parts):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    sentence(command("train", file, "--out", tmp_path / "run"), str(file), *parts)
    assert not (tmp_path / "run").exists()


def test_configuration_file_that_is_no_text(command, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"\xff\xfe\x00method")
    sentence(command("train", file), str(file), "cannot be read as YAML")
    sentence(command("train", tmp_path), str(tmp_path), "cannot be read as YAML")  # a folder


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["show", "eval"])
def test_missing_and_foreign_folders(command, tmp_path, name):
    sentence(command(name, tmp_path / "none"), f"no run in {tmp_path / 'none'}", "adaback train --out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    sentence(command(name, tmp_path / "mine"), "is not a run's folder", "config.yaml")
    assert contents(tmp_path) == {"mine/thesis.txt": b"years of work"}


def test_resume_without_a_run(command, tmp_path):
    sentence(command("train", "--resume", "--out", tmp_path / "none"), f"no run in {tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("extra", [(), ("--resume",)])
def test_training_into_a_foreign_folder(command, tiny, extra):
    folder = Path(tiny["out"])
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    sentence(command("train", "parity", tiny, *extra), str(folder), "holds files but no run", "choose another --out")
    assert contents(folder) == {"thesis.txt": b"years of work"} and not (folder / "lock").exists()


def test_a_file_as_out(command, tiny):
    Path(tiny["out"]).write_text("precious")
    sentence(command("train", "parity", tiny), "is a file", "choose another --out")
    assert Path(tiny["out"]).read_text() == "precious"


def test_out_inside_a_file(command, tiny):
    Path(tiny["out"]).write_text("precious")
    sentence(command("train", "parity", tiny, {"out": tiny["out"] + "/deeper"}), "cannot be written", "choose another --out")
    assert Path(tiny["out"]).read_text() == "precious"


def test_an_existing_run_is_not_overwritten(command, run, tiny):
    before = contents(run)
    sentence(command("train", "parity", tiny), str(run), "holds a run already", "--resume")
    assert contents(run) == before


def test_a_run_of_another_version(command, run, tiny):
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("version: 1", "version: 7"))
    before = contents(run)
    for words in (("show", run), ("eval", run), ("train", "--resume", "--out", run), ("train", "parity", tiny, "--resume")):
        sentence(command(*words), "config.yaml", "version is 7", "reads version 1")
    assert contents(run) == before


def test_resume_with_other_settings(command, run):
    before = contents(run)
    sentence(command("train", "--resume", "--out", run, "--grpo.lr", 0.1), str(run), "grpo.lr", "0.1", "choose another --out")
    sentence(command("train", "parity", "--resume", "--out", run, "--method", "rl"), "method", "rl")
    assert contents(run) == before


def test_a_run_that_another_process_writes(command, run):
    before = contents(run)
    with hold_lock(run):
        sentence(command("train", "--resume", "--out", run, "--trainer.max_steps", 3), str(run), "another process")
    assert contents(run) == before


def test_a_damaged_summary(command, run):
    (run / "summary.json").write_text('{"method": "ada')
    sentence(command("show", run), "summary.json is damaged", "--resume")


# ---------------------------------------------------------------- logs and checkpoints


def test_a_torn_last_line_is_dropped_with_a_warning(run):
    whole = ab.load_run(run).events
    with open(run / "events.jsonl", "a") as log:
        log.write('{"event": "step", "step": 3, "rol')
    with pytest.warns(UserWarning, match="the last line is torn"):
        assert ab.load_run(run).events == whole


def test_a_torn_last_line_does_not_stop_a_resume(command, run):
    (run / "summary.json").unlink()
    with open(run / "events.jsonl", "a") as log:
        log.write('{"event": "step", "step": 3, "rol')
    assert command("train", "--resume", "--out", run, "--trainer.max_steps", 3, "--quiet")[0] == 0
    assert [e["step"] for e in ab.load_run(run).events if e["event"] == "step"] == [1, 2, 3]


@pytest.mark.parametrize("bad", [b"garbage\n", b'{"event": "st\n', b"[1, 2]\n", b"{}\n", b"\xff\xfe\n", b"\n"])
def test_a_corrupted_line_is_refused_by_number(command, run, bad):
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    (run / "events.jsonl").write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
    sentence(command("show", run), "events.jsonl is damaged at line 3", "restore")


def test_a_corrupted_log_is_not_resumed(command, run):
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = b"x" * (len(lines[2]) - 1) + b"\n"
    (run / "events.jsonl").write_bytes(b"".join(lines))
    sentence(command("train", "--resume", "--out", run, "--trainer.max_steps", 3), "damaged at line 3")


def test_a_log_shorter_than_its_checkpoint(command, run):
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    (run / "events.jsonl").write_bytes(b"".join(lines[:2]))
    sentence(command("train", "--resume", "--out", run, "--trainer.max_steps", 3), "shorter than its checkpoint")


def damage(checkpoint: Path, how: str) -> None:
    match how:
        case "flipped bit":
            data = bytearray((checkpoint / "model.safetensors").read_bytes())
            data[-1] ^= 1
            (checkpoint / "model.safetensors").write_bytes(data)
        case "cut short":
            data = (checkpoint / "optimizer.safetensors").read_bytes()
            (checkpoint / "optimizer.safetensors").write_bytes(data[: len(data) // 2])
        case "file missing":
            (checkpoint / "model.safetensors").unlink()
        case "state missing":
            (checkpoint / "state.json").unlink()
        case "state torn":
            (checkpoint / "state.json").write_bytes((checkpoint / "state.json").read_bytes()[:40])
        case "other version":
            state = json.loads((checkpoint / "state.json").read_text())
            (checkpoint / "state.json").write_text(json.dumps({**state, "version": 99}))
        case "empty":
            shutil.rmtree(checkpoint)
            checkpoint.mkdir()


HOW = ["flipped bit", "cut short", "file missing", "state missing", "state torn", "other version", "empty"]


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_newest_checkpoint_is_passed_over(command, tiny, tmp_path, how):
    """The older one is used, with a warning, and the run ends as it would have."""
    ab.train({**tiny, "trainer.max_steps": 3}, progress=False)
    ab.train({**tiny, "trainer.max_steps": 4, "out": str(tmp_path / "whole")}, progress=False)
    run = Path(tiny["out"])
    damage(ab.load_run(run).checkpoints()[0], how)
    status, out, err = command("train", "--resume", "--out", run, "--trainer.max_steps", 4, "--quiet")
    assert status == 0 and "damaged checkpoint is passed over" in err and "00000003" in err
    models = [ab.load_run(folder).checkpoints()[0] / "model.safetensors" for folder in (run, tmp_path / "whole")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_all_checkpoints_damaged(command, run):
    for checkpoint in ab.load_run(run).checkpoints():
        damage(checkpoint, "flipped bit")
    before = contents(run)
    sentence(command("eval", run), "All checkpoints in", "damaged", "restore")
    assert contents(run) == before
    sentence(command("train", "--resume", "--out", run, "--trainer.max_steps", 3), "All checkpoints in", "damaged")
    assert {k: v for k, v in contents(run).items() if k.startswith(("checkpoints", "events"))} == {k: v for k, v in before.items() if k.startswith(("checkpoints", "events"))}


def test_no_checkpoint_yet(command, run):
    shutil.rmtree(run / "checkpoints")
    sentence(command("eval", run), "no checkpoint yet")


# ---------------------------------------------------------------- disk


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_a_checkpoint_is_written(command, tiny, monkeypatch):
    """The half-written one is removed, the one before stays whole, and when there is space again the run goes on."""
    plain = runs._write

    def write(path, data):
        if path.parent.name.endswith("00000002") and path.name.startswith("model"):
            path.write_bytes(data[:10])
            full()
        plain(path, data)

    monkeypatch.setattr(runs, "_write", write)
    sentence(command("train", "parity", tiny, "--quiet"), f"The disk that holds {tiny['out']} is full", "free some space")
    run = ab.load_run(tiny["out"])
    (left,) = (run.folder / "checkpoints").iterdir()
    assert left.name.startswith("step-") and left.name.endswith("00000001")
    monkeypatch.undo()
    assert command("train", "--resume", "--out", tiny["out"], "--quiet")[0] == 0 and run.summary["steps"] == 2


def test_full_disk_while_an_event_is_written(command, tiny, monkeypatch):
    """A real full device: the log's handle is one of /dev/full."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    plain = builtins.open

    def open_(file, *args, **named):
        return plain("/dev/full" if str(file).endswith("events.jsonl") else file, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_)
        patch.setattr(runs.RunWriter, "cut_log", lambda self, size: None)  # a device cannot be cut
        result = command("train", "parity", tiny, "--quiet")
    sentence(result, "disk that holds", "is full")


def test_full_disk_while_the_summary_is_written(command, tiny, monkeypatch):
    plain = runs._write
    monkeypatch.setattr(runs, "_write", lambda path, data: full() if path.name.startswith("summary") else plain(path, data))
    sentence(command("train", "parity", tiny, "--quiet"), "is full")
    monkeypatch.undo()
    run = ab.load_run(tiny["out"])
    assert run.summary is None and not list(run.folder.glob("*.writing"))
    assert command("train", "--resume", "--out", tiny["out"], "--quiet")[0] == 0 and run.summary["steps"] == 2


def test_full_disk_while_a_base_is_made(command, tmp_path, monkeypatch):
    """Nothing half-made is left that a later run would take for a base."""
    from adaback_lite import pretrain

    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path / "cache"))
    plain = pretrain.train_base
    monkeypatch.setattr(pretrain, "train_base", lambda *args, **named: plain(*args, **{**named, "steps": 1}))
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    shape = {"length": 4, "layers": 1, "width": 16, "heads": 2, "kv_heads": 2}
    status, out, err = command("base", shape)
    assert status == 2 and "is full" in err.splitlines()[-1] and "Traceback" not in err
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(command, tiny, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    sentence(command("train", "parity", tiny, {"out": tmp_path / "locked" / "run"}), "cannot be written", "permissions")


# ---------------------------------------------------------------- numbers


def test_nan_in_the_rl_loss(command, tiny, monkeypatch):
    """The step is not taken: the newest checkpoint's weights are finite, and the run goes on from it."""
    settings = {**tiny, "trainer.max_steps": 6, "grpo.entropy": 0.01}  # an entropy bonus gives every step an update
    plain, calls = trainer.policy_loss, []

    def loss(*args):
        calls.append(1)
        return plain(*args) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(trainer, "policy_loss", loss)
    sentence(command("train", "parity", settings, "--quiet"), "The loss became nan", "step 3", "lower grpo.lr")
    run = ab.load_run(tiny["out"])
    assert run.summary is None and run.checkpoints()[0].name.endswith("00000002")
    assert all(torch.isfinite(p).all() for p in run.load_policy()[0].parameters())
    monkeypatch.undo()
    assert command("train", "--resume", "--out", tiny["out"], "--quiet")[0] == 0 and run.summary["steps"] == 6


def test_nan_in_the_sft_loss(command, tiny, monkeypatch):
    plain = sft.rationale_loss
    monkeypatch.setattr(sft, "rationale_loss", lambda *args: (plain(*args)[0] * math.nan, 1))
    sentence(command("train", "parity", tiny, {"method": "sft"}, "--quiet"), "SFT loss became nan", "step 1", "trainer.sft_lrs")
    assert ab.load_run(tiny["out"]).summary is None


@pytest.mark.parametrize("rho", [1.5, -0.1, math.nan])
def test_a_curriculum_with_a_share_out_of_bounds(tiny, rho):
    class Wrong(ab.Curriculum):
        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), rho)

    with pytest.raises(ab.UserError, match=r"reveal\(\) must return 4 shares between 0 and 1"):
        ab.train(tiny, curriculum=Wrong(8), progress=False)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (0,)])
def test_a_curriculum_with_shares_of_the_wrong_shape(tiny, shape):
    class Wrong(ab.Curriculum):
        def reveal(self, sample_ids, step):
            return np.zeros(shape)

    with pytest.raises(ab.UserError, match=r"reveal\(\) must return 4 shares"):
        ab.train(tiny, curriculum=Wrong(8), progress=False)


def test_resume_with_a_curriculum_without_state(tiny):
    class Half:
        """No state_dict: it trains, but cannot go on."""

        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 0.5)

        def update(self, sample_ids, rho, reward):
            pass

    run = ab.train(tiny, curriculum=Half(), progress=False)
    before = contents(run.folder / "checkpoints")
    with pytest.raises(ab.UserError, match="cannot be resumed: its curriculum has no state_dict"):
        ab.train({**tiny, "trainer.max_steps": 3}, curriculum=Half(), resume=True, progress=False)
    assert contents(run.folder / "checkpoints") == before


def test_resume_with_another_curriculum(tiny):
    class Own(ab.Curriculum):
        def reveal(self, sample_ids, step):
            return np.full(len(sample_ids), 0.5)

        def state_dict(self):
            return {"something": "else"}

        def load_state_dict(self, state):
            if state != self.state_dict():
                raise ValueError("the saved state is another curriculum's")

    run = ab.train(tiny, progress=False)
    with pytest.raises(ab.UserError, match="cannot be resumed with this curriculum"):
        ab.train({**tiny, "trainer.max_steps": 3}, curriculum=Own(8), resume=True, progress=False)
    assert ab.load_run(run.folder).checkpoints()


# ---------------------------------------------------------------- outputs

L = 4
TASK = Parity(tiny_tokenizer(), L, n_train=1, n_val=1, n_test=1)
SAMPLE = TASK.train[0]
RIGHT = SAMPLE.rationale


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (RIGHT, "right"),
        ("", "unparseable"),
        (RIGHT[:-1], "unparseable"),
        (RIGHT + "0", "unparseable"),
        (RIGHT + " ", "unparseable"),
        (" " + RIGHT[1:], "unparseable"),
        (RIGHT[:-1] + "2", "unparseable"),
        (RIGHT[:2] + "=" + RIGHT[3:], "unparseable"),
        (RIGHT[:-1] + "\n", "unparseable"),
        (RIGHT[:-1] + "١", "unparseable"),  # a one, but not ours
        ("<bos>" + RIGHT, "unparseable"),
        (RIGHT[:3] + "<pad>" + RIGHT[3:], "unparseable"),
        (RIGHT[:-1] + str(1 - int(RIGHT[-1])), "wrong"),
        ("0" * 100_000, "unparseable"),
    ],
)
def test_verify_of_bad_outputs(output, kind):
    verdict = TASK.verify(SAMPLE, output)
    assert verdict.kind == kind and verdict.right == (kind == "right") and (kind == "right") == (verdict.why == "")


def judged(tokens: list[int], ended: bool = True, shown: int = 0):
    """The verdict on one rollout of these tokens, the end token added if it ended."""
    tokens = tokens + [2] * ended
    rollouts = Rollouts(torch.tensor([[tokens]]), torch.ones(1, 1, len(tokens), dtype=torch.bool), torch.tensor([[ended]]), 0.0)
    return judge(TASK, TASK.tokenizer, [SAMPLE], [shown], rollouts).verdicts[0][0]


IDS = TASK.rationale_ids(SAMPLE)


def test_judge_of_a_right_output():
    assert judged(IDS).kind == "right" and judged(IDS[4:], shown=4).kind == "right"


@pytest.mark.parametrize("foreign", [CHARACTERS.index(c) for c in ("<pad>", "<bos>", "=")])
@pytest.mark.parametrize("place", range(2 * L + 1))
def test_a_foreign_token_does_not_vanish(foreign, place):
    """With special tokens left out of the text, these would all pass for right."""
    assert judged(IDS[:place] + [foreign] + IDS[place:]).kind == "unparseable"
    if place < 2 * L:
        assert judged(IDS[:place] + [foreign] + IDS[place + 1 :]).kind == "unparseable"


def test_an_output_cut_at_the_limit_is_unparseable():
    """Even where all that was written is right: it never ended."""
    verdict = judged(IDS, ended=False)
    assert verdict.kind == "unparseable" and "length limit" in verdict.why


def test_an_empty_output():
    assert judged([]).kind == "unparseable"
    assert judged([], shown=2).kind == "unparseable"


# ---------------------------------------------------------------- models and tasks


def test_a_missing_model_folder(command, tiny, tmp_path):
    sentence(command("train", "parity", tiny, {"policy.name": tmp_path / "none"}), f"no model '{tmp_path / 'none'}'", "no folder", "no .gguf file", "'adaback models' lists")
    (tmp_path / "empty").mkdir()
    sentence(command("train", "parity", tiny, {"policy.name": tmp_path / "empty"}), f"no model in {tmp_path / 'empty'}", "config.json")
    assert not Path(tiny["out"]).exists()


@pytest.fixture
def model_folder(tmp_path) -> Path:
    from adaback_lite.config import PolicySettings
    from adaback_lite.policy import tiny_model

    folder = tmp_path / "model"
    tiny_model(PolicySettings(layers=1, width=16, heads=2, kv_heads=2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_folder_works(command, tiny, model_folder):
    assert command("train", "parity", tiny, {"policy.name": model_folder}, "--quiet")[0] == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_folder(command, tiny, model_folder, name):
    (model_folder / name).write_bytes((model_folder / name).read_bytes()[:30])
    sentence(command("train", "parity", tiny, {"policy.name": model_folder}, "--quiet"), f"The model in {model_folder} cannot be loaded", "copy or make it anew")
    assert not Path(tiny["out"]).exists()


def test_a_tokenizer_that_does_not_know_the_task(command, tiny, model_folder):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "<unk>": 4}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>").save_pretrained(model_folder)
    sentence(command("train", "parity", tiny, {"policy.name": model_folder}, "--quiet"), "no single token for '0'", "policy.name")


def test_a_task_too_short_for_its_inputs(command, tiny):
    sentence(command("train", "parity", tiny, {"task.length": 4}), "task.length is 4", "16 inputs", "raise task.length")
    assert not Path(tiny["out"]).exists()


def test_eval_on_more_problems_than_there_are(command, run):
    sentence(command("eval", run, "--n", 1000), "task.length is 5", "no more")


def test_tiny_settings_are_settings():
    """The tests' own settings go through the same check as a user's."""
    assert ab.make_config(TINY).task.length == 5
    with contextlib.suppress(ab.UserError):
        ab.make_config({**TINY, "nonsense": 1})
        pytest.fail("an unknown setting was accepted")
