"""Sweeps: what is run and what is kept, with a stand-in for the kernels (fast), and with real ones: failures, kills, Ctrl-C, executors."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from adaback_lite import UserError, load_run, sweep_table
from adaback_lite.results import facts_of, stored
from adaback_lite.sweep import command_line, make_plan, sweep
from adaback_lite.sweep_cell import read_result, run_cell, threads_for, write_result
from adaback_lite.sweep_table import as_table, collect, flatten, store

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = 'alpha = 0.05  # weight\nseed = 0  # seed\nword = "a"  # a text\nout = "runs"  # folder\nsettings = {}  # more'
SUMMARY = {"method": "adaback", "seed": 0, "steps": 2, "rollouts": 64, "test_accuracy": 0.5, "test_accuracy_ci95": [0.4, 0.6], "stopped_by": "max_steps"}
SUMMARY |= {"sft_lr": None, "machine": {"python": "3.11", "versions": {"torch": "2"}}, "list": [1, 2]}


def write_notebook(path: Path, *code: str, parameters: str = PARAMETERS, kernel: str = "python3", text: str = "") -> Path:
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})] + [nbformat.v4.new_code_cell(c) for c in code]
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}} if kernel else {}
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=metadata)))
    return path


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "n.ipynb", "1")


class StandIn(Executor):
    """In place of a kernel: writes a run's summary and a result, at once. `fails` says for which cells not; `ran` lists what it was given."""

    def __init__(self, fails=lambda name: "", raises=None, runs=1):
        self.fails, self.raises, self.runs, self.ran = fails, raises, runs, []

    def submit(self, fn, folder, jobs):
        assert fn is run_cell
        folder, future = Path(folder), Future()
        self.ran.append(folder.name)
        if self.raises:
            future.set_exception(self.raises)
            return future
        error = self.fails(folder.name)
        for i in range(0 if error else self.runs):
            run = folder / "runs" / f"r{i}"
            run.mkdir(parents=True, exist_ok=True)
            (run / "summary.json").write_text(json.dumps(SUMMARY))
        future.set_result(write_result(folder, "failed" if error else "ok", 1.5, error))
        return future


def swept(notebook, grid, out, again=False, **stand_in):
    executor = StandIn(**stand_in)
    return sweep(notebook, grid, out, executor=executor, progress=False, again=again), executor.ran


def snapshot(folder: Path) -> dict:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- the table


def test_the_table_has_every_parameter_and_every_field(notebook, tmp_path):
    result, ran = swept(notebook, ["curriculum.alpha=0.1,1e-4", "seed=3", "trainer.threads=1"], tmp_path / "s", fails=lambda name: "It broke." if "0.0001" in name else "", runs=2)
    assert ran == ["alpha=0.1_seed=3_threads=1", "alpha=0.0001_seed=3_threads=1"] and result.cells == 2
    first = {
        "curriculum.alpha": 0.1, "seed": 3, "trainer.threads": 1, "word": "a", "cell": ran[0], "status": "ok", "seconds": 1.5, "error": "",
        "notebook": f"cells/{ran[0]}/n.ipynb", "run": f"cells/{ran[0]}/runs/r0", "method": "adaback", "run.seed": 0, "steps": 2, "rollouts": 64,
        "test_accuracy": 0.5, "test_accuracy_ci95_low": 0.4, "test_accuracy_ci95_high": 0.6, "stopped_by": "max_steps", "sft_lr": None,
        "machine.python": "3.11", "machine.versions.torch": "2", "list": "[1, 2]",
    }  # fmt: skip
    rows = result.table.astype(object).where(result.table.notna(), None).to_dict("records")
    assert rows[0] == first and list(result.table.columns) == list(first)
    assert rows[1] == {**first, "run": f"cells/{ran[0]}/runs/r1"}
    assert rows[2] == {**dict.fromkeys(first), **{k: first[k] for k in ("seed", "trainer.threads", "word", "seconds")}, "curriculum.alpha": 1e-4, "cell": ran[1],
                       "status": "failed", "error": "It broke.", "notebook": f"cells/{ran[1]}/n.ipynb", "run": ""}  # fmt: skip
    assert result.failures == [(ran[1], "It broke.", tmp_path / "s" / "cells" / ran[1] / "n.ipynb", None)]

    parquet = pd.read_parquet(tmp_path / "s" / "table.parquet")
    pd.testing.assert_frame_equal(parquet, result.table, check_dtype=False)
    csv = pd.read_csv(tmp_path / "s" / "table.csv")
    assert csv["curriculum.alpha"].tolist() == [0.1, 0.1, 1e-4] and csv["run"].tolist()[:2] == parquet["run"].tolist()[:2]
    pd.testing.assert_frame_equal(collect(tmp_path / "s"), result.table)


