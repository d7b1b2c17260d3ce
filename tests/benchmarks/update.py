"""The update of one group of rollouts: the shared part once and logits for suffix tokens only, against the plain way. A table on stdout.

    python -m tests.benchmarks.update [--model smollm2] [--quantize none] [--shots 1] [--shares 0 0.5 0.9] [--groups 2] [--G 8] [--repeats 5] [--out FILE.json]

One model with a LoRA adapter, the same problems, the same rollouts; every side is `adaback_lite.trainer.update`, whole (forward, loss, backward,
clipping, AdamW), on one group at a time. Only the function that gives the log-probabilities differs:

    ours                 packing.packed_logprobs: the group as one sequence, vocabulary logits for suffix tokens, a chunk at a time
    plain                G full sequences, padded on the right; logits [G, T, V] for all tokens, log_softmax, gather, mask
    plain_suffix_logits  the same with logits for the columns of the suffixes only (transformers' logits_to_keep)

First, log-probabilities, loss and every adapter gradient of the sides must agree, in float32. Then peak memory is measured, in a fresh process for each
side and setting, and then times, by turns in one process. README.md here says what is fair about this and why.
"""

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import psutil
import torch
from rich.console import Console
from rich.table import Table

from adaback_lite import trainer
from adaback_lite.build import build_policy, build_task, new_optimizer
from adaback_lite.config import Config, make_config
from adaback_lite.errors import UserError
from adaback_lite.evaluate import make_prefix, shown_at
from adaback_lite.grpo import policy_loss, token_weights
from adaback_lite.packing import Prefix, packed_logprobs
from adaback_lite.seeding import numpy_generator, torch_generator
from tests.benchmarks.step import Peak, cpu_model, stamped, write
from tests.language import byte_model, byte_tokenizer, saved, stir

ROOT = Path(__file__).resolve().parents[2]
CLAIM = 2.0  # times less memory and time than the plain way, at least
STIR = 0.02  # spread of the adapter's B, which starts at 0 and would then let no gradient through to A
TOLERANCE = {"logp": 1e-3, "loss": 1e-4, "gradient": 1e-3}  # largest difference that passes for rounding in float32; of gradients the relative one of the worst tensor


@dataclass(frozen=True)
class Work:
    """What is updated: the model, the prompts, the size of a group."""

    model: str = "smollm2"  # as policy.name
    quantize: str = "none"
    dtype: str = "auto"
    shots: int = 1  # demonstrations before the question
    share: float = 0.0  # of the rationale that is revealed
    groups: int = 2
    G: int = 8


@dataclass(frozen=True)
class Group:
    """The arguments of one update. N = 1 group."""

    prefix: Prefix  # P tokens
    tokens: torch.Tensor  # [1, G, S]
    mask: torch.Tensor  # [1, G, S]
    advantage: torch.Tensor  # [1, G]
    weights: torch.Tensor  # [1, G, S]
    source: str = ""


# ---------------------------------------------------------------- the sides


def plain_logprobs(model, prefixes: list[Prefix], tokens: torch.Tensor, mask: torch.Tensor, pad_id: int, temperature: float = 1.0, suffix_only: bool = False):
    """What packed_logprobs gives, as a textbook does it, for one group. Returns (logp [1, G, S], None).

    Spared what it need not pay for: no entropy, no division by a temperature of 1, no cache, no tensor kept by a name, no mask where nothing is padded.
    """
    (prefix,), G, S, P = prefixes, tokens.shape[1], tokens.shape[2], len(prefixes[0].ids)
    assert temperature == 1.0 and prefix.positions == list(range(P)), "the plain way is written for the ordinary case"
    shared = torch.tensor(prefix.ids).expand(G, P)
    ids = torch.cat([shared, tokens[0].where(mask[0], pad_id)], dim=1).to(model.device)  # [G, T] with T = P + S
    seen = torch.cat([torch.ones_like(shared), mask[0].long()], dim=1).to(model.device)  # [G, T]
    keep = {"logits_to_keep": S + 1} if suffix_only else {}
    log_probs = model(input_ids=ids, attention_mask=seen, use_cache=False, **keep).logits[:, :-1].float().log_softmax(dim=-1)  # [G, T-1 or S, V]
    predicted = ids[:, -log_probs.shape[1] :]
    logp = log_probs.gather(2, predicted[..., None])[..., 0][:, -S:]  # [G, S]
    return (logp * mask[0].to(logp.device))[None], None


