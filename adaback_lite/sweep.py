"""A notebook over a grid of parameters: papermill, each cell of the grid in a process of its own, and one table at the end.

    sweep("notebooks/06_alpha.ipynb", {"curriculum.alpha": [0.01, 0.05, 0.2], "seed": range(5)}, "runs/alpha", jobs=2)
    sweep("notebooks/06_alpha.ipynb", ["curriculum.alpha=0.01,0.05,0.2", "seed=0..4"], "runs/alpha", executor=client.get_executor())

A sweep's folder:

    sweep.json            notebook, grid, cells, command, commit, date
    notebook.ipynb        the notebook as it was when the sweep began; every cell of the grid runs this copy
    cells/NAME/           cell.json (its parameters), the executed notebook, result.json, traceback.txt if it failed, log.txt, runs/
    table.csv, .parquet   a row a run (sweep_table.py), written anew after each cell

A cell that is done is not run again. A stopped sweep goes on with the same call: notebooks train with resume=True, so that a run
goes on from its checkpoint.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shlex
import signal
import sys
import threading
import time
from ast import literal_eval
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pandas as pd
from jupyter_client.kernelspec import KernelSpecManager
from papermill.translators import papermill_translators
from tqdm import tqdm

from . import grid as grids
from .errors import UserError
from .runs import being_written, write_atomically
from .sweep_cell import ASK_TO_STOP, GRACE, NOTEBOOK, read_result, run_cell, write_result
from .sweep_table import as_table, cell_rows, read_sweep, write_tables


class Failure(NamedTuple):
    """A cell that failed."""

    cell: str
    error: str  # one line
    notebook: Path  # as far as it came, with the error in it
    traceback: Path | None  # the same as text; None where there is none, as when the kernel was killed


class Sweep(NamedTuple):
    """What a sweep found."""

    table: pd.DataFrame
    failures: list[Failure]
    cells: int


class Plan(NamedTuple):
    """All that a sweep is going to do, checked."""

    notebook: Path
    content: nbformat.NotebookNode
    digest: str  # of the notebook's code
    values: dict[str, list]
    reaches: dict[str, str]
    defaults: dict[str, Any]
    cells: dict[str, dict[str, Any]]  # by folder name


def sweep(notebook: str | os.PathLike, grid, out: str | os.PathLike, jobs: int = 1, executor: Executor | None = None, *, again: bool = False, progress: bool = True) -> Sweep:
    """Run a notebook for every combination of a grid's values; what is done already is kept.

    Args:
        notebook: a notebook with a cell tagged `parameters`. Its folder is the working folder of the cells.
        grid: texts as on the command line (grid.py), or a mapping from names to a text, one value, or several.
        out: the sweep's folder. It may hold this sweep already, also one over a part of this grid.
        jobs: cells run at the same time; with an executor, cells that share a machine (it sets their CPU threads).
        executor: anything with concurrent.futures' interface, such as Dask's `Client.get_executor()`; its machines must share `out`.
        again: run every cell anew, as after a change to the notebook. Earlier runs are put aside, in runs-before-N beside the new ones.

    A cell that fails is among the failures, and the others go on. On Ctrl-C (and SIGTERM) the running cells are interrupted, so that
    their training writes a checkpoint, their kernels end, and KeyboardInterrupt is raised.
    Raises UserError before anything is run for whatever is wrong with the notebook, the grid or the folder.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise UserError(f"jobs is {jobs!r}, but must be a whole number, at least 1.")
    plan, out = make_plan(notebook, grid), Path(out)
    with opened(out, plan, jobs, again):
        names = [name for name in plan.cells if not is_done(out, name)]
        rows = {name: cell_rows(out, name) for name in plan.cells if name not in names}
        with tqdm(total=len(plan.cells), initial=len(rows), disable=not progress, unit="cell", desc="sweep", mininterval=1) as bar:
            try:
                for name, result in results(out, names, jobs, executor):
                    rows[name] = cell_rows(out, name)
                    if result["status"] == "failed" and progress:
                        bar.write(f"failed: {name}: {result['error']}", file=sys.stderr)
                    bar.update()
                    write_tables(out, in_order(plan, rows))
            except KeyboardInterrupt:
                done = sum(is_done(out, name) for name in plan.cells)
                raise KeyboardInterrupt(f"{done} of {len(plan.cells)} cells are done; go on with: {command_line(plan, out, jobs)}") from None
        table = in_order(plan, rows)
        write_tables(out, table)
        return Sweep(table, failures(out, plan), len(plan.cells))


def in_order(plan: Plan, rows: dict[str, list]) -> pd.DataFrame:
    return as_table([row for name in plan.cells for row in rows.get(name, [])])


