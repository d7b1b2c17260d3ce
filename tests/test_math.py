"""Tests of tasks/math.py and of tasks/files.py, which it reads with."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.errors import UserError
from adaback_lite.tasks import Sample
from adaback_lite.tasks.files import read_jsonl, read_problems
from adaback_lite.tasks.math import (
    DEEPSCALER,
    DEEPSCALER_REVISION,
    MATH,
    MATH_REVISION,
    MATH_SUBJECTS,
    last_boxed,
    load_deepscaler,
    load_math,
    load_splits,
    local_files,
)

from . import helpers  # noqa: F401  (the hypothesis profile)

ROOT = Path(__file__).resolve().parents[1]


# --- last_boxed ---


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"$\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\boxed{6}}", "6"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}} x}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\boxed{}", ""),
        (r"\boxed{ 5 }", " 5 "),
        ("\\boxed{a\nb}", "a\nb"),
        (r"\boxed 5", None),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
        (r"\boxed{5} \boxed{6", None),
        (r"\boxed{5} \boxed", None),
        (r"\boxedx{5}", None),
        (r"\fbox{5}", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_last_boxed_by_hand(text, content):
    assert last_boxed(text) == content


def balanced(s: str) -> bool:
    depth = 0
    for c in s:
        depth += (c == "{") - (c == "}")
        if depth < 0:
            return False
    return depth == 0


@given(st.text("{}ab", max_size=12), st.text("ab {}", max_size=8), st.text("ab {}", max_size=8))
def test_the_shortest_balanced_content_is_taken(content, before, after):
    text = before + r"\boxed{" + content + "}" + after
    rest = text[len(before) + len(r"\boxed{") :]
    ends = [n for n, c in enumerate(rest) if c == "}" and balanced(rest[:n])]
    assert last_boxed(text) == (rest[: ends[0]] if ends else None)
    if balanced(content):
        assert last_boxed(text) == content


def test_a_long_text_costs_little():
    assert last_boxed(r"\boxed{" * 100_000) is None
    assert last_boxed(r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}") == "{" * 500_000 + "}" * 500_000


# --- files ---


def test_jsonl_is_read_in_order_and_reduced_to_the_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"q": "one\u2028two", "a": "1", "x": 3}\r\n\n  \n{"a": "\\u00e9", "q": "#"}'.encode())
    assert read_jsonl(path, ("q", "a")) == read_jsonl(str(path), ("q", "a")) == [{"q": "one\u2028two", "a": "1"}, {"q": "#", "a": "\u00e9"}]


def test_the_real_gsm8k_is_read():
    rows = read_jsonl(ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl", ("question", "answer"))
    assert len(rows) == 7473 and rows[0]["answer"].endswith("#### 72") and all(row.keys() == {"question", "answer"} for row in rows)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"{torn", "not JSON .*column 2"),
        (b'{"q": "x", "a": "y"', "not JSON"),
        (b'{"q": "x", "a": "y"} {}', "not JSON .*column 22"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 10_000, "not JSON"),  # Python refuses to make an integer of it
        (b'"text"', "not a text"),
        (b"[1]", "not a list"),
        (b"null", "not null"),
        (b"7", "not a number"),
        (b'{"q": "x"}', '"a" is missing'),
        (b'{"q": "x", "a": 72}', '"a" is a number, not text'),
        (b'{"q": "x", "a": NaN}', '"a" is a number, not text'),
        (b'{"q": "x", "a": true}', '"a" is true or false, not text'),
        (b'{"q": "x", "a": null}', '"a" is null, not text'),
        (b'{"q": "x", "a": ["72"]}', '"a" is a list, not text'),
        (b'{"q": " \\t", "a": "72"}', '"q" is empty'),
        (b'{"q": "x", "a": ""}', '"a" is empty'),
        (b'{"q": "\\ud800", "a": "72"}', '"q" holds half of a surrogate pair'),
        (b'{"q": "\xff", "a": "72"}', "byte 8 is not UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, wrong):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "x", "a": "y"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl, line 3: .*{wrong}") as caught:
        read_jsonl(path, ("q", "a"))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_some_fields_may_be_empty(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "a": ""}')
    assert read_jsonl(path, ("q", "a"), ("a",)) == [{"q": "x", "a": ""}]


def test_places_that_hold_no_problems_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "a.csv").write_text("q,a")
    (tmp_path / "a.parquet").write_text("no parquet")
    for name, wrong in (
        ("empty.jsonl", r"empty\.jsonl is empty"),
        ("empty.json", r"empty\.json is empty"),
        ("a.csv", r"a\.csv ends neither"),
        ("a.parquet", r"a\.parquet is no parquet file"),
        ("gone.jsonl", r"holds no file gone\.jsonl"),
        ("no/where.jsonl", "nor does its folder"),
        ("", "is a folder where a file was expected"),
    ):
        with pytest.raises(UserError, match=wrong):
            read_problems(tmp_path / name, ("q", "a"))
    for name in ("empty.jsonl", "gone.jsonl", ""):
        with pytest.raises(UserError):
            read_jsonl(tmp_path / name, ("q", "a"))


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    """The tests may run as root, whom no permission stops."""
    path = tmp_path / "a.jsonl"
    path.write_text("{}")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read \(Permission denied\)"):
        read_jsonl(path, ("q",))


ROWS = [
    {"problem": "1+1?", "solution": "We add.\nSo \\boxed{2}.", "answer": "2"},
    {"problem": "2+2?", "solution": "", "answer": "4"},
    {"problem": "3+3?", "solution": "It is six.", "answer": " "},
    {"problem": "1/2?", "solution": "First \\boxed{1}, then\n$\\boxed{ \\frac{1}{2} }$", "answer": "\\frac12"},
    {"problem": "4+4?", "solution": "\\boxed{7} or \\boxed{8", "answer": "8"},
]
MATH_SAMPLES = [Sample(0, "1+1?", ROWS[0]["solution"], "2", "math/train/0"), Sample(1, "1/2?", ROWS[3]["solution"], r"\frac{1}{2}", "math/train/3")]


def write(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet", "mine.jsonl", "train-00000-of-00001.parquet"])
def test_math_from_a_file_of_any_kind(tmp_path, name):
    found = load_math(str(write(tmp_path / name)), "train")
    assert found == (MATH_SAMPLES, Counter({"no answer": 2, "no rationale": 1}))


def test_deepscaler_takes_the_answer_that_is_given(tmp_path):
    samples, dropped = load_deepscaler(str(write(tmp_path / "deepscaler.json")))
    assert [(s.id, s.answer, s.source) for s in samples] == [(0, "2", "deepscaler/train/0"), (1, r"\frac12", "deepscaler/train/3"), (2, "8", "deepscaler/train/4")]
    assert [s.rationale for s in samples] == [ROWS[0]["solution"], ROWS[3]["solution"], ROWS[4]["solution"] + "\n\\boxed{8}"]  # where none closes, one is added
    assert dropped == {"no rationale": 1, "no answer": 1}


def test_folders_hold_splits(tmp_path):
    one, other = [{"problem": p, "solution": rf"\boxed{{{p}}}"} for p in ("a", "b")]
    layouts = {
        "plain": ["train.jsonl", "test.jsonl"],
        "hub": ["algebra/train-00000-of-00001.parquet", "algebra/test-00000-of-00001.parquet"],
        "archive": ["train/algebra/1.json", "test/algebra/1.json"],
    }
    for name, (train, test) in layouts.items():
        write(tmp_path / name / train, [one])
        write(tmp_path / name / test, [other])
        for split, problem in (("train", "a"), ("test", "b")):
            samples, dropped = load_math(str(tmp_path / name), split)
            assert samples == [Sample(0, problem, rf"\boxed{{{problem}}}", problem, f"math/{split}/0")] and not dropped
        with pytest.raises(UserError, match=r"holds no val\.jsonl, val\.json"):
            load_math(str(tmp_path / name), "val")
    (tmp_path / "archive" / "train" / "algebra" / "10.json").write_text(json.dumps(other))  # the archive's files hold one object each
    assert [s.prompt for s in load_math(str(tmp_path / "archive"), "train")[0]] == ["a", "b"]


def test_one_file_is_one_split(tmp_path):
    """Or a test set would be the training set."""
    for name, split, other in (("mine.jsonl", "train", "test"), ("test.jsonl", "test", "train"), ("test-00000.jsonl", "test", "train"), ("testing.jsonl", "train", "test")):
        path = write(tmp_path / name)
        assert local_files(path, split) == [path]
        with pytest.raises(UserError, match=rf"taken for the {split} split"):
            load_math(str(path), other)


def test_a_broken_file_is_named(tmp_path):
    path = write(tmp_path / "train.json", [ROWS[0], {"problem": "x"}])
    with pytest.raises(UserError, match=r'train\.json, object 2: the field "solution" is missing'):
        load_math(str(tmp_path), "train")
    path.write_text('[{"problem": 1},')
    with pytest.raises(UserError, match=r"train\.json: not JSON"):
        load_math(str(tmp_path), "train")
    path.unlink()
    write(tmp_path / "train.parquet", [{"problem": "x"}])
    with pytest.raises(UserError, match=r'train\.parquet, object 1: the field "solution" is missing'):
        load_math(str(tmp_path), "train")


@pytest.mark.parametrize("load", [lambda where: load_math(where, "train"), load_deepscaler])
@pytest.mark.parametrize("where", ["no/such/place", "somebody/else", ""])
def test_an_unknown_place_is_named(load, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither a file nor a folder here nor|holds no train"):
        load(where)


# --- the Hub, which the tests do not reach ---


def test_the_hub_is_asked_for_a_fixed_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs))
        return [{**ROWS[0], "problem": str(args[1])}, {**ROWS[1], "solution": None, "answer": None}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    samples, dropped = load_math(MATH, "test")
    assert asked == [(MATH, subject, {"split": "test", "revision": MATH_REVISION}) for subject in MATH_SUBJECTS]
    assert [s.prompt for s in samples] == list(MATH_SUBJECTS) and [s.id for s in samples] == list(range(7)) and dropped == {"no rationale": 7}
    assert [s.source for s in samples] == [f"math/test/{2 * n}" for n in range(7)]
    asked.clear()
    samples, dropped = load_deepscaler(DEEPSCALER)
    assert asked == [(DEEPSCALER, None, {"split": "train", "revision": DEEPSCALER_REVISION})] and len(samples) == 1 and dropped == {"no rationale": 1}
    assert all(len(r) == 40 and set(r) <= set("0123456789abcdef") for r in (MATH_REVISION, DEEPSCALER_REVISION))


def test_every_way_to_fail_at_the_hub_is_said_in_a_sentence(monkeypatch):
    import datasets
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    for failure in (
        ConnectionError("no network"),
        httpx.ConnectError("no network"),
        httpx.ReadTimeout("slow"),
        datasets.exceptions.DatasetNotFoundError("gone"),
        datasets.exceptions.DatasetGenerationError("broken"),
        errors.GatedRepoError("gated", response=response),
        errors.RepositoryNotFoundError("gone", response=response),
        errors.LocalEntryNotFoundError("not cached"),
        ValueError("Unknown split"),
    ):

        def load_dataset(*_, failure=failure, **__):
            raise failure

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(UserError, match=rf"{MATH} could not be fetched .*{type(failure).__name__}.*name the folder by task.data\.$"):
            load_math(MATH, "train")

    def mistaken(*_, **__):
        raise ZeroDivisionError  # ours, not the user's

    monkeypatch.setattr(datasets, "load_dataset", mistaken)
    with pytest.raises(ZeroDivisionError):
        load_math(MATH, "train")


def test_without_datasets_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets; run pip install datasets, or name a local folder"):
        load_math(MATH, "train")


@pytest.mark.slow
def test_the_real_client_without_a_network_ends_in_the_same_sentence(tmp_path):
    loads = f"load_math({MATH!r}, 'train'), lambda: load_deepscaler({DEEPSCALER!r})"
    code = f"from adaback_lite.tasks.math import *\nfor load in (lambda: {loads}):\n  try: load()\n  except UserError as e: print(e)"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{MATH} could not be fetched") and lines[1].startswith(f"{DEEPSCALER} could not be fetched"), done.stderr


def test_a_training_problem_that_is_tested_too_is_left_out(tmp_path):
    rows = [{"problem": f"What is {n} and {n}?", "solution": rf"So \boxed{{{2 * n}}}"} for n in range(60)]
    write(tmp_path / "d" / "train.jsonl", rows)
    write(tmp_path / "d" / "test.jsonl", rows[:5])
    splits, dropped = load_splits("math", str(tmp_path / "d"))
    assert len(splits["test"]) == 5 and dropped["in the test set too"] == 5 and len(splits["train"]) + len(splits["val"]) == 55
    assert not {s.prompt for s in splits["test"]} & {s.prompt for s in splits["train"] + splits["val"]}
