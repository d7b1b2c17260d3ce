"""Evaluating runs: pass@k on many problems, resumable, with several seeds; and two runs on the same problems, compared in pairs.

    <run>/evaluations/rl-00000100-test-n512-samples1-seed0-1a2b3c4d5e6f.jsonl

One file for each checkpoint, split, number of problems, number of samples and seed; its name ends in a digest of all that decides
the result, so nothing is ever overwritten. The first line says what is evaluated, and each further line is one problem:

    evaluation  checkpoint, step, checkpoint_digest, problems_digest, split, n, samples, seed, temperature, share (revealed; 0 in a test)
    problem     place (in the split, from 0), id, source, prompt (its digest), and for each output: kinds (of its verdict), tokens (written)

An evaluation that was stopped or killed goes on where it was when it is asked for again, and one that is complete is only read.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .build import build_policy, build_task
from .config import Config, override
from .errors import UserError
from .evaluate import interval, judge, make_prefix, pass_at_k, shown_at, wilson
from .rollout import sample_rollouts
from .runs import Run, load_run, read_events, seed_folders
from .sampler import merged_copy
from .seeding import derive, numpy_generator, torch_generator
from .tasks import Sample

KINDS = ("right", "wrong", "unparseable", "timeout")


# ---------------------------------------------------------------- one run


def evaluate_run(
    run: Run, ks: Sequence[int] = (1,), samples: int | None = None, split="test", n: int | None = None, seeds: Sequence[int] | None = None, progress=False
) -> dict:
    """pass@k of a run's newest checkpoint with nothing revealed, and how many outputs were right, wrong, unparseable and timed out.

    Args:
        samples: outputs for each problem and seed; the largest k where not given.
        n: problems from the start of the split; more than the run's own where the task has more. All of the run's own where not given.
        seeds: each samples all outputs anew; the run's own seed where not given.

    "pass_at_k"[str(k)] holds the mean over the seeds ("value"), its 95 % interval over problems ("ci95"), each seed's value ("by_seed"),
    "lowest" and "highest". The counts are over all seeds. Raises UserError for a request that makes no sense, and for a run without a checkpoint.
    """
    samples = check_request(ks, samples, split, n, seeds)
    return summary_of(run, evaluations_of(run, samples, split, n, seeds, progress), ks)


def check_request(ks: Sequence[int], samples: int | None, split: str, n: int | None, seeds: Sequence[int] | None) -> int:
    """The number of samples, after everything that can be wrong with what was asked for has raised UserError."""
    samples = max(ks) if samples is None else samples
    if min(ks) < 1:
        raise UserError(f"--k is {min(ks)}, but must be at least 1.")
    if samples < max(ks):
        raise UserError(f"pass@{max(ks)} needs at least {max(ks)} outputs of each problem, not {samples}; raise --samples or lower --k.")
    if split not in ("test", "val", "train"):
        raise UserError(f"--split is '{split}', but should be test, val or train.")
    if n is not None and n < 1:
        raise UserError(f"--n is {n}, but must be at least 1.")
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise UserError("--seeds names a seed twice; give each once.")
    return samples


@dataclass(frozen=True)
class Evaluation:
    """What a file holds: its first line, and its problems in the order of the split."""

    header: dict
    problems: list[dict]

    def passes(self, k: int) -> list[float]:
        """pass@k of each problem."""
        return [pass_at_k(len(p["kinds"]), p["kinds"].count("right"), k) for p in self.problems]


def summary_of(run: Run, evaluations: list[Evaluation], ks: Sequence[int]) -> dict:
    """Evaluations of one checkpoint with several seeds as the numbers that are reported."""
    header = evaluations[0].header
    passes = {}
    for k in sorted(set(ks)):
        by_seed = np.array([e.passes(k) for e in evaluations])  # [seeds, problems]
        each = by_seed.mean(axis=1)
        passes[str(k)] = {
            "value": float(each.mean()),
            "ci95": interval(by_seed.mean(axis=0).tolist(), k, run.config.seed),
            "by_seed": each.tolist(),
            "lowest": float(each.min()),
            "highest": float(each.max()),
        }
    kinds = [kind for e in evaluations for p in e.problems for kind in p["kinds"]]
    return {
        "run": str(run.folder),
        **{name: header[name] for name in ("checkpoint", "step", "split", "n", "samples", "temperature")},
        "seeds": [e.header["seed"] for e in evaluations],
        "pass_at_k": passes,
        **{kind: kinds.count(kind) for kind in KINDS},
        "tokens": sum(t for e in evaluations for p in e.problems for t in p["tokens"]),
    }


def evaluations_of(run: Run, samples: int, split: str, n: int | None, seeds: Sequence[int] | None, progress: bool, share: float = 0.0) -> list[Evaluation]:
    """One evaluation a seed, read where the run's folder holds it, made or completed where not. `share` of each rationale is revealed, as rho is in training."""
    config, threads = run.config, torch.get_num_threads()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    try:
        model, tokenizer, state = run.load_checkpoint()
        task, problems = problems_of(config, model, tokenizer, split, n)
        shown = [shown_at(share, task, s, config) for s in problems]
        prefixes = [make_prefix(task, s, k) for s, k in zip(problems, shown)]
        shared = {
            "event": "evaluation",
            "checkpoint": f"{state['stage']}-{state['step']:08d}",
            "step": state["step"],
            "checkpoint_digest": digest(sorted(state["sha256"].items())),
            "problems_digest": digest([(s.id, s.source, s.answer, p.ids, p.max_new) for s, p in zip(problems, prefixes)]),
            "split": split,
            "n": len(problems),
            "samples": samples,
            "temperature": config.grpo.temperature,
            "share": share,
        }
        headers = [{**shared, "seed": seed} for seed in ([config.seed] if seeds is None else seeds)]
        merged = merged_copy(model, config.policy.sampling)
        sampled = merged.model if merged else model
        return [Evaluation(h, complete(run, h, sampled, tokenizer, task, problems, shown, prefixes, progress)) for h in headers]
    finally:
        torch.set_num_threads(threads)


