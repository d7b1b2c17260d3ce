"""Controls made from the settings: which control, what is refused, what is exported. Driven by their traits, without a browser."""

import base64
import datetime
import shlex
from types import SimpleNamespace

import ipywidgets as w
import nbformat
import papermill.cli
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, create_model

from adaback_lite import UserError, cli, config, make_config
from adaback_lite.config import GROUPS, LIVE, Config, config_from_yaml, dump_config, flat, load_config, override, setting_names
from adaback_lite.options import chosen_config, given_settings
from adaback_lite.widgets import controls, export, settings_panel
from adaback_lite.widgets.draft import Draft
from adaback_lite.widgets.export import differing, download_link, notebook_parameters, papermill_command, train_command, write_yaml
from adaback_lite.widgets.kinds import as_text, as_value, kind_of

from . import helpers  # noqa: F401  (the "steady" profile)

# Differs from the defaults in every type of setting, and in texts that a shell or papermill could take for something else.
ODD = make_config(
    {
        "method": "r3",
        "seed": 7,
        "out": "runs/it's a $HOME",
        "curriculum.alpha": 0.3,
        "grpo.lr": 1e-6,
        "grpo.scale_std": False,
        "policy.revision": "1",
        "policy.lora_targets": "- q, 'v' #: {x}",
        "trainer.sft_lrs": (1e-4, 0.02),
        "trainer.max_steps": 10,
    }
)


# ---------------------------------------------------------------- which control


def test_every_setting_has_a_control_with_its_value_and_help():
    panel = controls(ODD, groups=tuple(GROUPS), headless=False)
    assert list(panel.rows)[: len(LIVE)] == list(LIVE)
    assert set(panel.rows) == set(setting_names()) - {"version"}
    shown_order = [name for name in panel.rows if name not in LIVE]
    assert shown_order == [name for name in setting_names() if name in shown_order]
    for name, row in panel.rows.items():
        value = flat(ODD)[name]
        assert row.entry.value == (value if isinstance(value, bool) else as_text(value)), name
        assert (row.slider or row.entry).description == name.rpartition(".")[2]  # a visible label
        assert name in row.entry.tooltip and setting_names()[name].description.split("'")[0].split("<")[0] in row.help.value


def test_a_new_setting_appears_by_itself(monkeypatch):
    bigger = create_model("GRPOSettings", __base__=GROUPS["grpo"], momentum=(float, Field(0.9, ge=0, le=1, description="made up for this test")))
    whole = create_model("Config", __base__=Config, grpo=(bigger, bigger()))
    for where in (config, settings_panel, export):
        monkeypatch.setattr(where, "Config", whole)
    monkeypatch.setitem(GROUPS, "grpo", bigger)
    panel = controls(headless=False)
    row = panel.rows["grpo.momentum"]
    assert isinstance(row.slider, w.FloatSlider) and row.entry.value == "0.9" and "made up" in row.help.value
    row.entry.value = "0.5"
    assert panel.config.grpo.momentum == 0.5


@pytest.mark.parametrize(
    ("name", "widget", "low", "high", "step"),
    [
        ("curriculum.alpha", w.FloatSlider, 0, 1, 0.01),
        ("curriculum.tau", w.FloatSlider, 0, 1.5, 0.01),
        ("grpo.temperature", w.FloatSlider, 0.1, 10, 0.1),  # above 0
        ("policy.lora_dropout", w.FloatSlider, 0, 0.99, 0.01),  # below 1
        ("grpo.lr", w.FloatLogSlider, -7, 0, 0.05),  # 3e-4 would be lost on a linear one
        ("policy.rope_theta", w.FloatLogSlider, 0, 6, 0.05),
        ("task.length", w.IntSlider, 1, 64, 1),
    ],
)
def test_sliders_by_bounds_and_default(name, widget, low, high, step):
    slider = controls(groups=tuple(GROUPS), headless=False).rows[name].slider
    assert type(slider) is widget
    assert (slider.min, slider.max, slider.step) == pytest.approx((low, high, step))


@pytest.mark.parametrize(("name", "widget"), [("task.n_train", w.Text), ("method", w.Dropdown), ("grpo.scale_std", w.Checkbox), ("out", w.Text), ("trainer.sft_lrs", w.Text)])
def test_what_has_no_slider(name, widget):
    row = controls(groups=tuple(GROUPS), headless=False).rows[name]
    assert row.slider is None and type(row.entry) is widget


