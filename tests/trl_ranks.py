"""A GRPOTrainer script for tests/test_trl_train.py, run by `accelerate launch`: rewards depend on sample and share alone, so that a curriculum's state can be compared.

python -m tests.trl_ranks FOLDER METHOD
"""

import os
import sys

import torch

from adaback_lite.config import PolicySettings
from adaback_lite.policy import tiny_model, tiny_tokenizer
from adaback_lite.tasks import Parity
from adaback_lite.trl import CurriculumGRPO, from_task, last_checkpoint

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
torch.set_num_threads(1)


def reward(id, completions, rho=None, **_):
    """Right where the share is above the sample's own threshold; in half of the rows anyway, so that groups differ."""
    return [float(i % 2 == 0 or share > int(name.rpartition("/")[2]) / 12) for i, (name, share) in enumerate(zip(id, rho or [0.0] * len(id)))]


def main(folder: str, method: str) -> None:
    from trl import GRPOConfig, GRPOTrainer

    processes, tokenizer = int(os.environ.get("WORLD_SIZE", "1")), tiny_tokenizer()
    task = Parity(tokenizer, 6, n_train=6, n_val=2, n_test=1, positions="sequential")
    adaback = CurriculumGRPO(from_task(task), reward, method, tau=0.6)
    args = GRPOConfig(
        output_dir=folder, seed=1, num_generations=4, max_completion_length=8, per_device_train_batch_size=12 // processes, gradient_accumulation_steps=1, max_steps=8,
        save_steps=1, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, gradient_checkpointing=False, per_device_eval_batch_size=1, num_generations_eval=1,
        eval_strategy="steps", eval_steps=4,
    )  # fmt: skip
    model = tiny_model(PolicySettings(base="none", layers=1, width=16, heads=2, kv_heads=2))
    trainer = GRPOTrainer(model, args=args, eval_dataset=from_task(task, "val"), processing_class=tokenizer, **adaback.hooks())
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
