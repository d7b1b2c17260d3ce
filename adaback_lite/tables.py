"""What the commands print as tables. rich is imported late, as it takes a while."""

import os
import sys
from typing import Any


def console():
    """Where tables go: as wide as the terminal, or 160 columns in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 160)), highlight=False)


# ---------------------------------------------------------------- evaluations


def print_evaluation(result: dict) -> None:
    """One run's values below each other."""
    from rich.table import Table

    total = result["n"] * result["samples"] * len(result["seeds"])
    print(f"{result['run']}, step {result['step']}: {sampled_in_words(result)}")
    table = Table()
    several = len(result["seeds"]) > 1
    for name in ("", "share", "95 % interval", *([f"seed {seed}" for seed in result["seeds"]] if several else [])):
        table.add_column(name, justify="left" if not name else "right")
    for k, value in result["pass_at_k"].items():
        by_seed = [f"{v:.4f}" for v in value["by_seed"]] if several else []
        table.add_row(f"pass@{k}", f"{value['value']:.4f}", f"{value['ci95'][0]:.4f} to {value['ci95'][1]:.4f}", *by_seed)
    for kind in ("right", "wrong", "unparseable", "timeout"):
        table.add_row(kind, f"{result[kind] / total:.4f}", f"{result[kind]:,} of {total:,} outputs", style="dim")
    console().print(table)
    if several:
        print("; ".join(f"pass@{k} goes from {v['lowest']:.4f} to {v['highest']:.4f} over the seeds" for k, v in result["pass_at_k"].items()) + ".")


def print_evaluations(results: list[dict]) -> None:
    """A row for each run, then the mean, lowest and highest of all."""
    print(sampled_in_words(results[0]))
    table = runs_table(results)
    over = over_runs(results)
    table.add_section()
    for name in ("mean", "lowest", "highest"):
        table.add_row(name, "", *(text for value in over.values() for text in (f"{value[name]:.4f}", "")))
    console().print(table)


def over_runs(results: list[dict]) -> dict[str, dict[str, float]]:
    """Mean, lowest and highest of the runs' values, for each k."""
    over = {}
    for k in results[0]["pass_at_k"]:
        values = [r["pass_at_k"][k]["value"] for r in results]
        over[k] = {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
    return over


def runs_table(results: list[dict]):
    """A row for each run: its values, the shares of the kinds of outputs, and how long these are."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    passes = [name for k in results[0]["pass_at_k"] for name in (f"pass@{k}", "95 % interval")]
    for name in ("run", "step", *passes, "right", "wrong", "unparseable", "timeout", "tokens each"):
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for r in results:
        total = r["n"] * r["samples"] * len(r["seeds"])
        values = [text for v in r["pass_at_k"].values() for text in (f"{v['value']:.4f}", f"{v['ci95'][0]:.4f} to {v['ci95'][1]:.4f}")]
        shares = [f"{r[kind] / total:.4f}" for kind in ("right", "wrong", "unparseable", "timeout")]
        table.add_row(Text(r["run"]), f"{r['step']:,}", *values, *shares, f"{r['tokens'] / total:.1f}")
    return table


def sampled_in_words(result: dict) -> str:
    """'512 test problems, 4 outputs each, with each of 3 seeds'."""
    seeds = f", with each of {len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else ""
    return f"{result['n']} {result['split']} problems, {result['samples']} {'output' if result['samples'] == 1 else 'outputs'} each{seeds}"


# ---------------------------------------------------------------- runs


def print_runs(facts: list[dict[str, Any]]) -> None:
    """What is known of runs: one run's facts below each other, or a row for each of several; then what was seen to go wrong."""
    from rich.table import Table
    from rich.text import Text

    if len(facts) == 1:
        table = Table(title=facts[0]["run"], show_header=False, title_justify="left")
        for name, value in facts[0].items():
            if name not in ("run", "diagnoses") and value:
                table.add_row(name, Text(value))
    else:
        table = Table()
        columns = [name for name in facts[0] if name != "diagnoses" and any(f[name] for f in facts)]
        for name in columns:
            table.add_column(name, justify="left" if name in ("run", "method", "state", "stopped by") else "right", overflow="fold")
        for f in facts:
            table.add_row(*(Text(f[name]) for name in columns))
    out = console()
    out.print(table)
    for f in facts:
        for text in f["diagnoses"]:
            out.print(Text(f"{f['run']}: {text}" if len(facts) > 1 else text))


def run_facts(run) -> dict[str, Any]:
    """What a run's folder says of it, as text; '' for what it does not say. "diagnoses" is a list of sentences."""
    from .runs import being_written, go_on_command

    config, events, summary = run.config, run.events, run.summary
    steps = [e for e in events if e["event"] == "step"]
    evals = [e for e in events if e["event"] == "eval"]
    sfts = [e for e in events if e["event"] == "sft"]
    last = steps[-1] if steps else None
    if summary:
        state = "finished"
    elif being_written(run.folder):
        state = "running"
    else:
        state = f"stopped; go on with: {go_on_command(run.folder, events)}"
    facts: dict[str, Any] = {"run": str(run.folder), "method": config.method, "seed": str(config.seed), "state": state}
    facts["step"] = f"{last['step'] if last else 0:,} of {config.trainer.max_steps:,}" if config.curriculum_name else ""
    facts["SFT"] = f"step {sfts[-1]['step']} at learning rate {sfts[-1]['lr']:g}, held-out loss {sfts[-1]['val_loss']:.3f}" if sfts and not summary else ""
    facts["rollouts"] = f"{last['rollouts']:,}" if last else ""
    facts["reward"] = f"{last['mean_reward']:.3f}" if last else ""
    facts["rho"] = f"{last['mean_rho']:.3f}" if last else ""
    facts["held out"] = f"{evals[-1]['accuracy']:.3f}" if evals else ""
    facts["test accuracy"] = "{:.3f} ({:.3f} to {:.3f})".format(summary["test_accuracy"], *summary["test_accuracy_ci95"]) if summary else ""
    wall = summary["wall_seconds"] if summary else next((e["wall"] for e in reversed(events) if "wall" in e), 0.0)
    facts["seconds"] = f"{wall:,.1f}"
    facts["stopped by"] = summary["stopped_by"] if summary else ""
    facts["diagnoses"] = [f"Step {e['step']}: {e['text']} {e['advice']}" for e in events if e["event"] == "diagnosis"]
    return facts


def print_result(run) -> None:
    """What a finished run came to, and what it saw go wrong."""
    s = run.summary
    low, high = s["test_accuracy_ci95"]
    print(
        f"{run.folder}: {s['method']}, seed {s['seed']}: test accuracy {s['test_accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, {s['test_right']} of {s['test_n']}),"
        f" {s['wall_seconds']:.1f} s, {s['steps']} steps, {s['rollouts']:,} rollouts, stopped by {s['stopped_by']}"
    )
    for event in run.events:
        if event["event"] == "diagnosis":
            print(f"  step {event['step']}: {event['text']} {event['advice']}")


# ---------------------------------------------------------------- models


def print_models() -> None:
    """The listed models, and which of them are here."""
    from rich.table import Table

    from .models import LISTED, at_hand

    table = Table()
    for name in ("name", "on the Hub", "parameters", "licence", "at hand?", "note"):
        table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
    for m in LISTED.values():
        table.add_row(m.name, m.source, m.parameters, m.licence, at_hand(m.name), m.note)
    console().print(table)
