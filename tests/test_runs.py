"""A run's folder: a killed run goes on as if nothing had happened, and nothing half-written is ever taken for whole."""

import json
import os
import random
import shutil
import signal
import time
import warnings

import pytest
import torch

import adaback_lite as ab
from adaback_lite.config import make_config
from adaback_lite.control import Control
from adaback_lite.errors import UserError
from adaback_lite.runs import RunWriter, load_run, newest_checkpoint, read_checkpoint, read_events, write_atomically
from tests import crash
from tests.helpers import small_config, taught, taught_config
from tests.language import wide

METHODS = ["adaback", "sft+adaback", "frontier", "sft"]


def same(folder, expected):
    events, weights, rest = crash.outcome(folder)
    assert [(e["event"], e.get("step")) for e in events] == [(e["event"], e.get("step")) for e in expected[0]]
    assert events == expected[0]  # bit for bit: JSON keeps every float
    assert weights == expected[1] and rest == expected[2]


def undisturbed(tmp_path, method, **settings):
    """(configuration for another folder, outcome) of a run that nothing disturbs."""
    config = taught_config(tmp_path / "whole", **{"method": method, **settings})
    crash.run_to_end(config, tmp_path / "whole")
    return make_config(config.model_dump(), out=str(tmp_path / "killed")), crash.outcome(tmp_path / "whole")


def kill_at_random(tmp_path, config, rng, kills) -> int:
    """Start or resume, and kill at a random place of the log and a random moment after it, so many times; then run to the end. How many kills came in time."""
    folder, whole, hits = tmp_path / "killed", (tmp_path / "whole" / "events.jsonl").stat().st_size, 0
    for size in sorted(rng.uniform(0, whole) for _ in range(kills)):
        process = crash.start(config, folder)
        crash.kill_when_log_has(process, folder, int(size), rng.uniform(0, 0.02))
        hits += crash.finish(process, folder) != 0
    crash.run_to_end(config, folder)
    return hits


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments_and_resumed_is_the_undisturbed_run(tmp_path, method):
    config, expected = undisturbed(tmp_path, method)
    kinds = {e["event"] for e in expected[0]}
    assert kinds >= {"eval", "end"} | ({"sft"} if "sft" in method else set()) | ({"step"} if method != "sft" else set())
    assert kill_at_random(tmp_path, config, random.Random(method), kills=4) >= 1
    same(tmp_path / "killed", expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", METHODS)
def test_killed_many_times(tmp_path, method, seed):
    settings = {"trainer.max_steps": 60, "trainer.checkpoint_every": 3, "trainer.keep_checkpoints": 1 + seed % 2, "grpo.kl": 0.01 * (seed % 2), "grpo.passes": 1 + seed % 2}
    config, expected = undisturbed(tmp_path, method, **settings)
    assert kill_at_random(tmp_path, config, random.Random(f"{method} {seed}"), kills=15) >= 5
    same(tmp_path / "killed", expected)


# A LoRA run with everything that has random numbers or a second policy in it.
ADAPTER = {"policy.lora_rank": 4, "policy.lora_dropout": 0.3, "grpo.lr": 0.02, "grpo.kl": 0.05, "grpo.passes": 2}


@pytest.mark.parametrize("method", ["adaback", "sft+rl"])
def test_an_adapters_run_killed_and_resumed_is_the_undisturbed_run(tmp_path, method):
    config, expected = undisturbed(tmp_path, method, **ADAPTER)
    tensors = newest_checkpoint(load_run(tmp_path / "whole"))[0]
    assert set(tensors) == {"adapter_model", "optimizer"} | ({"winner"} if "sft" in method else set())
    assert all("lora_" in name for name in tensors["adapter_model"]) and any(t.abs().max() > 0 for n, t in tensors["adapter_model"].items() if "lora_B" in n)
    assert kill_at_random(tmp_path, config, random.Random(f"adapter {method}"), kills=3) >= 1
    same(tmp_path / "killed", expected)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"policy.quantize": "nf4", "policy.name": "wide"}, {"policy.checkpointing": True}, {"policy.sampling": "adapter"}], ids=str)
def test_an_adapters_run_killed_many_times(tmp_path, settings):
    settings = {k: wide() if v == "wide" else v for k, v in settings.items()}
    config, expected = undisturbed(tmp_path, "sft+adaback", **ADAPTER, **settings, **{"trainer.max_steps": 30, "trainer.checkpoint_every": 3})
    assert kill_at_random(tmp_path, config, random.Random(str(settings)), kills=8) >= 3
    same(tmp_path / "killed", expected)


def kill_before(tmp_path, config, expected, places):
    """For each n, in a folder of its own: a run killed before the n-th thing it does to a file, then resumed."""
    for n in places:
        folder = tmp_path / f"killed-{n}"
        own = make_config(config.model_dump(), out=str(folder))
        status = crash.finish(crash.start(own, folder, die_at=n), folder)
        if status == 0:
            return n
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crash.run_to_end(own, folder)
        same(folder, expected)
    return None