@given(st.floats(allow_nan=False, allow_infinity=False), st.lists(st.floats(1e-9, 1), min_size=1, max_size=4))
def test_a_value_shown_as_text_reads_back_the_same(value, several):
    assert float(as_text(value)) == value
    assert [float(part) for part in as_value(kind_of(setting_names()["trainer.sft_lrs"]), as_text(several))] == several


@pytest.mark.parametrize(("value", "text"), [(3e-4, "3e-4"), (1.25e-6, "1.25e-6"), (0.05, "0.05"), (5.0, "5"), ((1e-4, 0.2), "1e-4 0.2"), (7, "7"), ("a", "a")])
def test_as_text_by_hand(value, text):
    assert as_text(value) == text


def test_unknown_group():
    with pytest.raises(UserError, match="There is no group of settings 'grop'; there are: task, policy"):
        controls(groups=("grop",), headless=False)


# ---------------------------------------------------------------- moving them


def test_slider_and_text_follow_each_other():
    panel, seen = controls(headless=False), []
    panel.observe(seen.append)
    alpha, lr = panel.rows["curriculum.alpha"], panel.rows["grpo.lr"]
    alpha.slider.value = 0.3
    assert alpha.entry.value == "0.3" and panel.config.curriculum.alpha == 0.3
    alpha.entry.value = "0.005"  # finer than the slider's step
    assert alpha.slider.value == 0.005 and panel.config.curriculum.alpha == 0.005
    lr.slider.value = 0.00123456
    assert lr.entry.value == "0.0012" and panel.config.grpo.lr == 0.0012
    lr.entry.value = " 1e-4 "
    assert lr.slider.value == pytest.approx(1e-4) and panel.config.grpo.lr == 1e-4 and lr.entry.value == "1e-4"
    assert [(c.curriculum.alpha, c.grpo.lr) for c in seen] == [(0.3, 3e-4), (0.005, 3e-4), (0.005, 0.0012), (0.005, 1e-4)]


def test_choices_checks_and_lists():
    panel = controls(headless=False)
    panel.rows["method"].entry.value = "frontier"
    panel.rows["grpo.scale_std"].entry.value = False
    panel.rows["trainer.sft_lrs"].entry.value = "1e-3, 0.02"
    panel.rows["task.length"].slider.value = 9
    assert differing(panel.config) == {"method": "frontier", "grpo.scale_std": False, "trainer.sft_lrs": (1e-3, 0.02), "task.length": 9}


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("curriculum.alpha", "2", "The setting 'curriculum.alpha' is '2', but should be less than or equal to 1. It lies between 0 and 1."),
        ("grpo.lr", "fast", "'grpo.lr' is 'fast', but should be a valid number"),
        ("grpo.group_size", "1", "'grpo.group_size' is '1'"),
        ("trainer.sft_lrs", "", "'trainer.sft_lrs'"),
        ("curriculum.min_hidden", "99", "is more than the rationale's 32 tokens"),
    ],
)
def test_what_is_refused_is_said_beside_its_control(name, typed, said):
    panel, seen = controls(headless=False), []
    panel.observe(seen.append)
    panel.rows[name].entry.value = typed
    assert said in panel.rows[name].error and panel.errors == {name: panel.rows[name].error}
    assert "role=&quot;alert&quot;" in panel.rows[name].sentence.value or 'role="alert"' in panel.rows[name].sentence.value
    assert [n for n, row in panel.rows.items() if row.error] == [name]
    assert panel.config == Config() and seen == [] and panel.rows[name].entry.value == typed  # what was typed stays, to be mended
    panel.rows["curriculum.tau"].entry.value = "0.7"  # the others go on
    assert panel.config == override(Config(), {"curriculum.tau": 0.7}) and panel.rows[name].error
    panel.rows[name].entry.value = as_text(flat(Config())[name])
    assert panel.errors == {} and panel.rows[name].sentence.value == ""


def test_two_changes_that_are_right_only_together():
    panel = controls(headless=False)
    panel.rows["policy.heads"].entry.value = "5"
    assert panel.rows["policy.heads"].error == "The setting policy.width (64) must be a multiple of twice policy.heads (5)."
    panel.rows["policy.width"].entry.value = "60"
    assert panel.rows["policy.width"].error == "The setting policy.width (60) must be a multiple of twice policy.heads (4)."
    assert set(panel.errors) == {"policy.width", "policy.heads"} and panel.config == Config()
    panel.rows["policy.kv_heads"].slider.value = 5
    assert panel.errors == {} and (panel.config.policy.width, panel.config.policy.heads, panel.config.policy.kv_heads) == (60, 5, 5)


