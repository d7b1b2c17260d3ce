"""The grid's language, its fit to a notebook, its cells and their names."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite import UserError, grid, make_config
from adaback_lite.config import flat

from . import helpers  # noqa: F401  (hypothesis' profile)

DEFAULTS = {"profile": "quick", "out": "runs", "alpha": 0.05, "n_train": 0, "seed": 0, "settings": {"grpo.lr": 0.001}}


def fitted(*texts, defaults=DEFAULTS):
    return grid.fit(grid.read_grid(texts), defaults, "n.ipynb")


def refusal(*texts, defaults=DEFAULTS) -> str:
    with pytest.raises(UserError) as caught:
        fitted(*texts, defaults=defaults)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("-0.5", -0.5), (".5", 0.5), ("3", 3), ("+3", 3), ("-2", -2), ("2.", 2.0), ("1E3", 1000.0),
        ("true", True), ("False", False), ("none", None), ("null", None),
        ("quick", "quick"), ("inf", "inf"), ("nan", "nan"), ("1e", "1e"), ("0x10", "0x10"), ("1_000", "1_000"), ("1 2", "1 2"),
    ],
)  # fmt: skip
def test_values_as_typed(text, value):
    got = grid.plain_value(text)
    assert got == value and type(got) is type(value)


def test_the_issues_own_grid():
    values, reaches = fitted("curriculum.alpha=0.01,0.05,0.2,0.5,1", "seed=0..4")
    assert values == {"curriculum.alpha": [0.01, 0.05, 0.2, 0.5, 1.0], "seed": [0, 1, 2, 3, 4]}
    assert all(type(v) is float for v in values["curriculum.alpha"])  # as the setting is, though one was typed as 1
    assert reaches == {"curriculum.alpha": "alpha", "seed": "seed"}
    cells = grid.cells(values)
    assert len(cells) == 25 and cells[1] == {"curriculum.alpha": 0.01, "seed": 1} and cells[-1] == {"curriculum.alpha": 1.0, "seed": 4}


@pytest.mark.parametrize(
    "given",
    [{"curriculum.alpha": [0.1, 0.2], "seed": range(2)}, {"curriculum.alpha": np.array([0.1, 0.2]), "seed": np.arange(2)}, {"curriculum.alpha": "0.1,0.2", "seed": (0, 1)}],
)
def test_a_mapping_says_the_same_as_texts(given):
    assert grid.fit(grid.read_grid(given), DEFAULTS, "n.ipynb") == fitted("curriculum.alpha=0.1,0.2", "seed=0..1")


def test_one_value_and_ranges():
    assert grid.read_grid("seed=-1..1") == {"seed": ["-1", "0", "1"]}
    assert grid.read_grid(["seed=0..1,5", "profile=full"]) == {"seed": ["0", "1", "5"], "profile": ["full"]}
    assert grid.read_grid({"seed": 3, "settings": {"grpo.lr": 0.1}}) == {"seed": [3], "settings": [{"grpo.lr": 0.1}]}
    assert grid.read_grid(["profile=a=b"]) == {"profile": ["a=b"]}


@pytest.mark.parametrize("name", ["trainer.sft_lrs", "policy.name", "method", "grpo.scale_std", "task.n_train", "grpo.lr"])
def test_a_setting_is_typed_by_itself(name):
    text, value = {
        "trainer.sft_lrs": ("1e-3", [0.001]), "policy.name": ("1e5", "1e5"), "method": ("rl", "rl"),
        "grpo.scale_std": ("false", False), "task.n_train": ("64", 64), "grpo.lr": ("1e-4", 1e-4),
    }[name]  # fmt: skip
    got = grid.setting_value(name, text)
    assert got == value and type(got) is type(value)
    config = make_config({name: got}) if name != "policy.name" else make_config({name: got, "task.name": "gsm8k"})
    stored = flat(config)[name]
    assert (list(stored) if isinstance(stored, tuple) else stored) == value


def test_a_setting_need_not_fit_the_defaults():
    assert grid.setting_value("task.name", "gsm8k") == "gsm8k"  # make_config refuses it for the tiny policy, which the notebook may not use
    with pytest.raises(UserError, match="policy.name is tiny"):
        make_config({"task.name": "gsm8k"})


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "The grid is empty"),
        (["alpha"], "'alpha' is no name with values; write a name and its values"),
        (["=1"], "'=1' is no name with values"),
        (["al pha=1"], "'al pha=1' is no name with values"),
        (["alpha="], "'alpha=' has an empty value"),
        (["alpha=1,,2"], "'alpha=1,,2' has an empty value"),
        (["seed=0...4"], "a range that is not of whole numbers"),
        (["alpha=0.1..0.5"], "a range that is not of whole numbers"),
        (["seed=4..0"], "runs backwards; write 0..4"),
        (["seed=0..10000"], "holds more than 10,000 values"),
        (["seed=1", "seed=2"], "names 'seed' twice"),
        (["seed=1,1"], "gives 'seed' the value 1 twice"),
        (["curriculum.alpha=0.1,1e-1"], "gives 'curriculum.alpha' the value 0.1 twice"),
        (["out=a,b"], "names 'out', which the sweep sets itself"),
        (["alfa=1"], "n.ipynb has no parameter 'alfa'. Did you mean 'alpha'?"),
        (["xyz=1"], "Its parameters are: profile, out, alpha, n_train, seed, settings."),
        (["curriculum.alhpa=1"], "There is no setting 'curriculum.alhpa'. Did you mean 'curriculum.alpha'?"),
        (["curriculum=1"], "has no parameter 'curriculum'. Did you mean"),
        (["curriculum.alpha=2"], "The setting 'curriculum.alpha' is '2', but should be less than or equal to 1. It lies between 0 and 1."),
        (["curriculum.alpha=0.1,x"], "The setting 'curriculum.alpha' is 'x', but"),
        (["seed=-1"], "The setting 'seed' is '-1', but should be greater than or equal to 0."),
        (["seed=0.5"], "The setting 'seed' is '0.5', but"),
        (["alpha=0.1", "curriculum.alpha=0.2"], "'alpha' and 'curriculum.alpha' both set the parameter 'alpha'"),
    ],
)
def test_one_sentence(texts, words):
    sentence = refusal(*texts)
    assert words in sentence and "\n" not in sentence and sentence.endswith((".", "?"))


def test_library_values_that_are_no_json():
    with pytest.raises(UserError, match="cannot be written as JSON"):
        grid.fit({"alpha": [object()]}, DEFAULTS, "n.ipynb")
    with pytest.raises(UserError, match="cannot be written as JSON"):
        grid.fit({"alpha": [float("nan")]}, DEFAULTS, "n.ipynb")
    with pytest.raises(UserError, match="gives 'alpha' no value"):
        grid.read_grid({"alpha": []})


def test_too_many_cells():
    with pytest.raises(UserError, match="10,100 cells, more than 10,000"):
        grid.cells({"a": list(range(101)), "b": list(range(100))})


def test_how_a_setting_reaches_the_notebook():
    values, reaches = fitted("curriculum.alpha=0.2", "curriculum.tau=0.3", "task.n_train=64", "trainer.threads=2")
    assert reaches == {"curriculum.alpha": "alpha", "curriculum.tau": "settings", "task.n_train": "n_train", "trainer.threads": "settings"}
    (cell,) = grid.cells(values)
    assert grid.parameters_of(cell, reaches, DEFAULTS) == {"alpha": 0.2, "n_train": 64, "settings": {"grpo.lr": 0.001, "curriculum.tau": 0.3, "trainer.threads": 2}}
    assert DEFAULTS["settings"] == {"grpo.lr": 0.001}  # not changed on the way


def test_a_swept_dict_takes_dotted_settings_on_top():
    values, reaches = grid.fit(grid.read_grid({"curriculum.tau": 0.3, "settings": [{"a": 1}, {}]}), DEFAULTS, "n.ipynb")
    assert [grid.parameters_of(cell, reaches, DEFAULTS) for cell in grid.cells(values)] == [{"settings": {"a": 1, "curriculum.tau": 0.3}}, {"settings": {"curriculum.tau": 0.3}}]


def test_a_setting_that_cannot_reach_the_notebook():
    sentence = refusal("curriculum.tau=0.3", defaults={"alpha": 0.05, "settings": "none"})
    assert sentence == "'curriculum.tau' cannot reach n.ipynb, which has neither a parameter 'tau' nor a dict parameter 'settings'; its parameters are: alpha, settings."


def test_two_settings_with_one_last_part():
    sentence = refusal("policy.name=a", "task.name=gsm8k", defaults={"name": ""})
    assert sentence == "'policy.name' and 'task.name' both set the parameter 'name' of n.ipynb; leave one of them out."
    assert fitted("policy.name=a", "task.name=gsm8k")[1] == {"policy.name": "settings", "task.name": "settings"}


def test_names_of_folders():
    assert grid.cell_names([{"seed": 0, "curriculum.alpha": 0.05, "profile": "full"}]) == ["alpha=0.05_profile=full_seed=0"]
    assert grid.cell_names([{"policy.name": "a", "task.name": "gsm8k-base7"}]) == ["policy.name=a_task.name=gsm8k-base7"]
    (first, second) = grid.cell_names([{"name": "a/b"}, {"name": "a b"}])
    assert re.fullmatch(r"name=a-b_[0-9a-f]{8}", first) and re.fullmatch(r"name=a-b_[0-9a-f]{8}", second) and first != second
    assert len(grid.cell_names([{"x": "a" * 500}])[0]) < 110


values = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), st.text("abAB01./_= é", max_size=4), st.lists(st.integers(0, 2), max_size=2)
)


@given(st.lists(st.fixed_dictionaries({"a": values, "b.c": values}), max_size=30))
def test_names_are_safe_and_tell_cells_apart(cells):
    cells = list({json.dumps(cell, sort_keys=True): cell for cell in cells}.values())
    names = grid.cell_names(cells)
    assert len({name.lower() for name in names}) == len(cells)  # also on a disk that does not tell A from a
    assert all(re.fullmatch(r"[A-Za-z0-9.+=_-]{1,110}", name) and not name.startswith(".") for name in names)
    assert grid.cell_names([dict(reversed(cell.items())) for cell in cells]) == names  # whatever the order of the --grid options


plain = st.one_of(st.integers(-50, 50), st.booleans(), st.none(), st.floats(-1e6, 1e6), st.sampled_from(["quick", "x-1", "a b"]))


@given(st.lists(plain, min_size=1, max_size=6, unique_by=repr), st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True))
def test_the_options_say_the_grid_again(several, whole):
    several = [v for v in several if not isinstance(v, float) or json.dumps(v) != "-0.0"]
    if not several:
        return
    given_grid = {"alpha": several, "n_train": whole}
    typed, _ = grid.fit(grid.read_grid(given_grid), DEFAULTS, "n.ipynb")
    assert grid.fit(grid.read_grid(grid.grid_options(typed)), DEFAULTS, "n.ipynb")[0] == typed == given_grid


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_cells_are_every_combination_once(sizes):
    values = {f"p{i}": list(range(n)) for i, n in enumerate(sizes)}
    cells = grid.cells(values)
    assert [tuple(cell.values()) for cell in cells] == list(itertools.product(*(range(n) for n in sizes)))
    assert all(list(cell) == list(values) for cell in cells)
