"""From where settings come: defaults, a preset, a task or file, options, each over the one before."""

import pytest
import yaml

from adaback_lite.config import PRESETS, TASKS, dump_config, flat, load_config, make_config
from adaback_lite.errors import UserError
from adaback_lite.options import chosen_config, natural_preset, start_settings

WORD_TASKS = [t for t in TASKS if t != "parity"]


def write(path, settings) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_options_win_over_the_task_and_the_task_over_the_preset():
    start = start_settings("gsm8k-base7", "quick")
    config = chosen_config({"grpo.lr": "0.01"}, start, False, None, "quick")
    assert flat(config) == {**flat(make_config()), **PRESETS["quick"], "trainer.sft_lrs": (1e-4, 3e-4), "task.name": "gsm8k-base7", "grpo.lr": 0.01}


def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = write(tmp_path / "a.yaml", {"method": "r3", "task": {"name": "math", "n_train": 20}, "grpo.lr": 0.5, "trainer": {"max_steps": 7, "batch_size": 3}})
    config = chosen_config({"trainer.batch_size": 5}, start_settings(file, "cpu"), False, None, "cpu")
    ours = {"method": "r3", "task.name": "math", "task.n_train": 20, "grpo.lr": 0.5, "trainer.max_steps": 7, "trainer.batch_size": 5}
    assert flat(config) == {**flat(make_config()), **PRESETS["cpu"], "trainer.sft_lrs": (1e-4, 3e-4), **ours}


def test_a_file_takes_no_preset_by_itself(tmp_path):
    file = write(tmp_path / "a.yaml", {"task": {"name": "gsm8k"}})
    with pytest.raises(UserError, match=r"a\.yaml: .*task\.name is gsm8k.*--preset cpu"):
        start_settings(file)
    start = start_settings(write(tmp_path / "b.yaml", {"task": {"name": "gsm8k"}, "policy": {"name": "smollm2"}}))
    assert natural_preset(start, {}) is None and start == make_config({"task.name": "gsm8k", "policy.name": "smollm2"})


def test_a_preset_that_could_change_nothing_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(make_config({**PRESETS["cpu"], "task.name": "gsm8k"})))
    with pytest.raises(UserError, match=r"config\.yaml sets all that the preset gpu would set"):
        start_settings(str(tmp_path / "config.yaml"), "gpu")


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_a_bad_file_is_refused_as_without_a_preset(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    said = []
    for preset_name in (None, "cpu"):
        with pytest.raises(UserError) as error:
            start_settings(str(tmp_path / "a.yaml"), preset_name)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("settings", [{"sede": 1}, {"grpo": {"lr": 7}}, {"grpo": 3}, {"task": {"name": "gsm9k"}}])
def test_a_mistake_in_a_file_names_it(tmp_path, settings):
    file = write(tmp_path / "a.yaml", settings)
    with pytest.raises(UserError, match=r"a\.yaml: "):
        start_settings(file, "cpu")


@pytest.mark.parametrize(("file", "given"), [(None, {}), ({"method": "rl"}, {}), ({"task": {"name": "gsm8k"}}, {"task.name": "parity"})])
def test_parity_and_a_preset(tmp_path, file, given):
    start = start_settings(write(tmp_path / "a.yaml", file) if file else "parity", "cpu")
    with pytest.raises(UserError, match=r"preset cpu .* task\.name is parity"):
        chosen_config(given, start, False, None, "cpu")


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("task", WORD_TASKS)
def test_the_preset_of_a_task_is_chosen_by_the_machine(monkeypatch, task, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert natural_preset(start_settings(task), {}) == ("gpu" if gpu else "cpu")
    assert natural_preset(start_settings(task), {"policy.device": "cpu"}) == "cpu"
    assert natural_preset(start_settings(task), {"task.name": "parity"}) is None


def test_no_preset_where_no_task_of_words_is_named():
    assert natural_preset(None, {}) is None and natural_preset(start_settings("parity"), {}) is None
    assert natural_preset(None, {"task.name": "gsm8k"}) is None and natural_preset(start_settings("parity"), {"task.name": "gsm8k"}) is None


def test_on_resume_the_saved_run_is_the_start(tmp_path):
    saved = make_config({**PRESETS["quick"], "task.name": "gsm8k", "trainer.max_steps": 9, "out": str(tmp_path)})
    (tmp_path / "config.yaml").write_text(dump_config(saved))
    (tmp_path / "events.jsonl").write_text("")
    out = str(tmp_path)
    assert chosen_config({"out": out}, start_settings("gsm8k"), True, out, "gpu") == saved
    assert chosen_config({"out": out, "trainer.max_steps": 10}, None, True, out, None).trainer.max_steps == 10
    fresh = str(tmp_path / "fresh")
    assert chosen_config({"out": fresh}, start_settings("gsm8k"), True, fresh, "gpu") == make_config({**PRESETS["gpu"], "task.name": "gsm8k", "out": fresh})
    assert load_config(tmp_path / "config.yaml") == saved
