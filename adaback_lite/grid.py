"""The grid of a sweep: its language, its check against config.py and a notebook's parameters, and its cells.

    curriculum.alpha=0.01,0.05,0.2     a setting of config.py, by its dotted name: checked and typed by the setting
    seed=0..4                          whole numbers from 0 to 4, both ends
    profile=full                       one value: the same in every cell

A dotted setting reaches a notebook through the parameter that bears its last part (`alpha`), else through a dict parameter
`settings`, in which it stands by its dotted name. Everything is checked before anything runs.
"""

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .config import make_config, setting_names
from .errors import UserError

MAX_CELLS = 10_000
FORM = "write a name and its values, as seed=0..4 or curriculum.alpha=0.05,0.2"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
WORDS = {"true": True, "false": False, "none": None, "null": None}


def read_grid(grid) -> dict[str, list]:
    """{name: values} of a grid, in order; what was given as text stays text until `fit` knows what it is for.

    `grid` holds texts as the command line takes them, or is a mapping from names to a text, one value, or several.
    Raises UserError for a text of another form, a name or a value that comes twice, and where there is nothing to run.
    """
    pairs = list(grid.items()) if isinstance(grid, Mapping) else [_split(text) for text in ([grid] if isinstance(grid, str) else grid)]
    if not pairs:
        raise UserError("The grid is empty, so there is nothing to run; give --grid, as --grid seed=0..4.")
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"The grid names '{name}' twice; give all its values at once, as {name}=1,2.")
    return {name: _values(name, given) for name, given in pairs}


def _split(text: str) -> tuple[str, str]:
    name, sign, values = str(text).partition("=")
    if not (sign and re.fullmatch(r"[\w.]+", name.strip())):
        raise UserError(f"The grid's '{text}' is no name with values; {FORM}.")
    return name.strip(), values


def _values(name: str, given) -> list:
    if isinstance(given, str):
        values = [value for part in given.split(",") for value in _range(name, part.strip(), given)]
    elif isinstance(given, Mapping) or not hasattr(given, "__iter__"):
        values = [given]
    else:
        values = list(given)
    if not values:
        raise UserError(f"The grid gives '{name}' no value; {FORM}.")
    return [value.item() if hasattr(value, "item") else value for value in values]  # numpy's numbers are no JSON


def _range(name: str, part: str, given: str) -> list[str]:
    """The texts that one part between commas stands for: itself, or the whole numbers of a range."""
    if not part:
        raise UserError(f"The grid's '{name}={given}' has an empty value; {FORM}.")
    ends = re.fullmatch(r"([+-]?\d+)\.\.([+-]?\d+)", part)
    if ends is None:
        if ".." in part:
            raise UserError(f"The grid's '{name}={given}' has a range that is not of whole numbers; write one as 0..4, or the values one by one.")
        return [part]
    first, last = map(int, ends.groups())
    if not 0 <= last - first < MAX_CELLS:
        raise UserError(f"The grid's range {part} for '{name}' " + (f"holds more than {MAX_CELLS:,} values." if last > first else f"runs backwards; write {last}..{first}."))
    return [str(value) for value in range(first, last + 1)]


def plain_value(text: str) -> Any:
    """A value as typed: '1e-4' is a number, '3' a whole one; true, false and none are themselves; all else is text."""
    if NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return WORDS.get(text.lower(), text)


def setting_value(name: str, value) -> Any:
    """A setting's value in the setting's own type. Raises UserError as `make_config` does when it is of another type or out of bounds.

    The setting is checked by itself: whether it fits the others only the notebook knows, which sets those.
    """
    field = setting_names().get(name)
    if field is None:
        make_config({name: value})  # says which setting is nearest
    adapter = TypeAdapter(field.rebuild_annotation())
    try:
        several = isinstance(field.default, tuple) and isinstance(value, str | int | float)
        return adapter.dump_python(adapter.validate_python([value] if several else value), mode="json")
    except ValidationError:
        make_config({name: value})
        raise  # not reached: what one setting does not take, all together do not either


