"""The loop: reveal, roll out, verify, advantage, loss, step, update.

`train` is the whole of a run; `rl_step` is one turn of AdaBack with GRPO, and the place to start reading.
"""

import contextlib
import copy
import math
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from . import sft
from .build import build_policy, build_task, new_optimizer
from .config import Config, flat, make_config, override
from .control import Control
from .curricula import make_curriculum
from .diagnose import diagnose
from .errors import UserError
from .evaluate import Judged, evaluate, judge, make_prefix, shown_at, wilson
from .grpo import advantages, has_gradient, kl_loss, policy_loss, token_weights
from .outputs import as_record
from .packing import microbatches, packed_logprobs
from .policy import clone_trained, has_adapter, updating, with_trained
from .resume import Interrupts, finished, restore, resumed_config, save_state
from .rollout import sample_rollouts
from .runs import Run, RunWriter, load_run
from .sampler import MergedCopy, merged_copy
from .seeding import torch_generator


@dataclass
class State:
    """All that a checkpoint holds."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    curriculum: object | None
    reference: torch.nn.Module | None = None  # for the KL term, where all weights are trained
    stage: str = "rl"  # "sft", "rl" or "done"
    step: int = 0  # RL steps done
    rollouts: int = 0
    generated_tokens: int = 0
    wall: float = 0.0  # seconds of training before this process took over
    sft: dict = field(default_factory=sft.new_sft_state)
    start: dict | None = None  # SFT: where each learning rate starts; not saved, it is what build_policy gives
    best: dict | None = None  # SFT: best trained tensors of this learning rate
    winner: dict | None = None  # SFT: best of all learning rates, where RL starts
    merged: MergedCopy | None = None  # LoRA: what is sampled from

    def sampling_model(self) -> torch.nn.Module:
        """The policy in the form that is sampled from: itself, or its merged copy, brought up to date."""
        return self.merged.refresh() if self.merged else self.model


def rl_step(state: State, config: Config, task, tokenizer, on_outputs=None) -> dict:
    """One RL step. Changes the model, the optimizer and the curriculum in `state`; returns the values of its event.

    B samples a step, G rollouts each, S tokens at most. `on_outputs` is given what was written (outputs.as_record).
    """
    g, t, step = config.grpo, config.trainer, state.step
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id

    # 1. Reveal: which samples, and how much of each rationale.
    ids = sft.batch_ids(len(task.train), t.batch_size, config.seed, step)  # [B]
    samples = [task.train[i] for i in ids]
    rho = checked_rho(state.curriculum.reveal(ids, step), len(ids))  # [B]
    shown = [shown_at(r, task, s, config) for r, s in zip(rho, samples)]
    prefixes = [make_prefix(task, s, k) for s, k in zip(samples, shown)]

    # 2. Roll out.
    noise = torch.rand(len(ids), g.group_size, max(p.max_new for p in prefixes), generator=torch_generator(config.seed, "rollout", step))  # [B, G, S]
    rollouts = sample_rollouts(state.sampling_model(), prefixes, noise, eos, pad, g.temperature, t.rollout_rows)

    # 3. Verify.
    judged = judge(task, tokenizer, samples, shown, rollouts)
    bonus = config.task.format_reward
    rewards = torch.tensor([[v.right + bonus * (v.kind in ("right", "wrong")) for v in group] for group in judged.verdicts])  # [B, G]
    group_reward = rewards.double().mean(dim=1).numpy()  # [B] in double precision, where 7 right of 10 reach a tau of 0.7

    # 4. Learn, from the groups that carry a gradient.
    differ = has_gradient(rewards)  # [B]
    keep = torch.ones_like(differ) if g.kl or g.entropy else differ  # these two terms act on every group
    loss, grad_norm = 0.0, 0.0
    if keep.any():
        weights = token_weights(rollouts.mask, g.norm, int(rollouts.mask.shape[2]))  # [B, G, S]
        chosen = keep.nonzero()[:, 0]
        loss, grad_norm = update(
            state, config, [prefixes[b] for b in chosen], rollouts.tokens[chosen], rollouts.mask[chosen], advantages(rewards, g.scale_std)[chosen], weights[chosen], pad
        )

    # 5. Tell the curriculum.
    state.curriculum.update(ids, rho, group_reward)

    state.step += 1
    if on_outputs:
        on_outputs(as_record(state.step, ids, samples, shown, rewards.tolist(), judged, task, tokenizer))
    state.rollouts += rewards.numel()
    state.generated_tokens += int(rollouts.mask.sum())
    low, high = getattr(state.curriculum, "rho_min", None), getattr(state.curriculum, "rho_max", getattr(state.curriculum, "frontier", None))
    return {
        "step": state.step,
        "rollouts": state.rollouts,
        "generated_tokens": state.generated_tokens,
        "ids": ids.tolist(),
        "rho": rho.round(4).tolist(),
        "reward": group_reward.round(4).tolist(),
        "shown": shown,
        "low": None if low is None else low[ids].round(4).tolist(),
        "high": None if high is None else high[ids].round(4).tolist(),
        "mean_reward": float(group_reward.mean()),
        "mean_rho": float(rho.mean()),
        "grad_groups": float(differ.float().mean()),
        "entropy": rollouts.entropy,
        "cut": 1.0 - float(rollouts.ended.float().mean()),
        "wrong": judged.share("wrong"),
        "unparseable": judged.share("unparseable"),
        "timeout": judged.share("timeout"),
        "loss": loss,
        "grad_norm": grad_norm,
    }


def update(state: State, config: Config, prefixes, tokens, mask, advantage, weights, pad) -> tuple[float, float]:
    """`grpo.passes` gradient steps on one batch, in microbatches of similar length. Returns (loss, gradient norm) of the first.

    tokens, mask, weights [B, G, S], advantage [B, G]. The weights were made over the whole batch, so microbatches only add up.
    """
    g, G = config.grpo, tokens.shape[1]
    batches = microbatches([len(p.ids) for p in prefixes], mask.sum(dim=2).amax(dim=1).tolist(), G, config.trainer.update_tokens)

    def logprobs(model, batch):
        S = int(mask[batch].sum(dim=2).max())
        return packed_logprobs(model, [prefixes[b] for b in batch], tokens[batch][..., :S], mask[batch][..., :S], pad, g.temperature)

    with torch.no_grad():
        old = [logprobs(state.model, b)[0] for b in batches] if g.passes > 1 else None
    with reference_policy(state) if g.kl else contextlib.nullcontext() as model:
        reference = [logprobs(model, b)[0] for b in batches] if g.kl else None
    first = None
    for _ in range(g.passes):
        state.optimizer.zero_grad()
        total = 0.0
        for i, batch in enumerate(batches):
            with updating(state.model, config.policy, config.seed, "rl", state.step, i):
                logp, entropy = logprobs(state.model, batch)
                weight = weights[batch][..., : logp.shape[2]].to(logp.device)
                old_logp = old[i] if old else logp.detach()  # one pass: the policy is the one that sampled
                loss = policy_loss(logp, old_logp, advantage[batch].to(logp.device), weight, g.clip_low, g.clip_high)
                if g.kl:
                    loss = loss + g.kl * kl_loss(logp, reference[i], weight)
                if g.entropy:
                    loss = loss - g.entropy * (weight * entropy).sum()
                loss.backward()
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), g.max_grad_norm))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise UserError(
                f"The loss became {total} (gradient norm {norm}) at step {state.step + 1}, so this step was not taken; "
                f"lower grpo.lr (now {g.lr:g}) and go on from the last checkpoint or start anew."
            )
        state.optimizer.step()
        first = first or (total, norm)
    return first


@contextlib.contextmanager
def reference_policy(state: State):
    """The policy that the KL term pulls towards, where RL started: the frozen copy; with an adapter SFT's result, or the base with the adapter off."""
    if has_adapter(state.model):
        with with_trained(state.model, state.winner) as model:
            yield model
    else:
        with torch.no_grad():
            yield state.reference


