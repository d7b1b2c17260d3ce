"""What a configuration names, made: the policy, the task, the optimizer."""

import torch

from .config import Config
from .errors import UserError
from .policy import load_folder, tiny_model, tiny_tokenizer
from .pretrain import base_folder
from .tasks import Parity


def build_policy(config: Config):
    """(model, tokenizer) as they stand before training."""
    p = config.policy
    if p.name != "tiny":
        model, tokenizer = load_folder(p.name)
    elif p.base == "none":
        model, tokenizer = tiny_model(p, config.seed), tiny_tokenizer()
    else:
        model, tokenizer = load_folder(base_folder(p, config.task.length))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def build_task(config: Config, tokenizer):
    """The task of a configuration."""
    t = config.task
    unknown = [c for c in "01=" if tokenizer.convert_tokens_to_ids(c) in (None, tokenizer.unk_token_id)]
    if unknown:
        named = " and ".join(map(repr, unknown))
        raise UserError(f"The tokenizer of policy.name {config.policy.name!r} has no single token for {named}, which the parity task needs; use policy.name tiny.")
    return Parity(tokenizer, t.length, t.degree, t.n_train, t.n_val, t.n_test, config.seed, config.policy.positions)


def new_optimizer(model, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