def problems_of(config: Config, model, tokenizer, split: str, n: int | None) -> tuple[Any, list[Sample]]:
    """The run's task and the first `n` problems of a split. Raises UserError when there are fewer."""
    context = getattr(model.config, "max_position_embeddings", None)
    task = build_task(config, tokenizer, context)
    own = getattr(task, split)
    if n is None or n <= len(own):
        return task, own[:n]
    if hasattr(task, "stream"):
        return task, list(itertools.islice(task.stream(split), n))
    more = getattr(build_task(override(config, {f"task.n_{split}": n}), tokenizer, context), split)[:n]
    if len(more) < n:
        raise UserError(f"--n is {n}, but the {split} split of task {config.task.name} has only {len(more)} problems; lower --n.")
    return task, more


def digest(value) -> str:
    """16 hexadecimal digits that stand for a value made of numbers, texts, lists and tuples."""
    return f"{derive('digest', value):016x}"


def problem_noise(seed: int, problem: Sample, G: int, S: int) -> torch.Tensor:
    """Uniform numbers [G, S] of one problem. They depend on nothing else: not on the batch, nor on the policy; more samples keep the first ones'."""
    return torch.rand(G, S, generator=torch_generator(seed, "evaluate", problem.source, problem.id, problem.prompt))


# ---------------------------------------------------------------- the file


