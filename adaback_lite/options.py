"""The command line's options: made from the settings of config.py, none written down twice; and the settings that they give.

Settings come from four places, each one winning over those before: config.py's defaults, a preset, the task or file that
`adaback train` names, the options.
"""

import argparse
import difflib
import os
import re
import shlex
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
import yaml
from pydantic_core import PydanticUndefined

from .config import GROUPS, PRESETS, TASKS, Config, load_config, make_config, override, preset, setting_names
from .errors import UserError

SETTING = "setting:"  # marks the parsed options that are settings


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


# ---------------------------------------------------------------- settings as options


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
    if low.startswith("above"):
        return f"{low}, {high}" if high.startswith("below") else f"{low}, up to {high}"
    return f"{low} to {high}"


def in_words(bound: float) -> str:
    """A bound for a reader: 1,000,000 and 0.5."""
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def setting_default(field) -> str:
    """A setting's default as one would type it in a shell."""
    value = field.default
    if value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, tuple) else shlex.quote(str(value))


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


# ---------------------------------------------------------------- refusals


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


# ---------------------------------------------------------------- options as settings


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by dotted name."""
    return {key.removeprefix(SETTING): value for key, value in vars(args).items() if key.startswith(SETTING)}


def start_settings(word: str | None, preset_name: str | None = None) -> Config | dict | None:
    """What the first word of `adaback train` gives: a file's configuration, on top of a preset if one is named; a task's setting; or nothing."""
    if word is None:
        return None
    if word in TASKS:
        return {"task.name": word}
    if word.endswith((".yaml", ".yml")) or os.path.exists(word):
        return load_config(word) if preset_name is None else file_on_preset(word, preset_name)
    near = difflib.get_close_matches(word, TASKS, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else f" Name a task ({', '.join(TASKS)}) or a .yaml file."
    raise UserError(f"There is no task or file '{word}'.{hint}")


def file_on_preset(path: str, preset_name: str) -> Config:
    """The settings of a YAML file, and where it sets none, those of a preset."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        data = None
    if not isinstance(data, dict):
        return load_config(path)  # which says what is wrong with the file
    given = set(data) | {f"{group}.{name}" for group, block in data.items() if isinstance(block, dict) for name in block}
    if given.issuperset(PRESETS[preset_name]):  # as every run's config.yaml is
        raise UserError(f"{path} sets all that the preset {preset_name} would set, so --preset would change nothing; leave it out, or take from the file what it is to set.")
    try:
        return make_config({**preset(preset_name), **data})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def known_preset(name: str) -> str:
    """The name again. Raises UserError when there is no preset by it."""
    preset(name)
    return name


def natural_preset(start: Config | dict | None, given: dict) -> str | None:
    """The preset for a task that was named without one: 'gpu' where torch sees a GPU, else 'cpu'; None for parity, and for a file, which says all itself."""
    if not isinstance(start, dict) or "parity" in (start["task.name"], given.get("task.name")):
        return None
    import torch

    return "gpu" if torch.cuda.is_available() and given.get("policy.device") != "cpu" else "cpu"


def chosen_config(given: dict, start: Config | dict | None, resume: bool, out: str | None, preset_name: str | None = None) -> Config:
    """The settings to train with: those of the preset, of the file or of the saved run, then those of the command line.

    On `--resume` without a file the saved run's settings are the start, and no preset comes beneath them; the trainer refuses those beside
    it that differ.
    """
    if isinstance(start, Config):
        config = override(start, given)
    else:
        given = {**(start or {}), **given}
        if resume:
            from .runs import load_run

            folder = out or Config().out
            if start is None or (Path(folder) / "config.yaml").is_file():
                return override(load_run(folder).config, {**given, "out": folder})
        config = make_config({**(preset(preset_name) if preset_name else {}), **given})
    if preset_name and config.task.name == "parity":
        raise UserError(f"The preset {preset_name} is for a language model and word problems, but task.name is parity, which needs none; leave --preset out, or name another task.")
    return config
