"""The made-up word problems are right line by line: by hand, by a second and simpler check, and by planted mistakes."""

import functools
import itertools
import re
import sys
from collections import Counter, defaultdict
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite.errors import UserError
from adaback_lite.tasks import symbolic as module
from adaback_lite.tasks.symbolic import expression, flaw, left_side, problems, right_side, split_of, symbolic, tidy, tokens

from . import helpers  # noqa: F401  (the hypothesis profile)

SPLITS = ("train", "val", "test")


@functools.cache
def drawn(split: str, n: int, seed: int = 0):
    return symbolic(split, n, seed)


@functools.cache
def candidates(seed: int = 5, n: int = 2000):
    return tuple(itertools.islice(problems(seed), n))


# --- Reading equations ---


@pytest.mark.parametrize(
    ("line", "left", "right"),
    [
        ("So 2 + 3 = 5 apples.", 5, 5),
        ("120 clam / 5 clam/minute = 24 minutes", 24, 24),
        ("There are 49 girls x 3 boys/girl = 147 boys in the park.", 147, 147),
        ("so that's 0.2*100 = 20 students", 20, 20),
        ("330 puppies / 1650 puppies * 100% = 20%", Fraction(1, 5), Fraction(1, 5)),
        ("50% * 50% = 25%.", Fraction(1, 4), Fraction(1, 4)),
        ("The brokerage fee is $420,000 x 6/100 = $25,200.", 25200, 25200),
        ("It is $1,250,000, so $1,250,000 - 1,000 = $1,249,000, he says", 1249000, 1249000),
        ("5 toy cars * €10 = €50 on 7 toy cars.", 50, 50),
        ("bought 12 fewer than the 84 apple, so 84 - 12 = 72 orange", 72, 72),
        ("need 145 - 60 signatures. 145 - 60 = 85 signatures", 85, 85),
        ("20-minute shows: 3 * 20 = 60", 60, 60),
        ("re-writes it 3 time(s) which is a total of 48 * 3 = 144 letters.", 144, 144),
        ("The room's perimeter is 2(54+42) = 192", 192, 192),
        ("5+2(17)=39.0 minutes", 39, 39),
        ("14 yards * (3 feet / 1 yards) = 42 feet.", 42, 42),
        ("half * 154 beetles = 77 caterpillars", 77, 77),
        ("12 ÷ 4 = 3 times per year", 3, 3),
        ("12÷(1/2)=24 minutes", 24, 24),
        ("12÷1/2=24 minutes", 6, 24),
        ("14/56 = 1/4 blocks per minute.", Fraction(1, 4), Fraction(1, 4)),
        ("20 \N{MINUS SIGN} 13 \N{EN DASH} 2 = 5", 5, 5),
        ("2 x $.5 = $1.00", 1, 1),
        ("22 years * 4 - 90 = -2 years old", -2, -2),
        ("1 - 2 - 3 = 24 / 2 / 3", -4, 4),
        ("2 + 3 * 4 = 20", 14, 20),
        ("8 + 9 - = 17", None, 17),
        ("8 * 2 + 1 = 17 -", 17, None),
        ("7 / 0 = 1", None, 1),
        ("apples / 5 + 3 = 4", None, 4),
        ("5 + 3 = many", 8, None),
        ("(5 + 3 = 8", 8, 8),
    ],
)
def test_both_sides_of_an_equation_by_hand(line, left, right):
    before, after = tokens(line, [])
    assert (left_side(before, {}), right_side(after, {})) == (left, right)


def test_unknowns_are_letters_only_where_they_are_introduced():
    assert tokens("2x+90=228", ["x"]) == [[2, "*", "x", "+", 90], [228]]
    assert tokens("so x = 2 x 3", ["x"]) == [["x"], [2, "*", 3]]
    assert tokens("I say T x 5 = a", []) == [["*", 5], []]
    assert left_side(tokens("2x+90", ["x"])[0], {"x": Fraction(69)}) == 228
    assert left_side(tokens("2x+90", ["x"])[0], {}) is None


trees = st.recursive(
    st.integers(0, 1200).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=7,
)


