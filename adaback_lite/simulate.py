"""Curricula against a simulated learner: no model, a thousand samples over two hundred visits in about a tenth of a second.

    simulation = simulate("adaback", LearnerSettings(samples=500), settings=CurriculumSettings(alpha=0.3))
    simulation.accuracy, simulation.rho, simulation.stuck        arrays over time
    side_by_side({"paper": {}, "recovery": {"recovery": 0.1}})   several, over several seeds
    in_numbers(...)                                              and their table

The curricula are those of training (curricula.py), the batches those of a run with the same seed (sft.batch_ids). Only the learner is
made up. It is our choice, after one thought: let it be the smallest policy that GRPO could train.

**Success.** The learner has a skill s_j for each of the L reasoning steps. It gets step j of sample i right with chance
p_ij = logistic(s_j - difficulty_i), each step by itself. At least the last step is hidden. A rollout is right when all h hidden steps, the last ones,
are: with chance q, the product of their p, or p^h while all steps are equally well known. Or else by a lucky guess: in all with chance Q = guess + (1 - guess) q.
A group of G holds a random number of right rollouts; their share r is what the curriculum is told, and the only place where luck enters.

**Learning.** Every group adds its gradient to the skills. GRPO weighs a rollout's log-likelihood by its standardised advantage,
sqrt((1 - r) / r) for a right one and -sqrt(r / (1 - r)) for a wrong one, and averages over its h steps (grpo.norm "grpo"). The derivative of
step j's log-likelihood by s_j is 1 - p_j where the step is right and -p_j where not: on average (1 - guess) (1 - p_j) q / Q in right rollouts,
and -(1 - p_j) q / (1 - q) in wrong ones. So the gradient of a group whose rewards are given is expected to be, for each hidden step j,

    g_j = sqrt(r (1 - r)) * (1 - p_j) / (1 - q) * (q / Q) / h

The root is 0 where all rewards are equal: such a group teaches nothing. q / Q is the share of right rollouts that are right for the right reason.
Steps that are shown get nothing by themselves, but what is practised helps the others by `transfer`: s_j grows by lr / N times the sum over the
step's groups of (1 - transfer) g_j + transfer (g_1 + ... + g_L), as if s_j were the sum of a skill of its own and a common one. N, the number of
samples, and not the batch size, so that this changes the order of learning and not its speed.

All samples share the skills: what one teaches helps all, nothing is learnt by heart, and the samples stand for the test as well. Why a
skill for each step: with one skill for all (`transfer` 1) practising the last step alone would teach the whole, and the best curriculum would be
to show all but that. What a real policy has beside (optimizer, clipping, entropy, overfitting, forgetting) is not here.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from .config import METHODS, Config, CurriculumSettings, Settings, make_config
from .curricula import make_curriculum
from .errors import UserError
from .seeding import numpy_generator

BATCH = 250  # samples a step: small enough for alpha to matter in the first epoch, large enough to be fast
VISITS = 200
STUCK = 0.1  # see `Simulation.stuck`


class LearnerSettings(Settings):
    """The simulated learner (all our choice)."""

    samples: int = Field(1000, ge=1, le=20_000, description="training samples")
    steps: int = Field(16, ge=1, le=64, description="reasoning steps in each rationale")
    start: float = Field(0.5, gt=0, lt=1, description="chance at first that a step of a sample of average difficulty is right")
    spread: float = Field(0.5, ge=0, le=3, description="spread of difficulty: standard deviation over the samples, in logits of that chance")
    lr: float = Field(5.0, ge=0, le=100, description="how much skill a visit of all samples gives, for a gradient of 1; 0 is a learner that does not learn")
    group_size: int = Field(8, ge=2, le=64, description="rollouts a visit, G (paper: 8)")
    transfer: float = Field(0.1, ge=0, le=1, description="how much practice of one reasoning step helps the others: 1 is one skill for all steps, 0 a skill for each")
    guess: float = Field(0.0, ge=0, le=0.9, description="chance that a rollout with a wrong step is right all the same, by luck")


def make_learner(values: dict[str, Any] | None = None, **named) -> LearnerSettings:
    """A checked learner from values by name; a number may be given as text. Raises UserError in one sentence."""
    values = {**(values or {}), **named}
    fields = LearnerSettings.model_fields
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            raise UserError(f"The simulated learner has no setting '{name}'. " + (f"Did you mean '{near[0]}'?" if near else f"It has: {', '.join(fields)}."))
    try:
        return LearnerSettings.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        what = problem["msg"].replace("Input should be ", "should be ")
        raise UserError(f"The learner's setting '{problem['loc'][0]}' is {problem['input']!r}, but {what}.") from None


@dataclass(frozen=True)
class Kept:
    """Every visit of a small simulation. T steps of B samples; low and high are the interval after the update, None where the curriculum has none."""

    ids: np.ndarray  # [T, B]
    rho: np.ndarray  # [T, B]
    reward: np.ndarray  # [T, B]
    hidden: np.ndarray  # [T, B] reasoning steps
    low: np.ndarray | None  # [T, B]
    high: np.ndarray | None  # [T, B]


@dataclass(frozen=True)
class Simulation:
    """What a simulation gave. Arrays have a value for each of T steps, a mean over the step's B samples where nothing else is said.

    `high` is what no draw of a sample goes above at present: rho_max, or the frontier's share. `low`, `high` and what is made of them are None
    where the curriculum keeps no such thing. A sample is stuck when luck has taken `high` far below what it can do: with `high` shown less than
    one rollout in ten gets all hidden steps right, though with all but the last step shown more would.
    """

    label: str  # the method, or the class's name
    settings: CurriculumSettings  # of a method; a class has its own
    learner: LearnerSettings
    seed: int
    batch_size: int
    steps_an_epoch: int
    visit: np.ndarray  # visits that each sample has had so far: 1.0 at the end of the first epoch
    rho: np.ndarray
    rho_low: np.ndarray  # the middle 80 % of the draws lie between this
    rho_high: np.ndarray  # and this
    reward: np.ndarray
    grad_groups: np.ndarray  # share of groups whose rewards differ
    skill: np.ndarray  # [T, L] after the step, the first reasoning step first
    low: np.ndarray | None  # after the step
    high: np.ndarray | None
    stuck: np.ndarray | None  # share of samples
    accuracy: np.ndarray  # [visits] after each epoch: mean chance over all samples that an output is right, nothing shown; exact, not sampled
    first_low: np.ndarray | None  # [N] what samples start with at their first visit, in the order of these visits
    first_high: np.ndarray | None
    kept: Kept | None = field(default=None, repr=False)

    @cached_property
    def events(self) -> list[dict]:
        """The simulation as the events of a run (runs.py), for charts.py: a "step" for each step, an "eval" for each epoch.

        Tokens are reasoning steps, "wall" stands still, the gradient's norm is that of the skills' growth, and "right" of an eval is
        expected, not counted. Raises UserError without keep=True.
        """
        if self.kept is None:
            raise UserError("This simulation kept no visits, so it has no events; simulate with keep=True.")
        return _events(self)


@np.errstate(over="ignore")  # where 1 / q is too large for a number, q is 0
def simulate(
    curriculum: str | object | Callable[[int, int], object] = "adaback",
    learner: LearnerSettings | None = None,
    visits: int = VISITS,
    batch_size: int = BATCH,
    seed: int = 0,
    *,
    settings: CurriculumSettings | None = None,
    keep: bool = False,
) -> Simulation:
    """A curriculum against the learner of this module. The same arguments give the same result to the bit.

    Args:
        curriculum: a method's name ("rl" shows nothing), a class or function that makes one from (n_samples, seed), or a new instance.
        learner: None is LearnerSettings().
        visits: visits of each sample, an epoch each; what does not fill a batch waits for the next epoch, as in training.
        batch_size: samples a step, B; all of them if there are fewer.
        settings: the curriculum's settings, for a method's name; None is their defaults.
        keep: keep every visit, for `events`.

    Raises UserError for an unknown method, visits or batch_size below 1, and for shares outside [0, 1] from a curriculum of your own.
    """
    learner, settings = learner or LearnerSettings(), settings or CurriculumSettings()
    for name, value in {"visits": visits, "batch_size": batch_size}.items():
        if value < 1:
            raise UserError(f"{name} is {value}, but it must be 1 or more.")
    N, L, G, B = learner.samples, learner.steps, learner.group_size, min(batch_size, learner.samples)
    label, c = _make(curriculum, settings, N, seed, L)
    order, per_epoch = _order(N, B, visits, seed), N // B  # [T, B]
    rng = numpy_generator(seed, "learner")
    odds = np.exp(learner.spread * rng.standard_normal(N))  # [N] exp(difficulty)
    mind = _Mind(learner, B, per_epoch)

    T, own = len(order), not isinstance(curriculum, str)
    low_name = "rho_min" if hasattr(c, "rho_min") else None
    high_name = "rho_max" if hasattr(c, "rho_max") else "frontier" if hasattr(c, "frontier") else None
    rhos, rights, skills = np.empty((T, B)), np.empty((T, B), dtype=np.int64), np.empty((T, L))
    lows, first_low = (np.empty((T, B)), np.empty((per_epoch, B))) if low_name else (None, None)
    highs, first_high = (np.empty((T, B)), np.empty((per_epoch, B))) if high_name else (None, None)
    stuck = np.empty(T) if high_name else None
    luck = np.empty((per_epoch, G, B))
    for t in range(T):
        ids = order[t]
        rho = c.reveal(ids, t)  # [B]
        if own:
            rho = _checked(rho, B)
        if t < per_epoch:
            if low_name:
                first_low[t] = getattr(c, low_name)[ids]
            if high_name:
                first_high[t] = getattr(c, high_name)[ids]
        if t % per_epoch == 0:
            rng.random(out=luck)

        mind.meet(odds[ids])
        right = (luck[t % per_epoch] < mind.chance(hidden_steps(rho, L))).sum(axis=0)  # [B]
        mind.learn(right)
        c.update(ids, rho, right / G)

        rhos[t], rights[t], skills[t] = rho, right, mind.skill
        if low_name:
            lows[t] = getattr(c, low_name)[ids]
        if high_name:
            highs[t] = getattr(c, high_name)[ids]
            stuck[t] = mind.share_stuck(hidden_steps(highs[t], L))

    ranked = np.sort(rhos, axis=1)
    return Simulation(
        label=label, settings=settings, learner=learner, seed=seed, batch_size=B, steps_an_epoch=per_epoch,
        visit=np.arange(1, T + 1) / per_epoch,
        rho=rhos.mean(axis=1), rho_low=ranked[:, round(0.1 * (B - 1))], rho_high=ranked[:, round(0.9 * (B - 1))],
        reward=rights.mean(axis=1) / G,
        grad_groups=((rights > 0) & (rights < G)).mean(axis=1),
        skill=skills[:, ::-1],
        low=None if lows is None else lows.mean(axis=1), high=None if highs is None else highs.mean(axis=1), stuck=stuck,
        accuracy=_accuracy(skills[per_epoch - 1 :: per_epoch], odds, learner.guess),
        first_low=None if first_low is None else first_low.ravel(), first_high=None if first_high is None else first_high.ravel(),
        kept=Kept(order, rhos, rights / G, hidden_steps(rhos, L), lows, highs) if keep else None,
    )  # fmt: skip


class _Mind:
    """The learner of this module's docstring, before one batch of B samples after the other. Step 0 is the last reasoning step here."""

    def __init__(self, s: LearnerSettings, batch: int, steps_an_epoch: int):
        self.skill = np.full(s.steps, math.log(s.start / (1 - s.start)))  # [L]
        self._guess, per_group = s.guess, s.lr / (steps_an_epoch * batch)
        self._own, self._common = per_group * (1 - s.transfer), per_group * s.transfer
        self._root = np.sqrt(np.arange(s.group_size + 1) * np.arange(s.group_size, -1, -1)) / s.group_size  # [G + 1] sqrt(r (1 - r)) by the number right
        self._places = np.arange(s.steps)[:, None]
        self._every, self._hidden = np.empty((s.steps, batch)), np.empty((s.steps, batch))  # buffers: new ones would cost more than what fills them

    def meet(self, odds: np.ndarray) -> None:  # [B]
        """Look at the samples of a step; `odds` is exp(difficulty)."""
        np.multiply(np.exp(-self.skill)[:, None], odds, out=self._every)
        np.add(self._every, 1.0, out=self._every)  # [L, B] 1 / p

    def chance(self, hidden: np.ndarray) -> np.ndarray:  # [B] -> [B]
        """Q, that a rollout is right where so many of the last steps are hidden."""
        self._n, self._q = hidden, 1.0 / self._inverse(hidden)
        self._chance = self._guess + (1.0 - self._guess) * self._q if self._guess else self._q
        return self._chance

    def learn(self, right: np.ndarray) -> None:  # [B]
        """Grow by the groups that `chance` was last asked about, which had so many right rollouts."""
        # Where q rounds to 1 all rollouts are right; the tiny number avoids 0 / 0 there.
        credit = self._root[right] / ((1.0 - self._q + 1e-300) * self._n)
        if self._guess:
            credit *= self._q / self._chance
        wrong = np.subtract(1.0, np.divide(1.0, self._hidden, out=self._hidden), out=self._hidden)  # [L, B] 1 - p of the hidden steps, 0 for those shown
        gradient = wrong @ credit  # [L]
        self.skill = self.skill + self._own * gradient + self._common * gradient.sum()

    def share_stuck(self, hidden: np.ndarray) -> float:  # [B]
        """Share of the samples that are stuck where never fewer steps are hidden, by the skill before `learn`."""
        return np.count_nonzero((self._inverse(hidden) > 1 / STUCK) & (self._every[0] <= 1 / STUCK)) / len(hidden)

    def _inverse(self, hidden: np.ndarray) -> np.ndarray:  # [B] -> [B]
        """1 / q. Leaves 1 / p of the hidden steps in `_hidden`, and 1 for those shown."""
        self._hidden.fill(1.0)
        np.copyto(self._hidden, self._every, where=self._places < hidden)
        return np.multiply.reduce(self._hidden, axis=0)


