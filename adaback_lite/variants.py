"""What the paper's variants are and what they do to a model: equations checked in both bases, tokens that surprise, the law of pairs.

    truths(samples, base)              how many equations of the texts are true when read in a base
    variant_tasks(tokenizer, samples)  the same problems plain, in base 7, and in pairs
    surprise(model, task)              negative log-likelihood of the rationales, by kind of token
    of_pairs(shares, singles, at)      the success of pairs that the success of single problems leads one to expect
    paper_results()                    the paper's accuracies on GSM8K and its variants
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd
import torch

from . import charts
from .config import TaskSettings
from .errors import UserError
from .evaluate import make_prefix
from .evaluation import paired_interval
from .language_charts import token_texts
from .packing import microbatches, packed_logprobs
from .tasks import Sample
from .tasks.base7 import check_notes, convert, evaluate
from .tasks.tensor import tensor
from .tasks.text import TextTask

VARIANTS = {"plain": "", "base 7": "-base7", "pairs": "-tensor2"}  # what is told to a reader: the end of the task's name
KINDS = {"words": "words and signs", "numbers": "numbers, not after =", "results": "numbers after ="}

# ---------------------------------------------------------------- equations

_SIDE = r"\(*[\[0-9][-+*/()\[\]0-9., ×÷]*[0-9\])]"
_RIGHT = r"(?>\[[0-9,]+/[0-9]+\]|[0-9]+(?:[.,][0-9]+)*)"
_EQUATION = re.compile(rf"(?<![\w.,%)\]])(?<![-+*/×÷(\[])(?<![-+*/×÷(x] )(?P<left>{_SIDE}) ?= ?(?P<right>{_RIGHT})(?![%\w])(?! ?[-+*/×÷x] ?[0-9(\[])(?! [0-9])")


def equations(text: str) -> list[tuple[str, str]]:
    """Both sides of each equation "48 / 2 = 24" between bare numbers, × and ÷ written as * and /, and 2(5 + 7) with its *. Currency signs are read over.

    An equation with words, units, unknowns, per cent or mixed numbers (1 1/2) in it is not found, nor is one without a sign of arithmetic on its left, or
    one whose right side goes on ("= 3 * 4 = 12" has one equation, of the last two sides).
    """
    found = []
    for m in _EQUATION.finditer(re.sub("[$€£¥]", "", text)):
        left = re.sub(r"(?<=[0-9)]) ?\(", "*(", m["left"].replace("×", "*").replace("÷", "/"))
        spaced = re.search(r"[0-9] +[0-9]", left)  # 1 1/2, or 16 000
        if not spaced and re.search(r"[0-9)\]] ?[-+*/]", re.sub(r"\[[0-9,]+/[0-9]+\]", "1", left)):  # the line of a fraction [2/13] is no sign of arithmetic
            found.append((left, m["right"]))
    return found


def truths(samples: Sequence[Sample], base: int) -> tuple[int, int]:
    """(equations in the rationales, how many of them are exactly true in `base`): calculator notes where these samples have any, else `equations`.

    One that cannot be read in `base`, as 9 in base 7, is not true.
    """
    checked = [ok is True for sample in samples for _, ok in check_notes(sample.rationale, base)]
    if not checked:
        sides = [(evaluate(left, base), evaluate(right, base)) for sample in samples for left, right in equations(sample.rationale)]
        checked = [left is not None and left == right for left, right in sides]
    return len(checked), sum(checked)


# ---------------------------------------------------------------- the same problems in each form


def variant_tasks(tokenizer, samples: Sequence[Sample], settings: TaskSettings) -> dict[str, TextTask]:
    """The same problems "plain", in "base 7" and in "pairs", each a task that holds them as its val (and train and test).

    The first samples serve as the demonstrations that `settings.shots` asks for, converted as the problems are. A sample that base 7
    cannot hold is in none of the three. In all of them a problem's `source` is its place, "3", and a pair's is "3+7".
    """
    kept = [s for s in samples if convert([s])[0]]
    numbered = [replace(s, id=i, source=str(i)) for i, s in enumerate(kept)]
    shots = 2 * settings.shots  # a demonstration of pairs takes two
    if len(numbered) < shots + 2:
        raise UserError(f"{len(numbered)} problems are too few to compare the variants on with {settings.shots} worked examples; give at least {shots + 2}.")
    forms = {"plain": lambda s: s, "base 7": lambda s: [replace(x, source=x.source.removesuffix("/base7")) for x in convert(s)[0]], "pairs": lambda s: tensor(s, 2, "variants")}
    tasks = {}
    for variant, form in forms.items():
        problems, solved = form(numbered[shots:]), form(numbered[:shots])[: settings.shots] if shots else []
        named = settings.model_copy(update={"name": settings.name + VARIANTS[variant]})
        tasks[variant] = TextTask(tokenizer, problems, problems, problems, named, solved, base=7 if variant == "base 7" else 10)
    return tasks


# ---------------------------------------------------------------- surprise

_NUMERAL = re.compile(r"\[[0-9,]+/[0-9]+\]|[0-9]+(?:[.,][0-9]+)*")
_GOES_ON = re.compile(r" ?[-+*/×÷x] ?[0-9(\[]")


def numerals(text: str) -> list[tuple[int, int, str]]:
    """(start, end, kind) of each numeral: "results" where it stands after an "=" and no arithmetic follows, else "numbers"."""
    spans = []
    for m in _NUMERAL.finditer(text):
        after = re.search(r"= ?[-$€£¥]*$", text[: m.start()]) and not _GOES_ON.match(text, m.end())
        spans.append((m.start(), m.end(), "results" if after else "numbers"))
    return spans


def token_kinds(task: TextTask, sample: Sample) -> list[str]:
    """The kind of each token of a rationale, and of the end token after it: "results", "numbers" or "words". A token with any part of a numeral counts with that."""
    spans, kinds, start = numerals(task.text(sample)), [], 0
    for text in token_texts(task.tokenizer, task.rationale_ids(sample)):
        end = start + len(text)
        kinds.append(next((kind for a, b, kind in spans if a < end and start < b), "words"))
        start = end
    return [*kinds, "words"]


@torch.no_grad()
def surprise(model, task: TextTask, limit: int = 4096) -> pd.DataFrame:
    """How unexpected the rationales of task.val are to a model: a row for each problem and kind of token, "problem", "kind", "tokens" and "nats".

    Nats are the negative natural logarithm of the probability, summed over the tokens; the model reads the prompt and the true tokens before
    each. The sum over a problem's kinds is the negative logarithm of the chance to write just this rationale. `limit`: padded tokens of one pass.
    """
    samples, pad = task.val, task.tokenizer.pad_token_id
    prefixes = [make_prefix(task, s) for s in samples]
    targets = [task.rationale_ids(s) + [task.tokenizer.eos_token_id] for s in samples]
    rows = []
    for batch in microbatches([len(p.ids) for p in prefixes], [len(t) for t in targets], 1, limit):
        S = max(len(targets[b]) for b in batch)
        tokens = torch.tensor([targets[b] + [pad] * (S - len(targets[b])) for b in batch])[:, None]  # [N, 1, S]
        mask = torch.arange(S) < torch.tensor([len(targets[b]) for b in batch])[:, None, None]  # [N, 1, S]
        logp, _ = packed_logprobs(model, [prefixes[b] for b in batch], tokens, mask, pad)
        for b, values in zip(batch, logp[:, 0].tolist()):
            kinds = token_kinds(task, samples[b])
            for kind in KINDS:
                nats = [-v for v, k in zip(values, kinds) if k == kind]
                rows.append({"problem": samples[b].source, "kind": kind, "tokens": len(nats), "nats": sum(nats)})
    return pd.DataFrame(rows)


def surprise_table(by_variant: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each variant and kind of token: problems, tokens, "nats a token" and "nats a problem" (a pair counts as two problems)."""
    rows = []
    for variant, frame in by_variant.items():
        problems = sum(name.count("+") + 1 for name in frame.problem.unique())
        for kind, part in frame.groupby("kind", sort=False):
            tokens, nats = int(part.tokens.sum()), float(part.nats.sum())
            each = nats / tokens if tokens else 0.0
            rows.append({"variant": variant, "kind": kind, "problems": problems, "tokens": tokens, "nats a token": each, "nats a problem": nats / problems})
    return pd.DataFrame(rows)


