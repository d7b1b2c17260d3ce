"""What every curriculum promises, as property tests: for those of curricula.py, and for a class written in a notebook.

    check_curriculum(MyCurriculum)      a list of results, which a notebook shows as a table

Each property is a plain function of `make(n_samples, seed)`, which gives a new curriculum (a class will do), and of a history:
which samples were visited, and what reward came of it. It raises `Broken` with one sentence where the curriculum breaks it;
its docstring's first line is what a reader sees. hypothesis makes the histories up, and of those that break a
property it looks for the smallest. It is imported late, as it takes a while.
"""

import contextlib
import copy
import html
import io
import json
import random
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import UserError

Make = Callable[[int, int], object]
STORY = 6  # visits that a sentence tells in full
LIBRARIES = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
OTHERS = 100  # samples that no history visits, in `update_touches_only_its_samples`


@dataclass(frozen=True)
class History:
    """What happens to a curriculum: its samples and seed, and visits (ids, rewards), gone through `times` times, from `first_step` on."""

    n_samples: int
    seed: int
    visits: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    times: int = 1
    first_step: int = 0
    saved: int = 0  # `a_saved_state_goes_on`: the visit at which it is saved, counted modulo their number
    wide: bool = False  # see `any_history`

    def steps(self, shift: int = 0) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(step, ids [B], rewards [B]) of every visit; `shift` is added to the ids."""
        for i, (ids, rewards) in enumerate(self.visits * self.times):
            yield self.first_step + i, np.array(ids, dtype=np.int64) + shift, np.array(rewards, dtype=np.float64)


def any_history(wide: bool = False):
    """A hypothesis strategy: all the histories that training can bring.

    `wide` adds what only the curricula of curricula.py promise: a sample twice in a batch, rewards of 1.1 (where a well-formed output is
    worth something too), and a state saved between a reveal and its update.
    """
    from hypothesis import strategies as st

    reward = st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.125, *([1.1] if wide else [])]) | st.floats(0, 1)
    outcome = st.tuples(st.integers(0, 5), reward)
    visits = st.lists(st.lists(outcome, min_size=1, max_size=6, unique_by=None if wide else lambda pair: pair[0]), min_size=1, max_size=5)

    def history(seed, visits, times, first_step, more, saved) -> History:
        n_samples = 1 + max(i for visit in visits for i, _ in visit) + more
        return History(n_samples, seed, tuple(tuple(zip(*visit)) for visit in visits), times, first_step, saved, wide)

    times, first_step = st.sampled_from([*[1] * 6, 4, 30]), st.sampled_from([0, 0, 1, 100, 5000])
    return st.builds(history, st.integers(0, 1000), visits, times, first_step, st.integers(0, 2), st.integers(0, 20))


# --- asking a curriculum ----------------------------------------------------------------------------------------------


class Broken(Exception):
    """A property does not hold. `str(error)` is one sentence with the history."""


class BadReveal(Broken):
    """reveal failed, or did not give one share in [0, 1] a sample."""


class BadUpdate(Broken):
    """update failed."""


class Asked:
    """A new curriculum, called as training calls it; it remembers the calls, for the sentence."""

    def __init__(self, make: Make, n_samples: int, seed: int):
        self.n_samples, self.seed = n_samples, seed
        self.visits: list[str] = []
        self.changed = ""  # which input was changed by the call that was given it
        try:
            self.curriculum = make(n_samples, seed)
        except Exception as error:
            raise BadReveal(f"make({n_samples}, {seed}) {_raised(error)}.") from None

    def reveal(self, ids: np.ndarray, step: int) -> np.ndarray:  # [B] -> [B]
        call, given = f"reveal({_short(ids)}, {step})", ids.copy()
        try:
            answer = self.curriculum.reveal(given, step)
        except Exception as error:
            raise BadReveal(self.sentence(f"{call} {_raised(error)}")) from None
        self._compare(call, "sample_ids", ids, given)
        try:
            rho = np.asarray(answer, dtype=np.float64)  # as the trainer does; no copy
        except (TypeError, ValueError):
            raise BadReveal(self.sentence(f"{call} gave {_short(answer)}, which are no numbers")) from None
        if rho.shape != ids.shape:
            raise BadReveal(self.sentence(f"{call} gave {_short(rho)}, of shape {rho.shape}, but it was asked about {_count(len(ids))} and must give shape {ids.shape}"))
        if not ((rho >= 0) & (rho <= 1)).all():
            raise BadReveal(self.sentence(f"{call} gave {_short(rho, exact=True)}, but a share lies between 0 and 1"))
        self.visits.append(f"{call} gave {_short(rho)}")
        return rho

    def update(self, ids: np.ndarray, rho: np.ndarray, reward: np.ndarray) -> None:  # [B], [B], [B]
        call, before, given = f"update({_short(ids)}, {_short(rho)}, {_short(reward)})", rho.copy(), (ids.copy(), reward.copy())
        try:
            self.curriculum.update(given[0], rho, given[1])
        except Exception as error:
            raise BadUpdate(self.sentence(f"{call} {_raised(error)}")) from None
        for name, old, new in (("sample_ids", ids, given[0]), ("rho", before, rho), ("reward", reward, given[1])):
            self._compare(call, name, old, new)
        self.visits[-1] += f" and {call}"

    def sentence(self, fault: str) -> str:
        """What was found, after what."""
        told = self.visits
        if len(told) > STORY:
            told = [*told[:2], f"{len(told) - 4} more visits", *told[-2:]]
        return f"With n_samples={self.n_samples}, seed={self.seed}{', after ' + ', then '.join(told) if told else ''}: {fault}."

    def _compare(self, call: str, name: str, old: np.ndarray, new: np.ndarray) -> None:
        if not self.changed and not np.array_equal(old, new, equal_nan=True):
            self.changed = self.sentence(f"{call} changed its {name} into {_short(new)}")


def _raised(error: Exception) -> str:
    """An exception in words, with the line of the curriculum's own code that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and not f.filename.startswith(LIBRARIES)]
    where = f" in the line '{frames[-1].line}'" if frames and frames[-1].line else ""
    if isinstance(error, NotImplementedError):
        return f"is not written yet{where}"
    text = str(error).splitlines()
    return f"raised {type(error).__name__}{': ' + text[0] if text else ''}{where}"


