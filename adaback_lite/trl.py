"""The curricula of this library inside TRL's `GRPOTrainer`: an ordinary script and three lines.

    from adaback_lite.trl import CurriculumGRPO                          # 1

    adaback = CurriculumGRPO(dataset, correct, method="adaback")         # 2
    trainer = GRPOTrainer(model, args=args, **adaback.hooks())           # 3: in place of train_dataset= and reward_funcs=

TRL and accelerate do the rest: GPUs, nodes, DeepSpeed, FSDP, vLLM. Nothing of TRL is patched or derived from; a step goes

    train_dataset   each prompt knows its sample (`Prompt`), for TRL hands a rollout function prompts and nothing else
    rollout_func    gather the samples of all processes, reveal(samples) alike on each, then TRL's own sampling after prompt + prefix
    reward_funcs    `correct` sees whole outputs, the revealed prefix in front; gather its rewards, update(samples, rho, mean of the group)
    callbacks       the curriculum's state goes into TRL's checkpoints (trainer_state.json) and comes back from there

To TRL the revealed prefix is prompt, with the same token ids in sampling and in the loss. In evaluation nothing is revealed.
Every process makes the same draws and hears of all rewards, so the curriculum of N processes is that of one.
What is assumed of TRL, tests/test_trl_contract.py asserts line by line; a TRL that was not tested is refused.
"""

import functools
import hashlib
import inspect
import json
import math
import os
import time
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate.utils import gather_object
from packaging.version import Version
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .config import make_config
from .curricula import make_curriculum, tokens_shown
from .errors import UserError
from .runs import by_trl, read_events
from .tasks.text import check_template, encode_steps, tokens_from
from .trainer import checked_rho, machine
from .trl_checkpoints import checkpoints, last_checkpoint
from .trl_data import Prompt, check_dataset, from_task, hidden_from, sample_of, starts_twice, task_reward, with_sample

# Tested releases. rollout_func is experimental and two methods that `rollout` calls are private, so each release may change them.
OLDEST, TOO_NEW = "1.16", "1.17"
__all__ = ["CurriculumGRPO", "Prompt", "check_version", "from_task", "last_checkpoint", "quiet", "task_reward"]

EVENTS = "events.jsonl"
NUMBERS = ("batches", "rollouts", "generated_tokens", "accuracy")  # of a CurriculumGRPO, in its checkpoints


def check_version() -> None:
    """Raise UserError unless a release of TRL is installed that this module was tested with."""
    try:
        version = metadata.version("trl")
    except metadata.PackageNotFoundError:
        raise UserError("TRL is not installed; install it with: pip install 'adaback-lite[trl]'") from None
    if Version(version).release[:2] != Version(OLDEST).release:  # 1.17.0.dev0 is below 1.17, and not 1.16
        age = "old" if Version(version) < Version(OLDEST) else "new"
        raise UserError(f"TRL {version} is too {age} for adaback_lite.trl, which is tested with {OLDEST}; install that with: pip install 'trl>={OLDEST},<{TOO_NEW}'")


check_version()