def checked_rho(rho, n: int) -> np.ndarray:
    """A curriculum's answer as an array [n]; UserError when it is not n shares in [0, 1]."""
    rho = np.asarray(rho, dtype=np.float64)
    if rho.shape != (n,) or not ((rho >= 0) & (rho <= 1)).all():
        values = f" with values from {rho.min():g} to {rho.max():g}" if rho.size else ""
        raise UserError(f"The curriculum's reveal() must return {n} shares between 0 and 1, one a sample, but returned shape {rho.shape}{values}.")
    return rho


def train(config: Config | dict | None = None, *, curriculum=None, resume: bool = False, progress: bool = True, on_event=None, control: Control | None = None, **settings) -> Run:
    """Train, evaluate and write a run's folder. Returns the finished Run.

    Args:
        config: a Config, or a dict of settings; more settings may be given by name: `train(method="rl", out="runs/b")`.
        curriculum: an instance with `reveal` and `update`, in place of the method's own. It can resume if it has `state_dict`.
        resume: go on with the run in `config.out`. Only trainer.max_steps and trainer.target_accuracy may differ from what is there.
        on_event: called with each event as it is written.
        control: to pause, stop or change the run from another thread.

    On Ctrl-C (or SIGTERM) the step is finished, a checkpoint written, and KeyboardInterrupt raised.
    Raises UserError for anything the user can mend.
    """
    config = override(config, settings) if isinstance(config, Config) else make_config(config, **settings)
    if resume and (Path(config.out) / "config.yaml").is_file():
        config = resumed_config(config, load_run(config.out).config)
        if load_run(config.out).summary and finished(load_run(config.out), config):
            return load_run(config.out)
    writer = RunWriter(config.out, config)
    if on_event:
        writer.listeners.append(on_event)
    threads, state = torch.get_num_threads(), None
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    try:
        model, tokenizer = build_policy(config)
        task = build_task(config, tokenizer, getattr(model.config, "max_position_embeddings", None))
        state = new_state(config, model, task, curriculum)
        writer.open(resume)
        if writer.checkpoints():
            restore(state, writer, config)
        else:
            writer.cut_log(0)  # killed before the first checkpoint: the same run, from its start
            own = {} if curriculum is None else {"curriculum": type(curriculum).__name__}
            writer.emit("start", method=config.method, seed=config.seed, **own, samples=len(task.train), **sizes(model), **about(task, state), machine=machine())
        writer.settle()
        for event in writer.events:
            if event["event"] == "change":  # made before the checkpoint
                config = changed(state, config, event["name"], event["value"])
        control = control or Control()
        control.begin(config, state.curriculum)
        _run(state, config, task, tokenizer, writer, progress, control)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        when = f"at step {state.step + 1}; the last checkpoint is whole, so go on with --resume and" if state else "before the first step; try again with"
        raise UserError(
            f"Memory ran out {when} a smaller trainer.update_tokens (now {config.trainer.update_tokens}) or trainer.rollout_rows (now {config.trainer.rollout_rows}), "
            "policy.sampling adapter, or policy.checkpointing true."
        ) from error
    finally:
        writer.close()
        torch.set_num_threads(threads)
    return Run(config.out)


