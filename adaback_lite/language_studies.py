"""Studies with a real language model, each with one command; results go to data/results/ with commit, machine, versions and command.

    python -m adaback_lite.language_studies cpu               SmolLM2 in 4 bits with LoRA, no GPU: AdaBack and RL, AdaBack killed and resumed on the way
    python -m adaback_lite.language_studies curve             how often SmolLM2 is right, before any training, when ever more is revealed; with --data on GSM8k too
    python -m adaback_lite.language_studies gpu --dry-run     what the GPU study would train, checked but not trained
    python -m adaback_lite.language_studies gpu --hours 8     SFT, RL, SFT+RL, R3 and AdaBack on three tasks, seed after seed while time allows

All go on where they were when called again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from .build import build_task
from .config import Config, make_config, preset
from .errors import UserError
from .evaluate import wilson
from .policy import load_tokenizer
from .results import store
from .reveal import SHARES, success_by_share
from .runs import Run, load_run, read_events
from .studies import RESULTS, cpu_name, started
from .trainer import train

KILL_AT = 8  # AdaBack's process is killed once it has written this step


# ---------------------------------------------------------------- on a CPU


def cpu_configs(root: Path, data: str, task: str) -> list[Config]:
    """AdaBack and plain RL from the same start, with the same problems, settings and number of rollouts."""
    shared = {**preset("cpu"), "task.name": task, "task.data": data}
    return [make_config(shared, method=m, out=root / m) for m in ("adaback", "rl")]


def run_killed(config: Config, step: int) -> dict:
    """Train in a process of its own, kill that with SIGKILL once `step` is in its log, resume it, and say what happened."""
    out, log = Path(config.out), Path(config.out) / "events.jsonl"
    note = out.parent / f"{out.name}-killed.json"
    if (out / "summary.json").is_file() and note.is_file():
        return json.loads(note.read_text())
    facts = {"signal": "SIGKILL"}
    if not note.is_file():
        process = start(config)
        while process.poll() is None and steps_in(log) < step:
            time.sleep(0.02)
        if process.poll() is not None:
            raise UserError(f"The training process ended by itself, with status {process.returncode}; see {out}.")
        process.send_signal(signal.SIGKILL)
        process.wait()
        facts["steps_in_the_log_when_killed"] = steps_in(log)
        note.write_text(json.dumps(facts))
    facts = json.loads(note.read_text())
    if start(config).wait():
        raise UserError(f"The resumed training process failed; see {out}.")
    facts["resumed_at_step"] = [e["step"] for e in read_events(log) if e["event"] == "resume"]
    note.write_text(json.dumps(facts))
    return facts


def start(config: Config) -> subprocess.Popen:
    """A process that trains, or goes on with, this run."""
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(config.model_dump(mode="json"))
    code = "import json, sys; from adaback_lite.config import make_config; from adaback_lite.trainer import train; train(make_config(json.loads(sys.argv[1])), resume=True)"
    return subprocess.Popen([sys.executable, "-c", code, wanted])


def steps_in(log: Path) -> int:
    """RL steps that a log holds, a torn last line not counted."""
    return log.read_bytes().count(b'{"event": "step"') if log.is_file() else 0


def gradient_row(run: Run) -> dict:
    """What the groups of a run carried: counted from its events."""
    c, steps = run.config, [e for e in run.events if e["event"] == "step"]
    groups = sum(len(e["ids"]) for e in steps)
    carrying = round(sum(e["grad_groups"] * len(e["ids"]) for e in steps))
    low, high = wilson(carrying, groups)
    keys = ("steps", "rollouts", "generated_tokens", "test_right", "test_n", "test_accuracy", "wall_seconds")
    mean = {name: sum(e[key] for e in steps) / len(steps) for name, key in (("mean_reward", "mean_reward"), ("mean_rho", "mean_rho"), ("unparseable", "unparseable"))}
    about = {"method": c.method, "unit": c.curriculum.unit, "task": c.task.name, "model": c.policy.name, "quantize": c.policy.quantize, "seed": c.seed}
    return {**about, "groups": groups, "carrying": carrying, "share": carrying / groups, "low": low, "high": high, **mean, **{k: run.summary[k] for k in keys}}


def cpu_study(root: Path, results: Path, data: str, task: str, command: str) -> pd.DataFrame:
    about = started(root, command)
    configs = cpu_configs(root, data, task)
    killed = run_killed(configs[0], KILL_AT)
    runs = [load_run(configs[0].out), train(configs[1], resume=True)]
    table = pd.DataFrame([gradient_row(run) for run in runs])
    ratio = table.share[0] / table.share[1] if table.share[1] else None
    facts = {"killed_and_resumed": killed, "share_adaback_over_rl": ratio, "steps": {r.config.method: [in_brief(e) for e in r.events if e["event"] == "step"] for r in runs}}
    return write("gsm_cpu", table, runs, about, facts, results)


def in_brief(e: dict) -> dict:
    """A step as a chart needs it."""
    return {k: e[k] for k in ("step", "rollouts", "ids", "rho", "reward", "high", "mean_reward", "mean_rho", "grad_groups", "wall")}


# ---------------------------------------------------------------- the curve


CURVES = (("gsm8k", "token"), ("gsm-symbolic", "token"), ("gsm-symbolic", "step"), ("gsm-symbolic-base7", "token"), ("gsm-symbolic-tensor2", "token"))


def curve_config(out: str | os.PathLike, task: str, data: str = "", unit: str = "token", n: int = 12, settings: dict | None = None) -> Config:
    """A run of 0 steps: the policy before any training, in a folder that evaluations can be kept in. `n` problems are there to try, `settings` win."""
    base = {**preset("cpu"), "policy.quantize": "none", "policy.dtype": "float32", "task.name": task, "task.data": data, "curriculum.unit": unit}
    few = {"task.n_train": 1, "task.n_val": n, "task.n_test": 1, "trainer.max_steps": 0, "trainer.rollout_rows": 64}
    return make_config({**base, **few, **(settings or {})}, method="rl", out=out)


def curve_shares(task: str, unit: str) -> tuple[float, ...]:
    """All shares for plain problems cut at tokens; for the variants only from a half on, because four fifths of the tokens are written below."""
    return SHARES if unit == "token" and task in ("gsm8k", "gsm-symbolic") else tuple(s for s in SHARES if s >= 0.5)


def curve_study(root: Path, results: Path, data: str, n: int, model: str, command: str) -> pd.DataFrame:
    """A row for each task, unit of cutting and share: what `success_by_share` says, and how many lines the rationales have."""
    about, runs, tables = started(root, command), [], []
    for task, unit in CURVES:
        if task == "gsm8k" and not data:
            continue
        groups = max(n // 2, 1) if "tensor2" in task else n  # a pair is two problems
        run = train(curve_config(root / f"{task}-{unit}", task, data if task == "gsm8k" else "", unit, groups, {"policy.name": model}), resume=True, progress=False)
        text_task = build_task(run.config, load_tokenizer(run.config.policy))
        lines = sum(len(text_task.step_ends(s)) for s in text_task.val) / len(text_task.val)
        table = success_by_share(run, curve_shares(task, unit), n=groups, progress=True)
        runs.append(run)
        tables.append(table.assign(task=task, unit=unit, model=model, lines=lines)[["task", "unit", "model", "lines", *table.columns]])
    table = pd.concat(tables, ignore_index=True)
    return write("reveal_curve", table, runs, about, {"tokens": int(table.tokens.sum())}, results)


# ---------------------------------------------------------------- on a GPU


def gpu_configs(root: Path, data: str, seeds: int = 5) -> list[Config]:
    """Every method on every task for seed 0, then for seed 1, and so on."""
    methods = {
        "sft": {"method": "sft"},
        "rl": {"method": "rl"},
        "sft+rl": {"method": "sft+rl"},
        "r3-step": {"method": "r3", "curriculum.unit": "step"},
        "adaback-token": {"method": "adaback"},
        "adaback-step": {"method": "adaback", "curriculum.unit": "step"},
    }
    return [
        make_config({**preset("gpu"), **changes, "task.name": task, "task.data": data}, seed=seed, out=root / f"{task}-{name}-{seed}")
        for seed in range(seeds)
        for task in ("gsm8k", "gsm8k-base7", "gsm8k-tensor2")
        for name, changes in methods.items()
    ]


def dry_run(configs: list[Config]) -> str:
    """Build each task with the real tokenizer and take no step: what would be trained, and whether the data and settings hold."""
    tokenizer, lines, tasks = load_tokenizer(configs[0].policy), [], {}
    for c in configs:
        key = (c.task.name, c.seed)
        if key not in tasks:
            task = build_task(c, tokenizer)
            tasks[key] = f"{len(task.train):,} training and {len(task.test):,} test problems, {sum(task.dropped.values())} dropped"
        cut = f", cuts at {c.curriculum.unit}s" if c.curriculum_name in ("adaback", "r3") else ""
        steps = "" if c.method == "sft" else f", {c.trainer.max_steps} steps of {c.trainer.batch_size} x {c.grpo.group_size} rollouts"
        lines.append(f"{c.out}: {c.method}{cut}, seed {c.seed}{steps}; {tasks[key]}")
    return "\n".join(lines)


def gpu_study(root: Path, results: Path, data: str, hours: float, command: str) -> pd.DataFrame:
    """Train until the hours are over; a run that is under way then is finished at the next call."""
    if not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; give --dry-run to check what would be trained, or run it where there is one.")
    about, ends, runs = started(root, command), time.time() + 3600 * hours, []
    for config in gpu_configs(root, data):
        if time.time() > ends and not (Path(config.out) / "summary.json").is_file():
            break
        runs.append(train(config, resume=True))
    table = pd.DataFrame([result_row(r) for r in runs])
    return write("gsm_gpu", table, runs, about, {"device": torch.cuda.get_device_name()}, results)


def result_row(run: Run) -> dict:
    """A run of the GPU study; SFT has no groups."""
    if run.config.method != "sft":
        return gradient_row(run)
    c, s = run.config, run.summary
    return {"method": "sft", "task": c.task.name, "model": c.policy.name, "quantize": c.policy.quantize, "seed": c.seed, "steps": 0} | {
        k: s[k] for k in ("trained_tokens", "test_right", "test_n", "test_accuracy", "wall_seconds")
    }


# ---------------------------------------------------------------- results


def write(name: str, table: pd.DataFrame, runs: list[Run], about: dict, facts: dict, folder: Path) -> pd.DataFrame:
    """NAME.csv and NAME.json beside the other results."""
    shared = {"machine": runs[0].summary["machine"], "cpu": cpu_name(), "seeds": sorted({r.config.seed for r in runs}), "settings": runs[0].config.model_dump(mode="json")}
    store(name, table, {**about, **shared, **facts}, folder)
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adaback_lite.language_studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("cpu", "curve", "gpu"))
    parser.add_argument("--task", default="gsm-symbolic", help="cpu: the task (default gsm-symbolic, which needs no network)")
    parser.add_argument("--data", default="", help="folder with GSM8k in the authors' format; without it the data come from the Hub (curve: GSM8k is left out)")
    parser.add_argument("--problems", type=int, default=12, help="curve: problems of each task, in pairs for tensor2 (default 12)")
    parser.add_argument("--model", default="smollm2", help="curve: the model, as policy.name takes it (default smollm2)")
    parser.add_argument("--hours", type=float, default=8, help="gpu: start no run after so many hours (default 8)")
    parser.add_argument("--dry-run", action="store_true", help="gpu: check data and settings, train nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    args = parser.parse_args(argv)
    root, command = args.runs / f"gsm-{args.name}", "python -m adaback_lite.language_studies " + " ".join(sys.argv[1:] if argv is None else argv)
    try:
        if args.name == "cpu":
            table = cpu_study(root, args.results, args.data, args.task, command)
        elif args.name == "curve":
            table = curve_study(root, args.results, args.data, args.problems, args.model, command)
        elif args.dry_run:
            print(dry_run(gpu_configs(root, args.data)))
            return 0
        else:
            table = gpu_study(root, args.results, args.data, args.hours, command)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table.round(3).to_string())
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
