"""Supervised fine-tuning, the baseline that must be honest: the same model and data, several learning rates, early stopping.

For each learning rate: start from the same weights, cross-entropy on the whole rationale and its end token, a look at the
held-out loss every `sft_eval_every` steps, the best weights kept, stopped after `sft_patience` looks without a better one.
The learning rate with the best held-out loss wins, and its best weights are the result. (All of this: our choice.)
"""

import math

import numpy as np
import torch

from .build import new_optimizer
from .errors import UserError
from .evaluate import make_prefix
from .packing import microbatches, packed_logprobs
from .policy import clone_trained, load_trained, updating
from .seeding import numpy_generator


def rationale_loss(model, task, samples, pad_id: int) -> tuple[torch.Tensor, int]:
    """Cross-entropy in nats a token over the samples' rationales and end tokens, nothing else, and the number of these tokens."""
    prefixes = [make_prefix(task, s) for s in samples]
    targets = [task.rationale_ids(s) + [task.tokenizer.eos_token_id] for s in samples]
    S = max(map(len, targets))
    tokens = torch.tensor([t + [pad_id] * (S - len(t)) for t in targets])[:, None]  # [B, 1, S]
    mask = torch.arange(S) < torch.tensor([len(t) for t in targets])[:, None, None]  # [B, 1, S]
    logp, _ = packed_logprobs(model, prefixes, tokens, mask, pad_id)
    return -logp.sum() / mask.sum(), int(mask.sum())


def batch_ids(n_train: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Sample ids of one step [B], B = batch_size or all samples if they are fewer: a function of (seed, step).

    An epoch is a new permutation, cut into whole batches; what is left over waits for the next. So no step holds a sample
    twice: two groups that share one interval could each move it only from where it stood before the step.
    """
    B = min(batch_size, n_train)
    epoch, batch = divmod(step, n_train // B)
    return numpy_generator(seed, "order", epoch).permutation(n_train)[batch * B : (batch + 1) * B]


def in_batches(model, task, samples, pad_id: int, limit: int):
    """The parts of the samples' mean loss, a microbatch of at most `limit` tokens at a time: yields (part of the loss, tokens), the parts add up to the mean."""
    lengths = [len(task.rationale_ids(s)) + 1 for s in samples]
    for batch in microbatches([len(task.prompt_ids(s)[0]) for s in samples], lengths, 1, limit):
        loss, tokens = rationale_loss(model, task, [samples[b] for b in batch], pad_id)
        yield loss * (tokens / sum(lengths)), tokens


def held_out_loss(model, task, pad_id: int, limit: int) -> float:
    with torch.no_grad():
        return sum(float(part) for part, _ in in_batches(model, task, task.val, pad_id, limit))


def new_sft_state() -> dict:
    """Progress of the stage: which learning rate, how far, and what was best so far."""
    return {"lr_index": 0, "step": 0, "looks_without_better": 0, "best_loss": None, "winner_loss": None, "winner_lr": None, "trained_tokens": 0}


def sft_steps(state, config, task, pad_id: int):
    """The stage as a generator: after each step it yields the values of an "sft" event, or None. Goes on from `state.sft`.

    At its end the model holds the winning weights and a fresh optimizer for RL.
    """
    t, s = config.trainer, state.sft
    while s["lr_index"] < len(t.sft_lrs):
        lr = t.sft_lrs[s["lr_index"]]
        if s["step"] == 0:
            load_trained(state.model, state.start)
            state.optimizer = new_optimizer(state.model, lr)
            s.update(best_loss=None, looks_without_better=0)
        while s["step"] < t.sft_max_steps and s["looks_without_better"] < t.sft_patience:
            samples = [task.train[i] for i in batch_ids(len(task.train), t.batch_size, config.seed, s["step"])]
            state.optimizer.zero_grad()
            loss, tokens = 0.0, 0
            with updating(state.model, config.policy, config.seed, "sft", s["lr_index"], s["step"]):
                for part, n in in_batches(state.model, task, samples, pad_id, t.update_tokens):
                    part.backward()
                    loss, tokens = loss + float(part.detach()), tokens + n
            norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grpo.max_grad_norm))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(f"The SFT loss became {loss} at step {s['step'] + 1} with learning rate {lr:g}; take it out of trainer.sft_lrs.")
            state.optimizer.step()
            s["step"] += 1
            s["trained_tokens"] += tokens
            event = None
            if s["step"] % t.sft_eval_every == 0 or s["step"] == t.sft_max_steps:
                val_loss = held_out_loss(state.model, task, pad_id, t.update_tokens)
                better = s["best_loss"] is None or val_loss < s["best_loss"]
                s["looks_without_better"] = 0 if better else s["looks_without_better"] + 1
                if better:
                    s["best_loss"], state.best = val_loss, clone_trained(state.model)
                event = {"lr": lr, "step": s["step"], "loss": loss, "val_loss": val_loss, "trained_tokens": s["trained_tokens"]}
            yield event
        if s["winner_loss"] is None or s["best_loss"] < s["winner_loss"]:
            s.update(winner_loss=s["best_loss"], winner_lr=lr)
            state.winner = state.best
        s.update(lr_index=s["lr_index"] + 1, step=0)
        state.best = None
    load_trained(state.model, state.winner)
    state.start = None
    state.optimizer = new_optimizer(state.model, config.grpo.lr)
    if state.reference is not None:
        load_trained(state.reference, state.winner)
