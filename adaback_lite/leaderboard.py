"""A curriculum of your own against AdaBack, R3 and plain RL: before a simulated learner, then in training on Chain-of-Parities.

    board = leaderboard({"mine": MyCurriculum})              seconds, no model
    board = parity_leaderboard({"mine": MyCurriculum})       trains; finished runs are kept
    board                                                    a table, where it is the last line of a cell
    board.chart()

All see the same samples in the same order and have the same number of rollouts. Two things count: accuracy at the end, with nothing
revealed, and the rollouts until it first reached 0.9. The same seeds give the same board.
"""

import hashlib
import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import numpy as np
from tqdm import tqdm

from .charts import _colour, _data, _finish, _share_scale, _some, over_seeds
from .config import make_config
from .errors import UserError
from .runs import Run
from .seeding import numpy_generator
from .simulate import BATCH, VISITS, LearnerSettings, simulate
from .sweep_charts import mean_interval

GOAL = 0.9  # the accuracy whose cost in rollouts is compared
TIE = 0.01  # a smaller difference in accuracy is a tie, however sure it is
RIVALS = ("adaback", "r3", "rl")  # methods
PARITY = {"trainer.threads": 1}  # so that the board is the same on every machine, as far as that can be
Make = Callable[[int, int], object]


@dataclass(frozen=True)
class Score:
    """One curriculum's results, a value a seed."""

    name: str
    accuracy: tuple[float, ...]  # at the end, nothing revealed
    curves: tuple[tuple[tuple[float, float], ...], ...]  # (rollouts, accuracy) over time

    @property
    def until(self) -> tuple[float | None, ...]:
        """Rollouts until GOAL was first reached; None for a seed that never did."""
        return tuple(next((x for x, y in curve if y >= GOAL), None) for curve in self.curves)


def better(a: Score, b: Score) -> bool:
    """Whether `a` is clearly ahead of `b`: in accuracy, or where that is a tie and all seeds of both reached GOAL, in rollouts until then.

    A difference counts where Student's 95 % interval of its mean over the seeds, taken in pairs, leaves out 0 (our choice), and in accuracy only
    from TIE on. One seed decides nothing.
    """
    sign = _sign(np.subtract(a.accuracy, b.accuracy), TIE)
    if sign == 0 and None not in (*a.until, *b.until):
        sign = -_sign(np.subtract(a.until, b.until))
    return sign > 0


def _sign(differences: np.ndarray, least: float = 0.0) -> int:
    """1 or -1 where the mean difference is clear of 0, else 0."""
    mean, low, high = mean_interval(differences)
    return 0 if math.isnan(low) or low <= 0 <= high or abs(mean) < least else int(math.copysign(1, mean))


