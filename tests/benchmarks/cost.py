"""The model of cost (adaback_lite/cost.py) against the clock, on this CPU with one thread.

    python -m tests.benchmarks.cost [--rounds 4] [--runs runs/cost] [--results data/results]

A grid of steps of our trainer, three sizes of model by three sizes of group by four revealed shares, is timed in rounds; so is a large matrix
product, between all steps. What counts is processor time, for one thread the same as the clock's on a machine that does nothing else. Four constants
describe the machine: FLOP/s is the product's median, and the other three are fitted to the steps of the two smaller models with groups of 8
(CALIBRATION). All other steps are predicted. So is the stored step benchmark, in which TRL takes part. Writes cost.csv and cost.json. A call that was
stopped goes on where it was; README.md here says more.
"""

import argparse
import functools
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from adaback_lite import trainer
from adaback_lite.config import PolicySettings
from adaback_lite.cost import SHAPES, Machine, Shape, Work, shape_of, step_cost
from adaback_lite.errors import UserError
from adaback_lite.policy import tiny_model
from adaback_lite.results import facts_of, store
from adaback_lite.studies import RESULTS, started
from tests.benchmarks import step

# A tiny Llama, one some 10 times and one some 60 times as large.
POLICIES = {
    "0.13 M": PolicySettings(positions="sequential"),
    "1.2 M": PolicySettings(positions="sequential", layers=3, width=160),
    "8.2 M": PolicySettings(positions="sequential", layers=5, width=320, heads=8, kv_heads=8),
}
GROUPS, REVEALS = (4, 8, 16), (0.0, 0.25, 0.5, 0.75)
CALIBRATION = {"sizes": ("0.13 M", "1.2 M"), "groups": (8,)}
PROMPTS = 16
PROMPT_TOKENS = 18  # <bos>, 16 bits, =
PRODUCT = (4096, 512, 2048)  # [tokens, inputs] by [inputs, outputs]


class Cell(NamedTuple):
    size: str
    group: int
    reveal: float


CELLS = [Cell(*c) for c in ((size, G, rho) for size in POLICIES for G in GROUPS for rho in REVEALS)]


@functools.cache
def shape(size: str) -> Shape:
    """Of one of POLICIES."""
    return shape_of(tiny_model(POLICIES[size]).config)


# ---------------------------------------------------------------- measuring


class Clock(step.Clock):
    """Beside seconds of the clock those of the processor, in which waiting for one does not count: {name: seconds} of the last call."""

    def __init__(self):
        super().__init__()
        self.cpu: dict[str, float] = {}

    def wrap(self, name, function):
        timed = super().wrap(name, function)

        def both(*args, **kwargs):
            start = time.process_time()
            try:
                return timed(*args, **kwargs)
            finally:
                self.cpu[name] = time.process_time() - start

        return both


class Ours(step.Ours):
    """A step of our trainer as in the step benchmark, with a model of another size, and the same share of every rationale revealed."""

    def __init__(self, cell: Cell, prompts: int):
        size = step.Size(prompts=prompts, group=cell.group)
        super().__init__(size, 0.0)
        self.clock = Clock()
        hidden = np.full(prompts, round((1 - cell.reveal) * size.tokens))
        model = tiny_model(POLICIES[cell.size])
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        head.weight = model.lm_head.weight
        head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size), requires_grad=False)
        head.bias[:3] = step.FORBIDDEN  # no special token, so every row runs to its full length
        model.lm_head = head
        self.state = trainer.State(model, trainer.new_optimizer(model, step.LR), step.Cuts(hidden, size))
        self.expected = int(hidden.sum()) * size.group


def product_flops() -> float:
    """FLOP/s of one large matrix product."""
    n, a, b = PRODUCT
    x, w = torch.ones(n, a), torch.ones(a, b)
    start = time.process_time()
    x @ w
    return 2 * n * a * b / (time.process_time() - start)


