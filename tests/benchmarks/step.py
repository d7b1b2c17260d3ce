"""A training step of ours against one of TRL's GRPOTrainer, in the same process, by turns. Prints one JSON line.

    python -m tests.benchmarks.step [--repeats 7] [--threads N] [--out data/results/step_benchmark.json]

Both sides get the same tiny Llama with the same weights, the same 64 prompts, 8 rollouts each, the same reward function and the
same optimizer settings. 32 tokens follow every prompt: at reveal 0 all of them are generated; at mean reveal 0.75 each sample has
a cut of its own (2 to 14 tokens hidden, 8 on average) and only what is hidden is generated. TRL then gets the prompt *with* the
revealed prefix as its prompt, pads it on the left, generates to the longest remainder of the batch as `generate` always does, and
each row is ended at its own length; its loss is on the same tokens as ours. README.md here says what is fair about this and why.

What each side does in a timed step, once each: prepare the prompts, generate, decode, score, advantages, forward, backward,
clip the gradient, AdamW step. Not timed: start-up, data loading, logging, saving.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers

from adaback_lite import trainer
from adaback_lite.config import PolicySettings, make_config
from adaback_lite.evaluate import Judged, make_prefix
from adaback_lite.policy import tiny_model, tiny_tokenizer
from adaback_lite.rollout import sample_rollouts
from adaback_lite.seeding import numpy_generator, torch_generator
from adaback_lite.tasks import Parity

ROOT = Path(__file__).resolve().parents[2]
NO_TRL = "TRL is not installed, and this benchmark compares with it; install the extra with: pip install -e '.[trl]' -c constraints.txt"
LR = 1e-6  # so small that the policy, and with it the work, stays the same over all repetitions
FORBIDDEN = -60.0  # logit bias of the special tokens: drawn once in e^60 tokens, on both sides


@dataclass(frozen=True)
class Size:
    """The work of one step."""

    prompts: int = 64
    group: int = 8
    tokens: int = 32  # that follow each prompt, revealed and generated ones together


class Task(Parity):
    """Parity's prompts. Rationale and end token together are `tokens` tokens, so that at reveal 0 exactly so many are written."""

    def __init__(self, tokenizer, size: Size):
        super().__init__(tokenizer, size.tokens // 2, n_train=size.prompts, n_val=1, n_test=1, positions="sequential")
        self.size = size

    def rationale_ids(self, sample):
        return super().rationale_ids(sample)[: self.size.tokens - 1]

    def step_ends(self, sample):
        return [self.size.tokens - 1]


class Cuts:
    """A curriculum that shows sample i all but the last `hidden[i]` tokens, whatever happens."""

    def __init__(self, hidden: np.ndarray, size: Size):
        self.rho = (size.tokens - hidden) / (size.tokens - 1)

    def reveal(self, ids, step):
        return self.rho[ids]

    def update(self, ids, rho, reward):
        pass


@dataclass(frozen=True)
class Scored:
    """What `rl_step` reads of a verdict; `right` may be any number."""

    right: float
    kind: str = "right"


def hidden_tokens(size: Size, reveal: float) -> np.ndarray:
    """[prompts] tokens that each sample must write: all at reveal 0, else evenly spread from 2 up with mean (1 - reveal) * tokens, in random order."""
    if reveal == 0:
        return np.full(size.prompts, size.tokens)
    mean = round((1 - reveal) * size.tokens)
    hidden = np.rint(np.linspace(2, 2 * mean - 2, size.prompts)).astype(int)
    assert hidden.mean() == mean
    return numpy_generator(0, "benchmark").permutation(hidden)


def reward(ids: list[int]) -> float:
    """In [0, 1), a hash of the completion: differs within a group unless all its completions are the same."""
    return zlib.crc32(bytes(ids)) / 2**32


def make_model():
    """tiny_model at its default settings, with a fixed bias that forbids <pad>, <bos> and <eos>: every row runs to its full length."""
    model = tiny_model(PolicySettings(positions="sequential"))
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight = model.lm_head.weight
    head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size), requires_grad=False)
    head.bias[:3] = FORBIDDEN
    model.lm_head = head
    return model


