import json
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.answers import LONGEST_NUMBER, MathChecker, check_numbers, parse_number
from adaback_lite.errors import UserError
from adaback_lite.seeding import derive
from adaback_lite.tasks import Verdict

from . import helpers  # noqa: F401  (the hypothesis profile)

ROOT = Path(__file__).resolve().parents[1]


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "base", "number"),
    [
        ("72", 10, Fraction(72)),
        ("+72", 10, Fraction(72)),
        ("-72", 10, Fraction(-72)),
        ("007", 10, Fraction(7)),
        ("1,234", 10, Fraction(1234)),
        ("1,234,567.50", 10, Fraction(2469135, 2)),
        ("1234.0", 10, Fraction(1234)),
        ("0.1", 10, Fraction(1, 10)),
        ("3/4", 10, Fraction(3, 4)),
        ("-6/8", 10, Fraction(-3, 4)),
        ("66", 7, Fraction(48)),
        ("3.4", 7, Fraction(25, 7)),
        ("1,000", 7, Fraction(343)),
        ("-10/3", 7, Fraction(-7, 3)),
        ("101", 2, Fraction(5)),
    ],
)
def test_parse_number_by_hand(text, base, number):
    assert parse_number(text, base) == number


NO_NUMBERS = (
    "", " ", "-", "+", ".", ",", "/", "7.", ".7", "72.", "72%", "$72", "72 apples", " 72", "72 ", "72\n", "7 2", "--7", "+-7", "- 7", "\u22127",
    "1e5", "1e999", "nan", "NaN", "inf", "Infinity", "0x10", "1_000", "12,34", "1,2345", "1234,567", ",123", "1,,234", "1,23", "1.2.3", "1.234,5",
    "1/0", "1/-2", "1/2/3", "1.5/2", "1 / 2", "1,000/2", "/2", "1/", "\u0667\u0662", "\uff17\uff12", "\u00b2", "7\u00b2", "\u2167", "72\x00", "72\u200b", "\ufeff72",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number(text):
    assert parse_number(text) is None
    verdict = check_numbers(f"6 x 12 = 72\n####x{text}", "72")
    assert verdict.kind == "unparseable"


@pytest.mark.parametrize(("text", "base"), [("7", 7), ("68", 7), ("1.7", 7), ("1/7", 7), ("1,008", 7), ("2", 2), ("8", 8)])
def test_a_digit_outside_the_base_is_no_numeral(text, base):
    assert parse_number(text, base) is None and parse_number(text, 10) is not None


@pytest.mark.parametrize("base", [-1, 0, 1, 11, 16])
def test_other_bases_are_our_mistake(base):
    with pytest.raises(ValueError, match="2 to 10"):
        parse_number("1", base)


def test_long_numbers_cost_nothing():
    assert parse_number("9" * LONGEST_NUMBER) == 10**LONGEST_NUMBER - 1
    assert parse_number("0" * LONGEST_NUMBER + "7") is None
    start = time.perf_counter()
    for text in ("9" * 10**6, "1/" + "9" * 10**6, "#" * 10**6, "####" * 10**6, "\n" * 10**6, "#### 7\n" * 10**5):
        assert check_numbers("#### " + text, "7").kind in ("wrong", "unparseable")
    assert time.perf_counter() - start < 10  # int() alone would need minutes


@given(st.integers(-(10**20), 10**20), st.integers(0, 6), st.integers(2, 10))
def test_every_number_is_read_back(n, places, base):
    """Written by repeated division, with commas and a point put in by hand."""
    digits, rest = "", abs(n)
    while rest or len(digits) <= places:
        digits, rest = str(rest % base) + digits, rest // base
    whole, decimals = (digits[:-places], digits[-places:]) if places else (digits, "")
    groups = ",".join(reversed([whole[::-1][i : i + 3][::-1] for i in range(0, len(whole), 3)]))
    for text in (whole, groups):
        written = "-" * (n < 0) + text + ("." + decimals if places else "")
        assert parse_number(written, base) == (Fraction(n, base**places) if len(written) <= LONGEST_NUMBER else None)


# --- answer lines ---


@pytest.mark.parametrize(
    ("output", "answer", "kind", "step"),
    [
        ("48/2 = <<48/2=24>>24\n#### 72", "72", "right", None),
        ("#### 72\n\n \t\r\n", "72", "right", None),
        ("\t ####72 \r", "72", "right", None),
        ("####\t1,234", "1234", "right", None),
        ("#### 1234.0", "1,234", "right", None),
        ("#### $1234", "1,234", "right", None),
        ("#### 1234", "$1,234", "right", None),
        ("#### $-5", "-5", "right", None),
        ("#### 2/4", "0.5", "right", None),
        ("#### 0.3333333333333333", "1/3", "wrong", None),
        ("#### 73", "72", "wrong", None),
        ("#### -72", "72", "wrong", None),
        ("#### 7", "72", "wrong", None),
        ("#### 172", "72", "wrong", None),
        ("#### 720", "72", "wrong", None),
        ("#### 72\n#### 72", "72", "wrong", None),
        ("#### 71\n#### 72", "72", "wrong", None),
        ("#### 72\n#### 71", "72", "wrong", None),
        ("", "72", "unparseable", None),
        ("The answer is 72", "72", "unparseable", None),
        ("The answer is #### 72", "72", "unparseable", None),
        ("### 72", "72", "unparseable", None),
        ("##### 72", "72", "unparseable", None),
        ("#### #### 72", "72", "unparseable", None),
        ("#### 71 #### 72", "72", "unparseable", None),
        ("#### 72 #### 72", "72", "unparseable", None),
        ("#### or 71\n#### 72", "72", "unparseable", None),
        ("#### 72.", "72", "unparseable", None),
        ("#### 72%", "72", "unparseable", None),
        ("#### 72 apples", "72", "unparseable", None),
        ("#### 72 73", "72", "unparseable", None),
        ("#### $$72", "72", "unparseable", None),
        ("#### -$72", "-72", "unparseable", None),
        ("#### $ 72", "72", "unparseable", None),
        ("####\n72", "72", "unparseable", None),
        ("#### 72\nor 73", "72", "unparseable", None),
        ("#### 72\n\u200b", "72", "unparseable", None),
        ("#### 72<|im_start|>", "72", "unparseable", None),
        ("#### 72\n<|im_start|>", "72", "unparseable", None),
        ("<|im_start|>#### 72", "72", "unparseable", None),
        ("#### 72\u20285", "72", "unparseable", None),
        ("#### 72\x0bno", "72", "unparseable", None),
        ("first\n#### 10\nsecond\n#### -3", "10\n-3", "right", None),
        ("#### 10\n#### -3\n#### 5", "10\n-3", "wrong", 3),
        ("#### 10", "10\n-3", "wrong", 2),
        ("#### -3\n#### 10", "10\n-3", "wrong", 1),
        ("#### 10\n#### 3", "10\n-3", "wrong", 2),
        ("#### 9\n#### 3", "10\n-3", "wrong", 1),
        ("#### -3", "10\n-3", "wrong", 1),
        ("#### 10, -3", "10\n-3", "unparseable", None),
        ("#### 10\n#### x", "10\n-3", "unparseable", None),
    ],
)
def test_answer_lines_by_hand(output, answer, kind, step):
    verdict = check_numbers(output, answer)
    assert (verdict.kind, verdict.step) == (kind, step)
    assert bool(verdict.why) == (kind != "right")


def test_the_base_holds_for_both_sides():
    assert check_numbers("#### 66", "66", base=7).right
    assert check_numbers("#### 1,000", "1000", base=7).right
    assert check_numbers("#### 48", "66", base=7) == Verdict("unparseable", why="answer line 1 is not #### and a number in base 7")
    assert check_numbers("#### 65", "66", base=7) == Verdict("wrong", why="the answer is 66")


def test_reasons_are_said_in_words():
    assert check_numbers("#### 1\n#### 2", "1").why == "2 answers where one was due"
    assert check_numbers("#### 1", "1\n2").why == "1 answers where 2 were due"
    assert check_numbers("#### 1\n#### 3", "1\n2").why == "the answer is 2"
    assert check_numbers("#### 1\nx", "1").why == "text after the last answer"


@pytest.mark.parametrize("answer", ["", "72\n", "seventy", "72%"])
def test_an_answer_that_is_no_number_is_said(answer):
    with pytest.raises(UserError, match="not a number in base 10.*mend the data"):
        check_numbers("#### 72", answer)


def test_every_authors_solution_is_right_and_right_for_its_answer_only():
    rows = [json.loads(line)["answer"] for line in (ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl").open()]
    assert len(rows) == 7473
    answers = [row.rsplit("#### ", 1)[1] for row in rows]
    for n, row in enumerate(rows):
        assert check_numbers(row, answers[n]).right
        other = answers[n - 1]
        assert check_numbers(row, other).right == (float(other.replace(",", "")) == float(answers[n].replace(",", "")))
        assert check_numbers(row[: row.rindex("####")], answers[n]).kind == "unparseable"


# --- the slow obvious way, a character at a time, without regular expressions, int or Fraction ---


def slow_number(text, base):
    """(numerator, denominator), or None."""
    if len(text) > 64:
        return None
    sign, digits = 1, "0123456789"[:base]
    if text[:1] in ("+", "-"):
        sign, text = (-1 if text[0] == "-" else 1), text[1:]

    def whole(s):
        value = 0
        for c in s:
            if c not in digits:
                return None
            value = value * base + digits.index(c)
        return value if s else None

    if "/" in text:
        top, _, bottom = text.partition("/")
        top, bottom = whole(top), whole(bottom)
        return None if top is None or not bottom else (sign * top, bottom)
    left, point, right = text.partition(".")
    if point and whole(right) is None:
        return None
    groups = left.split(",")
    if len(groups) > 1 and (not 1 <= len(groups[0]) <= 3 or any(len(g) != 3 for g in groups[1:])):
        return None
    value = whole("".join(groups) + right)
    return None if value is None or not left else (sign * value, base ** len(right))


def slow_kind(output, answer, base):
    lines, line = [], ""
    for c in output + "\n":
        if c == "\n":
            lines.append(line)
            line = ""
        else:
            line += c

    def number(text):
        while text and text[0] in " \t\r":
            text = text[1:]
        while text and text[-1] in " \t\r":
            text = text[:-1]
        return slow_number(text[1:] if text[:1] == "$" else text, base)

    found, seen, after = [], False, False
    for line in lines:
        if "####" in line:
            before, _, rest = line.partition("####")
            if any(c not in " \t\r" for c in before):
                return "unparseable"
            found.append(number(rest))
            seen, after = True, False
        elif any(c not in " \t\r" for c in line):
            after = seen
    if not found or after or None in found:
        return "unparseable"
    due = [number(line) for line in answer.split("\n")]
    return "right" if len(found) == len(due) and all(a * d == b * c for (a, c), (b, d) in zip(found, due)) else "wrong"


SCRIPTS = [{ord(d): chr(zero + int(d)) for d in "0123456789"} for zero in (0x660, 0x966, 0xFF10, 0x1D7CE, 0x2080, 0xE50)]
STRANGE = [
    "\x00", "\u200b", "\u2028", "\x0b", "\x0c", "\x85", "\xa0", "\ufeff", "\u0301", "\u202e", "\ud800", "#", "####", "\n####", "\n", "\r", " ", "\t", "$", "%", ".",
    ",", "-", "+", "/", "e", "E", "_", "{", "}", "{" * 50, "\\", "0", "1", "7", "9", "<|im_start|>", "<|endoftext|>", "\u0667", "\uff17", "\u00b2", "\u2167",
    "\U0001d7d5", "\u4e03",
]  # fmt: skip
MONSTERS = ["1e999", "-1e999", "1e-999", "NaN", "nan", "inf", "-inf", "Infinity", "1" * 500, "0." + "0" * 200 + "1", "0x48", "0b1", "1j", "True", "[72]", "(72)", "1/0", "9" * 64]
ANSWERS = ["72", "1,234", "-5", "0", "0.5", "3/4", "$1,000", "10", "66", "12345678901234567890", "10\n-3", "5\n5", "1\n2\n3", "0.1\n1/10"]
ANSWERS_7 = ["66", "1,000", "-5", "0.5", "3/4", "10\n-3"]


def strange_output(rng: Random, answer: str, other: str) -> str:
    """One output that means to deceive, or that is nearly right."""
    due = answer.split("\n")
    lines = [line for n, d in enumerate(due) for line in (f"step {n}: <<{n}+1={n + 1}>>", f"#### {d}")]
    choice = rng.randrange(16)
    if choice == 0:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)))) for _ in range(rng.randrange(40)))
    if choice == 1:
        return "\n".join(f"#### {rng.choice((*due, other, *MONSTERS))}" for _ in range(rng.randrange(5)))
    if choice == 2:
        return "\n".join(lines).replace(due[-1], rng.choice(MONSTERS))
    if choice == 3:
        return "\n".join(lines).translate(rng.choice(SCRIPTS))
    if choice == 4:
        return "\n".join(f"#### {d}" for d in other.split("\n"))
    if choice == 5:
        return "\n".join(lines) + rng.choice(("\n", " ", "")) + f"#### {other}"
    if choice == 6:
        return f"#### {other}\n" + "\n".join(lines)
    if choice == 7:
        return "\n".join(lines)[: rng.randrange(len("\n".join(lines)) + 1)]
    if choice == 8:
        return f"The answer is {answer}. " + rng.choice(("", "####", "####\n", "\n#### ")) + rng.choice(("", due[-1][:-1], due[-1] + "0", "1" + due[-1]))
    if choice == 9:
        rng.shuffle(lines)
        return "\n".join(lines)
    if choice == 10:
        return rng.choice(("\\boxed{", "{" * 40, "`", "**")) + "\n".join(lines) + rng.choice(("}", "}" * 40, "`", "**", ""))
    if choice == 11:  # the same numbers in other clothes
        marks = ("####", " ####", "#### ", "\t####")
        text = "\n".join(f"{rng.choice(marks)}{rng.choice(('', '+', '$', '00', ' '))}{d}{rng.choice(('', '.0', '.00', '/1', ' '))}" for d in due)
        return text + rng.choice(("", "\n", " \r\n"))
    text = list("\n".join(lines))
    for _ in range(rng.randrange(3)):  # nearly right
        at = rng.randrange(len(text)) if rng.random() < 0.5 else max(0, len(text) - 1 - rng.randrange(8))
        text[at : at + rng.randrange(2)] = [rng.choice(STRANGE)]
    return "".join(text)


