"""adaback_lite.trl_train: our settings for TRL, and real processes: two of them, killed, resumed, against one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import safetensors.torch
import torch

from adaback_lite import UserError, make_config, train
from adaback_lite.build import build_policy, build_task
from adaback_lite.policy import load_tokenizer, trained_tensors
from adaback_lite.runs import Run
from adaback_lite.sft import batch_ids
from adaback_lite.tables import run_facts
from adaback_lite.trl import from_task
from adaback_lite.trl_study import TWO, kill_all, steps_done
from adaback_lite.trl_train import grpo_arguments, in_our_order, main, more_arguments

from .conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
SEQUENTIAL = {**TINY, "policy.positions": "sequential", "grpo.group_size": 4}


def task_of(**settings):
    config = make_config({**SEQUENTIAL, **settings})
    return config, build_task(config, build_policy(config)[1])


# ---------------------------------------------------------------- settings


def test_a_step_of_ours_is_a_generation_batch_and_a_step_of_trl():
    config, task = task_of(**{"trainer.batch_size": 4, "trainer.update_tokens": 100, "grpo.norm": "dapo", "grpo.scale_std": False, "grpo.kl": 0.1, "grpo.passes": 2})
    a = grpo_arguments(config, task, 2)
    # 4 samples x 4 rollouts over 2 processes: 8 rows each, of at most 7 + 10 + 11 = 28 tokens, so 2 at once (4 would be 112)
    assert (a["per_device_train_batch_size"], a["gradient_accumulation_steps"], a["num_generations"], a["max_completion_length"]) == (2, 4, 4, 11)
    assert (a["loss_type"], a["scale_rewards"], a["beta"], a["num_iterations"], a["learning_rate"]) == ("dapo", "none", 0.1, 2, config.grpo.lr)
    assert (a["use_cpu"], a["bf16"], a["gradient_checkpointing"], a["chat_template_kwargs"], a["shuffle_dataset"]) == (True, False, False, None, False)
    assert grpo_arguments(*task_of(**{"trainer.batch_size": 100}), 1)["gradient_accumulation_steps"] == 1  # all 8 samples, which fit at once


@pytest.mark.parametrize("n_val, processes, each", [(4, 1, 4), (256, 2, 64), (6, 4, 1), (3, 2, 1)])
def test_evaluation_batches_fit_the_problems(n_val, processes, each):
    config, task = task_of(**{"task.n_val": n_val, "task.length": 12, "trainer.batch_size": 4})
    assert grpo_arguments(config, task, processes)["per_device_eval_batch_size"] == each


@pytest.mark.parametrize(
    "settings, processes, sentence",
    [
        ({"grpo.entropy": 0.1}, 1, "grpo.entropy is 0.1, but TRL has no such bonus; set it to 0"),
        ({}, 3, "A step has 16 rollouts, which 3 processes cannot share evenly; change trainer.batch_size or --num_processes"),
    ],
)
def test_what_trl_cannot_do_is_refused(settings, processes, sentence):
    with pytest.raises(UserError, match=sentence):
        grpo_arguments(*task_of(**settings), processes)


def test_samples_come_as_our_own_trainer_visits_them():
    config, task = task_of(**{"trainer.max_steps": 5, "trainer.batch_size": 3})
    ordered = in_our_order(from_task(task), config)
    assert ordered["id"] == [f"train/{i}" for step in range(5) for i in batch_ids(8, 3, config.seed, step)]


def test_further_arguments_of_trl_are_read_as_yaml():
    assert more_arguments(["use_vllm=true", "vllm_mode=colocate", "vllm_gpu_memory_utilization=0.3"], {}) == {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3,
    }  # fmt: skip


# ---------------------------------------------------------------- one process


def words(settings: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six steps by TRL in this process."""
    folder = tmp_path_factory.mktemp("trl") / "run"
    assert main(["parity", *words(SEQUENTIAL | {"trainer.max_steps": 6, "out": folder})]) == 0
    return Run(folder)


def test_a_run_by_trl_is_a_run(run):
    summary, events = run.summary, run.events
    assert (summary["steps"], summary["rollouts"], summary["test_n"], summary["stopped_by"]) == (6, 96, 4, "max_steps")
    assert summary["test_accuracy_ci95"][0] <= summary["test_accuracy"] <= summary["test_accuracy_ci95"][1] and summary["machine"]["processes"] == 1
    assert [e["step"] for e in events if e["event"] == "eval"] == [0, 2, 4, 6] and run.config.policy.positions == "sequential"
    assert run_facts(run)["state"] == "finished"


