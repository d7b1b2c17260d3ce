"""The simulator's panel and notebook 02: a slider moves, and the chart answers."""

import shutil
import time
from pathlib import Path

from .page import SHORT, cell_output, drag, open_notebook, run_cell, save, screenshot, setting, type_into, until

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def drawn(output) -> str:
    """The charts as they are drawn, pixel by pixel; "" while there is none. JupyterLab draws on a canvas, a chart that is a widget is SVG."""
    pixels = output.locator("canvas").evaluate_all("found => found.map(canvas => canvas.toDataURL())")
    return "".join(pixels + output.locator("svg.marks").evaluate_all("found => found.map(svg => svg.outerHTML)"))


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
