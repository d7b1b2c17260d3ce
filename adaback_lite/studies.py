"""The measurements behind the README's numbers: `python -m adaback_lite.studies NAME`.

    solve       AdaBack on L = 16, coupled positions, 5 seeds; then plain RL with at least as many rollouts
    separation  RL, SFT, SFT+RL, R3 and AdaBack on two training inputs, where they differ most, 5 seeds
    map         test accuracy of SFT, SFT+RL, R3 and AdaBack over training inputs and position schemes, 3 seeds

Each trains runs under runs/studies/NAME (a second call goes on where the first was stopped) and writes one row a run to
data/results/NAME.csv, with NAME.json beside it: commit, machine, versions, command.
"""

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import altair as alt
import pandas as pd

from .config import Config, make_config, override
from .parallel import train_many
from .report import shown_accuracy
from .results import store
from .runs import Run, write_atomically
from .trainer import train

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"
SIZES = (16, 64, 256, 1024, 4096)
G = 8  # rollouts a sample, the default


def steps_for(rollouts: int, n_train: int, batch_size: int = 32) -> int:
    """RL steps that make at least so many rollouts."""
    return -(-rollouts // (G * min(batch_size, n_train)))


def solve_configs(root: Path) -> list[Config]:
    """AdaBack until 0.98 of the held-out inputs are right, one run after the other on all cores."""
    return [make_config({"trainer.target_accuracy": 0.98}, method="adaback", seed=seed, out=root / f"adaback-{seed}") for seed in range(5)]


def separation_configs(root: Path, budget: int = 50_000) -> list[Config]:
    """Two training inputs, coupled positions, groups of 32 so that a step still has 64 rollouts: as few data as separate SFT from AdaBack."""
    shared = {"task.n_train": 2, "grpo.group_size": 32, "trainer.target_accuracy": 0.98, "trainer.eval_every": 50, "trainer.max_steps": budget // 64}
    shared |= {"trainer.checkpoint_every": 1000}
    return [make_config(shared, method=m, seed=seed, out=root / f"{m}-{seed}") for seed in range(5) for m in ("adaback", "sft+rl", "r3", "rl")]


def map_configs(root: Path, budget: int = 80_000) -> list[Config]:
    """Every cell of the map for seed 0, then for seeds 1 and 2. SFT is the first stage of SFT+RL, measured before RL starts."""
    configs = []
    for seed in range(3):
        for n in SIZES:
            for positions in ("coupled", "sequential"):
                for method in ("adaback", "sft+rl", "r3"):
                    shared = {"task.n_train": n, "policy.positions": positions, "trainer.target_accuracy": 0.98, "trainer.max_steps": steps_for(budget, n)}
                    shared |= {"trainer.sft_lrs": [3e-4, 1e-3], "trainer.sft_max_steps": 1000, "trainer.checkpoint_every": 1000}
                    configs.append(make_config(shared, method=method, seed=seed, out=root / f"{positions}-{n}-{method}-{seed}"))
    return configs


def rows_of(run: Run) -> list[dict]:
    """One row of a result table for a finished run; two for SFT followed by RL, the first for what SFT alone had reached."""
    c, s = run.config, run.summary
    about = {"positions": c.policy.positions, "n_train": c.task.n_train, "length": c.task.length, "seed": c.seed}
    keys = ("steps", "rollouts", "generated_tokens", "trained_tokens", "test_right", "test_n", "test_accuracy", "stopped_by", "wall_seconds")
    # Right chains may avoid the parity by their choice of Y; with a given Y and all but the last token shown they cannot.
    rows = [{"method": c.method, **about, **{k: s[k] for k in keys}, "last_z_right": shown_accuracy(run, hidden=1)}]
    for e in run.events:
        if e["event"] == "sft_end" and c.method != "sft":
            sft = {"steps": 0, "rollouts": 0, "generated_tokens": 0, "stopped_by": "sft", "wall_seconds": e["wall"]}
            rows.insert(0, {"method": "sft", **about, **{k: e.get(k, sft.get(k)) for k in keys}})
    return rows


def started(root: Path, command: str) -> dict:
    """Commit, date and command of a study's first call, kept beside its runs, since a later call may only collect them."""
    note = root / "started.json"
    if not note.is_file():
        root.mkdir(parents=True, exist_ok=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
        write_atomically(note, json.dumps({"command": command, "commit": commit, "date": date.today().isoformat()}))
    return json.loads(note.read_text())


def write(name: str, runs: list[Run], about: dict, folder: Path) -> pd.DataFrame:
    """Write NAME.csv and NAME.json; returns the table."""
    table = pd.DataFrame([row for run in runs for row in rows_of(run)])
    first = {"machine": runs[0].summary["machine"], "settings_of_the_first_run": runs[0].config.model_dump(mode="json")}
    facts = {**about, "cpu": cpu_name(), "seeds": sorted(table.seed.unique().tolist()), **first}
    store(name, table, facts, folder)
    return table


def draw_map(table: pd.DataFrame) -> alt.Chart:
    """The regime map: mean test accuracy of each method over training inputs and position schemes, with the seeds' range as text.

    `table` is what `write` made, or data/results/map.csv. Blue is solved, white is nothing; a claim that does not hold is seen at a glance.
    """
    over_seeds = {"accuracy": ("test_accuracy", "mean"), "low": ("test_accuracy", "min"), "high": ("test_accuracy", "max"), "seeds": ("seed", "nunique")}
    cells = table.groupby(["positions", "method", "n_train"]).agg(**over_seeds).reset_index()
    cells["range"] = [f"{low:.2f} to {high:.2f}" for low, high in zip(cells.low, cells.high)]
    cells["mean"] = [f"{a:.3f}" if a < 0.1 else f"{a:.2f}" for a in cells.accuracy]
    wide = cells.pivot_table(index=["positions", "n_train"], columns="method", values="accuracy")
    fails, solves = wide[["sft", "sft+rl"]].max(axis=1) < 0.5, wide["adaback"] >= 0.9
    title = alt.TitleParams(
        "Where does the claim hold that SFT and SFT+RL fail and AdaBack solves the task?",
        subtitle=[
            f"In {(fails & solves).sum()} of {len(wide)} columns (all of: both below 0.5, AdaBack at 0.9 or more). SFT alone reaches 0.9 in {(wide['sft'] >= 0.9).sum()} of them.",
            f"Chain-of-Parities, L = 16; mean test accuracy over {cells.seeds.min()} seeds, lowest to highest below it.",
        ],
        anchor="start",
        offset=12,
    )
    names = {"sft": "SFT", "sft+rl": "SFT+RL", "r3": "R3", "adaback": "AdaBack"}
    cells["method"] = cells.method.map(names)
    base = alt.Chart(cells).encode(
        x=alt.X("n_train:O", title="training inputs", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("method:N", title=None, sort=list(names.values())),
    )
    dark = alt.condition(alt.datum.accuracy > 0.55, alt.value("white"), alt.value("#222222"))
    fill = base.mark_rect(stroke="white").encode(color=alt.Color("accuracy:Q", title="test accuracy", scale=alt.Scale(scheme="blues", domain=[0, 1])))
    mean = base.mark_text(dy=-6, fontSize=13).encode(text="mean:N", color=dark)
    spread = base.mark_text(dy=9, fontSize=9).encode(text="range:N", color=dark)
    return alt.layer(fill, mean, spread).properties(width=430, height=200).facet(
        alt.Column("positions:N", title=None, sort=["coupled", "sequential"], header=alt.Header(labelFontSize=13, labelExpr="datum.value + ' positions'")),
        title=title,
    )  # fmt: skip


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor()


def main(argv: list[str] | None = None) -> None:
    """Run one study."""
    parser = argparse.ArgumentParser(prog="python -m adaback_lite.studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("solve", "separation", "map"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (solve: one after the other, all threads)")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    args = parser.parse_args(argv)
    root = args.runs / args.name
    about = started(root, f"python -m adaback_lite.studies {args.name}")
    if args.name == "solve":
        configs = solve_configs(root)
        runs = [train(c, resume=True) for c in configs]
        most = max(r.summary["rollouts"] for r in runs)
        at_least = {"method": "rl", "trainer.target_accuracy": 0.0, "trainer.max_steps": steps_for(most, 1024)}
        runs += [train(override(c, {**at_least, "out": str(root / f"rl-{c.seed}")}), resume=True) for c in configs]
    else:
        configs = separation_configs(root) if args.name == "separation" else map_configs(root)
        runs = train_many(configs, args.jobs)
    table = write(args.name, runs, about, args.results)
    if args.name == "map":
        draw_map(table).save(args.results / "map.png", ppi=110)
    columns = {"seeds": ("seed", "size"), "accuracy": ("test_accuracy", "mean"), "low": ("test_accuracy", "min"), "high": ("test_accuracy", "max")}
    columns |= {"last_z": ("last_z_right", "mean"), "rollouts": ("rollouts", "median"), "seconds": ("wall_seconds", "median")}
    print(table.groupby(["method", "positions", "n_train"]).agg(**columns).round(3).to_string())


if __name__ == "__main__":
    sys.exit(main())
