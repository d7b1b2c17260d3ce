"""What a sweep found, in one table; and the step from there to the stored results of the repository.

    collect("runs/alpha")                      the table, as it stands: also while the sweep runs, and after a stop
    store(["runs/alpha", "runs/tau"], "alpha")   data/results/alpha.csv and alpha.json, from one sweep or several over one notebook

A row is a run that ended (each summary.json below a cell's folder); a cell without such a run gives one row. Columns: the grid's
parameters by the names that were asked for, the notebook's other parameters, how the cell went, and all of the run's summary.
A field whose name a parameter has already stands as run.NAME.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import UserError
from .results import store as store_result
from .runs import write_atomically
from .sweep_cell import read_result

SWEEP_FIELDS = {"notebook", "digest", "grid", "reaches", "parameters", "cells", "command", "commit", "date"}
CELL_FIELDS = ("cell", "status", "seconds", "error", "notebook", "run")


def collect(out: str | os.PathLike) -> pd.DataFrame:
    """The table of a sweep, from its folder alone. Raises UserError when there is no sweep in it."""
    out, sweep = Path(out), read_sweep(out)
    return as_table([row for name in sweep["cells"] for row in cell_rows(out, name)])


def read_sweep(out: str | os.PathLike) -> dict:
    """What sweep.json says. Raises UserError when it is missing or damaged."""
    path = Path(out) / "sweep.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not set(record) >= SWEEP_FIELDS:
            raise ValueError
        return record
    except FileNotFoundError:
        raise UserError(f"There is no sweep in {out}; name the folder that was given to 'adaback sweep' as --out.") from None
    except (OSError, ValueError):
        raise UserError(f"{path} is damaged; restore it from a copy, or sweep into another folder.") from None


def cell_rows(out: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one cell; none while it has not ended."""
    folder = out / "cells" / name
    result = read_result(folder)
    if result is None:
        return []
    cell = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    rows = []
    for run, summary in summaries(folder) or [(None, {})]:
        run = "" if run is None else run.relative_to(out).as_posix()
        fields = {"cell": name, **{k: result[k] for k in ("status", "seconds", "error")}, "notebook": (folder / cell["name"]).relative_to(out).as_posix(), "run": run}
        fields |= flatten(summary)
        parameters = {**cell["grid"], **cell["others"]}
        rows.append({**{k: as_field(v) for k, v in parameters.items()}, **{f"run.{k}" if k in parameters else k: v for k, v in fields.items()}})
    return rows


def summaries(folder: Path) -> list[tuple[Path, dict]]:
    """(folder, summary) of each run that ended below a cell's folder, in order."""
    found = []
    for path in sorted(folder.rglob("summary.json")):
        if any(part.startswith("runs-before-") for part in path.relative_to(folder).parts):  # put aside by --again
            continue
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(summary, dict):  # a notebook may write files of this name that are no run's
            found.append((path.parent, summary))
    return found


def flatten(summary: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A summary's fields: machine.torch for what lies deeper, NAME_low and NAME_high for an interval (NAME_ci95), JSON for other lists."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        name = prefix + key
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif key.endswith("_ci95") and isinstance(value, list) and len(value) == 2:
            flat |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        else:
            flat[name] = as_field(value)
    return flat


def as_field(value) -> Any:
    """A value as it stands in the table: lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with different fields as one table. A column in which numbers and text meet becomes text, since Parquet has no other."""
    table = pd.DataFrame(rows)
    for name in table.columns:
        values = table[name].dropna()
        if len({_kind(v) for v in values}) > 1:
            table[name] = table[name].map(lambda v: v if v is None or v != v else v if isinstance(v, str) else json.dumps(v))
    return table


def _kind(value) -> str:
    return "text" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"


def write_tables(out: Path, table: pd.DataFrame) -> None:
    """OUT/table.csv and OUT/table.parquet, each replaced whole."""
    parquet = io.BytesIO()
    table.to_parquet(parquet, index=False)
    for name, data in (("table.csv", table.to_csv(index=False).encode()), ("table.parquet", parquet.getvalue())):
        write_atomically(out / name, data)


# ---------------------------------------------------------------- to the stored results


def store(outs: str | os.PathLike | list, name: str, folder: str | os.PathLike = "") -> Path:
    """Write finished sweeps over one notebook as the stored result `name`: NAME.csv, and NAME.json with where it comes from.

    The parameters' columns bear the notebook's own names (`alpha`, for curriculum.alpha). A cell that several sweeps ran counts once.
    Raises UserError when a sweep has cells that failed or did not run, or when the sweeps are over different notebooks.
    """
    from .studies import cpu_name

    outs = [Path(o) for o in (outs if isinstance(outs, list | tuple) else [outs])]
    sweeps = [read_sweep(out) for out in outs]
    if len({s["notebook"] for s in sweeps}) > 1:
        raise UserError(f"The sweeps are over different notebooks ({', '.join(sorted({s['notebook'] for s in sweeps}))}); store each by itself.")
    tables = []
    for out, sweep in zip(outs, sweeps):
        table = collect(out)
        bad = len(sweep["cells"]) - (table[table.status == "ok"].cell.nunique() if len(table) else 0)
        if bad:
            raise UserError(f"{bad} of the {len(sweep['cells'])} cells in {out} have failed or did not run; finish the sweep first, with: {sweep['command']}")
        tables.append(table.rename(columns={asked: reached for asked, reached in sweep["reaches"].items() if reached != "settings"}))
    table = pd.concat(tables, ignore_index=True)
    dropped = [c for c in table.columns if c in CELL_FIELDS or c.startswith("machine.")]
    parameters = [c for c in sweeps[0]["parameters"] if c in table.columns]
    table["run_name"] = table.run.str.replace(r"^.*?/runs/", "", regex=True)
    table = table.drop_duplicates([*parameters, "run_name"]).drop(columns=[*dropped, "run_name"])
    first = json.loads((outs[0] / tables[0].run.iloc[0] / "summary.json").read_text(encoding="utf-8")) if tables[0].run.iloc[0] else {}
    facts = {
        "command": " && ".join(s["command"] for s in sweeps),
        "commit": sweeps[0]["commit"],
        "date": sweeps[0]["date"],
        "cpu": cpu_name(),
        "seeds": sorted(int(s) for s in table.seed.unique()) if "seed" in table else [],
        "machine": first.get("machine", {}),
    }
    return store_result(name, table, facts, folder)