SHORT = {"trainer.max_steps": 4, "trainer.checkpoint_every": 2, "trainer.eval_every": 2, "trainer.sft_max_steps": 4, "trainer.sft_eval_every": 2, "trainer.sft_lrs": (0.01, 0.003)}


def test_killed_in_its_first_moments(tmp_path):
    """Before there is a checkpoint, a log, a configuration, even a folder."""
    config, expected = undisturbed(tmp_path, "adaback", **SHORT)
    assert kill_before(tmp_path, config, expected, [0, 2, 4, 5, 6, 8, 9]) is None


def test_killed_between_two_file_operations(tmp_path):
    """Places in the first and the last checkpoint; the slow test takes all."""
    config, expected = undisturbed(tmp_path, "adaback", **SHORT, **{"trainer.keep_checkpoints": 1})
    assert kill_before(tmp_path, config, expected, [16, 22, 26, 37, 39, 41, 44]) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adaback", "sft+adaback"])
def test_killed_before_every_single_file_operation(tmp_path, method):
    config, expected = undisturbed(tmp_path, method, **SHORT, **{"trainer.keep_checkpoints": 1})
    assert kill_before(tmp_path, config, expected, range(1000)) > 25  # the whole of a run was covered


@pytest.mark.slow
def test_an_adapters_run_killed_before_every_single_file_operation(tmp_path):
    config, expected = undisturbed(tmp_path, "adaback", **SHORT, **ADAPTER, **{"trainer.keep_checkpoints": 1})
    assert kill_before(tmp_path, config, expected, range(1000)) > 25


def test_an_adapter_resumes_with_another_way_to_sample_but_not_with_another_rank(tmp_path):
    """What only saves memory or time may differ on resume; it changes the last bits, so the runs are not compared."""
    settings = {**ADAPTER, "trainer.max_steps": 2}
    ab.train(taught_config(tmp_path / "a", **settings), progress=False)
    for name, value in (("policy.lora_rank", 8), ("policy.lora_alpha", 16.0), ("policy.lora_targets", "q_proj"), ("policy.lora_dropout", 0.1), ("policy.lora_rank", 0)):
        with pytest.raises(UserError, match=rf"was trained with {name}"):
            ab.train(taught_config(tmp_path / "a", **{**settings, "trainer.max_steps": 4, name: value}), resume=True, progress=False)
    run = ab.train(
        taught_config(tmp_path / "a", **{**settings, "trainer.max_steps": 4, "policy.sampling": "adapter", "policy.checkpointing": True}), resume=True, progress=False
    )
    assert run.summary["steps"] == 4 and (run.config.policy.sampling, run.config.policy.checkpointing) == ("adapter", True)


def test_an_adapter_does_not_resume_on_another_base(tmp_path):
    """The base's folder now holds a wider model: said in one sentence, and what was there stays."""
    folder = tmp_path / "base"
    shutil.copytree(wide(), folder)
    settings = {**ADAPTER, "policy.name": str(folder), "trainer.max_steps": 2}
    run = ab.train(small_config(tmp_path / "a", **settings), progress=False)
    kept = {p: p.read_bytes() for p in run.folder.rglob("*.safetensors")}
    shutil.rmtree(folder)
    shutil.copytree(taught(), folder)
    with pytest.raises(UserError, match="cannot be resumed: its checkpoint does not fit this model"):
        ab.train(small_config(tmp_path / "a", **{**settings, "trainer.max_steps": 4}), resume=True, progress=False)
    assert kept == {p: p.read_bytes() for p in run.folder.rglob("*.safetensors")}


@pytest.mark.parametrize("method", ["adaback", "sft+adaback", "frontier"])
def test_ctrl_c_writes_a_checkpoint_and_resumes(tmp_path, method):
    config, expected = undisturbed(tmp_path, method, **{"trainer.max_steps": 40, "trainer.checkpoint_every": 1000})
    folder, where = tmp_path / "killed", []
    for stop_at in ("sft", "step", "step"):
        if stop_at == "sft" and method != "sft+adaback":
            continue
        process, log, lines = crash.start(config, folder), folder / "events.jsonl", 0
        before = log.read_bytes().count(b'{"event": "step"') if log.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            text = log.read_bytes() if log.exists() else b""
            lines = text.count(b'{"event": "%s"' % stop_at.encode())
            if lines > (before if stop_at == "step" else 0) + 1:
                break
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGINT)
        assert crash.finish(process, folder) == 130
        last = load_run(folder).events[-1]
        assert last["event"] == "checkpoint" and load_run(folder).summary is None
        state = newest_checkpoint(load_run(folder))[1]
        assert (state["stage"], state["step"]) == (last["stage"], last["step"])
        where.append((state["stage"], state["step"], state["sft"]["step"]))
    assert len(set(where)) == len(where) and where[-1][1] > 0
    assert method != "sft+adaback" or where[0][0] == "sft"
    crash.run_to_end(config, folder)
    same(folder, expected)


