"""The base for the tiny policy: it knows how to find X_i from step i and how an output ends, and nothing of parities.

A pretrained language model brings the skill of looking things up in its context. A random one must first learn it, and
that, not the parity, is then what takes the time (measured). So tiny starts from a model trained on
chains Y_1 Z_1 ... Y_L Z_L in which every Z_i of a chain follows one of four rules: X_i, Y_i, 0 or 1, drawn a chain at a time.
No rule combines two bits. `tests/test_pretrain.py` checks that the result knows no parity.
"""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import safetensors
import torch

from .config import PolicySettings
from .errors import UserError
from .models import cache_folder
from .packing import Prefix, packed_logprobs
from .policy import tiny_model, tiny_tokenizer
from .runs import _disk
from .seeding import numpy_generator
from .tasks.parity import prompt_positions

RECIPE = 1  # raise it when anything below changes what a base is
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "bases"


def copy_chains(rng: np.random.Generator, n: int, length: int) -> tuple[list[str], list[str]]:
    """n inputs X and n outputs Y_1 Z_1 ... whose Z follow one copying rule each."""
    x, y = rng.integers(0, 2, (2, n, length))
    rule = rng.integers(0, 4, (n, 1))
    z = np.select([rule == 0, rule == 1, rule == 2], [x, y, np.zeros_like(x)], np.ones_like(x))
    outputs = np.stack([y, z], axis=2).reshape(n, 2 * length)
    return ["".join(map(str, row)) for row in x], ["".join(map(str, row)) for row in outputs]


def train_base(settings: PolicySettings, length: int, steps: int | None = None, batch_size: int = 64, lr: float = 2e-3, progress=None):
    """A tiny model trained on copying chains, from fixed seeds.

    `steps` is by default 1,500 for coupled positions, and 4,000 for sequential ones, where finding X_i from step i must be learnt
    (length 16, one core: a minute and a half, and four minutes).

    `progress(step, loss)` is called after each step.
    """
    steps = steps or {"coupled": 1500, "sequential": 4000}[settings.positions]
    model, tokenizer, rng = tiny_model(settings), tiny_tokenizer(), numpy_generator("base", RECIPE, length)
    token = {c: tokenizer.convert_tokens_to_ids(c) for c in "01="}
    positions, start = prompt_positions(length, settings.positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 100) * max(0.05, 1 - t / steps))
    for step in range(steps):
        inputs, outputs = copy_chains(rng, batch_size, length)
        prefixes = [Prefix([tokenizer.bos_token_id] + [token[c] for c in x + "="], positions, start, 2 * length + 1) for x in inputs]
        tokens = torch.tensor([[token[c] for c in out] + [tokenizer.eos_token_id] for out in outputs])[:, None]  # [B, 1, S]
        logp, _ = packed_logprobs(model, prefixes, tokens, torch.ones_like(tokens, dtype=torch.bool), tokenizer.pad_token_id)
        loss = -logp.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, float(loss.detach()))
    return model, tokenizer


def base_name(settings: PolicySettings, length: int) -> str:
    """The folder name of a base: everything it depends on."""
    s = settings
    return f"tiny-{s.positions}-L{length}-{s.layers}x{s.width}-h{s.heads}kv{s.kv_heads}-theta{s.rope_theta:g}-r{RECIPE}"


def base_folder(settings: PolicySettings, length: int, make: bool = True, progress=None) -> Path:
    """The folder of the base for these settings: shipped with the project, else cached, else made now and cached (about a minute)."""
    name = base_name(settings, length)
    for root in (SHIPPED, cache_folder()):
        if (root / name / "config.json").is_file():
            return root / name
    if not make:
        raise UserError(f"There is no base {name} yet; 'adaback base --positions {settings.positions} --length {length}' makes it.")
    return save_base(settings, length, cache_folder() / name, progress)


def save_base(settings: PolicySettings, length: int, folder: Path, progress=None) -> Path:
    """Make a base and write it, whole or not at all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread, so that the result does not depend on how many cores there are
    started = time.time()
    try:
        model, tokenizer = train_base(settings, length, progress=progress)
    finally:
        torch.set_num_threads(before)
    temporary = folder.with_name(f"{folder.name}.writing-{os.getpid()}")
    facts = {"recipe": RECIPE, "length": length, "policy": settings.model_dump(), "seconds": round(time.time() - started, 1), "torch": torch.__version__}
    with _disk(folder.parent, clean=temporary):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        except safetensors.SafetensorError as error:  # how safetensors words what the disk says
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
        (temporary / "made.json").write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:  # another process was as fast; what it made is the same
            if not (folder / "config.json").is_file():
                raise
            shutil.rmtree(temporary)
    return folder
