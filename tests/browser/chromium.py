"""A browser for the tests: find one, or install Debian's.

Installing happens only where it was asked for: under continuous integration (CI=true), or with ADABACK_BROWSER=install.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLACES = (  # macOS, Windows: not on the PATH
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
)
FLAGS = [  # a browser that asks nothing of the network on its own account
    "--no-sandbox",  # containers run as root, where Chromium refuses its sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers give /dev/shm 64 MB
]
LOG = Path(__file__).resolve().parents[2] / "runs" / "browser" / "install.log"


def find() -> str | None:
    """The path of a Chromium or Chrome on this machine, or None."""
    return next((path for path in map(shutil.which, (*NAMES, *PLACES)) if path), None)


def why_none() -> str:
    """One sentence for the skipped tests: what to install, and what became of an attempt to."""
    tried = f" An attempt to install it failed, see {LOG}." if LOG.is_file() else ""
    return f"no Chromium or Chrome here: install one (on Debian: apt install chromium), or call ADABACK_BROWSER=install make test as root.{tried}"


def wanted(environ=os.environ) -> bool:
    """Was it asked for that a browser be installed?"""
    return environ.get("CI") == "true" or environ.get("ADABACK_BROWSER") == "install"


def install() -> bool:
    """Install Debian's Chromium; what apt says goes to LOG, which stays only where it failed. False if it failed or cannot be tried here."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    if not shutil.which("apt-get") or os.geteuid() != 0:
        LOG.write_text("Not tried: this takes apt-get, and root.\n")
        return False
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with LOG.open("w") as log:
        for words in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            try:
                subprocess.run(["apt-get", "-q", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ, timeout=600, check=False)
            except subprocess.TimeoutExpired:
                log.write("\nGiven up after ten minutes.\n")
                break
    if find() is None:
        return False
    LOG.unlink()
    return True


def main() -> int:
    """Called by `make test`. Always 0: without a browser its tests are skipped, with the reason."""
    if find() is None and wanted():
        print("Installing Chromium for the browser tests ...", flush=True)
        if not install():
            print(f"That failed ({LOG}): the browser tests will be skipped.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
