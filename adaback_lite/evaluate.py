"""How good a policy is, with nothing revealed: pass@1, pass@k, intervals."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from .config import Config
from .curricula import tokens_shown
from .packing import Prefix
from .rollout import Rollouts, sample_rollouts
from .seeding import numpy_generator, torch_generator
from .tasks import Sample, Verdict


@dataclass(frozen=True)
class Judged:
    """Outputs with their verdicts, [B][G]."""

    outputs: list[list[str]]
    verdicts: list[list[Verdict]]

    def share(self, kind: str) -> float:
        """Share of the outputs that are 'right', 'wrong', 'unparseable' or 'timeout'."""
        kinds = [v.kind == kind for group in self.verdicts for v in group]
        return sum(kinds) / len(kinds)


def make_prefix(task, sample: Sample, shown: int = 0) -> Prefix:
    """What the rollouts of a sample share: its prompt, then the first `shown` tokens of its rationale."""
    ids, positions, start = task.prompt_ids(sample)
    return Prefix(ids + task.rationale_ids(sample)[:shown], positions + list(range(start, start + shown)), start + shown, task.max_new(sample, shown))


def shown_at(rho: float, task, sample: Sample, config: Config) -> int:
    """Tokens of a sample's rationale that are revealed at a share rho, with the run's unit of cutting; never the answer."""
    c = config.curriculum
    return tokens_shown(rho, task.step_ends(sample), c.unit, max(c.min_hidden, task.answer_tokens(sample)))


def judge(task, tokenizer, samples: list[Sample], shown: list[int], rollouts: Rollouts) -> Judged:
    """Verify every rollout, the revealed prefix in front of it. One cut at the length limit is unparseable: it never ended.

    Special tokens are kept in the text, so that an output with a foreign token in it cannot pass for a right one.
    """
    B, G, _ = rollouts.tokens.shape
    lengths = (rollouts.mask.sum(dim=2) - rollouts.ended.long()).tolist()  # [B, G] without the end token
    tokens, ended = rollouts.tokens.tolist(), rollouts.ended.tolist()
    revealed = [task.rationale_ids(s)[:k] for s, k in zip(samples, shown)]
    texts = tokenizer.batch_decode([revealed[b] + tokens[b][g][: lengths[b][g]] for b in range(B) for g in range(G)], skip_special_tokens=False)
    outputs = [texts[b * G : (b + 1) * G] for b in range(B)]
    cut = Verdict("unparseable", why="cut at the length limit")
    verdicts = [[task.verify(samples[b], outputs[b][g]) if ended[b][g] else cut for g in range(G)] for b in range(B)]
    return Judged(outputs, verdicts)


def evaluate(model, tokenizer, task, samples: list[Sample], k: int = 1, seed: int = 0, temperature: float = 1.0, rows: int = 512) -> Judged:
    """k sampled outputs for each sample, nothing revealed. The same seed gives the same noise, whatever the model: runs can be compared in pairs."""
    prefixes = [make_prefix(task, s) for s in samples]
    noise = torch.rand(len(samples), k, max(p.max_new for p in prefixes), generator=torch_generator(seed, "evaluate"))
    rollouts = sample_rollouts(model, prefixes, noise, tokenizer.eos_token_id, tokenizer.pad_token_id, temperature, rows)
    return judge(task, tokenizer, samples, [0] * len(samples), rollouts)


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval for a share of `right` in `n` (Wilson's score). 0 of 100 gives (0, 0.037), not (0, 0)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, z * z
    centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max((centre - half) / (1 + z2 / n), 0.0), min((centre + half) / (1 + z2 / n), 1.0)


def interval(values: list[float], k: int, seed: int = 0, draws: int = 4000) -> list[float]:
    """95 % interval of the mean of one value a problem.

    k = 1: Wilson's, with one trial a problem; where several outputs were sampled of each that is on the wide side, never too narrow.
    Otherwise a percentile bootstrap over problems; where all problems have the same value, which would give a width of 0, Wilson's again.
    """
    if k == 1 or min(values) == max(values):
        return list(wilson(sum(values), len(values)))
    v, rng = np.asarray(values), numpy_generator(seed, "bootstrap", k)
    means = [float(v[rng.integers(0, len(v), len(v))].mean()) for _ in range(draws)]
    return [float(q) for q in np.quantile(means, [0.025, 0.975])]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from `right` in n: 1 - C(n - right, k) / C(n, k)  (Chen et al., 2021).

    Raises ValueError when k > n.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples of each problem, not {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)
