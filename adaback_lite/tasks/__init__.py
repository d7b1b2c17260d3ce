"""Tasks: where problems come from, how they become tokens, and how an output is judged.

A task is any object with these parts; `parity.Parity` is the example to read.

    train, val, test   lists of Sample, in a fixed order; a sample's place in `train` is its id for the curriculum
    as_prompt(sample)  the prompt as it is told to a library: text, or chat messages
    steps(sample)      the rationale's reasoning steps, as texts
    prompt_ids(sample) token ids and position ids of the prompt
    rationale_ids(sample)  token ids of the whole rationale, without the end token
    step_ends(sample)  numbers of rationale tokens after which a reasoning step is complete, ascending, the last is all of them
    answer_tokens(sample)  tokens at the end of the rationale that are never shown, because they hold the answer
    max_new(sample, shown)  tokens that may be written, the end token included, when the first `shown` are revealed
    verify(sample, output) -> Verdict
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sample:
    """One problem: what is asked, a correct rationale, and the answer it leads to.

    In word problems a reasoning step is a line of the rationale, and its last line is "#### answer". Several answers
    (tensor variants) stand in `answer` one a line.
    """

    id: int
    prompt: str
    rationale: str
    answer: str
    source: str = ""  # where it comes from, as "gsm8k/train/17"; "" for what is made up


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one output.

    `kind` tells a wrong answer from an output that could not be read at all, and from one whose check ran out of time; none of
    them counts as right, each for another reason.
    `step` is the first failing reasoning step, counted from 1, where the task can tell; `why` says it in words.
    """

    kind: Literal["right", "wrong", "unparseable", "timeout"]
    step: int | None = None
    why: str = ""

    @property
    def right(self) -> bool:
        return self.kind == "right"


from .parity import Parity  # noqa: E402  (the protocol above is what a reader needs first)

__all__ = ["Parity", "Sample", "Verdict"]