@given(trees, st.booleans(), st.sampled_from(["", "$", "€"]), st.sampled_from(["", " apples", " per day", "/hour"]))
def test_expressions_have_python_s_value(tree, bare, before, after):
    """Python itself does the sum, on Fractions; without some brackets, its precedence is ours too."""
    if bare:
        tree = tree.replace("(", "").replace(")", "")
    try:
        expected = eval(re.sub(r"\d+", r"Fraction(\g<0>)", tree), {"Fraction": Fraction})
    except ZeroDivisionError:
        return
    shown = re.sub(r"\d+", lambda m: before + m.group() + after, tree)
    (part,) = tokens(shown, [])
    assert expression(part, 0, {}) == (expected, len(part))


# --- What is left out ---

QUESTION = "Tom has 5 apples and Ann 3 more. How many have they?"


@pytest.mark.parametrize(
    ("rationale", "answer", "reason"),
    [
        ("Ann has 5 + 3 = 8 apples.\nThey have 5 + 8 = 13.\n#### 13", "13", ""),
        ("Tom = 5 apples\nAnn = 5 + 3 = 8 apples\n5 + 8 = 13\nTogether they have 13.\n#### 13", "13", ""),
        ("Let T be the number.\n5 + T = 13, so T = 13 - 5 = 8\n5 + 8 = 13\n#### 13", "13", "it has a wrong equation"),
        ("Let T be the number.\n5 + 3 + T = 8 + T = 21\nThus T = 21 - 8 = 13\n#### 13", "13", ""),
        ("Let x be the one and y be the other. We know that y = x + 3, and y + x = 13.\nSo 2x + 3 = 13 and 2x = 10, leaving x = 5\n#### 5", "5", ""),
        ("Let x be the one and y be the other. We know that y = x + 4, and y + x = 13.\nSo 2x + 3 = 13 and 2x = 10, leaving x = 5\n#### 5", "5", "it has a wrong equation"),
        ("Let W be the number.\nThey have 8 + 5 = 13.\nThus, W = 13\n#### 13", "13", "its unknown is found without working"),
        ("Ann has 5 + 3 = 9 apples.\nThey have 5 + 8 = 13.\n#### 13", "13", "it has a wrong equation"),
        ("Half of 5 is 5 * 0.5 = 2 apples\n5 + 8 = 13\n#### 13", "13", "it has a wrong equation"),
        ("5 + 3 = 8 = 4 * 2 = 9\n5 + 8 = 13\n#### 13", "13", "it has a wrong equation"),
        ("It is 5 - 5 = 0\n5 + 8 = 13\n#### 13", "13", "it has a result of 0 or less"),
        ("It is 5 - 8 = -3\n5 + 8 = 13\n#### 13", "13", "it has a result of 0 or less"),
        ("It is 0.1 + 0.2 = 0.30000000000000004\n5 + 8 = 13\n#### 13", "13", "it has a number with more than 4 decimals"),
        ("5 + 8 = 13\n#### 14", "13", "its last line is not the answer"),
        ("5 + 8 = 13", "13", "its last line is not the answer"),
        ("5 - 8 = -3\n#### -3", "-3", "its answer is not a whole number above 0"),
        ("5 / 2 = 2.5\n#### 2.5", "2.5", "its answer is not a whole number above 0"),
        ("5 - 5 = 0\n#### 0", "0", "its answer is not a whole number above 0"),
        ("Ann has 5 + 3 = 8 apples.\nSo they have 13.\n#### 13", "13", "its last equation does not give the answer"),
        ("So they have 13.\n#### 13", "13", "its last equation does not give the answer"),
        ("It is 13 / 100 = 13%\n#### 13", "13", ""),
        ("It is 1300 / 100 = 13\n#### 1300", "1300", "its last equation does not give the answer"),
        ("Some + 8 = 13\n#### 13", "13", "it has an equation that cannot be read"),
        ("5 + 8 = all\n#### 13", "13", "it has an equation that cannot be read"),
    ],
)
def test_flaws_by_hand(rationale, answer, reason):
    assert flaw(QUESTION, rationale, answer) == reason


def test_a_noisy_question_is_a_flaw():
    assert flaw("Drink is 0.6666666666666666 water.", "5 + 8 = 13\n#### 13", "13") == "it has a number with more than 4 decimals"