def _short(values, exact: bool = False) -> str:
    """Numbers as one would type them, at most eight: [0, 2] and [0.5, 1]. `exact` keeps every digit, for 1.0000000000000002 is not 1."""
    if not isinstance(values, np.ndarray):
        return repr(values)[:80]
    items = [repr(v) if exact and float(f"{v:.4g}") != v else f"{v:.4g}" for v in values.ravel().tolist()]
    return f"[{', '.join(items[:8])}{', ...' if len(items) > 8 else ''}]"


def _other_than(values, rho: np.ndarray) -> str:
    """Shares as text that differs from that of `rho`, which they differ from."""
    values = np.asarray(values)
    return _short(values) if _short(values) != _short(rho) else f"{_short(values, exact=True)} instead of {_short(rho, exact=True)}"


def _count(n: int) -> str:
    return "1 sample" if n == 1 else f"{n} samples"


# --- the properties ---------------------------------------------------------------------------------------------------


def reveal_gives_shares(make: Make, history: History) -> None:
    """`reveal` gives one share between 0 and 1 for each sample that it is asked about: for one or for many, in any order."""
    asked = Asked(make, history.n_samples, history.seed)
    with contextlib.suppress(BadUpdate):  # the next property's
        for step, ids, reward in history.steps():
            asked.update(ids, asked.reveal(ids, step), reward)
        asked.reveal(np.arange(history.n_samples)[::-1], step + 1)


def update_takes_any_reward(make: Make, history: History) -> None:
    """`update` takes rewards of 0, of 1 and of anything between."""
    asked = Asked(make, history.n_samples, history.seed)
    for step, ids, reward in history.steps():
        asked.update(ids, asked.reveal(ids, step), reward)


