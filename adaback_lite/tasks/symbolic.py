"""Endless word problems in the manner of GSM8K, made without a network: `gsm_symbolic` of the reasoning-gym package (Apache-2.0).

Its 85 templates fill in names and numbers, after GSM-Symbolic (Mirzadeh et al., 2024). Some fill them in badly: an age of -2, half a
tube of paint rounded away, 0.6666666666666679 hours. A rationale that is partly revealed must be right line by line, so each one
is checked exactly here, and what fails is left out and counted by reason: about one in twenty, and one template (66) always.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from ..errors import UserError
from ..seeding import derive
from . import Sample

BLOCK = 256  # problems made from one derived seed; reasoning-gym seeds them seed + 0, seed + 1, ..., which hashed block seeds keep apart
ENDING = " Give the result as your final answer. Do not include units."
DECIMALS = 4  # a number with more than these is the noise of binary fractions, as 0.30000000000000004

NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?|\d*\.?\d+")
# Units and words are read over: "€98/hour * 11 hours", "49 girls x 3 boys/girl", a "20-minute" show. "x" before a number is a times sign.
TOKEN = re.compile(
    rf"(?P<unit>/ ?[A-Za-z]+|(?<=\w)-[A-Za-z]+)|(?P<number>{NUMBER.pattern})|(?P<times>[×*]|(?<![A-Za-z])x(?= ?[€$£]?[\d.(]))"
    r"|(?P<half>half(?= [*×x]))|(?P<word>[A-Za-z]+)|(?P<sign>[-+/()%=÷\u2013\u2212])"  # the last two are the dash and the true minus sign
)
OPERATORS = ["+"], ["-"], ["*"], ["/"]  # as slices of a list of tokens, which may also be empty
SIGNS = {"÷": "/", "\u2013": "-", "\u2212": "-"}


def symbolic(split: str, n: int, seed: int = 0) -> tuple[list[Sample], Counter]:
    """The first n distinct problems of a split ("train", "val" or "test"), and how many were left out, by reason.

    The same n problems for the same seed, and the start of any longer list. A problem's template and numbers decide its split,
    whatever the seed: no problem is in two splits, not even under other names. `source` is "gsm-symbolic/" and the template's number.
    Raises UserError when reasoning-gym is not installed, when `split` is none of the three, or when 20,000 problems in a row bring nothing new.
    """
    if split not in ("train", "val", "test"):
        raise UserError(f"{split!r} is no split of gsm-symbolic; ask for train, val or test.")
    samples, seen, dropped, misses = [], set(), Counter(), 0
    for template, question, rationale, answer in problems(seed) if n > 0 else ():
        if split_of(template, question) != split:
            continue
        reason = "repeated" if question in seen else flaw(question, rationale, answer)
        if reason:
            dropped[reason] += 1
            misses += 1
            if misses == 20_000:
                raise UserError(f"gsm-symbolic has no more than {len(samples)} problems in its {split} split; ask for fewer than {n}.")
            continue
        misses = 0
        seen.add(question)
        samples.append(Sample(len(samples), question, rationale, answer, f"gsm-symbolic/{template}"))
        if len(samples) == n:
            break
    return samples, dropped


def split_of(template: int, question: str) -> str:
    """The split that owns this problem. Names do not count: Emma's 3 apples would give away Olivia's. A quarter each is val and test."""
    return ("train", "train", "val", "test")[derive("gsm-symbolic", "split", template, *NUMBER.findall(question)) % 4]


def problems(seed: int) -> Iterator[tuple[int, str, str, str]]:
    """(template, question, rationale, answer) without end, tidied but not checked.

    Item 0 of a block is passed over: reasoning-gym draws the templates from Random(seed) and item 0 from Random(seed + 0), the
    same bits, so that each template would come with the same name and first number.
    """
    try:
        import reasoning_gym  # here, because it takes a second
    except ModuleNotFoundError as error:
        raise UserError("The task gsm-symbolic needs the package reasoning-gym; run pip install reasoning-gym.") from error
    for block in itertools.count():
        data = reasoning_gym.create_dataset("gsm_symbolic", size=BLOCK + 1, seed=derive("gsm-symbolic", seed, block))
        for i in range(1, BLOCK + 1):
            item = data[i]
            yield data.task_indices[i], item["question"].removesuffix(ENDING), tidy(item["metadata"]["answer_cot"]), item["answer"]


def tidy(rationale: str) -> str:
    """A step a line: "Let's solve this step by step:", headings as "2. Calculate total cost:", bullets, indents and blank lines go.

    "#### 39.0" becomes "#### 39", and 12÷1/2 becomes 12÷(1/2), which is what the template means and works out.
    """
    lines = [re.sub(r"^[-•]\s+", "", line.strip()) for line in rationale.split("\n")]
    steps = "\n".join(line for line in lines if line and not re.fullmatch(r"(\d+\..*|Let's solve this step by step):", line))
    return re.sub(r"÷(\d+/\d+)", r"÷(\1)", re.sub(r"(#### -?\d+)\.0$", r"\1", steps))


def flaw(question: str, rationale: str, answer: str) -> str:
    """Why a problem is left out, "" if it is sound: every equation holds exactly, and the last one ends in the answer."""
    *steps, last = rationale.split("\n")
    if last != f"#### {answer}":
        return "its last line is not the answer"
    if not re.fullmatch(r"[1-9]\d*", answer):
        return "its answer is not a whole number above 0"
    if any(len(n.partition(".")[2]) > DECIMALS for n in NUMBER.findall(question + "\n" + rationale)):
        return f"it has a number with more than {DECIMALS} decimals"
    unknowns = re.findall(r"\b([A-Za-z]) be the\b", rationale)  # "Let T be the number of ..."
    known = {u: Fraction(answer) for u in unknowns[:1]}  # what is asked for; a second unknown is defined by its first equation
    uses, right = Counter(), None
    for line in steps:
        parts = tokens(line, unknowns)
        for before, after in itertools.pairwise(parts):
            if not before:  # "John = 212 points" gives words a value
                continue
            right = right_side(after, known)
            if before[-1] in unknowns and before[-1] not in known and before[-2:-1] not in OPERATORS:
                known[before[-1]] = right
            left = left_side(before, known)
            if left is None or right is None:
                return "it has an equation that cannot be read"
            if left != right:
                return "it has a wrong equation"
            if right <= 0:
                return "it has a result of 0 or less"
            uses.update({t for t in before + after if t in unknowns})
    if right != Fraction(answer) and (right is None or "%" not in steps[-1] or right * 100 != Fraction(answer)):
        return "its last equation does not give the answer"
    if 1 in uses.values():
        return "its unknown is found without working"
    return ""


def tokens(line: str, unknowns: list[str]) -> list[list]:
    """What a line says in numbers, cut at each "=": lists of Fractions, unknowns and the signs + - * / ( )."""
    parts, end = [[]], -1
    for match in TOKEN.finditer(line):
        kind, text, part, touches, end = match.lastgroup, match.group(), parts[-1], match.start() == end, match.end()
        if kind == "number":
            part.append(Fraction(text.replace(",", "")))
        elif kind == "half":
            part.append(Fraction(1, 2))
        elif kind == "times":
            part.append("*")
        elif text == "=":
            parts.append([])
        elif text == "%" and part and isinstance(part[-1], Fraction):
            part[-1] /= 100
        elif text in unknowns or (kind == "sign" and text != "%"):
            if touches and part and isinstance(part[-1], Fraction) and text in "(" + "".join(unknowns):
                part.append("*")  # 2(54 + 42), 2x
            part.append(SIGNS.get(text, text))
    return parts


def right_side(part: list, known: dict[str, Fraction]) -> Fraction | None:
    """The value of the expression that follows an "=", None if it breaks off at a sign. Of "48 more, so 72 - 48" it is 48."""
    result, end = expression(part, 0, known)
    return None if part[end : end + 1] in OPERATORS else result


def left_side(part: list, known: dict[str, Fraction]) -> Fraction | None:
    """The value of the longest expression that ends at an "=", None if a sign comes before it. Of "48 more, so 72 - 48" it is 24."""
    for start in range(len(part)):
        result, end = expression(part, start, known)
        if result is not None and end == len(part):
            return None if part[max(start - 1, 0) : start] in OPERATORS else result
    return None


def expression(part: list, i: int, known: dict[str, Fraction]) -> tuple[Fraction | None, int]:
    """The value of the longest sum of products that starts at token i, and the place after it. None where there is none."""
    total, i = product(part, i, known)
    while total is not None and i < len(part) and part[i] in ("+", "-"):
        term, end = product(part, i + 1, known)
        if term is None:
            break
        total, i = total + term if part[i] == "+" else total - term, end
    return total, i


def product(part: list, i: int, known: dict[str, Fraction]) -> tuple[Fraction | None, int]:
    total, i = factor(part, i, known)
    while total is not None and i < len(part) and part[i] in ("*", "/"):
        term, end = factor(part, i + 1, known)
        if term is None or (term == 0 and part[i] == "/"):
            break
        total, i = total * term if part[i] == "*" else total / term, end
    return total, i


def factor(part: list, i: int, known: dict[str, Fraction]) -> tuple[Fraction | None, int]:
    token = part[i] if i < len(part) else None
    if token == "-":
        inner, end = factor(part, i + 1, known)
        return (None, i) if inner is None else (-inner, end)
    if token == "(":
        inner, end = expression(part, i + 1, known)
        return (inner, end + 1) if part[end : end + 1] == [")"] else (None, i)
    number = token if isinstance(token, Fraction) else known.get(token)
    return number, i + (number is not None)
