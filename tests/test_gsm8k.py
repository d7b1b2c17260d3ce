"""GSM8k is read as the authors wrote it, its splits share nothing, and every mistake is said in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.errors import UserError
from adaback_lite.tasks.gsm8k import REVISION, load_gsm8k, normalised, strip_notes

from . import helpers  # noqa: F401  (the hypothesis profile)

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gsm8k"
GOOD = "He has 2+3=<<2+3=5>>5 apples.\n#### 5"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [json.loads(line) for line in (DATA / "train.jsonl").read_text().split("\n") if line]


@pytest.fixture(scope="module")
def splits() -> dict:
    return load_gsm8k(str(DATA))


def made_up(n: int, start: int = 0) -> list[dict]:
    return [{"question": f"What is {i} and {i}?", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"} for i in range(start, start + n)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_problem_is_in_one_split_as_the_authors_wrote_it(rows, splits):
    assert len(rows) == 7473
    assert {name: len(s) for name, s in splits.items()} == {"train": 6003, "val": 392, "test": 1078}
    places = []
    for samples in splits.values():
        assert [s.id for s in samples] == list(range(len(samples)))
        assert [int(s.source.split("/")[2]) for s in samples] == sorted(int(s.source.split("/")[2]) for s in samples)
        for s in samples:
            place = int(s.source.removeprefix("gsm8k/train/"))
            places.append(place)
            assert (s.prompt, s.rationale) == (rows[place]["question"], rows[place]["answer"])
            assert s.rationale.split("\n")[-1] == "#### " + s.answer
            assert s.answer.replace(",", "").removeprefix("-").isdigit()
    assert sorted(places) == list(range(7473))


def test_no_question_is_in_two_splits(splits):
    train, val, test = ({normalised(s.prompt) for s in samples} for samples in splits.values())
    assert not (train & val or train & test or val & test)
    assert len(train | val | test) == 7473  # no two questions of the set are equal, whatever case and punctuation


@given(st.lists(st.sampled_from(["Tom", "has", "5", "5.5", "1,000", "apples", "é"]), min_size=1), st.data())
def test_case_spaces_and_punctuation_do_not_make_a_question_another(words, data):
    changed = [data.draw(st.sampled_from([w, w.upper(), w + "?", '"' + w + '"', w + ". "])) for w in words]
    assert normalised(data.draw(st.sampled_from([" ", "  ", "\n"])).join(changed)) == normalised(" ".join(words))


@pytest.mark.parametrize(("a", "b"), [("It costs $5.5", "It costs $55"), ("1,000 men", "1 000 men"), ("the man", "theman"), ("5 men", "6 men")])
def test_other_words_or_numbers_make_another_question(a, b):
    assert normalised(a) != normalised(b)


def test_equal_questions_share_a_split(tmp_path):
    rows = made_up(300)
    rows += [{**row, "question": row["question"].upper() + "?"} for row in rows]
    splits = load_gsm8k(str(write(tmp_path / "train.jsonl", rows)))
    of = [{int(s.source.split("/")[2]) for s in splits[name]} for name in ("train", "val", "test")]
    assert all({i, i + 300} <= split or not {i, i + 300} & split for split in of for i in range(300))
    assert sum(map(len, of)) == 600 and all(of)


def test_the_split_of_a_problem_does_not_depend_on_its_place(tmp_path):
    rows = made_up(200)
    there, back = (load_gsm8k(str(write(tmp_path / name, r))) for name, r in (("a.jsonl", rows), ("b.jsonl", rows[::-1])))
    for name in there:
        assert [s.prompt for s in there[name]] == [s.prompt for s in back[name]][::-1]


def test_the_authors_test_set_is_the_test_split(tmp_path):
    write(tmp_path / "train.jsonl", made_up(200))
    alone = load_gsm8k(str(tmp_path))
    write(tmp_path / "test.jsonl", made_up(7, start=1000))
    both = load_gsm8k(str(tmp_path))
    assert [s.source for s in both["test"]] == [f"gsm8k/test/{i}" for i in range(7)]
    assert [s.prompt for s in both["test"]] == [row["question"] for row in made_up(7, start=1000)]
    assert both["val"] == alone["val"] and len(both["train"]) == len(alone["train"]) + len(alone["test"])


def test_training_problems_of_the_test_set_are_left_out_with_a_warning(tmp_path):
    write(tmp_path / "train.jsonl", made_up(200))
    write(tmp_path / "test.jsonl", [{**row, "question": row["question"].lower()} for row in made_up(3)])
    with pytest.warns(UserWarning, match="3 training problems are in the test set too and are left out"):
        splits = load_gsm8k(str(tmp_path))
    assert len(splits["train"]) + len(splits["val"]) == 197 and len(splits["test"]) == 3
    assert not {normalised(s.prompt) for s in splits["test"]} & {normalised(s.prompt) for s in splits["train"] + splits["val"]}


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("48/2 = <<48/2=24>>24 clips", "48/2 = 24 clips"),
        ("a<<1+1=2>>2 b<<2*2=4>>4", "a2 b4"),
        ("5 > 4.8 > 4 and 20<30", "5 > 4.8 > 4 and 20<30"),
        ("<<1=1>>", ""),
        ("<<2+3=5", "<<2+3=5"),
        ("2+3=5>>", "2+3=5>>"),
        ("<<1+\n1=2>>", "<<1+\n1=2>>"),
        ("", ""),
    ],
)
def test_strip_notes_by_hand(text, stripped):
    assert strip_notes(text) == stripped


def test_strip_notes_takes_the_notes_of_all_problems_and_nothing_else(rows):
    """The slow way: cut at "<<", drop up to ">>". What it drops is arithmetic in the authors' few characters."""
    notes = 0
    for row in rows:
        first, *rest = row["answer"].split("<<")
        expected = first
        for piece in rest:
            note, after = piece.split(">>")
            assert not note.strip("0123456789.+-*/()=") and "=" in note
            expected += after
        notes += len(rest)
        assert strip_notes(row["answer"]) == expected
        assert strip_notes(row["question"]) == row["question"]
    assert notes == 23716


