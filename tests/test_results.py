"""Stored results: the repository's own, and hand-written ones with every kind of damage."""

import json

import pandas as pd
import pytest

from adaback_lite import results
from adaback_lite.errors import UserError

FACTS = {
    "command": "python -m adaback_lite.studies toy",
    "commit": "0123456789abcdef",
    "date": "2026-01-02",
    "cpu": "Some CPU",
    "machine": {"cpu": "x86_64", "cores": 2, "torch": "2.13.0"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy.csv").write_text("method,share\nrl,0.25\nadaback,0.5\n")
    (tmp_path / "toy.json").write_text(json.dumps(FACTS))
    return tmp_path


def test_table_and_facts(folder):
    table, facts = results.stored("toy", folder)
    assert table.to_dict("list") == {"method": ["rl", "adaback"], "share": [0.25, 0.5]}
    assert facts == FACTS


def test_provenance_is_one_line(folder):
    assert results.provenance("toy", folder) == (
        "toy: measured on 2026-01-02 with commit 01234567 on Some CPU, 2 cores, torch 2.13.0 by: python -m adaback_lite.studies toy"
    )


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, "toy: measured"),
        ({"commit": "abc", "machine": {"cpu": "x86_64", "cores": 4, "versions": {"torch": "2.0"}}}, "toy: measured with commit abc on x86_64, 4 cores, torch 2.0"),
        ({"device": "Big GPU", "cpu": "Some CPU", "machine": {"cores": 16}, "date": "2026-01-02"}, "toy: measured on 2026-01-02 on Big GPU"),
    ],
)
def test_provenance_leaves_out_what_is_not_known(folder, facts, line):
    (folder / "toy.json").write_text(json.dumps(facts))
    assert results.provenance("toy", folder) == line


def test_the_repositorys_own_results_can_all_be_read():
    names = sorted(p.stem for p in results.results_folder().glob("*.json"))
    assert {"map", "separation", "solve"} <= set(names)
    for name in names:
        line = results.provenance(name)
        assert "\n" not in line and results.facts_of(name)["commit"][:8] in line and results.facts_of(name)["command"] in line
    assert set(results.stored("solve").table.method) == {"adaback", "rl"}


def test_installed_elsewhere_the_results_are_found_from_inside_the_repository(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BESIDE", tmp_path / "site-packages" / "data" / "results")
    inside = tmp_path / "clone" / "notebooks"
    (tmp_path / "clone" / "data" / "results").mkdir(parents=True)
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert results.results_folder() == tmp_path / "clone" / "data" / "results"
    with pytest.raises(UserError, match=r"There is no stored result .*toy\.csv; the folder holds none\."):
        results.stored("toy")


def test_installed_elsewhere_and_outside_the_repository_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BESIDE", tmp_path / "site-packages" / "data" / "results")
    monkeypatch.chdir(tmp_path)
    for read in (results.stored, results.provenance):
        with pytest.raises(UserError, match=r"There are no stored results: .*start Python inside the adaback-lite repository\.$"):
            read("solve")


def test_a_missing_one_is_told_what_there_is(folder):
    with pytest.raises(UserError, match=r"There is no stored result .*none\.json; there are: toy\."):
        results.provenance("none", folder)


@pytest.mark.parametrize("name", ["", "../toy", "a/b"])
def test_a_name_is_no_path(folder, name):
    with pytest.raises(UserError, match="is no name of a stored result"):
        results.stored(name, folder)


@pytest.mark.parametrize(("file", "text", "words"), [("toy.csv", "", "cannot be read as a table"), ("toy.json", '{"commit": ', "cannot be read as JSON")])
def test_damage_is_one_sentence(folder, file, text, words):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=words):
        results.stored("toy", folder)


def test_what_is_stored_is_read_back(tmp_path):
    table = pd.DataFrame({"seed": [0, 1], "accuracy": [0.123456789, 1.0]})
    path = results.store("mine", table, {"date": "2026-11-24", "command": "make it"}, tmp_path / "new")
    assert path == tmp_path / "new" / "mine.csv"
    read, facts = results.stored("mine", tmp_path / "new")
    assert read.accuracy.tolist() == [0.12346, 1.0] and read.seed.tolist() == [0, 1]
    assert facts == {"date": "2026-11-24", "command": "make it"}
    assert results.provenance("mine", tmp_path / "new") == "mine: measured on 2026-11-24 by: make it"