def failures(out: Path, plan: Plan) -> list[Failure]:
    """The cells that failed, in order."""
    found = []
    for name in plan.cells:
        folder, result = out / "cells" / name, read_result(out / "cells" / name)
        if result and result["status"] == "failed":
            traceback = folder / "traceback.txt"
            found.append(Failure(name, result["error"], folder / plan.notebook.name, traceback if traceback.is_file() else None))
    return found


# ---------------------------------------------------------------- what is to be done


def make_plan(notebook: str | os.PathLike, grid) -> Plan:
    """Read and check notebook and grid. Raises UserError for what is wrong with either."""
    path = Path(notebook)
    content = read_notebook(path)
    check_kernel(path, content)
    defaults = parameters(path, content)
    values, reaches = grids.fit(grids.read_grid(grid), defaults, path.name)
    cells = grids.cells(values)
    code = [cell.source for cell in content.cells if cell.cell_type == "code"]
    digest = hashlib.sha256(json.dumps(code).encode()).hexdigest()
    return Plan(path.resolve(), content, digest, values, reaches, defaults, dict(zip(grids.cell_names(cells), cells)))


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook. Raises UserError when it is missing or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return nbformat.read(file, as_version=4)
    except FileNotFoundError:
        raise UserError(f"There is no notebook {path}; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); name a notebook, a file that ends in .ipynb.") from None
    except (ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError):  # nbformat raises all of these for JSON that is no notebook
        raise UserError(f"{path} is not a notebook; name a file that Jupyter has written, which ends in .ipynb.") from None