def test_the_table_is_written_after_each_cell(notebook, tmp_path):
    lengths = []

    class Looking(StandIn):
        def submit(self, fn, folder, jobs):
            future = super().submit(fn, folder, jobs)
            look, table = Future(), tmp_path / "s" / "table.parquet"
            look.set_result(future.result())
            look.result = lambda timeout=None: lengths.append(len(pd.read_parquet(table)) if table.is_file() else 0) or future.result()
            return look

    sweep(notebook, "seed=0..2", tmp_path / "s", executor=Looking(), progress=False)
    assert sorted(set(lengths)) == [0, 1, 2]


def test_flatten():
    assert flatten({"a": 1, "b": {"c": {"d": None}}, "e_ci95": [0, 1], "f_ci95": None, "g": [], "h": "x"}) == {
        "a": 1, "b.c.d": None, "e_ci95_low": 0, "e_ci95_high": 1, "f_ci95": None, "g": "[]", "h": "x",
    }  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), [([1, "a", None], ["1", "a", None]), ([1, 2.5], [1, 2.5]), ([True, 1], ["true", "1"]), (["a", None], ["a", None])])
def test_columns_of_several_kinds_can_be_parquet(values, expected, tmp_path):
    table = as_table([{"x": v, "y": 1} for v in values])
    sweep_table.write_tables(tmp_path, table)
    read = pd.read_parquet(tmp_path / "table.parquet").x
    assert read.astype(object).where(read.notna(), None).tolist() == expected


def test_a_table_without_rows(tmp_path):
    sweep_table.write_tables(tmp_path, as_table([]))
    assert len(pd.read_parquet(tmp_path / "table.parquet")) == 0 and (tmp_path / "table.csv").is_file()


def test_a_summary_that_is_no_runs(notebook, tmp_path):
    swept(notebook, "seed=0", tmp_path / "s")
    folder = tmp_path / "s" / "cells" / "seed=0"
    for name, text in (("x", "[1]"), ("y", "torn")):
        (folder / name).mkdir()
        (folder / name / "summary.json").write_text(text)
    assert collect(tmp_path / "s").run.tolist() == ["cells/seed=0/runs/r0"]


# ---------------------------------------------------------------- what is kept, what is run


def test_what_is_done_is_not_run_again_and_a_grid_may_grow(notebook, tmp_path):
    out = tmp_path / "s"
    assert swept(notebook, ["alpha=0.1", "seed=0..1"], out)[1] == ["alpha=0.1_seed=0", "alpha=0.1_seed=1"]
    kept = snapshot(out / "cells")
    result, ran = swept(notebook, ["seed=0..1", "alpha=0.1"], out)  # in another order
    assert ran == [] and len(result.table) == 2 and snapshot(out / "cells") == kept
    result, ran = swept(notebook, ["alpha=0.1,0.3", "seed=0..2"], out)
    assert sorted(ran) == ["alpha=0.1_seed=2", "alpha=0.3_seed=0", "alpha=0.3_seed=1", "alpha=0.3_seed=2"] and len(result.table) == 6
    assert {p: v for p, v in snapshot(out / "cells").items() if p in kept} == kept
    assert json.loads((out / "sweep.json").read_text())["grid"] == ["alpha=0.1,0.3", "seed=0..2"]