def small_equations(rationale: str) -> list[tuple[Decimal, str, Decimal, Decimal]]:
    """Every `a op b = c` that stands alone once all words, units and currencies are gone: a second way, far simpler than the first.

    "12 fewer than the 84, so 84 - 12 = 72 pears" -> "12 84 84 - 12 = 72" -> (84, -, 12, 72). Longer sums, brackets and percents are passed over.
    """
    found = []
    for line in rationale.split("\n"):
        if re.search(r"\d[a-z][+=]", line):  # 2x+90
            continue
        line = re.sub(r"(?<=\d),(?=\d{3})|[€$£]|/ ?[a-z]+|-[a-z]+", "", line.replace("half *", "0.5 *"))
        bare = " ".join(re.findall(r"\d*\.?\d+|[-+*/×÷()%=]|\bx\b", line))
        for a, op, b, c in re.findall(r"(?:(?<=^)|(?<=[\d=] ))([\d.]+) ([-+*/×÷x]) ([\d.]+) = ([\d.]+)(?= [\d=]|$)", bare):
            found.append((Decimal(a), op, Decimal(b), Decimal(c)))
    return found


def holds(a: Decimal, op: str, b: Decimal, c: Decimal) -> bool:
    return {"+": a + b == c, "-": a - b == c, "/": a == b * c, "÷": a == b * c}.get(op, a * b == c)


def test_a_second_and_simpler_check_agrees():
    samples = drawn("train", 600)[0]
    found = 0
    for s in samples:
        for equation in small_equations(s.rationale):
            assert holds(*equation), (equation, s.rationale)
            found += 1
    equals = sum(s.rationale.count("=") for s in samples)
    assert found > 0.7 * equals, (found, equals)


def test_the_second_check_finds_wrong_ones_by_itself():
    """So its agreement above says something."""
    wrong = [rationale for _, question, rationale, answer in candidates() if flaw(question, rationale, answer) == "it has a wrong equation"]
    seen = sum(not all(holds(*equation) for equation in small_equations(r)) for r in wrong)
    assert len(wrong) >= 20 and seen > 0.5 * len(wrong), (seen, len(wrong))


def test_every_planted_mistake_is_found():
    """The last result of each line that calculates becomes one more."""
    planted = 0
    for s in drawn("val", 150)[0]:
        lines = s.rationale.split("\n")
        for i, line in enumerate(lines):
            before, equals, after = line.rpartition("=")
            number = re.match(r"[ €$£]*([\d,]*\.?\d+)", after)
            if number and re.search(r"\d.*[-+*/×÷x].*\d", before):
                more = Decimal(number.group(1).replace(",", "")) + 1
                changed = before + equals + after[: number.start(1)] + str(more) + after[number.end(1) :]
                assert flaw(s.prompt, "\n".join([*lines[:i], changed, *lines[i + 1 :]]), s.answer), changed
                planted += 1
    assert planted > 400, planted


# --- What is given out ---


def test_rationales_have_a_step_a_line_and_end_in_the_answer():
    for split in SPLITS:
        samples, _ = drawn(split, 300)
        assert [s.id for s in samples] == list(range(300))
        assert len({s.prompt for s in samples}) == 300
        for s in samples:
            *steps, last = s.rationale.split("\n")
            assert last == f"#### {s.answer}" and re.fullmatch(r"[1-9]\d*", s.answer)
            assert steps and all(step == step.strip() and step and step[0] not in "-•#" for step in steps)
            assert not re.search(r"step by step|^\d+\. .*:$", s.rationale, re.MULTILINE)
            assert "Do not include units" not in s.prompt and s.prompt == s.prompt.strip()
            assert flaw(s.prompt, s.rationale, s.answer) == ""
            assert re.fullmatch(r"gsm-symbolic/\d\d?", s.source)


def test_no_problem_is_in_two_splits_whatever_the_seeds_and_names():
    def keys(split, seed):
        return {(s.source, *re.findall(r"\d[\d.,]*", s.prompt)) for s in drawn(split, 250, seed)[0]}

    for a, b in itertools.combinations(SPLITS, 2):
        for one, other in itertools.product((0, 1), repeat=2):
            assert not keys(a, one) & keys(b, other)


