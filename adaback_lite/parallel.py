"""Several runs at once, as processes of one thread each."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from .config import Config, make_config, override
from .errors import UserError
from .runs import Run


def train_many(configs: list[Config | dict], jobs: int = 2, resume: bool = True, progress: bool = True) -> list[Run]:
    """Train every configuration, `jobs` at a time, and return the runs in the same order.

    With `resume`, a run that was killed goes on where it was, and a finished one is not trained again: call it twice and the
    second call costs nothing. Each process has one CPU thread, so that results do not depend on `jobs`.
    Raises UserError when two configurations share a folder; an error in one run is raised after the others have finished.
    """
    configs = [override(c if isinstance(c, Config) else make_config(c), {"trainer.threads": 1}) for c in configs]
    folders = [Path(c.out).resolve() for c in configs]
    if len(set(folders)) < len(folders):
        raise UserError("Two of the runs have the same folder; give each its own 'out'.")
    failures = []
    # A fresh interpreter for each worker: forking a process in which torch has started its threads can hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(stop,)) as pool:
        futures = {pool.submit(_train_one, c, resume): c for c in configs}
        try:
            with tqdm(total=len(configs), disable=not progress, unit="run", desc="runs", mininterval=5) as bar:
                for future in as_completed(futures):
                    bar.update()
                    if future.exception() is not None:
                        failures.append((futures[future].out, future.exception()))
        except KeyboardInterrupt:  # the workers finish their step and write a checkpoint, and start no others
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if failures:
        out, error = failures[0]
        raise UserError(f"{len(failures)} of {len(configs)} runs failed, first {out}: {error}") from error
    return [Run(c.out) for c in configs]


_stop = None  # in a worker: set when all are to stop
_parent = 0  # in a worker: the process that started it


def _start_worker(stop) -> None:
    """Leave the terminal's process group: Ctrl-C is the parent's, who passes it on as `stop`. A worker that it hit between two
    runs would die, and a pool that loses one worker kills the others."""
    global _stop, _parent
    _stop, _parent = stop, os.getppid()
    os.setpgrp()


def _train_one(config: Config, resume: bool) -> None:
    """One run in a worker. It asks after each event whether to stop, and then stops as on Ctrl-C; also when its parent is gone."""
    from .trainer import train

    told = False

    def ask(event: dict) -> None:
        nonlocal told
        if not told and event["event"] in ("step", "sft") and (_stop.is_set() or os.getppid() != _parent):
            told = True
            os.kill(os.getpid(), signal.SIGINT)  # the trainer finishes the step and writes a checkpoint

    if _stop.is_set():  # the pool hands out one run ahead of time, which cannot be cancelled
        raise KeyboardInterrupt
    try:
        train(config, resume=resume, progress=False, on_event=ask)
    except KeyboardInterrupt:
        if os.getppid() != _parent:
            os._exit(1)  # nobody waits for this worker any more
        raise