class Clock:
    """Seconds spent in wrapped functions, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def wrap(self, name, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return timed

    def take(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds


class Ours:
    """adaback_lite.trainer.rl_step, whole; only the verdict on an output is replaced by `reward`."""

    def __init__(self, size: Size, reveal: float):
        self.tokenizer = tiny_tokenizer()
        self.task = Task(self.tokenizer, size)
        self.hidden = hidden_tokens(size, reveal)
        settings = {"trainer.batch_size": size.prompts, "grpo.group_size": size.group, "grpo.lr": LR, "policy.positions": "sequential", "curriculum.zero_prob": 0.0}
        self.config = make_config(settings)
        model = make_model()
        self.state = trainer.State(model, trainer.new_optimizer(model, LR), Cuts(self.hidden, size))
        self.expected = int(self.hidden.sum()) * size.group
        self.clock, self.grad_groups = Clock(), []

    def judge(self, task, tokenizer, samples, shown, rollouts) -> Judged:
        B, G, _ = rollouts.tokens.shape
        lengths, tokens = rollouts.mask.sum(dim=2).tolist(), rollouts.tokens.tolist()
        completions = [[tokens[b][g][: lengths[b][g]] for g in range(G)] for b in range(B)]
        outputs = [tokenizer.batch_decode(group, skip_special_tokens=True) for group in completions]
        return Judged(outputs, [[Scored(reward(ids)) for ids in group] for group in completions])

    def step(self) -> dict[str, float]:
        """One step; its seconds, whole and by part."""
        before = self.state.generated_tokens
        with contextlib.ExitStack() as stack:
            for name, function in (("rollout", "sample_rollouts"), ("update", "update")):
                stack.enter_context(mock.patch.object(trainer, function, self.clock.wrap(name, getattr(trainer, function))))
            stack.enter_context(mock.patch.object(trainer, "judge", self.clock.wrap("score", self.judge)))
            start = time.perf_counter()
            event = trainer.rl_step(self.state, self.config, self.task, self.tokenizer)
            seconds = time.perf_counter() - start
        assert self.state.generated_tokens - before == self.expected, "ours did not generate the tokens it should"
        self.grad_groups.append(event["grad_groups"])
        return split(seconds, self.clock.take())


def split(seconds: float, parts: dict[str, float]) -> dict[str, float]:
    return {"step": seconds, **parts, "rest": seconds - sum(parts.values())}


class TRL:
    """trl.GRPOTrainer. `train` runs its own loop, with a turn of ours after each of its steps if asked.

    batch: sequences of one forward and backward pass (`per_device_train_batch_size`); the rest of a step is accumulated. All
    sequences of a step are generated at once, whatever it is.
    """

    def __init__(self, size: Size, reveal: float, batch: int, steps: int, cache: str | None = None):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = "left"
        task, hidden = Task(tokenizer, size), hidden_tokens(size, reveal)
        prefixes = [make_prefix(task, s, size.tokens - int(h)) for s, h in zip(task.train, hidden)]
        prompts = ["<bos>" + s.prompt + s.rationale[: size.tokens - int(h)] for s, h in zip(task.train, hidden)]
        assert tokenizer(prompts)["input_ids"] == [p.ids for p in prefixes], "the two sides' prompts differ"
        sequences = size.prompts * size.group
        self.folder = tempfile.TemporaryDirectory()
        args = GRPOConfig(
            output_dir=self.folder.name,
            # the work, as ours
            num_generations=size.group,
            max_completion_length=int(hidden.max()),
            loss_type="grpo",
            beta=0.0,
            num_iterations=1,
            scale_rewards="group",
            temperature=1.0,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            # how it is cut up
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=sequences // batch,
            cache_implementation=cache,
            # nothing on top
            max_steps=steps,
            shuffle_dataset=False,
            bf16=False,
            fp16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            use_vllm=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        self.model, self.clock, self.rows, self.generated, self.grad_groups = make_model(), Clock(), [], [], []
        self.after = self.begin = self.end = lambda: None
        generate, lengths = self.model.generate, torch.tensor(hidden).repeat_interleave(size.group)  # [rows]

        def generate_to_length(input_ids, **kwargs):
            """`generate`, then the end token as each row's last one: TRL masks what follows. Rows at full length are left as they are."""
            ids = generate(input_ids=input_ids, **kwargs)
            completion = ids[:, input_ids.shape[1] :]
            short = lengths < completion.shape[1]
            completion[short, lengths[short] - 1] = tokenizer.eos_token_id
            return ids

        def score(prompts, completions, completion_ids, **_):
            self.generated.append(sum(map(len, completion_ids)))
            return [reward(ids) for ids in completion_ids]

        self.model.generate = self.clock.wrap("generate", generate_to_length)
        this, started = self, [0.0]

        class Timer(transformers.TrainerCallback):
            def on_train_begin(self, *_, **__):
                this.begin()

            def on_step_begin(self, *_, **__):
                this.clock.take()
                started[0] = time.perf_counter()

            def on_step_end(self, *_, **__):
                seconds, parts = time.perf_counter() - started[0], this.clock.take()
                prepare = parts.pop("prepare")  # tokenize, generate, decode, score, advantages
                this.rows.append(split(seconds, {**parts, "score": prepare - parts["generate"], "update": seconds - prepare}))
                this.grad_groups.append(1.0 - this.trainer._metrics["train"]["frac_reward_zero_std"][-1])
                this.after()

            def on_train_end(self, *_, **__):
                this.end()

        dataset = Dataset.from_dict({"prompt": prompts * steps})  # long enough that no epoch ends on the way
        self.trainer = GRPOTrainer(self.model, score, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=[Timer()])
        self.trainer._generate_and_score_completions = self.clock.wrap("prepare", self.trainer._generate_and_score_completions)
        self.expected = int(hidden.sum()) * size.group

    def train(self, after=lambda: None) -> list[dict[str, float]]:
        """All steps; the seconds of each."""
        self.after = after
        self.trainer.train()
        assert set(self.generated) == {self.expected}, "TRL did not generate the tokens it should"
        self.folder.cleanup()
        return self.rows


