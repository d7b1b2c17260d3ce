"""What a dataset must have for a curriculum inside TRL (trl.py), and our own tasks as such datasets."""

from collections import Counter

import datasets

from .errors import UserError
from .tasks.text import answer_start, steps_of

COLUMNS = ("prompt", "rationale", "id")


class Prompt(str):
    """A prompt's text, or that of its last message, that knows the number of its sample."""

    sample: int

    def __new__(cls, text: str, sample: int = -1):
        self = super().__new__(cls, text)
        self.sample = sample
        return self


def check_dataset(dataset) -> tuple[list, list[list[str]], list[str]]:
    """(ids, steps of the rationales, answers) of a dataset. Raises UserError in one sentence for the first thing that is wrong."""
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(f"The dataset must be a datasets.Dataset, whose rows can be told apart, not {type(dataset).__name__}; choose a split, and do not stream it.")
    if dataset.format["type"] is not None:
        raise UserError("The dataset has a format or transform of its own, which would be undone here; call dataset.with_format(None), or apply the transform with map.")
    for column in COLUMNS:
        if column not in dataset.column_names:
            hint = ", or number the rows: dataset.add_column('id', list(range(len(dataset))))" if column == "id" else ""
            raise UserError(
                f"The dataset has no column '{column}', only {', '.join(dataset.column_names)}; name the one that holds it: dataset.rename_column('...', '{column}'){hint}."
            )
    if taken := {"revealed", "rho"} & set(dataset.column_names):
        raise UserError(f"The dataset has a column '{min(taken)}', a name under which reward functions are told what was revealed; rename or remove it.")
    ids = list(dataset["id"])
    if not ids:
        raise UserError("The dataset has no rows, so there is nothing to train on.")
    for name in ids:
        if not isinstance(name, str | int):
            raise UserError(f"The dataset has the id {name!r}, but ids must be texts or whole numbers; number the rows: dataset.add_column('id', list(range(len(dataset)))).")
    name, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(f"The dataset has the id {name!r} {times} times, but each sample needs an id of its own, by which the curriculum knows it.")
    answers = list(dataset["answer"]) if "answer" in dataset.column_names else [None] * len(ids)
    rationales, texts = [], ["" if answer is None else str(answer) for answer in answers]
    for name, prompt, rationale, answer in zip(ids, dataset["prompt"], dataset["rationale"], texts):
        steps = steps_of(rationale) if isinstance(rationale, str) else rationale or []
        if not (isinstance(steps, list) and all(isinstance(step, str) for step in steps)):
            raise UserError(f"Sample {name!r} has a rationale that is neither a text nor a list of texts, its steps; make it one with map, chat messages too.")
        if not "".join(steps).strip():
            raise UserError(f"Sample {name!r} has no rationale; leave it out: dataset.filter(lambda row: row['rationale']).")
        if answer not in "".join(steps):
            raise UserError(f"Sample {name!r} has the answer {answer!r}, which does not stand in its rationale, so it could not be hidden; write both alike, or remove the column.")
        check_prompt(name, prompt)
        rationales.append(steps)
    return ids, rationales, texts


def check_prompt(name, prompt) -> None:
    """Raise UserError for a prompt that is neither text nor chat messages with text, or that leaves no turn to the model."""
    messages = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") for m in prompt)
    if not messages and not (isinstance(prompt, str) and prompt):
        raise UserError(f"Sample {name!r} has a prompt that is neither text nor chat messages with text; a curriculum of rationales works on text only.")
    if messages and prompt[-1]["role"] == "assistant":
        raise UserError(
            f"Sample {name!r} has a prompt that ends with the assistant's message, after which TRL opens a second turn of the assistant; put that message into the rationale."
        )


def hidden_from(text: str, answer: str) -> int:
    """The character of a rationale from which nothing is shown: where its answer begins, by whichever of box, "#### " and `answer` (its last place) comes first."""
    starts = [answer_start(text, boxed) for boxed in (True, False)]
    return min([*starts, text.rindex(answer)] if answer else starts)


def with_sample(prompt, i: int):
    """A prompt that knows its sample: the text itself, or the content of the last message."""
    if isinstance(prompt, str):
        return Prompt(prompt, i)
    return [*prompt[:-1], prompt[-1] | {"content": Prompt(prompt[-1]["content"], i)}]


def sample_of(prompt) -> int:
    """The number of a prompt's sample; -1 when it has lost it on the way."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return text.sample if isinstance(text, Prompt) else -1


def starts_twice(ids: list[int], tokenizer) -> bool:
    """Whether a prompt begins with two BOS tokens: its text holds one, and the tokenizer adds another."""
    bos = tokenizer.bos_token_id
    return bos is not None and ids[:2] == [bos, bos]


def from_task(task, split: str = "train") -> datasets.Dataset:
    """The samples of one of our tasks as a dataset for TRL. Ids are "train/0", "train/1", ...

    Raises UserError for parity with coupled positions, which TRL cannot give a model.
    """
    if getattr(task, "positions", "sequential") == "coupled":
        raise UserError("TRL numbers positions one after the other; make the parity task with policy.positions sequential.")
    samples = getattr(task, split)
    columns = {
        "id": [f"{split}/{s.id}" for s in samples],
        "prompt": [task.as_prompt(s) for s in samples],
        "rationale": [task.steps(s) for s in samples],
        "answer": [s.answer for s in samples],
    }
    return datasets.Dataset.from_dict(columns)


def task_reward(task, tokenizer, bonus: float = 0.0):
    """The reward function that goes with `from_task`: 1 for what the task's verifier finds right, and in training `bonus` for what it can read, as our own trainer rewards it.

    It reads the tokens, not TRL's text, so that a special token inside an output is seen, and an output that never ended is not right.
    """
    samples = {f"{split}/{s.id}": s for split in ("train", "val", "test") for s in getattr(task, split)}

    def correct(completion_ids, id, revealed=None, **_):
        rewards, training = [], revealed is not None
        for ids, name, prefix in zip(completion_ids, id, revealed or [[]] * len(id)):
            verdict = task.verify(samples[name], tokenizer.decode([*prefix, *ids[:-1]], skip_special_tokens=False))
            ended = ids[-1] == tokenizer.eos_token_id
            rewards.append(ended * (verdict.right + (bonus if training and verdict.kind in ("right", "wrong") else 0.0)))
        return rewards

    return correct
