"""Going on where a run stopped: what a checkpoint holds, how it is put back, and how a run is asked to stop."""

import signal
import threading

import torch

from .build import new_optimizer
from .config import Config, flat, override
from .errors import UserError
from .policy import has_adapter, load_trained, trained_tensors
from .runs import Run, RunWriter, newest_checkpoint


def save_state(state, writer: RunWriter) -> None:
    """Write a checkpoint of everything in `state`."""
    tensors = {weights_part(state.model): trained_tensors(state.model), "optimizer": optimizer_tensors(state.optimizer)}
    tensors |= {name: value for name, value in (("best", state.best), ("winner", state.winner)) if value}
    curriculum = state.curriculum.state_dict() if hasattr(state.curriculum, "state_dict") else None
    numbers = {k: getattr(state, k) for k in ("stage", "step", "rollouts", "generated_tokens", "wall", "sft")}
    # Names sort as the stages follow each other: the last is the newest.
    name = f"2-rl-{state.step:08d}" if state.stage != "sft" else f"1-sft-{state.sft['lr_index']:02d}-{state.sft['step']:08d}"
    writer.emit("checkpoint", stage=state.stage, step=state.step)
    writer.save_checkpoint(name, tensors, {"curriculum": curriculum, **numbers}, adapter=state.model.peft_config["default"] if has_adapter(state.model) else None)


def restore(state, writer: RunWriter, config: Config) -> None:
    """Put the newest whole checkpoint into `state` and cut the log back to it."""
    tensors, saved = newest_checkpoint(writer)
    for k in ("stage", "step", "rollouts", "generated_tokens", "wall", "sft"):
        setattr(state, k, saved[k])
    state.best, state.winner = tensors.get("best"), tensors.get("winner")
    if saved["curriculum"] is not None:
        try:
            state.curriculum.load_state_dict(saved["curriculum"])
        except (AttributeError, KeyError, ValueError) as error:
            raise UserError(
                f"{writer.folder} cannot be resumed with this curriculum: {error}; "
                "call adaback_lite.train(curriculum=..., resume=True) with the one it was started with."
            ) from None
    elif state.stage == "rl" and state.step and state.curriculum is not None:
        raise UserError(f"{writer.folder} cannot be resumed: its curriculum has no state_dict and load_state_dict; derive it from adaback_lite.Curriculum and train again.")
    if state.stage == "sft":
        state.optimizer = new_optimizer(state.model, config.trainer.sft_lrs[min(saved["sft"]["lr_index"], len(config.trainer.sft_lrs) - 1)])
    try:
        load_trained(state.model, tensors[weights_part(state.model)])
    except (KeyError, ValueError) as error:
        raise UserError(f"{writer.folder} cannot be resumed: its checkpoint does not fit this model ({error}); use the base model it was started with.") from None
    load_optimizer_tensors(state.optimizer, tensors["optimizer"])
    if state.reference is not None and state.winner:
        load_trained(state.reference, state.winner)
    writer.cut_log(saved["log_size"], saved.get("outputs_size", 0))
    writer.emit("resume", stage=state.stage, step=state.step)


def weights_part(model) -> str:
    """The name of a checkpoint's file of weights: for an adapter the one that peft looks for."""
    return "adapter_model" if has_adapter(model) else "model"


def optimizer_tensors(optimizer) -> dict[str, torch.Tensor]:
    """Adam's state as named tensors: "3.exp_avg" belongs to the fourth parameter."""
    return {f"{i}.{k}": v for i, values in optimizer.state_dict()["state"].items() for k, v in values.items()}


def load_optimizer_tensors(optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        i, key = name.split(".")
        state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# What sets only how long a run is, what is kept for people, or how much memory it takes. The last may be the way out of a full GPU; it changes the last bits.
MAY_DIFFER = (
    "trainer.max_steps", "trainer.target_accuracy", "trainer.keep_outputs",
    "trainer.rollout_rows", "trainer.update_tokens", "policy.sampling", "policy.checkpointing", "out",
)  # fmt: skip


def resumed_config(asked: Config, saved: Config) -> Config:
    """The saved configuration with what may change on resume. Raises UserError for any other difference."""
    a, s = flat(asked), flat(saved)
    for name in a:
        if a[name] != s[name] and name not in MAY_DIFFER:
            raise UserError(f"{asked.out} was trained with {name} {s[name]}, not {a[name]}; resume with the same settings, or choose another --out.")
    return override(saved, {name: a[name] for name in MAY_DIFFER})


def finished(run: Run, config: Config) -> bool:
    """Whether a run with a summary has nothing left to do under `config`."""
    summary, t = run.summary, config.trainer
    if summary["stopped_by"] == "sft" or summary["steps"] >= t.max_steps:
        return True
    return bool(t.target_accuracy) and summary["held_out_accuracy"] >= t.target_accuracy


class Interrupts:
    """While it is open, Ctrl-C and SIGTERM set `asked`, so that a step can be finished; a second Ctrl-C acts at once. Main thread only."""

    def __init__(self):
        self.asked = False
        self._old = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
