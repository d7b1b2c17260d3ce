"""The course's notebooks: their form (fast), and each run from start to end in profile quick (slow)."""

import base64
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from papermill.exceptions import PapermillExecutionError

import adaback_lite as ab
from adaback_lite import charts, report

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.rglob("*.ipynb"))
FIRST = FOLDER / "01_chain_of_parities.ipynb"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(FOLDER)))


@every_notebook
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None, cell.source
        assert len(cell.source.splitlines()) <= 30, cell.source
    for cell in notebook.cells:  # MathJax comes from the network, so no formula may need it
        assert cell.cell_type == "code" or not re.search(r"\$[^$]+\$|\\\(|\\\[", cell.source), cell.source


@every_notebook
def test_every_parameter_has_help(path):
    parameters = papermill.inspect_notebook(path)
    assert parameters
    assert {name: p["help"] for name, p in parameters.items() if not p["help"]} == {}


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.parent == FOLDER], ids=lambda p: p.name)
def test_every_section_ends_with_a_question(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert sections
    for section in sections:
        assert "**Question.**" in section and "<details><summary>Answer</summary>" in section, section[:60]
    assert text.count("<details>") == text.count("</details>")


@every_notebook
def test_html_shows_pictures_and_needs_no_network(path, tmp_path):
    """With a chart's output put in, as a kernel would write it."""
    notebook = nbformat.read(path, as_version=4)
    bundle, metadata = charts.ladder("0110")._repr_mimebundle_()
    bundle["image/png"] = base64.b64encode(bundle["image/png"]).decode()
    cell = next(c for c in notebook.cells if c.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("display_data", bundle, metadata=metadata)]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    page = report.html_export(tmp_path / "n.ipynb", tmp_path / "n.html").read_text()
    assert not re.search(r"<script[^>]*src=.http|<link[^>]*href=.http", page)
    assert bundle["image/png"][:200] in page


def test_html_that_would_fetch_something_is_refused(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("0")])
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", {"text/html": '<script src="https://example.org/x.js"></script>'})]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    with pytest.raises(ab.UserError, match="from the network"):
        report.html_export(tmp_path / "n.ipynb", tmp_path / "n.html")
    assert not (tmp_path / "n.html").exists()


def test_export_from_the_command_line(tmp_path, capsys):
    assert report.main([str(FIRST), str(tmp_path / "n.html")]) == 0
    assert (tmp_path / "n.html").is_file()
    assert report.main([str(tmp_path / "none.ipynb"), str(tmp_path / "m.html")]) == 2
    assert "There is no notebook" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("parameters", "words"), [({"profile": "fast"}, "profile is 'fast', but it must be one of: quick, full."), ({"seeds": "one"}, "seeds is 'one', but")])
def test_a_wrong_parameter_gives_one_sentence(tmp_path, parameters, words):
    with pytest.raises(PapermillExecutionError, match=re.escape(words)):
        papermill.execute_notebook(FIRST, tmp_path / "n.ipynb", {**parameters, "out": str(tmp_path / "runs")}, progress_bar=False, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_notebook_01_quick(tmp_path):
    """Runs, shows what it promises, and its HTML holds every picture."""
    papermill.execute_notebook(FIRST, tmp_path / "n.ipynb", {"profile": "quick", "out": str(tmp_path / "runs")}, progress_bar=False, cwd=tmp_path)
    summaries = {run.name: ab.load_run(run).summary for run in (tmp_path / "runs" / "quick").iterdir()}
    assert set(summaries) == {"adaback-seed0", "rl-seed0", "sft-seed0"}
    assert summaries["adaback-seed0"]["test_accuracy"] > 0.9
    assert summaries["rl-seed0"]["test_accuracy"] < 0.01
    assert summaries["rl-seed0"]["rollouts"] >= summaries["adaback-seed0"]["rollouts"]  # plain RL was not given less

    outputs = [o for c in nbformat.read(tmp_path / "n.ipynb", as_version=4).cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    page = report.html_export(tmp_path / "n.ipynb", tmp_path / "n.html").read_text()
    assert len(pictures) == len(re.findall(r"<img[^>]+data:image/png;base64", page)) >= 8


def test_the_course_is_complete():
    names = [str(path.relative_to(FOLDER)) for path in NOTEBOOKS]
    assert names == [
        "00_start_here.ipynb",
        "01_chain_of_parities.ipynb",
        "02_inside_the_curriculum.ipynb",
        "03_lora_and_4bit.ipynb",
        "04_gsm8k.ipynb",
        "05_base7_and_tensor2.ipynb",
        "06_alpha.ipynb",
        "07_your_own_curriculum.ipynb",
        "08_scaling_out.ipynb",
        "solutions/07_your_own_curriculum.ipynb",
    ]


OTHERS = [path for path in NOTEBOOKS if path != FIRST]
PICTURES = {"00": 1, "02": 6, "03": 3, "04": 3, "05": 3, "06": 3, "07": 2, "08": 5}  # at least


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda p: str(p.relative_to(FOLDER)))
def test_notebook_quick(path, tmp_path):
    """Under papermill: runs from start to end in profile quick, draws, leaves no widget, and its HTML holds every picture. Then under nbclient, on the same runs."""
    papermill.execute_notebook(path, tmp_path / "n.ipynb", {"profile": "quick", "out": str(tmp_path / "runs")}, progress_bar=False, cwd=path.parent)
    check_outputs(tmp_path / "n.ipynb", PICTURES[path.name[:2]])
    for run in (tmp_path / "runs").rglob("summary.json"):
        assert (ab.load_run(run.parent).config.policy.name == "smollm2") == (path.name[:2] in ("03", "04", "05"))

    notebook = nbformat.read(tmp_path / "n.ipynb", as_version=4)  # with papermill's cell of parameters
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("summary.json")}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(notebook, tmp_path / "m.ipynb")
    check_outputs(tmp_path / "m.ipynb", PICTURES[path.name[:2]])
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("summary.json")} == before  # finished runs are read, not trained again


def check_outputs(path, pictures):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    attached = sum(len(c.get("attachments", {})) for c in cells)
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [kind for o in outputs for kind in o.get("data", {}) if "widget" in kind]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr" and "Warning" in o.text]
    drawn = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    page = report.html_export(path, path.with_suffix(".html")).read_text()
    assert len(drawn) == len(re.findall(r"<img[^>]+data:image/png;base64", page)) - attached >= pictures


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda p: str(p.relative_to(FOLDER)))
def test_an_unknown_profile_is_refused(path, tmp_path):
    with pytest.raises(PapermillExecutionError, match="profile is 'fast', but it must be one of"):
        papermill.execute_notebook(path, tmp_path / "n.ipynb", {"profile": "fast", "out": str(tmp_path / "runs")}, progress_bar=False, cwd=path.parent)
    assert not (tmp_path / "runs").exists()