def parameters(path: Path, content: nbformat.NotebookNode) -> dict[str, Any]:
    """A notebook's parameters with their defaults. Raises UserError when no cell is tagged `parameters`."""
    tagged = [cell for cell in content.cells if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise UserError(f"{path} has no cell tagged 'parameters', so there is nothing to sweep over; give that tag, in Jupyter's property inspector, to the cell that sets them.")
    kernel = content.metadata.get("kernelspec", {})
    defaults = {}
    for parameter in papermill_translators.find_translator(kernel.get("name"), kernel.get("language", "python")).inspect(tagged[0]):
        try:
            defaults[parameter.name] = literal_eval(parameter.default)
        except (ValueError, SyntaxError):  # an expression, whose value only the notebook knows
            defaults[parameter.name] = parameter.default
    return defaults


def check_kernel(path: Path, content: nbformat.NotebookNode) -> None:
    """Raise UserError when the kernel that a notebook names is not installed."""
    there = sorted(KernelSpecManager().find_kernel_specs())
    name = content.metadata.get("kernelspec", {}).get("name")
    if name not in there:
        what = f"asks for the kernel '{name}', which is not installed here" if name else "names no kernel"
        raise UserError(f"{path} {what}; there are: {', '.join(there) or 'none'}; choose one of them in Jupyter and save, or install it.")


def command_line(plan: Plan, out: Path, jobs: int) -> str:
    """The command that runs, or goes on with, a sweep."""
    notebook = os.path.relpath(plan.notebook)
    words = ["adaback", "sweep", str(plan.notebook) if notebook.startswith("..") else notebook]
    for text in grids.grid_options(plan.values):
        words += ["--grid", text]
    return shlex.join([*words, "--out", str(out), *(["--jobs", str(jobs)] if jobs > 1 else [])])


# ---------------------------------------------------------------- the folder


@contextlib.contextmanager
def opened(out: Path, plan: Plan, jobs: int, again: bool):
    """The sweep's folder, taken for this process and filled with what its cells need. Raises UserError where it cannot be used, and changes nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out.")
    first_files = {"lock", "started.json", "started.json.writing", "sweep.json.writing"}  # all that a sweep killed in its first moments leaves
    if out.is_dir() and {p.name for p in out.iterdir()} - first_files and not (out / "sweep.json").is_file():
        raise UserError(f"{out} holds files but no sweep; choose another --out, nothing was changed.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / "lock", "a")  # noqa: SIM115  (held until the end)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); check its permissions or choose another --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being written by another sweep; wait for it, stop it, or choose another --out.") from None
        before = read_sweep(out) if (out / "sweep.json").is_file() else None
        if before:
            check_same(out, plan, before, again)
        (out / ASK_TO_STOP).unlink(missing_ok=True)
        try:
            prepare(out, plan, jobs, again)
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise UserError(f"{out} cannot be written any more ({error.strerror}); what is done is kept, so mend that and give the same command again.") from error


def check_same(out: Path, plan: Plan, before: dict, again: bool) -> None:
    """Raise UserError when the folder holds another sweep than `plan`, or one that is more than a part of it."""
    if before["notebook"] != plan.notebook.name:
        raise UserError(f"{out} holds a sweep over {before['notebook']}, not {plan.notebook.name}; choose another --out.")
    gone = [name for name in before["cells"] if name not in plan.cells]
    if gone:
        raise UserError(f"{out} holds a sweep over another grid ({' '.join(before['grid'])}), which may only grow; give all its values, or choose another --out.")
    if before["digest"] != plan.digest and not again:
        raise UserError(f"The code of {plan.notebook.name} has changed since the sweep in {out} began; add --again to run it anew in every cell, or choose another --out.")


def prepare(out: Path, plan: Plan, jobs: int, again: bool) -> None:
    """Write what the cells need: the notebook's copy, and each cell's parameters."""
    from .studies import started

    if again:  # first of all: a kill from here on leaves cells that are to be run again
        for result in out.glob("cells/*/result.json"):
            result.unlink()
        for runs in out.glob("cells/*/runs"):  # kept, but no longer the sweep's: a changed notebook may have other settings
            runs.rename(next(path for n in itertools.count(1) if not (path := runs.with_name(f"runs-before-{n}")).exists()))
        (out / "started.json").unlink(missing_ok=True)
    command = command_line(plan, out, jobs)
    origin = started(out, command)  # of the first call; the command is the latest, for a grid may have grown
    record = {
        "notebook": plan.notebook.name,
        "digest": plan.digest,
        "grid": grids.grid_options(plan.values),
        "reaches": plan.reaches,
        "parameters": [name for name in plan.defaults if name != "out"],
        "cells": list(plan.cells),
        "command": command,
        "commit": origin["commit"],
        "date": origin["date"],
    }
    write_atomically(out / "sweep.json", json.dumps(record, indent=2) + "\n")
    write_atomically(out / NOTEBOOK, nbformat.writes(plan.content))
    for name, cell in plan.cells.items():
        given = grids.parameters_of(cell, plan.reaches, plan.defaults)
        digest = hashlib.sha256(json.dumps([plan.digest, given], sort_keys=True).encode()).hexdigest()
        others = {k: v for k, v in plan.defaults.items() if k not in given and k != "out"}
        content = {
            "name": plan.notebook.name, "cwd": str(plan.notebook.parent), "parameters": given, "sets_out": "out" in plan.defaults,
            "grid": cell, "others": others, "digest": digest,
        }  # fmt: skip
        folder = out / "cells" / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "cell.json").is_file() or json.loads((folder / "cell.json").read_text(encoding="utf-8")) != content:
            write_atomically(folder / "cell.json", json.dumps(content, indent=2) + "\n")


def is_done(out: Path, name: str) -> bool:
    """Whether a cell has run to its end, with this notebook and these parameters."""
    folder = out / "cells" / name
    result = read_result(folder)
    return bool(result) and result["status"] == "ok" and result["digest"] == json.loads((folder / "cell.json").read_text(encoding="utf-8"))["digest"]


# ---------------------------------------------------------------- running


def results(out: Path, names: list[str], jobs: int, executor: Executor | None):
    """Run cells; yields (name, result) for each as it ends. When it is left early, by Ctrl-C or an error, the cells that run are stopped."""
    root = out.resolve() / "cells"
    pool = executor or ThreadPoolExecutor(jobs)
    futures: dict[Future, str] = {}
    with sigterm_as_interrupt():
        try:
            for name in names:
                futures[pool.submit(run_cell, str(root / name), jobs)] = name
            for future in as_completed(futures):
                yield futures[future], result_of(future, root / futures[future])
        finally:
            if not all(future.done() for future in futures):
                stop_cells(out, futures)
            if executor is None:
                pool.shutdown()


def result_of(future: Future, folder: Path) -> dict:
    """A cell's result. Raises KeyboardInterrupt when it was stopped; a cell that its executor lost, as with a Dask worker's machine, has failed."""
    error = CancelledError("cancelled") if future.cancelled() else future.exception()
    if isinstance(error, KeyboardInterrupt) or (error is None and future.result()["status"] == "stopped"):
        raise KeyboardInterrupt
    if error is None:
        return future.result()
    said = f"{type(error).__name__}: {error}".split("\n")[0]
    return write_result(folder, "failed", 0.0, f"The executor lost this cell ({said}); the same command again runs it again.")


def stop_cells(out: Path, futures: dict[Future, str]) -> None:
    """Ask running cells to stop, and wait until they have; a second Ctrl-C makes them stop at once."""
    (out / ASK_TO_STOP).write_text("")
    for future in futures:
        future.cancel()
    until = time.monotonic() + 2 * GRACE
    while time.monotonic() < until and any(being_written(out / "cells" / name) for name in futures.values()):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            (out / ASK_TO_STOP).write_text("now")


@contextlib.contextmanager
def sigterm_as_interrupt():
    """SIGTERM as Ctrl-C, where Python allows it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
