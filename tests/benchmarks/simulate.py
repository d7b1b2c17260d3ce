"""How long a simulation takes: a thousand samples over two hundred visits, and the chart that is drawn from it.

    python -m tests.benchmarks.simulate --out data/results/simulator_benchmark.json

One JSON line goes to stdout. The goal is a slider that answers at once: under 100 ms a simulation, on one core. Each number is over
`--repeats` of one `simulate()` of simulate.py's own defaults, the methods by turns, after one warm-up each:

    seconds             wall clock: lowest, lower quartile, median, upper quartile
    cpu_seconds         the same of this thread's time on a processor, which waiting for one does not count in
    curriculum_seconds  of the wall clock, lowest: what the curriculum's own reveal() and update() take
    chart_seconds       simulation_charts.overview of AdaBack and R3, down to the specification that a browser draws

Another program on the machine's other cores slows this one as well (shared caches and clock): look at `machine.load_average`.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

from adaback_lite import simulation_charts
from adaback_lite.config import CurriculumSettings
from adaback_lite.curricula import make_curriculum
from adaback_lite.simulate import BATCH, VISITS, LearnerSettings, simulate
from tests.benchmarks.step import cpu_model, stamped, write

GOAL = 0.1
METHODS = ("adaback", "frontier", "r3", "uft", "anneal", "rl")


class Timed:
    """A curriculum, and the seconds spent in it."""

    def __init__(self, curriculum):
        self._curriculum, self.seconds = curriculum, 0.0

    def __getattr__(self, name):
        return getattr(self._curriculum, name)

    def reveal(self, sample_ids, step):
        start = time.perf_counter()
        rho = self._curriculum.reveal(sample_ids, step)
        self.seconds += time.perf_counter() - start
        return rho

    def update(self, sample_ids, rho, reward):
        start = time.perf_counter()
        self._curriculum.update(sample_ids, rho, reward)
        self.seconds += time.perf_counter() - start


def curriculum_seconds(method: str, learner: LearnerSettings, visits: int, batch_size: int) -> float:
    name = {"rl": "none"}.get(method, method)
    timed = Timed(make_curriculum(name, CurriculumSettings(), learner.samples, 0, learner.steps))
    simulate(timed, learner, visits, batch_size)
    return timed.seconds


def quartiles(seconds: list[float]) -> dict[str, float]:
    names = ("lowest", "lower_quartile", "median", "upper_quartile")
    return {name: round(float(value), 5) for name, value in zip(names, np.quantile(seconds, [0, 0.25, 0.5, 0.75]))}


def benchmark(samples: int = 1000, visits: int = VISITS, batch_size: int = BATCH, repeats: int = 30) -> dict:
    """Everything, as one dict."""
    learner = LearnerSettings(samples=samples)
    wall, cpu, inside = ({m: [] for m in METHODS} for _ in range(3))
    chart = []
    for repeat in range(repeats + 1):
        simulations = {}
        for m in METHODS:
            start, start_cpu = time.perf_counter(), time.thread_time()
            simulations[m] = simulate(m, learner, visits, batch_size)
            seconds, cpu_seconds = time.perf_counter() - start, time.thread_time() - start_cpu
            own = curriculum_seconds(m, learner, visits, batch_size)
            if repeat:
                wall[m].append(seconds)
                cpu[m].append(cpu_seconds)
                inside[m].append(own)
        start = time.perf_counter()
        simulation_charts.overview({m: simulations[m] for m in ("adaback", "r3")}).to_dict()
        if repeat:
            chart.append(time.perf_counter() - start)
    return {
        "goal_seconds": GOAL,
        "reached": {m: bool(np.median(wall[m]) < GOAL) for m in METHODS},
        "seconds": {m: quartiles(wall[m]) for m in METHODS},
        "cpu_seconds": {m: quartiles(cpu[m]) for m in METHODS},
        "curriculum_seconds": {m: round(min(inside[m]), 5) for m in METHODS},
        "chart_seconds": quartiles(chart),
        "settings": {**learner.model_dump(), "visits": visits, "batch_size": batch_size, "repeats": repeats},
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "load_average": [round(x, 2) for x in os.getloadavg()],
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
        },
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.simulate", description="Times of the simulator; one JSON line on stdout.")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--visits", type=int, default=VISITS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--repeats", type=int, default=30, help="timed simulations of each method, after one that is not timed (default 30)")
    parser.add_argument("--out", type=Path, help="also write the JSON here, with commit and command")
    args = parser.parse_args(argv)
    result = benchmark(args.samples, args.visits, args.batch_size, args.repeats)
    write(args.out, stamped(result, "tests.benchmarks.simulate", argv))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