def _run(state: State, config: Config, task, tokenizer, writer: RunWriter, progress: bool, control: Control) -> None:
    """The stages of a run, one after the other, from wherever `state` is."""
    t, started = config.trainer, time.perf_counter() - state.wall

    def wall() -> float:
        return round(time.perf_counter() - started, 3)

    saved = (state.stage, state.step) if writer.checkpoints() else None  # what the newest checkpoint holds

    def save() -> None:
        nonlocal saved
        state.wall = wall()
        save_state(state, writer)
        saved = (state.stage, state.step)

    def score(samples) -> tuple[Judged, int, int]:
        judged = evaluate(state.sampling_model(), tokenizer, task, samples, 1, config.seed, config.grpo.temperature, t.rollout_rows)
        return judged, sum(v[0].right for v in judged.verdicts), len(samples)

    def look(stage: str) -> float:
        _, right, n = score(task.val)
        spent = {"step": state.step, "rollouts": state.rollouts, "generated_tokens": state.generated_tokens, "trained_tokens": state.sft["trained_tokens"]}
        writer.emit("eval", stage=stage, **spent, n=n, right=right, accuracy=right / n, wall=wall())
        return right / n

    def test() -> dict:
        judged, right, n = score(task.test)
        shares = {f"test_{kind}": judged.share(kind) for kind in ("unparseable", "timeout")}
        return {"test_accuracy": right / n, "test_accuracy_ci95": wilson(right, n), "test_right": right, "test_n": n, **shares}

    def obey(interrupts) -> None:
        """Wait while the run is paused, and stop it where that is asked for, each with a checkpoint of this step."""
        nonlocal started

        def stops() -> bool:
            return interrupts.asked or control.stopping(state.step if state.stage == "rl" else -1)

        if not (control.paused or stops()):
            return
        if saved != (state.stage, state.step) or state.stage == "sft":
            save()
        since = time.perf_counter()
        while control.paused and not interrupts.asked:
            control.wait(0.2)
        started += time.perf_counter() - since
        if stops():
            raise KeyboardInterrupt

    with Interrupts() as interrupts:
        if state.stage == "sft":
            for event in sft.sft_steps(state, config, task, tokenizer.pad_token_id):
                if event:
                    writer.emit("sft", **event, wall=wall())
                obey(interrupts)
                if state.sft["step"] and state.sft["step"] % t.checkpoint_every == 0:
                    save()
            state.stage = "rl" if config.curriculum_name else "done"
            look("sft")
            writer.emit("sft_end", lr=state.sft["winner_lr"], trained_tokens=state.sft["trained_tokens"], **test(), wall=wall())
            save()

        events = writer.events
        stopped_by, accuracy = "sft", last_accuracy(events)
        if state.stage == "rl":
            seen = [in_short(e) for e in events if e["event"] == "step"]
            told = {e["kind"] for e in events if e["event"] == "diagnosis"}
            if accuracy is None:
                accuracy = look("rl")
            often = 0.5 if os.isatty(2) else 20  # seconds; in a notebook or a log file every line stays
            bar = tqdm(total=t.max_steps, initial=state.step, disable=not progress, unit="step", desc=Path(config.out).name, mininterval=often, leave=os.isatty(2))
            while state.step < t.max_steps and not (t.target_accuracy and accuracy >= t.target_accuracy):
                obey(interrupts)
                if due := control.due(state.step, config):
                    for name, value in due.items():
                        writer.emit("change", step=state.step, name=name, value=value, before=flat(config)[name])
                        config = changed(state, config, name, value)
                    save()  # a kill from here on loses no change
                kept = t.keep_outputs and (state.step + 1) % t.keep_outputs == 0
                event = rl_step(state, config, task, tokenizer, writer.keep_outputs if kept else None)
                writer.emit("step", **event, wall=wall())
                seen.append(in_short(event))
                for d in diagnose(seen):
                    if d.kind not in told:
                        told.add(d.kind)
                        writer.emit("diagnosis", kind=d.kind, text=d.text, advice=d.advice, step=state.step)
                if state.step % t.eval_every == 0 or state.step == t.max_steps:
                    accuracy = look("rl")
                bar.set_postfix_str(f"reward {event['mean_reward']:.2f}, rho {event['mean_rho']:.2f}, held out {accuracy:.2f}", refresh=False)
                bar.update()
                if state.step % t.checkpoint_every == 0:
                    save()
            bar.close()
            stopped_by = "target_accuracy" if t.target_accuracy and accuracy >= t.target_accuracy else "max_steps"
            if saved != (state.stage, state.step):
                save()

    training_seconds = wall()
    summary = {
        "method": config.method,
        "seed": config.seed,
        "steps": state.step,
        "rollouts": state.rollouts,
        "generated_tokens": state.generated_tokens,
        "trained_tokens": state.sft["trained_tokens"],
        "sft_lr": state.sft["winner_lr"],
        "wall_seconds": training_seconds,
        "held_out_accuracy": accuracy,
        **test(),
        "stopped_by": stopped_by,
        "machine": machine(),
    }
    writer.emit("end", **{k: v for k, v in summary.items() if k not in ("wall_seconds", "machine")}, wall=wall())
    writer.write_summary(summary)


