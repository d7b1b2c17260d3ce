"""`adaback train, eval, compare, show, base`: the library from a shell.

The options of `adaback train` are made from config.py's settings; none is written down here. What needs torch is imported
inside the commands, so that help and a misspelt option answer at once.
"""

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
import types
import typing
import warnings
from pathlib import Path
from typing import Any

import annotated_types
from pydantic_core import PydanticUndefined

from .config import GROUPS, Config, PolicySettings, TaskSettings, load_config, make_config, override, setting_names
from .errors import UserError

TASKS: tuple[str, ...] = typing.get_args(TaskSettings.model_fields["name"].annotation)
SETTING = "setting:"  # marks the parsed options that are settings


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    argv = join_negative_numbers(sys.argv[1:] if argv is None else list(argv))
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            parser, commands = make_parsers()
            check_command(argv, commands)
            args, left_over = parser.parse_known_args(argv)
            if args.command is None:
                parser.print_help()
                return 0
            check_left_over(left_over, commands[args.command], positional=args.command == "train")
            return args.run(args, left_over)
        except UserError as error:
            print(f"adaback: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            return 130


def make_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of its commands."""
    from . import __version__

    about = "Learn, teach and try AdaBack, a per-sample curriculum for reinforcement learning of reasoning models."
    parser = Parser(prog="adaback", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"adaback-lite {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train one run, or one for each of several seeds",
        usage="adaback train [TASK | FILE.yaml] [--method X] [--out FOLDER] [--resume] [--seeds N N ...] [--GROUP.SETTING VALUE ...]",
        description=f"Train, evaluate, and write a run's folder. TASK is {' or '.join(TASKS)}; FILE.yaml holds settings, which options override.",
        epilog="Example: adaback train parity --method adaback --seed 0 --out runs/a --curriculum.tau 0.3",
        allow_abbrev=False,
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out, with the settings it was started with")
    train.add_argument("--seeds", type=int, nargs="+", metavar="N", help="train once for each seed, as processes of one thread, into OUT/seed-N")
    train.add_argument("--jobs", type=int, default=2, metavar="N", help="with --seeds: processes at a time (default 2)")
    train.add_argument("--quiet", action="store_true", help="no progress line")
    add_settings(train)
    train.set_defaults(run=run_train)

    evaluate = commands.add_parser(
        "eval",
        help="pass@k of runs, with intervals",
        description="Sample outputs with nothing revealed, and give pass@k. What was sampled stays in the run's folder: stopped, the same command goes on.",
        allow_abbrev=False,
    )
    evaluate.add_argument("folders", metavar="FOLDER", nargs="+", help="folders of runs")
    evaluate.add_argument("--k", type=int, nargs="+", default=[1], metavar="K", help="the k of pass@k, one or more (default 1)")
    add_evaluation(evaluate)
    evaluate.set_defaults(run=run_eval)

    compare = commands.add_parser(
        "compare",
        help="two runs on the same problems, in pairs",
        description="How much better B is than A on the same problems, with an interval. What 'adaback eval' has sampled is used again.",
        allow_abbrev=False,
    )
    compare.add_argument("a", metavar="A", help="folder of a run, or of its seeds")
    compare.add_argument("b", metavar="B", help="the same of the run that is held against it")
    compare.add_argument("--k", type=int, default=1, metavar="K", help="the k of pass@k (default 1)")
    add_evaluation(compare)
    compare.set_defaults(run=run_compare)

    show = commands.add_parser("show", help="where runs stand, finished or not", description="What is known of runs: finished, running or stopped.", allow_abbrev=False)
    show.add_argument("folders", metavar="FOLDER", nargs="+", help="folders of runs")
    show.set_defaults(run=run_show)

    base = commands.add_parser(
        "base",
        help="make the base that tiny starts from",
        description="Make and cache the base that policy.base copy starts from. It is made once for each shape of model.",
        allow_abbrev=False,
    )
    for name, field in PolicySettings.model_fields.items():
        if name not in ("name", "base"):
            add_setting(base, [f"--{name}", f"--policy.{name}"], f"policy.{name}", field)
    add_setting(base, ["--length", "--task.length"], "task.length", TaskSettings.model_fields["length"])
    base.add_argument("--ship", action="store_true", help="make it anew, into data/bases, to be committed")
    base.set_defaults(run=run_base)
    return parser, dict(commands.choices)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """The options that `eval` and `compare` share."""
    parser.add_argument("--samples", type=int, metavar="N", help="outputs sampled for each problem, at least the largest k (default: the largest k)")
    parser.add_argument("--split", default="test", metavar="X", help="which inputs: test or val (default test)")
    parser.add_argument("--n", type=int, metavar="N", help="problems, more than the run's own are drawn anew (default: the run's own)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="sample anew with each of these seeds (default: the run's own seed)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


# ---------------------------------------------------------------- train


def run_train(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback train`."""
    given, start = given_settings(args), start_settings(words[0] if words else None)
    if args.seeds:
        return train_seeds(args, given, start)
    config = chosen_config(given, start, args.resume, given.get("out"))
    make_base_if_needed(config, args.quiet)
    from .trainer import train

    try:
        run = train(config, resume=args.resume, progress=not args.quiet)
    except KeyboardInterrupt:
        print(f"Stopped {where_stopped(config.out)}; go on with: adaback train --resume --out {config.out}", file=sys.stderr)
        return 130
    print_result(run)
    return 0


def train_seeds(args: argparse.Namespace, given: dict, start) -> int:
    """`adaback train --seeds`: one run a seed, in OUT/seed-N."""
    if "seed" in given:
        raise UserError("--seed and --seeds exclude each other; give one of them.")
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError("--seeds names a seed twice; give each once.")
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}, but must be at least 1.")
    out = given.get("out") or (start.out if isinstance(start, Config) else Config().out)
    from .runs import seed_folders

    configs = []
    # On --resume, a seed that had not begun when the others were stopped starts with the settings of one that had.
    begun = seed_folders(out) if args.resume else []
    for seed in args.seeds:
        folder = str(Path(out) / f"seed-{seed}")
        if begun and start is None and not Path(folder).exists():
            configs.append(override(load_config(begun[0] / "config.yaml"), {**given, "seed": seed, "out": folder}))
            continue
        # train_many gives each process one thread, so that is what a resumed run was started with.
        configs.append(chosen_config({**given, "seed": seed, "out": folder, "trainer.threads": 1}, start, args.resume, folder))
        if not args.resume and (Path(folder) / "config.yaml").exists():
            raise UserError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out.")
    make_base_if_needed(configs[0], args.quiet)
    from .parallel import train_many

    try:
        runs = train_many(configs, jobs=args.jobs, resume=args.resume, progress=not args.quiet)
    except KeyboardInterrupt:
        print(f"Stopped; go on with: adaback train --resume --seeds {' '.join(map(str, args.seeds))} --out {out}", file=sys.stderr)
        return 130
    for run in runs:
        print_result(run)
    return 0


