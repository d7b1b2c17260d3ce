r"""Whether the text of an output ends in the right answer: GSM8k's `#### 72`, compared as numbers, and MATH's `\boxed{...}`.

The first rule is that nothing wrong is ever taken for right, since training finds every hole. So forms are strict, and an output
that breaks them is unparseable even where a kind reader would see the right number in it.
"""

import re
import threading
import time
import weakref
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from itertools import zip_longest
from multiprocessing import get_context

from .errors import UserError
from .math_compare import compare, start
from .tasks import Verdict
from .tasks.math import last_boxed

MARK = "####"
BLANK = " \t\r"  # not str.strip(): the white space of other scripts is no part of the form
LONGEST_NUMBER = 64  # characters; int() takes quadratic time
LONGEST_BOX = 1000  # characters; MATH's answers are shorter than 200
START_SECONDS = 120  # a process must have begun its first check after so long; on a busy machine imports take their time

# Digits that math-verify would add up: it takes "5 6" for a mixed number like 5 1/2.
SPACED_DIGITS = re.compile(r"[0-9](?:\s|~|\\[ ,;:!]|\\q?quad(?![A-Za-z]))+[0-9]")

# math-verify drops what stands below a number: 25_8, 25_9 and 25_897 are all 25 to it.
BASED = re.compile(r"([0-9]+) ?_ ?(?:\{ ?([0-9]+) ?\}|([0-9]))")


def parse_number(text: str, base: int = 10) -> Fraction | None:
    """The number that `text` writes in `base` (2 to 10), exactly; None where it is not one in the form below.

        72   -72   +72   1,234,567   0.25   1,234.5   3/4   -3/4

    One sign; commas, if any, before every third digit; digits on both sides of the point; a fraction of two bare whole numbers, the
    lower not 0. No spaces, units, exponents, digits of other scripts or digits outside the base. Texts of more than 64 characters are refused.
    """
    if not 2 <= base <= 10:
        raise ValueError(f"base {base} is not from 2 to 10")
    if len(text) > LONGEST_NUMBER:
        return None
    d = f"[0-{base - 1}]"
    m = re.fullmatch(rf"([+-]?)(?:({d}+)/({d}+)|({d}+|{d}{{1,3}}(?:,{d}{{3}})+)(?:\.({d}+))?)", text)
    if m is None:
        return None
    sign, above, below, whole, decimals = m.groups()
    if whole is None:
        if int(below, base) == 0:
            return None
        size = Fraction(int(above, base), int(below, base))
    else:
        decimals = decimals or ""
        size = Fraction(int(whole.replace(",", "") + decimals, base), base ** len(decimals))
    return -size if sign == "-" else size


def check_numbers(output: str, answer: str, base: int = 10) -> Verdict:
    """Judge an output whose answers stand on lines `#### NUMBER`, one for each line of `answer`.

    An answer line is any line with `####` in it. Right needs: exactly as many of them as `answer` has lines, each equal as a number
    (`parse_number`, in `base`) to what is due there, in order. So that guesses and afterthoughts cannot pay:

    - an answer line holds `####` and the number and nothing else but spaces, tabs and carriage returns; one `$` before the number may stay, as it names
      no other number, while a full stop, `%` (which may mean a hundredth) or a unit makes it unparseable;
    - after the last answer line only white space may follow: more text might take the answer back, and it is not the end of a rationale;
    - a line ends at a newline alone.

    Unparseable: no answer line, one that is not of this form, or text after the last. Wrong: all well formed, but too many, too few
    or not what is due. Where several answers are due, `step` counts from 1 to the first wrong, missing or surplus one.
    Raises UserError where `answer` itself is no number.
    """
    due = [_number(line, base) for line in answer.split("\n")]
    if None in due:
        raise UserError(f"The answer {answer[:80]!r} of a problem is not a number in base {base}; mend the data or leave the problem out.")
    lines = output.split("\n")
    marked = [n for n, line in enumerate(lines) if MARK in line]
    if not marked:
        return Verdict("unparseable", why=f"no line {MARK} with an answer")
    given = []
    for n in marked:
        line = lines[n].strip(BLANK)
        number = _number(line[len(MARK) :], base) if line.startswith(MARK) else None
        if number is None:
            return Verdict("unparseable", why=f"answer line {len(given) + 1} is not {MARK} and a number" + (f" in base {base}" if base != 10 else ""))
        given.append(number)
    if any(line.strip(BLANK) for line in lines[marked[-1] + 1 :]):
        return Verdict("unparseable", why="text after the last answer")
    wrong = next((n for n, (g, d) in enumerate(zip_longest(given, due), 1) if g != d), None)
    if wrong is None:
        return Verdict("right")
    if len(given) != len(due):
        why = f"{len(given)} answers where {'one was' if len(due) == 1 else f'{len(due)} were'} due"
    else:
        why = f"the answer is {answer.split(chr(10))[wrong - 1].strip(BLANK)}"
    return Verdict("wrong", wrong if len(due) > 1 else None, why)


def _number(text: str, base: int) -> Fraction | None:
    text = text.strip(BLANK).removeprefix("$")
    if base != 10 and (decimal := re.fullmatch(r"([+-]?)\[([0-9,]+/[0-9]+)\]", text)):  # how tasks/base7.py writes decimals
        text = decimal[1] + decimal[2].replace(",", "")
    return parse_number(text, base)