MISTAKES = {
    "no folder": (None, r"does not exist.*task\.data"),
    "broken line": ("not json", r"line 1: not JSON"),
    "no field": ('{"question": "What?"}', r'line 1: the field "answer" is missing'),
    "no last line": (json.dumps({"question": "What?", "answer": "It is 5."}), r'train problem 1: the solution does not end with a line "#### answer"'),
    "mark inside a line": (json.dumps({"question": "What?", "answer": "It is #### 5"}), r'does not end with a line "#### answer"'),
    "text after it": (json.dumps({"question": "What?", "answer": GOOD + "\nDone."}), r'does not end with a line "#### answer"'),
    "no number": (json.dumps({"question": "What?", "answer": "It is five.\n#### five"}), r"train problem 1: the answer 'five' is not a number"),
    "nothing": (json.dumps({"question": "What?", "answer": "It is.\n#### "}), r'does not end with a line "#### answer"'),
    "no steps": (json.dumps({"question": "What?", "answer": "\n#### 5"}), r'train problem 1: the solution has no steps before "#### 5"'),
    "too few": (json.dumps({"question": "What?", "answer": GOOD}), r"1 training problems are too few"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_in_one_sentence(tmp_path, mistake):
    content, message = MISTAKES[mistake]
    if content is not None:
        (tmp_path / "train.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=message) as error:
        load_gsm8k(str(tmp_path if content is not None else tmp_path / "no" / "where"))
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and str(error.value).count(". ") == 0


def test_the_mistake_s_place_is_named(tmp_path):
    rows = made_up(40)
    rows[16]["answer"] = "Sixteen twice is 32.\n#### 32 apples"
    with pytest.raises(UserError, match=r"train problem 17: the answer '32 apples' is not a number"):
        load_gsm8k(str(write(tmp_path / "problems.jsonl", rows)))


def test_the_hub_is_asked_for_the_pinned_commit(monkeypatch):
    asked = []

    def load_dataset(*args, **settings):
        asked.append((args, settings))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(made_up(200)), test=datasets.Dataset.from_list(made_up(5, start=1000)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_gsm8k()
    assert asked == [(("openai/gsm8k", "main"), {"revision": REVISION})] and len(REVISION) == 40
    assert len(splits["train"]) + len(splits["val"]) == 200 and [s.source for s in splits["test"]] == [f"gsm8k/test/{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach"), r"cannot be reached.*--task\.data.*gsm-symbolic, which needs no network"),
        (datasets.exceptions.DatasetNotFoundError("gated"), r"DatasetNotFoundError: missing, gated or broken off.*--task\.data.*gsm-symbolic"),
        (httpx.ProxyError("proxy"), r"ProxyError.*--task\.data"),
        (ValueError("Couldn't find cache"), r"ValueError.*--task\.data"),
    ],
)
def test_a_hub_out_of_reach_is_said_in_one_sentence(monkeypatch, error, message):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=message) as raised:
        load_gsm8k()
    assert raised.value.__cause__ is error and str(raised.value).count(". ") == 0


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def load_dataset(*_, **__):
        raise TypeError("ours")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(TypeError):
        load_gsm8k()


def test_no_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets; run pip install datasets"):
        load_gsm8k()


@pytest.mark.slow
def test_what_the_real_client_raises_offline_is_caught(tmp_path):
    """In a process of its own, with an empty cache: the client reads these variables when it is imported."""
    command = "from adaback_lite.errors import UserError\nfrom adaback_lite.tasks.gsm8k import load_gsm8k\ntry:\n load_gsm8k()\nexcept UserError as e:\n print(e)"
    run = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("The Hugging Face Hub cannot be reached for openai/gsm8k") and not run.returncode, run.stderr


@pytest.mark.parametrize("answer", [".5", "12,34", "1,0000", ",5"])
def test_an_answer_that_could_not_be_checked_later_is_refused_at_once(tmp_path, answer):
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "How many?", "answer": f"A step.\n#### {answer}"}) + "\n")
    with pytest.raises(UserError, match="train problem 1: the answer .* is not a number"):
        load_gsm8k(str(tmp_path))
