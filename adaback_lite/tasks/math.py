r"""MATH and DeepScaleR: problems whose answer stands in \boxed{...}. The rationale is the authors' solution as given; a step is a line.

They come from the Hugging Face Hub, at a fixed revision, or from local files with the same fields:

    MATH        problem, solution           the answer is read out of the solution
    DeepScaleR  problem, answer, solution   many solutions are empty there: such problems are left out, and counted
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from . import Sample
from .files import read_problems
from .gsm8k import normalised, split_of

# Revisions are commits of the data sets' own repositories, so that a run of next year sees the same problems.
MATH = "EleutherAI/hendrycks_math"
MATH_REVISION = "21a5633873b6a120296cce3e2df9d5550074f4a3"
MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
DEEPSCALER = "agentica-org/DeepScaleR-Preview-Dataset"
DEEPSCALER_REVISION = "b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29"

ENDINGS = (".jsonl", ".json", ".parquet")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} of `text`, or None: there is none, or the last one has no braces or does not close.

    \{ and \} are signs to print, not braces. An earlier box is never taken instead of a last one that is torn.

    >>> last_boxed(r"so \boxed{1}, no, \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    starts = [m.end() for m in re.finditer(r"\\boxed(?![A-Za-z])\s*", text)]
    if not starts or text[starts[-1] : starts[-1] + 1] != "{":
        return None
    start, depth = starts[-1] + 1, 1
    for m in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # a backslash takes the next character with it
        depth += {"{": 1, "}": -1}.get(m.group(), 0)
        if depth == 0:
            return text[start : start + m.start()]
    return None


def load_math(where: str, split: str) -> tuple[list[Sample], Counter]:
    r"""MATH's problems of a split ("train" or "test"), in the order of the subjects and files.

    Args:
        where: `MATH`, the Hub's name, or a local file or folder (see `local_files`).
        split: which split.

    Returns the samples and how many were dropped, by reason: "no rationale", or "no answer" (no \boxed{...} at the solution's end).
    Raises UserError for data that is not there, cannot be fetched or is broken.
    """
    if where == MATH:
        rows = [row for subject in MATH_SUBJECTS for row in _from_hub(MATH, subject, split, MATH_REVISION)]
    else:
        rows = _from_files(where, split, ("problem", "solution"), ("solution",), MATH)
    return _samples(((row["problem"], row["solution"], last_boxed(row["solution"] or "")) for row in rows), f"math/{split}")


def load_deepscaler(where: str) -> tuple[list[Sample], Counter]:
    """DeepScaleR's problems; it has a training split only. `where` as for `load_math`, as are results and errors."""
    if where == DEEPSCALER:
        rows = _from_hub(DEEPSCALER, None, "train", DEEPSCALER_REVISION)
    else:
        rows = _from_files(where, "train", ("problem", "answer", "solution"), ("answer", "solution"), DEEPSCALER)
    return _samples(((row["problem"], boxed_at_the_end(row["solution"], row["answer"]), row["answer"]) for row in rows), "deepscaler/train")


def boxed_at_the_end(solution: str | None, answer: str | None) -> str | None:
    r"""The solution, with a last line \boxed{answer} where it boxes nothing: what is asked for, and what is looked for, is a box."""
    if not solution or not solution.strip() or not answer or last_boxed(solution) is not None:
        return solution
    return f"{solution.rstrip()}\n\\boxed{{{answer.strip()}}}"


def load_splits(name: str, where: str = "") -> tuple[dict[str, list[Sample]], Counter]:
    """train, val and test of "math" or "deepscaler", and what was dropped. `where` empty is the Hub.

    val is cut out of the training problems by a hash of the question, the same for every run; so is test where the data has none.
    """
    if name == "math":
        train, dropped = load_math(where or MATH, "train")
        has_test = where in ("", MATH) or Path(where).is_dir()
        test, more = load_math(where or MATH, "test") if has_test else ([], Counter())
        dropped += more
    else:
        (train, dropped), test = load_deepscaler(where or DEEPSCALER), []
    splits, tested = {"train": [], "val": [], "test": list(test)}, {normalised(s.prompt) for s in test}
    for s in train:
        if normalised(s.prompt) in tested:
            dropped["in the test set too"] += 1
        else:
            splits[split_of(s.prompt, cut_test=not test)].append(s)
    return {split: [replace(s, id=i) for i, s in enumerate(samples)] for split, samples in splits.items()}, dropped


def local_files(where: str | Path, split: str) -> list[Path]:
    """The files of a split. A file is a whole split: the one its name begins with ("test.jsonl"), or else the training data.

    Of a folder: train.jsonl, .json or .parquet; or all such files below it that lie in a folder train/ or whose name begins
    with "train-", sorted by path (the layouts of the original MATH archive and of a Hub snapshot). Raises UserError where there is none.
    """
    where = Path(where)
    if where.is_file():
        named = next((s for s in ("train", "test") if re.match(rf"{s}(?![a-zA-Z])", where.name)), "train")
        if named != split:
            raise UserError(f"{where} is one file, taken for the {named} split; for the {split} split name a folder that holds {split}.jsonl by task.data.")
        return [where]
    plain = [where / f"{split}{ending}" for ending in ENDINGS]
    found = [path for path in plain if path.is_file()][:1]
    if not found:
        below = (p for p in where.rglob("*") if p.suffix in ENDINGS and p.is_file())
        found = sorted(p for p in below if split in p.relative_to(where).parts[:-1] or p.name.startswith(f"{split}-"))
    if not found:
        raise UserError(f"{where} holds no {split}.jsonl, {split}.json, {split}.parquet nor such files in a folder {split}; put them there or name another folder by task.data.")
    return found


def _from_files(where: str, split: str, fields: tuple[str, ...], may_be_empty: tuple[str, ...], hub: str) -> list[dict[str, str]]:
    if not Path(where).exists():
        raise UserError(f'"{where}" is neither a file nor a folder here nor "{hub}", the data set known on the Hub; name one of them by task.data.')
    return [row for path in local_files(where, split) for row in read_problems(path, fields, may_be_empty)]


def _from_hub(name: str, config: str | None, split: str, revision: str) -> Iterable[dict]:
    try:
        import datasets  # late: it takes seconds, and is not needed for local files
        import httpx  # what the Hub's client speaks through
    except ImportError as error:
        raise UserError(f"{name} needs the package {error.name}; run pip install datasets, or name a local folder by task.data.") from error
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:  # no network, gone, gated, no such split
        raise UserError(
            f"{name} could not be fetched from the Hugging Face Hub ({type(error).__name__}): without a network, or where its terms must be "
            f"accepted first, download it elsewhere and name the folder by task.data."
        ) from error


def _samples(found: Iterable[tuple[str, str | None, str | None]], source: str) -> tuple[list[Sample], Counter]:
    """Samples of (problem, rationale, answer); those without rationale or answer are counted instead. `source` keeps the number in the data."""
    samples, dropped = [], Counter()
    for n, (problem, rationale, answer) in enumerate(found):
        if not rationale or not rationale.strip():
            dropped["no rationale"] += 1
        elif not answer or not answer.strip():
            dropped["no answer"] += 1
        else:
            samples.append(Sample(len(samples), problem, rationale, answer.strip(), f"{source}/{n}"))
    return samples, dropped