@given(st.lists(st.tuples(st.sampled_from(["width", "heads", "kv_heads", "rope_theta"]), st.sampled_from(["4", "5", "8", "16", "40", "64", "x"])), max_size=8))
def test_a_draft_takes_exactly_what_is_valid(steps):
    """Whatever comes in whatever order: valid settings at any time, and no refusal left where all that was entered is valid together."""
    draft, entered = Draft(Config(), make_config, flat), {}
    for name, text in steps:
        entered[f"policy.{name}"] = text
        draft.put({f"policy.{name}": text})
        try:
            whole = make_config({**flat(Config()), **entered})
        except UserError:
            assert draft.errors
        else:
            assert draft.errors == {} and draft.valid == whole
        make_config(flat(draft.valid))
        taken = {n: as_text(v) for n, v in flat(draft.valid).items() if n in entered and n not in draft.errors}
        assert taken == {n: t for n, t in entered.items() if n not in draft.errors}


def test_an_observer_that_fails_is_said_and_the_others_are_called():
    panel, seen = controls(headless=False), []

    def bad(_):
        raise KeyError("no such thing")

    panel.observe(bad)
    panel.observe(seen.append)
    panel.rows["curriculum.tau"].slider.value = 0.9
    assert "KeyError" in panel.sentence and "in bad" in panel.trace and panel.sentence.split(";")[0] in panel.message.value.replace("&#x27;", "'")
    assert len(seen) == 1
    panel.rows["curriculum.tau"].slider.value = 0.8
    assert len(seen) == 2


def test_from_code_and_headless():
    before = len(w.widgets.widget._instances)
    panel = controls({"curriculum.tau": 0.7}, headless=True)
    panel.change({"curriculum.alpha": 0.4, "grpo.lr": -1})
    assert panel.config == make_config({"curriculum.tau": 0.7, "curriculum.alpha": 0.4}) and list(panel.errors) == ["grpo.lr"]
    (html,) = panel.static()
    assert all(text in html.data for text in ("curriculum.alpha", "0.4", "curriculum.tau", "0.7")) and "grpo.lr" not in html.data
    assert len(w.widgets.widget._instances) == before and panel.box is None
    assert "defaults" in controls(headless=True).static()[0].data
    with pytest.raises(UserError, match="Did you mean 'curriculum.tau'"):
        panel.change({"curriculum.ta": 1})


# ---------------------------------------------------------------- export and import


def uploaded(name: str, content: bytes) -> tuple:
    """What the browser sends."""
    return ({"name": name, "content": memoryview(content), "type": "", "size": len(content), "last_modified": datetime.datetime(2026, 1, 1)},)


def test_yaml_there_and_back(tmp_path):
    panel = controls(ODD, headless=False)
    assert config_from_yaml(panel.yaml.value) == ODD == load_config(write_yaml(ODD, tmp_path / "new" / "a.yaml"))
    other = controls(headless=False)
    other.yaml.value = panel.yaml.value
    other.read_yaml.click()
    assert other.config == ODD and other.rows["grpo.lr"].entry.value == "1e-6" and other.sentence == ""
    panel.path.value = str(tmp_path / "b.yaml")
    panel.write_file.click()
    assert load_config(tmp_path / "b.yaml") == ODD and "b.yaml" in panel.notice.value
    third = controls(headless=False)
    third.path.value = str(tmp_path / "b.yaml")
    third.read_file.click()
    assert third.config == ODD
    fourth = controls(headless=False)
    fourth.upload.value = uploaded("b.yaml", (tmp_path / "b.yaml").read_bytes())
    assert fourth.config == ODD and "b.yaml was read" in fourth.notice.value