def test_samples_and_first_draws_are_our_trainers(run, tmp_path):
    ours = train({**SEQUENTIAL, "trainer.max_steps": 6, "out": str(tmp_path / "ours")}, progress=False)
    steps = [[e for e in r.events if e["event"] == "step"] for r in (run, ours)]
    assert [e["ids"] for e in steps[0]] == [[f"train/{i}" for i in e["ids"]] for e in steps[1]]
    assert steps[0][0]["rho"] == steps[1][0]["rho"] and steps[0][0]["shown"] == steps[1][0]["shown"]


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(run, capsys):
    before = (run.folder / "events.jsonl").read_bytes()
    assert main(["--resume", f"--out={run.folder}"]) == 0 and (run.folder / "events.jsonl").read_bytes() == before
    assert main(["--resume", f"--out={run.folder}", "--trainer.max_steps=8"]) == 0
    assert run.summary["steps"] == 8 and [e["step"] for e in run.events if e["event"] == "step"] == list(range(1, 9))
    assert "8 steps, 128 rollouts, stopped by max_steps" in capsys.readouterr().out


def test_its_policy_is_read_from_trls_checkpoints(run, tmp_path, command):
    model, _, state = run.load_checkpoint()
    newest = run.folder / f"checkpoint-{run.steps_done}"
    saved = safetensors.torch.load_file(newest / "model.safetensors")
    assert (state["stage"], state["step"]) == ("rl", run.steps_done) and all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    status, out, _ = command("eval", run.folder)
    assert status == 0 and f"step {run.steps_done}" in out
    ours = train({**SEQUENTIAL, "out": str(tmp_path / "ours")}, progress=False)
    status, out, _ = command("compare", run.folder, ours.folder)
    assert status == 0 and "4 problems" in out


def test_weights_that_cannot_be_read_are_one_sentence(run, tmp_path, command):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    newest = folder / f"checkpoint-{run.steps_done}"
    for name in ("rng_state.pth", "optimizer.pt", "config.json"):
        (newest / name).unlink()
    assert command("eval", folder)[0] == 0  # none of them is needed
    saved = safetensors.torch.load_file(newest / "model.safetensors")
    del saved["model.layers.0.self_attn.q_proj.weight"]  # transformers would draw it at random
    for content in (safetensors.torch.save(saved), b"torn"):
        (newest / "model.safetensors").write_bytes(content)
        status, _, error = command("eval", folder)
        assert status == 2 and f"{newest / 'model.safetensors'} is damaged or not of this policy" in error and error.count("\n") == 1
    (newest / "model.safetensors").unlink()
    status, _, error = command("eval", folder)
    assert status == 2 and f"{newest} holds no model.safetensors, as where DeepSpeed or FSDP saves shards" in error
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").write_text('{"global_st')
    status, _, error = command("eval", folder)
    assert status == 2 and f"{folder} has no checkpoint yet; train longer, or lower trainer.checkpoint_every" in error


def test_commands_that_cannot_read_it_say_so(run, tmp_path, command):
    status, _, error = command("replay", run.folder, {"out": tmp_path / "again"})
    assert status == 2 and "is a run of TRL, which our own trainer cannot train again" in error and not (tmp_path / "again").exists()
    shutil.copy(run.folder / "events.jsonl", tmp_path)
    status, _, error = command("show", tmp_path)
    assert status == 2 and "is the folder of a TRL script, which keeps no config.yaml" in error