def hidden_steps(rho: np.ndarray, steps: int) -> np.ndarray:  # [B] -> [B]
    """Reasoning steps left to the learner at a share rho: what curricula.tokens_shown leaves at unit "step", one at least."""
    return np.maximum(steps - (rho * steps + 1e-9).astype(np.int64), 1)


def side_by_side(
    variants: dict[str, dict[str, Any]], learner: LearnerSettings | None = None, visits: int = VISITS, batch_size: int = BATCH, seeds: Sequence[int] = range(5)
) -> dict[str, list[Simulation]]:
    """Several curricula against the same learner, each with every seed.

    Args:
        variants: settings by label: {"tau 0.9": {"tau": 0.9}, "r3": {"method": "r3"}}; the method is adaback where none is named.

    Raises UserError for an unknown setting or method, and for a value out of bounds.
    """
    simulations = {}
    for label, values in variants.items():
        own = {f"curriculum.{name}": value for name, value in values.items() if name != "method"}
        settings = make_config(own).curriculum
        simulations[label] = [simulate(values.get("method", "adaback"), learner, visits, batch_size, seed, settings=settings) for seed in seeds]
    return simulations


def visits_until(simulation: Simulation, accuracy: float = 0.5) -> int | None:
    """Visits of each sample until test accuracy is reached; None where it never is."""
    reached = simulation.accuracy >= accuracy
    return int(reached.argmax()) + 1 if reached.any() else None


