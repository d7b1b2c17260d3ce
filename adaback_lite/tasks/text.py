"""Word problems as a task for a language model: prompts, tokens, cuts, and the answer that is looked for.

What a rollout starts from is, token for token,

    chat template, the assistant's turn left open | the first tokens of the rationale      (chat models)
    Question: ... \\n\\nAnswer:\\n                   | the first tokens of the rationale      (others)

Both parts are tokenised once, apart from each other: the revealed prefix continues the assistant's turn with the same ids in
sampling and in the loss, wherever it is cut. The rationale is tokenised line by line, so that a reasoning step, which is a
line, always ends at the end of a token. The answer itself is never shown, whatever rho says.
"""

import math
from collections import Counter
from dataclasses import replace

from ..answers import MathChecker, check_numbers
from ..config import TaskSettings
from ..errors import UserError
from . import Sample, Verdict
from .gsm8k import strip_notes

SPARE = 16  # tokens that an output may have beyond `room` times what is hidden, so that a short rest has room to end
DATE = "26 Jul 2024"  # what Llama 3's template calls today; without it a run resumed tomorrow would have other prompts


class TextTask:
    """A task whose samples are texts (see tasks/__init__.py for what a task is).

    Args:
        tokenizer: a transformers tokenizer; with a chat template, the question becomes the user's turn.
        train, val, test: samples whose rationale ends with "#### answer" (or holds \\boxed{answer}, for `boxed`).
        demonstrations: solved samples that stand before each question.
        base: 7 where numbers are written in base 7.
        boxed: answers stand in \\boxed{} and are compared by math-verify.
        context: longest sequence the model can read; longer samples are dropped and counted.

    Raises UserError when the chat template cannot leave the assistant's turn open, the tokenizer does not give back what it
    was given, or no sample is left.
    """

    def __init__(self, tokenizer, train, val, test, settings: TaskSettings, demonstrations=(), base=10, boxed=False, context=None, dropped=None):
        self.tokenizer, self.settings, self.base, self.boxed = tokenizer, settings, base, boxed
        self.dropped = Counter(dropped or {})
        self.checker = MathChecker(settings.check_seconds) if boxed else None
        self._prompts: dict[str, list[int]] = {}
        self._rationales: dict[str, tuple[list[int], list[int]]] = {}
        self.instruction = instruction(settings.name, base, boxed)
        self.demonstrations = [(s.prompt, self.text(s)) for s in demonstrations]
        self.chat = bool(getattr(tokenizer, "chat_template", None))
        if self.chat:
            check_template(tokenizer)
        self.train, self.val, self.test = (self._fitting(split, context) for split in (train, val, test))
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if not split:
                reasons = "; ".join(f"{n} {why}" for why, n in self.dropped.items()) or "none was there to begin with"
                raise UserError(f"Task {settings.name} has no {name} problems left ({reasons}); raise task.n_{name}, lower task.max_new, or use other data.")
        text = self.text(self.train[0])
        if tokenizer.decode(self.rationale_ids(self.train[0])) != text:
            raise UserError(f"The tokenizer does not give back the text it was given (tried on {text[:40]!r}), so a cut could change the rationale; use another model.")

    def _fitting(self, samples, context):
        """The samples that fit into the model's context with all that may be written. A token is a character at least, so most need no look."""
        fitting = []
        fixed = sum(len(f"{q}{self.instruction}{a}".encode()) + 100 for q, a in self.demonstrations) + 1000  # 100 for the marks of a template's turns
        for s in samples:
            at_most, space = fixed + len(f"{s.prompt}{s.rationale}".encode()), math.inf if context is None else context - self.longest(s)
            if at_most > space and len(self.prompt_ids(s)[0]) + len(self.rationale_ids(s)) > space:
                self.dropped[f"longer than the model's context of {context} tokens"] += 1
            else:
                fitting.append(replace(s, id=len(fitting)))
        return fitting

    def text(self, sample: Sample) -> str:
        """The rationale as the model is to see and write it."""
        return sample.rationale if self.settings.notes else strip_notes(sample.rationale)

    def steps(self, sample: Sample) -> list[str]:
        """The rationale's reasoning steps, which together are `text`."""
        return steps_of(self.text(sample))

    def prompt_ids(self, sample: Sample) -> tuple[list[int], list[int], int]:
        """Token ids of the prompt, their position ids, and the position id of the first token that follows."""
        if sample.prompt not in self._prompts:
            self._prompts[sample.prompt] = self._encode_prompt(self.as_prompt(sample))
        ids = self._prompts[sample.prompt]
        return ids, list(range(len(ids))), len(ids)

    def as_prompt(self, sample: Sample) -> list[dict] | str:
        """The prompt as it is told to a library: chat messages, the last the user's, or (without a chat template) text."""
        if self.chat:
            turns = []
            for asked, answered in [*self.demonstrations, (sample.prompt, None)]:
                turns.append({"role": "user", "content": f"{asked}\n\n{self.instruction}"})
                if answered is not None:
                    turns.append({"role": "assistant", "content": answered})
            return turns
        solved = "".join(f"Question: {asked}\n\nAnswer:\n{answered}\n\n" for asked, answered in self.demonstrations)
        return f"{self.instruction}\n\n{solved}Question: {sample.prompt}\n\nAnswer:\n"

    def _encode_prompt(self, prompt: list[dict] | str) -> list[int]:
        if self.chat:
            return list(self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False, date_string=DATE))
        ids = self.tokenizer(prompt).input_ids  # with a BOS token where the tokenizer adds one
        return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids  # some add an end token, after which nothing would follow

    def _encode_rationale(self, sample: Sample) -> tuple[list[int], list[int]]:
        """(token ids, step ends)."""
        if sample.rationale not in self._rationales:
            self._rationales[sample.rationale] = encode_steps(self.tokenizer, self.steps(sample))
        return self._rationales[sample.rationale]

    def rationale_ids(self, sample: Sample) -> list[int]:
        """Token ids of the whole rationale, without an end token."""
        return self._encode_rationale(sample)[0]

    def step_ends(self, sample: Sample) -> list[int]:
        """Token counts after which a line is complete."""
        return self._encode_rationale(sample)[1]

    def answer_tokens(self, sample: Sample) -> int:
        """Tokens at the end of the rationale, from the last answer on: they are never shown."""
        text = self.text(sample)
        return tokens_from(self.tokenizer, self.rationale_ids(sample), answer_start(text, self.boxed))

    def max_new(self, sample: Sample, shown: int) -> int:
        """Tokens that may be written, the end token included, after the first `shown` of the rationale."""
        longest = self.longest(sample)
        if shown == 0:
            return longest
        return min(math.ceil(self.settings.room * (len(self.rationale_ids(sample)) - shown)) + SPARE, longest)

    def longest(self, sample: Sample) -> int:
        """Tokens that an output may have at most: task.max_new for each problem in the prompt."""
        return self.settings.max_new * (sample.answer.count("\n") + 1)

    def verify(self, sample: Sample, output: str) -> Verdict:
        """Judge an output, the revealed part included."""
        return self.checker.check(output, sample.answer) if self.checker else check_numbers(output, sample.answer, self.base)