def complete(run: Run, header: dict, model, tokenizer, task, problems: list[Sample], shown: list[int], prefixes: list, progress: bool) -> list[dict]:
    """The problems' records in the order of the split, sampling those that the file does not hold yet.

    Which problems share a batch is a function of the prompts' lengths alone. A batch of which a kill has left a part is sampled
    again as a whole, since the last bits of a matrix product depend on what else is in it: the result is the same, bit for bit,
    with and without interruptions (on one machine, with equal numbers of threads and rows).
    """
    t, size = run.config.trainer, max(run.config.trainer.rollout_rows // header["samples"], 1)
    # Longest first: what needs the most memory fails at once, and the time left that the progress line shows is rather too long than too short.
    order = sorted(range(len(problems)), key=lambda i: -len(prefixes[i].ids))
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    path = run.folder / "evaluations" / file_name(header)
    with open_evaluation(path, header) as (done, append):
        often = 0.5 if os.isatty(2) else 20  # seconds, as in training
        label = f"{run.folder.name}, seed {header['seed']}"
        left = len(problems) - len(done)
        with tqdm(total=len(problems), initial=len(done), disable=not (progress and left), unit="problem", desc=label, mininterval=often, leave=os.isatty(2)) as bar:
            for batch in batches:
                missing = [i for i in batch if i not in done]
                if not missing:
                    continue
                with _memory(run, t.rollout_rows):
                    records = evaluate_batch(model, tokenizer, task, batch, problems, shown, prefixes, header, t.rollout_rows)
                append([records[i] for i in missing])
                done |= {i: records[i] for i in missing}
                bar.update(len(missing))
    return [done[i] for i in range(len(problems))]


def file_name(header: dict) -> str:
    """The file of an evaluation: readable, and another one where anything in `header` differs."""
    h = header
    revealed = f"-share{h['share']:g}" if h["share"] else ""
    return f"{h['checkpoint']}-{h['split']}{revealed}-n{h['n']}-samples{h['samples']}-seed{h['seed']}-{digest(sorted(h.items()))[:12]}.jsonl"


def evaluate_batch(model, tokenizer, task, batch: list[int], problems: list[Sample], shown: list[int], prefixes: list, header: dict, rows: int) -> dict[int, dict]:
    """Sample and judge the problems at the places `batch` together; a record for each place."""
    G, chosen = header["samples"], [prefixes[i] for i in batch]
    noise = torch.zeros(len(batch), G, max(p.max_new for p in chosen))
    for b, i in enumerate(batch):
        noise[b, :, : prefixes[i].max_new] = problem_noise(header["seed"], problems[i], G, prefixes[i].max_new)
    rollouts = sample_rollouts(model, chosen, noise, tokenizer.eos_token_id, tokenizer.pad_token_id, header["temperature"], rows)
    judged = judge(task, tokenizer, [problems[i] for i in batch], [shown[i] for i in batch], rollouts)
    tokens = rollouts.mask.sum(dim=2).tolist()  # [B][G]
    return {
        i: {"event": "problem", "place": i, **identity(problems[i]), "kinds": [v.kind for v in judged.verdicts[b]], "tokens": tokens[b]}
        for b, i in enumerate(batch)
    }


def identity(problem: Sample) -> dict:
    """What makes two runs' problems the same one."""
    return {"id": problem.id, "source": problem.source, "prompt": digest(problem.prompt)}


@contextlib.contextmanager
def open_evaluation(path: Path, header: dict):
    """(records by place, function that appends records) of an evaluation's file, held against other processes.

    A torn last line (a kill in mid-write) is cut off. Raises UserError for a damaged or a foreign file, and where it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
            file = stack.enter_context(open(path, "ab", buffering=0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{path} is being written by another process; wait for it, or stop it.") from None
        try:
            events = read_events(path)
        except UserError as error:
            raise UserError(f"{str(error).partition(';')[0]}; delete it and evaluate again.") from None
        usable = all(e.get("place") in range(header["n"]) and len(e.get("kinds", ())) == header["samples"] for e in events[1:])
        if events and (events[0] != header or not usable):
            raise UserError(f"{path} holds another evaluation than its name says; delete it and evaluate again.")

        def append(records: list[dict]) -> None:
            data = b"".join(json.dumps(r).encode() + b"\n" for r in records)
            with _writing(path):
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with _writing(path):
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        if not events:
            append([header])
        yield {e["place"]: e for e in events[1:]}, append


@contextlib.contextmanager
def _writing(path: Path):
    """Turn what a disk can do to us into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); mend that and give the same command again, which goes on from there.") from error


