"""The checkpoints that TRL writes for a run of ours (trl.py), read without TRL: which of them are whole, and the policy in one.

    checkpoint-40/
        trainer_state.json            TRL's progress, and under "CurriculumGRPO" the curriculum's
        model.safetensors             the policy as `from_pretrained` loads it; or, with LoRA, adapter_model.safetensors as peft loads it
        optimizer.pt, rng_state*.pth  for TRL to go on from; never read here
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch

from .config import Config
from .errors import UserError

OWNER = "CurriculumGRPO"  # TRL files a callback's state under the name of its class


def curriculum_of(checkpoint: Path) -> dict | None:
    """What CurriculumGRPO.state() wrote into a checkpoint, {} where it had nothing to do with it; None where trainer_state.json is missing or torn.

    TRL writes that file when the weights are there, so with it they are whole.
    """
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return ((state.get("stateful_callbacks") or {}).get(OWNER) or {}).get("attributes") or {}
    except (OSError, ValueError, AttributeError):
        return None


def checkpoints(folder: str | os.PathLike) -> Iterator[tuple[int, Path, dict]]:
    """(N, checkpoint-N, its `curriculum_of`) of a folder, newest first, without those whose writing a kill has cut short. Each is read when it is asked for."""
    steps = [int(number) for p in Path(folder).glob("checkpoint-*") if (number := p.name.removeprefix("checkpoint-")).isdigit()]
    for step in sorted(steps, reverse=True):
        checkpoint = Path(folder) / f"checkpoint-{step}"
        if (saved := curriculum_of(checkpoint)) is not None:
            yield step, checkpoint, saved


def last_checkpoint(output_dir: str | os.PathLike, before: int | None = None) -> str | None:
    """The newest checkpoint of TRL in a folder from which it can go on, for `trainer.train(resume_from_checkpoint=...)`; None where there is none, which starts anew.

    TRL's other processes may be later than the first, so each one's random state must be there too. All processes must see the same folder: with a
    disk for each machine there is none.
    `before`: only one of fewer steps; resumed at its last step, TRL would take one more.
    """
    for step, checkpoint, saved in checkpoints(output_dir):
        if before is not None and step >= before:
            continue
        processes = saved.get("facts", {}).get("processes", 1)
        names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
        if all((checkpoint / name).is_file() for name in names):
            return str(checkpoint)
    return None


def load_policy(config: Config, folder: Path):
    """(model, tokenizer, state) of a run's newest checkpoint, as `Run.load_checkpoint` gives them of our own trainer's.

    Raises UserError when there is none yet, or when its weights are missing, damaged, or of another model.
    """
    from .build import build_policy
    from .policy import load_trained

    if (newest := next(checkpoints(folder), None)) is None:
        raise UserError(f"{folder} has no checkpoint yet; train longer, or lower trainer.checkpoint_every.")
    _, checkpoint, saved = newest
    name = "adapter_model" if config.policy.lora_rank else "model"
    files = sorted(checkpoint.glob(f"{name}*.safetensors"))  # model-00001-of-00002.safetensors, ... where it is large
    if not files:
        shards = "as where DeepSpeed or FSDP saves shards; gather the weights under that name first, or evaluate with TRL"
        raise UserError(f"{checkpoint} holds no {name}.safetensors, {shards}.")
    model, tokenizer = build_policy(config)
    try:
        load_trained(model, {k: v for file in files for k, v in safetensors.torch.load_file(file).items()})
        digests = {}
        for file in files:
            with open(file, "rb") as opened:
                digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{checkpoint / name}.safetensors is damaged or not of this policy ({error}); delete {checkpoint.name}, and the checkpoint before it is used.") from None
    except OSError as error:
        raise UserError(f"{checkpoint} cannot be read ({error.strerror}); where the run goes on and has just dropped it, try again.") from None
    return model, tokenizer, {"stage": "rl", "step": saved.get("batches", 0), "sha256": digests}