def summary(values: list[float]) -> dict:
    """Median, quartiles and the values themselves."""
    q1, median, q3 = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": round(median, 4), "q1": round(q1, 4), "q3": round(q3, 4), "values": [round(v, 4) for v in values]}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each part."""
    return {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}


def tune_trl(size: Size, reveal: float, rounds: int = 2) -> dict[str, float]:
    """The fastest step of TRL for several ways to cut its batch, and both of its caches: {'128 static': seconds, ...}.

    In rounds, and the fastest rather than the median, so that a disturbance of the machine does not pick the wrong one.
    """
    sequences, tried = size.prompts * size.group, {}
    batches = [sequences // n for n in (1, 2, 4, 8, 16) if sequences % n == 0 and sequences // n >= size.group]
    for _ in range(rounds):
        for batch, cache in [(b, None) for b in batches] + [(b, "static") for b in batches[1:3]]:
            name = f"{batch} {cache or 'dynamic'}"
            rows = TRL(size, reveal, batch, 3, cache).train()[1:]
            tried[name] = min([round(row["step"], 4) for row in rows] + [tried.get(name, float("inf"))])
            gc.collect()
    return tried


def compare_steps(size: Size, reveal: float, repeats: int, warmup: int, with_trl: bool) -> dict:
    """Both sides by turns: a step of TRL, a step of ours, ..."""
    ours, rows, tried = Ours(size, reveal), [], None
    if with_trl:
        tried = tune_trl(size, reveal)
        batch, cache = min(tried, key=tried.get).split()
        trl = TRL(size, reveal, int(batch), warmup + repeats, None if cache == "dynamic" else cache)
        trl_rows = trl.train(after=lambda: rows.append(ours.step()))[warmup:]
    else:
        rows = [ours.step() for _ in range(warmup + repeats)]
    rows = rows[warmup:]
    result = {"ours": summary([r["step"] for r in rows]), "split": {"ours": medians(rows)}, "grad_groups": {"ours": min(ours.grad_groups)}, "generated_tokens": ours.expected}
    if with_trl:
        result["trl"] = summary([r["step"] for r in trl_rows])
        result["split"]["trl"] = medians(trl_rows)
        result["grad_groups"]["trl"] = min(trl.grad_groups)
        result["trl_tried"] = tried
        result["trl_setting"] = {"per_device_train_batch_size": int(batch), "cache": cache}
        ratios = [t["step"] / o["step"] for t, o in zip(trl_rows, rows)]
        result["speedup"] = round(result["trl"]["median"] / result["ours"]["median"], 2)
        result["speedup_quartiles"] = [round(float(q), 2) for q in np.percentile(ratios, [25, 75])]
    return result


def compare_generation(size: Size, repeats: int, warmup: int) -> dict:
    """Generated tokens a second at reveal 0: sample_rollouts against `generate` on the prompts written out `group` times."""
    model, tokenizer = make_model(), tiny_tokenizer()
    task = Task(tokenizer, size)
    prefixes = [make_prefix(task, s) for s in task.train]
    ids = torch.tensor([p.ids for p in prefixes]).repeat_interleave(size.group, dim=0)
    tokens, speed = size.prompts * size.group * size.tokens, {"ours": [], "generate": []}
    for i in range(warmup + repeats):
        start = time.perf_counter()
        noise = torch.rand(size.prompts, size.group, size.tokens, generator=torch_generator(0, "benchmark", i))
        rollouts = sample_rollouts(model, prefixes, noise, tokenizer.eos_token_id, tokenizer.pad_token_id)
        middle = time.perf_counter()
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=size.tokens, use_cache=True)
        end = time.perf_counter()
        assert int(rollouts.mask.sum()) == tokens and out.shape[1] == ids.shape[1] + size.tokens
        if i >= warmup:
            speed["ours"].append(tokens / (middle - start))
            speed["generate"].append(tokens / (end - middle))
    return {name: round(statistics.median(values)) for name, values in speed.items()}


