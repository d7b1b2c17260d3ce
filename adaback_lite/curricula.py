"""How much of each rationale to show: one small interface, and the curricula behind it.

    reveal(sample_ids [B], step) -> rho [B]        the share of each rationale to show, in [0, 1]
    update(sample_ids [B], rho [B], reward [B])    what came of it: the mean reward of each sample's group
    state_dict() / load_state_dict(state)          everything the next draw depends on, as plain JSON values

A class with the first two methods is a curriculum: pass an instance to `adaback_lite.train`. Deriving from `Curriculum` adds
`rng`, saving and loading. All arrays are numpy; a visit of a thousand samples is one vectorised call.
"""

import json
import math

import numpy as np

from .config import CurriculumSettings
from .seeding import numpy_generator


class Curriculum:
    """Shows nothing: plain RL. The base of all others.

    `rng` is the only source of randomness. Attributes that are arrays, numbers or lists are the state that is saved;
    names starting with an underscore are not.
    """

    def __init__(self, n_samples: int, seed: int = 0):
        self.n_samples = n_samples
        self.rng = numpy_generator(seed, "curriculum")

    def reveal(self, sample_ids: np.ndarray, step: int) -> np.ndarray:  # [B] -> [B]
        return np.zeros(len(sample_ids))

    def update(self, sample_ids: np.ndarray, rho: np.ndarray, reward: np.ndarray) -> None:  # [B], [B], [B]
        pass

    def state_dict(self) -> dict:
        """The state as JSON values. Floats keep every bit: JSON writes the shortest text that reads back the same."""
        state = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items() if k != "rng" and not k.startswith("_")}
        return json.loads(json.dumps(state | {"rng": self.rng.bit_generator.state}))

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where `state_dict` was taken. Raises ValueError when the state is of another kind or size."""
        own = {k: v for k, v in vars(self).items() if k != "rng" and not k.startswith("_")}
        if set(own) | {"rng"} != set(state) or state["n_samples"] != self.n_samples:
            raise ValueError("the saved curriculum is of another kind or for another number of samples")
        for name, old in own.items():
            setattr(self, name, np.asarray(state[name], dtype=old.dtype) if isinstance(old, np.ndarray) else state[name])
        self.rng.bit_generator.state = state["rng"]


class Constant(Curriculum):
    """Always shows the same share."""

    def __init__(self, n_samples, seed=0, *, rho=0.5):
        super().__init__(n_samples, seed)
        self.rho = rho

    def reveal(self, sample_ids, step):
        return np.full(len(sample_ids), self.rho)


class AdaBack(Curriculum):
    """The paper's curriculum: for each sample, a stochastic binary search for how much must be shown.

    Sample i keeps an interval [rho_min, rho_max]. A visit draws rho uniformly from it.
        reward <  tau: too hard.  rho_min <- rho
        reward >= tau: solved.    rho_max <- rho, rho_min <- 0
    So rho_max only falls (a one-way ratchet), and the search goes on below it as the policy learns.

    A sample's first interval is not [0, 1] but a moving average over the intervals of the samples seen before it:
        mean_max <- alpha * rho_max[i] + (1 - alpha) * mean_max,   and so for rho_min.

    Example, tau = 0.5: interval [0, 1], draw 0.6, reward 0.25 -> [0.6, 1]; draw 0.8, reward 1 -> [0, 0.8]; draw 0.3, ...

    Open in the paper, so settings here (CurriculumSettings has the defaults): alpha, `ema_init`, `zero_updates`, and
    `recovery`, our addition, which moves rho_max back up on a failure so that one lucky group cannot doom a sample.
    """

    def __init__(self, n_samples, seed=0, *, tau=0.5, alpha=0.05, ema_init="both", zero_prob=0.1, zero_updates="never", recovery=0.0):
        super().__init__(n_samples, seed)
        self.tau, self.alpha, self.ema_init, self.zero_prob = tau, alpha, ema_init, zero_prob
        self.zero_updates, self.recovery = zero_updates, recovery
        self.rho_min = np.zeros(n_samples)  # [N]
        self.rho_max = np.ones(n_samples)  # [N]
        self.seen = np.zeros(n_samples, dtype=bool)  # [N]
        self.mean_min, self.mean_max = 0.0, 1.0
        self.forced = np.zeros(n_samples, dtype=bool)  # [N] shown nothing by chance at the last visit

    def reveal(self, sample_ids, step):
        fresh = sample_ids[~self.seen[sample_ids]]
        if self.ema_init == "both":
            self.rho_min[fresh] = min(self.mean_min, self.mean_max)
        if self.ema_init != "none":
            self.rho_max[fresh] = self.mean_max
        self.seen[fresh] = True
        low, high = self.rho_min[sample_ids], self.rho_max[sample_ids]  # [B]
        rho = np.clip(low + (high - low) * self.rng.random(len(sample_ids)), low, high)  # [B]
        self.forced[sample_ids] = self.rng.random(len(sample_ids)) < self.zero_prob
        return np.where(self.forced[sample_ids], 0.0, rho)

    def update(self, sample_ids, rho, reward):
        solved = reward >= self.tau  # [B]
        counts = ~self.forced[sample_ids]  # [B] visits that move the interval
        if self.zero_updates == "always":
            counts[:] = True
        elif self.zero_updates == "success":
            counts |= solved
        low, high = self.rho_min[sample_ids], self.rho_max[sample_ids]
        raised = high + self.recovery * (1.0 - high)
        self.rho_min[sample_ids] = np.where(counts, np.where(solved, 0.0, rho), low)
        self.rho_max[sample_ids] = np.where(counts, np.where(solved, rho, raised), high)
        moved = sample_ids[counts]
        if len(moved):
            # One by one, mean <- alpha * new + (1 - alpha) * mean; written out, the j-th of n newest weighs alpha * (1 - alpha)^(n-1-j).
            keep = 1.0 - self.alpha
            weight = self.alpha * keep ** np.arange(len(moved) - 1, -1, -1)  # [n]
            self.mean_min = float(keep ** len(moved) * self.mean_min + weight @ self.rho_min[moved])
            self.mean_max = float(min(keep ** len(moved) * self.mean_max + weight @ self.rho_max[moved], 1.0))


class R3(Curriculum):
    """R3 proper ("mixed"): every sample starts from one of `cuts` evenly spaced points, drawn uniformly, for ever (arXiv 2402.05808)."""

    def __init__(self, n_samples, seed=0, *, cuts=6):
        super().__init__(n_samples, seed)
        self.cuts = cuts

    def reveal(self, sample_ids, step):
        return self.rng.integers(0, self.cuts, len(sample_ids)) / self.cuts


class R3Staged(Curriculum):
    """R3's staged variant: all samples from the cut nearest the end, then the next one back, to the whole task; equal time for each."""

    def __init__(self, n_samples, seed=0, *, cuts=6, horizon=300):
        super().__init__(n_samples, seed)
        self.cuts, self.horizon = cuts, horizon

    def reveal(self, sample_ids, step):
        stage = min(step * self.cuts // self.horizon, self.cuts - 1)
        return np.full(len(sample_ids), (self.cuts - 1 - stage) / self.cuts)


class UFT(Curriculum):
    """UFT (2025): each of a rationale's n steps is shown with probability p, so Binomial(n, p) of them; p falls by a cosine, then is 0."""

    def __init__(self, n_samples, seed=0, *, n_steps, start=0.95, end=0.05, horizon=300):
        super().__init__(n_samples, seed)
        self.n_steps = np.broadcast_to(np.asarray(n_steps), n_samples).copy()  # [N] reasoning steps of each rationale
        self.start, self.end, self.horizon = start, end, horizon

    def reveal(self, sample_ids, step):
        if step >= self.horizon:
            return np.zeros(len(sample_ids))
        p = self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * step / self.horizon))
        n = self.n_steps[sample_ids]
        return self.rng.binomial(n, p) / n


