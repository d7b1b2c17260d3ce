"""Runs in processes that are killed. A fork server imports torch once, so that a run costs a tenth of a second more than its steps."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import safetensors.torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["adaback_lite.trainer", "tests.helpers", "peft.tuners.lora.bnb"])  # peft and bitsandbytes take seconds too


def _train(config, die_at: int | None, log: str) -> None:
    """Train or resume; die by SIGKILL just before the `die_at`-th thing done to a file."""
    import adaback_lite as ab

    sys.stderr = open(log, "a")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    if die_at is not None:
        _die_before_file_operation(die_at)
    with contextlib.suppress(KeyboardInterrupt):
        ab.train(config, resume=True, progress=False)
        os._exit(0)
    os._exit(130)


def _die_before_file_operation(n: int) -> None:
    left = [n]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for module, names in ((os, ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "truncate")), (shutil, ("rmtree",)), (json, ("dumps",))):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))


def start(config, folder: Path, die_at: int | None = None):
    process = CONTEXT.Process(target=_train, args=(config, die_at, str(folder.parent / "stderr.txt")))
    process.start()
    return process


def finish(process, folder: Path, seconds: float = 120) -> int:
    """Wait for it; its exit status, negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "the run hangs"
    assert process.exitcode in (0, 130, -signal.SIGKILL), (folder.parent / "stderr.txt").read_text()[-2000:]
    return process.exitcode


def kill_when_log_has(process, folder: Path, size: int, delay: float, number=signal.SIGKILL) -> None:
    """Kill once the run's log has so many bytes, and a moment more; a busy machine then gives the same test as an idle one."""
    log, deadline = folder / "events.jsonl", time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline and not (log.exists() and log.stat().st_size >= size):
        time.sleep(0.001)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(process.pid, number)


def run_to_end(config, folder: Path) -> None:
    """Train without a disturbance, or resume to the end."""
    assert finish(start(config, folder), folder) == 0, (folder.parent / "stderr.txt").read_text()[-2000:]


def outcome(folder: Path) -> tuple[list[dict], bytes, dict]:
    """What must not depend on kills: events without times, the final weights, the summary."""
    from adaback_lite.runs import load_run, newest_checkpoint

    run = load_run(folder)
    events = [{k: v for k, v in e.items() if k != "wall"} for e in run.events if e["event"] in ("step", "sft", "sft_end", "eval", "diagnosis", "end")]
    tensors, state = newest_checkpoint(run)
    weights = safetensors.torch.save(dict(sorted((f"{part}.{k}", v) for part in tensors for k, v in tensors[part].items())))
    summary = {k: v for k, v in run.summary.items() if k not in ("wall_seconds", "machine")}
    return events, weights, summary | {"curriculum": state["curriculum"], "stage": state["stage"]}
