"""`adaback train`, by TRL: the same options, the same folder to look at, another engine.

    adaback train parity --method adaback --policy.positions sequential --out runs/a                               # ours, one process
    accelerate launch --multi_gpu --num_processes 8 -m adaback_lite.trl_train parity --method adaback --policy.positions sequential --out runs/b

This is also the script to start your own from: build a model and a dataset, name a curriculum, hand its hooks to `GRPOTrainer`.
After a kill the same command with --resume goes on. The policy stands in TRL's checkpoints, as `from_pretrained` loads them; `adaback eval` and `compare` read it there.
"""

import difflib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback

from .build import build_policy, build_task
from .config import Config, dump_config
from .errors import UserError
from .evaluate import wilson
from .options import Parser, add_settings, check_left_over, chosen_config, given_settings, join_negative_numbers, known_preset, natural_preset, start_settings
from .policy import chosen_device, chosen_dtype
from .resume import finished, resumed_config
from .runs import Run, by_trl, go_on_command, load_run, write_atomically
from .sft import batch_ids
from .tables import print_result
from .tasks.text import DATE
from .trainer import machine
from .trl import CurriculumGRPO, from_task, last_checkpoint, quiet, task_reward


def grpo_arguments(config: Config, task, processes: int = 1) -> dict:
    """Our settings as arguments of `GRPOConfig`. Raises UserError for what TRL cannot do, or not with so many processes.

    A step of ours, batch_size samples x group_size rollouts, is one generation batch, for which TRL takes grpo.passes steps of its own.
    """
    g, t = config.grpo, config.trainer
    if g.entropy:
        raise UserError(f"grpo.entropy is {g.entropy:g}, but TRL has no such bonus; set it to 0.")
    rows, left = divmod(min(t.batch_size, len(task.train)) * g.group_size, processes)
    if left:
        raise UserError(f"A step has {rows * processes + left} rollouts, which {processes} processes cannot share evenly; change trainer.batch_size or --num_processes.")
    longest = max(len(task.prompt_ids(s)[0]) + len(task.rationale_ids(s)) + task.max_new(s, 0) for s in task.train)
    at_once = max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * longest <= t.update_tokens))
    return {
        "output_dir": config.out,
        "seed": config.seed,
        "max_steps": t.max_steps * g.passes,
        "shuffle_dataset": False,  # `in_our_order` has done it
        # the batch
        "num_generations": g.group_size,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": rows // at_once,
        "max_completion_length": max(task.max_new(s, 0) for s in task.train),
        "temperature": g.temperature,
        # the update
        "learning_rate": g.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": g.max_grad_norm,
        "loss_type": g.norm,
        "scale_rewards": "group" if g.scale_std else "none",
        "num_iterations": g.passes,
        "epsilon": g.clip_low,
        "epsilon_high": g.clip_high,
        "beta": g.kl,
        # the machine
        "use_cpu": chosen_device(config.policy) == "cpu",
        "bf16": chosen_dtype(config.policy) == torch.bfloat16,
        "gradient_checkpointing": config.policy.checkpointing,
        "chat_template_kwargs": {"date_string": DATE} if getattr(task, "chat", False) else None,
        # looking and saving
        "per_device_eval_batch_size": math.gcd(len(task.val), 64 * processes) // processes or 1,
        "num_generations_eval": 1,
        "eval_strategy": "steps",
        "eval_steps": t.eval_every * g.passes,
        "logging_steps": t.eval_every * g.passes,
        "save_steps": t.checkpoint_every * g.passes,
        "save_total_limit": max(t.keep_checkpoints, 2),
        "report_to": "none",
    }


def in_our_order(dataset, config: Config):
    """The training samples step after step, as our own trainer visits them, as one long epoch: the same seed shows both trainers the same samples."""
    order = [batch_ids(len(dataset), config.trainer.batch_size, config.seed, step) for step in range(max(config.trainer.max_steps, 1))]
    return dataset.select(np.concatenate(order))


def more_arguments(words: list[str], taken: dict) -> dict:
    """Further arguments of GRPOConfig from `--trl use_vllm=true vllm_mode=colocate`. Raises UserError for one that there is not, or that our settings make."""
    from trl import GRPOConfig

    given = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in taken and name != "logging_steps":
            raise UserError(f"--trl {name} is made from our own settings; change those ('--help' lists them).")
        if name not in GRPOConfig.__dataclass_fields__:
            near = difflib.get_close_matches(name, GRPOConfig.__dataclass_fields__, n=1)
            raise UserError(f"GRPOConfig has no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; give it as NAME=VALUE, with a name from TRL's documentation."))
        given[name] = yaml.safe_load(value)
    return given


class Keeper(TrainerCallback):
    """Writes config.yaml when nothing can refuse the run any more, tells of progress, and stops at trainer.target_accuracy with a checkpoint."""

    def __init__(self, adaback: CurriculumGRPO, config: Config):
        self.adaback, self.config, self.target = adaback, config, config.trainer.target_accuracy

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            write_atomically(Path(self.config.out) / "config.yaml", dump_config(self.config))
            (Path(self.config.out) / "summary.json").unlink(missing_ok=True)

    def on_evaluate(self, args, state, control, metrics=None, **_):
        if "eval_loss" not in metrics:
            return
        if state.is_world_process_zero:
            told = f"step {self.adaback.batches}: held out {self.adaback.accuracy:.2f}, {self.adaback.rollouts:,} rollouts, {self.adaback.seconds:.0f} s"
            print(f"{Path(args.output_dir).name} {told}", file=sys.stderr)
        if self.target and self.adaback.accuracy >= self.target and state.global_step:
            control.should_training_stop = control.should_save = True


