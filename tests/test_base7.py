"""Base 7: the docstring's table is what happens, every note stays true, and the way back is exact, on all of GSM8k."""

import functools
import json
import re
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adaback_lite.errors import UserError
from adaback_lite.tasks import Sample, base7
from adaback_lite.tasks.base7 import NotConvertible, check_notes, convert, evaluate, from_base7, in_base7, numeral_value, text_from_base7, text_to_base7, to_base7
from tests import helpers  # noqa: F401  (the hypothesis profile)

GSM8K = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "gsm8k" / "train.jsonl"
DECIMAL = re.compile(r"(?=\.?\d)(\d*(?:,\d+)*)(\.\d+)?", re.ASCII)
SEVENTH = re.compile(r"\[([\d,]+)/(\d+)\]|(\d+(?:,\d+)*)", re.ASCII)


@functools.cache
def gsm8k() -> list[Sample]:
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    return [Sample(i, r["question"], r["answer"], r["answer"].rsplit("#### ", 1)[1], f"gsm8k/train/{i}") for i, r in enumerate(rows)]


@functools.cache
def converted() -> tuple[list[Sample], Counter, float]:
    start = time.process_time()
    return *convert(gsm8k()), time.process_time() - start


def problem(text: str, rationale: str = "#### 1", answer: str = "1") -> Sample:
    return Sample(3, text, rationale, answer, "made/up")


def reason(text: str) -> str:
    with pytest.raises(NotConvertible) as no:
        to_base7(problem(text))
    return no.value.reason


def slow_in_base7(n: int) -> str:
    """By subtraction of powers, from the largest down."""
    power, digits = 1, ""
    while power * 7 <= n:
        power *= 7
    while power:
        digit = 0
        while n >= power:
            n, digit = n - power, digit + 1
        digits, power = digits + str(digit), power // 7
    return digits


def is_list(parts: list[str]) -> bool:
    """4,5,6 is three numbers; 4,567,890 is one."""
    return any(len(p) != 3 for p in parts[1:])


def numbers(text: str) -> list[Fraction]:
    """The numbers of a text in base 10, read without the module."""
    out = []
    for whole, places in DECIMAL.findall(text):
        parts = whole.split(",")
        out += map(Fraction, parts) if is_list(parts) else [Fraction("".join(parts) + places)]
    return out


def numbers7(text: str) -> list[Fraction]:
    """The numbers of a text in base 7, likewise."""
    out = []
    for n, d, whole in SEVENTH.findall(text):
        parts = whole.split(",")
        if d:
            out.append(Fraction(int(n.replace(",", ""), 7), int(d, 7)))
        else:
            out += [int(p, 7) for p in parts] if is_list(parts) else [int("".join(parts), 7)]
    return out


def table(first: str, last: str) -> list[str]:
    lines = base7.__doc__.splitlines()
    starts = [next(i for i, line in enumerate(lines) if line.startswith(f"    {word} ")) for word in (first, last)]
    return lines[starts[0] : starts[1] + 1]


# The rule --------------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_docstrings_table():
    rows = table("48", "twenty")
    for row in rows:
        before, after = (re.split(" {3,}", row[a:b].strip()) for a, b in ((4, 30), (30, 65)))
        after = before if after == ["the same"] else after
        assert [text_to_base7(t) for t in before] == after
        assert [text_from_base7(t) for t in after] == before
    assert len(rows) == 16 and text_to_base7("2*9=18, 60 minutes, 100 cents, 12 eggs, 0.125") == "2*12=24, 114 minutes, 202 cents, 15 eggs, [236/2626]"


DROPPED = {
    "leading zero": ["at 0900 hours", "agent 007", "05 eggs", "00.5", "8:005", "01,000.5", "0,500.5"],
    "spaced number": ["$18 000", "a 12 200-page book", "1 000 000", "1\u00a0000"],
    "misplaced comma": ["16,0000", "0,2", "5,100,7", "3,6000.00", "1,2", "05,06,07", "0,123"],
    "endless decimal": ["8.333...", "8.3…"],
    "odd numeral": ["1.2.3", "1e-05", "2.5E7", "the end.5 left", "..5", "9" * 201],
    "foreign digit": ["⅞ of it", "٣ eggs", "x⁹", "Ⅷ", "１２"],
    "not reversible": ["[1/10]", "a [7/100]"],
}