class MathChecker:
    r"""Judges outputs whose answer stands in \boxed{...}, by math-verify, in a process that is killed when it takes too long.

    math-verify's own time limit needs the main thread, and cannot stop a long computation inside C. Here each comparison gets `seconds`,
    measured from the moment the other process takes the work; then the process is killed and a fresh one started. Start-up (a second or
    more: what the caller's script imports, it imports again) does not count.
    The process starts with the first output that needs it, and ends with `close`, a `with` block, this object or the interpreter.
    Any thread may call; calls wait for each other.

        with MathChecker() as checker:
            checker.check(r"... so \boxed{\frac{2}{4}}", "0.5").right

    As always when processes are spawned, a script must be a file (not standard input), and calls in it stand under `if __name__ == "__main__":`.
    """

    def __init__(self, seconds: float = 5.0):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._pools = []  # one or none; a list, so that the finalizer below holds no reference to this object
        self._finalizer = weakref.finalize(self, _stop, self._pools)  # runs at exit, too

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End the process. A later check starts a new one."""
        with self._lock:
            _stop(self._pools)

    def check(self, output: str, answer: str) -> Verdict:
        r"""Judge one output. `answer` is the content of the box that is due.

        Only the last \boxed counts, and it must close. Its content is right if it is the same text as `answer`, white space aside. Two plain numbers
        (`parse_number`) are compared exactly. Anything else math-verify decides, with decimals compared to 15 places: it takes x = 5 for 5
        (the right-hand side counts, unless the left is another number), 5\% and 5 units for 5, and 25_8 for 25, but not for 25_9; sets have no order.
        An answer that math-verify does not understand is matched as text alone.

        Unparseable: no such box, an empty one, one of more than 1000 characters, numbers side by side, a subscript of a number that is no base, or
        what math-verify cannot read or fails on. Timeout: no verdict in time; or the process died twice over it (once is forgiven: something else may have killed it).
        Raises UserError when the process cannot be started.
        """
        return self.check_many([(output, answer)])[0]

    def check_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judge (output, answer) pairs as `check` does, equal boxes only once: a group of rollouts often agrees, and a hanging one costs `seconds`."""
        boxed = [(last_boxed(output), answer) for output, answer in pairs]
        verdicts = {pair: self._judge(*pair) for pair in dict.fromkeys(boxed)}
        return [verdicts[pair] for pair in boxed]

    def _judge(self, given: str | None, answer: str) -> Verdict:
        if given is None:
            return Verdict("unparseable", why="no \\boxed{...}, or the last one does not close")
        given, answer = " ".join(given.split()), " ".join(answer.split())
        if not given:
            return Verdict("unparseable", why="an empty box")
        if given == answer:
            return Verdict("right")
        numbers = parse_number(given), parse_number(answer)
        if None not in numbers:
            return Verdict("right") if numbers[0] == numbers[1] else Verdict("wrong", why=f"the answer is {answer}")
        if len(given) > LONGEST_BOX:
            return Verdict("unparseable", why=f"more than {LONGEST_BOX} characters in the box")
        if SPACED_DIGITS.search(given):
            return Verdict("unparseable", why="numbers side by side in the box")
        if re.search("[0-9] ?_", given):
            bases = [(m.group(2) or m.group(3)) if (m := BASED.fullmatch(text)) else None for text in (given, answer)]
            if bases[0] is None:
                return Verdict("unparseable", why="a subscript of a number that is no base")
            if bases[1] not in (None, bases[0]):
                return Verdict("wrong", why=f"the answer is {answer}")
        with self._lock:
            kind, why = self._ask(answer, given)
        return Verdict("wrong", why=f"not the text {answer}, which only text can match") if kind == "no gold" else Verdict(kind, why=why)

    def _ask(self, answer: str, given: str) -> tuple[str, str]:
        """`compare` in the other process, under the time limit."""
        from pebble import ProcessExpired, ProcessPool  # late: GSM8k's checks need none of it

        deaths = 0
        for _ in range(3):  # two for the input, and one for a process that was killed while it waited
            if not self._pools:
                self._pools.append(ProcessPool(max_workers=1, initializer=start, context=get_context("spawn")))
            pool = self._pools[0]
            try:
                return _result(pool, pool.schedule(compare, (answer, given), timeout=self.seconds), self.seconds)
            except TimeoutError:  # pebble has killed the process, and starts another
                return "timeout", f"not decided in {self.seconds:g} s"
            except ProcessExpired:
                deaths += 1
            except BrokenProcessPool:
                pass
            except RuntimeError:  # how `schedule` says that the pool broke earlier
                if pool.active:
                    raise
            _stop(self._pools)  # locks that a killed process held stay locked: all of it must be new
            if deaths == 2:
                break
        if deaths:
            return "timeout", "the process that compares answers died over it"
        raise UserError('The process that compares answers does not start; call it from a notebook, or from a script file under if __name__ == "__main__":.')


def _result(pool, future, seconds: float):
    """The future's result, or BrokenProcessPool: pebble can lose work when a process dies before it has taken it."""
    end = time.monotonic() + START_SECONDS + seconds
    try:
        while not wait([future], timeout=0.5).done:
            if not pool.active or time.monotonic() > end:
                raise BrokenProcessPool("work lost")
        return future.result()
    finally:
        future.cancel()  # after Ctrl-C the work must not go on; a finished future ignores it


def _stop(pools: list) -> None:
    while pools:
        pool = pools.pop()
        pool.stop()
        pool.join()