class Anneal(Curriculum):
    """One global share that falls from 1 to 0 over the horizon, linearly or by a cosine (as in RTPO, a closed TRL proposal)."""

    def __init__(self, n_samples, seed=0, *, shape="linear", horizon=300):
        super().__init__(n_samples, seed)
        self.shape, self.horizon = shape, horizon

    def reveal(self, sample_ids, step):
        t = min(step / self.horizon, 1.0)
        rho = 1 - t if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * t))
        return np.full(len(sample_ids), rho)


class Frontier(Curriculum):
    """Frontier (MFC): each sample has one share rho* that suffices. Most visits stand on it, some probe below.

    Solved at rho: rho* falls to rho. `patience` failures in a row at rho*: it rises by `rise`, which cures the ratchet.
    """

    def __init__(self, n_samples, seed=0, *, tau=0.5, probe=0.25, patience=3, rise=0.1):
        super().__init__(n_samples, seed)
        self.tau, self.probe, self.patience, self.rise = tau, probe, patience, rise
        self.frontier = np.ones(n_samples)  # [N]
        self.failures = np.zeros(n_samples, dtype=np.int64)  # [N] in a row, at the frontier

    def reveal(self, sample_ids, step):
        frontier = self.frontier[sample_ids]  # [B]
        probing = self.rng.random(len(sample_ids)) < self.probe
        return np.where(probing, frontier * self.rng.random(len(sample_ids)), frontier)

    def update(self, sample_ids, rho, reward):
        solved, frontier = reward >= self.tau, self.frontier[sample_ids]  # [B], [B]
        failed = ~solved & (rho >= frontier)
        failures = np.where(solved, 0, self.failures[sample_ids] + failed)
        rises = failures >= self.patience
        self.frontier[sample_ids] = np.where(solved, np.minimum(rho, frontier), np.where(rises, np.minimum(frontier + self.rise, 1.0), frontier))
        self.failures[sample_ids] = np.where(rises, 0, failures)


