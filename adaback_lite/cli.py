"""`adaback train, eval, show, base`: the library from a shell.

The options of `adaback train` are made from config.py's settings; none is written down here. What needs torch is imported
inside the commands, so that help and a misspelt option answer at once.
"""

import argparse
import contextlib
import difflib
import itertools
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


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake raises UserError with one sentence instead of printing the whole usage."""

    def error(self, message: str):
        missing = re.match(r"argument ([^:]+): expected (?:one argument|at least one argument)", message)
        if missing:
            name = missing.group(1).split("/")[0]
            raise UserError(f"{name} needs a value, as in '{name} {self._example(name)}'.")
        message = re.sub(r"^argument (\S+): ", r"\1: ", message)
        raise UserError(f"{message[0].upper() + message[1:]}; '{self.prog} --help' lists what there is.")

    def _example(self, name: str) -> str:
        action = self._option_string_actions.get(name)
        return str(action.metavar or "VALUE") if action else "VALUE"


# ---------------------------------------------------------------- options made from the settings


def setting_type(field) -> str:
    """A setting's type in a word: 'number', 'whole number', 'text', 'true or false', 'numbers', or its choices."""
    return _type_name(field.annotation)


def _type_name(annotation) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if origin is tuple:
        return f"one {_type_name(typing.get_args(annotation)[0])} or more"
    return {float: "number", int: "whole number", bool: "true or false", str: "text"}[annotation]


def setting_bounds(field) -> str:
    """A setting's bounds in words: '0 to 1', 'above 0, up to 1', '1 to 16 of them, each above 0, up to 1'; '' where there are none."""
    low = high = several = ""
    for m in field.metadata:
        match m:
            case annotated_types.Ge():
                low = in_words(m.ge)
            case annotated_types.Gt():
                low = f"above {in_words(m.gt)}"
            case annotated_types.Le():
                high = in_words(m.le)
            case annotated_types.Lt():
                high = f"below {in_words(m.lt)}"
            case annotated_types.MinLen():
                several = f"{m.min_length}"
            case annotated_types.MaxLen():
                several += f" to {m.max_length} of them"
    if typing.get_origin(field.annotation) is tuple:
        inner = typing.get_args(field.annotation)[0]
        if typing.get_origin(inner) is typing.Annotated:
            constraints = typing.get_args(inner)[1].metadata
            return f"{several}, each {setting_bounds(types.SimpleNamespace(metadata=constraints, annotation=None))}"
        return several
    if not (low and high):
        return low or high
    return f"{low}, up to {high}" if low.startswith("above") or high.startswith("below") else f"{low} to {high}"


def in_words(bound: float) -> str:
    """A bound for a reader: 1,000,000 and 0.5."""
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def setting_default(field) -> str:
    """A setting's default as one would type it."""
    value = field.default
    if value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, tuple) else str(value)


