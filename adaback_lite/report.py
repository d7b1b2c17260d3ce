"""Tables over runs, and a notebook as one HTML file that needs no network.

methods_table(runs)        a row for each method, over its seeds
html_export(ipynb, html)   also from the command line: python -m adaback_lite.report executed.ipynb page.html
"""

import os
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
import torch
from nbconvert import HTMLExporter

from .build import build_task
from .charts import logs_of
from .errors import UserError
from .evaluate import judge, make_prefix
from .rollout import sample_rollouts
from .runs import Run
from .seeding import torch_generator

# What would make a browser fetch something. A link to click on is not among it.
NETWORK = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//|@import\s+(?:url\()?[\"']?(?:https?:)?//", re.IGNORECASE)


def methods_table(runs) -> pd.DataFrame:
    """A row for each method (or label), over its seeds, from the runs' events: means, and "lowest to highest" where there are several seeds.

    `runs` is what the charts take. A run that has not ended shows its last held-out accuracy, and "not ended" beside it.
    """
    rows = {}
    for label, group in logs_of(runs).items():
        ends = [[e for e in events if e["event"] == "end"] for events in group]
        last = [end[-1] if end else _so_far(events) for end, events in zip(ends, group)]
        accuracy = [e["test_accuracy"] for e in last]
        rows[label] = {
            "seeds": len(group),
            "test accuracy": f"{sum(accuracy) / len(accuracy):.3f}",
            "lowest to highest": f"{min(accuracy):.3f} to {max(accuracy):.3f}" if len(group) > 1 else "",
            "rollouts": f"{_mean(last, 'rollouts'):,.0f}",
            "seconds": f"{_mean(last, 'wall'):.0f}",
            "generated tokens": f"{_mean(last, 'generated_tokens'):,.0f}",
            "SFT tokens": f"{_mean(last, 'trained_tokens'):,.0f}",
            "stopped by": ", ".join(dict.fromkeys(e["stopped_by"] for e in last)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _mean(events: list[dict], key: str) -> float:
    return sum(e.get(key, 0) for e in events) / len(events)


def _so_far(events: list[dict]) -> dict:
    """What an "end" event would say of a run that has none yet."""
    found = {"test_accuracy": float("nan"), "rollouts": 0, "wall": 0.0, "generated_tokens": 0}
    for e in events:
        found |= {k: e[k] for k in ("rollouts", "wall", "generated_tokens", "trained_tokens") if k in e}
        if e["event"] == "eval":
            found["test_accuracy"] = e["accuracy"]
    return found | {"stopped_by": "not ended (held-out accuracy)"}


def shown_accuracy(run: Run, hidden: int = 1) -> float:
    """Share of the run's test inputs that its trained policy gets right when all but the last `hidden` tokens of the rationale are revealed.

    It tells a policy that computes what is due from one that is right only along chains of its own choice: on chain-of-parities,
    with one token hidden, guessing gives 0.5 and the parity gives 1.
    """
    config, (model, tokenizer) = run.config, run.load_policy()
    task = build_task(config, tokenizer)
    shown = [max(len(task.rationale_ids(s)) - hidden, 0) for s in task.test]
    prefixes = [make_prefix(task, s, k) for s, k in zip(task.test, shown)]
    noise = torch.rand(len(prefixes), 1, max(p.max_new for p in prefixes), generator=torch_generator(config.seed, "shown", hidden))
    rollouts = sample_rollouts(model, prefixes, noise, tokenizer.eos_token_id, tokenizer.pad_token_id, config.grpo.temperature)
    return judge(task, tokenizer, task.test, shown, rollouts).share("right")


def html_export(ipynb: str | os.PathLike, html: str | os.PathLike) -> Path:
    """Write an executed notebook as one HTML file, pictures inside, and return its path. Raises UserError where it would fetch anything.

    Charts appear as the PNG that `charts.use_offline` puts into the outputs. Formulas need MathJax, from the network, so they stay plain text.
    """
    ipynb, html = Path(ipynb), Path(html)
    try:
        notebook = nbformat.read(ipynb, as_version=4)
    except FileNotFoundError:
        raise UserError(f"There is no notebook {ipynb}; run it first, for example with papermill.") from None
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", jupyter_widgets_base_url="", html_manager_semver_range="", widget_renderer_url="", mermaid_js_url="")
    text, _ = exporter.from_notebook_node(notebook)
    if found := NETWORK.search(text):
        raise UserError(f"{ipynb} as HTML would fetch from the network ({found.group(0)[:80]}); take that output out of the notebook.")
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(text, encoding="utf-8")
    return html


def main(arguments: list[str]) -> int:
    """`python -m adaback_lite.report executed.ipynb page.html [folder of runs]`: the page, and the table of methods. Returns the exit status."""
    if len(arguments) not in (2, 3):
        print("usage: python -m adaback_lite.report executed.ipynb page.html [folder of runs]", file=sys.stderr)
        return 2
    try:
        if len(arguments) == 3:
            runs = [Run(path.parent) for path in sorted(Path(arguments[2]).rglob("events.jsonl"))]
            print(methods_table(runs).to_string() if runs else f"There are no runs in {arguments[2]}.")
        print(html_export(*arguments[:2]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
