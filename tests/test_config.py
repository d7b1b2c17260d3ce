"""Settings: one place, checked, and the same after a trip through YAML."""

import annotated_types
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.helpers  # noqa: F401  (hypothesis' profile)
from adaback_lite.config import GROUPS, METHODS, PRESETS, TASKS, Config, bounds, dump_config, flat, load_config, make_config, override, preset, setting_names
from adaback_lite.errors import UserError


def value_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_every_setting_has_help_and_its_default_is_in_bounds():
    names = setting_names()
    assert {n.split(".")[0] for n in names if "." in n} == set(GROUPS) == {"task", "policy", "curriculum", "grpo", "trainer"}
    assert {"method", "seed", "out", "curriculum.tau", "grpo.lr", "trainer.max_steps", "trainer.target_accuracy"} <= set(names)
    for name, field in names.items():
        assert field.description, name
        low, high = bounds(field)
        default = value_of(Config(), name)
        assert low is None or low <= default, name
        assert high is None or default <= high, name


def number_settings() -> list[str]:
    return [name for name, field in setting_names().items() if bounds(field) != (None, None)]


def test_which_settings_have_bounds():
    """All numbers but the version; the learning rates of SFT have theirs inside."""
    assert set(setting_names()) - set(number_settings()) == {name for name, field in setting_names().items() if field.annotation not in (int, float)} | {"version"}


@pytest.mark.parametrize("name", number_settings())
def test_a_value_beyond_a_bound_is_refused_and_the_bound_is_not(name):
    field = setting_names()[name]
    low, high = bounds(field)
    open_ends = {m.gt for m in field.metadata if isinstance(m, annotated_types.Gt)} | {m.lt for m in field.metadata if isinstance(m, annotated_types.Lt)}
    for bound, towards in ((low, -np.inf), (high, np.inf)):
        if bound is None:
            continue
        beyond = bound + int(np.sign(towards)) if field.annotation is int else float(np.nextafter(bound, towards))
        for value in {beyond} | ({bound} & open_ends):
            with pytest.raises(UserError, match=rf"The setting '{name}' is .*should be (less|greater) than"):
                make_config({name: value})
        if bound not in open_ends:
            try:
                assert value_of(make_config({name: bound}), name) == bound
            except UserError as error:  # two settings that do not go together
                assert "must be a multiple" in str(error) or "is more than the rationale's" in str(error)


CHANGES = {
    "method": st.sampled_from(METHODS),
    "seed": st.integers(0, 2**31 - 1),
    "out": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    "task.length": st.integers(10, 64),
    "task.format_reward": st.floats(0, 1),
    "task.data": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20),
    "task.shots": st.integers(0, 16),
    "task.notes": st.booleans(),
    "task.check_seconds": st.floats(0, 600, exclude_min=True),
    "policy.revision": st.sampled_from(["", "main", "060db6499f32", "1e5", "null", "0123"]),
    "policy.lora_rank": st.integers(0, 1024),
    "policy.lora_dropout": st.floats(0, 1, exclude_max=True),
    "policy.lora_targets": st.sampled_from(["all-linear", "q_proj,v_proj"]),
    "curriculum.tau": st.floats(0, 1.5),
    "curriculum.alpha": st.floats(0, 1),
    "curriculum.zero_updates": st.sampled_from(["never", "success", "always"]),
    "grpo.lr": st.floats(0, 1, exclude_min=True),
    "grpo.scale_std": st.booleans(),
    "trainer.sft_lrs": st.lists(st.floats(1e-9, 1), min_size=1, max_size=16).map(tuple),
}


@given(st.fixed_dictionaries({}, optional=CHANGES))
def test_round_trip_through_yaml(tmp_path_factory, changes):
    config = make_config(changes)
    assert all(value_of(config, name) == value for name, value in changes.items())
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config  # every float to the last bit
    assert override(config, {}) == config