@pytest.mark.parametrize("why", DROPPED)
def test_what_is_dropped_and_why(why):
    for text in DROPPED[why]:
        assert reason(text) == why, text


def test_the_docstring_lists_all_reasons():
    assert [row[4:26].strip() for row in table("note", "not")] == ["note wrong", "note unreadable", *DROPPED]
    for row in table("leading", "foreign"):
        assert row[4:26].strip() in DROPPED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8:00-6:07, 00:00", "11:00-6:010, 00:00"),
        ("25x.4= 10 and 2X.4 and 5/.5", "34x[04/13]= 13 and 2X[04/13] and 5/[05/13]"),
        (".05 0.05 .0 0.0 0.50", "[05/202] [5/202] [00/13] [0/13] [101/202]"),
        ("1,000.00 and 999 and 9,999,999", "[564,355/202] and 2625 and 150,666,342"),
        ("He has 8. She has 9, they 17.", "He has 11. She has 12, they 23."),
        ("1.\n7. Total: 7\n   • 8", "1.\n10. Total: 10\n   • 11"),
        ("13,15,17&19 = 4 lessons", "16,21,23&25 = 4 lessons"),
        ("€8 (9) 10% -10 –10 10's #10", "€11 (12) 13% -13 –13 13's #13"),
        ("no numeral, a dozen and five ¼ [x/13]", "no numeral, a dozen and five ¼ [x/16]"),
        ("", ""),
    ],
)
def test_more_by_hand(text, expected):
    assert text_to_base7(text) == expected
    assert text_from_base7(expected) == text


def test_the_arithmetic_of_a_whole_problem_by_hand():
    s = Sample(1, "Weng earns $12 an hour, and works 50 minutes.", "12/60 = $<<12/60=0.2>>0.2 a minute.\n0.2 x 50 = $<<0.2*50=10>>10.\n#### 10", "10", "gsm8k/train/1")
    c = to_base7(s)
    assert c.prompt == "Weng earns $15 an hour, and works 101 minutes."
    assert c.rationale == "15/114 = $<<15/114=[2/13]>>[2/13] a minute.\n[2/13] x 101 = $<<[2/13]*101=13>>13.\n#### 13"
    assert (c.id, c.answer, c.source) == (1, "13", "gsm8k/train/1/base7")
    assert check_notes(c.rationale, 7) == [("15/114=[2/13]", True), ("[2/13]*101=13", True)]
    assert from_base7(c) == s


def test_several_answers_stay_one_a_line():
    assert to_base7(problem("x", "#### 8\n9", "8\n9")).answer == "11\n12"


@given(st.integers(0, 10**9))
@example(0)
@example(7**10 - 1)
def test_in_base7_is_the_slow_way(n):
    assert in_base7(n) == slow_in_base7(n) and int(in_base7(n), 7) == n


pieces = st.lists(st.sampled_from([*"0123456789.,:/-+*=%$[]() \nxae½³…", "10", "100", "00", "[1/13]", "1,000", "<<", ">>", "٣", " 000"]), max_size=14).map("".join)


@given(pieces)
@example("[04/10]")
@example("50,60,70")
@example("5.,6")
@example("[1,0/13]")
def test_any_text_is_converted_exactly_or_dropped_for_a_known_reason(text):
    try:
        s = to_base7(problem(text))
    except NotConvertible as no:
        assert no.reason in DROPPED
        return
    assert from_base7(s) == problem(text)
    assert not set(s.prompt) & set("789")
    if "[" not in text:
        assert numbers7(s.prompt) == numbers(text)


