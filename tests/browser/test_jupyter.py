"""What the panels rest on, without them: Jupyter's pages work offline, a thread draws, a display handle is saved, a kernel tells whether someone is there."""

import pytest

from .page import SHORT, cell_output, drag, numbers, open_notebook, run_all, run_cell, save, screenshot, until

PANEL = """
import threading
import altair as alt
import ipywidgets
from IPython.display import display
from adaback_lite import charts

alt.JupyterChart.enable_offline()

def chart(k):
    rows = [{"x": x, "y": k * x} for x in range(5)]
    return alt.Chart(alt.Data(values=rows)).mark_line().encode(x="x:Q", y="y:Q").properties(width=300, height=120, title=f"k is {k}")

drawn = alt.JupyterChart(chart(0))
slider = ipywidgets.IntSlider(0, 0, 50, description="k")
slider.observe(lambda change: setattr(drawn, "chart", chart(change["new"])), "value")
label = ipywidgets.Label("tick 0")
display(ipywidgets.VBox([slider, label, drawn]))
static = display(chart(0), display_id=True)
"""
THREAD = """
end = threading.Event()

def tick():
    for k in range(1, 600):
        if end.wait(0.5):
            return
        label.value = f"tick {k}"
        static.update(chart(1000 + k))
        spec = drawn.spec | {"title": f"thread: {k}"}
        drawn.spec = spec

thread = threading.Thread(target=tick)
thread.start()
"""
END = "end.set(); thread.join(); print('someone is there:', get_ipython().kernel._allow_stdin)"


def title(output) -> str:
    """Of the widget's chart, which is drawn as SVG."""
    return output.locator(".jupyter-widgets svg .role-title-text").first.text_content()


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_slider_thread_and_saved_chart(page, server, write, app):
    path = write(f"small-{app}.ipynb", PANEL, THREAD, END)
    open_notebook(page, server, path.name, app)
    run_cell(page, 0)
    output = cell_output(page, 0)
    assert title(output) == "k is 0"
    drag(page, output.locator(".widget-slider"), 30)
    moved = int(output.locator(".widget-readout").inner_text())
    assert moved > 0
    until(page, lambda: title(output) == f"k is {moved}", SHORT, "for the slider to move the chart")

    run_cell(page, 1)
    until(page, lambda: title(output) == "thread: 3", SHORT, "for the thread's third chart")
    tick = output.locator(".widget-label", has_text="tick")
    assert numbers(tick, r"tick (\d+)")[0] >= 3
    screenshot(page, f"small-{app}")
    run_cell(page, 2)

    saved = save(page, path)
    last = numbers(tick, r"tick (\d+)")[0]
    (static,) = (o for o in saved.cells[0].outputs if "image/png" in o.data)
    assert static.data["application/vnd.vegalite.v5+json"]["title"] == f"k is {1000 + last:.0f}"  # as the thread left it
    assert saved.cells[2].outputs[0].text == "someone is there: True\n"


def test_a_page_that_asks_for_anything_else_is_found_out(new_page, server, write):
    """The other tests' word that nothing was asked for is worth something."""
    path = write("asks.ipynb", "from IPython.display import HTML\nHTML('<img src=\"https://example.org/x.png\">')")
    page = new_page()
    open_notebook(page, server, path.name)
    run_all(page, server)
    until(page, lambda: new_page.elsewhere, SHORT, "for the picture to be asked for")
    page.close()
    assert set(new_page.elsewhere) == {"https://example.org/x.png"}
    new_page.elsewhere.clear()