def inputs_stay(make: Make, history: History) -> None:
    """Neither changes the arrays that it is given (`sample_ids`, `rho`, `reward`): training goes on using them."""
    asked = Asked(make, history.n_samples, history.seed)
    for step, ids, reward in history.steps():
        asked.update(ids, asked.reveal(ids, step), reward)
        if asked.changed:
            raise Broken(asked.changed)


def same_seed_same_shares(make: Make, history: History) -> None:
    """The same seed and the same history give the same shares, to the bit."""
    first = Asked(make, history.n_samples, history.seed)
    shares = []
    for step, ids, reward in history.steps():
        rho = first.reveal(ids, step)
        shares.append(rho.copy())
        first.update(ids, rho, reward)
    again = Asked(make, history.n_samples, history.seed)
    for (step, ids, reward), before in zip(history.steps(), shares):
        rho = again.reveal(ids, step)
        if not np.array_equal(rho, before):
            fault = f"{again.visits.pop()}, but {_other_than(before, rho)} to another curriculum of the same seed and history; draw from self.rng alone"
            raise Broken(again.sentence(fault))
        again.update(ids, rho, reward)


def another_seed_other_draws(make: Make, history: History) -> None:
    """Where it draws at random, another seed draws otherwise. (A curriculum that draws nothing may do without.)

    Decided by the generators among its attributes: one that was drawn from must have begun elsewhere than with the next seed.
    """
    one, other = (Asked(make, history.n_samples, history.seed + i) for i in range(2))
    begun, elsewhere = _generators(one.curriculum), _generators(other.curriculum)
    for step, ids, reward in history.steps():
        one.update(ids, one.reveal(ids, step), reward)
    now = _generators(one.curriculum)
    for name, place in begun.items():
        if elsewhere.get(name) == place and now.get(name) != place:
            raise Broken(one.sentence(f"it draws from self.{name}, which begins at the same place with seed={history.seed + 1}; make it from the seed"))


def a_saved_state_goes_on(make: Make, history: History) -> None:
    """A saved state, written as JSON and read again, goes on to the bit."""
    asked = Asked(make, history.n_samples, history.seed)
    if not (hasattr(asked.curriculum, "state_dict") and hasattr(asked.curriculum, "load_state_dict")):
        raise Broken("It has no state_dict and load_state_dict, so a killed run cannot go on; derive it from adaback_lite.Curriculum, which has both.")
    saved, twin = history.saved % (len(history.visits) * history.times), None
    ends = [(history.first_step + len(history.visits) * history.times, np.arange(history.n_samples), np.zeros(history.n_samples))]
    for i, (step, ids, reward) in enumerate([*history.steps(), *ends]):
        if i == saved and not history.wide:
            twin = _saved_and_loaded(make, history, asked)
        rho = asked.reveal(ids, step)
        if twin and not np.array_equal(again := _of_twin(asked, twin, "reveal", ids, step), rho):
            loaded = f"to a curriculum that was loaded from what state_dict() gave {'in' if history.wide else 'before'} visit {saved + 1}"
            raise Broken(asked.sentence(f"{asked.visits.pop()}, but {_other_than(again, rho)} {loaded}{_keys(asked.curriculum)}"))
        if i == saved and history.wide:
            twin = _saved_and_loaded(make, history, asked)
        if twin:
            _of_twin(asked, twin, "update", ids, rho.copy(), reward)
        asked.update(ids, rho, reward)