def changed(state: State, config: Config, name: str, value) -> Config:
    """Make one of the changes that `config.LIVE` allows, in `state`; returns the settings from now on."""
    config = override(config, {name: value})
    group, _, leaf = name.partition(".")
    if group == "curriculum":
        setattr(state.curriculum, leaf, flat(config)[name])
    else:  # grpo.lr
        for part in state.optimizer.param_groups:
            part["lr"] = config.grpo.lr
    return config


def last_accuracy(events: list[dict]) -> float | None:
    """The held-out accuracy that was last measured; None when none was."""
    return next((e["accuracy"] for e in reversed(events) if e["event"] == "eval"), None)


def in_short(step: dict) -> dict:
    """A "step" event without its lists over samples, but for `high`, which says that there are intervals: what a diagnosis needs."""
    return {k: v for k, v in step.items() if k not in ("ids", "rho", "reward", "shown", "low")}


def new_state(config: Config, model, task, curriculum=None) -> State:
    """The state before the first step."""
    if curriculum is None and config.curriculum_name:
        n_steps = [len(task.step_ends(s)) for s in task.train]
        curriculum = make_curriculum(config.curriculum_name, config.curriculum, len(task.train), config.seed, n_steps)
    state = State(model, new_optimizer(model, config.grpo.lr), curriculum, stage="sft" if config.uses_sft else "rl")
    if config.grpo.kl and config.curriculum_name and not has_adapter(model):
        state.reference = copy.deepcopy(model).requires_grad_(False)
    if config.uses_sft:
        state.start = clone_trained(model)
    state.merged = merged_copy(model, config.policy.sampling)
    return state


def sizes(model) -> dict:
    """How many numbers the model has, and how many are trained."""
    own = sum(p.numel() for p in model.parameters())
    trained, every = model.get_nb_trainable_parameters() if has_adapter(model) else (own, own)  # peft counts what is packed into 4 bits
    return {"parameters": every, "trained_parameters": trained}


def about(task, state: State) -> dict:
    """What a run's first event says of word problems and of an adapter."""
    dropped = getattr(task, "dropped", None)
    facts = {"sampling": "merged" if state.merged else "adapter"} if has_adapter(state.model) else {}
    return facts if dropped is None else {**facts, "dropped": dict(dropped), "val": len(task.val), "test": len(task.test)}


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or (as torch words it) on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in ("out of memory", "can't allocate memory", "not enough memory"))


def machine() -> dict:
    """What a result depends on besides its settings."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
