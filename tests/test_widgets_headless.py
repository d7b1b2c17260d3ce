"""The panels in a notebook that nobody sees, as papermill and nbclient run it: it trains without a click, and leaves pictures and tables."""

import json

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from adaback_lite import load_run

from .conftest import TINY

pytestmark = pytest.mark.slow

WIDGET = "application/vnd.jupyter.widget-view+json"
CELLS = ("panel = widgets.controls(settings)\npanel", "live = widgets.live(panel)\nlive", "live", "widgets.sample(live)", "widgets.compare(settings['out'])", "widgets.simulator()")


def notebook(path, settings):
    first = nbformat.v4.new_code_cell(f"settings = {settings!r}", metadata={"tags": ["parameters"]})
    cells = [first, nbformat.v4.new_code_cell("from adaback_lite import widgets"), *map(nbformat.v4.new_code_cell, CELLS)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), path)
    return path


def mimes(cell) -> list[str]:
    return [mime for output in cell.outputs for mime in output.get("data", {})]


def check(done):
    assert WIDGET not in json.dumps(done) and "widgets" not in done.metadata
    controls, live, again, sample, compare, simulator = done.cells[-len(CELLS) :]
    assert "text/html" in mimes(controls) and "trainer.max_steps" in str(controls.outputs)
    for cell in (live, again, compare):
        assert {"image/png", "text/html"} <= set(mimes(cell)), cell.source
    assert "image/png" in mimes(sample) and "Rollout 8" in str(sample.outputs)
    assert "image/png" in mimes(simulator)


def test_papermill_trains_and_leaves_pictures(tmp_path):
    settings = {**TINY, "out": str(tmp_path / "run")}
    path = notebook(tmp_path / "a.ipynb", {})
    papermill.execute_notebook(path, tmp_path / "b.ipynb", parameters={"settings": settings}, cwd=tmp_path, progress_bar=False)
    check(nbformat.read(tmp_path / "b.ipynb", as_version=4))
    assert load_run(tmp_path / "run").summary["steps"] == 2
    trained = (tmp_path / "run" / "events.jsonl").read_bytes()
    done = nbformat.read(notebook(tmp_path / "c.ipynb", settings), as_version=4)
    NotebookClient(done, timeout=300, kernel_name="python3", store_widget_state=True).execute()
    check(done)
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == trained  # shown, not trained again


def test_what_the_user_got_wrong_is_one_sentence(tmp_path):
    path = notebook(tmp_path / "a.ipynb", {**TINY, "out": str(tmp_path / "run"), "curriculum.tau": 7})
    with pytest.raises(papermill.PapermillExecutionError, match="UserError: The setting 'curriculum.tau' is 7"):
        papermill.execute_notebook(path, tmp_path / "b.ipynb", cwd=tmp_path, progress_bar=False)