def make_curriculum(name: str, settings: CurriculumSettings, n_samples: int, seed: int = 0, n_steps=1) -> Curriculum:
    """The curriculum of a method. `n_steps` [N] (or one number) is the reasoning steps of each rationale; only UFT needs it."""
    s = settings
    match name:
        case "none":
            return Curriculum(n_samples, seed)
        case "constant":
            return Constant(n_samples, seed, rho=s.rho)
        case "adaback":
            return AdaBack(n_samples, seed, tau=s.tau, alpha=s.alpha, ema_init=s.ema_init, zero_prob=s.zero_prob, zero_updates=s.zero_updates, recovery=s.recovery)
        case "r3":
            return R3(n_samples, seed, cuts=s.cuts)
        case "r3-staged":
            return R3Staged(n_samples, seed, cuts=s.cuts, horizon=s.horizon)
        case "uft":
            return UFT(n_samples, seed, n_steps=n_steps, start=s.uft_start, end=s.uft_end, horizon=s.horizon)
        case "anneal":
            return Anneal(n_samples, seed, shape=s.shape, horizon=s.horizon)
        case "frontier":
            return Frontier(n_samples, seed, tau=s.tau, probe=s.probe, patience=s.patience, rise=s.rise)
    raise ValueError(f"no curriculum is called {name!r}")


def tokens_shown(rho: float, step_ends: list[int], unit: str = "token", min_hidden: int = 1) -> int:
    """k, the rationale tokens to show for a share rho: floor(rho * m) of its m tokens (paper), or all whole steps within them.

    `step_ends` are the token counts after which a step is complete; the last is m. At least `min_hidden` tokens stay hidden
    (all of them where the rationale is shorter). The 1e-9 keeps 0.29 * 100 = 28.999... at 29.
    """
    m = step_ends[-1]
    k = min(math.floor(rho * m + 1e-9), max(m - min_hidden, 0))
    return k if unit == "token" else max((end for end in step_ends if end <= k), default=0)