def quiet() -> None:
    """Silence what TRL 1.16 says of itself in every run, and a user cannot mend: rollout_func is experimental, and arguments of transformers that it uses have new names."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.*", FutureWarning)


class Visit(NamedTuple):
    """One generation batch of all processes together: B groups of G rollouts."""

    samples: np.ndarray  # [B] numbers of samples
    rho: np.ndarray  # [B]
    shown: list[int]  # [B] tokens
    group: int  # G


class CurriculumGRPO(TrainerCallback, ExportableState):
    """A curriculum for one `GRPOTrainer`.

    Args:
        dataset: a datasets.Dataset with the columns
            prompt     text, or chat messages of which the last is not the assistant's
            rationale  a correct solution: a text, whose lines are its steps, or a list of steps
            id         a number or text that no other row has
            answer     (may be missing) the final answer as it stands in the rationale
        reward: a reward function as TRL takes it, 1 for a right output and 0 for a wrong one: its mean over a group is what the curriculum hears.
            It is given `completions` with the revealed prefix in front; `completion_ids` holds only what was written.
        method: adaback, rl, r3, r3-staged, uft, anneal, frontier or constant.
        curriculum: an instance with `reveal` and `update` (see curricula.py), in place of the method's own.
        settings: any of the curriculum's settings by name: `tau=0.3, alpha=0.1`.

    Nothing is shown from where the answer begins: its box, the last "#### ", or the last place of `answer`, whichever comes first; without any of
    them all but the last token may be shown. Where the answer stands earlier too, it is seen there.

    The seed of the draws is TRL's `args.seed`. `curriculum` is there once training has begun. events.jsonl in `args.output_dir` has
    a `start`, a `step` for each generation batch and an `eval` for each evaluation, as our own runs have (runs.py), with the
    dataset's ids; charts.rho, intervals, heatmap, reward and compare draw it.

    Raises UserError in one sentence for whatever is wrong with the data or the settings.
    """

    def __init__(self, dataset, reward, method: str = "adaback", *, curriculum=None, **settings):
        config = make_config({f"curriculum.{name}": value for name, value in settings.items()}, method=method)
        if config.uses_sft:
            raise UserError(f"method is {method}, but inside TRL only the RL stage is ours; train with TRL's SFTTrainer first, and start from its result with an RL method.")
        if not callable(reward) or inspect.iscoroutinefunction(reward):
            raise UserError("reward must be a plain function that returns a number for each completion, not a model or a coroutine: the curriculum has to hear it at once.")
        if curriculum is not None and (settings or method != "adaback"):
            raise UserError("method and settings belong to the curricula that are made here; with a curriculum of your own set them on the instance.")
        if isinstance(curriculum, type):
            raise UserError(f"curriculum must be an instance, not a class; give {curriculum.__name__}(len(dataset)).")
        self.method, self.settings, self.name = method, config.curriculum, config.curriculum_name
        self.given, self.reward, self.curriculum = curriculum, reward, None
        self.ids, self.rationales, self.answers = check_dataset(dataset)
        if getattr(curriculum, "n_samples", len(self.ids)) != len(self.ids):
            raise UserError(
                f"The curriculum is made for {curriculum.n_samples} samples, but the dataset has {len(self.ids)}; make it with {type(curriculum).__name__}(len(dataset))."
            )
        number, chat = {name: i for i, name in enumerate(self.ids)}, not isinstance(dataset[0]["prompt"], str)
        self.conversational = chat

        def numbered(batch: dict) -> dict:
            return batch | {"prompt": [with_sample(prompt, number[name]) for prompt, name in zip(batch["prompt"], batch["id"])]}

        self.dataset = dataset.with_transform(numbered)
        self.batches, self.rollouts, self.generated_tokens, self.wall = 0, 0, 0, 0.0
        self._visit: Visit | None = None
        self._judged: list[tuple] = []  # (id, reward) of this process in the evaluation that goes on
        self.evaluated: list[float] = []  # rewards of all processes in the last evaluation
        self.accuracy = 0.0  # their mean in the last one that was not given a prefix of its own
        self._encoded: dict[int, tuple[list[int], list[int], int]] = {}

    def hooks(self, reward_funcs=(), callbacks=()) -> dict:
        """The arguments of `GRPOTrainer` by which it is steered. Further reward functions and callbacks of your own go in here; they too are given whole outputs."""
        for function in reward_funcs:
            if not callable(function) or inspect.iscoroutinefunction(function) or hasattr(function, "forward"):
                raise UserError("reward_funcs must be plain functions: TRL would show a model or a coroutine the output without its revealed prefix, as with a hole.")
        rewards = [self._whole(self.reward, heard=True), *(self._whole(function) for function in reward_funcs)]
        return {"train_dataset": self.dataset, "reward_funcs": rewards, "rollout_func": self.rollout, "callbacks": [self, *callbacks]}

    # ------------------------------------------------------------ the step

    def rollout(self, prompts: list, trainer) -> dict:
        """TRL's rollout_func. `prompts` are this process's rows, each group's prompt G times; returns a row for each."""
        prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
        if images or fields:
            raise UserError("The prompts hold images; a curriculum of rationales works on text only.")
        # Some tokenizers add an end token, after which nothing would follow.
        prompt_ids = [ids[:-1] if ids[-1] in trainer.eos_token_ids else list(ids) for ids in prompt_ids]
        extra, training = {}, trainer.model.training
        if training:
            samples = [sample_of(prompt) for prompt in prompts]
            mine = self._reveal(samples, any(starts_twice(ids, trainer.processing_class) for ids in prompt_ids), trainer)
            revealed = [self._rationale(i, trainer.processing_class)[0][:shown] for i, shown in zip(samples, np.repeat(self._visit.shown, self._visit.group)[mine])]
            prompt_ids = [ids + prefix for ids, prefix in zip(prompt_ids, revealed)]
            extra = {"revealed": revealed, "rho": np.repeat(self._visit.rho, self._visit.group)[mine].tolist()}
        group = trainer.num_generations if training else trainer.num_generations_eval
        completion_ids, logprobs = trainer._generate_single_turn(prompt_ids, None, {}, group)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs, **extra}

    def _reveal(self, samples: list[int], twice: bool, trainer) -> slice:
        """Draw for the batch of all processes: each asks the same curriculum the same question, so all get the same answer. Returns this process's rows.

        What is wrong with a row of one process is raised on all, or the others would wait for it.
        """
        if self.curriculum is None:
            raise UserError("The curriculum was not told that training began; give GRPOTrainer all of **hooks(), its callbacks too.")
        rows = np.array(gather_object(samples)).reshape(-1, trainer.num_generations)  # [B, G] of all processes, in their order
        if any(gather_object([twice])):
            bos = trainer.processing_class.bos_token
            raise UserError(f"The prompts begin with {bos} twice, for their text holds it and the tokenizer adds one; take it out of the text, or give chat messages.")
        if (rows < 0).any():
            raise UserError("A training prompt does not know its sample; give GRPOTrainer the dataset of hooks() as it is, and map or filter before CurriculumGRPO.")
        if (rows != rows[:, :1]).any():
            raise UserError(f"A group of {trainer.num_generations} rollouts is not of one sample; give GRPOTrainer the dataset of hooks(), and leave its sampler as it is.")
        batch = rows[:, 0]
        rho = checked_rho(self.curriculum.reveal(batch, self.batches), len(batch))
        if len(set(gather_object([rho.tobytes()]))) > 1:
            raise UserError("The curriculum drew differently on different processes; let it draw from self.rng of adaback_lite.Curriculum, or from a generator with a fixed seed.")
        shown = [self._shown(share, i, trainer.processing_class) for share, i in zip(rho, batch)]
        self._visit = Visit(batch, rho, shown, trainer.num_generations)
        first = trainer.accelerator.process_index * len(samples)
        return slice(first, first + len(samples))

    def _rationale(self, i: int, tokenizer) -> tuple[list[int], list[int], int]:
        """(token ids, step ends, tokens that are never shown) of a sample's rationale."""
        if i not in self._encoded:
            steps, text = self.rationales[i], "".join(self.rationales[i])
            ids, ends = encode_steps(tokenizer, steps)
            self._encoded[i] = ids, ends, max(self.settings.min_hidden, tokens_from(tokenizer, ids, hidden_from(text, self.answers[i])))
        return self._encoded[i]

    def _shown(self, rho: float, i: int, tokenizer) -> int:
        _, ends, hidden = self._rationale(i, tokenizer)
        return tokens_shown(rho, ends, self.settings.unit, hidden)

    def _whole(self, function, heard: bool = False):
        """A reward function on whole outputs; `heard` by the curriculum. A function, because TRL names its metrics after it."""

        @functools.wraps(function)
        def reward(prompts, completions, completion_ids, **columns):
            prefixes = columns.get("revealed")  # there in training only
            if prefixes is not None:
                whole = self._tokenizer.batch_decode([a + b for a, b in zip(prefixes, completion_ids)], skip_special_tokens=True)
                completions = [[{"role": "assistant", "content": text}] for text in whole] if self.conversational else whole
            rewards = function(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
            rewards = [None if r is None or math.isnan(r) else float(r) for r in rewards]
            if len(rewards) != len(completion_ids):
                raise UserError(f"The reward function returned {len(rewards)} values for {len(completion_ids)} outputs; it must return one for each, None where it has none.")
            if heard:  # beside each output in TRL's own table, log_completions, which has it without its prefix
                n = len(rewards)
                columns["log_extra"]("revealed", [""] * n if prefixes is None else self._tokenizer.batch_decode(prefixes))
                columns["log_extra"]("rho", [round(share, 4) for share in columns.get("rho", [0.0] * n)])
            if heard and prefixes is None:
                ids = columns.get("id", [None] * len(rewards))
                self._judged += [(repr((name, prompt)), r) for name, prompt, r in zip(ids, prompts, rewards) if r is not None]
            elif heard:
                self._update(rewards, completion_ids, columns["log_metric"])
            return rewards

        return reward

    def _update(self, rewards: list[float | None], completion_ids: list[list[int]], log_metric) -> None:
        """Tell the curriculum, on every process, of the groups of all of them. A group without any reward (all None) is no news."""
        samples, rho, shown, group = self._visit
        every = gather_object([(r, len(ids)) for r, ids in zip(rewards, completion_ids)])
        table = np.array([np.nan if r is None else r for r, _ in every], dtype=np.float64).reshape(-1, group)  # [B, G]
        known = ~np.isnan(table).all(axis=1)  # [B]
        samples, rho, shown, table = samples[known], rho[known], np.asarray(shown)[known], table[known]
        mean = np.nanmean(table, axis=1)
        self.curriculum.update(samples, rho, mean)
        self.batches += 1
        self.rollouts += len(every)
        self.generated_tokens += sum(length for _, length in every)
        if not len(mean):
            return
        log_metric("curriculum/rho", float(rho.mean()))
        log_metric("curriculum/shown_tokens", float(shown.mean()))
        low, high = self._ends("rho_min"), self._ends("rho_max", "frontier")
        self._emit(
            "step",
            step=self.batches,
            rollouts=self.rollouts,
            generated_tokens=self.generated_tokens,
            ids=[self.ids[i] for i in samples],
            rho=rho.round(4).tolist(),
            reward=mean.round(4).tolist(),
            shown=shown.tolist(),
            low=None if low is None else low[samples].round(4).tolist(),
            high=None if high is None else high[samples].round(4).tolist(),
            mean_reward=float(mean.mean()),
            mean_rho=float(rho.mean()),
            grad_groups=float((np.nanmax(table, axis=1) > np.nanmin(table, axis=1)).mean()),
        )

    def _ends(self, *names: str) -> np.ndarray | None:
        """One end [N] of the samples' intervals, by the first name under which the curriculum has it; None where it has none."""
        found = (getattr(self.curriculum, name, None) for name in names)
        return next((values for values in found if isinstance(values, np.ndarray) and values.shape == (len(self.ids),)), None)

    # ------------------------------------------------------------ TRL's callbacks

    def on_init_end(self, args, state, control, **_):
        """Refuse what would silently do something else."""
        if args.remove_unused_columns:
            raise UserError("remove_unused_columns is on, which drops the rationales from the dataset; leave it False, as GRPOConfig has it.")
        if args.restore_callback_states_from_checkpoint:
            raise UserError("restore_callback_states_from_checkpoint is on, which would replace the curriculum; leave it False, the curriculum restores itself.")
        passes = args.steps_per_generation * args.num_iterations  # forward and backward, for one generation batch
        steps, left = divmod(passes, args.gradient_accumulation_steps)
        whole = args.gradient_accumulation_steps % passes == 0 or (left == 0 and args.save_steps % steps == 0)  # TRL begins each epoch with a new batch, and a new step
        if args.save_strategy == "steps" and args.save_steps >= 1 and not whole:
            warnings.warn(
                f"A generation batch lasts {passes / args.gradient_accumulation_steps:g} steps and save_steps is {args.save_steps:g}: TRL does not save a batch that is half used, "
                "so a resumed run samples it anew, and the curriculum counts it twice; make it last whole steps, and save_steps a multiple.",
                stacklevel=2,
            )

    def on_train_begin(self, args, state, control, processing_class=None, train_dataloader=None, **_):
        """A new curriculum for a new run, the checkpoint's for one that goes on."""
        if train_dataloader is not None and len(train_dataloader) == 0:
            batch = args.generation_batch_size // args.num_generations
            raise UserError(f"A generation batch holds {batch} samples, more than the dataset has, so TRL would train nothing; make the batch smaller, or give more samples.")
        self._tokenizer, self._folder = processing_class, Path(args.output_dir)
        self._writes, self._began, self._facts = state.is_world_process_zero, time.time(), self._about(args)
        self._check_tokenizer(processing_class, args.chat_template_kwargs or {})
        n_steps = [max(len(steps), 1) for steps in self.rationales]
        self.curriculum = self.given or make_curriculum(self.name, self.settings, len(self.ids), args.seed, n_steps)
        events = read_events(self._folder / EVENTS, warns=False)
        if events and not by_trl(events):
            raise UserError(f"{self._folder} holds a run of our own trainer; choose another output_dir.")
        if state.global_step:
            if state.global_step >= state.max_steps > 0:
                raise UserError(
                    f"The checkpoint is of step {state.global_step} of {state.max_steps}: this run is finished, and TRL would take one step more; raise max_steps to go on."
                )
            self._restore((state.stateful_callbacks or {}).get(type(self).__name__) or {})
            if train_dataloader is not None:
                catch_up(train_dataloader, state.global_step // math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))
            return
        if last_checkpoint(self._folder):
            raise UserError(
                f"{self._folder} holds a run already; go on with it by trainer.train(resume_from_checkpoint=last_checkpoint({str(self._folder)!r})), or choose another output_dir."
            )
        if any(checkpoints(self._folder)):
            raise UserError(f"{self._folder} holds a run already; its checkpoints lack the random state of some process, so it cannot go on; choose another output_dir.")
        if any(e["event"] == "end" for e in events):
            raise UserError(f"{self._folder} holds a run already; choose another output_dir.")
        self.batches, self.rollouts, self.generated_tokens, self.accuracy, self.wall = 0, 0, 0, 0.0, 0.0
        self._cut_log(0)  # killed before its first checkpoint: the same run, from its start
        self._start(args)

    def on_evaluate(self, args, state, control, metrics=None, **_):
        """What nothing revealed gives: the mean of `reward` over all processes."""
        judged, self._judged = gather_object(self._judged), []
        seen = Counter()
        self.evaluated = []
        for sample, r in judged:  # accelerate fills the last batch with samples that had their turn
            seen[sample] += 1
            if seen[sample] <= args.num_generations_eval:
                self.evaluated.append(r)
        names = [m for m in metrics or {} if m.startswith("eval_") and m.endswith("_loss")]  # eval_loss; of several eval datasets eval_NAME_loss; a test's is test_loss
        if self.evaluated and self.curriculum is not None and names:
            n, right = len(self.evaluated), sum(self.evaluated)
            self.accuracy = right / n
            told = {} if names == ["eval_loss"] else {"name": names[0].removeprefix("eval_").removesuffix("_loss")}
            spent = {"rollouts": self.rollouts, "generated_tokens": self.generated_tokens}
            self._emit("eval", stage="rl", step=self.batches, **spent, n=n, right=right, accuracy=self.accuracy, **told)

    def on_train_end(self, args, state, control, **_):
        self._emit("end", step=self.batches)

    # ------------------------------------------------------------ saved and restored

    def state(self) -> dict:
        """What TRL writes into trainer_state.json. Floats keep every bit: JSON writes the shortest text that reads back the same."""
        if self.curriculum is None:
            return {"args": {}, "attributes": {}}
        numbers = {name: getattr(self, name) for name in NUMBERS} | {"wall": self.seconds}
        path = self._folder / EVENTS
        size = path.stat().st_size if path.is_file() else 0
        kept = self.curriculum.state_dict() if hasattr(self.curriculum, "state_dict") else None
        return {"args": {}, "attributes": {**numbers, "log_size": size, "facts": self._facts, "curriculum": kept}}

    def _restore(self, saved: dict) -> None:
        """Go on exactly where a checkpoint was written. Raises UserError when it is not of this run."""
        saved = saved.get("attributes") or {}
        if not saved:
            raise UserError("The checkpoint was written without this curriculum, so there is nothing to go on from; start anew in another output_dir.")
        before, now = saved["facts"], self._facts
        if before["processes"] != now["processes"]:
            raise UserError(
                f"The checkpoint was written by {_count(before['processes'], 'process')} and is resumed by {now['processes']}, but it holds a random state for each of them; "
                f"launch with --num_processes {before['processes']}, or start anew in another output_dir."
            )
        for name, value in before.items():
            if value != now[name]:
                if name == "settings":
                    name = next(k for k in value if value[k] != now["settings"].get(k))
                    value, now = value[name], now["settings"]
                told = ", or in another order" if name == "samples" else f" ({value}, now {now[name]})"
                raise UserError(f"The checkpoint was written with other {name}{told}; resume with the same, or start anew in another output_dir.")
        try:
            self.curriculum.load_state_dict(saved["curriculum"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"The checkpoint does not fit this curriculum ({error}); resume with the one it was started with, derived from adaback_lite.Curriculum.") from None
        for name in (*NUMBERS, "wall"):
            setattr(self, name, saved[name])
        self._cut_log(saved["log_size"])
        self._emit("resume", stage="rl", step=self.batches)

    def _about(self, args) -> dict:
        """What a checkpoint and the run that resumes it must have in common. `samples` is a digest of the ids, in their order."""
        digest = hashlib.blake2b(json.dumps(self.ids).encode(), digest_size=16).hexdigest()
        settings = self.settings.model_dump(mode="json")
        curriculum = self.method if self.given is None else type(self.given).__name__
        return {"processes": args.world_size, "rollouts in a group": args.num_generations, "seed": args.seed, "curriculum": curriculum, "settings": settings, "samples": digest}

    def _check_tokenizer(self, tokenizer, given: dict) -> None:
        if self.conversational:
            try:
                check_template(tokenizer, **given)
            except UserError as error:
                remedy = "set the template by GRPOConfig(chat_template_kwargs=...), as enable_thinking=False for Qwen3, use another model"
                raise UserError(str(error).replace("use another model", remedy)) from None
        ids, text = self._rationale(0, tokenizer)[0], "".join(self.rationales[0])
        if tokenizer.decode(ids) != text:
            raise UserError(f"The tokenizer does not give back the text it was given (tried on {text[:40]!r}), so a cut could change the rationale; use another model.")

    @property
    def seconds(self) -> float:
        """Since the run began, the processes before this one included."""
        return round(self.wall + time.time() - self._began, 3)

    def _start(self, args) -> None:
        curriculum = {"curriculum": type(self.given).__name__} if self.given is not None else {"settings": self.settings.model_dump(mode="json")}
        about = {**machine(), "processes": args.world_size, "trl": metadata.version("trl")}
        self._emit("start", method=self.method, seed=args.seed, **curriculum, samples=len(self.ids), machine=about)

    def _emit(self, event: str, **values) -> None:
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / EVENTS, "ab") as log:
                log.write(json.dumps({"event": event, "wall": self.seconds, **values}).encode() + b"\n")

    def _cut_log(self, size: int) -> None:
        """Forget what came after a checkpoint, for it will happen again. Resumed in another folder there is no log, and a new one begins."""
        path = self._folder / EVENTS
        if self._writes and path.is_file() and path.stat().st_size > size:
            os.truncate(path, size)


def catch_up(dataloader, epochs: int) -> None:
    """Let the sampler of a resumed run draw the orders of the epochs that are over. TRL's shuffles anew in each epoch, but a new process begins with the first one's order."""
    sampler = dataloader.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # accelerate's, which deals batches to several processes
        sampler = sampler.batch_sampler
    for _ in range(epochs):
        next(iter(sampler.sampler), None)  # an order is drawn before its first sample comes


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}es"