@given(pieces)
@example("5,,6")
def test_a_models_text_never_breaks_the_way_back(text):
    try:
        text_from_base7(text)
    except NotConvertible as no:
        assert no.reason == "not in base 7"


def test_brackets_that_to_base7_would_not_write():
    assert [text_from_base7(t) for t in ("[066/13]", "[1,0/13]", "[13/12]")] == ["4.8", "[1,0/10]", "[10/9]"]


@pytest.mark.parametrize("text", ["7", "18", "1.5", ".3", "1" * 401, "[" + "1" * 401 + "/13]"])
def test_what_is_not_in_base_7_is_told(text):
    with pytest.raises(NotConvertible, match="not in base 7"):
        text_from_base7(text)


def test_only_a_sample_in_base_7_can_be_converted_back():
    with pytest.raises(UserError, match=r"Sample 3 has source 'made/up'.*to_base7 returned"):
        from_base7(problem("x"))


def test_convert_keeps_order_and_ids_and_counts_reasons():
    texts = ["7 a", "0900", "8 b", "18 000", "19 000", "9 c"]
    kept, dropped = convert(Sample(i, t, "#### 1", "1") for i, t in enumerate(texts))
    assert [(s.id, s.prompt, s.source) for s in kept] == [(0, "10 a", "/base7"), (2, "11 b", "/base7"), (5, "12 c", "/base7")]
    assert dropped == {"leading zero": 1, "spaced number": 2}


# Numbers and notes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        ("48", 10, 48),
        (" 66\n", 7, 48),
        ("-7", 10, -7),
        ("+10", 7, 7),
        ("10,000", 10, 10_000),
        ("41,104", 7, 10_000),
        ("0.2", 10, Fraction(1, 5)),
        (".2", 10, Fraction(1, 5)),
        ("0.2", 7, Fraction(2, 7)),
        ("1.06", 7, Fraction(55, 49)),
        ("1,000.50", 10, Fraction(2001, 2)),
        ("2/13", 7, Fraction(1, 5)),
        ("[02/13]", 7, Fraction(1, 5)),
        ("-[50,664/13]", 7, Fraction(-12345, 10)),
        ("007", 10, 7),
        ("101", 2, 5),
    ],
)
def test_parse_number_by_hand(text, base, value):
    assert numeral_value(text, base) == value and isinstance(numeral_value(text, base), Fraction)


@pytest.mark.parametrize("text", ["7", "18", "9", "1.7", "5/8", "[8/13]", "1,007"])
def test_a_digit_that_base_7_lacks_is_no_numeral(text):
    assert numeral_value(text, 7) is None and numeral_value(text, 10) is not None


@pytest.mark.parametrize(
    "text", ["", " -", ".", "5.", "$5", "5%", "1,0000", ",100", "1000,000", "--5", "- 5", "1 000", "1e5", "٣", "１", "½", "5/0", "[5]", "[2/3", "1_0", "1" * 201]
)
def test_what_is_no_numeral(text):
    assert numeral_value(text, 10) is None


def test_bases_without_plain_digits_are_refused():
    for base in (1, 11):
        with pytest.raises(ValueError, match=f"base {base}"):
            numeral_value("1", base)


@given(st.integers(-(10**8), 10**8), st.integers(0, 4))
def test_parse_number_reads_what_python_writes(n, places):
    text = f"{Decimal(n).scaleb(-places):,.{places}f}"
    assert numeral_value(text, 10) == Fraction(n, 10**places)
    if n >= 0 and places:
        assert numeral_value(text_to_base7(text), 7) == Fraction(n, 10**places)


