"""GSM8k Tensor-k (paper): k problems in one prompt, to be solved one after the other, right only if all k answers are right.

If single problems are solved with probability p, k at once are with about p^k: a harder task from the same data, with rationales
k times as long. Prompt and order of the rationales are our choice.

    Problem 1: <question>          the rationale of problem 1
                                   #### 72
    Problem 2: <question>          the rationale of problem 2
                                   #### 10
"""

from collections import deque
from collections.abc import Iterable

from ..errors import UserError
from ..seeding import numpy_generator
from . import Sample
from .gsm8k import normalised


def tensor(samples: list[Sample], k: int, seed_name: str, repeats: int = 1) -> list[Sample]:
    """Samples of k problems each: a seeded permutation cut into groups of k, so that every problem is used at most once.

    Args:
        samples: problems of ONE split; made from each split apart, the results of two splits share no problem.
        k: problems in one prompt; 1 gives the samples back as they are.
        seed_name: name of the pairing, "train" for instance; the same name pairs the same list in the same way.
        repeats: permutations; with r of them every problem is used at most r times, and no result comes twice.

    Returns len(samples) // k results for each permutation, fewer only where equal questions or repeated groups leave no more:
    a group never holds the same question twice. `rationale` is the k rationales, `answer` the k answers, one a line;
    `source` is "gsm8k/train/17+gsm8k/train/99".
    Raises UserError when k or repeats is below 1 or there are fewer than k problems.
    """
    if k < 1 or repeats < 1:
        raise UserError(f"A tensor variant of {k} problems in {repeats} permutations makes no sense; give at least 1 of each.")
    if len(samples) < k:
        raise UserError(f"The tensor variant needs {k} problems for one prompt and there are only {len(samples)}; take a smaller variant or more problems.")
    if k == 1:
        return list(samples)
    questions = [normalised(s.prompt) for s in samples]
    groups: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    for repeat in range(repeats):
        order = numpy_generator("tensor", seed_name, k, repeat).permutation(len(samples)).tolist()
        groups |= dict.fromkeys(_groups(order, questions, k))
    return [_joined(i, [samples[j] for j in group]) for i, group in enumerate(groups)]


def _groups(order: list[int], questions: list[str], k: int) -> Iterable[tuple[int, ...]]:
    """`order` cut into groups of k different questions; one that is in the group already waits for the next."""
    left = deque(order)
    while len(left) >= k:
        group, waiting = {}, []
        while left and len(group) < k:
            j = left.popleft()
            if questions[j] in group:
                waiting.append(j)
            else:
                group[questions[j]] = j
        if len(group) < k:
            return
        left.extendleft(reversed(waiting))
        yield tuple(group.values())


def _joined(i: int, group: list[Sample]) -> Sample:
    prompt = "\n\n".join(f"Problem {n}: {s.prompt}" for n, s in enumerate(group, 1))
    rationale, answer = ("\n".join(getattr(s, field) for s in group) for field in ("rationale", "answer"))
    return Sample(i, prompt, rationale, answer, "+".join(s.source for s in group))
