"""What a configuration names, made: the policy, the task, the optimizer."""

from collections import Counter

import torch

from .config import Config
from .errors import UserError
from .policy import add_adapter, load_pretrained, tiny_model, tiny_tokenizer
from .pretrain import base_folder
from .seeding import numpy_generator
from .tasks import Parity


def build_policy(config: Config):
    """(model, tokenizer) as they stand before training."""
    p = config.policy
    if p.name != "tiny":
        model, tokenizer = load_pretrained(p)
    elif p.base == "none":
        model, tokenizer = tiny_model(p, config.seed), tiny_tokenizer()
    else:
        model, tokenizer = load_pretrained(p, base_folder(p, config.task.length))
    if p.lora_rank:
        model = add_adapter(model, p, config.seed)
    if p.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model, tokenizer


def build_task(config: Config, tokenizer, context: int | None = None):
    """The task of a configuration. `context` is the longest sequence that the model can read."""
    t = config.task
    if t.name != "parity":
        return build_text_task(config, tokenizer, context)
    unknown = [c for c in "01=" if tokenizer.convert_tokens_to_ids(c) in (None, tokenizer.unk_token_id)]
    if unknown:
        named = " and ".join(map(repr, unknown))
        raise UserError(f"The tokenizer of policy.name {config.policy.name!r} has no single token for {named}, which the parity task needs; use policy.name tiny.")
    return Parity(tokenizer, t.length, t.degree, t.n_train, t.n_val, t.n_test, config.seed, config.policy.positions)


def build_text_task(config: Config, tokenizer, context: int | None = None):
    """A task of word problems.

    val and test are the same problems for every seed, so that runs can be compared on them; the seed chooses the training
    problems among those there are. Variants act within a split: what is in the test was never in training in any form.
    """
    from .tasks.text import TextTask

    t = config.task
    source, variant = source_and_variant(t.name)
    splits, dropped = {}, Counter()
    wanted = {"train": t.n_train + t.shots, "val": t.n_val, "test": t.n_test}
    problems = load_problems(source, t.data, dropped)
    for split, n in wanted.items():
        splits[split] = take(problems, split, n, variant, config.seed, dropped)
    demonstrations, train = splits["train"][: t.shots], splits["train"][t.shots :]
    boxed = source in ("math", "deepscaler")
    return TextTask(tokenizer, train, splits["val"], splits["test"], t, demonstrations, 7 if variant == "base7" else 10, boxed, context, dropped)


def source_and_variant(name: str) -> tuple[str, str]:
    """'gsm-symbolic-base7' -> ('gsm-symbolic', 'base7'); no variant is ''."""
    source, _, last = name.rpartition("-")
    return (source, last) if last == "base7" or last.startswith("tensor") else (name, "")


def load_problems(source: str, data: str, dropped: Counter):
    """split -> all its samples, or None for gsm-symbolic, which is endless and made as needed. Adds to `dropped`."""
    if source == "gsm8k":
        from .tasks.gsm8k import load_gsm8k

        return load_gsm8k(data)
    if source == "gsm-symbolic":
        return None
    from .tasks.math import load_splits

    splits, counts = load_splits(source, data)
    dropped.update(counts)
    return splits


def take(problems, split: str, n: int, variant: str, seed: int, dropped: Counter) -> list:
    """n samples of a split in the form of the variant, fewer where there are fewer; the seed matters for train only."""
    if problems is None:
        return take_symbolic(split, n, variant, seed, dropped)
    samples = problems[split]
    if split == "train":
        order = numpy_generator(seed, "training problems").permutation(len(samples))
        samples = [samples[i] for i in order]
    if variant == "base7":
        from .tasks.base7 import convert

        samples, counts = convert(samples)
        dropped.update(counts)
    elif variant:
        from .tasks.tensor import tensor

        samples = tensor(samples, int(variant.removeprefix("tensor")), split)
    return samples[:n]


def take_symbolic(split: str, n: int, variant: str, seed: int, dropped: Counter) -> list:
    """As `take`, with as many problems generated as that needs."""
    from .tasks.symbolic import symbolic

    k = int(variant.removeprefix("tensor")) if variant.startswith("tensor") else 1
    several = n * k
    while True:
        samples, counts = symbolic(split, several, seed if split == "train" else 0)
        counts = Counter(counts)
        kept = take({split: samples}, split, n, variant, seed, counts)
        if len(kept) >= n:
            dropped.update(counts)
            return kept
        several *= 2


def new_optimizer(model, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