def test_only_failed_cells_are_tried_again(notebook, tmp_path):
    out = tmp_path / "s"
    first, _ = swept(notebook, "seed=0..2", out, fails=lambda name: "" if name.endswith("1") else "No.")
    assert [f.cell for f in first.failures] == ["seed=0", "seed=2"] and first.table.status.tolist() == ["failed", "ok", "failed"]
    second, ran = swept(notebook, "seed=0..2", out)
    assert ran == ["seed=0", "seed=2"] and second.failures == [] and second.table.status.tolist() == ["ok"] * 3


def test_a_cell_that_was_stopped_runs_again(notebook, tmp_path):
    swept(notebook, "seed=0..1", tmp_path / "s")
    (tmp_path / "s" / "cells" / "seed=1" / "result.json").unlink()
    assert swept(notebook, "seed=0..1", tmp_path / "s")[1] == ["seed=1"]


def test_a_changed_notebook_is_refused_until_again(notebook, tmp_path):
    out = tmp_path / "s"
    swept(notebook, "seed=0..1", out)
    write_notebook(notebook, "1", text="only words changed")
    assert swept(notebook, "seed=0..1", out)[1] == []
    write_notebook(notebook, "2")
    before = snapshot(out)
    with pytest.raises(UserError, match="has changed since the sweep in .* began; add --again"):
        swept(notebook, "seed=0..1", out)
    assert snapshot(out) == before
    assert swept(notebook, "seed=0..1", out, again=True)[1] == ["seed=0", "seed=1"]
    assert swept(notebook, "seed=0..1", out)[1] == []
    assert nbformat.read(out / "notebook.ipynb", 4).cells[-1].source == "2"
    assert (out / "cells" / "seed=0" / "runs-before-1" / "r0" / "summary.json").is_file()  # no run was deleted,
    assert len(pd.read_csv(out / "table.csv")) == 2  # and none that was put aside is counted


def test_again_that_was_stopped_goes_on_without_again(notebook, tmp_path):
    out = tmp_path / "s"
    swept(notebook, "seed=0..1", out)
    write_notebook(notebook, "2")
    with pytest.raises(KeyboardInterrupt):
        swept(notebook, "seed=0..1", out, again=True, raises=KeyboardInterrupt())
    assert swept(notebook, "seed=0..1", out)[1] == ["seed=0", "seed=1"]


def test_other_sweeps_are_refused(notebook, tmp_path):
    out = tmp_path / "s"
    swept(notebook, ["alpha=0.1", "seed=0..1"], out)
    before = snapshot(out)
    for other, grid, words in (
        (notebook, ["alpha=0.1", "seed=0"], re.escape("another grid (alpha=0.1 seed=0,1), which may only grow")),
        (notebook, ["alpha=0.1", "seed=0..1", "word=b"], "another grid"),
        (write_notebook(tmp_path / "m.ipynb", "1"), ["alpha=0.1", "seed=0..1"], "holds a sweep over n.ipynb, not m.ipynb"),
    ):
        with pytest.raises(UserError, match=words):
            swept(other, grid, out)
        assert snapshot(out) == before


def test_a_lost_worker_is_a_failed_cell(notebook, tmp_path):
    result, _ = swept(notebook, "seed=0", tmp_path / "s", raises=OSError("worker gone\nmore"))
    assert result.failures[0].error == "The executor lost this cell (OSError: worker gone); the same command again runs it again."
    cancelled = Future()
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()
    from adaback_lite.sweep import result_of

    assert "cancelled" in result_of(cancelled, tmp_path / "s" / "cells" / "seed=0")["error"]


def test_the_command_that_goes_on(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="0 of 3 cells are done; go on with: ") as caught:
        swept(notebook, {"seed": range(3), "word": "b c"}, "s", raises=KeyboardInterrupt())
    words = shlex.split(str(caught.value).partition("go on with: ")[2])
    assert words == ["adaback", "sweep", "n.ipynb", "--grid", "seed=0..2", "--grid", "word=b c", "--out", "s"]
    plan = make_plan("n.ipynb", {"seed": range(3), "word": "b c"})
    assert shlex.split(command_line(plan, Path("s"), 2))[-2:] == ["--jobs", "2"]


