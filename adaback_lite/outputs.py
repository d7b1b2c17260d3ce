"""What the policy wrote, kept for people to look at: outputs.jsonl in a run's folder, one line for each step that is kept.

    step                the step it belongs to
    ids [B]             the samples of the step
    samples [B]         of each its prompt, rationale and answer
    revealed [B]        characters at the start of every output of the sample that it was shown, and did not write
    outputs [B][G]      the text of each rollout, with what was revealed in front
    rewards [B][G]
    kinds [B][G]        right, wrong, unparseable or timeout
    first_wrong [B][G]  the first failing reasoning step, counted from 1; null where the task cannot tell
    why [B][G]          what the verifier says of it

Nothing that trains reads this file: it may be deleted, and `trainer.keep_outputs` 0 never writes it.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from .errors import UserError
from .evaluate import Judged

FILE = "outputs.jsonl"


class Visit(NamedTuple):
    """One visit of one sample: its G rollouts."""

    step: int
    id: int
    prompt: str
    rationale: str
    answer: str
    revealed: int  # characters
    outputs: list[str]  # [G]
    rewards: list[float]  # [G]
    kinds: list[str]  # [G]
    first_wrong: list[int | None]  # [G]
    why: list[str]  # [G]


def as_record(step: int, ids, samples, shown: list[int], rewards, judged: Judged, task, tokenizer) -> dict:
    """The line of one step; `shown` [B] are the revealed tokens, rewards [B, G]."""
    prefixes = tokenizer.batch_decode([task.rationale_ids(s)[:k] for s, k in zip(samples, shown)], skip_special_tokens=False)
    # A character can be cut in the middle of its bytes; then the prefix alone reads differently from the prefix with its continuation.
    revealed = [len(os.path.commonprefix([prefix, *group])) for prefix, group in zip(prefixes, judged.outputs)]
    return {
        "step": step,
        "ids": [int(i) for i in ids],
        "samples": [{"prompt": s.prompt, "rationale": s.rationale, "answer": s.answer} for s in samples],
        "revealed": revealed,
        "outputs": judged.outputs,
        "rewards": [[round(float(r), 4) for r in group] for group in rewards],
        "kinds": [[v.kind for v in group] for group in judged.verdicts],
        "first_wrong": [[v.step for v in group] for group in judged.verdicts],
        "why": [[v.why for v in group] for group in judged.verdicts],
    }


def find_visit(folder: str | os.PathLike, sample_id: int, step: int | None = None) -> Visit:
    """The last visit of a sample up to `step`, or the last of all. Works while the run is being written.

    Raises UserError when the run keeps no outputs, or has not visited the sample.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{folder} keeps no outputs (there is no {FILE}); train with trainer.keep_outputs 1 to look at samples.")
    found = None
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):  # being written
                break
            head = _head(line, path)
            if step is not None and head["step"] > step:
                break
            if sample_id in head["ids"]:
                found = line
    if found is None:
        upto = f" up to step {step}" if step is not None else ""
        raise UserError(f"{folder} keeps no outputs of sample {sample_id}{upto}: it has not been visited, or its visits were not kept; choose another sample.")
    record = json.loads(found)
    b = record["ids"].index(sample_id)
    per_rollout = (record[key][b] for key in ("outputs", "rewards", "kinds", "first_wrong", "why"))
    return Visit(record["step"], sample_id, *record["samples"][b].values(), record["revealed"][b], *per_rollout)


def _head(line: bytes, path: Path) -> dict:
    """Step and ids, which stand first: reading only them makes a search through a long file ten times faster."""
    try:
        return json.loads(line[: line.index(b"]") + 1] + b"}")
    except ValueError:
        raise UserError(f"{path} is damaged; delete it, nothing but looking at samples needs it.") from None