def trees():
    """(text in base 10, exact value or None), built together; brackets wherever they could matter."""

    def join(pair):
        (a, x), operator, (b, y) = pair
        if x is None or y is None or (operator in "//" and y == 0):
            value = None
        else:
            value = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y, "//": lambda: Fraction(x // y)}[operator]()
        return f"({a}){operator}({b})", value

    leaf = st.tuples(st.integers(0, 9999), st.integers(0, 2)).map(lambda n: (f"{Decimal(n[0]).scaleb(-n[1]):.{n[1]}f}", Fraction(n[0], 10 ** n[1])))
    return st.recursive(leaf, lambda t: st.tuples(t, st.sampled_from(["+", "-", "*", "/", "//"]), t).map(join), max_leaves=8)


@given(trees())
def test_evaluate_is_exact_in_both_bases(tree):
    text, value = tree
    assert evaluate(text, 10) == value
    assert evaluate(text_to_base7(text), 7) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("100-50-30-15", 5),
        ("60*60/100/3", 12),
        ("1/2*3", Fraction(3, 2)),
        ("8/2/2", 2),
        ("7-(2-5)", 10),
        ("-3*-(2+1)", 9),
        ("- 2 + [ 3 / 4 ]", Fraction(-5, 4)),
        ("560//10", 56),
        ("7//2*2", 6),
        ("-7//2", -4),
    ],
)
def test_rank_and_grouping_by_hand(text, value):
    assert evaluate(text, 10) == value


@pytest.mark.parametrize("text", ["", "2+", "*2", "2 3", "2(3)", "(2", "2)", "(2]", "()", "1/0", "1//(2-2)", "2**3", "x+1", "5%", "exit()", "1,00", "(" * 9999 + "1", "-" * 9999])
def test_what_cannot_be_evaluated_is_none(text):
    assert evaluate(text, 10) is None


def test_notes_right_wrong_and_unreadable():
    text = "a <<2*9=18>>18 b <<10/3=3.33>>3.33 <<18>> <<x=2>> <<1/0=1>> <<2*3=6=12/2>> <<2*3=6=7>> <<5=5\n>> <<1=1"
    right, wrong, unreadable = True, False, None
    assert [ok for _, ok in check_notes(text, 10)] == [right, wrong, unreadable, unreadable, unreadable, right, wrong, unreadable, unreadable]
    assert check_notes("<<2*12=24>> <<2*9=18>>", 7) == [("2*12=24", right), ("2*9=18", unreadable)]
    assert check_notes("no notes: 2*9=19", 10) == []


@pytest.mark.parametrize(("note", "why"), [("<<10/3=3.33>>", "note wrong"), ("<<2+2=5>>", "note wrong"), ("<<2x=4>>", "note unreadable"), ("<<2=2", "note unreadable")])
def test_a_problem_with_a_bad_note_is_dropped(note, why):
    with pytest.raises(NotConvertible, match=f"^{why}: ") as no:
        to_base7(problem("x", f"a {note}\n#### 1"))
    assert no.value.reason == why


# All of GSM8k ----------------------------------------------------------------------------------------------------------------


def test_what_is_kept_of_gsm8k_and_what_the_docstring_says_of_it():
    kept, dropped, seconds = converted()
    assert len(gsm8k()) == 7473 and len(kept) == 7452
    assert dropped == {"spaced number": 10, "endless decimal": 5, "misplaced comma": 4, "leading zero": 1, "odd numeral": 1}
    assert seconds < 15  # measured: 3
    with_point = [s for s in gsm8k() if re.search(r"\.\d", s.prompt + s.rationale)]
    ids = {s.id for s in with_point}
    without = sum(s.id not in ids for s in kept)
    size = [sum(len(s.prompt + s.rationale) for s in samples) for samples in (kept, [gsm8k()[s.id] for s in kept])]
    said = " ".join(base7.__doc__.split())
    for words in ("7,452 are kept (99.7 %)", ", ".join(f"{why} {n}" for why, n in dropped.most_common()), "1,407 problems have", "6,055 (81.0 %)"):
        assert words in said
    assert (len(ids), without, round(100 * 7452 / 7473, 1), round(100 * without / 7473, 1)) == (1407, 6055, 99.7, 81.0)
    assert f"grow by {100 * size[0] / size[1] - 100:.1f} %" in said