def instruction(name: str, base: int, boxed: bool) -> str:
    """What is asked for beside the question (our choice; the paper's prompts were not found)."""
    if boxed:
        return "Solve it step by step. Put the final answer in \\boxed{}."
    several = "Solve the problems one after the other. End each solution with a line" if "-tensor" in name else "Solve it step by step, one step a line. End with a line"
    return f"{several} that holds #### and the answer." + (" All numbers are written in base 7." if base == 7 else "")


def steps_of(text: str) -> list[str]:
    """Lines, each with its line break; a blank line belongs to the one before it."""
    steps: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.strip() or not steps:
            steps.append(line)
        else:
            steps[-1] += line
    return steps


def encode_steps(tokenizer, steps: list[str]) -> tuple[list[int], list[int]]:
    """(token ids, step ends) of a rationale, tokenised step by step, so that a step always ends at the end of a token."""
    ids, ends = [], []
    for step in steps:
        ids += tokenizer(step, add_special_tokens=False).input_ids
        ends.append(len(ids))
    return ids, ends


def answer_start(text: str, boxed: bool) -> int:
    """The character at which a rationale's answer begins: in its box, where it has one, after its last "#### ", else the last character."""
    # A solution may box its answer more than once: the first box counts, or a prefix would hold the answer already.
    if boxed and "\\boxed" in text:
        return text.index("\\boxed")
    if "#### " in text:
        return text.rindex("#### ") + 5
    return len(text) - 1


def tokens_from(tokenizer, ids: list[int], start: int) -> int:
    """How many tokens at the end of `ids` hold the text from character `start` on; at least one."""
    tail = 1
    while tail < len(ids) and len(tokenizer.decode(ids[: len(ids) - tail])) > start:
        tail += 1
    return tail


def check_template(tokenizer, **given) -> None:
    """Raise UserError when the chat template cannot leave the assistant's turn open: what is written then would not continue it. `given` goes to the template."""
    given = {"date_string": DATE, **given}
    turn = [{"role": "user", "content": "How many?"}]
    try:
        opened = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, **given)
        whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": "Eleven of them"}], tokenize=False, **given)
    except Exception as error:  # whatever the template itself raises
        why = " ".join(str(error).split())[:120]
        raise UserError(f"The model's chat template cannot be used ({why}); use another model, or take chat_template out of its tokenizer.") from error
    if not whole.startswith(opened + "Eleven of them"):
        raise UserError(
            f"The model's chat template leaves no open assistant turn for a revealed prefix to continue (it ends in {opened[-30:]!r}); "
            "use another model, or take chat_template out of its tokenizer, and plain prompts are used."
        )
