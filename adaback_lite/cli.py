"""`adaback train, eval, compare, show, replay, sweep, base, models`: the library from a shell.

Here are the commands; options.py makes the options of `adaback train` from config.py's settings, tables.py prints. What needs
torch is imported inside the commands, so that help and a misspelt option answer at once.
"""

import argparse
import contextlib
import difflib
import errno
import json
import sys
import warnings
from pathlib import Path

from .config import PRESETS, TASKS, Config, PolicySettings, TaskSettings, load_config, make_config, override
from .errors import UserError
from .options import (
    Parser,
    add_setting,
    add_settings,
    check_command,
    check_left_over,
    chosen_config,
    given_settings,
    join_negative_numbers,
    known_preset,
    natural_preset,
    start_settings,
)

BASE_SETTINGS = ("positions", "layers", "width", "heads", "kv_heads", "rope_theta")  # those of the policy that a base depends on


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
        usage="adaback train [TASK | FILE.yaml] [--preset X] [--method X] [--out FOLDER] [--resume] [--seeds N N ...] [--GROUP.SETTING VALUE ...]",
        description=f"Train, evaluate, and write a run's folder. TASK is {', '.join(TASKS[:-1])} or {TASKS[-1]}; FILE.yaml holds settings, which options override.",
        epilog="Examples: adaback train parity --method adaback --seed 0 --out runs/a --curriculum.tau 0.3; adaback train gsm-symbolic --preset quick --out runs/b",
        allow_abbrev=False,
    )
    presets = f"{', '.join(list(PRESETS)[:-1])} or {list(PRESETS)[-1]}"
    train.add_argument(
        "--preset",
        type=known_preset,
        metavar="X",
        help=f"settings for a language model and word problems to start from, which a file and options override: {presets}."
        " quick takes two steps, to see that all works. Without it a word-problem TASK starts from gpu where there is a GPU, else from cpu",
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

    replay = commands.add_parser(
        "replay",
        help="train a run again that was steered by hand, and compare",
        description="Train a run again from its folder alone, with every change that was made by hand at its step, and say where the two differ, event for event.",
        epilog="Example: adaback replay runs/live --out runs/again",
        allow_abbrev=False,
    )
    replay.add_argument("folder", metavar="FOLDER", help="folder of the run, finished or not")
    replay.add_argument("--out", required=True, metavar="FOLDER", help="folder of the new run; a replay that was stopped goes on there")
    replay.add_argument("--quiet", action="store_true", help="no progress line")
    replay.set_defaults(run=run_replay)

    sweep = commands.add_parser(
        "sweep",
        help="a notebook over a grid of parameters",
        description="Run a notebook with papermill for every combination of the grid's values, and collect the runs into OUT/table.csv and OUT/table.parquet."
        " What is done is kept: a sweep that was stopped, has failed cells or got more values goes on with the same command.",
        epilog="Example: adaback sweep notebooks/06_alpha.ipynb --grid curriculum.alpha=0.01,0.05,0.2 --grid seed=0..4 --grid profile=full --out runs/alpha --jobs 2",
        allow_abbrev=False,
    )
    sweep.add_argument("notebook", metavar="NOTEBOOK", help="a notebook with a cell tagged 'parameters'")
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="once for each parameter: a setting by its dotted name or a parameter of the notebook, and its values with commas between; 0..4 are the whole numbers from 0 to 4",
    )
    sweep.add_argument("--out", required=True, metavar="FOLDER", help="folder of the sweep")
    sweep.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time, each a process with its part of the cores (default 1)")
    sweep.add_argument("--again", action="store_true", help="run every cell anew, as after a change to the notebook; earlier runs are put aside, in runs-before-N")
    sweep.add_argument("--quiet", action="store_true", help="no progress line")
    sweep.set_defaults(run=run_sweep)

    base = commands.add_parser(
        "base",
        help="make the base that tiny starts from",
        description="Make and cache the base that policy.base copy starts from. It is made once for each shape of model.",
        allow_abbrev=False,
    )
    for name in BASE_SETTINGS:
        add_setting(base, [f"--{name}", f"--policy.{name}"], f"policy.{name}", PolicySettings.model_fields[name])
    add_setting(base, ["--length", "--task.length"], "task.length", TaskSettings.model_fields["length"])
    base.add_argument("--ship", action="store_true", help="make it anew, into data/bases, to be committed")
    base.set_defaults(run=run_base)

    models = commands.add_parser(
        "models",
        help="the language models that are known by name",
        description="List the models that policy.name knows by a short name, and which of them are here. Other models go by their Hub name, folder or .gguf file.",
        allow_abbrev=False,
    )
    models.add_argument("--get", metavar="NAME", help="fetch this one, if it is not here, and print its folder")
    models.set_defaults(run=run_models)
    return parser, dict(commands.choices)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """The options that `eval` and `compare` share."""
    parser.add_argument("--samples", type=int, metavar="N", help="outputs sampled for each problem, at least the largest k (default: the largest k)")
    parser.add_argument("--split", type=known_split, default="test", metavar="X", help="which inputs: test or val (default test)")
    parser.add_argument("--n", type=int, metavar="N", help="problems, more than the run's own are drawn anew (default: the run's own)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="sample anew with each of these seeds (default: the run's own seed)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def known_split(name: str) -> str:
    """The name again. The library also evaluates training problems, which say nothing of what a run has learnt beyond them."""
    if name not in ("test", "val"):
        raise UserError(f"--split is '{name}', but should be test or val.")
    return name


# ---------------------------------------------------------------- train


def run_train(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback train`."""
    given, start = given_settings(args), start_settings(words[0] if words else None, args.preset)
    preset_name = args.preset or natural_preset(start, given)
    if args.seeds:
        return train_seeds(args, given, start, preset_name)
    out = given.get("out", Config().out)
    goes_on = args.resume and holds_run(out)
    config = chosen_config(given, start, args.resume, out, preset_name)
    say_preset(args.preset, preset_name, start, config, goes_on, begins=not goes_on)
    make_base_if_needed(config, args.quiet)
    from .tables import print_result
    from .trainer import train

    try:
        run = train(config, resume=args.resume, progress=not args.quiet)
    except KeyboardInterrupt:
        print(f"Stopped {where_stopped(config.out)}; go on with: adaback train --resume --out {config.out}", file=sys.stderr)
        return 130
    print_result(run)
    return 0


def train_seeds(args: argparse.Namespace, given: dict, start, preset_name: str | None) -> int:
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
        configs.append(chosen_config({**given, "seed": seed, "out": folder, "trainer.threads": 1}, start, args.resume, folder, preset_name))
        if not args.resume and (Path(folder) / "config.yaml").exists():
            raise UserError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out.")
    goes_on = args.resume and (bool(begun) or any(holds_run(c.out) for c in configs))
    say_preset(args.preset, preset_name, start, configs[0], goes_on, begins=not all(holds_run(c.out) for c in configs))
    make_base_if_needed(configs[0], args.quiet)
    from .parallel import train_many
    from .tables import print_result

    try:
        runs = train_many(configs, jobs=args.jobs, resume=args.resume, progress=not args.quiet)
    except KeyboardInterrupt:
        print(f"Stopped; go on with: adaback train --resume --seeds {' '.join(map(str, args.seeds))} --out {out}", file=sys.stderr)
        return 130
    for run in runs:
        print_result(run)
    return 0


def holds_run(folder) -> bool:
    return (Path(folder) / "config.yaml").is_file()


def say_preset(asked: str | None, taken: str | None, start, config: Config, goes_on: bool, begins: bool) -> None:
    """One line on stderr where a preset was `taken` that nobody had `asked` for, or where the one asked for has no say."""
    if asked and goes_on and not isinstance(start, Config):
        print(f"--preset {asked} is left aside where a run goes on: it keeps the settings it was started with.", file=sys.stderr)
    elif taken and not asked and begins:
        print(f"{config.task.name} starts from the preset {taken}, for there is {'a' if taken == 'gpu' else 'no'} GPU to run on; --preset names another.", file=sys.stderr)


def where_stopped(out: str) -> str:
    """'at step 40', from the log."""
    from .runs import Run

    saved = [e for e in Run(out).so_far if e["event"] == "checkpoint"]
    if not saved:
        return "before the first checkpoint"
    return "in the SFT stage" if saved[-1]["stage"] == "sft" else f"at step {saved[-1]['step']}"


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
    from .tables import over_runs, print_evaluation, print_evaluations

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
    from .tables import console, runs_table

    console().print(runs_table(result["a"]["runs"] + result["b"]["runs"]))
    for sentence in result["sentences"]:
        print(sentence)
    return 0


# ---------------------------------------------------------------- show


def run_show(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback show`."""
    from .runs import load_run, seed_folders
    from .tables import print_runs, run_facts

    # All are read before anything is printed, so that a mistake prints its sentence alone.
    print_runs([run_facts(load_run(run)) for folder in args.folders for run in seed_folders(folder) or [folder]])
    return 0


# ---------------------------------------------------------------- replay


def run_replay(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback replay`. Status 1 when the two runs differ."""
    from .replay import differences, replay

    again = replay(args.folder, args.out, progress=not args.quiet)
    found = differences(args.folder, again)
    changes = sum(e["event"] == "change" for e in again.events)
    steps = max((e["step"] for e in again.events if e["event"] == "step"), default=0)
    for sentence in found:
        print(sentence)
    print(f"{again.folder}: {steps} steps, {changes} changes by hand: {'differs from' if found else 'the same as'} {args.folder}, event for event")
    return 1 if found else 0


# ---------------------------------------------------------------- sweep


def run_sweep(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback sweep`. Status 1 when a cell failed."""
    from .sweep import sweep

    try:
        result = sweep(args.notebook, args.grid, args.out, args.jobs, again=args.again, progress=not args.quiet)
    except KeyboardInterrupt as stop:
        print(f"Stopped; {stop}", file=sys.stderr)
        return 130
    for failure in result.failures:
        print(f"failed: {failure.notebook}: {failure.error}")
    print(f"{args.out}: {result.cells} cell{'' if result.cells == 1 else 's'}, {len(result.failures)} failed; the table is {Path(args.out) / 'table.csv'}")
    return 1 if result.failures else 0


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
        raise UserError(f"There is no listed model '{name}'. {hint}")
    if at_hand(name) != "ready":
        print(f"{name}: {at_hand(name)}", file=sys.stderr)
    if name == "smollm2":
        return smollm2_folder()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import logging

    from .policy import why_not_loaded

    model = LISTED[name]
    logging.set_verbosity_error()  # it tells of each of its retries, and then comes our sentence
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
    if Path(__file__).parent in Path(filename).parents:
        print(f"adaback: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")


if __name__ == "__main__":
    sys.exit(main())