def update_touches_only_its_samples(make: Make, history: History) -> None:
    """`update` leaves what is remembered of other samples as it is. (Values kept for all of them together, such as a mean, may move.)

    What is remembered of sample i: place i of every attribute that holds one value for each sample, or key i of a dict. An array or list is of this
    kind if it is as long as there are samples, for two different numbers of samples.
    """
    n = OTHERS + history.n_samples  # others that are never visited; large ids, which nobody uses as the keys of other things
    asked = Asked(make, n, history.seed)
    longer = Asked(make, n + 1, history.seed).curriculum
    names = [k for k, v in _attributes(asked.curriculum).items() if isinstance(v, dict) or (_axis(v, n) is not None and _axis(_attributes(longer).get(k), n + 1) == _axis(v, n))]
    for step, ids, reward in history.steps(OTHERS):
        rho = asked.reveal(ids, step)
        before = {k: copy.deepcopy(_attributes(asked.curriculum)[k]) for k in names}
        asked.update(ids, rho, reward)
        now = _attributes(asked.curriculum)
        for name in names:
            if _same(before[name], now.get(name)):
                continue
            old, new = _by_sample(before[name], n), _by_sample(now.get(name), n)
            for i in sorted((old.keys() | new.keys()) - set(ids.tolist())):
                if not _same(old.get(i), new.get(i)):
                    raise Broken(asked.sentence(f"{asked.visits.pop()} changed {name}[{i}] from {old.get(i)} to {new.get(i)}, but was not told of sample {i}"))


CHECKS = (
    reveal_gives_shares,
    update_takes_any_reward,
    inputs_stay,
    same_seed_same_shares,
    another_seed_other_draws,
    a_saved_state_goes_on,
    update_touches_only_its_samples,
)


# --- what the properties look at --------------------------------------------------------------------------------------


def _attributes(curriculum) -> dict[str, object]:
    """A curriculum's own attributes, and those that its classes hold."""
    of_classes = {k: v for kind in reversed(type(curriculum).__mro__) for k, v in vars(kind).items() if not k.startswith("__")}
    return of_classes | getattr(curriculum, "__dict__", {})


def _generators(curriculum) -> dict[str, tuple[float, ...]]:
    """Where each random generator among the attributes stands: the next numbers that it would give."""
    kinds = (np.random.Generator, np.random.RandomState, random.Random)
    found = {k: copy.deepcopy(v) for k, v in _attributes(curriculum).items() if isinstance(v, kinds)}
    return {k: tuple(v.random() for _ in range(3)) for k, v in found.items()}


def _saved_and_loaded(make: Make, history: History, asked: Asked) -> Asked:
    """A curriculum of another seed that was loaded with the state of `asked`."""
    twin = Asked(make, history.n_samples, history.seed + 1)
    try:
        state = json.loads(json.dumps(asked.curriculum.state_dict()))
    except Exception as error:
        raise Broken(asked.sentence(f"state_dict(), written as JSON, {_raised(error)}")) from None
    try:
        twin.curriculum.load_state_dict(state)
    except Exception as error:
        raise Broken(asked.sentence(f"load_state_dict() of what state_dict() gave {_raised(error)}")) from None
    return twin


def _of_twin(asked: Asked, twin: Asked, method: str, *arguments):
    """What the loaded curriculum answers; that it fails where the saved one does not is the state's fault."""
    try:
        return getattr(twin.curriculum, method)(*arguments)
    except Exception as error:
        raise Broken(asked.sentence(f"loaded from what state_dict() gave, {method} {_raised(error)}{_keys(asked.curriculum)}")) from None


def _keys(curriculum) -> str:
    """The usual reason why a state does not come back as it was."""
    number_keys = any(isinstance(v, dict) and not all(isinstance(k, str) for k in v) for v in _attributes(curriculum).values())
    return "; JSON turns the keys of a dict into text" if number_keys else ""


def _axis(value, n: int) -> int | None:
    """The axis of an array (of a list: 0) that is n long; None where there is none."""
    if isinstance(value, np.ndarray):
        return value.shape.index(n) if n in value.shape else None
    return 0 if isinstance(value, list | tuple) and len(value) == n else None


def _by_sample(value, n: int) -> dict[int, object]:
    """{sample: what an attribute's value holds of it}."""
    if isinstance(value, dict):
        return {int(k): v for k, v in value.items() if isinstance(k, int | np.integer) and OTHERS <= k < n}
    axis = _axis(value, n)
    if axis is None:
        return {}
    return dict(enumerate(np.moveaxis(value, axis, 0).tolist() if isinstance(value, np.ndarray) else value))


