"""Stored results: what a study measured, read back, with where it comes from.

    table, facts = stored("gsm_cpu")     data/results/gsm_cpu.csv and .json
    print(provenance("gsm_cpu"))         date, commit, machine and command, in one line
    store("mine", table, facts)          a study writes them

The results belong to the repository, not to the installed package: they are looked for beside the package, then upwards from
the folder in which Python was started.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .errors import UserError
from .runs import write_atomically

BESIDE = Path(__file__).resolve().parent.parent / "data" / "results"


class Stored(NamedTuple):
    """A study's table, a row for each thing measured, and all that stands in its JSON."""

    table: pd.DataFrame
    facts: dict


def results_folder() -> Path:
    """data/results of the repository. Raises UserError where the package is installed elsewhere and Python was not started in the repository."""
    here = Path.cwd()
    for folder in (BESIDE, *(parent / "data" / "results" for parent in (here, *here.parents))):
        if folder.is_dir():
            return folder
    raise UserError(f"There are no stored results: neither {BESIDE} nor a data/results at or above {here} exists; start Python inside the adaback-lite repository.")


def stored(name: str, folder: str | os.PathLike = "") -> Stored:
    """The stored result `name`. `folder` holds other results, as --results of a study made them.

    Raises UserError in one sentence where there are none of this name, or where they are damaged.
    """
    path = _path(name, ".csv", folder)
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path} cannot be read as a table ({' '.join(str(error).split())[:120]}); restore it from the repository.") from None
    return Stored(table, facts_of(name, folder))


def facts_of(name: str, folder: str | os.PathLike = "") -> dict:
    """What stands in NAME.json. Raises as `stored`."""
    path = _path(name, ".json", folder)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise UserError(f"{path} cannot be read as JSON; restore it from the repository.") from None


def store(name: str, table: pd.DataFrame, facts: dict, folder: str | os.PathLike = "") -> Path:
    """Write NAME.csv and NAME.json, so that `stored` reads them back; numbers with five digits. Returns the table's path."""
    folder = Path(folder) if folder else results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
    write_atomically(folder / f"{name}.json", json.dumps(facts, indent=2) + "\n")
    return folder / f"{name}.csv"


def provenance(name: str, folder: str | os.PathLike = "") -> str:
    """Where a stored result comes from, in one line; what its JSON does not say is left out. Raises as `stored`."""
    facts = facts_of(name, folder)
    machine = facts.get("machine", {})
    versions = {**machine, **machine.get("versions", {})}
    # cpu_name() knows more than platform.processor(), which is all that a run's summary has; a GPU counts for more than both.
    device = facts.get("device") or facts.get("cpu") or machine.get("cpu", "")
    cores = f"{machine['cores']} cores" if "cores" in machine and "device" not in facts else ""
    where = ", ".join(filter(None, [device, cores, f"torch {versions['torch']}" if "torch" in versions else ""]))
    parts = [
        f"measured on {facts['date']}" if facts.get("date") else "measured",
        f"with commit {facts['commit'][:8]}" if facts.get("commit") else "",
        f"on {where}" if where else "",
        f"by: {facts['command']}" if facts.get("command") else "",
    ]
    return f"{name}: " + " ".join(filter(None, parts))


def _path(name: str, ending: str, folder: str | os.PathLike) -> Path:
    if not name or Path(name).name != name:
        raise UserError(f"{name!r} is no name of a stored result; give one as 'gsm_cpu', without folder and ending.")
    folder = Path(folder) if folder else results_folder()
    path = folder / f"{name}{ending}"
    if not path.is_file():
        there = sorted(p.stem for p in folder.glob("*.json"))
        raise UserError(f"There is no stored result {path}; " + (f"there are: {', '.join(there)}." if there else "the folder holds none."))
    return path