def train(config: Config, resume: bool = False, trl: list[str] = ()) -> Run:
    """Train by TRL in this process, one of those that `accelerate launch` started; returns the run, with a summary as our own have.

    trl: further arguments of GRPOConfig, as `["use_vllm=true", "vllm_mode=colocate"]`; they are not kept, so name them again on resume.
    Raises UserError for anything the user can mend.
    """
    quiet()
    from trl import GRPOConfig, GRPOTrainer

    if config.uses_sft:
        raise UserError(f"method is {config.method}, but here only the RL stage runs; train with TRL's SFTTrainer first, and name its result as policy.name.")
    folder, state = Path(config.out), PartialState(cpu=chosen_device(config.policy) == "cpu")
    if (folder / "config.yaml").is_file() and not resume:
        raise UserError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out.")
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if (folder / "config.yaml").is_file():
        run = load_run(folder)
        events = run.so_far
        if events and not by_trl(events):
            raise UserError(f"{folder} holds a run of our own trainer; {go_on_command(folder, events)} goes on with it.")
        config = resumed_config(config, run.config)
        if run.summary and finished(run, config):
            return run
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer, getattr(model.config, "max_position_embeddings", None))
    arguments = grpo_arguments(config, task, state.num_processes)
    given = more_arguments(trl, arguments)
    if given.get("log_completions"):  # TRL files outputs when it logs, and at an evaluation the evaluated ones in their place; it would print them all
        arguments |= {"logging_steps": config.grpo.passes, "num_completions_to_print": 0}
    arguments |= given
    adaback = CurriculumGRPO(from_task(task), task_reward(task, tokenizer, config.task.format_reward), config.method, **config.curriculum.model_dump())
    # Killed between its last checkpoint and its summary a run goes on from the checkpoint before, or it would take a step too many.
    target, done = config.trainer.target_accuracy, Run(folder).steps_done
    solved = [e["step"] for e in Run(folder).so_far if e["event"] == "eval" and target and e["step"] and e["accuracy"] >= target]
    if done > config.trainer.max_steps:
        raise UserError(f"{folder} has taken {done} steps already, so it cannot end at trainer.max_steps {config.trainer.max_steps}; give a number above.")
    checkpoint = last_checkpoint(config.out, before=min([config.trainer.max_steps, *solved]) * config.grpo.passes)
    hooks = adaback.hooks(callbacks=[Keeper(adaback, config)]) | {"train_dataset": in_our_order(adaback.dataset, config)}
    try:
        args = GRPOConfig(**{"eval_on_start": checkpoint is None, "disable_tqdm": True} | arguments)
        trainer = GRPOTrainer(model, args=args, eval_dataset=from_task(task, "val"), processing_class=tokenizer, **hooks)
    except ValueError as error:  # as for a number of rows that vLLM cannot share, or an adapter on the output layer
        raise UserError(f"TRL refuses these settings: {' '.join(str(error).split())}") from None
    trainer.remove_callback(PrinterCallback)  # some thirty numbers each time, which stand in trainer_state.json
    trainer.train(resume_from_checkpoint=checkpoint)
    held_out = adaback.accuracy
    trainer.evaluate(from_task(task, "test"), metric_key_prefix="test")
    if state.is_main_process:
        right, n = sum(r >= 1 for r in adaback.evaluated), len(adaback.evaluated)
        summary = {
            "method": config.method,
            "seed": config.seed,
            "steps": adaback.batches,
            "rollouts": adaback.rollouts,
            "generated_tokens": adaback.generated_tokens,
            "trained_tokens": 0,
            "wall_seconds": adaback.seconds,
            "held_out_accuracy": held_out,
            "test_accuracy": right / n,
            "test_accuracy_ci95": wilson(right, n),
            "test_right": right,
            "test_n": n,
            "stopped_by": "target_accuracy" if target and held_out >= target else "max_steps",
            "machine": {**machine(), "processes": state.num_processes},
        }
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    state.wait_for_everyone()
    return Run(folder)


def make_parser() -> Parser:
    """The options of `adaback train` that have a meaning here."""
    about = "Train by TRL's GRPOTrainer, in one process or in those that `accelerate launch` starts. TASK and FILE.yaml are as for adaback train."
    parser = Parser(
        prog="adaback_lite.trl_train", usage="[accelerate launch] -m adaback_lite.trl_train [TASK | FILE.yaml] [--GROUP.SETTING VALUE ...]", description=about, allow_abbrev=False
    )
    parser.add_argument("--preset", type=known_preset, metavar="X", help="settings to start from, as for adaback train")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its newest whole checkpoint, with as many processes as before")
    parser.add_argument(
        "--trl",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further arguments of TRL's GRPOConfig, as use_vllm=true vllm_mode=colocate; not kept, so name them again on --resume",
    )
    add_settings(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = make_parser()
    try:
        args, words = parser.parse_known_args(join_negative_numbers(sys.argv[1:] if argv is None else list(argv)))
        check_left_over(words, parser, positional=True)
        given, start = given_settings(args), start_settings(words[0] if words else None, args.preset)
        config = chosen_config(given, start, args.resume, given.get("out", Config().out), args.preset or natural_preset(start, given))
        run = train(config, args.resume, args.trl)
    except UserError as error:
        print(f"adaback: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print_result(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