def where_stopped(out: str) -> str:
    """'at step 40', from the log."""
    from .runs import read_events

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a torn last line is no news here
        saved = [e for e in read_events(Path(out) / "events.jsonl") if e["event"] == "checkpoint"]
    if not saved:
        return "before the first checkpoint"
    return "in the SFT stage" if saved[-1]["stage"] == "sft" else f"at step {saved[-1]['step']}"


def print_result(run) -> None:
    """What a finished run came to, and what it saw go wrong."""
    s = run.summary
    low, high = s["test_accuracy_ci95"]
    print(
        f"{run.folder}: {s['method']}, seed {s['seed']}: test accuracy {s['test_accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, {s['test_right']} of {s['test_n']}),"
        f" {s['wall_seconds']:.1f} s, {s['steps']} steps, {s['rollouts']:,} rollouts, stopped by {s['stopped_by']}"
    )
    for event in run.events:
        if event["event"] == "diagnosis":
            print(f"  step {event['step']}: {event['text']} {event['advice']}")


# ---------------------------------------------------------------- base


def run_base(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback base`."""
    config = make_config(given_settings(args))
    from .pretrain import SHIPPED, base_folder, base_name, save_base

    with base_progress() as progress:
        if args.ship:
            folder = save_base(config.policy, config.task.length, SHIPPED / base_name(config.policy, config.task.length), progress)
        else:
            folder = base_folder(config.policy, config.task.length, progress=progress)
    print(f"The base is in {folder}")
    return 0


def make_base_if_needed(config: Config, quiet: bool) -> None:
    """Make a missing base before training, once for all processes, and with a progress line."""
    if config.policy.name != "tiny" or config.policy.base != "copy":
        return
    from .pretrain import base_folder

    with base_progress(quiet) as progress:
        base_folder(config.policy, config.task.length, progress=progress)


@contextlib.contextmanager
def base_progress(quiet: bool = False):
    """A progress line for making a base. It shows up with the first step, so a base that exists shows none."""
    from tqdm import tqdm

    bar = None

    def progress(step: int, loss: float) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(unit="step", desc="making the base", disable=quiet, mininterval=0.5 if sys.stderr.isatty() else 20)
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        bar.update()

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


# ---------------------------------------------------------------- eval, compare

GOES_ON = "Stopped; what was sampled is kept, and the same command goes on from there."


def run_eval(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback eval`."""
    from .evaluation import as_runs, check_request, evaluate_run

    check_request(args.k, args.samples, args.split, args.n, args.seeds)
    runs = as_runs(args.folders)
    try:
        results = [evaluate_run(run, args.k, args.samples, args.split, args.n, args.seeds, not args.quiet) for run in runs]
    except KeyboardInterrupt:
        print(GOES_ON, file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(results[0] if len(results) == 1 else {"runs": results, "pass_at_k": over_runs(results)}))
    elif len(results) == 1:
        print_evaluation(results[0])
    else:
        print_evaluations(results)
    return 0


def run_compare(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback compare`."""
    from .evaluation import compare_runs

    try:
        result = compare_runs(args.a, args.b, args.k, args.samples, args.split, args.n, args.seeds, not args.quiet)
    except KeyboardInterrupt:
        print(GOES_ON, file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result))
        return 0
    console().print(runs_table(result["a"]["runs"] + result["b"]["runs"]))
    for sentence in result["sentences"]:
        print(sentence)
    return 0