@contextlib.contextmanager
def _memory(run: Run, rows: int):
    """Turn memory that ran out into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        from .trainer import out_of_memory

        if not out_of_memory(error):
            raise
        file = run.folder / "config.yaml"
        raise UserError(f"Out of memory with trainer.rollout_rows {rows}; lower it in {file} and give the same command again, which goes on from there.") from error


# ---------------------------------------------------------------- two runs


def compare_runs(a, b, k=1, samples: int | None = None, split="test", n: int | None = None, seeds: Sequence[int] | None = None, progress=False) -> dict:
    """How much better `b` is than `a` on the same problems, in pairs.

    `a` and `b` are each a run, its folder, a folder of seed-0, seed-1 and so on, or a list of these. With several runs or seeds on a
    side, a problem counts with its mean pass@k over them. The other arguments are those of `evaluate_run`.

    "difference" is the mean over problems of b's pass@k less a's, "ci95" its 95 % interval by a bootstrap over problems. With one output
    a problem on each side there are also "a_only" and "b_only", the problems that one side alone has right, and "mcnemar_p". "sentences"
    says it in words. Raises UserError, before anything is sampled, when the problems differ.
    """
    samples = check_request([k], samples, split, n, seeds)
    runs = {"a": as_runs(a), "b": as_runs(b)}
    check_same_problems(runs, split, n)
    evaluated = {side: [evaluations_of(run, samples, split, n, seeds, progress) for run in of_side] for side, of_side in runs.items()}
    values = {side: values_by_problem([e for run in per_run for e in run], k) for side, per_run in evaluated.items()}
    pairs = [(sum(values["a"][key]) / len(values["a"][key]), sum(values["b"][key]) / len(values["b"][key])) for key in values["a"]]
    differences = [y - x for x, y in pairs]
    result = {
        "k": k,
        "split": split,
        "n": len(pairs),
        "samples": samples,
        **{side: side_of([summary_of(run, e, [k]) for run, e in zip(runs[side], evaluated[side])], pairs, i, k) for i, side in enumerate("ab")},
        "difference": sum(differences) / len(differences),
        "ci95": paired_interval(differences),
    }
    if samples == 1 and all(len(per_run) == len(per_run[0]) == 1 for per_run in evaluated.values()):
        result["a_only"], result["b_only"] = (sum(d == side for d in differences) for side in (-1.0, 1.0))
        result["mcnemar_p"] = mcnemar(result["a_only"], result["b_only"])
    return {**result, "sentences": in_words(result)}


def as_runs(given) -> list[Run]:
    """The runs that a run, a folder, or a list of these names."""
    if isinstance(given, Run):
        return [given]
    if isinstance(given, str | os.PathLike):
        return [load_run(folder) for folder in seed_folders(given) or [given]]
    return [run for one in given for run in as_runs(one)]


def check_same_problems(runs: dict[str, list[Run]], split: str, n: int | None) -> None:
    """Raise UserError unless both sides have the same problems: same id, source and prompt."""
    keys = {}
    for side, of_side in runs.items():
        keys[side] = set()
        for run in of_side:
            problems = problems_of(run.config, *build_policy(run.config), split, n)[1]
            keys[side] |= {key_of(identity(p)) for p in problems}
    alone = [len(keys["a"] - keys["b"]), len(keys["b"] - keys["a"])]
    if any(alone):
        a, b = (names_of(runs[side]) for side in "ab")
        raise UserError(f"The {split} problems differ ({alone[0]:,} are in {a} alone, {alone[1]:,} in {b} alone); compare runs with the same task settings and the same seeds.")


def key_of(record: dict) -> tuple:
    return record["id"], record["source"], record["prompt"]


def names_of(runs: list[Run]) -> str:
    """'runs/a', or 'runs/a/seed-0 and 2 more'."""
    return str(runs[0].folder) if len(runs) == 1 else f"{runs[0].folder} and {len(runs) - 1} more"


def values_by_problem(evaluations: list[Evaluation], k: int) -> dict[tuple, list[float]]:
    """pass@k of each problem, in all evaluations that have it."""
    values: dict[tuple, list[float]] = {}
    for e in evaluations:
        for problem, value in zip(e.problems, e.passes(k)):
            values.setdefault(key_of(problem), []).append(value)
    return values


def side_of(summaries: list[dict], pairs: list[tuple[float, float]], i: int, k: int) -> dict:
    """One side of a comparison: its value over the problems, and its runs."""
    each = [s["pass_at_k"][str(k)]["value"] for s in summaries]
    return {"runs": summaries, "value": sum(p[i] for p in pairs) / len(pairs), "lowest": min(each), "highest": max(each)}


def paired_interval(differences: list[float], draws: int = 4000) -> list[float]:
    """95 % interval of a mean of paired differences: a percentile bootstrap over problems.

    Where all differences are equal, which would give a width of 0, as much is added on either side as Wilson's interval gives to
    0 of so many; a difference lies between -1 and 1.
    """
    d = np.asarray(differences)
    if d.min() == d.max():
        margin = wilson(0, len(d))[1]
        return [max(float(d[0]) - margin, -1.0), min(float(d[0]) + margin, 1.0)]
    rng, block = numpy_generator("compare", "bootstrap"), max(1_000_000 // len(d), 1)  # a block takes some megabytes, whatever the number of problems
    means = [d[rng.integers(0, len(d), (min(block, draws - i), len(d)))].mean(axis=1) for i in range(0, draws, block)]
    return [float(q) for q in np.quantile(np.concatenate(means), [0.025, 0.975])]


def mcnemar(a_only: int, b_only: int) -> float:
    """Two-sided p of McNemar's exact test: how likely so uneven a split of the problems that one side alone has right is, if each falls to either side by a fair coin."""
    n, few = a_only + b_only, min(a_only, b_only)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(few + 1)) / 2**n)