PEAK_METHOD = "a fresh process a side; VmHWM after 3 steps minus VmRSS before them, the mark set back through /proc/self/clear_refs after start-up"


class Peak:
    """Peak resident memory above that at `start`, in MB (2**20 bytes). Where there is no /proc, what ru_maxrss rose by."""

    def start(self):
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.proc, self.base = True, self._status("VmRSS")
        except OSError:
            self.proc, self.base = False, self._maxrss()

    def stop(self):
        self.mb = round((self._status("VmHWM") if self.proc else self._maxrss()) - self.base, 1)

    def _status(self, name: str) -> float:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")) / 1024

    def _maxrss(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure_memory(side: str, size: Size, reveal: float, batch: int, cache: str | None) -> float:
    """Peak of three steps in this process."""
    peak = Peak()
    if side == "ours":
        ours = Ours(size, reveal)
        peak.start()
        for _ in range(3):
            ours.step()
        peak.stop()
    else:
        trl = TRL(size, reveal, batch, 3, cache)
        trl.begin, trl.end = peak.start, peak.stop
        trl.train()
    return peak.mb


def memory_in_child(side: str, size: Size, reveal: float, setting: dict | None, threads: int) -> float:
    spec = {"side": side, "size": asdict(size), "reveal": reveal, "setting": setting}
    command = [sys.executable, "-m", "tests.benchmarks.step", "--threads", str(threads), "--memory", json.dumps(spec)]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)["mb"]


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def benchmark(size: Size = Size(), repeats: int = 7, warmup: int = 2, with_trl: bool = True, memory: bool = True) -> dict:
    """Everything, as one dict; without TRL its numbers are None."""
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl") if with_trl or name != "trl"}}
    steps = {reveal: compare_steps(size, reveal, repeats, warmup, with_trl) for reveal in (0.0, 0.75)}
    none, some = steps[0.0], steps[0.75]
    peaks = {}
    for name, reveal in (("peak_memory_mb", 0.0), ("peak_memory_mb_reveal_075", 0.75)):
        sides = ("ours", "trl") if with_trl else ("ours",)
        peaks[name] = {side: memory_in_child(side, size, reveal, steps[reveal].get("trl_setting"), torch.get_num_threads()) if memory else None for side in sides}
    return {
        "speedup_reveal_0": none.get("speedup"),
        "speedup_reveal_075": some.get("speedup"),
        "speedup_quartiles_reveal_0": none.get("speedup_quartiles"),
        "speedup_quartiles_reveal_075": some.get("speedup_quartiles"),
        "seconds_reveal_0": {"ours": none["ours"], "trl": none.get("trl")},
        "seconds_reveal_075": {"ours": some["ours"], "trl": some.get("trl")},
        "split": none["split"],
        "split_reveal_075": some["split"],
        "tokens_per_second": compare_generation(size, repeats, warmup),
        **peaks,
        "peak_memory_method": PEAK_METHOD,
        "settings": {
            **asdict(size),
            "hidden_reveal_075": sorted(hidden_tokens(size, 0.75).tolist()),
            "generated_tokens": {"reveal_0": none["generated_tokens"], "reveal_075": some["generated_tokens"]},
            "grad_groups": {"reveal_0": none["grad_groups"], "reveal_075": some["grad_groups"]},
            "trl_setting": {"reveal_0": none.get("trl_setting"), "reveal_075": some.get("trl_setting")},
            "trl_tried": {"reveal_0": none.get("trl_tried"), "reveal_075": some.get("trl_tried")},
            "repeats": repeats,
            "warmup": warmup,
            "lr": LR,
            "positions": "sequential",
        },
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_average": [round(x, 2) for x in os.getloadavg()], "versions": versions},
    }


