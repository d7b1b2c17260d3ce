"""What LoRA and 4 bits save and what they cost: memory, speed and quality of the same model, measured on this machine.

    python -m adaback_lite.footprint --out data/results/footprint.json      some minutes; also writes footprint.csv beside it

Each kind of policy is measured in a process of its own, so that one kind's memory is not counted for the next. A kind that is
done stands as a line in <runs>/rows.jsonl, and is only read when it is asked for again with the same settings on the same machine.
"""

import argparse
import ctypes
import gc
import hashlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .build import build_policy, build_task, new_optimizer
from .config import Config, make_config
from .errors import UserError
from .evaluate import make_prefix
from .packing import packed_logprobs
from .policy import has_adapter
from .rollout import sample_rollouts
from .runs import read_events, write_atomically
from .sampler import MergedCopy
from .seeding import numpy_generator, torch_generator
from .sft import rationale_loss

MB = 1e6  # bytes
LORA = {"policy.lora_rank": 16}
KINDS: dict[str, dict] = {
    "float32": {"policy.dtype": "float32"},
    "bfloat16": {"policy.dtype": "bfloat16"},
    "float32 + LoRA": {"policy.dtype": "float32", **LORA, "policy.sampling": "adapter"},
    "NF4 + LoRA": {"policy.quantize": "nf4", **LORA, "policy.sampling": "adapter"},
    "NF4 + LoRA, merged": {"policy.quantize": "nf4", **LORA, "policy.sampling": "merged"},
}
REFERENCE = "float32"  # what the others' quality is compared with
SETTINGS = {"policy.name": "smollm2", "task.name": "gsm-symbolic", "task.shots": 1}


