"""JupyterLab, and Notebook 7 at the same server, as a process of its own: nothing of the user's settings, nothing from the network."""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

START = 120  # seconds


def lab_options() -> list[str]:
    """What `make lab` starts JupyterLab with."""
    (line,) = re.findall(r"^LAB := (.+)$", (Path(__file__).resolve().parents[2] / "Makefile").read_text(), re.MULTILINE)
    return line.split()


class Server:
    """A started Jupyter server. `folder` holds the notebooks, `url` ends without a slash."""

    def __init__(self, folder: Path, home: Path):
        self.folder, self.token = folder, secrets.token_hex(16)
        with socket.socket() as probe:  # Jupyter does not say which port it took for 0
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "jupyter.log"
        settings = home / "settings" / "@jupyterlab" / "apputils-extension"  # it asks a new user whether to fetch news
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
        environ = os.environ | {
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
            "OMP_NUM_THREADS": "1",
        }
        options = [
            "--no-browser",
            "--allow-root",
            f"--ServerApp.port={self.port}",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={folder}",
            f"--IdentityProvider.token={self.token}",
            *lab_options(),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=environ, cwd=folder)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + START
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                self.ask("/api/status")
                return
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start within {START} s:\n{self.log.read_text()[-2000:]}")

    def ask(self, path: str, method: str = "GET", data: dict | None = None):
        """An answer of the server's REST interface."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Authorization": f"token {self.token}"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def kernels(self, name: str) -> list[dict]:
        """The kernels of a notebook, as the server describes them: "id", "execution_state", "connections", ..."""
        return [session["kernel"] for session in self.ask("/api/sessions") if session["path"] == name and session["kernel"]]

    def kill_kernel(self, name: str) -> None:
        """SIGKILL for a notebook's kernel, which no REST call gives: the child process that was started with this kernel's connection file."""
        (kernel,) = self.kernels(name)
        (child,) = (p for p in psutil.Process(self.process.pid).children(recursive=True) if any(kernel["id"] in word for word in p.cmdline()))
        child.kill()

    def seen(self, name: str) -> str:
        """What the server knows of a notebook's kernel, for who waits in vain."""
        return f"the server says {self.kernels(name)}, and in its log:\n{self.log.read_text()[-3000:]}"

    def end_sessions(self) -> None:
        """Shut down all kernels, each asked to first."""
        for session in self.ask("/api/sessions"):
            with contextlib.suppress(urllib.error.HTTPError):
                self.ask(f"/api/sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        """End the server and its kernels."""
        if self.process.poll() is None:
            self.process.terminate()  # shuts the kernels down first
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