@pytest.mark.slow
def test_a_hundred_thousand_strange_outputs_are_judged_as_the_slow_way_judges_them():
    rng, kinds = Random(derive("strange outputs")), Counter()
    for n in range(100_000):
        base, answers = (7, ANSWERS_7) if n % 4 == 3 else (10, ANSWERS)
        answer, other = rng.choice(answers), rng.choice(answers)
        output = strange_output(rng, answer, other)
        verdict = check_numbers(output, answer, base)
        assert verdict.kind == slow_kind(output, answer, base), (output, answer, base, verdict)
        assert verdict.step is None or (verdict.kind == "wrong" and "\n" in answer)
        kinds[verdict.kind] += 1
    assert min(kinds["right"], kinds["wrong"], kinds["unparseable"]) > 10_000, kinds


pieces = st.one_of(st.sampled_from(STRANGE + MONSTERS + ANSWERS + ["#### ", "\n#### "]), st.text(max_size=3), st.integers().map(str))


@given(st.lists(pieces, max_size=12).map("".join), st.sampled_from(ANSWERS))
def test_any_text_is_judged_as_the_slow_way_judges_it(output, answer):
    assert check_numbers(output, answer).kind == slow_kind(output, answer, 10)


def test_the_scripts_hold_digits():
    """Or the outputs made with them would deceive nobody."""
    for script in SCRIPTS:
        assert [unicodedata.digit(c) for c in script.values()] == list(range(10))


