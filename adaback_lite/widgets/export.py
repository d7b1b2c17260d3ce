"""Settings as text to keep or to copy: YAML, a papermill command, an `adaback train` command."""

import base64
import os
import shlex
from pathlib import Path
from typing import Any

import nbformat
import yaml

from ..config import Config, dump_config, flat, setting_names
from ..errors import UserError
from ..runs import write_atomically
from .kinds import as_text


def differing(config: Config) -> dict[str, Any]:
    """The settings by dotted name that differ from the defaults."""
    default, now = flat(Config()), flat(config)
    return {name: now[name] for name in now if now[name] != default[name]}


def write_yaml(config: Config, path: str | os.PathLike) -> Path:
    """Write the complete configuration to a file, and return its path. Raises UserError when that cannot be done."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path} does not end in .yaml; give the file such a name, so that 'adaback train' knows it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump_config(config))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another path.") from None
    return path


def download_link(config: Config) -> str:
    """HTML of a link that saves the configuration from the browser; it holds the file itself, so it needs no server."""
    data = base64.b64encode(dump_config(config).encode()).decode()
    return f'<a download="config.yaml" href="data:text/yaml;charset=utf-8;base64,{data}">Download config.yaml</a>'


def train_command(config: Config) -> str:
    """The `adaback train` command line that trains with these settings."""
    words = ["adaback", "train"]
    for name, value in differing(config).items():
        values = [as_text(v) for v in value] if isinstance(value, tuple) else [str(value).lower() if isinstance(value, bool) else as_text(value)]
        words += [f"--{name}={values[0]}"] if values[0].startswith("-") else [f"--{name}", *values]
    return shlex.join(words)


def notebook_parameters(notebook: str | os.PathLike) -> list[str]:
    """The names that a notebook's cell tagged `parameters` assigns, in order; none where there is no such notebook or cell."""
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (OSError, ValueError, nbformat.ValidationError):
        return []
    lines = [line for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", []) for line in cell.source.splitlines()]
    return [name for name in (line.partition("=")[0].strip() for line in lines if "=" in line) if name.isidentifier()]


def papermill_command(config: Config, notebook: str | os.PathLike, output: str = "out.ipynb") -> str:
    """The papermill command line that runs a notebook with the settings that differ from the defaults; the others are left to the notebook and its profile.

    A setting goes to the notebook's parameter of its last name, as curriculum.alpha to `alpha`; those that have none go into
    the parameter `settings`, a dict by dotted name. Where the notebook cannot be read, all but seed and out do.
    Raises UserError when the notebook has no such parameter: papermill would only warn, and train without them.
    """
    known, shorts = notebook_parameters(notebook) or ["seed", "out", "settings"], [name.rpartition(".")[2] for name in setting_names()]
    words, rest = ["papermill", str(notebook), output], {}
    for name, value in differing(config).items():
        short = name.rpartition(".")[2]
        if short not in known or shorts.count(short) > 1 or isinstance(value, tuple):
            rest[name] = list(value) if isinstance(value, tuple) else value
        elif isinstance(value, str):
            words += ["-r", short, value]  # raw: the text '1' stays a text
        else:
            words += ["-p", short, str(value) if isinstance(value, bool) else as_text(value)]
    if rest and "settings" not in known:
        raise UserError(f"{notebook} has no parameter for {', '.join(rest)}, and none called settings to take them; add the line 'settings = {{}}' to its parameters.")
    if rest:
        words += ["-y", "settings: " + yaml.safe_dump(rest, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False).strip()]
    return shlex.join(words)