class Board:
    """Scores in order, as a table; `chart()` draws accuracy against rollouts."""

    def __init__(self, scores: Sequence[Score], what: str, own: Sequence[str] = ()):
        """In the order of how many are clearly better, then of mean accuracy. Who is not clearly behind the first of a place shares it."""
        self.what, self.own = what, tuple(own)
        behind = {s.name: sum(better(other, s) for other in scores) for s in scores}
        self.scores = sorted(scores, key=lambda s: (behind[s.name], -np.mean(s.accuracy), s.name))
        self.places, first = {}, 0
        for i, score in enumerate(self.scores):
            first = i if better(self.scores[first], score) else first
            self.places[score.name] = first + 1

    def rows(self) -> list[dict[str, str]]:
        """A row for each curriculum, as text. A place that is shared has "=" behind it."""
        shared = list(self.places.values())
        rows = []
        for score in self.scores:
            place = self.places[score.name]
            mean, low, high = mean_interval(score.accuracy)
            rows.append(
                {
                    "place": f"{place}{'=' if shared.count(place) > 1 else ''}",
                    "curriculum": score.name,
                    "accuracy at the end": f"{mean:.3f}",
                    "95 % interval": "" if math.isnan(low) else f"{max(low, 0):.3f} to {min(high, 1):.3f}",
                    "lowest to highest": f"{min(score.accuracy):.3f} to {max(score.accuracy):.3f}",
                    f"rollouts until {GOAL}": _cost(score.until),
                }
            )
        return rows

    @property
    def notes(self) -> list[str]:
        """What one must know to read the table."""
        n = len(self.scores[0].accuracy)
        if n == 1:
            return [self.what, "One seed: no spread is known, so all share a place."]
        ahead = (
            f"Ahead is who is better by {TIE} or more in accuracy, and by more than the seeds' spread explains (paired 95 % interval); "
            f"where that is a tie, and every seed reached {GOAL}, who needed fewer rollouts for it. '=': a place shared with those that its first is not ahead of."
        )
        return [self.what, f"Means over {n} seeds; Student's interval of that mean; lowest to highest seed.", ahead]

    def chart(self) -> alt.LayerChart:
        """Accuracy with nothing revealed against rollouts: mean over seeds, and a band from the lowest to the highest."""
        lines = {s.name: over_seeds([list(curve) for curve in s.curves]) for s in self.scores}
        rows = [row | {"method": name} for name, line in lines.items() for row in line]
        color, chart = _colour(lines), alt.Chart(_data(rows))
        x = alt.X("x:Q", title="Rollouts", axis=alt.Axis(format="~s", tickCount=6), scale=alt.Scale(nice=False))
        y_title = "Accuracy (share right), nothing revealed"
        tips = [alt.Tooltip("method:N", title="curriculum"), alt.Tooltip("x:Q", title="rollouts", format=",.0f")]
        tips += [alt.Tooltip(f"{k}:Q", title=k, format=".3f") for k in ("mean", "low", "high")]
        layers = [
            chart.mark_area(opacity=0.18).encode(x, alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), color=color),
            chart.mark_line(strokeWidth=2.2).encode(x, alt.Y("mean:Q", title=y_title, scale=_share_scale(rows)), color=color, tooltip=tips),
        ]
        n = len(self.scores[0].accuracy)
        note = f"Line: mean over {_some([n])}. Band: lowest to highest seed." if n > 1 else "One seed: no spread is known."
        return _finish(alt.layer(*layers), "The leader board", [self.what, note])

    def __repr__(self) -> str:
        rows = self.rows()
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        lines = ["  ".join(text.ljust(widths[key]) for key, text in row.items()).rstrip() for row in ({key: key for key in rows[0]}, *rows)]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        rows = self.rows()
        cells = [[f"<b>{html.escape(text)}</b>" if row["curriculum"] in self.own else html.escape(text) for text in row.values()] for row in rows]
        head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{'<br>'.join(map(html.escape, self.notes))}</p>"


def _cost(until: Sequence[float | None]) -> str:
    """Mean and spread of the rollouts where all seeds reached the goal. Where some did not, no mean: that of the others would flatter."""
    reached = [x for x in until if x is not None]
    if not reached:
        return "never"
    spread = f"{min(reached):,.0f} to {max(reached):,.0f}"
    if len(reached) < len(until):
        return f"{len(reached)} of {len(until)} seeds: {spread if len(reached) > 1 else f'{reached[0]:,.0f}'}"
    return f"{np.mean(reached):,.0f}" + (f" ({spread})" if len(reached) > 1 else "")


# --- before a simulated learner ---------------------------------------------------------------------------------------


def leaderboard(curricula: dict[str, Make], settings: LearnerSettings | None = None, seeds: Sequence[int] = range(5), visits: int = VISITS, batch_size: int = BATCH) -> Board:
    """Every curriculum, and RIVALS with the settings that config.py gives by default, before the simulated learner of simulate.py, with every seed.

    Args:
        curricula: {name: make}; `make(n_samples, seed)` gives a new curriculum, so a class will do.
        settings: the learner; None is LearnerSettings().
        seeds: each gives other samples, another order and other luck, the same for all curricula.
        visits: visits of each sample.
        batch_size: samples a step.

    Raises UserError for a name that is taken or cannot be a folder's, and as `simulate` does.
    """
    learner, seeds = settings or LearnerSettings(), list(seeds)
    batch = min(batch_size, learner.samples)
    an_epoch = learner.samples // batch * batch * learner.group_size  # rollouts; what does not fill a batch waits
    scores = []
    for name, curriculum in _all(curricula, seeds).items():
        ran = [simulate(curriculum, learner, visits, batch_size, seed) for seed in seeds]
        curves = tuple(tuple(((epoch + 1) * an_epoch, float(a)) for epoch, a in enumerate(s.accuracy)) for s in ran)
        scores.append(Score(name, tuple(curve[-1][1] for curve in curves), curves))
    changed = ", ".join(f"{k} {v:g}" for k, v in learner.model_dump(exclude_defaults=True).items())
    return Board(scores, f"Before a simulated learner{' (' + changed + ')' if changed else ''}: {visits} visits of each sample.", list(curricula))