SIDES = {"ours": packed_logprobs, "plain": plain_logprobs, "plain_suffix_logits": functools.partial(plain_logprobs, suffix_only=True)}
PEERS = [side for side in SIDES if side != "ours"]


def update(side: str, state: trainer.State, config: Config, group: Group, pad: int) -> tuple[float, float]:
    """One update by one side: (loss, gradient norm)."""
    with mock.patch.object(trainer, "packed_logprobs", SIDES[side]):
        return trainer.update(state, config, [group.prefix], group.tokens, group.mask, group.advantage, group.weights, pad)


# ---------------------------------------------------------------- the work


def config_for(work: Work) -> Config:
    return make_config(
        {
            "policy.name": work.model, "policy.quantize": work.quantize, "policy.dtype": work.dtype, "policy.lora_rank": 16,
            "task.name": "gsm-symbolic", "task.shots": work.shots, "task.n_train": work.groups, "task.n_val": 1, "task.n_test": 1,
            "grpo.group_size": work.G,
        }
    )  # fmt: skip


def build(work: Work):
    """(state, tokenizer). The learning rate is 0: AdamW does its work, and the policy is the same in the last update as in the first."""
    model, tokenizer = build_policy(config_for(work))
    stir(model, STIR)
    return trainer.State(model, new_optimizer(model, 0.0), None), tokenizer


def build_groups(work: Work, model, tokenizer) -> list[Group]:
    """The first problems of the task, cut at the share as in training."""
    config = config_for(work)
    task = build_task(config, tokenizer, getattr(model.config, "max_position_embeddings", None))
    groups = []
    for sample in task.train:
        shown = shown_at(work.share, task, sample, config)
        rest = task.rationale_ids(sample)[shown:]
        names = ("benchmark", "update", sample.id, shown)
        tokens, mask = varied(rest, work.G, len(tokenizer), tokenizer.eos_token_id, names)
        advantage = torch.randn(1, work.G, generator=torch_generator(*names, "advantage"))
        groups.append(Group(make_prefix(task, sample, shown), tokens, mask, advantage, token_weights(mask), sample.source))
    return groups


