"""The simulator's panel and notebook 02: a slider moves, and the chart answers."""

import re
import time
from pathlib import Path

import nbformat

from .page import SHORT, cell_output, drag, menu, no_error, open_notebook, run_all, run_cell, save, screenshot, setting, type_into, until, wait_idle, wait_text

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def drawn(output) -> str:
    """The charts as they are drawn, pixel by pixel; "" while there is none. JupyterLab draws on a canvas, a chart that is a widget is SVG."""
    pixels = output.locator("canvas").evaluate_all("found => found.map(canvas => canvas.toDataURL())")
    return "".join(pixels + output.locator("svg.marks").evaluate_all("found => found.map(svg => svg.outerHTML)"))


def quick(path: Path, server) -> Path:
    """A copy of a notebook where the server has it, its profile set to quick, as a user does who has no time."""
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source, found = re.subn(r'^profile = "\w+"', 'profile = "quick"', parameters.source, flags=re.MULTILINE)
    assert found == 1
    nbformat.write(notebook, server.folder / path.name)
    return server.folder / path.name


def test_notebook_02(page, server):
    """From its first cell to its last in JupyterLab, with a slider moved by hand."""
    path = quick(NOTEBOOKS / "02_inside_the_curriculum.ipynb", server)
    open_notebook(page, server, path.name)
    run_all(page, server)
    panel = page.locator(".jp-Cell-outputArea").filter(has=page.locator(".jupyter-widgets")).filter(has=page.get_by_text("zero_prob", exact=True)).first
    panel.scroll_into_view_if_needed()
    until(page, lambda: drawn(panel), SHORT, "for the simulator's chart")
    screenshot(page, "02-simulator-1", panel)
    before = drawn(panel)
    drag(page, setting(panel, "alpha"), 60)
    until(page, lambda: drawn(panel) not in ("", before), SHORT, "for the chart to follow alpha")
    page.wait_for_timeout(1500)
    screenshot(page, "02-simulator-2-moved", panel)

    # Its real run, and what stands below it.
    live = page.locator(".jp-CodeCell").filter(has=page.get_by_role("button", name="Start", exact=True))
    output = live.locator(".jp-Cell-outputArea")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_text(output, "Finished.")
    live.locator(".jp-InputPrompt").click()
    page.keyboard.press("ArrowDown")
    menu(page, "Run", "Run Selected Cell and All Below")
    wait_idle(page)
    no_error(page)
    sample = page.locator(".jp-Cell-outputArea").filter(has=page.get_by_text("Click on a cell of the heat map")).first
    screenshot(page, "02-real-run", output)
    screenshot(page, "02-sample", sample)
    page.locator(".jp-CodeCell").last.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    screenshot(page, "02-end")

    saved = save(page, path)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) >= 3


def test_sliders_move_the_chart(page, server, write):
    path = write("simulator.ipynb", "from adaback_lite import widgets\n\nwidgets.simulator()")
    open_notebook(page, server, path.name)
    run_cell(page, 0)
    output = cell_output(page, 0)
    until(page, lambda: drawn(output), SHORT, "for the first chart")
    screenshot(page, "simulator-1", output)
    for name in ("alpha", "tau"):
        before = drawn(output)
        began = time.monotonic()
        drag(page, setting(output, name), 40)
        until(page, lambda before=before: drawn(output) not in ("", before), SHORT, f"for the chart to follow {name}")
        print(f"{name}: the chart followed within {time.monotonic() - began:.2f} s, dragging included")
        page.wait_for_timeout(1500)
        screenshot(page, f"simulator-2-{name}", output)
    type_into(setting(output, "zero_prob"), "2")
    setting(output, "zero_prob").get_by_role("alert").wait_for()
    screenshot(page, "simulator-3-out-of-bounds", output)
    saved = save(page, path)
    assert any("image/png" in o.data for o in saved.cells[0].outputs)
