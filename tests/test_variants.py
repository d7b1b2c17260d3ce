"""The variants' measures: equations by hand, tokens against their texts, log-likelihoods against the slow way, and the law of pairs."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite import variants
from adaback_lite.config import TaskSettings
from adaback_lite.errors import UserError
from adaback_lite.sft import held_out_loss, rationale_loss
from adaback_lite.tasks import Sample
from adaback_lite.tasks.base7 import convert
from adaback_lite.tasks.gsm8k import load_gsm8k
from adaback_lite.tasks.symbolic import symbolic
from adaback_lite.variants import equations, numerals, of_pairs, pair_nats, surprise, surprise_difference, surprise_table, token_kinds, truths, variant_tasks

from . import helpers  # noqa: F401  (the hypothesis profile)
from .language import CHATML, GSM8K, byte_model, byte_tokenizer

SETTINGS = TaskSettings(name="gsm-symbolic", shots=1, max_new=64)


def problem(i: int, a: int, b: int) -> Sample:
    return Sample(i, f"Ann has {a} pens and buys {b}. How many?", f"She has {a} + {b} = {a + b} pens.\n#### {a + b}", f"{a + b}", "made-up")


PROBLEMS = [problem(i, a, b) for i, (a, b) in enumerate([(3, 4), (10, 7), (6, 1), (25, 25), (48, 3), (9, 90)])]

# --- equations ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("That is 4*67 = 268 eggs", [("4*67", "268")]),
        ("He pays $1,400 + $400 = $1,800.", [("1,400 + 400", "1,800")]),
        ("(2 + 3) × 4 = 20 and 20÷5=4", [("(2 + 3) * 4", "20"), ("20/5", "4")]),
        ("2*3 + 4 = 6 + 4 = 10", [("6 + 4", "10")]),  # the first side's right goes on
        ("[5/13] * 4 = 2", [("[5/13] * 4", "2")]),
        ("[5/13] = [5/13] and 1/2 = 0.5", [("1/2", "0.5")]),  # in brackets it is a number
        ("3 apples * 14 + 2 = 44", []),  # a part of an expression is none
        ("John = 212, x + 2 = 3, 50% of 4 = 2", []),
        ("3 / 6 = 50.0% and 20/100 = 20% of it", []),
        ("The edges are 2(57+22) = 158", [("2*(57+22)", "158")]),
        ("There are 90 questions x 40/100 = 36", []),
        ("2 + 1 1/2 = 7/2, 3 / 4 * 2 = 1 1/2, 16 000 + 1 = 16 001 and 100/5 = 5A", []),
    ],
)
def test_equations_by_hand(text, found):
    assert equations(text) == found


def test_truths_by_hand():
    """3 + 4 = 7 and so on hold in base 10; read in base 7, those with an 8 or 9 cannot be read and 25 + 25 = 50 means 19 + 19 = 35."""
    assert truths(PROBLEMS, 10) == (6, 6)
    assert truths(PROBLEMS, 7) == (6, 0)
    kept, _ = convert(PROBLEMS)
    assert kept[3].rationale == "She has 34 + 34 = 101 pens.\n#### 101"
    assert truths(kept, 7) == (6, 6)
    assert truths(kept, 10) == (6, 1)  # 13 + 10 = 23, which is 10 + 7 = 17, is true in base 10 by accident
    assert truths([Sample(0, "", "48/2 = <<48/2=24>>24, 1 + 1 = 3\n#### 24", "24")], 10) == (1, 1)  # where there are notes, only they count
    assert truths([Sample(0, "", "48/2 = <<48/2=25>>25\n#### 25", "25")], 10) == (1, 0)


def test_every_equation_of_made_up_problems_is_true_in_both_bases():
    samples, _ = symbolic("val", 150, 0)
    kept, dropped = convert(samples)
    n, true = truths(samples, 10)
    assert n == true > 250
    assert truths(kept, 7) == truths([s for s in samples if convert([s])[0]], 10) and len(kept) + sum(dropped.values()) == 150
    assert truths(kept, 10)[1] < n / 2


def test_every_note_of_gsm8k_is_true_in_base_7():
    samples = load_gsm8k(str(GSM8K))["val"]
    kept, _ = convert(samples)
    n, true = truths(kept, 7)
    assert n == true > 1000
    assert truths(kept, 10)[1] < n / 2


# --- the same problems ---


def tasks(shots: int = 1):
    return variant_tasks(byte_tokenizer(CHATML), PROBLEMS, SETTINGS.model_copy(update={"shots": shots}))


def test_variants_hold_the_same_problems():
    made = tasks()
    assert list(made) == list(variants.VARIANTS) and [t.base for t in made.values()] == [10, 7, 10]
    assert [s.prompt for s in made["plain"].val] == [s.prompt for s in PROBLEMS[2:]]
    assert convert(made["plain"].val)[0] == [s.__class__(s.id, s.prompt, s.rationale, s.answer, f"{s.source}/base7") for s in made["base 7"].val]
    plain = {s.source: s for s in made["plain"].val}
    assert sorted(n for s in made["pairs"].val for n in s.source.split("+")) == sorted(plain)
    for s in made["pairs"].val:
        assert s.rationale == "\n".join(plain[n].rationale for n in s.source.split("+"))
    assert "base 7" in made["base 7"].instruction and "one after the other" in made["pairs"].instruction
    assert made["plain"].demonstrations == [(PROBLEMS[0].prompt, PROBLEMS[0].rationale)]
    assert "Problem 2" in made["pairs"].demonstrations[0][0] and "#### 10\n" in made["base 7"].demonstrations[0][1] + "\n"
    assert [len(t.demonstrations) for t in tasks(0).values()] == [0, 0, 0]


def test_what_base_7_cannot_hold_is_in_no_variant():
    odd = Sample(9, "Ann waits 8.333... days", "She does.\n#### 1", "1", "made-up")
    made = variant_tasks(byte_tokenizer(CHATML), [*PROBLEMS, odd], SETTINGS)
    assert [s.prompt for s in made["plain"].val] == [s.prompt for s in PROBLEMS[2:]]
    with pytest.raises(UserError, match="3 problems are too few .* give at least 4"):
        variant_tasks(byte_tokenizer(CHATML), [*PROBLEMS[:3], odd], SETTINGS)


# --- surprise ---


def test_numerals_and_their_kinds():
    text = "He has $1,400 * 0.5 = 1/2 * 1,400 = $700, = -[2/13]\n#### 700"
    assert [(text[a:b], kind) for a, b, kind in numerals(text)] == [
        ("1,400", "numbers"), ("0.5", "numbers"), ("1", "numbers"), ("2", "numbers"), ("1,400", "numbers"), ("700", "results"), ("[2/13]", "results"), ("700", "numbers"),
    ]  # fmt: skip


def test_token_kinds_letter_by_letter():
    """With one token a byte, each character has the kind of the numeral it stands in. € has three bytes, all words."""
    task = tasks()["plain"]
    sample = Sample(0, "?", "It is €48/2 = €24.\n#### 24", "24")
    text = task.text(sample)
    kinds = token_kinds(task, sample)
    assert len(kinds) == len(text.encode()) + 1
    one_each = [k for c, k in zip(text.encode(), kinds) if c < 128]
    shown = "".join({"words": "w", "numbers": "n", "results": "r"}[k] for k in one_each)
    assert shown == "It is 48/2 = 24.\n#### 24".translate({ord(c): "w" for c in "It is/=.\n# "}).replace("48", "nn").replace("w2w", "wnw")[:13] + "rr" + "w" * 7 + "nn"
    assert set(k for c, k in zip(text.encode(), kinds) if c >= 128) == {"words"}


def test_surprise_adds_up_to_the_loss():
    """Over all kinds it is `rationale_loss` for each problem, and `held_out_loss` over all, with any limit."""
    model = byte_model(context=2048)
    for task in tasks().values():
        frame = surprise(model, task)
        assert frame.nats.sum() / frame.tokens.sum() == pytest.approx(held_out_loss(model, task, 0, 4096), rel=1e-5)
        for sample in task.val:
            own = frame[frame.problem == sample.source]
            loss, n = rationale_loss(model, task, [sample], 0)
            assert own.tokens.sum() == n and own.nats.sum() == pytest.approx(n * float(loss.detach()), rel=1e-4)
        small = surprise(model, task, limit=1).sort_values(["problem", "kind"], ignore_index=True)
        pd.testing.assert_frame_equal(small, frame.sort_values(["problem", "kind"], ignore_index=True), rtol=1e-4)


def test_surprise_of_a_kind_is_that_of_its_tokens():
    """A model whose output layer is 0 gives every token of the vocabulary the same chance."""
    model, task = byte_model(context=2048), tasks()["plain"]
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    frame = surprise(model, task)
    assert (frame.nats - frame.tokens * math.log(model.config.vocab_size)).abs().max() < 1e-3
    by = frame.groupby("kind").tokens.sum()
    texts = [s.rationale for s in PROBLEMS[2:]]
    digits = sum(c.isdigit() for t in texts for c in t)
    results = sum(len(t.split("= ")[1].split()[0]) for t in texts)
    assert by["results"] == results and by["numbers"] == digits - results and by["words"] == sum(map(len, texts)) - digits + len(texts)


def frame(rows):
    return pd.DataFrame(rows, columns=["problem", "kind", "tokens", "nats"])


SINGLES = frame([(p, k, t, n) for p, n in (("2", 1.0), ("3", 2.0), ("4", 4.0)) for k, t in (("words", 2), ("numbers", 1), ("results", 1))])
PAIRS = frame([("3+2", "words", 4, 3.0), ("3+2", "numbers", 2, 3.0), ("3+2", "results", 2, 2.5)])


def test_table_difference_and_pairs_by_hand():
    table = surprise_table({"plain": SINGLES, "pairs": PAIRS})
    assert table[table.kind == "words"].to_dict("records") == [
        {"variant": "plain", "kind": "words", "problems": 3, "tokens": 6, "nats a token": 7 / 6, "nats a problem": 7 / 3},
        {"variant": "pairs", "kind": "words", "problems": 2, "tokens": 4, "nats a token": 0.75, "nats a problem": 1.5},
    ]
    assert pair_nats(SINGLES, PAIRS) == [(9.0, 8.5)]
    other = SINGLES.assign(nats=SINGLES.nats + [3 if k == "results" and p == "4" else 0 for p, k in zip(SINGLES.problem, SINGLES.kind)])
    rows = surprise_difference(SINGLES, other.sample(frac=1, random_state=0)).set_index("kind")  # in any order: problems are matched by name
    assert rows.difference.to_dict() == {"words": 0.0, "numbers": 0.0, "results": 1.0}
    assert rows.low["results"] == 0 and rows.high["results"] == 3


def test_the_chart_shows_what_the_table_says():
    spec = variants.surprise_chart(surprise_table({"plain": SINGLES, "pairs": PAIRS})).to_dict()
    shown = [r["value"] for panel in spec["hconcat"] for r in panel["layer"][0]["data"]["values"]] if "data" in spec["hconcat"][0]["layer"][0] else None
    shown = shown or [r["value"] for panel in spec["hconcat"] for r in panel["data"]["values"]]
    assert len(shown) == 12 and 7 / 6 in shown and 1.5 in shown


# --- pairs ---


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_pairs_by_hand(s):
    """Measured at 0, 1/2 and 1: a quarter of a pair is half of its first problem, three quarters is half of its second."""
    assert of_pairs([0, 0.5, 1], s, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([s[0] ** 2, s[1] * s[0], s[0], s[1], s[2]])
    assert of_pairs([1, 0, 0.5], [s[2], s[0], s[1]], [0.75]) == pytest.approx([s[1]])
    assert of_pairs([0, 0.5, 1], s, [0.875]) == pytest.approx([(s[1] + s[2]) / 2])


def test_pairs_need_both_ends():
    with pytest.raises(UserError, match="from 0.25 to 1, but pairs need the success at 0 and 1"):
        of_pairs([0.25, 1], [0.1, 0.9], [0.5])


def test_the_papers_table():
    table = variants.paper_results()
    assert table.shape == (8, 3)
    assert table.loc[("Llama 3.2 3B", "AdaBack")].to_dict() == {"GSM8K": 73.3, "Base-7": 43.9, "Tensor-2": 49.2}
    assert table.loc[("Llama 3.2 1B", "SFT+AdaBack")].to_dict() == {"GSM8K": 43.2, "Base-7": 24.5, "Tensor-2": 11.3}
