"""A run steered by hand in a browser: start, pause, change, go on, stop, look, come back; and its replay."""

import pytest

from adaback_lite import load_run
from adaback_lite.replay import differences, replay

from .page import (
    LONG,
    SHORT,
    cell_output,
    drag,
    menu,
    numbers,
    open_notebook,
    restart_kernel,
    run_all,
    run_cell,
    save,
    screenshot,
    setting,
    type_into,
    until,
    wait_text,
)

# A step takes a tenth of a second or two, the task is learnt in about a hundred, and nothing but a person stops the run.
SETTINGS = {
    "method": "adaback",
    "task.length": 8,
    "task.n_train": 32,
    "task.n_val": 32,
    "task.n_test": 32,
    "grpo.group_size": 8,
    "trainer.batch_size": 8,
    "trainer.max_steps": 90_000,
    "trainer.target_accuracy": 0,
    "trainer.eval_every": 20,
    "trainer.threads": 1,
}
PANEL, VIEW, SAMPLE = 1, 2, 3


def cells(out: str, checkpoint_every: int = 20) -> list[str]:
    return [
        f"from adaback_lite import widgets\n\nsettings = {SETTINGS | {'out': out, 'trainer.checkpoint_every': checkpoint_every}}",
        "panel = widgets.live(settings)\npanel",
        "widgets.live(settings)  # a second view",
        "widgets.sample(panel)",
    ]


def done(output) -> float:
    """The number of steps that a panel shows."""
    return numbers(output, r"(\d+) of 90000")[0]


def press(output, name: str) -> None:
    output.get_by_role("button", name=name, exact=True).click()


def until_done(page, steps: float) -> None:
    until(page, lambda: done(cell_output(page, PANEL)) >= steps, LONG, f"for {steps:.0f} steps")


def last_step(run) -> int:
    return max(e["step"] for e in run.events if e["event"] == "step")


def still(page, run) -> bool:
    """Whether nothing is written for two and a half seconds."""
    before = len(run.events)
    page.wait_for_timeout(2500)
    return len(run.events) == before


def changes(run) -> list[tuple]:
    return [(e["name"], e["before"], e["value"]) for e in run.events if e["event"] == "change"]


@pytest.mark.parametrize("app", ["lab", "notebook"])  # JupyterLab 4, Notebook 7
def test_a_run_steered_by_hand(page, server, write, tmp_path, app):
    path = write(f"live-{app}.ipynb", *cells(f"runs/{app}", checkpoint_every=90_000))  # so that a checkpoint is that of a pause or a stop
    folder = server.folder / "runs" / app
    open_notebook(page, server, path.name, app)
    for n in (0, PANEL, VIEW):
        run_cell(page, n)
    panel, view = cell_output(page, PANEL), cell_output(page, VIEW)
    wait_text(panel, "Not started yet.")
    screenshot(page, f"live-{app}-1-new", panel)
    assert not folder.exists()

    # A value out of bounds: a sentence beside the control, and nothing happens.
    type_into(setting(panel, "alpha"), "7")
    sentence = setting(panel, "alpha").get_by_role("alert")
    sentence.wait_for()
    assert "curriculum.alpha" in sentence.inner_text() and "7" in sentence.inner_text()
    screenshot(page, f"live-{app}-2-out-of-bounds", panel)
    type_into(setting(panel, "alpha"), "0.05")
    sentence.wait_for(state="hidden")

    press(panel, "Start")
    until(page, lambda: done(panel) >= 60, LONG, "for 60 steps")
    wait_text(panel, "Training.")
    screenshot(page, f"live-{app}-3-training", panel)
    assert panel.get_by_role("button", name="Start", exact=True).is_disabled()

    press(panel, "Pause")
    wait_text(panel, "Paused, with a checkpoint written")
    until(page, lambda: load_run(folder).events[-1]["event"] == "checkpoint", LONG, "for the step under way to end")
    paused_at = last_step(load_run(folder))
    until(page, lambda: done(panel) == done(view) == paused_at, SHORT, "for both views to show the last step")  # two views of a run agree
    assert still(page, load_run(folder)) and done(panel) == paused_at
    wait_text(view, "Paused, with a checkpoint written")

    type_into(setting(panel, "alpha"), "0.3")
    wait_text(panel, "waits for the next step: curriculum.alpha 0.3")
    assert changes(load_run(folder)) == []
    screenshot(page, f"live-{app}-4-paused-and-changed", panel)
    press(view, "Resume")  # in the other view
    wait_text(panel, f"after step {paused_at:.0f}: curriculum.alpha 0.05 → 0.3")
    until(page, lambda: done(panel) > paused_at, SHORT, "for the run to go on")
    assert changes(load_run(folder)) == [("curriculum.alpha", 0.05, 0.3)]

    # While it trains: the slider, and the cell run again.
    drag(page, setting(panel, "tau"), -30)
    until(page, lambda: len(changes(load_run(folder))) == 2, SHORT, "for the slider's change to act")
    name, before, tau = changes(load_run(folder))[1]
    assert (name, before) == ("curriculum.tau", 0.5) and tau < 0.5
    seen = done(panel)
    run_cell(page, PANEL)
    until(page, lambda: done(panel) > seen, SHORT, "for the panel to be back, with the run going on")
    wait_text(panel, "after step")
    assert setting(panel, "tau").get_by_role("textbox").input_value() == f"{tau:g}"

    press(panel, "Stop")
    wait_text(panel, "Stopped, with a checkpoint written")
    wait_text(view, "Stopped, with a checkpoint written")
    run = load_run(folder)
    until(page, lambda: done(panel) == done(view) == last_step(run), SHORT, "for both views to show the last step")
    screenshot(page, f"live-{app}-5-stopped", panel)

    # One sample.
    run_cell(page, SAMPLE)
    sample = cell_output(page, SAMPLE)
    type_into(sample, "5", "or its id")
    wait_text(sample, "Sample 5, step")
    visit = run.outputs(5)
    assert sample.get_by_text(visit.prompt, exact=True).count() and sample.get_by_text("Rollout 8:").count() == 1
    screenshot(page, f"live-{app}-6-sample", sample)
    heat = sample.locator("svg.marks .background").first.bounding_box()
    page.mouse.click(heat["x"] + 0.9 * heat["width"], heat["y"] + 3)  # late, in the top row: the sample that needed most
    hardest = sample.get_by_label("Sample", exact=True).locator("option").first.inner_text()
    wait_text(sample, f"S{hardest[1:]}, step")
    screenshot(page, f"live-{app}-6-hardest", sample)
    sample.get_by_text("Rollout 8:").scroll_into_view_if_needed()
    page.mouse.wheel(0, 600)
    screenshot(page, f"live-{app}-7-rollouts")

    # What stays in the saved file: a picture and a table, of the run as it stands.
    saved = save(page, path)
    for n in (PANEL, SAMPLE):
        data = [o.data for o in saved.cells[n].outputs]
        assert any("image/png" in d for d in data)  # for GitHub, and pages without JavaScript
        assert any("<table" in d.get("text/html", "") or "Rollout 8" in d.get("text/html", "") for d in data)

    again = replay(folder, tmp_path / "again", progress=False)
    assert differences(run, again) == []
    assert changes(again) == changes(run) and len(again.events) > 20