def test_fewer_steps_than_were_taken_are_refused_and_nothing_is_changed(run, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(run.folder, folder)
    (folder / "summary.json").unlink()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["--resume", f"--out={folder}", "--trainer.max_steps=3"]) == 2
    assert "steps already, so it cannot end at trainer.max_steps 3; give a number above" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_several_passes_over_a_batch_are_still_one_step_of_ours(tmp_path):
    """TRL counts a step for each pass; everything that is said in our steps keeps its meaning."""
    settings = SEQUENTIAL | {"trainer.max_steps": 4, "grpo.passes": 2, "out": tmp_path / "run"}
    assert main(["parity", *words(settings)]) == 0
    run = Run(tmp_path / "run")
    assert (run.summary["steps"], run.summary["rollouts"]) == (4, 64) and [e["step"] for e in run.events if e["event"] == "eval"] == [0, 2, 4]
    assert sorted(p.name for p in run.folder.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    before = without_times(run.folder)
    (run.folder / "summary.json").unlink()
    assert main(["parity", *words(settings), "--resume"]) == 0 and without_times(run.folder) == before


def test_outputs_are_filed_with_what_was_revealed(tmp_path, capsys):
    settings = SEQUENTIAL | {"trainer.max_steps": 5, "trainer.eval_every": 2, "task.n_val": 32, "trainer.batch_size": 4, "task.length": 12, "out": tmp_path / "run"}
    assert main(["parity", *words(settings), "--trl", "log_completions=true"]) == 0
    tables = {step: pandas.read_parquet(tmp_path / "run" / "completions" / f"completions_0000{step}.parquet") for step in (1, 2, 3)}
    steps = {e["step"]: e for e in Run(tmp_path / "run").events if e["event"] == "step"}
    assert list(tables[1]["rho"]) == [rho for rho in steps[1]["rho"] for _ in range(4)] and [len(text) for text in tables[1]["revealed"]] == [n for n in steps[1]["shown"] for _ in range(4)]
    assert set(tables[2]["revealed"]) == {""} and any(tables[1]["revealed"]) and any(tables[3]["revealed"])  # after step 2 the held-out inputs' outputs
    assert "Completion" not in capsys.readouterr().out


def test_killed_before_its_summary_a_run_ends_as_it_did(run, tmp_path):
    whole, folder = without_times(run.folder), tmp_path / "again"
    shutil.copytree(run.folder, folder)
    (folder / "summary.json").unlink()
    assert main(["--resume", f"--out={folder}"]) == 0
    assert without_times(folder) == whole and Run(folder).summary["test_right"] == run.summary["test_right"]


def test_each_trainer_refuses_the_others_run(run, tmp_path, capsys):
    assert main(["parity", f"--out={run.folder}"]) == 2
    assert capsys.readouterr().err == f"adaback: {run.folder} holds a run already; add --resume to go on with it, or choose another --out.\n"
    config = make_config({**SEQUENTIAL, "trainer.max_steps": 9, "out": str(run.folder)})
    (run.folder / "summary.json").rename(tmp_path / "summary.json")  # as if it had been stopped
    assert run_facts(run)["state"] == f"stopped; go on with: python -m adaback_lite.trl_train --resume --out {run.folder}"
    with pytest.raises(UserError, match=f"holds a run that TRL trains; python -m adaback_lite.trl_train --resume --out {run.folder} goes on with it"):
        train(config, resume=True, progress=False)
    (tmp_path / "summary.json").rename(run.folder / "summary.json")
    ours = train({**SEQUENTIAL, "out": str(tmp_path / "ours")}, progress=False)
    assert main(["--resume", f"--out={ours.folder}", "--trainer.max_steps=9"]) == 2
    assert "holds a run of our own trainer; adaback train --resume --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["parity", "--method=sft+rl"], "method is sft+rl, but here only the RL stage runs; train with TRL's SFTTrainer first, and name its result as policy.name."),
        (["parity", "--policy.positions=coupled"], "TRL numbers positions one after the other; make the parity task with policy.positions sequential."),
        (["parity", "--gropu=3"], "--gropu"),
        (["parity", "--policy.positions=sequential", "--trl", "use_vlm=true"], "GRPOConfig has no argument 'use_vlm'; did you mean 'use_vllm'?"),
        (["parity", "--policy.positions=sequential", "--trl", "learning_rate=1"], "--trl learning_rate is made from our own settings; change those ('--help' lists them)."),
        (["parity", "--policy.positions=sequential", "--trl", "per_device_eval_batch_size=3"], "--trl per_device_eval_batch_size is made from our own settings"),
        (["parity", "--policy.positions=sequential", "--trl", "generation_batch_size=7"], "TRL refuses these settings: generation_batch_size (7) must be divisible by"),
        (["parity", "--policy.positions=sequential", "--policy.lora_rank=2", "--policy.lora_targets=q_proj,lm_head"], "TRL refuses these settings: "),
        (["pariti"], "There is no task or file 'pariti'. Did you mean 'parity'?"),
    ],
)
def test_mistakes_are_one_sentence_and_status_two(argv, sentence, tmp_path, capsys):
    assert main([*argv, f"--out={tmp_path / 'x'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("adaback: ") and sentence in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


# ---------------------------------------------------------------- several processes


def launch(processes: int, module: str, *argv):
    """The processes' launcher, with its output; in a session of its own, as a shell starts it."""
    command = [sys.executable, *(TWO if processes > 1 else []), "-m", module, *map(str, argv)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def finish(process) -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out[-3000:]
    return out


def without_times(folder) -> list[dict]:
    return [{k: v for k, v in e.items() if k not in ("wall", "machine")} for e in Run(folder).events if e["event"] != "resume"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adaback", "frontier"])
def test_the_curriculum_of_two_processes_is_that_of_one(tmp_path, method):
    """The same state to the bit in every checkpoint, and the same events, where rewards depend on sample and share alone."""
    for n in (1, 2):
        finish(launch(n, "tests.trl_ranks", tmp_path / str(n), method))
    one, two = ([{k: v for k, v in e.items() if k != "generated_tokens"} for e in without_times(tmp_path / n)] for n in "12")  # what is written is random
    assert one == two and len([e for e in one if e["event"] == "step"]) == 8
    for step in (2, 4, 6, 8):
        one, two = (json.loads((tmp_path / n / f"checkpoint-{step}" / "trainer_state.json").read_text())["stateful_callbacks"]["CurriculumGRPO"]["attributes"] for n in "12")
        assert one["curriculum"] == two["curriculum"] and one["batches"] == two["batches"] == step and (one["facts"]["processes"], two["facts"]["processes"]) == (1, 2)
    assert (tmp_path / "2" / "checkpoint-8" / "rng_state_1.pth").is_file()  # two there were
    # Resumed in the third epoch of a script that shuffles: the same samples as before.
    whole, state = without_times(tmp_path / "2"), two["curriculum"]
    for step in (6, 7, 8):
        shutil.rmtree(tmp_path / "2" / f"checkpoint-{step}")
    finish(launch(2, "tests.trl_ranks", tmp_path / "2", method))
    ended = json.loads((tmp_path / "2" / "checkpoint-8" / "trainer_state.json").read_text())["stateful_callbacks"]["CurriculumGRPO"]["attributes"]
    assert without_times(tmp_path / "2") == whole and ended["curriculum"] == state


LONGER = SEQUENTIAL | {"trainer.max_steps": 40, "trainer.checkpoint_every": 5, "trainer.eval_every": 10}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folders = {}

    def of(processes):
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp("whole") / "run"
            finish(launch(processes, "adaback_lite.trl_train", "parity", *words(LONGER | {"out": folders[processes]})))
        return folders[processes]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("moment", [3, 12, 27])
def test_killed_and_resumed_is_undisturbed(processes, moment, undisturbed, tmp_path):
    """SIGKILL for all processes at a random moment after a step: before the first checkpoint, in a later pass over the samples, late. Then --resume: event for event the same, weights too."""
    argv, folder = ["parity", *words(LONGER | {"out": tmp_path / "run"})], tmp_path / "run"
    process = launch(processes, "adaback_lite.trl_train", *argv)
    while process.poll() is None and steps_done(folder) < moment:
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng(moment).random()) * 0.2)
    kill_all(process.pid)
    assert process.wait() in (-signal.SIGKILL, 1) and not (folder / "summary.json").exists()
    finish(launch(processes, "adaback_lite.trl_train", *argv, "--resume"))
    whole = undisturbed(processes)
    assert without_times(folder) == without_times(whole)
    assert (folder / "checkpoint-40" / "model.safetensors").read_bytes() == (whole / "checkpoint-40" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_another_number_of_processes_is_refused(undisturbed):
    folder = undisturbed(2)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    process = launch(1, "adaback_lite.trl_train", "--resume", f"--out={folder}", "--trainer.max_steps=45")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 2 and {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before  # config.yaml and summary.json too
    assert run_facts(Run(folder))["state"] == "finished"
    assert "adaback: The checkpoint was written by 2 processes and is resumed by 1, but it holds a random state for each of them; launch with --num_processes 2" in out


# ---------------------------------------------------------------- a language model


@pytest.mark.slow
def test_smollm2_with_lora_on_gsm_symbolic(tmp_path, smollm2):
    """Prompts are our own task's, token for token: one start, one open assistant turn. Only the adapter moves."""
    small = {"task.n_train": 4, "task.n_val": 1, "task.n_test": 1, "task.max_new": 24, "task.shots": 0, "grpo.group_size": 2, "trainer.threads": 1}
    assert main(["gsm-symbolic", "--preset", "quick", *words(small | {"out": tmp_path / "run"})]) == 0
    run = Run(tmp_path / "run")
    assert [e["step"] for e in run.events if e["event"] == "step"] == [1, 2] and (run.folder / "checkpoint-2" / "adapter_model.safetensors").is_file()
    saved = safetensors.torch.load_file(run.folder / "checkpoint-2" / "adapter_model.safetensors")
    read = trained_tensors(run.load_policy()[0])
    assert saved.keys() == read.keys() and all(torch.equal(saved[name], read[name]) for name in saved)
    config = run.config
    task = build_task(config, load_tokenizer(config.policy))
    tokenizer = task.tokenizer
    for sample in task.train:
        ids = tokenizer.apply_chat_template(task.as_prompt(sample), add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        assert ids == task.prompt_ids(sample)[0]
        assert tokenizer.decode(ids).count("<|im_start|>assistant") == 1 and tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