# ---------------------------------------------------------------- show


def run_show(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback show`."""
    from rich.table import Table
    from rich.text import Text

    from .runs import load_run, seed_folders

    # All are read before anything is printed, so that a mistake prints its sentence alone.
    facts = [run_facts(load_run(run)) for folder in args.folders for run in seed_folders(folder) or [folder]]
    if len(facts) == 1:
        table = Table(title=facts[0]["run"], show_header=False, title_justify="left")
        for name, value in facts[0].items():
            if name not in ("run", "diagnoses") and value:
                table.add_row(name, Text(value))
    else:
        table = Table()
        columns = [name for name in facts[0] if name != "diagnoses" and any(f[name] for f in facts)]
        for name in columns:
            table.add_column(name, justify="left" if name in ("run", "method", "state", "stopped by") else "right", overflow="fold")
        for f in facts:
            table.add_row(*(Text(f[name]) for name in columns))
    out = console()
    out.print(table)
    for f in facts:
        for text in f["diagnoses"]:
            out.print(Text(f"{f['run']}: {text}" if len(facts) > 1 else text))
    return 0


# ---------------------------------------------------------------- models


def run_models(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback models`."""
    if args.get is not None:
        print(fetched(args.get))
        return 0
    from .tables import print_models

    print_models()
    return 0


def fetched(name: str) -> Path:
    """The folder of a listed model, fetched where it is not at hand. Raises UserError when it is not listed or cannot be fetched."""
    from .models import LISTED, at_hand, smollm2_folder

    if name not in LISTED:
        near = difflib.get_close_matches(name, LISTED, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(LISTED)}; others are loaded by their Hub name, as in --policy.name owner/model."
        raise UserError(f"There is no model '{name}' in the list. {hint}")
    if at_hand(name) != "ready":
        print(f"{name}: {at_hand(name)}", file=sys.stderr)
    if name == "smollm2":
        return smollm2_folder()
    from huggingface_hub import constants, snapshot_download

    from .policy import why_not_loaded

    model = LISTED[name]
    try:
        # What transformers reads, and not the same weights again in Meta's own format.
        kinds = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(model.source, revision=model.revision, allow_patterns=kinds, ignore_patterns=["original/*"]))
    except Exception as error:  # whatever huggingface_hub and what it builds on raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk that holds {constants.HF_HUB_CACHE} is full; free some space, or set HF_HOME to a folder on another.") from error
        raise UserError(why_not_loaded(model.source, error)) from error


# ---------------------------------------------------------------- warnings


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings as a sentence, those of libraries as usual."""
    if Path(filename).parent == Path(__file__).parent:
        print(f"adaback: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")


if __name__ == "__main__":
    sys.exit(main())
