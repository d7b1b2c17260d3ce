"""How success depends on how much is revealed: the curve that every curriculum in this library walks along.

At each share the same problems are tried, with the same noise, by the same policy. Two numbers come out: the chance that an
output is right, and the share of groups that hold both right and wrong outputs. Only those carry a gradient for GRPO.
"""

from collections.abc import Sequence

import pandas as pd

from .evaluate import interval, wilson
from .evaluation import evaluations_of
from .runs import Run

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def success_by_share(run: Run, shares: Sequence[float] = SHARES, samples: int = 8, n: int | None = None, split: str = "val", progress: bool = False) -> pd.DataFrame:
    """A row for each revealed share, for the newest policy of a run: resumable, kept in the run's folder like any evaluation.

    Columns: share, problems, samples (outputs a problem, the group size), right (mean share of right outputs) with low and high
    (95 % interval over problems), mixed (share of groups with right and wrong outputs) with mixed_low and mixed_high (Wilson),
    unparseable, tokens (written in all).
    """
    rows = []
    for share in shares:
        (evaluation,) = evaluations_of(run, samples, split, n, None, progress, share)
        each, kinds = evaluation.passes(1), [k for p in evaluation.problems for k in p["kinds"]]
        mixed = sum(0 < x < 1 for x in each)
        low, high = interval(each, samples, run.config.seed)
        mixed_low, mixed_high = wilson(mixed, len(each))
        rows.append(
            {
                "share": share, "problems": len(each), "samples": samples,
                "right": sum(each) / len(each), "low": low, "high": high,
                "mixed": mixed / len(each), "mixed_low": mixed_low, "mixed_high": mixed_high,
                "unparseable": kinds.count("unparseable") / len(kinds), "tokens": sum(t for p in evaluation.problems for t in p["tokens"]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