def stamped(result: dict, module: str, argv: list[str] | None) -> dict:
    """A benchmark's result with what made it."""
    return {**result, "commit": commit(), "command": " ".join([f"python -m {module}", *(sys.argv[1:] if argv is None else argv)])}


def write(out: Path | None, result: dict) -> None:
    """The result as JSON, where --out names a file."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def commit() -> str | None:
    """HEAD of this checkout, with '+' when the library differs from it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=True, text=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "adaback_lite", "tests/benchmarks"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
        return head + ("+" if changed.strip() else "")
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.step", description="A training step of ours against TRL's GRPOTrainer; one JSON line on stdout.")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each side, after the warm-up (default 7)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of each side before them (default 2)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both sides; 0 leaves torch's own choice")
    parser.add_argument("--prompts", type=int, default=Size.prompts, help="prompts a step (default 64)")
    parser.add_argument("--out", type=Path, help="also write the JSON here, with commit and command")
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # the child process of a memory measurement
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory is None and importlib.util.find_spec("trl") is None:
        print(NO_TRL, file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.redirect_stdout(sys.stderr):  # the libraries print what they like
        if args.memory is not None:
            spec = json.loads(args.memory)
            setting = spec["setting"] or {"per_device_train_batch_size": 0, "cache": "dynamic"}
            cache = None if setting["cache"] == "dynamic" else setting["cache"]
            result = {"mb": measure_memory(spec["side"], Size(**spec["size"]), spec["reveal"], setting["per_device_train_batch_size"], cache)}
        else:
            result = benchmark(Size(prompts=args.prompts), args.repeats, args.warmup)
            write(args.out, stamped(result, "tests.benchmarks.step", argv))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