def setting_help(field) -> str:
    """One setting's line of help: type, bounds, default, meaning."""
    facts = [setting_type(field), setting_bounds(field), f"default {setting_default(field)}"]
    return f"({'; '.join(f for f in facts if f)}) {field.description}"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every setting, in the groups of config.py."""
    boxes = {"": parser.add_argument_group("on top")}
    boxes |= {name: parser.add_argument_group(name, (cls.__doc__ or "").strip()) for name, cls in GROUPS.items()}
    for name, field in setting_names().items():
        add_setting(boxes[name.rpartition(".")[0]], [f"--{name}"], name, field)


def add_setting(box, flags: list[str], name: str, field) -> None:
    """One setting's option. Its value stays text: config.py turns it into a number, and says what is wrong with it."""
    several = typing.get_origin(field.annotation) is tuple
    choices = typing.get_origin(field.annotation) is typing.Literal
    metavar = "X" if choices or field.annotation is bool else "TEXT" if field.annotation is str else "N"
    box.add_argument(*flags, dest=SETTING + name, default=argparse.SUPPRESS, metavar=metavar, nargs="+" if several else None, help=setting_help(field).replace("%", "%%"))


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by dotted name."""
    return {key.removeprefix(SETTING): value for key, value in vars(args).items() if key.startswith(SETTING)}


# ---------------------------------------------------------------- parsing


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

    evaluate = commands.add_parser("eval", help="pass@k of a run, with intervals", description="Sample outputs with nothing revealed, and give pass@k.", allow_abbrev=False)
    evaluate.add_argument("folder", metavar="FOLDER", help="the run's folder")
    evaluate.add_argument("--k", type=int, nargs="+", default=[1], metavar="K", help="the k of pass@k, one or more (default 1)")
    evaluate.add_argument("--samples", type=int, metavar="N", help="outputs sampled for each problem, at least the largest k (default: the largest k)")
    evaluate.add_argument("--split", default="test", metavar="X", help="which inputs: test or val (default test)")
    evaluate.add_argument("--n", type=int, metavar="N", help="problems, more than the run's own are drawn anew (default: the run's own)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=run_eval)

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


def join_negative_numbers(argv: list[str]) -> list[str]:
    """`--grpo.lr -1e-4` as `--grpo.lr=-1e-4`: argparse would take -1e-4 for an option, and the sentence about its bounds would be lost."""
    joined: list[str] = []
    for arg in argv:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and re.fullmatch(r"-[\d.]+(e[-+]?\d+)?|-inf|-nan", arg, re.IGNORECASE):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def check_command(argv: list[str], commands: dict[str, Parser]) -> None:
    """Refuse a misspelt command by name."""
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, n=1)
        raise UserError(f"There is no command '{argv[0]}'. " + (f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(commands)}."))


def check_left_over(left_over: list[str], parser: Parser, positional: bool) -> None:
    """Refuse options that nobody knows, with the nearest that somebody does; `positional` allows one word that is no option."""
    for arg in left_over:
        if arg.startswith("-"):
            given = arg.split("=")[0]
            flags = list(parser._option_string_actions)
            near = [flag for flag in flags if flag.rpartition(".")[2] == given.lstrip("-")]  # `--tau` for `--curriculum.tau`
            near = near or difflib.get_close_matches(given, flags, n=1, cutoff=0.7)
            raise UserError(f"There is no setting '{given}'. " + (f"Did you mean '{near[0]}'?" if near else f"'{parser.prog} --help' lists all."))
    if left_over[1 if positional else 0 :]:
        raise UserError(f"'{left_over[-1]}' is one word too many; '{parser.prog} --help' shows the form.")


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


def start_settings(word: str | None) -> Config | dict | None:
    """What the first word of `adaback train` gives: a file's configuration, a task's setting, or nothing."""
    if word is None:
        return None
    if word in TASKS:
        return {"task.name": word}
    if word.endswith((".yaml", ".yml")) or os.path.exists(word):
        return load_config(word)
    near = difflib.get_close_matches(word, TASKS, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else f" Name a task ({', '.join(TASKS)}) or a .yaml file."
    raise UserError(f"There is no task or file '{word}'.{hint}")


def chosen_config(given: dict, start: Config | dict | None, resume: bool, out: str | None) -> Config:
    """The settings to train with: those of the file or of the saved run, then those of the command line.

    On `--resume` without a file the saved run's settings are the start; the trainer refuses those beside it that differ.
    """
    if isinstance(start, Config):
        return override(start, given)
    given = {**(start or {}), **given}
    if resume:
        from .runs import load_run

        folder = out or Config().out
        if start is None or (Path(folder) / "config.yaml").is_file():
            return override(load_run(folder).config, {**given, "out": folder})
    return make_config(given)


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


# ---------------------------------------------------------------- eval


def run_eval(args: argparse.Namespace, words: list[str]) -> int:
    """`adaback eval`."""
    from .runs import load_run

    samples = max(args.k) if args.samples is None else args.samples
    if min(args.k) < 1:
        raise UserError(f"--k is {min(args.k)}, but must be at least 1.")
    if samples < max(args.k):
        raise UserError(f"pass@{max(args.k)} needs at least {max(args.k)} outputs of each problem, not {samples}; raise --samples or lower --k.")
    if args.split not in ("test", "val"):
        raise UserError(f"--split is '{args.split}', but should be test or val.")
    if args.n is not None and args.n < 1:
        raise UserError(f"--n is {args.n}, but must be at least 1.")
    result = evaluate_run(load_run(args.folder), sorted(set(args.k)), samples, args.split, args.n)
    if args.json:
        print(json.dumps(result))
        return 0
    from rich.table import Table

    print(f"{result['run']}, step {result['step']}: {result['n']} {args.split} problems, {samples} {'output' if samples == 1 else 'outputs'} each")
    table = Table()
    for name in ("", "share", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right")
    for k, value in result["pass_at_k"].items():
        table.add_row(f"pass@{k}", f"{value['value']:.4f}", f"{value['ci95'][0]:.4f} to {value['ci95'][1]:.4f}")
    total = result["n"] * samples
    for kind in ("right", "wrong", "unparseable"):
        table.add_row(kind, f"{result[kind] / total:.4f}", f"{result[kind]:,} of {total:,} outputs", style="dim")
    console().print(table)
    return 0


def evaluate_run(run, ks: list[int], samples: int, split: str = "test", n: int | None = None) -> dict:
    """pass@k of a run's newest checkpoint, and how many outputs were right, wrong and unparseable.

    `n` problems from the start of the split; more than the run's own are drawn on from the same stream.
    """
    import torch

    from .build import build_task
    from .evaluate import evaluate, interval, pass_at_k

    config = run.config
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    model, tokenizer, state = run.load_checkpoint()
    task = build_task(config, tokenizer)
    problems = getattr(task, split) if n is None else list(itertools.islice(task.stream(split), n))
    judged = evaluate(model, tokenizer, task, problems, samples, config.seed, config.grpo.temperature, config.trainer.rollout_rows)
    right = [sum(v.right for v in group) for group in judged.verdicts]
    kinds = [v.kind for group in judged.verdicts for v in group]
    passes = {}
    for k in ks:
        values = [pass_at_k(samples, r, k) for r in right]
        passes[str(k)] = {"value": sum(values) / len(values), "ci95": interval(values, k, config.seed)}
    return {
        "run": str(run.folder),
        "step": state["step"],
        "split": split,
        "n": len(problems),
        "samples": samples,
        "temperature": config.grpo.temperature,
        "pass_at_k": passes,
        **{kind: kinds.count(kind) for kind in ("right", "wrong", "unparseable")},
    }


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


def run_facts(run) -> dict[str, Any]:
    """What a run's folder says of it, as text; '' for what it does not say. "diagnoses" is a list of sentences."""
    config, events, summary = run.config, run.events, run.summary
    steps = [e for e in events if e["event"] == "step"]
    evals = [e for e in events if e["event"] == "eval"]
    sfts = [e for e in events if e["event"] == "sft"]
    last = steps[-1] if steps else None
    if summary:
        state = "finished"
    elif being_written(run.folder):
        state = "running"
    else:
        state = f"stopped; go on with: adaback train --resume --out {run.folder}"
    facts: dict[str, Any] = {"run": str(run.folder), "method": config.method, "seed": str(config.seed), "state": state}
    facts["step"] = f"{last['step'] if last else 0:,} of {config.trainer.max_steps:,}" if config.curriculum_name else ""
    facts["SFT"] = f"step {sfts[-1]['step']} at learning rate {sfts[-1]['lr']:g}, held-out loss {sfts[-1]['val_loss']:.3f}" if sfts and not summary else ""
    facts["rollouts"] = f"{last['rollouts']:,}" if last else ""
    facts["reward"] = f"{last['mean_reward']:.3f}" if last else ""
    facts["rho"] = f"{last['mean_rho']:.3f}" if last else ""
    facts["held out"] = f"{evals[-1]['accuracy']:.3f}" if evals else ""
    facts["test accuracy"] = "{:.3f} ({:.3f} to {:.3f})".format(summary["test_accuracy"], *summary["test_accuracy_ci95"]) if summary else ""
    wall = summary["wall_seconds"] if summary else next((e["wall"] for e in reversed(events) if "wall" in e), 0.0)
    facts["seconds"] = f"{wall:,.1f}"
    facts["stopped by"] = summary["stopped_by"] if summary else ""
    facts["diagnoses"] = [f"Step {e['step']}: {e['text']} {e['advice']}" for e in events if e["event"] == "diagnosis"]
    return facts


def being_written(folder: Path) -> bool:
    """Whether a process holds the run's lock. Asks for a shared lock and gives it back at once."""
    import fcntl

    try:
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


# ---------------------------------------------------------------- printing


def console():
    """Where tables go: as wide as the terminal, or 160 columns in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 160)), highlight=False)


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings as a sentence, those of libraries as usual."""
    if Path(filename).parent == Path(__file__).parent:
        print(f"adaback: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")


if __name__ == "__main__":
    sys.exit(main())