def test_nested_dotted_and_objects_are_the_same():
    expected = make_config({"grpo.lr": 0.01, "grpo.kl": 0.1, "method": "rl"})
    assert make_config({"grpo": {"lr": 0.01, "kl": 0.1}}, method="rl") == expected
    assert make_config({"grpo": {"lr": 0.01}, "grpo.kl": 0.1, "method": "rl"}) == expected
    assert make_config(grpo=expected.grpo, method="rl") == expected


def test_override_changes_what_it_names_and_nothing_else():
    base = make_config({"grpo.lr": 0.01, "seed": 3})
    changed = override(base, {"curriculum.tau": 0.3, "seed": 4})
    assert (changed.grpo.lr, changed.curriculum.tau, changed.seed, base.seed) == (0.01, 0.3, 4, 3)
    assert changed == make_config({"grpo.lr": 0.01, "curriculum.tau": 0.3, "seed": 4})


TEXTS = [("1e-4", "grpo.lr", 1e-4), ("12", "trainer.batch_size", 12), ("0.5", "curriculum.tau", 0.5), ("false", "grpo.scale_std", False)]


@pytest.mark.parametrize(("text", "name", "value"), TEXTS)
def test_numbers_given_as_text_are_numbers(text, name, value):
    """PITFALLS: papermill's -y "lr: 1e-4" arrives as the string '1e-4'; so does YAML's own reading of it."""
    got = value_of(make_config({name: text}), name)
    assert got == value and type(got) is type(value)


