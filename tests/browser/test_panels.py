"""The panels that train nothing: settings to export and import, and runs side by side."""

from pathlib import Path

import yaml

import adaback_lite as ab

from .page import SHORT, cell_output, open_notebook, run_all, save, screenshot, setting, type_into, until, wait_text


def test_settings_go_out_and_come_in(page, server, write):
    path = write(
        "controls.ipynb",
        "from adaback_lite import widgets\n\npanel = widgets.controls()\npanel",
        "print(panel.config.curriculum.alpha, panel.config.policy.width, panel.config.method)",
    )
    open_notebook(page, server, path.name)
    run_all(page, server)
    panel = cell_output(page, 0)
    screenshot(page, "controls-1", panel)
    type_into(setting(panel, "alpha"), "0.2")
    panel.get_by_role("button", name="Policy").or_(panel.get_by_text("Policy", exact=True)).first.click()
    type_into(panel.get_by_label("width", exact=True).locator(".."), "130")  # the heads do not divide it
    sentence = panel.get_by_role("alert").first
    sentence.wait_for()
    assert "heads" in sentence.inner_text()
    screenshot(page, "controls-2-do-not-fit", sentence)
    type_into(panel.get_by_label("width", exact=True).locator(".."), "64")
    sentence.wait_for(state="hidden")

    panel.get_by_text("Export and import", exact=True).click()
    text = panel.get_by_label("YAML", exact=True)
    until(page, lambda: yaml.safe_load(text.input_value())["policy"]["width"] == 64, SHORT, "for the YAML to follow")
    assert yaml.safe_load(text.input_value())["curriculum"]["alpha"] == 0.2
    wait_text(panel, "--curriculum.alpha 0.2")
    screenshot(page, "controls-3-export", text)
    with page.expect_download() as download:
        panel.get_by_text("Download config.yaml").click()
    assert yaml.safe_load(Path(download.value.path()).read_text())["curriculum"]["alpha"] == 0.2
    text.fill("method: rl\ncurriculum:\n  alpha: 0.4\n")
    panel.get_by_role("button", name="Use this YAML").click()
    wait_text(panel, "The text was read.")
    page.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")
    wait_text(cell_output(page, 1), "0.4 ")
    assert cell_output(page, 1).inner_text().split() == ["0.4", str(ab.make_config().policy.width), "rl"]


def test_runs_side_by_side(page, server, write, tiny):
    for method in ("adaback", "rl"):
        for seed in (0, 1):
            ab.train(**tiny | {"method": method, "seed": seed, "out": str(server.folder / "side" / f"{method}-{seed}"), "progress": False})
    path = write("compare.ipynb", "from adaback_lite import widgets\n\nwidgets.compare('side')")
    open_notebook(page, server, path.name)
    run_all(page, server)
    panel = cell_output(page, 0)
    chart = panel.locator("canvas, svg.marks").first
    chart.wait_for()
    both = panel.locator("table").inner_text()
    assert "adaback" in both and "rl" in both
    screenshot(page, "compare-1", panel)
    panel.get_by_label("Runs", exact=True).select_option(["rl-0", "rl-1"])
    until(page, lambda: "adaback" not in panel.locator("table").inner_text(), SHORT, "for the other runs to go")
    screenshot(page, "compare-2", panel)
    data = [o.data for o in save(page, path).cells[0].outputs]
    assert any("image/png" in d for d in data) and any("<table" in d.get("text/html", "") for d in data)