def in_numbers(simulations: dict[str, list[Simulation]], accuracy: float = 0.5):
    """A pandas table with a row for each label: accuracy at the end (mean, lowest, highest seed), visits until `accuracy` (the median seed;
    NaN where that one never gets there), share of groups with a gradient (mean of all), and samples stuck at the end."""
    import pandas as pd

    rows = []
    for label, group in simulations.items():
        ends = [float(s.accuracy[-1]) for s in group]
        until = sorted(float("inf") if (v := visits_until(s, accuracy)) is None else v for s in group)[len(group) // 2]
        stuck = [float(s.stuck[-s.steps_an_epoch :].mean()) for s in group if s.stuck is not None]
        rows.append(
            {
                "curriculum": label, "seeds": len(group), "accuracy": np.mean(ends), "lowest": min(ends), "highest": max(ends),
                f"visits until {accuracy:g}": until if np.isfinite(until) else float("nan"),
                "groups with a gradient": np.mean([s.grad_groups.mean() for s in group]),
                "stuck": np.mean(stuck) if stuck else float("nan"),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- parts


def _make(curriculum, settings: CurriculumSettings, n_samples: int, seed: int, n_steps: int):
    """(label, curriculum)."""
    if isinstance(curriculum, str):
        if curriculum not in METHODS or Config(method=curriculum).curriculum_name is None:
            known = ", ".join(m for m in METHODS if not m.startswith("sft"))
            raise UserError(f"There is no curriculum '{curriculum}' to simulate; there are: {known}.")
        return curriculum, make_curriculum(Config(method=curriculum).curriculum_name, settings, n_samples, seed, n_steps)
    made = curriculum if hasattr(curriculum, "reveal") and not isinstance(curriculum, type) else curriculum(n_samples, seed)
    return type(made).__name__, made


def _checked(rho, n: int) -> np.ndarray:
    from .trainer import checked_rho  # loads transformers, which the curricula of this library need not wait for

    return checked_rho(rho, n)


def _order(n_samples: int, batch: int, epochs: int, seed: int) -> np.ndarray:
    """Sample ids of every step [T, B]: those of sft.batch_ids."""
    whole = n_samples // batch * batch
    return np.concatenate([numpy_generator(seed, "order", epoch).permutation(n_samples)[:whole].reshape(-1, batch) for epoch in range(epochs)])


def _accuracy(skill: np.ndarray, odds: np.ndarray, guess: float) -> np.ndarray:  # [E, L], [N] -> [E]
    """Mean over the samples of the chance that an output is right with nothing shown, at each of E times."""
    wrong, mean = np.exp(-skill), np.empty(len(skill))
    block = max(1, 16_384 // len(odds))  # rows that stay in the processor's cache
    for e in range(0, len(skill), block):
        inverse = np.ones((len(wrong[e : e + block]), len(odds)))
        for j in range(skill.shape[1]):
            inverse *= 1.0 + wrong[e : e + block, j, None] * odds
        mean[e : e + block] = (1.0 / inverse).mean(axis=1)
    return guess + (1 - guess) * mean


def _events(s: Simulation) -> list[dict]:
    k, G, N, per_epoch = s.kept, s.learner.group_size, s.learner.samples, s.steps_an_epoch
    events = [{"event": "start", "method": s.label, "seed": s.seed, "samples": N, "simulated": True}]
    tokens = np.cumsum(k.hidden.sum(axis=1)) * G
    entropy = (np.logaddexp(0, -s.skill) + s.skill / (1 + np.exp(s.skill))).mean(axis=1)  # [T] of steps of average difficulty, right or wrong
    start = np.full((1, s.learner.steps), math.log(s.learner.start / (1 - s.learner.start)))
    grown = np.linalg.norm(np.diff(s.skill, axis=0, prepend=start), axis=1)  # [T]
    for t in range(len(s.visit)):
        spent = {"step": t + 1, "rollouts": (t + 1) * k.ids.shape[1] * G, "generated_tokens": int(tokens[t])}
        events.append(
            {
                "event": "step", **spent,
                "ids": k.ids[t].tolist(), "rho": k.rho[t].round(4).tolist(), "reward": k.reward[t].round(4).tolist(),
                "shown": (s.learner.steps - k.hidden[t]).tolist(),
                "low": None if k.low is None else k.low[t].round(4).tolist(), "high": None if k.high is None else k.high[t].round(4).tolist(),
                "mean_reward": float(s.reward[t]), "mean_rho": float(s.rho[t]), "grad_groups": float(s.grad_groups[t]),
                "entropy": float(entropy[t]),
                "cut": 0.0, "wrong": float(1 - s.reward[t]), "unparseable": 0.0, "timeout": 0.0, "loss": 0.0, "grad_norm": float(grown[t]), "wall": 0.0,
            }
        )  # fmt: skip
        if (t + 1) % per_epoch == 0:
            accuracy = float(s.accuracy[t // per_epoch])
            events.append({"event": "eval", "stage": "rl", **spent, "trained_tokens": 0, "n": N, "right": accuracy * N, "accuracy": accuracy, "wall": 0.0})
    return events