@pytest.mark.parametrize("jobs", [1, 2, 3, 1000])
def test_threads(jobs, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert threads_for(jobs) == {1: 6, 2: 3, 3: 2, 1000: 1}[jobs]


# ---------------------------------------------------------------- one sentence


def refused(command, *words) -> str:
    status, out, err = command("sweep", *words)
    assert status == 2 and out == "" and err.startswith("adaback: ") and err.count("\n") == 1, (status, out, err)
    return err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "There is no notebook"),
        ("print(1)", "is not a notebook"),
        ("{}", "is not a notebook"),
        ("[1]", "is not a notebook"),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}', "is not a notebook"),
        (b"\xff\xfe", "is not a notebook"),
    ],
)
def test_what_is_no_notebook(text, words, tmp_path, command):
    path = tmp_path / "n.ipynb"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(command, path, "--grid", "seed=0", "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_notebooks_that_cannot_be_swept(tmp_path, command):
    arguments = ("--grid", "seed=0", "--out", tmp_path / "s")
    path = write_notebook(tmp_path / "n.ipynb", "1", kernel="nosuch")
    assert "asks for the kernel 'nosuch', which is not installed here; there are: " in refused(command, path, *arguments)
    assert "names no kernel" in refused(command, write_notebook(path, "1", kernel=""), *arguments)
    bare = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed = 0")], metadata={"kernelspec": {"name": "python3", "display_name": "p"}})
    path.write_text(nbformat.writes(bare))
    assert "has no cell tagged 'parameters'" in refused(command, path, *arguments)
    assert "n.ipynb has no parameter 'sed'. Did you mean 'seed'?" in refused(command, write_notebook(path, "1"), "--grid", "sed=1", "--out", tmp_path / "s")
    assert "is less than" in refused(command, path, "--grid", "curriculum.alpha=2", "--out", tmp_path / "s").replace("should be less than", "is less than")
    assert "The grid is empty" in refused(command, path, "--out", tmp_path / "s")
    assert "jobs is 0" in refused(command, path, *arguments, "--jobs", 0)
    assert "cannot be read" in refused(command, tmp_path, *arguments)
    assert not (tmp_path / "s").exists()


def test_folders_that_cannot_be_used(notebook, tmp_path, command):
    out = tmp_path / "s"
    out.write_text("mine")
    assert "is a file" in refused(command, notebook, "--grid", "seed=0", "--out", out)
    assert out.read_text() == "mine"
    other = tmp_path / "t"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert "holds files but no sweep; choose another --out, nothing was changed." in refused(command, notebook, "--grid", "seed=0", "--out", other)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    swept(notebook, "seed=0", tmp_path / "u")
    before = snapshot(tmp_path / "u")
    with open(tmp_path / "u" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is being written by another sweep" in refused(command, notebook, "--grid", "seed=0..1", "--out", tmp_path / "u")
    assert snapshot(tmp_path / "u") == before
    for text in ("torn", "[]", "{}"):
        (tmp_path / "u" / "sweep.json").write_text(text)
        assert "sweep.json is damaged" in refused(command, notebook, "--grid", "seed=0", "--out", tmp_path / "u")


def test_what_a_kill_in_the_first_moments_leaves(notebook, tmp_path):
    (tmp_path / "s").mkdir()
    for name in ("lock", "started.json.writing", "sweep.json.writing"):
        (tmp_path / "s" / name).write_text("")
    assert swept(notebook, "seed=0", tmp_path / "s")[1] == ["seed=0"]


def test_help_and_misspelt_options(command):
    status, out, _ = command("sweep", "--help")
    assert status == 0 and "--grid NAME=VALUES" in out
    assert "Did you mean '--grid'?" in refused(command, "n.ipynb", "--out", "s", "--gird", "seed=0")


# ---------------------------------------------------------------- to the stored results


def test_store(notebook, tmp_path):
    swept(notebook, ["curriculum.alpha=0.1,0.2", "seed=0..1"], tmp_path / "a")
    swept(notebook, ["curriculum.tau=0.3", "alpha=0.1", "seed=0..1"], tmp_path / "b")
    swept(notebook, ["alpha=0.2,0.4", "seed=0"], tmp_path / "c")
    store([tmp_path / "a", tmp_path / "c"], "mine", tmp_path / "results")
    table, facts = stored("mine", tmp_path / "results")
    assert table[["alpha", "seed"]].values.tolist() == [[0.1, 0], [0.1, 1], [0.2, 0], [0.2, 1], [0.4, 0]]  # 0.2 with seed 0, which both ran, once
    assert not {"cell", "run", "seconds", "machine.python", "curriculum.alpha"} & set(table.columns) and table.rollouts.tolist() == [64] * 5
    assert facts["seeds"] == [0, 1] and facts["machine"] == SUMMARY["machine"] and facts["cpu"] and facts["date"]
    assert facts["command"].count("adaback sweep") == 2 and " && " in facts["command"]
    assert facts["commit"] == subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    store(tmp_path / "b", "other", tmp_path / "results")
    assert stored("other", tmp_path / "results").table["curriculum.tau"].tolist() == [0.3, 0.3]  # it went into `settings`, so the name stays


def test_store_refuses_what_is_not_finished(notebook, tmp_path):
    swept(notebook, "seed=0..2", tmp_path / "a", fails=lambda name: "No." if name.endswith("1") else "")
    with pytest.raises(UserError, match="1 of the 3 cells in .* have failed or did not run; finish the sweep first, with: adaback sweep "):
        store(tmp_path / "a", "mine", tmp_path / "results")
    with pytest.raises(UserError, match="There is no sweep in"):
        store(tmp_path / "nosuch", "mine", tmp_path / "results")
    swept(write_notebook(tmp_path / "m.ipynb", "1"), "seed=0", tmp_path / "b")
    swept(notebook, "seed=0..2", tmp_path / "a")
    with pytest.raises(UserError, match="different notebooks"):
        store([tmp_path / "a", tmp_path / "b"], "mine", tmp_path / "results")
    assert not (tmp_path / "results").exists()
    with pytest.raises(UserError):
        facts_of("mine", tmp_path)


# ---------------------------------------------------------------- with real kernels

WORKER = """
import json, os, signal, sys
from pathlib import Path
Path(out).mkdir(parents=True, exist_ok=True)
print("to the notebook", flush=True)
if word == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "fail" and not Path("mended").exists():
    raise ValueError("first line\\nlast line")
facts = {"types": [type(v).__name__ for v in (alpha, seed, word, settings)], "settings": settings, "threads": os.environ["OMP_NUM_THREADS"], "cwd": os.getcwd()}
(Path(out) / "summary.json").write_text(json.dumps(facts))
"""


def test_a_real_kernel(tmp_path, command):
    notebook, out = write_notebook(tmp_path / "n.ipynb", WORKER), tmp_path / "s"
    status, printed, _ = command("sweep", notebook, "--grid", "word=fine", "--out", out)
    assert (status, printed) == (0, f"{out}: 1 cell, 0 failed; the table is {out / 'table.csv'}\n")
    assert json.loads((out / "cells" / "word=fine" / "runs" / "summary.json").read_text())["cwd"] == str(tmp_path)
    assert pd.read_parquet(out / "table.parquet").status.tolist() == ["ok"]


@pytest.mark.slow
def test_real_kernels(tmp_path, command, monkeypatch):
    """Typed values arrive; a cell that fails and one whose kernel is killed do not sink the rest; the same command tries only these again."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    home = tmp_path / "a {b} c"  # braces, which papermill takes for a format, and blanks
    home.mkdir()
    notebook, out = write_notebook(home / "n.ipynb", WORKER), home / "s"
    words = (notebook, "--grid", "alpha=1e-4", "--grid", "curriculum.tau=0.25", "--grid", "word=fail,kill,fine", "--out", out, "--jobs", "2")
    status, printed, err = command("sweep", *words)
    assert status == 1
    names = [f"alpha=0.0001_tau=0.25_word={w}" for w in ("fail", "kill", "fine")]
    folders = dict(zip(("fail", "kill", "fine"), (out / "cells" / name for name in names)))
    lines = printed.splitlines()
    assert lines[0] == f"failed: {folders['fail'] / 'n.ipynb'}: ValueError: last line"
    assert lines[1].startswith(f"failed: {folders['kill'] / 'n.ipynb'}: The kernel died while the notebook ran")
    assert lines[2] == f"{out}: 3 cells, 2 failed; the table is {out / 'table.csv'}" and len(lines) == 3
    assert "Traceback" not in err

    facts = json.loads((folders["fine"] / "runs" / "summary.json").read_text())
    assert facts == {"types": ["float", "int", "str", "dict"], "settings": {"curriculum.tau": 0.25}, "threads": str(threads_for(2)), "cwd": str(home)}
    text = (folders["fail"] / "traceback.txt").read_text()
    assert "ValueError: first line\nlast line" in text and "\x1b" not in text
    assert not (folders["kill"] / "traceback.txt").exists()
    failed = nbformat.read(folders["fail"] / "n.ipynb", 4)
    kinds = [o.output_type for c in failed.cells if c.cell_type == "code" for o in c.outputs]
    assert kinds == ["stream", "error"]  # what it printed is in the notebook
    table = pd.read_csv(out / "table.csv")
    assert table.status.tolist() == ["failed", "failed", "ok"] and table["curriculum.tau"].tolist() == [0.25] * 3

    kept = snapshot(folders["fine"])
    (home / "mended").write_text("")
    status, printed, _ = command("sweep", *words, "--quiet")
    assert status == 1 and printed.count("failed:") == 1 and "word=kill" in printed
    assert snapshot(folders["fine"]) == kept
    assert read_result(folders["fail"])["status"] == "ok" and not (folders["fail"] / "traceback.txt").exists()


def test_a_cells_process_that_is_killed(notebook, tmp_path, monkeypatch):
    swept(notebook, "seed=0", tmp_path / "s")
    folder = tmp_path / "s" / "cells" / "seed=0"
    (folder / "result.json").unlink()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended with status 1 (" in run_cell(str(folder))["error"]
    (tmp_path / "python").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (folder / "result.json").unlink()
    assert "was killed by SIGKILL" in run_cell(str(folder))["error"] and read_result(folder)["status"] == "failed"


SLEEPER = """
import os, time
from pathlib import Path
Path(out).mkdir(parents=True, exist_ok=True)
(Path(out) / "pid").write_text(str(os.getpid()))
time.sleep(0 if Path("mended").exists() else 600)
"""


def start(notebook, out, *grid, jobs=2):
    words = [sys.executable, "-m", "adaback_lite", "sweep", notebook, *(w for g in grid for w in ("--grid", g)), "--out", out, "--jobs", str(jobs)]
    return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)


def wait_for(what, seconds=120):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def cell_processes(out) -> list[int]:
    """Processes of cells of this sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"adaback_lite.sweep_cell" in path.read_bytes() and str(out).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_and_goes_on(how, tmp_path):
    notebook, out = write_notebook(tmp_path / "n.ipynb", SLEEPER, "1"), tmp_path / "s"
    process = start(notebook, out, "seed=0..2")
    pids = wait_for(lambda: [p for p in out.glob("cells/*/runs/pid") if p.read_text()][1:] and [int(p.read_text()) for p in out.glob("cells/*/runs/pid")])
    assert len(pids) == 2 and all(alive(pid) for pid in [*pids, *cell_processes(out)])
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    if how == signal.SIGKILL:
        wait_for(lambda: not cell_processes(out) and not any(alive(pid) for pid in pids), 60)
    else:
        assert process.returncode == 130 and re.search(r"Stopped; 0 of 3 cells are done; go on with: adaback sweep \S+ --grid seed=0\.\.2 --out \S+ --jobs 2\n$", err)
        assert "Traceback" not in err
        assert not cell_processes(out) and not any(alive(pid) for pid in pids)
    assert not list(out.glob("cells/*/result.json"))
    (tmp_path / "mended").write_text("")
    process = start(notebook, out, "seed=0..2")
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert pd.read_csv(out / "table.csv").status.tolist() == ["ok"] * 3


STUBBORN = """
import os, signal, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
Path(out).mkdir(parents=True, exist_ok=True)
(Path(out) / "pid").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_interrupt_kills_a_kernel_that_takes_none(tmp_path):
    out = tmp_path / "s"
    process = start(write_notebook(tmp_path / "n.ipynb", STUBBORN), out, "seed=0")
    pid = int(wait_for(lambda: [p.read_text() for p in out.glob("cells/*/runs/pid") if p.read_text()])[0])
    process.send_signal(signal.SIGINT)
    wait_for(lambda: (out / "stop").exists())
    time.sleep(1)
    assert alive(pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130 and not alive(pid) and not cell_processes(out)
    process.communicate()


@pytest.mark.slow
def test_training_goes_on_where_the_sweep_was_stopped(tmp_path):
    """Notebook 06 itself: interrupted while it trains, the checkpoint is of that step, and the run ends as one that was never disturbed."""
    notebook, out = ROOT / "notebooks" / "06_alpha.ipynb", tmp_path / "s"
    process = start(notebook, out, "curriculum.alpha=0.05", "curriculum.zero_prob=0.2", "profile=quick", jobs=1)
    (log,) = wait_for(lambda: [p for p in out.glob("cells/*/runs/quick/*/events.jsonl") if p.read_text().count('"event": "step"') >= 4])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    run = load_run(log.parent)
    steps = sum(e["event"] == "step" for e in run.events)
    assert run.summary is None and run.load_checkpoint()[2]["step"] == steps < 40
    process = start(notebook, out, "curriculum.alpha=0.05", "curriculum.zero_prob=0.2", "profile=quick", jobs=1)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    (whole,) = [p.parent for p in out.glob("cells/*/runs/quick/*/summary.json")]
    assert whole == run.folder and sum(e["event"] == "resume" for e in run.events) == 1 and run.config.curriculum.zero_prob == 0.2
    other = tmp_path / "t"
    papermill.execute_notebook(notebook, tmp_path / "n.ipynb", {"alpha": "5e-2", "settings": {"curriculum.zero_prob": "0.2"}, "out": str(other)}, progress_bar=False, cwd=tmp_path)
    (plain,) = [p.parent for p in other.rglob("summary.json")]
    same = ("steps", "rollouts", "generated_tokens", "test_right", "held_out_accuracy", "stopped_by")
    assert {k: load_run(plain).summary[k] for k in same} == {k: run.summary[k] for k in same}
    row = pd.read_parquet(out / "table.parquet").iloc[0]
    assert row["curriculum.zero_prob"] == 0.2 and row["rollouts"] == run.summary["rollouts"] and row["machine.threads"] == 1


@pytest.mark.slow
def test_on_a_process_pool(tmp_path):
    with ProcessPoolExecutor(1) as pool:
        result = sweep(write_notebook(tmp_path / "n.ipynb", WORKER), "word=fine", tmp_path / "s", executor=pool, progress=False)
    assert result.failures == [] and result.table.status.tolist() == ["ok"]


@pytest.mark.slow
def test_on_a_dask_cluster(tmp_path):
    """A course's cluster needs no code of ours: any executor will do, and Dask's client gives one."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        notebook, grid = write_notebook(tmp_path / "n.ipynb", WORKER), {"word": ["fine", "fail"], "seed": range(2)}
        result = sweep(notebook, grid, tmp_path / "s", jobs=2, executor=client.get_executor(), progress=False)
    assert result.table.status.tolist() == ["ok", "ok", "failed", "failed"] and result.table.seed.tolist() == [0, 1, 0, 1]
    assert [f.error for f in result.failures] == ["ValueError: last line"] * 2 and all(f.traceback.is_file() for f in result.failures)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-p", "alpha", "0.3", "-p", "tau", "25e-2"), ("-y", "{alpha: 3e-1, settings: {curriculum.tau: 25e-2}}")])
def test_plain_papermill(options, tmp_path):
    """Numbers arrive as such, or (YAML knows no 3e-1) as text; the run is the same."""
    words = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "06_alpha.ipynb"), "out.ipynb", *options, "-p", "out", str(tmp_path / "runs"), "--no-progress-bar"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = (tmp_path / "runs").rglob("summary.json")
    config = load_run(summary.parent).config
    assert config.curriculum.alpha == 0.3 and config.curriculum.tau == 0.25