def surprise_difference(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """How many more nats a problem `b` costs than `a`, on the same problems: a row for each kind, with a 95 % interval (bootstrap over problems)."""
    rows = []
    for kind in KINDS:
        sides = [frame[frame.kind == kind].set_index("problem").nats for frame in (a, b)]
        difference = (sides[1] - sides[0]).to_numpy()
        low, high = paired_interval(difference.tolist())
        rows.append({"kind": kind, "difference": float(difference.mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def pair_nats(singles: pd.DataFrame, pairs: pd.DataFrame) -> list[tuple[float, float]]:
    """For each pair: (nats of its two problems asked apart, added up; nats of both in one prompt)."""
    alone, together = singles.groupby("problem").nats.sum(), pairs.groupby("problem").nats.sum()
    return [(float(sum(alone[name] for name in pair.split("+"))), float(nats)) for pair, nats in together.items()]


def surprise_chart(table: pd.DataFrame) -> alt.HConcatChart:
    """What `surprise_table` says, as bars: nats a token, and nats a problem, of each kind of token in each variant."""
    variants, colours = list(dict.fromkeys(table.variant)), charts.colours_of(dict.fromkeys(table.variant))
    panels = []
    for value in ("nats a token", "nats a problem"):
        rows = [{"variant": r["variant"], "kind": KINDS[r["kind"]], "value": r[value], "tokens": r["tokens"]} for r in table.to_dict("records")]
        base = alt.Chart(alt.Data(values=rows)).encode(
            alt.Y("kind:N", title=None, sort=list(KINDS.values()), axis=alt.Axis(labelLimit=200) if not panels else None),
            yOffset=alt.YOffset("variant:N", sort=variants),
        )
        bars = base.mark_bar().encode(
            alt.X("value:Q", title=value),
            color=alt.Color("variant:N", title=None, sort=variants, scale=alt.Scale(domain=variants, range=[colours[v] for v in variants])),
            tooltip=["variant:N", "kind:N", alt.Tooltip("value:Q", title=value, format=".2f"), alt.Tooltip("tokens:Q", title="tokens")],
        )
        text = base.mark_text(align="left", dx=3, fontSize=10).encode(alt.X("value:Q"), text=alt.Text("value:Q", format=".2f" if value == "nats a token" else ".1f"))
        panels.append(alt.layer(bars, text).properties(width=230, height=28 * len(KINDS) * max(len(variants), 2) // 2))
    return (
        alt.hconcat(*panels, spacing=25)
        .properties(title=alt.TitleParams("What surprises the model", anchor="start", offset=10))
        .configure_view(strokeWidth=0)
        .configure_axis(grid=True, gridColor="#EEEEEE")
    )


# ---------------------------------------------------------------- pairs


def of_pairs(shares: Sequence[float], singles: Sequence[float], at: Sequence[float]) -> list[float]:
    """The success of pairs at the revealed shares `at` that follows from the success `singles` of single problems at `shares` (0 and 1 among them).

    What is revealed is the beginning, so a pair's first problem is shown whole before anything of its second is. With equally long
    rationales, and problems that do not disturb each other, the success is s(2ρ) s(0) below ρ = 1/2, and s(2ρ - 1) from there on.
    Between the measured shares s is a straight line.
    """
    order = np.argsort(shares)
    x, y = np.asarray(shares, dtype=float)[order], np.asarray(singles, dtype=float)[order]
    if not (x[0] == 0 and x[-1] == 1):
        raise UserError(f"The shares go from {x[0]:g} to {x[-1]:g}, but pairs need the success at 0 and 1 and between; measure single problems there too.")
    s = lambda share: float(np.interp(share, x, y))  # noqa: E731
    return [s(2 * rho) * s(0) if rho < 0.5 else s(2 * rho - 1) for rho in at]


# ---------------------------------------------------------------- the paper

PAPER = "the paper's own numbers (arXiv 2506.18110: Llama 3.2, test accuracy in %), after secondary notes on it; not measured here"
_PAPER = {  # method: GSM8K, Base-7, Tensor-2 with 1B; then with 3B
    "Base+RL": (7.9, 4.8, 0.0, 63.7, 4.9, 0.0),
    "SFT+RL": (36.7, 14.4, 6.9, 72.7, 45.4, 42.7),
    "AdaBack": (39.2, 18.4, 8.5, 73.3, 43.9, 49.2),
    "SFT+AdaBack": (43.2, 24.5, 11.3, 70.7, 49.9, 42.2),
}


def paper_results() -> pd.DataFrame:
    """The paper's test accuracies in per cent, a row for each model and method: columns GSM8K, Base-7 and Tensor-2. `PAPER` says where they come from."""
    rows = [
        {"model": f"Llama 3.2 {size}", "method": method, "GSM8K": v[i], "Base-7": v[i + 1], "Tensor-2": v[i + 2]}
        for i, size in ((0, "1B"), (3, "3B"))
        for method, v in _PAPER.items()
    ]
    return pd.DataFrame(rows).set_index(["model", "method"])
