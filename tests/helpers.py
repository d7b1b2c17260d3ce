"""What several test files need: tiny models, ragged prefixes, and the slow obvious way to the model's log-probabilities."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import settings

from adaback_lite.config import Config, PolicySettings, make_config
from adaback_lite.packing import Prefix
from adaback_lite.policy import tiny_model, tiny_tokenizer
from adaback_lite.sft import rationale_loss
from adaback_lite.tasks import Parity
from adaback_lite.tasks.parity import prompt_positions

torch.set_num_threads(1)  # the tests share a machine, and bits depend on the number of threads

# The same examples on every run, and no failure because a shared machine was slow.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

PAD, BOS, EOS, ZERO, ONE, EQUALS = range(6)

# Rewards, unfinished outputs and groups without gradient all occur here within a few steps, in milliseconds a step.
SMALL = {
    "task": {"length": 6, "n_train": 20, "n_val": 4, "n_test": 6, "format_reward": 0.1},
    "policy": {"base": "none", "layers": 1, "width": 16, "heads": 2, "kv_heads": 1},
    "grpo": {"group_size": 4, "lr": 0.003},
    "trainer": {
        "threads": 1,
        "batch_size": 6,
        "max_steps": 12,
        "eval_every": 4,
        "checkpoint_every": 5,
        "sft_lrs": (0.003, 0.03),
        "sft_max_steps": 14,
        "sft_eval_every": 4,
        "sft_patience": 2,
    },
}


def small_config(out="unused", **settings) -> Config:
    """SMALL, with some dotted names changed."""
    return make_config({**SMALL, **settings, "out": str(out)})


def small_model(positions="sequential", layers=2, width=32, heads=4, kv_heads=2, seed=3, sharp=2.5):
    """A model in double precision, so that a test's tolerance measures the method and not rounding. `sharp` makes its outputs far from uniform."""
    model = tiny_model(PolicySettings(base="none", positions=positions, layers=layers, width=width, heads=heads, kv_heads=kv_heads), seed).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(sharp)
    return model


_FOLDERS = tempfile.TemporaryDirectory(prefix="adaback-tests-")


@functools.cache
def taught(positions="coupled") -> str:
    """A folder with SMALL's model after a little SFT: it knows the form and guesses the bits, so that single steps succeed now and then."""
    model = tiny_model(small_config(**{"policy.positions": positions}).policy, 1)
    task = Parity(tiny_tokenizer(), 6, 3, 20, 4, 6, seed=0, positions=positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        rationale_loss(model, task, task.train[:8], PAD)[0].backward()
        optimizer.step()
    folder = Path(_FOLDERS.name) / positions
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def taught_config(out="unused", **settings) -> Config:
    """small_config from the taught model."""
    return small_config(out, **{"policy.name": taught(settings.get("policy.positions", "coupled")), **settings})


def small_task(length=5, positions="sequential", degree=3, n_train=6, n_val=2, n_test=2, seed=0) -> Parity:
    return Parity(tiny_tokenizer(), length, degree, n_train, n_val, n_test, seed, positions)


def ragged_prefixes(positions="sequential", length=5, shown=(0, 3, 9, 4), seed=0) -> list[Prefix]:
    """Prompts of one length with revealed prefixes of several."""
    rng = np.random.default_rng(seed)
    prompt_pos, start = prompt_positions(length, positions)
    prefixes = []
    for k in shown:
        bits = (rng.integers(0, 2, length + k) + ZERO).tolist()
        ids = [BOS, *bits[:length], EQUALS, *bits[length:]]
        prefixes.append(Prefix(ids, prompt_pos + list(range(start, start + k)), start + k, 2 * length - k + 1))
    return prefixes


def ragged_rollouts(prefixes: list[Prefix], G=3, seed=0):
    """Random tokens [N, G, S] of random lengths (1 to max_new, both ends occurring) and their mask."""
    g = torch.Generator().manual_seed(seed)
    S = max(p.max_new for p in prefixes)
    tokens = torch.randint(EOS, 6, (len(prefixes), G, S), generator=g)
    lengths = torch.tensor([[1 + int(torch.randint(p.max_new, (), generator=g)) for _ in range(G)] for p in prefixes])
    lengths[0, 0], lengths[0, 1] = 1, prefixes[0].max_new
    mask = torch.arange(S) < lengths[..., None]
    return tokens.where(mask, PAD), mask


def slow_logits(model, prefix: Prefix, tokens: list[int]) -> torch.Tensor:
    """Logits that predict each of `tokens` [n] and the one after them, [n + 1, V]: one full sequence, no cache, no packing.

    The mask of ones keeps transformers from taking position ids that do not count up for several packed sequences.
    """
    ids = torch.tensor([prefix.ids + tokens])
    positions = torch.tensor([prefix.positions + [prefix.next_position + i for i in range(len(tokens))]])
    logits = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits[len(prefix.ids) - 1 :]


def slow_logprobs(model, prefixes, tokens, mask, temperature=1.0):
    """(log-probabilities, entropies) [N, G, S] of the real tokens, one rollout at a time; 0 elsewhere."""
    logp, entropy = torch.zeros(mask.shape, dtype=torch.float64), torch.zeros(mask.shape, dtype=torch.float64)
    for n, g in np.ndindex(*mask.shape[:2]):
        written = tokens[n, g, mask[n, g]].tolist()
        if written:
            log_p = (slow_logits(model, prefixes[n], written[:-1]) / temperature).log_softmax(-1)
            logp[n, g, : len(written)] = log_p[torch.arange(len(written)), torch.tensor(written)]
            entropy[n, g, : len(written)] = -(log_p.exp() * log_p).sum(-1)
    return logp, entropy


def gradients(model, loss) -> torch.Tensor:
    """All parameter gradients of `loss`, end to end."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