def test_a_kernel_that_ends_in_the_middle_of_a_run(page, server, write, tmp_path):
    """Restarted from the menu, and then killed: the folder goes on from a checkpoint, and its replay is the same."""
    path = write("killed.ipynb", *cells("runs/killed")[:2])
    folder = server.folder / "runs" / "killed"
    open_notebook(page, server, path.name)
    run_all(page, server)
    panel = cell_output(page, PANEL)
    reached = 0
    for end in ("restart", "kill"):
        press(panel, "Start")
        before = reached
        until_done(page, before + 30)
        if end == "restart":
            restart_kernel(page)
        else:
            server.kill_kernel(path.name)
            page.wait_for_timeout(3000)  # the server starts another
            close = page.get_by_role("button", name="Ok", exact=True)
            if close.count():
                screenshot(page, "killed-1-said")
                close.click()
        run_all(page, server)
        panel = cell_output(page, PANEL)
        wait_text(panel, "Stopped, with a checkpoint written")
        screenshot(page, f"killed-2-{end}", panel)
        reached = done(panel)
        assert reached >= before + 20  # no more is lost than what came after the last checkpoint, one every 20 steps
    press(panel, "Start")
    until_done(page, reached + 1)
    press(panel, "Stop")
    wait_text(panel, "Stopped, with a checkpoint written")
    run = load_run(folder)
    steps = [e["step"] for e in run.events if e["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert differences(run, replay(folder, tmp_path / "again", progress=False)) == []


def test_two_starts_at_once(page, server, write):
    """The same folder in two kernels: the second one may look, and says so."""
    path, other = (write(f"{name}.ipynb", *cells("runs/both")[:2]) for name in ("first", "second"))
    open_notebook(page, server, path.name)
    run_all(page, server)
    press(cell_output(page, PANEL), "Start")
    until(page, lambda: done(cell_output(page, PANEL)) > 0, LONG)
    two = page.context.new_page()
    open_notebook(two, server, other.name)
    run_all(two, server)
    panel = cell_output(two, PANEL)
    wait_text(panel, "Another process is writing this run")
    assert panel.get_by_role("button", name="Start", exact=True).is_disabled()
    seen = done(panel)
    until(two, lambda: done(panel) > seen, SHORT, "for the other view to follow the run")
    screenshot(two, "elsewhere", panel)
    press(cell_output(page, PANEL), "Stop")
    wait_text(panel, "Stopped, with a checkpoint written")
    until(two, lambda: done(panel) == done(cell_output(page, PANEL)), SHORT, "for both views to show the last step")
    menu(two, "File", "Save Notebook")