def _same(a, b) -> bool:
    """Whether two values are alike; NaN is like NaN, and lists may hold arrays."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype and a.dtype != object:
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(a) == repr(b)


# --- running them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of one property: "ok", "failed", or "open" where another must be mended first. `sentence` says why."""

    name: str
    says: str
    status: str
    sentence: str = ""


class Report(list):
    """Results, in a notebook a table."""

    @property
    def ok(self) -> bool:
        return all(result.status == "ok" for result in self)

    @property
    def failed(self) -> list[str]:
        """Names of the properties that do not hold."""
        return [result.name for result in self if result.status == "failed"]

    def __repr__(self) -> str:
        return "\n".join(f"{r.status:6}  {r.says}{chr(10) + ' ' * 8 + r.sentence if r.sentence else ''}" for r in self)

    def _repr_html_(self) -> str:
        marks = {"ok": ("&#10003; ok", "#007a5a"), "failed": ("&#10007; failed", "#b34700"), "open": ("open", "#666666")}
        rows = []
        for r in self:
            mark, colour = marks[r.status]
            why = f'<br><span style="color:{colour}">{html.escape(r.sentence)}</span>' if r.sentence else ""
            cells = f'<td style="color:{colour};white-space:nowrap;vertical-align:top;text-align:left">{mark}</td><td style="text-align:left">{html.escape(r.says)}{why}</td>'
            rows.append(f"<tr>{cells}</tr>")
        return f"<table>{''.join(rows)}</table>"


def check_curriculum(make: Make, histories: int = 300, wide: bool = False) -> Report:
    """Try every property on so many random histories; of those that break it, tell the smallest that can be found.

    `make(n_samples, seed)` gives a new curriculum; a class will do. `wide`: see `any_history`. Every call tries the same histories. Raises
    UserError where `make` cannot be called.
    """
    if not callable(make):
        raise UserError(f"check_curriculum() needs the class itself, or a function of n_samples and seed that makes a curriculum, but was given {_short(make)}.")
    with contextlib.redirect_stdout(io.StringIO()):  # what the class prints would be printed a thousand times
        broken = _any_faults(make, histories, wide)
        report = Report()
        for check in CHECKS:
            says, failed = check.__doc__.splitlines()[0], report.failed
            needed = [c.__name__ for c in CHECKS[:2]] + [same_seed_same_shares.__name__] * (check is a_saved_state_goes_on)
            missing = next((name for name in failed if name in needed), "")
            if missing:
                report.append(Result(check.__name__, says, "open", "Not decided until what failed above is mended."))
            elif check in broken:
                report.append(Result(check.__name__, says, "failed", _smallest_fault(check, make, histories, wide) or broken[check]))
            else:
                report.append(Result(check.__name__, says, "ok"))
    return report


def _fault(check, make: Make, history: History) -> str:
    """The sentence of a property that does not hold for a history; '' where it does."""
    try:
        check(make, history)
    except Broken as fault:
        return str(fault)
    return ""


def _steady(examples: int):
    """hypothesis' settings: the same histories every time, nothing written to the disk, no complaint that a class is slow."""
    from hypothesis import HealthCheck, Phase, settings

    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))


def _any_faults(make: Make, histories: int, wide: bool) -> dict[Callable, str]:
    """{property: a sentence} of those that some history breaks. Making histories up takes as long as trying them, so all properties are tried on each."""
    from hypothesis import given

    broken: dict[Callable, str] = {}

    @_steady(histories)
    @given(any_history(wide))
    def look(history: History) -> None:
        for check in CHECKS:
            if check not in broken and (sentence := _fault(check, make, history)):
                broken[check] = sentence

    look()
    return broken


def _smallest_fault(check, make: Make, histories: int, wide: bool) -> str:
    """The sentence of the smallest history that breaks a property; '' where none is found, as with a class that breaks it now and then."""
    from hypothesis import find
    from hypothesis.errors import Flaky, NoSuchExample

    try:
        return _fault(check, make, find(any_history(wide), lambda history: bool(_fault(check, make, history)), settings=_steady(5 * histories)))
    except (Flaky, NoSuchExample):
        return ""