def varied(rest: list[int], G: int, vocabulary: int, eos: int, names: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """G rollouts made from what is hidden of a rationale, tokens and mask [1, G, S]; S = len(rest) + 1.

    In each, one token in eight (one at least) is another one, by chance; all but the first lack up to a quarter of their end; an end token follows.
    """
    rng, S = numpy_generator(*names), len(rest) + 1
    tokens, mask = torch.full((1, G, S), eos), torch.zeros(1, G, S, dtype=torch.bool)
    for g in range(G):
        n = len(rest) - (int(rng.integers(len(rest) // 4 + 1)) if g else 0)
        own = torch.tensor(rest[:n])
        places = rng.choice(n, max(n // 8, 1), replace=False)
        own[places] = torch.from_numpy(rng.integers(vocabulary, size=len(places)))
        tokens[0, g, :n] = own
        mask[0, g, : n + 1] = True
    return tokens, mask


# ---------------------------------------------------------------- agreement


class Disagreement(Exception):
    """The sides do not compute the same, so their costs cannot be compared."""


@contextlib.contextmanager
def counted(model):
    """{"read": tokens that went through the decoder, "logits": tokens that logits were made for}, padding included, of what runs inside."""
    counts = {"read": 0, "logits": 0}

    def read(module, args, kwargs):
        counts["read"] += kwargs["input_ids"].numel()

    def logits(module, args):
        counts["logits"] += args[0].shape[:-1].numel()

    handles = [model.get_decoder().register_forward_pre_hook(read, with_kwargs=True), model.get_output_embeddings().register_forward_pre_hook(logits)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def compare(model, group: Group, pad: int) -> dict[str, dict]:
    """For each side the tokens of one group, and its largest differences from plain. The model computes in float32.

    The loss is taken at ratios of about 0.9 to 1.1: in `trainer.update`'s first pass they are all 1, and the loss is the same whatever the log-probabilities are.
    Nothing is clipped, which would turn rounding into a jump of the gradient. Raises Disagreement when rounding does not explain a difference.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    noise = 0.2 * torch.rand(group.mask.shape, generator=torch_generator("benchmark", "update", "old")) - 0.1
    result, reference, old = {}, None, None
    for side in sorted(SIDES, key=lambda s: s != "plain"):  # plain first
        with counted(model) as counts:
            logp, _ = SIDES[side](model, [group.prefix], group.tokens, group.mask, pad)
        old = (logp.detach() + noise.to(logp.device)) if old is None else old
        loss = policy_loss(logp, old, group.advantage.to(logp.device), group.weights.to(logp.device), clip_low=1.0, clip_high=9.0)
        gradients = torch.autograd.grad(loss, [p for _, p in trained])
        reference = reference or (logp.detach(), loss.detach(), gradients)
        logp_0, loss_0, gradients_0 = reference
        relative = torch.stack([(g - g_0).norm() / g_0.norm() for g, g_0 in zip(gradients, gradients_0)])  # [trained tensors]
        difference = {"logp": (logp - logp_0).abs().max().item(), "loss": (loss - loss_0).abs().item(), "gradient": relative.max().item()}
        for what, value in difference.items():
            if not value <= TOLERANCE[what]:  # true of NaN, too
                where = f" of {trained[relative.argmax()][0]}" if what == "gradient" else ""
                raise Disagreement(f"The {what}{where} of side '{side}' differs by {value:.2g} from the plain way's, and at most {TOLERANCE[what]:g} is rounding.")
        result[side] = {**counts, "difference": difference}
    return {side: result[side] for side in SIDES}


# ---------------------------------------------------------------- time


def time_updates(state: trainer.State, config: Config, groups: list[Group], pad: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of an update, the mean over the groups, [repeats] for each side. The sides by turns, each repeat beginning with another; one round goes untimed before."""
    cuda, order = state.model.device.type == "cuda", list(SIDES)
    seconds = {side: [] for side in SIDES}
    norms = {side: [update(side, state, config, group, pad)[1] for group in groups] for side in order}
    for i in range(repeats):
        for side in order[i % len(order) :] + order[: i % len(order)]:
            spent = 0.0
            for j, group in enumerate(groups):
                gc.collect()
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                _, norm = update(side, state, config, group, pad)
                if cuda:
                    torch.cuda.synchronize()
                spent += time.perf_counter() - start
                assert abs(norm - norms[side][j]) <= 0.01 * norms[side][j], "an update is not the one before it"
            seconds[side].append(spent / len(groups))
    return seconds


# ---------------------------------------------------------------- memory

MEMORY_METHOD = {
    "cpu": "a fresh process for each side and setting; VmHWM during one update of each group minus VmRSS before, after loading and a tiny update, the mark set back through "
    "/proc/self/clear_refs; where there is no /proc, the rise of ru_maxrss. MB are 2**20 bytes",
    "cuda": "a fresh process for each side and setting; max_memory_allocated during one update of each group minus memory_allocated before, "
    "after loading and a tiny update. MB are 2**20 bytes",
}


def short(group: Group) -> Group:
    """The group's first few tokens: enough to make all that is made once, AdamW's moments and libraries' buffers."""
    prefix = Prefix(group.prefix.ids[:4], group.prefix.positions[:4], 4, 2)
    return Group(prefix, group.tokens[..., :2], group.mask[..., :2], group.advantage, group.weights[..., :2])


def measure_memory(side: str, work: Work) -> dict[str, float]:
    """{"start_mb", "peak_mb"}: what is held before the updates in this process, and how far they rise above it."""
    state, tokenizer = build(work)
    config, pad = config_for(work), tokenizer.pad_token_id
    groups = build_groups(work, state.model, tokenizer)
    update(side, state, config, short(groups[0]), pad)
    state.optimizer.zero_grad()
    gc.collect()
    if state.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated() / 2**20
    else:
        start, peak = psutil.Process().memory_info().rss / 2**20, Peak()
        peak.start()
    for group in groups:
        update(side, state, config, group, pad)
    if state.model.device.type == "cuda":
        return {"start_mb": round(start, 1), "peak_mb": round(torch.cuda.max_memory_allocated() / 2**20 - start, 1)}
    peak.stop()
    return {"start_mb": round(start, 1), "peak_mb": peak.mb}


def memory_in_child(side: str, work: Work) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.update", "--threads", str(torch.get_num_threads()), "--memory", json.dumps({"side": side, "work": asdict(work)})]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)


# ---------------------------------------------------------------- the whole


def benchmark(works: list[Work], repeats: int, memory=memory_in_child, say=lambda line: None) -> dict:
    """Everything, as one dict. The works differ in shots and share only. `memory(side, work)` measures a peak; None leaves memory out."""
    state, tokenizer = build(replace(works[0], dtype="float32"))  # bfloat16 rounds so coarsely that a wrong gradient could pass for rounding
    groups, pad = [build_groups(work, state.model, tokenizer) for work in works], tokenizer.pad_token_id
    compared = [[compare(state.model, group, pad) for group in some] for some in groups]
    say("the sides agree")
    del state  # the children need the memory
    gc.collect()
    peaks = []
    for work in works:
        peaks.append({side: memory(side, work) for side in SIDES} if memory else None)
        say(f"{work.shots} demonstrations, {work.share:g} revealed: memory {peaks[-1]}")
    state, _ = build(works[0])
    settings = []
    for work, some, each, peak in zip(works, groups, compared, peaks):
        seconds = time_updates(state, config_for(work), some, pad, repeats)
        settings.append(report(work, some, each, seconds, peak))
        say(f"{work.shots} demonstrations, {work.share:g} revealed: seconds {settings[-1]['seconds']}")
    device, packages = state.model.device.type, ("torch", "transformers", "peft", "bitsandbytes", "reasoning-gym")
    return {
        "claim": f"at least {CLAIM:g} times less peak memory and time than plain",
        "least": {what: min(s["times_less"]["plain"][what] for s in settings) if what != "memory" or memory else None for what in ("seconds", "memory")},
        "settings": settings,
        "work": {k: v for k, v in asdict(works[0]).items() if k not in ("shots", "share")},
        "repeats": repeats,
        "policy": {"lora_rank": 16, "lora_targets": "all-linear", "dtype": str(state.model.dtype), **trainer.sizes(state.model)},
        "memory_method": MEMORY_METHOD[device],
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "load_average": [round(x, 2) for x in os.getloadavg()],
            "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}},
        },
    }


def report(work: Work, groups: list[Group], compared: list[dict], seconds: dict, peak: dict | None) -> dict:
    """One setting's numbers. `times_less` is the peer's number over ours."""
    tokens = {side: {what: sum(c[side][what] for c in compared) / len(groups) for what in ("read", "logits")} for side in SIDES}
    median = {side: statistics.median(values) for side, values in seconds.items()}
    ratios = {}
    for peer in PEERS:
        each = [p / o for p, o in zip(seconds[peer], seconds["ours"])]
        ratios[peer] = {
            "seconds": round(median[peer] / median["ours"], 2),
            "seconds_lowest_and_highest": [round(min(each), 2), round(max(each), 2)],
            "memory": round(peak[peer]["peak_mb"] / peak["ours"]["peak_mb"], 2) if peak and peak["ours"]["peak_mb"] else None,
            "tokens_read": round(tokens[peer]["read"] / tokens["ours"]["read"], 2),
        }
    return {
        "shots": work.shots,
        "share": work.share,
        "groups": [{"source": g.source, "prefix_tokens": len(g.prefix.ids), "suffix_tokens": g.mask[0].sum(dim=1).tolist()} for g in groups],
        "tokens": tokens,  # an update's, mean over the groups
        "seconds": {side: {"median": round(median[side], 4), "values": [round(v, 4) for v in values]} for side, values in seconds.items()},
        "memory": peak,
        "times_less": ratios,
        "largest_difference": {side: {what: max(c[side]["difference"][what] for c in compared) for what in ("logp", "loss", "gradient")} for side in SIDES},
    }


def table(result: dict) -> Table:
    """A row for each side of each setting."""
    work, machine = result["work"], result["machine"]
    drawn = Table(title=f"One update of a group of {work['G']}: {work['model']}, weights {work['quantize']}, LoRA; {machine['device']}, {machine['threads']} threads")
    drawn.add_column("setting")
    drawn.add_column("side")
    for name in ("tokens read", "logits for", "seconds", "peak MB", "time, ours x", "memory, ours x"):
        drawn.add_column(name, justify="right")
    for s in result["settings"]:
        for side in SIDES:
            setting = f"{s['shots']} shown, {s['share']:g} revealed" if side == "ours" else ""
            less = s["times_less"].get(side, {"seconds": "", "memory": ""})
            peak = s["memory"][side]["peak_mb"] if s["memory"] else "-"
            counts = [f"{s['tokens'][side][what]:.0f}" for what in ("read", "logits")]
            numbers = [*counts, f"{s['seconds'][side]['median']:.3f}", str(peak), str(less["seconds"]), str(less["memory"])]
            drawn.add_row(setting, side.replace("_", " "), *numbers, end_section=side == PEERS[-1])
    return drawn


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.update", description="The update of one group: packed, against the plain way.")
    parser.add_argument("--model", default="smollm2", help="smollm2, tiny (random, for a try in seconds), or anything that policy.name takes (default smollm2)")
    parser.add_argument("--quantize", choices=("none", "nf4"), default="none")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="as policy.dtype; auto is bfloat16 on a GPU, else float32")
    parser.add_argument("--shots", type=int, nargs="+", default=[1], help="demonstrations before the question, one or several numbers (default 1)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 0.9], help="revealed shares (default 0 0.5 0.9)")
    parser.add_argument("--groups", type=int, default=2, help="problems; an update is of one of them, and times are their mean (default 2)")
    parser.add_argument("--G", type=int, default=8, help="rollouts in a group (default 8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed updates of each group by each side (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    parser.add_argument("--out", type=Path, help="write all numbers here, as JSON")
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # the child process of a memory measurement
    args = parser.parse_args(argv)
    if not all(0 <= share <= 1 for share in args.shares):
        parser.error("--shares lie between 0 and 1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of an optional kernel
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory is not None:
        spec = json.loads(args.memory)
        with contextlib.redirect_stdout(sys.stderr):  # the libraries print what they like
            result = measure_memory(spec["side"], Work(**spec["work"]))
        print(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory(prefix="adaback-benchmark-") as folder, contextlib.redirect_stdout(sys.stderr):
        model = str(tiny_folder(Path(folder))) if args.model == "tiny" else args.model
        works = [Work(model, args.quantize, args.dtype, shots, share, args.groups, args.G) for shots in args.shots for share in args.shares]
        try:
            config_for(works[0])  # what is wrong with it is said here and not by a child
            result = benchmark(works, args.repeats, say=lambda line: print(line, file=sys.stderr))
        except (UserError, Disagreement) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, UserError) else 1
    result["work"]["model"] = args.model
    result = stamped(result, "tests.benchmarks.update", argv)
    Console(width=None if sys.stdout.isatty() else 140).print(table(result))
    write(args.out, result)
    return 0


def tiny_folder(folder: Path) -> Path:
    """A random Llama that reads bytes, saved where policy.name can name it."""
    return saved(folder, byte_model(context=8192, num_hidden_layers=2, hidden_size=64), byte_tokenizer())


if __name__ == "__main__":
    sys.exit(main())