def in_words(r: dict) -> list[str]:
    """A comparison in plain sentences, B against A."""
    a, b = (side_name(r[side]["runs"]) for side in "ab")
    points, (low, high) = 100 * r["difference"], (100 * q for q in r["ci95"])
    if points < 0:  # "fewer" turns the interval round too
        points, low, high = -points, -high, -low
    single = "mcnemar_p" in r
    word = ("more" if single else "higher") if r["difference"] > 0 else ("fewer" if single else "lower")
    details = [f"95 % interval {low:.1f} to {high:.1f}", f"{r['n']:,} problems"]
    if r["samples"] > 1:
        details.append(f"{r['samples']} outputs each")
    if single:
        details.append(f"McNemar p = {r['mcnemar_p']:.2g}" if r["mcnemar_p"] >= 0.001 else "McNemar p < 0.001")
    if points == 0:
        claim = f"{b} is right on as many problems as {a}" if single else f"pass@{r['k']} of {b} is that of {a}"
    else:
        claim = f"{b} is right on {points:.1f} points {word} problems than {a}" if single else f"pass@{r['k']} of {b} is {points:.1f} points {word} than that of {a}"
    said = [f"{claim} ({'; '.join(details)})."]
    if low <= 0 <= high:
        said.append("The interval includes 0: these problems do not tell the two apart.")
    counts = [len(r[side]["runs"]) for side in "ab"]
    if counts == [1, 1]:
        said.append("One training run on each side; training with another seed may give another difference.")
    else:
        said.append(f"{counts[0]} training {'run' if counts[0] == 1 else 'runs'} of {a}, {counts[1]} of {b}; the interval is over problems, not over training seeds.")
    if len(r["a"]["runs"][0]["seeds"]) > 1:
        said.append(f"Every problem was sampled with {len(r['a']['runs'][0]['seeds'])} seeds and counts with its mean.")
    return said


def side_name(summaries: list[dict]) -> str:
    """'runs/a' for one run, or for those in runs/a/seed-0, runs/a/seed-1 and so on."""
    folders = [Path(s["run"]) for s in summaries]
    if len(folders) == 1:
        return str(folders[0])
    return str(folders[0].parent) if len({f.parent for f in folders}) == 1 else " + ".join(map(str, folders))