def test_download_link_holds_the_file():
    data = download_link(ODD).partition("base64,")[2].partition('"')[0]
    assert base64.b64decode(data).decode() == dump_config(ODD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 99", "version is 99, this adaback-lite reads version 1"),
        ("method: [", "The text cannot be read as YAML"),
        ("just words", "The text holds no settings"),
        ("curriculum: {tau: 7}", "The text: The setting 'curriculum.tau' is 7"),
    ],
)
def test_a_file_of_another_version_or_damaged(text, said):
    panel = controls(ODD, headless=False)
    panel.yaml.value = text
    panel.read_yaml.click()
    assert said in panel.sentence and panel.config == ODD
    panel.upload.value = uploaded("a.yaml", b"\xff\xfe")
    assert "a.yaml cannot be read as text" in panel.sentence and panel.config == ODD


def test_where_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"does not end in \.yaml"):
        write_yaml(ODD, tmp_path / "a.txt")
    with pytest.raises(UserError, match="cannot be written"):
        write_yaml(ODD, tmp_path / "file" / "a.yaml")


def test_the_train_command_reads_back_as_the_same_settings():
    words = shlex.split(train_command(ODD))
    assert words[:2] == ["adaback", "train"] and "--policy.lora_targets=- q, 'v' #: {x}" in words
    parser, _ = cli.make_parsers()
    args, left = parser.parse_known_args(words[1:])
    assert left == [] and chosen_config(given_settings(args), None, False, None) == ODD
    assert train_command(Config()) == "adaback train"


def papermill_reads(command: str, monkeypatch) -> dict:
    """The parameters that papermill's own command line would inject."""
    caught = {}
    monkeypatch.setattr(papermill.cli, "execute_notebook", lambda **given: caught.update(given))
    monkeypatch.setattr(papermill.cli, "INPUT_PIPED", False)
    monkeypatch.setattr(papermill.cli, "OUTPUT_PIPED", False)
    words = shlex.split(command)
    assert words[0] == "papermill"
    papermill.cli.papermill.main(words[1:], standalone_mode=False)
    return caught["parameters"]


def notebook(tmp_path, *lines: str):
    cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a b.ipynb")
    return tmp_path / "a b.ipynb"


@pytest.mark.parametrize("settings", [{}, {"seed": 3, "curriculum.alpha": 0.3}, {"policy.heads": 2, "policy.kv_heads": 1, "grpo.lr": 1e-5}])
def test_the_papermill_command_reads_back_as_the_same_settings(settings, tmp_path, monkeypatch):
    path = notebook(
        tmp_path, 'out = "x"  # folder', "seed = 0  # seed", "alpha = 0.05  # a == b", "lr = 1  # rate", 'revision = ""  # text', "scale_std = True", "settings = {}  # more"
    )
    assert notebook_parameters(path) == ["out", "seed", "alpha", "lr", "revision", "scale_std", "settings"]
    for start in (Config(), ODD):
        wanted = override(start, settings)
        given = papermill_reads(papermill_command(wanted, path), monkeypatch)
        rest, names = given.pop("settings", {}), {"alpha": "curriculum.alpha", "lr": "grpo.lr", "revision": "policy.revision", "scale_std": "grpo.scale_std"}
        assert all(name in setting_names() for name in rest)
        assert make_config({names.get(n, n): v for n, v in given.items()} | rest) == wanted
        assert len(given) + len(rest) == len(differing(wanted))  # nothing that is as it is anyway


def test_a_notebook_that_cannot_take_the_settings(tmp_path):
    path = notebook(tmp_path, "alpha = 0.05  # weight")
    assert papermill_command(make_config({"curriculum.alpha": 0.3}), path) == f"papermill '{path}' out.ipynb -p alpha 0.3"
    with pytest.raises(UserError, match="has no parameter for curriculum.tau, and none called settings"):
        papermill_command(make_config({"curriculum.tau": 0.3}), path)
    panel = controls({"curriculum.tau": 0.3}, notebook=str(path), headless=False)
    assert "none called settings" in panel.commands.value and "adaback train --curriculum.tau 0.3" in panel.commands.value
    assert notebook_parameters(tmp_path / "none.ipynb") == []
    assert papermill_command(make_config({"curriculum.tau": 0.3}), "none.ipynb") == "papermill none.ipynb out.ipynb -y 'settings: {curriculum.tau: 0.3}'"


def test_kinds_of_fields_that_no_setting_has_yet():
    assert kind_of(SimpleNamespace(annotation=float, metadata=[], default=1.0))[:2] == ("number", None)  # no bounds, no slider
    assert kind_of(SimpleNamespace(annotation=int, metadata=[], default=1)) == ("number", None, 0.0, 0.0, 0.0, True, ())