def fit(grid: dict[str, list], defaults: dict[str, Any], notebook: str) -> tuple[dict[str, list], dict[str, str]]:
    """(typed values, {name: the notebook's parameter that it sets}) of a grid, for a notebook with these parameters and their defaults.

    Raises UserError for a name that neither is a parameter nor reaches one, for a value that a setting does not take, for `out`,
    for two names that set the same parameter, and for a value that comes twice.
    """
    values, reaches = {}, {}
    for name, given in grid.items():
        if name == "out":
            raise UserError("The grid names 'out', which the sweep sets itself, to a folder for each cell; leave it out.")
        setting = "." in name or (name in ("seed", "method") and name in defaults)
        typed = [setting_value(name, v) if setting else plain_value(v) if isinstance(v, str) else v for v in given]
        reaches[name] = _reached(name, defaults, notebook)
        values[name] = typed
        texts = [_json(name, value) for value in typed]
        for text in texts:
            if texts.count(text) > 1:
                raise UserError(f"The grid gives '{name}' the value {text} twice; give each once.")
    for a, b in itertools.combinations(reaches, 2):
        if reaches[a] == reaches[b] and not _through_dict(a, reaches):
            raise UserError(f"'{a}' and '{b}' both set the parameter '{reaches[a]}' of {notebook}; leave one of them out.")
    return values, reaches


def _reached(name: str, defaults: dict[str, Any], notebook: str) -> str:
    if name in defaults:
        return name
    last = name.rpartition(".")[2]
    if "." in name and last in defaults and last != "out":
        return last
    if "." in name and isinstance(defaults.get("settings"), dict):
        return "settings"
    if "." in name:
        raise UserError(f"'{name}' cannot reach {notebook}, which has neither a parameter '{last}' nor a dict parameter 'settings'; its parameters are: {', '.join(defaults)}.")
    near = difflib.get_close_matches(name, [n for n in [*defaults, *setting_names()] if n != "out"], n=1, cutoff=0.5)
    raise UserError(f"{notebook} has no parameter '{name}'. " + (f"Did you mean '{near[0]}'?" if near else f"Its parameters are: {', '.join(defaults)}."))


def _through_dict(name: str, reaches: dict[str, str]) -> bool:
    return reaches[name] == "settings" and name != "settings"


def cells(values: dict[str, list]) -> list[dict[str, Any]]:
    """The cells, {name: value} each: every combination, the last name changing fastest. Raises UserError when there are too many."""
    number = 1
    for several in values.values():
        number *= len(several)
    if number > MAX_CELLS:
        raise UserError(f"The grid has {number:,} cells, more than {MAX_CELLS:,}; take fewer values.")
    return [dict(zip(values, combination)) for combination in itertools.product(*values.values())]


def parameters_of(cell: dict[str, Any], reaches: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    """What a notebook is given for a cell, by the notebook's parameters. Settings that go into `settings` come on top of its default."""
    given: dict[str, Any] = {}
    for name, value in sorted(cell.items(), key=lambda item: _through_dict(item[0], reaches)):  # a swept `settings` first
        if _through_dict(name, reaches):
            given["settings"] = {**given.get("settings", defaults["settings"]), name: value}
        else:
            given[reaches[name]] = value
    return given


def cell_names(cells: list[dict[str, Any]]) -> list[str]:
    """A folder's name for each cell, 'alpha=0.05_seed=0': readable, safe on every disk, and the same however the grid grows."""
    return [_cell_name(cell) for cell in cells]


def _cell_name(cell: dict[str, Any]) -> str:
    lasts = [name.rpartition(".")[2] for name in cell]
    parts, plain = [], True
    for name in sorted(cell):
        last, value = name.rpartition(".")[2], cell[name]
        text = value if isinstance(value, str) else json.dumps(value)
        # A text that could be read as something else, or that a file's name cannot hold, is told apart by the digest.
        plain &= not isinstance(value, str) or bool(re.fullmatch(r"[a-z][a-z0-9.+-]*", value) and value not in WORDS)
        plain &= not isinstance(value, dict | list)
        parts.append(f"{last if lasts.count(last) == 1 else name}={re.sub(r'[^A-Za-z0-9.+-]+', '-', text)}")
    name = "_".join(parts)
    if plain and len(name) <= 100:
        return name
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name[:90].rstrip('.')}_{digest}"


def grid_options(values: dict[str, list]) -> list[str]:
    """The grid as texts for the command line: ranges for whole numbers in a row. Values with commas have no such text and stand as JSON."""
    texts = []
    for name, several in values.items():
        whole = all(type(v) is int for v in several)
        if whole and len(several) > 2 and several == list(range(several[0], several[-1] + 1)):
            texts.append(f"{name}={several[0]}..{several[-1]}")
        else:
            texts.append(f"{name}={','.join(v if isinstance(v, str) else json.dumps(v) for v in several)}")
    return texts


def _json(name: str, value) -> str:
    if isinstance(value, PurePath):
        raise UserError(f"The grid gives '{name}' a path object; give it as text.")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise UserError(f"The grid gives '{name}' the value {value!r}, which cannot be written as JSON; give a number, text, true, false, none, a list or a dict.") from None