def _all(curricula: dict[str, Make], seeds: Sequence[int]) -> dict[str, Make | str]:
    """The curricula and their rivals (these as methods' names), checked."""
    if not seeds:
        raise UserError("seeds is empty, but a leader board needs one seed or more.")
    for name, make in curricula.items():
        if name in RIVALS or not re.fullmatch(r"\w[\w .+-]*", name):
            raise UserError(f"A curriculum cannot be called '{name}' here; take a name of letters, digits, spaces and - . + that is not one of {', '.join(RIVALS)}.")
        if not callable(make):
            raise UserError(f"The curriculum '{name}' must be given as a class, or as a function of n_samples and seed that makes one, not as an instance.")
    return {**curricula, **{name: name for name in RIVALS}}


# --- in training ------------------------------------------------------------------------------------------------------


def parity_leaderboard(curricula: dict[str, Make], settings: dict | None = None, seeds: Sequence[int] = range(3), out: str = "runs/leaderboard", progress: bool = True) -> Board:
    """Every curriculum, and RIVALS, in GRPO on Chain-of-Parities, with every seed: seconds to minutes a run.

    `settings` are those of `train`, by dotted name; of them, the curriculum's act on the rivals alone. A run lies in a folder of `out`
    named after the curriculum, what it does and its settings, and the seed (`adaback-3f09c2-seed0`): one that is finished is not trained again,
    and a class that was changed, or other settings, get new folders. Accuracy at the end is that of test inputs, on the way that of held-out ones.
    Raises UserError as `leaderboard` and `train` do, and for a setting that the board itself makes.
    """
    from .trainer import train

    settings, seeds = {**PARITY, **(settings or {})}, list(seeds)
    for name in {"method", "seed", "out"} & set(settings):
        raise UserError(f"settings must not hold '{name}': the leader board sets it for each run; seeds and out are arguments of their own.")
    makes, config = _all(curricula, seeds), make_config(settings)
    jobs = [(name, seed) for seed in seeds for name in makes]
    runs: dict[str, list[Run]] = {name: [] for name in makes}
    for name, seed in tqdm(jobs, disable=not progress, unit="run", desc="leader board", mininterval=5):
        own = name in curricula
        folder = Path(out) / f"{name}-{fingerprint(makes[name] if own else None, settings)}-seed{seed}"
        curriculum = {"curriculum": makes[name](config.task.n_train, seed)} if own else {"method": name}
        runs[name].append(train(settings, seed=seed, out=str(folder), resume=True, progress=False, **curriculum))
    scores = []
    for name, group in runs.items():
        curves = tuple(tuple((e["rollouts"], e["accuracy"]) for e in run.events if e["event"] == "eval") for run in group)
        scores.append(Score(name, tuple(run.summary["test_accuracy"] for run in group), curves))
    return Board(scores, f"Trained on Chain-of-Parities, L = {config.task.length}, {config.task.n_train} inputs: at most {config.trainer.max_steps} steps.", list(curricula))


def fingerprint(make: Make | None, settings: dict) -> str:
    """Six hexadecimal digits that differ between curricula that do different things, and between settings.

    Of a curriculum count the code of its methods, what it begins with, and what it reveals over a made-up history.
    """
    facts: list = [sorted((k, repr(v)) for k, v in settings.items())]
    if make is not None:
        curriculum, rng = make(16, 0), numpy_generator("leaderboard", "fingerprint")
        facts += [_code(f) for kind in type(curriculum).__mro__ for f in vars(kind).values() if callable(f) and hasattr(f, "__code__")]
        facts += [sorted((k, repr(v)) for k, v in vars(curriculum).items() if k != "rng")]
        for step in range(200):
            ids = rng.permutation(16)[:4]
            rho = np.asarray(curriculum.reveal(ids, step), dtype=float)
            facts.append(rho.tolist())
            curriculum.update(ids, rho, (rng.integers(0, 9, 4) / 8) ** (2 - rho))
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(facts))  # where an object stands in memory
    return hashlib.blake2b(text.encode(), digest_size=3).hexdigest()


def _code(function) -> list:
    """What a function's code says, without where it stands."""
    code = function.__code__
    constants = [c.co_code.hex() if hasattr(c, "co_code") else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants, repr(function.__defaults__), repr(function.__kwdefaults__)]
