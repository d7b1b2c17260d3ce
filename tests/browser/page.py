"""What a user does in JupyterLab or Notebook 7, in Playwright's words. Both have the same notebook inside."""

import contextlib
import json
import re
import time
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from playwright.sync_api import Locator, Page

PICTURES = Path(__file__).resolve().parents[2] / "runs" / "browser"
SHORT, LONG = 20_000, 300_000  # milliseconds: for the page, and for a cell that computes
LOST = 60  # seconds after which what the kernel has sent will not come any more


def open_notebook(page: Page, server, name: str, app: str = "lab") -> None:
    """Open `name` in "lab" (JupyterLab) or "notebook" (Notebook 7), and wait for its kernel."""
    # A workspace of its own: else JupyterLab opens again what the last page had open.
    place = {"lab": f"/lab/workspaces/{Path(name).stem}/tree/", "notebook": "/notebooks/"}[app]
    page.goto(f"{server.url}{place}{name}?reset&token={server.token}")
    wait_open(page, server, name)


def wait_open(page: Page, server, name: str) -> None:
    """Until the notebook stands there, and its kernel listens to this page."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=LONG)
    # The page calls a kernel idle before there is one, and cells that are run then are thrown away: the server knows.
    until(page, lambda: any(k["connections"] and k["execution_state"] == "idle" for k in server.kernels(name)), LONG, f"for the kernel of {name}")
    page.wait_for_timeout(1000)
    wait_idle(page)


def menu(page: Page, title: str, entry: str) -> None:
    """Choose an entry of the menu bar."""
    page.get_by_role("menuitem", name=title, exact=True).click(timeout=SHORT)
    page.locator(".lm-Menu-item").filter(has=page.locator(".lm-Menu-itemLabel", has_text=re.compile(rf"^{re.escape(entry)}"))).first.click(timeout=SHORT)


def run_all(page: Page, server) -> None:
    """Run all cells, and wait for the last one. Fails where a cell does.

    Once, in some dozen runs of all tests, a page waited for ever. Where the kernel is idle meanwhile, by the server, it is done once more on a fresh page, as a user would.
    """
    name = Path(urlsplit(page.url).path).name
    menu(page, "Run", "Run All Cells")
    if not wait_idle(page, server=server):
        warnings.warn(f"{name}: the kernel is idle, and the page does not know it: {page.evaluate(SEEN)}; once more.", stacklevel=2)
        page.reload()
        wait_open(page, server, name)
        menu(page, "Run", "Run All Cells")
        assert wait_idle(page, server=server), f"twice in vain: the kernel is idle, and the page shows {page.evaluate(SEEN)}"
    assert not any(prompt in ("[ ]:", "[]:") for prompt in page.evaluate(SEEN)["prompts"]), "not all cells were run"
    no_error(page)


# The prompts of all cells ("[*]:" while one runs or waits), and what the page says of its kernel.
SEEN = """() => ({
    prompts: [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent),
    kernel: document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status ?? null,
})"""


def wait_idle(page: Page, milliseconds: int = LONG, server=None) -> bool:
    """Until no cell runs or waits. False when, by the server, the kernel has long been idle and the page does not know it."""
    page.wait_for_timeout(500)  # until the page has put its stars there
    name, now = Path(urlsplit(page.url).path).name, time.monotonic()
    end, busy = now + milliseconds / 1000, now
    while True:
        seen, now = page.evaluate(SEEN), time.monotonic()
        if seen["kernel"] == "idle" and not any("*" in prompt for prompt in seen["prompts"]):
            return True
        kernels = server.kernels(name) if server is not None else []
        if not kernels or any(kernel["execution_state"] != "idle" for kernel in kernels):
            busy = now
        if now - busy > LOST:
            return False
        if now > end:
            raise AssertionError(f"waited {milliseconds / 1000:.0f} s in vain: the page shows {seen}" + (f"; {server.seen(name)}" if server is not None else ""))
        page.wait_for_timeout(100 if server is None else 300)


def code_cell(page: Page, n: int) -> Locator:
    """The nth code cell, from 0."""
    return page.locator(".jp-Notebook .jp-CodeCell").nth(n)


def cell_output(page: Page, n: int) -> Locator:
    """What the nth code cell put out, scrolled to."""
    output = code_cell(page, n).locator(".jp-Cell-outputArea")
    output.scroll_into_view_if_needed()
    return output


def run_cell(page: Page, n: int) -> None:
    """Run the nth code cell, and wait for it."""
    code_cell(page, n).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")
    wait_idle(page)
    no_error(page)


def no_error(page: Page) -> None:
    """No cell ended with an error, and no widget or chart shows one of JavaScript."""
    for wrong in (
        page.locator("[data-mime-type='application/vnd.jupyter.error']").all()
        + page.get_by_text(re.compile(r"^JavaScript Error|^Error displaying widget|^\[Open Browser Console")).all()
    ):
        raise AssertionError(wrong.inner_text()[-1500:])


def drag(page: Page, slider: Locator, by: int) -> None:
    """Drag a slider's handle to the right, or to the left, by so many pixels."""
    handle = slider.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for part in range(1, 11):
        page.mouse.move(x + by * part / 10, y)
    page.mouse.up()


def numbers(where: Locator, pattern: str) -> list[float]:
    """What stands in the brackets of `pattern`, wherever the text matches."""
    return [float(found.replace(",", "")) for found in re.findall(pattern, where.inner_text())]


def wait_text(where: Page | Locator, text: str | re.Pattern, milliseconds: int = LONG) -> Locator:
    """Until the text is to be seen there."""
    found = where.get_by_text(text).first
    found.wait_for(timeout=milliseconds)
    return found


def until(page: Page, true, milliseconds: int = LONG, why: str = "") -> None:
    """Until `true()` is; the page lives on meanwhile."""
    end = time.monotonic() + milliseconds / 1000
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"waited {milliseconds / 1000:.0f} s in vain {why}")
        page.wait_for_timeout(200)


def save(page: Page, path: Path):
    """Save as a user does, and read the file: a notebook node."""
    before = path.stat().st_mtime_ns

    def written() -> bool:
        if path.stat().st_mtime_ns == before:
            return False
        with contextlib.suppress(ValueError):  # half of it, so far
            json.loads(path.read_text(encoding="utf-8"))
            return True
        return False

    page.keyboard.press("Control+s")
    until(page, written, SHORT, f"for {path.name} to be saved")
    return nbformat.read(path, as_version=4)


def restart_kernel(page: Page) -> None:
    """From the menu, with its question answered."""
    menu(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator(".jp-Dialog").wait_for(state="detached")
    page.wait_for_timeout(3000)
    wait_idle(page)


def setting(output: Locator, label: str) -> Locator:
    """The row of a setting, with the sentence under it, by its label."""
    return output.locator(f".widget-vbox:has(> .widget-hbox > * > .widget-label:text-is('{label}'))")


def type_into(where: Locator, text: str, label: str | None = None) -> None:
    """Type into the text box there, the labelled one if there are several, and leave it."""
    box = where.get_by_role("textbox") if label is None else where.get_by_label(label, exact=True)
    box.scroll_into_view_if_needed()
    box.fill(text)
    box.press("Tab")


def screenshot(page: Page, name: str, top: Locator | None = None) -> Path:
    """A picture of the page, under runs/browser; what starts at `top` is brought to the head of it first."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    if top is not None:
        top.evaluate("element => element.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(300)
    page.screenshot(path=path)
    return path