# --- boxes ---


@pytest.fixture(scope="module")
def checker():
    with MathChecker(seconds=5.0) as checker:
        yield checker


@pytest.mark.parametrize(
    ("output", "answer", "kind"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", "right"),
        (r"\boxed{\frac{2}{4}}", r"\frac12", "right"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", "right"),
        (r"\boxed{x = 5}", "5", "right"),
        (r"\boxed{1,234}", "1234", "right"),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", "right"),
        (r"\boxed{ \text{Monday} }", r"\text{Monday}", "right"),
        (r"\boxed{5}, no, \boxed{6}", "6", "right"),
        (r"\boxed{5}, no, \boxed{6}", "5", "wrong"),
        (r"\boxed{\boxed{6}}", "6", "right"),
        (r"\boxed{\frac{1}{3}}", "0.5", "wrong"),
        (r"\boxed{0.0000001}", "0", "wrong"),
        (r"\boxed{3.142857}", r"\frac{22}{7}", "wrong"),
        (r"\boxed{0.12345678901234567891}", "0.12345678901234567892", "wrong"),
        (r"\boxed{5 \text{ or } 6}", "5", "wrong"),
        (r"\boxed{5, 6}", "5", "wrong"),
        (r"\boxed{\pm 5}", "5", "wrong"),
        (r"\boxed{2 + 3 = 5}", "5", "right"),
        (r"\boxed{f(2) = 5}", "5", "right"),
        (r"\boxed{6 = 5}", "5", "wrong"),
        (r"\boxed{25_{8}}", "25_8", "right"),
        (r"\boxed{25_8}", "25", "right"),
        (r"\boxed{25}", "25_8", "right"),
        (r"\boxed{25_9}", "25_8", "wrong"),
        (r"\boxed{26_8}", "25_8", "wrong"),
        (r"\boxed{25_{18}}", "25_8", "wrong"),
        (r"\boxed{25_897}", "25_8", "unparseable"),
        (r"\boxed{5_10\%}", "5", "unparseable"),
        (r"\boxed{3a_1}", "3 a_1", "right"),
        (r"\boxed{5 6}", "11", "unparseable"),
        ("\\boxed{5\n6}", "11", "unparseable"),
        (r"\boxed{5\quad 6}", "11", "unparseable"),
        (r"\boxed{5\;6}", "11", "unparseable"),
        (r"\boxed{7 final answer is $5$}", "5", "wrong"),
        (r"\boxed{}", "5", "unparseable"),
        (r"\boxed{ \ }", "5", "unparseable"),
        (r"\boxed{5", "5", "unparseable"),
        (r"\boxed{5} \boxed{5", "5", "unparseable"),
        (r"\boxed 5", "5", "unparseable"),
        ("#### 5", "5", "unparseable"),
        ("5", "5", "unparseable"),
        ("", "5", "unparseable"),
        ("\\boxed{\u0665}", "5", "unparseable"),
        ("\\boxed{\x00}", "5", "unparseable"),
        (r"\boxed{" + "1" * 1001 + "}", "5", "unparseable"),
        (r"\boxed{\text{(}]}", r"\text{(} ]", "wrong"),
        ("\\boxed{)(  ]}", ")( ]", "right"),
    ],
)
def test_boxes_by_hand(checker, output, answer, kind):
    verdict = checker.check(output, answer)
    assert verdict.kind == kind and bool(verdict.why) == (kind != "right"), verdict


def test_a_gold_answer_that_math_verify_cannot_read_is_matched_as_text(checker):
    assert checker.check(r"\boxed{)(  ]}", ")( ]").right
    assert checker.check(r"\boxed{5}", ")( ]") == Verdict("wrong", why="not the text )( ], which only text can match")


def test_a_hanging_box_is_a_timeout_and_the_next_one_is_judged():
    """9^9^9^9 computes inside C, where no Python signal handler runs; in a thread, where no alarm can be set."""
    found = []
    with MathChecker(seconds=0.5) as checker:

        def work():
            start = time.perf_counter()
            found.extend(checker.check_many([(r"\boxed{9^{9^{9^{9}}}}", "5"), (r"again \boxed{9^{9^{9^{9}}}}", "5")]))
            found.append(time.perf_counter() - start)
            found.append(checker.check(r"\boxed{\frac12}", "0.5"))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(100)
    assert found[:2] == [Verdict("timeout", why="not decided in 0.5 s")] * 2
    assert found[3] == Verdict("right")


def worker_pid(checker) -> int:
    """Pebble shows its processes nowhere else."""
    (pool,) = checker._pools
    (pid,) = pool._pool_manager.worker_manager.workers
    return pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_process_is_replaced_and_a_closed_checker_leaves_none():
    with MathChecker() as checker:
        assert not checker._pools  # nothing starts before it is needed, and plain numbers do not need it
        assert checker.check(r"\boxed{5.0}", "5").right and not checker._pools
        assert checker.check(r"\boxed{\frac12}", "0.5").right
        first = worker_pid(checker)
        os.kill(first, signal.SIGKILL)
        assert checker.check(r"\boxed{\frac12}", "0.5").right
        second = worker_pid(checker)
        assert second != first and alive(second)
    assert not alive(second)
    again = checker.check(r"\boxed{\frac12}", "0.5")  # starts again at need
    assert again.right
    checker.close()
    checker.close()


def test_a_checker_that_is_thrown_away_ends_its_process():
    def use() -> int:
        checker = MathChecker()
        checker.check(r"\boxed{\frac12}", "0.5")
        pid = worker_pid(checker)
        return pid if alive(pid) else 0

    pid = use()
    assert pid and not alive(pid)


@pytest.mark.slow
def test_a_process_killed_over_an_input_is_forgiven_once():
    with MathChecker(seconds=60) as checker:
        checker.check(r"\boxed{\frac12}", "0.5")
        found, killed = [], []
        thread = threading.Thread(target=lambda: found.append(checker.check(r"\boxed{9^{9^{9^{9}}}}", "5")))
        thread.start()
        while thread.is_alive() and len(killed) < 5:
            time.sleep(2)
            if checker._pools and (new := set(checker._pools[0]._pool_manager.worker_manager.workers) - set(killed)):
                time.sleep(4)  # let it start and take the work
                os.kill(min(new), signal.SIGKILL)
                killed.extend(new)
        thread.join(100)
        assert found == [Verdict("timeout", why="the process that compares answers died over it")] and len(killed) >= 2
        assert checker.check(r"\boxed{\frac12}", "0.5").right


def run_script(tmp_path, text: str) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(text)
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.slow
def test_a_script_that_forgets_to_close_ends_and_leaves_no_process(tmp_path):
    done = run_script(
        tmp_path,
        """
if __name__ == "__main__":
    import os, threading, time
    from adaback_lite.answers import MathChecker
    checker = MathChecker(60)
    print(checker.check(r"\\boxed{\\frac12}", "0.5").kind, *checker._pools[0]._pool_manager.worker_manager.workers)
    threading.Thread(target=checker.check, args=(r"\\boxed{9^{9^{9^{9}}}}", "5"), daemon=True).start()
    time.sleep(1)
""",
    )
    kind, pid = done.stdout.split()
    assert done.returncode == 0 and kind == "right" and not alive(int(pid)), done.stderr


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    done = run_script(tmp_path, 'from adaback_lite.answers import MathChecker\nMathChecker().check(r"\\boxed{\\frac12}", "0.5")\n')
    assert done.returncode == 1
    assert "UserError: The process that compares answers does not start" in done.stderr and "__main__" in done.stderr


def test_a_comparer_that_does_not_start_is_said(monkeypatch):
    monkeypatch.setattr("adaback_lite.answers.start", os.abort)
    with MathChecker() as checker, pytest.raises(UserError, match="does not start"):
        checker.check(r"\boxed{\frac12}", "0.5")


# --- strange boxes ---

HANGING = [
    "9^{9^{9^{9}}}", "100000000!", "(10^{10})!", "((10!)!)!", "{" * 450 + "6" + "}" * 450, "(" * 400 + "6" + ")" * 400, r"\binom{10^9}{10^8}", r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    "(x+1)^{100000}", "2^{2^{2^{2^{2^{2}}}}}", r"\prod_{n=1}^{100000000} n", r"\int_0^1 x^{x^x} dx",
]  # fmt: skip


def random_sum(rng: Random, depth: int) -> tuple[str, Fraction | None]:
    """A sum in LaTeX, and its value by Python's fractions; None where it divides by zero."""
    if depth == 0:
        n = rng.randrange(-9, 30)
        return (f"({n})" if n < 0 else str(n)), Fraction(n)
    (left, a), (right, b) = random_sum(rng, depth - 1), random_sum(rng, depth - 1)
    form, value = rng.choice(
        (
            (r"{} + {}", lambda: a + b),
            (r"{} - ({})", lambda: a - b),
            (r"({}) \cdot ({})", lambda: a * b),
            (r"\frac{{{}}}{{{}}}", lambda: a / b if b else None),
        )
    )
    return form.format(left, right), None if a is None or b is None else value()


@pytest.mark.slow
def test_strange_boxes_never_pass_never_hang_and_true_ones_pass():
    """Off the main thread. Random sums are judged by Python's fractions; nothing else that stands here is the answer."""
    rng, cases = Random(derive("strange boxes")), []
    for _ in range(150):
        text, value = random_sum(rng, rng.randrange(1, 4))
        due = value if value is not None and rng.random() < 0.5 else Fraction(rng.randrange(-50, 50), rng.randrange(1, 9))
        cases.append((rf"thus \boxed{{{text}}}", rf"\frac{{{due.numerator}}}{{{due.denominator}}}", value == due))
    for _ in range(300):
        gold = rng.choice(("72", r"\frac{86753}{97}", r"2\sqrt{3}", "x^2+7", "(3, 4)", r"\text{Monday}"))
        junk = "".join(rng.choice((*STRANGE, r"\frac", r"\sqrt", "^", "x", "(", ")", "$", r"\text{", "=", "&", r"\\", "!", "3", "[")) for _ in range(rng.randrange(1, 12)))
        text = rng.choice(
            (
                rf"\boxed{{{junk}}}", rf"\boxed{{{gold}}} then \boxed{{{junk}}}", rf"\boxed{{{gold}}} then \boxed{{", rf"{gold} {junk}", rf"\boxed{{{gold}, 1}}",
                rf"\boxed{{1, {gold}}}", rf"\boxed{{{gold} \text{{ or }} 1}}", rf"\boxed{{{gold} 3}}", rf"\boxed{{3 {gold}}}", rf"\boxed{{-({gold})}}",
                rf"\boxed{{{gold}{gold}}}", rf"\boxed{{{gold[:-1]}}}", "\\boxed{" + gold.translate(rng.choice(SCRIPTS)) + "\u0661}", rf"\boxed{{{rng.choice(MONSTERS)}}}",
                rf"\fbox{{{gold}}}", rf"boxed{{{gold}}}", rf"\boxed {gold}", rf"\boxedx{{{gold}}}",
            )
        )  # fmt: skip
        cases.append((text, gold, False))
    cases += [(rf"\boxed{{{text}}}", "5", None) for text in HANGING]
    found, start = [], time.perf_counter()
    with MathChecker(seconds=1.0) as checker:
        thread = threading.Thread(target=lambda: found.extend(checker.check_many([case[:2] for case in cases])))
        thread.start()
        thread.join(550)
        assert not thread.is_alive()
    kinds = Counter((verdict.kind, truth) for verdict, (_, _, truth) in zip(found, cases, strict=True))
    print(kinds, f"{time.perf_counter() - start:.0f} s")
    false = [(text, gold) for verdict, (text, gold, truth) in zip(found, cases) if verdict.right and not truth]
    missed = [(text, gold, verdict) for verdict, (text, gold, truth) in zip(found, cases) if truth and verdict.kind not in ("right", "timeout")]
    assert (false, missed) == ([], [])
    assert kinds["right", True] > 50 and kinds["timeout", None] >= 6 and kinds["wrong", False] > 50 and kinds["unparseable", False] > 50


def test_a_decimal_of_base_7_is_read_as_it_is_written():
    """tasks/base7.py writes 2.5 as [34/13]: 25 over 10."""
    assert check_numbers("so\n#### [34/13]", "[34/13]", 7).right and check_numbers("#### 5/2", "[34/13]", 7).right
    assert check_numbers("#### -[1,034/13]", "-[1034/13]", 7).right
    assert check_numbers("#### [34/14]", "[34/13]", 7).kind == "wrong"
    assert check_numbers("#### [38/13]", "[34/13]", 7).kind == check_numbers("#### [3/4]", "1", 10).kind == "unparseable"
