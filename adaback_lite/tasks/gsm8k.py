"""GSM8k (Cobbe et al., 2021): word problems with rationales written by people.

A problem's rationale is the authors' `answer` field as it stands, its last line "#### 72"; in its equations stand calculator notes,
as in "48/2 = <<48/2=24>>24". The authors' folder holds train.jsonl (7,473 problems) and test.jsonl (1,319).

Splits: val is 5 % of train, and test is the authors' own, or 15 % of train where there is no test.jsonl. A hash of the question
decides, not a run's seed: runs with different seeds are judged by the same problems, and equal questions share a split.
"""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from ..seeding import derive
from . import Sample
from .files import read_jsonl

# The Hub's commit of openai/gsm8k that is loaded. Its parquet files are, byte for byte, those of e53f048856ff4f594e959d75785d2c2d37b678ee
# (2024), for both are published with the same sha256: ea82612e... for train, ee7b8da9... for test.
REVISION = "740312add88f781978c0658806c59bc2815b9866"
NUMBER = re.compile(r"-?[0-9,]*\.?[0-9]+")


def load_gsm8k(where: str = "") -> dict[str, list[Sample]]:
    """All problems by split, "train", "val" and "test", in the order of the file.

    Args:
        where: a folder with train.jsonl, and test.jsonl if there is one; or one .jsonl file; empty takes the data from the Hub.

    `source` is the file and the place in it, counted from 0, as "gsm8k/train/17". Training problems whose question is in
    test.jsonl too are left out, with a warning.
    Raises UserError, in one sentence, where there is nothing to read, for a broken line, for a solution without steps or whose
    last line is not "#### " and a number, for fewer problems than three splits need, and where the Hub cannot be read.
    """
    files = {name: list(_samples(rows, name, where)) for name, rows in (_from_folder(where) if where else _from_hub()).items()}
    tested = {normalised(s.prompt) for s in files.get("test", [])}
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": files.get("test", [])}
    for sample in files["train"]:
        if normalised(sample.prompt) not in tested:
            splits[split_of(sample.prompt, "test" not in files)].append(sample)
    if tested and (left_out := len(files["train"]) - len(splits["train"]) - len(splits["val"])):
        warnings.warn(f"{where or 'openai/gsm8k'}: {left_out} training problems are in the test set too and are left out.", stacklevel=2)
    if empty := [name for name, samples in splits.items() if not samples]:
        raise UserError(f"{where or 'openai/gsm8k'}: {len(files['train'])} training problems are too few, the {empty[0]} split is empty; name a larger set by --task.data.")
    return {name: [Sample(i, s.prompt, s.rationale, s.answer, s.source) for i, s in enumerate(samples)] for name, samples in splits.items()}


def strip_notes(text: str) -> str:
    """The text without its calculator notes: "48/2 = <<48/2=24>>24 clips" becomes "48/2 = 24 clips", and nothing else changes."""
    return re.sub(r"<<[^<>\n]*>>", "", text)


def normalised(question: str) -> str:
    """What makes two questions equal: their words and numbers in order, whatever the case, spaces and punctuation."""
    return " ".join(re.findall(r"\w+(?:[.,]\d+)*", question.casefold()))


def split_of(question: str, cut_test: bool) -> str:
    """The split of a training problem; val is the same with and without a test.jsonl."""
    place = derive("gsm8k split", normalised(question)) % 100
    return "val" if place < 5 else "test" if cut_test and place < 20 else "train"


def _from_folder(where: str) -> dict[str, list[dict[str, str]]]:
    path = Path(where).expanduser()
    train = path / "train.jsonl" if path.is_dir() else path
    files = {"train": train} | ({"test": path / "test.jsonl"} if (path / "test.jsonl").is_file() else {})
    return {name: read_jsonl(file, ("question", "answer")) for name, file in files.items()}


def _from_hub() -> dict[str, Iterable[dict[str, str]]]:
    try:
        import datasets  # here, because it takes a second and local files do without
        import httpx  # what the Hub's client speaks through
    except ModuleNotFoundError as error:
        raise UserError(f"GSM8k from the Hub needs the package {error.name}; run pip install datasets, or name a local folder by --task.data.") from error
    try:
        loaded = datasets.load_dataset("openai/gsm8k", "main", revision=REVISION)
    except ConnectionError as error:
        raise UserError(
            "The Hugging Face Hub cannot be reached for openai/gsm8k; name a folder that holds train.jsonl by --task.data, "
            "or use --task.name gsm-symbolic, which needs no network."
        ) from error
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:  # missing, gated, half a download
        raise UserError(
            f"The Hugging Face Hub did not give out openai/gsm8k at revision {REVISION[:8]} ({type(error).__name__}: missing, gated or broken off); "
            "name a folder that holds train.jsonl by --task.data, or use --task.name gsm-symbolic, which needs no network."
        ) from error
    return {"train": loaded["train"], "test": loaded["test"]}


def _samples(rows: Iterable[dict[str, str]], name: str, where: str) -> Iterable[Sample]:
    from ..answers import parse_number  # here, because answers needs this package first

    for i, row in enumerate(rows):
        rationale = row["answer"].strip()
        steps, mark, answer = rationale.rpartition("#### ")
        here = f"{where or 'openai/gsm8k'}, {name} problem {i + 1}"
        if not mark or (steps and not steps.endswith("\n")) or "\n" in answer:
            raise UserError(f'{here}: the solution does not end with a line "#### answer"; add that line or remove the problem.')
        if not NUMBER.fullmatch(answer) or parse_number(answer) is None:
            raise UserError(f"{here}: the answer {answer!r} is not a number; write digits only after '#### ' or remove the problem.")
        if not steps.strip():
            raise UserError(f'{here}: the solution has no steps before "#### {answer}"; write them or remove the problem.')
        yield Sample(i, row["question"], rationale, answer, f"gsm8k/{name}/{i}")
