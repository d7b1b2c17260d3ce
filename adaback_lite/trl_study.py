"""Does a curriculum do inside TRL what it does in our own trainer? `python -m adaback_lite.trl_study parity` and `gsm` measure it.

parity: Chain-of-Parities, L = 16, sequential positions, 4,096 training inputs, 300 steps of 32 samples x 8 rollouts and no early stopping,
so that all have the same rollouts; three seeds or more of each of

    ours            adaback train, AdaBack
    TRL             AdaBack inside GRPOTrainer, one process
    TRL x 2         the same on two processes (accelerate launch, gloo), killed by SIGKILL at a random step, and resumed
    TRL alone       GRPOTrainer with nothing revealed (method rl)

Writes data/results/trl_parity.csv, a row a run, and trl_parity.json.

gsm: that it runs with a language model, and no more: SmolLM2-135M with LoRA on gsm-symbolic, six steps of 2 problems x 8 rollouts,
AdaBack, one seed, one process. Writes data/results/trl_gsm.csv, a row a step, and trl_gsm.json.

A second call goes on where the first was stopped.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

from .config import Config, dump_config, make_config, preset
from .results import store
from .runs import Run, write_atomically
from .seeding import numpy_generator
from .studies import RESULTS, cpu_name, started
from .trainer import train

SETTINGS = {
    "policy.positions": "sequential", "task.n_train": 4096, "trainer.max_steps": 300, "trainer.target_accuracy": 0.0,
    "trainer.checkpoint_every": 20, "trainer.threads": 1,
}  # fmt: skip
GSM = preset("quick") | {
    "task.name": "gsm-symbolic", "task.max_new": 96, "task.n_train": 32, "trainer.max_steps": 6, "trainer.batch_size": 2, "trainer.eval_every": 6,
    "trainer.threads": 1, "grpo.group_size": 8,
}  # fmt: skip
ENGINES = {"ours": "adaback", "TRL": "adaback", "TRL x 2": "adaback", "TRL alone": "rl"}  # the method of each
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def train_by_trl(config: Config, processes: int = 1, kill_at: int = 0) -> Run:
    """Train by `adaback_lite.trl_train` in processes of its own, going on where it was stopped. At step `kill_at` all of them are killed, once."""
    folder = Path(config.out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    asked, killed = folder.with_suffix(".yaml"), folder.with_suffix(".killed")
    write_atomically(asked, dump_config(config))
    command = [sys.executable, *(TWO if processes > 1 else []), "-m", "adaback_lite.trl_train", str(asked), "--resume"]
    with open(folder.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if kill_at and not killed.exists():
            while process.poll() is None and steps_done(folder) < kill_at:
                time.sleep(0.2)
            kill_all(process.pid)
            process.wait()
            killed.write_text(f"{steps_done(folder)}\n")
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} failed; {log.name} says why")
    return Run(folder)


def kill_all(pid: int) -> None:
    """SIGKILL for a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def steps_done(folder: Path) -> int:
    """The last step that a run's events tell of."""
    return Run(folder).steps_done


def row_of(engine: str, run: Run) -> dict:
    """One row of the table for a finished run."""
    s, events = run.summary, run.events
    reached = [e["rollouts"] for e in events if e["event"] == "eval" and e["accuracy"] >= 0.98]
    resumed = [e["step"] for e in events if e["event"] == "resume"]
    keys = ("steps", "rollouts", "generated_tokens", "test_right", "test_n", "test_accuracy", "wall_seconds")
    about = {"engine": engine, "method": s["method"], "seed": s["seed"], "processes": s["machine"].get("processes", 1)}
    return {**about, **{k: s[k] for k in keys}, "rollouts_to_098": reached[0] if reached else None, "killed_and_resumed_at": resumed[0] if resumed else None}


def folder_of(engine: str, seed: int, root: Path) -> Path:
    return root / f"{engine.replace(' ', '-').lower()}-{seed}"


def parity(root: Path, seeds: int, engines: list[str]) -> tuple[pd.DataFrame, dict]:
    """(table, facts) of the parity study: of the runs that were asked for, and of those that an earlier call finished here."""
    for seed in range(seeds):
        for engine in engines:
            config = make_config(SETTINGS, method=ENGINES[engine], seed=seed, out=str(folder_of(engine, seed, root)))
            if engine == "ours":
                run = train(config, resume=True, progress=False)
            elif engine == "TRL x 2":
                run = train_by_trl(config, 2, int(numpy_generator(seed, "kill").integers(100, 200)))
            else:
                run = train_by_trl(config)
            print(row_of(engine, run), flush=True)
    every = [(engine, Run(folder_of(engine, seed, root))) for seed in range(100) for engine in ENGINES]
    finished = [(engine, run) for engine, run in every if (run.folder / "summary.json").is_file()]
    table = pd.DataFrame([row_of(engine, run) for engine, run in finished])
    return table, {"seeds": sorted(table.seed.unique().tolist()), "settings": SETTINGS, "machine": finished[0][1].summary["machine"]}


def gsm(root: Path) -> tuple[pd.DataFrame, dict]:
    """(table, facts) of the language model's few steps."""
    run = train_by_trl(make_config(GSM, method="adaback", seed=0, out=str(root / "adaback")))
    keys = ("step", "rollouts", "generated_tokens", "mean_rho", "mean_reward", "grad_groups", "wall")
    table = pd.DataFrame([{k: e[k] for k in keys} for e in run.events if e["event"] == "step"])
    return table, {"seeds": [0], "settings": GSM, "machine": run.summary["machine"]}


def main(argv: list[str] | None = None) -> None:
    """Run one study."""
    parser = argparse.ArgumentParser(prog="python -m adaback_lite.trl_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("parity", "gsm"))
    parser.add_argument("--seeds", type=int, default=3, help="parity: seeds 0 to N - 1")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), help="parity: which to run; the table also holds what earlier calls have finished")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the table")
    args = parser.parse_args(argv)
    root = args.runs / f"trl_{args.name}"
    about = started(root, f"python -m adaback_lite.trl_study {args.name}")
    table, facts = parity(root, args.seeds, args.engines) if args.name == "parity" else gsm(root)
    store(f"trl_{args.name}", table, {**about, "cpu": cpu_name(), **facts}, args.results)


if __name__ == "__main__":
    sys.exit(main())
