"""The checkpoints that TRL writes for a run of ours (trl.py), read without TRL: which of them are whole, and the policy in one.

    checkpoint-40/
        trainer_state.json            TRL's progress, and under "CurriculumGRPO" the curriculum's
        model.safetensors             the policy as `from_pretrained` loads it; or, with LoRA, adapter_model.safetensors as peft loads it
        optimizer.pt, rng_state*.pth  for TRL to go on from; never read here
"""

import hashlib
import json
import os
from pathlib import Path

import safetensors.torch

from .config import Config
from .errors import UserError

OWNER = "CurriculumGRPO"  # TRL files a callback's state under the name of its class


def curriculum_of(checkpoint: Path) -> dict | None:
    """What CurriculumGRPO.state() wrote into a checkpoint, {} where it had nothing to do with it; None where trainer_state.json is missing or torn."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ((state.get("stateful_callbacks") or {}).get(OWNER) or {}).get("attributes") or {}


def last_checkpoint(output_dir: str | os.PathLike, before: int | None = None) -> str | None:
    """The newest whole checkpoint of TRL in a folder, for `trainer.train(resume_from_checkpoint=...)`; None where there is none, which starts anew.

    TRL writes trainer_state.json last, but its other processes may be later still; what a kill left unfinished is passed over. All processes must see
    the same folder: with a disk for each machine no checkpoint looks whole.
    `before`: only one of fewer steps; resumed at its last step, TRL would take one more.
    """
    steps = [int(number) for p in Path(output_dir).glob("checkpoint-*") if (number := p.name.removeprefix("checkpoint-")).isdigit()]
    for step in sorted(steps, reverse=True):
        folder = Path(output_dir) / f"checkpoint-{step}"
        if before is not None and step >= before:
            continue
        if (saved := curriculum_of(folder)) is None:
            continue
        processes = saved.get("facts", {}).get("processes", 1)
        names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
        if all((folder / name).is_file() for name in names):
            return str(folder)
    return None


def load_policy(config: Config, folder: Path):
    """(model, tokenizer, state) of a run's newest whole checkpoint, as `Run.load_checkpoint` gives them of our own trainer's.

    Raises UserError when there is none yet, or when its weights are missing or damaged.
    """
    from .build import build_policy
    from .policy import load_pretrained, load_trained

    if (found := last_checkpoint(folder)) is None:
        raise UserError(f"{folder} has no whole checkpoint yet; train longer, or lower trainer.checkpoint_every.")
    checkpoint, lora = Path(found), config.policy.lora_rank > 0
    files = sorted(checkpoint.glob("adapter_model.safetensors" if lora else "model*.safetensors"))
    if not files:
        raise UserError(f"{checkpoint} holds no weights as safetensors, as is so with shards of DeepSpeed or FSDP; gather them first ('accelerate merge-weights' does FSDP's).")
    model, tokenizer = build_policy(config)
    if lora:
        try:
            load_trained(model, safetensors.torch.load_file(files[0]))
        except (safetensors.SafetensorError, ValueError) as error:
            raise UserError(f"{files[0]} is damaged or of another adapter ({error}); delete {checkpoint.name}, and the checkpoint before it is used.") from None
    else:
        model = load_pretrained(config.policy, checkpoint)[0]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return model, tokenizer, {"stage": "rl", "step": curriculum_of(checkpoint).get("batches", 0), "sha256": digests}