def test_a_second_ctrl_c_acts_at_once_and_the_run_still_resumes():
    from adaback_lite.trainer import Interrupts

    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_resumed_is_left_alone_and_a_longer_one_goes_on(tmp_path):
    short = taught_config(tmp_path / "a", **{"trainer.max_steps": 8})
    long = taught_config(tmp_path / "a", **{"trainer.max_steps": 12})
    ab.train(short, progress=False)
    log = (tmp_path / "a" / "events.jsonl").read_bytes()
    ab.train(short, resume=True, progress=False)
    assert (tmp_path / "a" / "events.jsonl").read_bytes() == log
    ab.train(long, resume=True, progress=False)
    ab.train(taught_config(tmp_path / "b", **{"trainer.max_steps": 12}), progress=False)
    same(tmp_path / "a", crash.outcome(tmp_path / "b"))


def test_resume_with_another_setting_is_refused_and_changes_nothing(tmp_path):
    ab.train(taught_config(tmp_path / "a", **{"trainer.max_steps": 2}), progress=False)
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"grpo\.lr 0\.003, not 0\.01"):
        ab.train(taught_config(tmp_path / "a", **{"grpo.lr": 0.01, "trainer.max_steps": 9}), resume=True, progress=False)
    with pytest.raises(UserError, match="holds a run already"):
        ab.train(taught_config(tmp_path / "a"), progress=False)
    assert before == {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}


@pytest.mark.parametrize("method", ["sft", "sft+rl", "adaback"])
def test_the_newest_checkpoint_is_the_trained_model(tmp_path, method):
    """What `adaback eval` and the charts load: for sft the winner of the sweep, not the last weights on the way there."""
    config = taught_config(tmp_path / "a", **{"method": method, "trainer.checkpoint_every": 3})
    run = ab.train(config, progress=False)
    tensors, state = newest_checkpoint(run)
    assert (state["stage"], state["step"]) == (("done", 0) if method == "sft" else ("rl", 12))
    if method == "sft":
        assert all(torch.equal(tensors["model"][k], v) for k, v in tensors["winner"].items())
    model, tokenizer = run.load_policy()
    from adaback_lite.evaluate import evaluate
    from adaback_lite.trainer import build_task

    task = build_task(config, tokenizer)
    judged = evaluate(model, tokenizer, task, task.test, 1, config.seed)
    assert sum(v[0].right for v in judged.verdicts) == run.summary["test_right"]
    assert judged.share("unparseable") == run.summary["test_unparseable"]


def test_config_yaml_alone_gives_the_same_run_again(tmp_path):
    run = ab.train(taught_config(tmp_path / "a", **{"trainer.max_steps": 5, "method": "sft+adaback"}), progress=False)
    again = ab.load_config(run.folder / "config.yaml")
    ab.train(make_config(again.model_dump(), out=str(tmp_path / "b")), progress=False)
    same(tmp_path / "b", crash.outcome(tmp_path / "a"))


def writer(tmp_path, resume=False, **settings):
    w = RunWriter(tmp_path / "run", taught_config(tmp_path / "run", **settings))
    w.open(resume)
    return w


TENSORS = {"model": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"0.step": torch.tensor(3.0)}, "best": {}}


def test_checkpoint_round_trip_and_how_many_are_kept(tmp_path):
    w = writer(tmp_path, **{"trainer.keep_checkpoints": 2})
    numbers = {"x": 0.1 + 0.2, "curriculum": {"rng": {"state": 2**127 + 1}}}
    for i in range(4):
        w.emit("step", step=i)
        w.save_checkpoint(f"{i:08d}", TENSORS, {"i": i, **numbers})
    assert [p.name for p in w.checkpoints()] == ["step-00000003", "step-00000002"]
    tensors, state = newest_checkpoint(w)
    assert torch.equal(tensors["model"]["a"], TENSORS["model"]["a"]) and tensors["optimizer"]["0.step"].shape == () and tensors["best"] == {}
    assert state["i"] == 3 and state["x"] == numbers["x"] and state["curriculum"] == numbers["curriculum"]
    assert state["log_size"] == w.log_size() == (w.folder / "events.jsonl").stat().st_size
    w.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "state cut", "state version", "state gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    w = writer(tmp_path)
    for i in range(2):
        w.save_checkpoint(f"{i:08d}", TENSORS, {"i": i})
    w.close()
    newest = w.checkpoints()[0]
    file = newest / ("state.json" if "state" in damage else "model.safetensors")
    data = file.read_bytes()
    if "gone" in damage:
        file.unlink()
    elif "cut" in damage:
        file.write_bytes(data[:-3])
    elif "version" in damage:
        file.write_bytes(data.replace(b'"version": 1', b'"version": 7'))
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="step-00000001"):
        read_checkpoint(newest)
    with pytest.warns(UserWarning, match="damaged checkpoint is passed over"):
        assert newest_checkpoint(w)[1]["i"] == 0
    for file in w.checkpoints()[1].iterdir():
        file.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="All checkpoints"):
        newest_checkpoint(w)