def test_yamls_own_reading_of_a_number_without_a_point(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("grpo:\n  lr: 1e-4\n")
    assert load_config(path).grpo.lr == 1e-4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"curriculum.tua": 0.3}, r"no setting 'curriculum\.tua'\. Did you mean 'curriculum\.tau'\?"),
        ({"grpo": {"learning_rate": 1}}, r"no setting 'grpo\.learning_rate'"),
        ({"sede": 1}, "no setting 'sede'. Did you mean 'seed'"),
        ({"curiculum.tau": 0.3}, r"no setting 'curiculum\.tau'\. Did you mean 'curriculum\.tau'"),
        ({"seed.x": 1}, r"no setting 'seed\.x'"),
        ({"qqqqqqqqqq": 1}, "'adaback train --help' lists all"),
        ({"curriculum.tau": 2}, r"'curriculum\.tau' is 2.*between 0 and 1\.5"),
        ({"curriculum.tau": -0.1}, r"'curriculum\.tau' is -0\.1.*between 0 and 1\.5"),
        ({"grpo.lr": 0}, r"'grpo\.lr' is 0.*greater than 0"),
        ({"grpo.lr": "fast"}, r"'grpo\.lr' is 'fast'"),
        ({"grpo.lr": float("nan")}, r"'grpo\.lr' is nan"),
        ({"grpo.lr": float("inf")}, r"'grpo\.lr' is inf"),
        ({"trainer.batch_size": 2.5}, r"'trainer\.batch_size' is 2\.5"),
        ({"method": "adabck"}, "'method' is 'adabck'.*'adaback'"),
        ({"trainer.sft_lrs": [0.1, 7.0]}, r"'trainer\.sft_lrs' is 7"),
        ({"trainer.sft_lrs": []}, r"'trainer\.sft_lrs'"),
        ({"policy.width": 60}, r"policy\.width \(60\) must be a multiple"),
        ({"policy.heads": 4, "policy.kv_heads": 3}, r"policy\.heads \(4\) must be a multiple"),
        ({"task.length": 2, "curriculum.min_hidden": 5}, r"min_hidden \(5\) is more than the rationale's 4 tokens"),
        ({"policy.quantize": "nf4"}, r"policy\.quantize nf4 freezes the weights.*set policy\.lora_rank"),
        ({"policy.quantize": "nf4", "policy.lora_rank": 0}, r"set policy\.lora_rank"),
        ({"policy.quantize": "int8"}, "'policy.quantize' is 'int8'.*'nf4'"),
        ({"policy.lora_dropout": 1}, r"'policy\.lora_dropout' is 1, but should be less than 1"),
        ({"policy.lora_targets": ""}, r"'policy\.lora_targets'"),
        ({"task.name": "gsm9k"}, r"'task\.name' is 'gsm9k'.*'gsm8k'"),
        ({"task.data": 3}, r"'task\.data' is 3"),
        ({"task.n_tran": 3}, r"no setting 'task\.n_tran'\. Did you mean 'task\.n_train'"),
        ({"policy.lora_rnk": 3}, r"no setting 'policy\.lora_rnk'\. Did you mean 'policy\.lora_rank'"),
        ({"version": 99}, "(?i)version is 99"),
        ({"grpo": 3}, "'grpo'"),
        ({"seed": {"a": 1}}, "'?seed"),
    ],
)
def test_mistakes_get_one_sentence_that_names_them(settings, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make_config(settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(UserError):
        override(Config(), settings)


BAD = [("a: [", "cannot be read as YAML"), ("", "holds no settings"), ("- 1", "holds no settings"), ("sede: 1", "c.yaml: There is no setting 'sede'")]


@pytest.mark.parametrize(("text", "sentence"), BAD)
def test_bad_files(tmp_path, text, sentence):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_config(path)
    with pytest.raises(UserError, match="no configuration file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("method", "sft", "curriculum"),
    [("adaback", False, "adaback"), ("rl", False, "none"), ("sft", True, None), ("sft+rl", True, "none"), ("sft+adaback", True, "adaback"), ("r3-staged", False, "r3-staged")],
)
def test_what_a_method_means(method, sft, curriculum):
    config = make_config(method=method)
    assert (config.uses_sft, config.curriculum_name) == (sft, curriculum)


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


# ---------------------------------------------------------------- language models

WORD_TASKS = [t for t in TASKS if t != "parity"]


@pytest.mark.parametrize("task", WORD_TASKS)
def test_tiny_knows_no_words(task):
    with pytest.raises(UserError, match=rf"policy\.name is tiny, which knows no words, but task\.name is {task}; set policy\.name.*--preset cpu"):
        make_config({"task.name": task})
    assert make_config({"task.name": task, "policy.name": "smollm2"}).task.name == task


def test_four_bits_go_with_an_adapter_only():
    config = make_config({"policy.quantize": "nf4", "policy.lora_rank": 1})
    assert (config.policy.quantize, config.policy.lora_rank) == ("nf4", 1)
    with pytest.raises(UserError, match="policy.lora_rank"):
        override(config, {"policy.lora_rank": 0})


def test_hidden_tokens_are_counted_against_parity_only():
    """The rationales of word problems have no fixed length."""
    settings = {"curriculum.min_hidden": 33, "task.length": 16}
    with pytest.raises(UserError, match=r"min_hidden \(33\) is more than the rationale's 32 tokens"):
        make_config(settings)
    assert make_config({**settings, "task.name": "math", "policy.name": "smollm2"}).curriculum.min_hidden == 33


@pytest.mark.parametrize("task", WORD_TASKS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_suits_every_task_of_words(name, task):
    settings = preset(name)
    config = make_config({**settings, "task.name": task})
    assert config.task.name == task and config.policy.name != "tiny"
    changed = {key for key, value in flat(config).items() if value != flat(Config())[key]}
    assert changed <= {*settings, "task.name"} <= set(setting_names())
    assert all(value_of(config, key) == (tuple(value) if isinstance(value, list) else value) for key, value in settings.items())
    assert config.trainer.checkpoint_every <= max(config.trainer.max_steps, 1) and config.trainer.batch_size <= config.task.n_train


def test_presets_are_copies_and_unknown_ones_are_refused():
    assert set(PRESETS) == {"quick", "cpu", "gpu"}
    preset("cpu")["grpo.lr"] = 1.0
    assert preset("cpu") == PRESETS["cpu"] and PRESETS["cpu"]["grpo.lr"] != 1.0
    with pytest.raises(UserError, match="no preset 'gup'; there are: quick, cpu, gpu"):
        preset("gup")