def test_names_do_not_decide_the_split():
    question = "Emma can peel 5 clams a minute. How long for 120 clams?"
    assert split_of(0, question) == split_of(0, question.replace("Emma", "Olivia").replace("clam", "onion"))
    splits = Counter(split_of(0, question.replace("5", str(i))) for i in range(4000))
    assert abs(splits["train"] - 2000) < 130 and abs(splits["val"] - 1000) < 110 and abs(splits["test"] - 1000) < 110


def test_the_same_seed_gives_the_same_and_more_is_the_same_and_more():
    long, dropped = drawn("train", 300)
    short, fewer = symbolic("train", 100)
    assert long[:100] == short and symbolic("train", 300) == (long, dropped)
    assert all(fewer[reason] <= dropped[reason] for reason in fewer)
    assert symbolic("train", 0) == ([], Counter())


def test_neighbouring_seeds_share_next_to_nothing():
    """PITFALLS: reasoning-gym seeds its items seed + index, so seeds 0 and 1 of its own would share all but one problem."""
    a, b = ({s.prompt for s in drawn("train", 300, seed)[0]} for seed in (0, 1))
    assert len(a & b) < 6


def test_a_template_comes_with_all_its_names_and_numbers():
    """With item 0 of each block of one, the template and the first name would come from the same bits."""
    words, templates = defaultdict(set), Counter()
    for template, question, _, _ in candidates():
        templates[template] += 1
        words[template].add(" ".join(question.split()[:8]))
    assert len(templates) == 85
    assert sum(len(words[t]) > 1 for t in templates) >= 80
    assert sum(len({q for t, q, _, _ in candidates() if t == template}) == n for template, n in templates.items()) >= 75


def test_what_is_left_out_is_counted_by_reason():
    """The slow way: look at every candidate again."""
    samples, dropped = drawn("test", 200)
    kept, reasons = [], Counter()
    for template, question, rationale, answer in problems(0):
        if split_of(template, question) == "test":
            reason = "repeated" if question in kept else flaw(question, rationale, answer)
            if reason:
                reasons[reason] += 1
            else:
                kept.append(question)
        if len(kept) == 200:
            break
    assert kept == [s.prompt for s in samples] and reasons == dropped and sum(dropped.values()) > 0


def test_one_in_twenty_is_left_out_and_one_template_always():
    reasons = Counter((template, bool(flaw(question, rationale, answer))) for template, question, rationale, answer in candidates())
    share = sum(n for (_, bad), n in reasons.items() if bad) / len(candidates())
    assert 0.03 < share < 0.08
    assert {t for t, _ in reasons} - {t for t, bad in reasons if not bad} == {66}


def test_tidy_by_hand():
    raw = (
        "Let's solve this step by step:\n\n1. Initial amounts:\n   • William has 52 apple\n   • 52 × 3 = 156 orange\n\n2. Bought at store:\n"
        "   - 13÷1/2=26 minutes\n\nTherefore, 26 - 20 = 6.\n#### 6.0"
    )
    assert tidy(raw) == "William has 52 apple\n52 × 3 = 156 orange\n13÷(1/2)=26 minutes\nTherefore, 26 - 20 = 6.\n#### 6"
    plain = "John = 3 points: all of them\n3 - 1 = 2.0\n#### 20"
    assert tidy(plain) == plain


# --- Mistakes ---


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="'dev' is no split of gsm-symbolic; ask for train, val or test"):
        symbolic("dev", 3)


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="needs the package reasoning-gym; run pip install reasoning-gym"):
        symbolic("train", 3)


def test_running_out_is_said(monkeypatch):
    """No seed gets there: the templates have far more problems than anyone asks for."""
    item = (0, "What are 5 and 8?", "5 + 8 = 13\n#### 13", "13")
    monkeypatch.setattr(module, "problems", lambda seed: itertools.repeat(item))
    split = split_of(*item[:2])
    assert len(symbolic(split, 1)[0]) == 1
    with pytest.raises(UserError, match=f"has no more than 1 problems in its {split} split; ask for fewer than 2"):
        symbolic(split, 2)