def measure(rounds: int, log: Path, cells: list[Cell] = CELLS, prompts: int = PROMPTS) -> list[dict]:
    """Processor seconds of every cell once a round, after one step that is not counted: one line a step in `log`. What stands there already is not measured again."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    done, sides = {(line["round"], Cell(*line["cell"])) for line in lines}, {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        for n in range(rounds):
            for cell in cells:
                if (n, cell) in done:
                    continue
                if cell not in sides:
                    sides[cell] = Ours(cell, prompts)
                    sides[cell].step()
                flops, side = product_flops(), sides[cell]
                wall = side.step()
                line = {"round": n, "cell": cell, "sampling": side.clock.cpu["rollout"], "update": side.clock.cpu["update"]}
                line |= {"wall_sampling": wall["rollout"], "wall_update": wall["update"], "flops": flops, "load": os.getloadavg()[0], "grad_groups": side.grad_groups[-1]}
                lines.append(line)
                out.write(json.dumps(line) + "\n")
                out.flush()
            print(f"round {n + 1} of {rounds}, load {os.getloadavg()[0]:.2f}", file=sys.stderr)
    return lines


# ---------------------------------------------------------------- calibrating and predicting


class Measured(NamedTuple):
    """Seconds of sampling and update of one step, and what it was."""

    work: Work
    shape: Shape
    options: dict  # of step_cost
    sampling: float
    update: float

    def predicted(self, machine: Machine) -> np.ndarray:
        cost = step_cost(self.work, self.shape, machine, **self.options)
        return np.array([cost.sampling_seconds, cost.update.seconds])


def fitted(steps: list[Measured], flops: float) -> Machine:
    """The machine with the smallest sum of squared relative errors: for each bandwidth on a grid, ever finer, the two fixed costs by least squares, none below 0."""

    def predicted(bandwidth, one_step=0.0, one_layer=0.0):
        return np.concatenate([s.predicted(Machine(flops=flops, bandwidth=bandwidth, step_seconds=one_step, layer_seconds=one_layer)) for s in steps])

    truth = np.concatenate([[s.sampling, s.update] for s in steps])
    plain = predicted(1e9)
    columns = np.stack([predicted(1e9, 1.0, 0.0) - plain, predicted(1e9, 0.0, 1.0) - plain], axis=1) / truth[:, None]  # the same for every bandwidth
    best, low, high = (np.inf, None), 1e9, 1e12
    for _ in range(4):
        grid = np.geomspace(low, high, 31)
        for bandwidth in grid:
            rest = 1 - predicted(bandwidth) / truth
            for used in ([0, 1], [1], [0], []):
                fixed = np.zeros(2)
                if used:
                    fixed[used] = np.linalg.lstsq(columns[:, used], rest, rcond=None)[0]
                error = float(np.sum((columns @ fixed - rest) ** 2))
                if (fixed >= 0).all() and error < best[0]:
                    best = error, Machine(flops=flops, bandwidth=bandwidth, step_seconds=fixed[0], layer_seconds=fixed[1])
        low, high = best[1].bandwidth * grid[0] / grid[1], best[1].bandwidth * grid[1] / grid[0]
    return best[1]


def faster(machine: Machine, times: float) -> Machine:
    """The same machine, everything so many times as fast."""
    change = {"flops": times, "bandwidth": times, "step_seconds": 1 / times, "layer_seconds": 1 / times}
    return machine.model_copy(update={name: getattr(machine, name) * by for name, by in change.items()})


def grid_steps(lines: list[dict], prompts: int = PROMPTS) -> dict[Cell, tuple[Measured, list[dict]]]:
    """{cell: (medians over rounds, the rounds)}."""
    steps = {}
    for cell in dict.fromkeys(Cell(*line["cell"]) for line in lines):
        mine = [line for line in lines if Cell(*line["cell"]) == cell]
        work = Work(prompts=prompts, group=cell.group, prompt=PROMPT_TOKENS, rationale=step.Size.tokens, reveal=cell.reveal, grad_groups=np.mean([r["grad_groups"] for r in mine]))
        medians = (float(np.median([r[part] for r in mine])) for part in ("sampling", "update"))
        steps[cell] = Measured(work, shape(cell.size), {}, *medians), mine
    return steps


def stored_steps(facts: dict) -> dict[tuple[str, float], Measured]:
    """{(way, reveal): the step benchmark's medians}."""
    size, steps = facts["settings"], {}
    for reveal, key, split in ((0.0, "reveal_0", "split"), (0.75, "reveal_075", "split_reveal_075")):
        longest = max(size["hidden_reveal_075"]) if reveal else size["tokens"]
        work = Work(prompts=size["prompts"], group=size["group"], prompt=PROMPT_TOKENS, rationale=size["tokens"], reveal=reveal, longest=longest)
        ours, trl = facts[split]["ours"], facts[split]["trl"]
        row = PROMPT_TOKENS + size["tokens"] - work.hidden().min() + longest
        at_once = size["trl_setting"][key]["per_device_train_batch_size"] * int(row)
        steps["packed", reveal] = Measured(work, SHAPES["tiny"], {}, ours["rollout"], ours["update"])
        steps["padded", reveal] = Measured(work, SHAPES["tiny"], {"way": "padded", "update_tokens": at_once}, trl["generate"], trl["update"])
    return steps


def speed_against(steps: list[Measured], machine: Machine) -> float:
    """How many times as fast the machine must be for the predictions of these steps to be right on (geometric) average."""
    return float(np.exp(np.mean([np.log(s.predicted(machine) / [s.sampling, s.update]) for s in steps])))


def rows_of(where: dict, used: str, measured: Measured, machine: Machine, lines: list[dict] | None = None) -> list[dict]:
    """Table rows of one step. low, high: quartiles of the processor seconds; wall: median of the clock's."""
    rows = []
    for part, seconds, predicted in zip(("sampling", "update"), (measured.sampling, measured.update), measured.predicted(machine)):
        low, high = np.quantile([r[part] for r in lines], [0.25, 0.75]) if lines else (np.nan, np.nan)
        wall = np.median([r[f"wall_{part}"] for r in lines]) if lines else seconds
        about = {**where, "parameters": measured.shape.parameters, "group": measured.work.group, "reveal": measured.work.reveal, "part": part, "used": used}
        rows.append({**about, "measured": seconds, "low": low, "high": high, "wall": wall, "predicted": predicted, "error": predicted / seconds - 1})
    return rows


def errors(table: pd.DataFrame) -> dict[str, dict]:
    """Median and worst relative error, and how many numbers, of each part of the table; |predicted / measured - 1|."""
    found = {}
    for name, part in table.groupby(["source", "used", "part"]):
        size = part.error.abs()
        worst = part.loc[size.idxmax()]
        where = f"{worst['size']}, {worst.way}, G = {worst.group}, reveal {worst.reveal:g}"
        found[", ".join(name)] = {"n": len(part), "median": round(float(size.median()), 4), "worst": round(float(worst.error), 4), "worst_at": where}
    return found


def results(lines: list[dict], stored: dict, prompts: int = PROMPTS) -> tuple[pd.DataFrame, dict]:
    """The table, and the calibrated constants with the errors."""
    grid = grid_steps(lines, prompts)
    flops = float(np.median([line["flops"] for line in lines]))

    def used(cell: Cell) -> str:
        return "calibration" if cell.size in CALIBRATION["sizes"] and cell.group in CALIBRATION["groups"] else "held out"

    machine = fitted([m for cell, (m, _) in grid.items() if used(cell) == "calibration"], flops)
    rows = []
    for cell, (m, mine) in grid.items():
        rows += rows_of({"source": "grid", "way": "packed", "size": cell.size}, used(cell), m, machine, mine)
    steps, speeds = stored_steps(stored), {}
    for way in ("packed", "padded"):
        speeds[way] = speed_against([steps[way, 0.0]], machine)
        for reveal in (0.0, 0.75):
            rows += rows_of({"source": "step benchmark", "way": way, "size": "0.13 M"}, "held out" if reveal else "calibration", steps[way, reveal], faster(machine, speeds[way]))
    table = pd.DataFrame(rows)
    ratios = {}
    for reveal in (0.0, 0.75):
        seconds = {way: (sum((steps[way, reveal].sampling, steps[way, reveal].update)), steps[way, reveal].predicted(faster(machine, speeds[way])).sum()) for way in speeds}
        ratios[f"reveal {reveal:g}"] = {name: round(float(seconds["padded"][i] / seconds["packed"][i]), 3) for i, name in enumerate(("measured", "predicted"))}
    facts = {
        "calibrated": machine.model_dump(),
        "step_benchmark_speed": {way: round(v, 4) for way, v in speeds.items()},
        "step_benchmark_padded_over_packed": ratios,
        "errors": errors(table),
    }
    return table, facts


def about_machine(lines: list[dict]) -> dict:
    loads = [line["load"] for line in lines]
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")}}
    load = {"lowest": round(min(loads), 2), "median": round(float(np.median(loads)), 2), "highest": round(max(loads), 2)}
    return {"cpu": step.cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_average": load, "versions": versions}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cost", description="The model of cost against the clock; writes cost.csv and cost.json.")
    parser.add_argument("--rounds", type=int, default=4, help="times that each step is measured (default 4)")
    parser.add_argument("--runs", type=Path, default=Path("runs/cost"), help="folder for the measurements, from which a second call goes on")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for cost.csv and cost.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = started(args.runs, " ".join(["python -m tests.benchmarks.cost", *(sys.argv[1:] if argv is None else argv)]))
    try:
        stored = facts_of("step_benchmark")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    lines = measure(args.rounds, args.runs / "measured.jsonl")
    table, facts = results(lines, stored)
    settings = {"rounds": args.rounds, "prompts": PROMPTS, "prompt_tokens": PROMPT_TOKENS, "tokens": step.Size.tokens, "product": PRODUCT, "calibration": CALIBRATION}
    share = [(line["sampling"] + line["update"]) / (line["wall_sampling"] + line["wall_update"]) for line in lines]
    disturbance = {"processor_share_of_clock": {"lowest": round(min(share), 3), "median": round(float(np.median(share)), 3)}}
    store("cost", table, {**about, **facts, "seeds": [0], "settings": settings, "disturbance": disturbance, "machine": about_machine(lines)}, args.results)
    print(json.dumps(facts["errors"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
