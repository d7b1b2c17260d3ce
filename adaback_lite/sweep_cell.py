"""One cell of a sweep: its notebook under papermill, in a process of its own.

`run_cell` starts that process and waits for it; it takes plain values and is found by name, so that any executor can run it,
on another machine too if the folder is shared. The process (`python -m adaback_lite.sweep_cell FOLDER PARENT`) reads
FOLDER/cell.json and writes result.json at the end. It stops its kernel and itself when the sweep asks for it (the file `stop`
beside the cells' folder) or when the process that started it is gone.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from nbclient.exceptions import DeadKernelError
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

STOPPED = 3  # exit status of a cell's process that was asked to stop
GRACE = 20.0  # seconds that an interrupted kernel has to finish its step and write a checkpoint; our choice
NOTEBOOK = "notebook.ipynb"  # the sweep's copy, beside the folder `cells`
ASK_TO_STOP = "stop"


def run_cell(folder: str, jobs: int = 1) -> dict:
    """Run a cell and return its result: status ("ok", "failed" or "stopped"), seconds, error (one line, or "").

    `folder` holds cell.json; `jobs` cells share this machine, so each gets that part of the cores (where OMP_NUM_THREADS is not set already).
    """
    folder = Path(folder)
    environment = {"OMP_NUM_THREADS": str(threads_for(jobs)), **os.environ}
    command = [sys.executable, "-m", "adaback_lite.sweep_cell", str(folder), str(os.getpid())]
    with open(folder / "log.txt", "ab") as log:
        # A session of its own: Ctrl-C in the terminal is the sweep's, which asks the cells to stop.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)
        code = process.wait()
    if code == STOPPED:
        return {"status": "stopped", "seconds": 0.0, "error": ""}
    if result := read_result(folder):
        return result
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    error = f"The process that ran the notebook {how} ({folder / 'log.txt'} has what it printed); the same command again runs this cell again."
    return write_result(folder, "failed", 0.0, error)


def threads_for(jobs: int) -> int:
    """CPU threads for each of `jobs` processes on this machine, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def read_result(folder: Path) -> dict | None:
    """What result.json says, None while there is none; it is written whole or not at all."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_result(folder: Path, status: str, seconds: float, error: str) -> dict:
    """Write result.json, with the digest of what was run, and return it. (runs.write_atomically would load torch here, for seconds.)"""
    result = {"status": status, "seconds": round(seconds, 3), "error": error, "digest": json.loads((folder / "cell.json").read_text(encoding="utf-8"))["digest"]}
    temporary = folder / "result.json.writing"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(folder / "result.json")
    return result


# ---------------------------------------------------------------- in the cell's own process


class Watch(threading.Thread):
    """Stops the kernel when the sweep asks for it or the parent is gone: first by an interrupt, on which training writes a checkpoint, then for good."""

    def __init__(self, folder: Path, parent: int):
        super().__init__(daemon=True)
        self.ask, self.parent = folder.parent.parent / ASK_TO_STOP, parent
        self.stopping, self.done = threading.Event(), threading.Event()
        self.client = None  # the notebook's client, once there is one

    def asked(self) -> bool:
        return os.getppid() != self.parent or self.ask.exists()

    def at_once(self) -> bool:
        """Whether the sweep was interrupted a second time."""
        return self.ask.exists() and self.ask.read_text() == "now"

    def run(self):
        while not self.asked():
            if self.done.wait(0.3):
                return
        self.stopping.set()
        deadline, interrupted = time.monotonic() + GRACE, False
        while not self.done.wait(0.2):
            if time.monotonic() > deadline or self.at_once():
                self._signal(signal.SIGKILL)
                if not self.done.wait(5):
                    os._exit(STOPPED)
            elif not interrupted:
                interrupted = self._signal(signal.SIGINT)

    def _signal(self, number: int) -> bool:
        """Send a signal to the kernel's process group; False while there is no kernel."""
        pid = getattr(getattr(getattr(self.client, "km", None), "provisioner", None), "pid", None)
        if not pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)  # jupyter_client makes each kernel the leader of its group
        return True


class Stopped(Exception):
    """Raised between two cells of the notebook when it is to stop: an idle kernel takes no interrupt."""


def engine(watch: Watch) -> type[NBClientEngine]:
    """papermill's own engine, with a client that `watch` knows."""

    class Client(PapermillNotebookClient):
        def execute_cell(self, *args, **kwargs):
            if watch.stopping.is_set():
                raise Stopped
            return super().execute_cell(*args, **kwargs)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, log_output=False, start_timeout=60, **kwargs):
            watch.client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None)
            watch.client.execute()

    return Engine


@contextlib.contextmanager
def cell_lock(folder: Path, watch: Watch):
    """Hold the cell, waiting for a process of an earlier sweep that is just stopping. Gives False where it does not get it."""
    with open(folder / "lock", "a") as lock:
        until = time.monotonic() + 2 * GRACE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if watch.stopping.is_set() or time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.2)
                continue
            yield True
            return


def execute(folder: Path, watch: Watch) -> tuple[str, list[str]]:
    """(error in one line or "", traceback) of the cell's notebook, run from its first line."""
    cell = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    papermill_engines.register("adaback", engine(watch))
    parameters = {**cell["parameters"], **({"out": str(folder / "runs")} if cell["sets_out"] else {})}
    source, target = folder.parent.parent / NOTEBOOK, folder / cell["name"]
    try:
        # papermill takes braces in a path for a format.
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, target)]
        execute_notebook(*paths, parameters, engine_name="adaback", progress_bar=False, cwd=cell["cwd"])
    except PapermillExecutionError as error:
        said = " ".join(error.evalue.split("\n")[-1 if error.ename != "UserError" else 0 :]).strip()
        return said if error.ename == "UserError" else f"{error.ename}: {said}".rstrip(": "), list(error.traceback)
    except RuntimeError as error:  # jupyter_client has no class of its own for a kernel that dies while it starts
        if not isinstance(error, DeadKernelError) and "Kernel died" not in str(error):
            raise
        return "The kernel died while the notebook ran, as it does when it is killed or memory runs out; the same command again runs this cell again.", []
    return "", []


def main(argv: list[str]) -> int:
    """Run one cell. Returns 0 when it is done or has failed (result.json says which), STOPPED when it was stopped."""
    folder, watch = Path(argv[0]), Watch(Path(argv[0]), int(argv[1]))
    watch.start()
    started = time.monotonic()
    with cell_lock(folder, watch) as held:
        if watch.stopping.is_set():
            return STOPPED
        if not held:
            print(f"{folder} is being run by another process.", file=sys.stderr)
            return 1
        for old in ("result.json", "traceback.txt"):
            (folder / old).unlink(missing_ok=True)
        try:
            error, traceback = execute(folder, watch)
        except Exception:  # interrupted while it starts, a kernel fails in many ways
            if not watch.stopping.is_set():
                raise
            return STOPPED
        finally:
            watch.done.set()
        if watch.stopping.is_set() and error:
            return STOPPED
        if traceback:
            text = "\n".join(traceback)
            (folder / "traceback.txt").write_text(re.sub(r"\x1b\[[0-9;]*m", "", text) + "\n", encoding="utf-8")
        write_result(folder, "failed" if error else "ok", time.monotonic() - started, error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