def footprint(
    out: str | os.PathLike = "runs/footprint",
    kinds: Sequence[str] = tuple(KINDS),
    settings: dict | None = None,
    problems: int = 24,
    groups: int = 2,
    group_size: int = 8,
    written: int = 32,
    repeats: int = 3,
    threads: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """A row for each kind, see `table_of`: what `measured` finds, with the same arguments. Resumable."""
    return table_of(measured(out, kinds, settings, problems, groups, group_size, written, repeats, threads, progress))


def measured(out, kinds, settings, problems, groups, group_size, written, repeats, threads, progress) -> list[dict]:
    """What was measured of each kind, now or earlier: the lines of <out>/rows.jsonl.

    Args:
        out: folder for what is measured.
        kinds: names from KINDS.
        settings: dotted settings over SETTINGS, for example another policy.name or task.name.
        problems: held-out problems whose rationales the quality is measured on.
        groups, group_size, written: sampling and an update are timed on so many training problems, outputs of each, and tokens of each output.
        repeats: how often each is timed, after one time that does not count.
        threads: CPU threads; 0 leaves torch's own choice.
        progress: print a line for each kind that is measured.

    Raises UserError for an unknown kind, for settings that are wrong, and for a kind that this machine cannot hold.
    """
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or not kinds:
        raise UserError(f"kinds names {unknown[0] if unknown else 'nothing'!r}; choose from: {'; '.join(KINDS)}.")
    options = {"problems": problems, "groups": groups, "group_size": group_size, "written": written, "repeats": repeats}
    wrong = [name for name, value in options.items() if value < (2 if name == "group_size" else 1)]
    if wrong:
        raise UserError(f"{wrong[0]} is {options[wrong[0]]}, but it must be at least {2 if wrong[0] == 'group_size' else 1}.")
    path, rows = Path(out) / "rows.jsonl", []
    here = this_machine()
    for kind in kinds:
        asked = {"settings": settings_of(kind, settings, problems, groups, group_size), **options, "threads": threads}
        make_config(asked["settings"])  # a wrong setting is said at once, not after minutes
        key = hashlib.sha256(json.dumps([asked, here], sort_keys=True).encode()).hexdigest()[:16]
        row = next((e for e in read_events(path) if e["key"] == key), None)
        if row is None:
            begin = time.perf_counter()
            row = {"event": "footprint", "key": key, "kind": kind, **in_a_process(kind, asked), "asked": asked, "machine": here, "date": date.today().isoformat()}
            append_line(path, row)
            if progress:
                print(f"{kind}: measured in {time.perf_counter() - begin:.0f} s", flush=True)
        rows.append(row)
    return rows


def settings_of(kind: str, settings: dict | None, problems: int, groups: int, group_size: int) -> dict:
    """All dotted settings of one measurement."""
    sizes = {"task.n_train": groups, "task.n_val": problems, "task.n_test": 1, "grpo.group_size": group_size}
    return {**SETTINGS, **(settings or {}), **sizes, **KINDS[kind]}


def this_machine() -> dict:
    """What the numbers depend on besides the settings. What torch sees of a GPU is part of it."""
    from .studies import cpu_name
    from .trainer import machine

    versions = {name: importlib.metadata.version(name) for name in ("bitsandbytes", "peft")}
    gpu = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {**machine(), "threads": os.environ.get("OMP_NUM_THREADS", "torch's choice"), "cpu": cpu_name(), **versions, **gpu}


def append_line(path: Path, row: dict) -> None:
    """Add a line, after cutting off what a kill left half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


# ---------------------------------------------------------------- one kind, in a process of its own


def in_a_process(kind: str, asked: dict) -> dict:
    """What `measure` finds, in a new process. Raises UserError when that process fails or is killed."""
    code = "import sys; from adaback_lite.footprint import child; child(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(asked)], capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    said = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    if "error" in said:
        raise UserError(said["error"])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing, as when memory runs out"])[-1]
        raise UserError(f"Measuring {kind!r} ended with status {done.returncode} ({last[:160]}); leave that kind out, or set smaller groups, written or problems.")
    return said


def child(asked: str) -> None:
    """Measure and print the result as the last line: what the new process runs."""
    try:
        found = measure(**json.loads(asked))
    except UserError as error:
        found = {"error": str(error)}
    print("\n" + json.dumps(found), flush=True)


def measure(settings: dict, problems: int, groups: int, group_size: int, written: int, repeats: int, threads: int = 0) -> dict:
    """Everything about one kind, in this process. Memory in bytes, times in seconds, quality in nats; see `footprint`."""
    if threads:
        torch.set_num_threads(threads)
    config = make_config(settings)
    libraries = resident()
    policy, tokenizer = build_policy(config)
    own_memory(policy)
    task = build_task(config, tokenizer, getattr(policy.config, "max_position_embeddings", None))
    merged = MergedCopy(policy) if has_adapter(policy) and config.policy.sampling == "merged" else None
    told = reset_peak(policy.device)
    nats = rationale_nats(merged.model if merged else policy, task, task.val, tokenizer.pad_token_id)
    sampling = times_sampling(policy, merged, task, group_size, written, repeats, tokenizer.pad_token_id, policy.device)
    peak_sampling = peak(policy.device) if told else None
    update, tokens = times_update(policy, config, task, group_size, written, repeats, tokenizer.pad_token_id)
    return {
        "dtype": str(policy.dtype).removeprefix("torch."),
        "device": policy.device.type,
        "threads": torch.get_num_threads(),
        "parameters": dense_size(policy),
        "trained": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "weight_bytes": weight_bytes(*([policy, merged.model] if merged else [policy])),
        "library_bytes": libraries,
        "peak_sampling_bytes": peak_sampling,
        "peak_update_bytes": peak(policy.device) if told else None,
        "sampling_seconds": sampling,
        "sampled_tokens": len(task.train) * group_size * written,
        "update_seconds": update,
        "update_tokens": tokens,
        "nats": [n for n, _ in nats],
        "nats_tokens": [t for _, t in nats],
    }


def rationale_nats(model, task, samples, pad_id: int) -> list[tuple[float, int]]:
    """(nats, tokens) of each sample's rationale and end token, given its prompt."""
    found = []
    with torch.no_grad():
        for sample in samples:
            loss, tokens = rationale_loss(model, task, [sample], pad_id)
            found.append((float(loss) * tokens, tokens))
    return found


def times_sampling(policy, merged, task, G: int, written: int, repeats: int, pad_id: int, device) -> list[float]:
    """Seconds to write G outputs for each training sample, every one to its full length, so that all kinds write as many tokens. Merging counts too."""
    prefixes = [replace(make_prefix(task, s), max_new=written) for s in task.train]
    noise = torch.rand(len(prefixes), G, written, generator=torch_generator("footprint", "noise"))

    def sample():
        model = merged.refresh() if merged else policy
        rollouts = sample_rollouts(model, prefixes, noise, eos_id=-1, pad_id=pad_id)
        assert int(rollouts.mask.sum()) == noise.numel()

    return times(sample, repeats, device)


def times_update(policy, config: Config, task, G: int, written: int, repeats: int, pad_id: int) -> tuple[list[float], int]:
    """(seconds, tokens with a loss) of forward, backward and Adam's step on G outputs for each training sample, a sample at a time.

    The outputs are the beginnings of the rationales, the same for every kind. The learning rate is 0: it costs as much and changes nothing.
    """
    optimizer = new_optimizer(policy, 0.0)
    batches = []
    for sample in task.train:
        ids = (task.rationale_ids(sample) + [task.tokenizer.eos_token_id])[:written]
        batches.append((make_prefix(task, sample), torch.tensor(ids).expand(1, G, -1)))
    total = sum(tokens.numel() for _, tokens in batches)

    def update():
        optimizer.zero_grad()
        for prefix, tokens in batches:
            logp, _ = packed_logprobs(policy, [prefix], tokens, torch.ones_like(tokens, dtype=torch.bool), pad_id)
            (-logp.sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grpo.max_grad_norm)
        optimizer.step()

    return times(update, repeats, policy.device), total


def times(work, repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of `repeats` calls, after one that does not count."""
    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return found[1:]


# ---------------------------------------------------------------- bytes


def weight_bytes(*models) -> int:
    """Bytes of all weights and buffers, shared ones once, the scales of 4-bit weights included (transformers' get_memory_footprint leaves those out)."""
    tensors = {}
    for model in models:
        for t in [*model.parameters(), *model.buffers()]:
            tensors[id(t)] = t
            tensors |= {id(s): s for s in scales(getattr(t, "quant_state", None))}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def scales(state) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside the packed numbers: a scale a block, and with double quantisation the scales' own scales and their mean."""
    if state is None:
        return []
    return [state.absmax, *([state.state2.absmax, state.offset] if state.nested else [])]


def dense_size(policy) -> int:
    """Parameters of the frozen model alone, 4-bit ones by the numbers they stand for."""
    of = lambda p: p.quant_state.shape.numel() if getattr(p, "quant_state", None) is not None else p.numel()  # noqa: E731
    return sum(of(p) for name, p in policy.named_parameters() if "lora_" not in name)


def own_memory(model) -> None:
    """Copy what is still mapped from the file of weights, so that the file no longer counts as this process's memory: all kinds on one footing.

    One mapped tensor keeps the whole file mapped, and what was read of it counts: 0.5 GB for SmolLM2 in 4 bits, though its weights take 0.2 GB (measured).
    """
    for t in [*model.parameters(), *model.buffers()]:
        if t.device.type == "cpu" and getattr(t, "quant_state", None) is None:
            t.data = t.data.clone()
    gc.collect()


def resident() -> int | None:
    """Bytes of this process that are in memory now, its libraries' included; None where the system does not tell it in /proc."""
    return _status("VmRSS:")


def reset_peak(device: torch.device) -> bool:
    """Start to measure the highest memory anew. False where it cannot be told: on a CPU without Linux's /proc."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what loading has left over
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return _status("VmHWM:") is not None


def peak(device: torch.device) -> int | None:
    """Highest bytes since `reset_peak`: on a GPU what torch has allocated there, on a CPU those of the whole process.

    Not getrusage's ru_maxrss: a process that another starts inherits its parent's peak there (measured: 2 GB instead of 11 MB).
    """
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM:")


def _status(name: str) -> int | None:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


# ---------------------------------------------------------------- the table


def table_of(rows: list[dict]) -> pd.DataFrame:
    """One row a kind.

    Columns: kind, dtype (of computing), trained (parameters) and trained_percent; weights_mb (with what is needed for sampling); library_mb, peak_sampling_mb,
    peak_update_mb (of the process, its libraries included; NaN where it cannot be told); tokens_per_second (sampling) and update_seconds with
    update_tokens, each the median with _low and _high; nll (nats a token), and nll_more with _low and _high: how much more than float32 and its
    95 % interval over problems (NaN where float32 was not measured). MB are 10^6 bytes.
    """
    reference = next((r for r in rows if r["kind"] == REFERENCE), None)
    table = []
    for r in rows:
        speeds = [r["sampled_tokens"] / s for s in r["sampling_seconds"]]
        mb = {f"{k}_mb": np.nan if r[f"{k}_bytes"] is None else r[f"{k}_bytes"] / MB for k in ("library", "peak_sampling", "peak_update")}
        more, low, high = nll_more(r, reference) if reference else (np.nan,) * 3
        table.append(
            {
                "kind": r["kind"], "dtype": r["dtype"], "trained": r["trained"], "trained_percent": 100 * r["trained"] / r["parameters"],
                "weights_mb": r["weight_bytes"] / MB, **mb,
                "tokens_per_second": statistics.median(speeds), "tokens_per_second_low": min(speeds), "tokens_per_second_high": max(speeds),
                "update_seconds": statistics.median(r["update_seconds"]), "update_seconds_low": min(r["update_seconds"]), "update_seconds_high": max(r["update_seconds"]),
                "update_tokens": r["update_tokens"], "problems": len(r["nats"]),
                "nll": sum(r["nats"]) / sum(r["nats_tokens"]), "nll_more": more, "nll_more_low": low, "nll_more_high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(table)


def nll_more(row: dict, reference: dict, draws: int = 4000) -> tuple[float, float, float]:
    """By how many nats a token `row` is worse than `reference` on the same rationales, and the 95 % interval: a percentile bootstrap over problems."""
    more, tokens = np.subtract(row["nats"], reference["nats"]), np.array(row["nats_tokens"])
    drawn = numpy_generator("footprint", "bootstrap").integers(0, len(more), (draws, len(more)))
    low, high = np.quantile(more[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), [0.025, 0.975])
    return float(more.sum() / tokens.sum()), float(low), float(high)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with words for headings, and numbers cut to what they can carry."""

    def number(value: float, digits: int = 0, sign: str = "") -> str:
        return "not told" if pd.isna(value) else f"{value:{sign},.{digits}f}"

    def spread(column: str, digits: int, sign: str = "") -> list[str]:
        value, low, high = ([number(x, digits, sign) for x in table[column + end]] for end in ("", "_low", "_high"))
        return [v if a == b else f"{v} ({a} to {b})" for v, a, b in zip(value, low, high)]

    columns = {
        "trained weights": [f"{r.trained:,} ({r.trained_percent:.3g} %)" for r in table.itertuples()],
        "weights, MB": [number(x) for x in table.weights_mb],
        "libraries, MB": [number(x) for x in table.library_mb],
        "peak when sampling, MB": [number(x) for x in table.peak_sampling_mb],
        "peak when training, MB": [number(x) for x in table.peak_update_mb],
        "tokens a second": spread("tokens_per_second", 0),
        "seconds an update": spread("update_seconds", 1),
        "nats a token": [number(x, 3) for x in table.nll],
        "more than float32": spread("nll_more", 3, "+"),
    }
    return pd.DataFrame(columns, index=pd.Index(table.kind, name="kind"))


COMPARED = (("float32 + LoRA", "float32"), ("NF4 + LoRA", "float32"), ("NF4 + LoRA", "float32 + LoRA"), ("NF4 + LoRA, merged", "NF4 + LoRA"))


def in_words(table: pd.DataFrame) -> list[str]:
    """What the kinds save and cost against each other, a sentence for each of COMPARED that the table holds."""
    kinds, said = table.set_index("kind"), []
    for kind, other in COMPARED:
        if {kind, other} <= set(kinds.index):
            a, b = kinds.loc[kind], kinds.loc[other]
            names = (("weights_mb", "weights"), ("peak_update_mb", "peak memory in training"), ("tokens_per_second", "tokens a second"), ("update_seconds", "seconds an update"))
            times = ", ".join(f"{a[column] / b[column]:.2f} times the {name}" for column, name in names if not pd.isna(a[column] / b[column]))
            said.append(f"{kind} against {other}: {times}, and {a.nll - b.nll:+.3f} nats a token.")
    return said


PANELS = (
    ("weights_mb", "Weights, MB", ",.0f"),
    ("peak_update_mb", "Peak memory when training, MB", ",.0f"),
    ("tokens_per_second", "Tokens a second when sampling", ",.0f"),
    ("update_seconds", "Seconds an update", ".1f"),
    ("nll", "Nats a token on held-out rationales", ".3f"),
)


def draw(table: pd.DataFrame, title: str = "What each kind takes and gives"):
    """Bars of the table, a panel for each measure. A measure that could not be told is left out."""
    import altair as alt

    from . import charts

    colours, panels = charts.colours_of(list(table.kind)), []
    for column, name, form in PANELS:
        if not table[column].isna().all():
            rows = [{"kind": k, "value": float(v), "text": format(v, form)} for k, v in zip(table.kind, table[column]) if not pd.isna(v)]
            base = alt.Chart(alt.Data(values=rows)).encode(
                alt.X("value:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1.25 * max(r["value"] for r in rows)])),
                alt.Y("kind:N", title=None, sort=list(table.kind), axis=alt.Axis(ticks=False, domain=False, labelLimit=180)),
                tooltip=[alt.Tooltip("kind:N"), alt.Tooltip("value:Q", title=name, format=form)],
            )
            bars = base.mark_bar().encode(color=alt.Color("kind:N", legend=None, scale=alt.Scale(domain=list(colours), range=list(colours.values()))))
            words = base.mark_text(align="left", dx=4).encode(text="text:N")
            panels.append(alt.layer(bars, words).properties(width=210, height=22 * len(table), title=alt.TitleParams(name, anchor="start", fontSize=11, fontWeight="normal")))
    return alt.concat(*panels, columns=2).properties(title=alt.TitleParams(title, anchor="start", offset=10)).configure_view(strokeWidth=0)


# ---------------------------------------------------------------- LoRA and NF4 on a layer small enough to see


def fit_adapter(target: np.ndarray, rank: int, steps: int = 400, lr: float = 0.03, scaling: float = 2.0, seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """Train A and B by Adam until scaling * B A is as near to `target` [out, in] as they get. Returns (scaling * B A, relative error before each step and at the end).

    A starts at random and B at 0, as in peft, so the product starts at 0 and the error at 1.
    """
    wanted = torch.as_tensor(target, dtype=torch.float32)
    out, inside = wanted.shape
    bound = inside**-0.5
    A = ((2 * torch.rand(rank, inside, generator=torch_generator("footprint", "adapter", seed)) - 1) * bound).requires_grad_()
    B = torch.zeros(out, rank, requires_grad=True)
    optimizer = torch.optim.Adam([A, B], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    errors = [1.0]
    for _ in range(steps):
        optimizer.zero_grad()
        (scaling * B @ A - wanted).square().sum().backward()
        optimizer.step()
        schedule.step()
        errors.append(float((scaling * B @ A - wanted).detach().norm() / wanted.norm()))
    return (scaling * B @ A).detach().numpy(), errors


def best_of_rank(target: np.ndarray, rank: int) -> np.ndarray:
    """The matrix of this rank that is nearest to `target`: the first singular values alone (Eckart and Young, 1936)."""
    u, s, v = np.linalg.svd(target, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def to_nf4(weight: np.ndarray, double: bool = True, block: int = 64) -> tuple[np.ndarray, float]:
    """A weight after NF4 and back, by bitsandbytes, and the bits that each of its numbers takes, scales included.

    `double` stores the scales in 8 bits too. The two fixed tables of levels, the same for every layer, are not counted. Blocks are cut from the
    rows laid end to end, as always; a block to a row here, because on a CPU bitsandbytes restores rows of another length with wrong scales (0.50.2, measured).
    """
    from bitsandbytes import functional

    rows = torch.as_tensor(weight, dtype=torch.float32).reshape(-1, block)
    packed, state = functional.quantize_4bit(rows, blocksize=block, quant_type="nf4", compress_statistics=double)
    restored = functional.dequantize_4bit(packed, state).reshape(weight.shape).numpy()
    stored = sum(t.numel() * t.element_size() for t in [packed, *scales(state)])
    return restored, 8 * stored / weight.size


def nf4_levels() -> np.ndarray:
    """The 16 values that an NF4 number can take, before it is multiplied by its block's scale."""
    from bitsandbytes import functional

    return functional.get_4bit_type("nf4", device="cpu").numpy()


def gradient_arrives(layer, x: torch.Tensor) -> bool:
    """Whether a gradient comes back through a layer to its input, after it has been called once without one, as sampling does before an update."""
    import warnings

    with torch.no_grad():
        layer(x)
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes' kernel without a gradient warns the second time, not every time
        layer(x).sum().backward()
    return x.grad is not None and bool(x.grad.abs().sum() > 0)


def pictures(matrices: dict[str, np.ndarray], title: str, limit: float | None = None, columns: int = 4):
    """Small matrices as heat maps beside each other, on one scale: blue below 0, white at 0, red above. `limit` is the end of the scale."""
    import altair as alt

    limit = limit or max(float(np.abs(m).max()) for m in matrices.values()) or 1.0
    panels = []
    for name, m in matrices.items():
        cells = [{"row": r, "column": c, "value": float(m[r, c])} for r in range(m.shape[0]) for c in range(m.shape[1])]
        legend = alt.Legend(values=[-limit, -limit / 2, 0, limit / 2, limit], format=".2~g")
        color = alt.Color("value:Q", title=None, legend=legend, scale=alt.Scale(scheme="redblue", reverse=True, domain=[-limit, limit], domainMid=0, clamp=True))
        chart = alt.Chart(alt.Data(values=cells)).mark_rect().encode(alt.X("column:O", axis=None), alt.Y("row:O", axis=None), color=color, tooltip=["row:O", "column:O", "value:Q"])
        size = 140 / max(m.shape)
        panels.append(chart.properties(width=size * m.shape[1], height=size * m.shape[0], title=alt.TitleParams(name, anchor="start", fontSize=11, fontWeight="normal")))
    return alt.concat(*panels, columns=columns).properties(title=alt.TitleParams(title, anchor="start", offset=10)).configure_view(strokeWidth=0)


def levels_chart(weight: np.ndarray, title: str = "NF4's 16 levels, and the weights that they stand for", block: int = 64, bins: int = 80):
    """A histogram of a weight's numbers, each divided by the largest of its block, with NF4's levels as lines."""
    import altair as alt

    from .charts import HEIGHT, WIDTH

    blocks = weight.reshape(-1, block)
    scaled = blocks / np.abs(blocks).max(axis=1, keepdims=True)
    share, edges = np.histogram(scaled, bins=bins, range=(-1, 1))
    bars = [{"left": float(a), "right": float(b), "share": float(n / share.sum())} for a, b, n in zip(edges, edges[1:], share)]
    x = alt.X("left:Q", title="Weight, divided by the largest of its block", scale=alt.Scale(domain=[-1.02, 1.02], nice=False))
    drawn = alt.Chart(alt.Data(values=bars)).mark_rect(color="#0072B2", opacity=0.6).encode(x, alt.X2("right:Q"), alt.Y("share:Q", title="Share of the weights"), alt.Y2Datum(0))
    lines = alt.Chart(alt.Data(values=[{"left": float(v)} for v in nf4_levels()])).mark_rule(color="#D55E00", strokeWidth=1.5).encode(x)
    note = "Bars: the weights. Lines: the 16 levels, dense where the weights are."
    text = alt.TitleParams(title, subtitle=[note], anchor="start", subtitleColor="#555555", subtitleFontSize=11, offset=10)
    return alt.layer(drawn, lines).properties(width=WIDTH, height=HEIGHT, title=text).configure_view(strokeWidth=0)


# ---------------------------------------------------------------- the stored result


def save(rows: list[dict], about: dict, out: Path) -> None:
    """OUT.csv with the table and OUT.json with where it comes from, as adaback_lite.results reads them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    table_of(rows).to_csv(out.with_suffix(".csv"), index=False, float_format="%.6g")
    device = {"device": rows[0]["machine"]["device"]} if rows[0]["device"] == "cuda" else {}
    asked = {k: v for k, v in rows[0]["asked"].items() if k != "settings"}
    facts = {**about, **device, "machine": {**rows[0]["machine"], "threads": rows[0]["threads"]}, "asked": asked, "settings": {r["kind"]: r["asked"]["settings"] for r in rows}}
    write_atomically(out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    from .studies import RESULTS, started

    parser = argparse.ArgumentParser(prog="python -m adaback_lite.footprint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "footprint.json", help="the result; a .csv is written beside it")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies/footprint"), help="folder for what is measured on the way")
    parser.add_argument("--model", default=SETTINGS["policy.name"], help="policy.name (default smollm2)")
    parser.add_argument("--task", default=SETTINGS["task.name"], help="task.name (default gsm-symbolic, which needs no network)")
    parser.add_argument("--data", default="", help="task.data: a folder with the data; without it they come from the Hub")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND", help=f"which to measure, each in quotes: {'; '.join(KINDS)}")
    numbers = {"problems": 24, "groups": 2, "group-size": 8, "written": 32, "repeats": 3, "threads": 0}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"see footprint() (default {value})")
    args = parser.parse_args(argv)
    about = started(args.runs, "python -m adaback_lite.footprint " + " ".join(sys.argv[1:] if argv is None else argv))
    settings = {"policy.name": args.model, "task.name": args.task, "task.data": args.data}
    try:
        rows = measured(args.runs, args.kinds, settings, args.problems, args.groups, args.group_size, args.written, args.repeats, args.threads, progress=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    save(rows, about, args.out)
    print(readable(table_of(rows)).T.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