def test_every_note_of_every_kept_problem_is_true_in_base_7():
    """By the module, and again by Python's own arithmetic on text that is nothing but numerals, operators and brackets."""
    safe, checked, values = re.compile(r"[0-6+*/()\[\]-]+"), 0, {}
    for s in converted()[0]:
        notes = re.findall("<<(.*?)>>", s.rationale)
        assert check_notes(s.rationale, 7) == [(note, True) for note in notes]
        for note in notes:
            left, right = note.split("=")
            for side in (left, right):
                if side not in values:
                    assert safe.fullmatch(side)
                    python = re.sub(r"\d+", lambda m: f"F({int(m[0], 7)})", side.replace("[", "(").replace("]", ")"))
                    values[side] = eval(python, {"__builtins__": {}, "F": Fraction})
            assert values[left] == values[right], note
            checked += 1
    assert checked == 23_665 == sum(gsm8k()[s.id].rationale.count("<<") for s in converted()[0])


def test_every_kept_problem_comes_back_byte_for_byte():
    for s in converted()[0]:
        assert from_base7(s) == gsm8k()[s.id]
        assert from_base7(s).rationale.encode() == gsm8k()[s.id].rationale.encode()


def test_every_number_of_every_kept_problem_keeps_its_value_and_every_other_character_stays():
    """Read by two slow readers that know nothing of the module."""
    for s in converted()[0]:
        old = gsm8k()[s.id]
        for a, b in ((old.prompt, s.prompt), (old.rationale, s.rationale), (old.answer, s.answer)):
            assert numbers7(b) == numbers(a), s.id
            assert SEVENTH.sub("#", b).replace(",", "") == DECIMAL.sub("#", a).replace(",", ""), s.id
            assert not set(b) & set("789"), s.id


def test_the_number_after_a_note_and_the_answer_are_the_notes_result():
    for s in converted()[0]:
        assert s.rationale.endswith(f"\n#### {s.answer}") and numeral_value(s.answer, 7) is not None
        for result, after in re.findall(r"=([^=]*?)>>(\[[\d,]+/\d+\]|-?\d[\d,]*)", s.rationale):
            assert numeral_value(result, 7) == numeral_value(after.rstrip(","), 7), s.id


# gsm-symbolic ----------------------------------------------------------------------------------------------------------------


def test_gsm_symbolic_keeps_its_equations():
    """Rationales without notes: equations stand in the text. Each is as true, or as false, as it was."""
    import reasoning_gym

    made = reasoning_gym.create_dataset("gsm_symbolic", size=400, seed=5)
    samples = [Sample(i, x["question"], x["metadata"]["answer_cot"], x["answer"], f"gsm-symbolic/{i}") for i, x in enumerate(made)]
    kept, dropped = convert(samples)
    assert len(kept) + sum(dropped.values()) == 400 and len(kept) > 390
    number, number7 = r"(?:\d*\.\d+|\d+)", r"(?:\[\d+/\d+\]|\d+)"
    equation, equation7 = (re.compile(rf"(?<![\d.,\]]){n}(?: ?[-+*/×÷x] ?{n})+ ?= ?{n}(?![.,]?\d|%|\[)") for n in (number, number7))
    true = 0
    for s in kept:
        old = samples[s.id]
        assert from_base7(s) == old and numbers7(s.rationale) == numbers(old.rationale) and numbers7(s.prompt) == numbers(old.prompt)
        assert numeral_value(s.answer, 7) == numeral_value(old.answer, 10) is not None
        pairs = [p.findall(t) for p, t in ((equation, old.rationale), (equation7, s.rationale))]
        assert len(pairs[0]) == len(pairs[1])
        for a, b in zip(*pairs):
            sides = [[evaluate(side.translate(str.maketrans("×÷x", "*/*")), base) for side in e.split("=")] for e, base in ((a, 10), (b, 7))]
            assert sides[0] == sides[1] and None not in sides[0]
            true += sides[0][0] == sides[0][1]
    assert true > 600
    numbered = next(s for s in kept if "\n1. " in s.rationale)
    assert "\n2. " in numbered.rationale and "×" in "".join(s.rationale for s in kept)