def test_log_torn_and_damaged(tmp_path):
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    path.write_bytes(b'{"event": "a", "x": 1}\n{"event": "b"}\n')
    assert [e["event"] for e in read_events(path)] == ["a", "b"]
    for torn in (b"{", b'{"event": "c"}', b"\xff\x00"):  # a whole object without its line's end may have lost digits: torn too
        path.write_bytes(b'{"event": "a", "x": 1}\n' + torn)
        with pytest.warns(UserWarning, match="last line is torn"):
            assert [e["event"] for e in read_events(path)] == ["a"]
    for bad in (b"{", b"[]", b"3", b'{"x": 1}', b"", b"\xff"):
        path.write_bytes(b'{"event": "a"}\n' + bad + b'\n{"event": "b"}\n')
        with pytest.raises(UserError, match="damaged at line 2"):
            read_events(path)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    w = writer(tmp_path)
    w.emit("step", step=1)
    size = w.log_size()
    w.emit("step", step=2)
    w._log.write(b'{"event": "st')
    w._log.flush()
    w.cut_log(size)
    w.emit("step", step=2)
    assert [e["step"] for e in w.events] == [1, 2]
    with pytest.raises(UserError, match="shorter than its checkpoint says"):
        w.cut_log(10_000)
    w.close()


def test_one_writer_at_a_time(tmp_path):
    first = writer(tmp_path)
    first.emit("step", step=1)
    with pytest.raises(UserError, match="being written by another process"):
        writer(tmp_path, resume=True)
    first.close()
    second = writer(tmp_path, resume=True)
    assert [e["step"] for e in second.events] == [1]
    second.close()


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["summary.json"]


def test_events_hold_what_the_module_promises(tmp_path):
    run = ab.train(taught_config(tmp_path / "a", **{"method": "sft+adaback", "trainer.max_steps": 3}), progress=False)
    by_kind = {}
    for e in run.events:
        assert json.loads(json.dumps(e)) == e
        by_kind.setdefault(e["event"], e)
    assert set(by_kind) == {"start", "sft", "eval", "sft_end", "checkpoint", "step", "end"}
    assert by_kind["start"].keys() >= {"method", "seed", "samples", "machine"}
    assert by_kind["sft"].keys() >= {"lr", "step", "loss", "val_loss", "trained_tokens"}
    assert by_kind["eval"].keys() >= {"stage", "step", "rollouts", "n", "right", "accuracy"}
    step = by_kind["step"]
    assert all(len(step[k]) == 6 for k in ("ids", "rho", "reward", "shown", "low", "high"))
    assert step.keys() >= {"step", "rollouts", "generated_tokens", "mean_reward", "mean_rho", "grad_groups", "entropy", "cut", "unparseable", "loss", "grad_norm"}
    assert run.summary.keys() >= {"method", "seed", "steps", "rollouts", "generated_tokens", "wall_seconds", "test_accuracy", "test_accuracy_ci95", "stopped_by"}


def test_a_refused_resume_leaves_a_finished_run_as_it_was(tmp_path):
    """Its curriculum was the user's own, and is not given again: neither the summary nor the settings may be gone."""
    config = taught_config(tmp_path / "run", **{"trainer.max_steps": 4})

    class Own(ab.Curriculum):
        def __init__(self):
            super().__init__(config.task.n_train)
            self.extra = 1

    run = ab.train(config, curriculum=Own(), progress=False)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with pytest.raises(ab.UserError, match="cannot be resumed with this curriculum"):
        ab.train(taught_config(tmp_path / "run", **{"trainer.max_steps": 9}), resume=True, progress=False)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
    assert run.events[0]["curriculum"] == "Own"


def test_a_kill_between_the_two_renames_of_a_checkpoint_loses_none(tmp_path):
    config = taught_config(tmp_path / "run", **{"trainer.max_steps": 4})
    with pytest.raises(KeyboardInterrupt):
        ab.train(config, progress=False, control=Control(stop_at=2))
    (newest,) = ab.Run(config.out).checkpoints()
    newest.rename(newest.with_name(newest.name.replace("step-", "writing-old-")))
    run = ab.train(config, resume=True, progress=False)
    assert [e["step"] for e in run.events if e["event"] == "resume"] == [2]
