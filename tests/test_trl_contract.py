"""What adaback_lite.trl assumes of the installed TRL, one assertion each, so that a release that breaks it says where.

One GRPOTrainer trains three steps and evaluates, on random weights and with a recorder at each place that we use; the tests look at the record.
"""

import copy
import inspect
import json
import os
from collections import defaultdict
from pathlib import Path

import datasets
import pandas
import pytest
import torch
import transformers
from accelerate.data_loader import get_sampler

from adaback_lite import UserError
from adaback_lite.config import PolicySettings, make_config
from adaback_lite.policy import tiny_model, tiny_tokenizer
from adaback_lite.tasks import Parity
from adaback_lite.trl import CurriculumGRPO, Prompt, catch_up, from_task, last_checkpoint, task_reward
from adaback_lite.trl_train import Keeper

from .language import CHATML, byte_tokenizer

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
G = 4
TOKENIZER = tiny_tokenizer()


def arguments(folder, **changes):
    from trl import GRPOConfig

    own = {
        "output_dir": str(folder), "seed": 5, "num_generations": G, "num_generations_eval": 2, "max_completion_length": 9, "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2, "max_steps": 3, "save_steps": 1, "eval_steps": 3, "eval_strategy": "steps", "per_device_eval_batch_size": 4,
        "use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip
    return GRPOConfig(**(own | changes))


class Record:
    """What was seen at each place, in the order of its happening."""

    def __init__(self, folder, correct=None, **changes):
        from trl import GRPOTrainer

        self.calls, self.order = defaultdict(list), []
        self.task = Parity(TOKENIZER, 4, n_train=4, n_val=2, n_test=1, positions="sequential")
        correct = correct or task_reward(self.task, TOKENIZER)

        def reward(**columns):
            self.note("reward", columns)
            return correct(**columns)

        self.adaback = CurriculumGRPO(from_task(self.task), reward, method="adaback", min_hidden=3)
        hooks = self.adaback.hooks(callbacks=[self.listener()])
        rollout = hooks["rollout_func"]

        def recorded(*args):
            out = rollout(*args)
            self.note("rollout", (args, copy.deepcopy(out), args[1].model.training))
            return out

        model = tiny_model(PolicySettings(base="none", layers=1, width=16, heads=2, kv_heads=2))
        eval_dataset = from_task(self.task, "val").remove_columns(["rationale", "answer"])
        self.trainer = GRPOTrainer(model, args=arguments(folder, **changes), eval_dataset=eval_dataset, processing_class=TOKENIZER, **hooks | {"rollout_func": recorded})
        self.start = [p.detach().clone() for p in model.parameters()]
        compute = self.trainer.compute_loss
        self.trainer.compute_loss = lambda model, inputs, *a, **k: (self.note("loss", inputs), compute(model, inputs, *a, **k))[1]

    def ended_as(self, other):
        """Whether the weights are those of another record, to the bit; they must have moved on the way."""
        weights = list(self.trainer.model.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(self.start, weights) if a.ndim > 1)
        return all(torch.equal(a, b) for a, b in zip(other.trainer.model.parameters(), weights))

    def note(self, place, what):
        self.order.append(place)
        self.calls[place].append(what)

    def listener(self):
        note = self.note

        class Listener(transformers.TrainerCallback):
            def on_train_begin(self, args, state, control, **given):
                note("begin", (state.global_step, copy.deepcopy(state.stateful_callbacks), given))

            def on_step_end(self, args, state, control, **_):
                note("step", state.global_step)

            def on_save(self, args, state, control, **_):
                note("save", state.global_step)

            def on_evaluate(self, args, state, control, metrics=None, **_):
                note("evaluate", metrics)

        return Listener()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    record = Record(tmp_path_factory.mktemp("trl"))
    record.trainer.train()
    return record


def half(completion_ids, **_):
    """A reward that differs within a group, so that there is a gradient."""
    return [float(i % 2) for i in range(len(completion_ids))]


EPOCHS = {"per_device_train_batch_size": 4, "max_steps": 6, "eval_strategy": "no"}  # 2 of the 4 samples a step: three epochs


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    record = Record(tmp_path_factory.mktemp("epochs"), half, **EPOCHS)
    record.trainer.train()
    return record


def training(record):
    return [(args, out) for args, out, trains in record.calls["rollout"] if trains]


def test_the_hooks_are_arguments_of_the_trainer(record):
    from trl import GRPOTrainer

    assert set(record.adaback.hooks()) <= set(inspect.signature(GRPOTrainer.__init__).parameters)


def test_a_rollout_function_is_called_with_prompts_and_trainer_once_a_generation_batch(record):
    assert len(training(record)) == 3 and all(args[1] is record.trainer and len(args) == 2 for args, _ in training(record))


def test_each_prompt_comes_g_times_in_a_row(record):
    """Against the docstring of rollout_func in 1.16, which says that prompts come without duplication."""
    for (prompts, _), _ in training(record):
        assert len(prompts) == 16 and all(len(set(prompts[i : i + G])) == 1 for i in range(0, 16, G)) and len(set(prompts)) == 4


def test_prompts_keep_their_sample_on_the_way(record):
    assert all(type(p) is Prompt and 0 <= p.sample < 4 for (prompts, _), _ in training(record) for p in prompts)


def test_the_model_says_whether_it_trains(record):
    assert [trains for *_, trains in record.calls["rollout"]] == [True] * 3 + [False]  # two validation prompts, twice each, in one batch


def test_in_evaluation_each_prompt_comes_num_generations_eval_times(record):
    (args, out, _) = record.calls["rollout"][-1]
    assert len(args[0]) == 4 and args[0][0] == args[0][1] != args[0][2] == args[0][3] and set(out) == {"prompt_ids", "completion_ids", "logprobs"}


def test_further_keys_reach_the_reward_functions_row_by_row(record):
    for (_, out), columns in zip(training(record), record.calls["reward"]):
        assert columns["revealed"] == out["revealed"] and columns["rho"] == out["rho"]


def test_columns_of_the_dataset_reach_the_reward_functions(record):
    columns = record.calls["reward"][0]
    assert {"id", "rationale", "answer", "completions", "completion_ids", "log_metric", "log_extra"} <= set(columns) and len(columns["id"]) == 16


def test_in_evaluation_reward_functions_are_not_told_of_a_prefix(record):
    assert "revealed" not in record.calls["reward"][-1] and len(record.calls["reward"]) == 4


def test_rewards_are_asked_for_right_after_each_rollout_and_before_the_loss(record):
    assert record.order[:5] == ["begin", "rollout", "reward", "loss", "loss"]


def test_completions_are_never_empty_and_end_with_the_end_token(record):
    written = [ids for _, out in training(record) for ids in out["completion_ids"]]
    assert all(ids and TOKENIZER.eos_token_id not in ids[:-1] for ids in written) and any(ids == [TOKENIZER.eos_token_id] for ids in written)


def test_the_loss_is_on_the_same_tokens_as_the_sampling(record):
    """prompt + prefix without loss, then the completion with it, for each rollout, in any order."""
    steps = [record.calls["loss"][2 * i : 2 * i + 2] for i in range(3)]
    for (_, out), parts in zip(training(record), steps):
        seen = []
        for part in parts:
            for prompt, pmask, completion, cmask in zip(part["prompt_ids"], part["prompt_mask"], part["completion_ids"], part["completion_mask"]):
                seen.append((prompt[pmask.bool()].tolist(), completion[cmask.bool()].tolist()))
        assert sorted(seen) == sorted(zip(out["prompt_ids"], out["completion_ids"]))


def test_prompts_are_our_prompt_and_prefix(record):
    task = record.task
    for (prompts, _), out in training(record):
        for prompt, ids, prefix in zip(prompts, out["prompt_ids"], out["revealed"]):
            sample = task.train[prompt.sample]
            assert ids == task.prompt_ids(sample)[0] + task.rationale_ids(sample)[: len(prefix)] and len(prefix) <= len(task.rationale_ids(sample)) - 3


def test_the_trainer_tokenizes_as_the_tokenizer_does(record):
    assert record.trainer._tokenize_prompts(["<bos>01="])[0] == TOKENIZER(["<bos>01="])["input_ids"] and record.trainer._tokenize_prompts(["<bos>01="])[1:] == (None, {})


def test_sampling_takes_token_ids_of_any_length(record):
    signature = inspect.signature(type(record.trainer)._generate_single_turn)
    assert list(signature.parameters)[1:5] == ["prompt_ids", "images", "multimodal_fields", "num_generations"]


def test_the_trainer_knows_its_end_tokens(record):
    assert TOKENIZER.eos_token_id in record.trainer.eos_token_ids


def test_the_arguments_have_the_names_that_are_read(record):
    args = record.trainer.args
    names = "output_dir seed world_size num_generations steps_per_generation num_iterations gradient_accumulation_steps save_strategy save_steps"
    assert all(hasattr(args, name) for name in names.split()) and args.save_strategy == "steps"
    assert args.remove_unused_columns is False and args.restore_callback_states_from_checkpoint is False


def test_training_begins_with_the_tokenizer_and_step_zero(record):
    step, states, given = record.calls["begin"][0]
    assert step == 0 and given["processing_class"] is TOKENIZER and "CurriculumGRPO" in states


def test_the_state_stands_in_each_checkpoint_as_it_was_after_the_step(record):
    for step in (1, 2, 3):
        saved = json.loads((Path(record.trainer.args.output_dir) / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert saved["stateful_callbacks"]["CurriculumGRPO"]["attributes"]["batches"] == step
    assert saved["stateful_callbacks"]["CurriculumGRPO"]["attributes"]["curriculum"] == record.adaback.curriculum.state_dict()


def test_evaluation_comes_before_the_checkpoint_of_its_step(record):
    assert record.order.index("evaluate") < len(record.order) - 1 - record.order[::-1].index("save")


def test_evaluations_are_told_apart_by_their_prefix(record):
    assert "eval_loss" in record.calls["evaluate"][0]
    record.trainer.evaluate(metric_key_prefix="test")
    assert "test_loss" in record.calls["evaluate"][-1] and "eval_loss" not in record.calls["evaluate"][-1]


def test_logged_metrics_are_in_trls_log(record):
    logs = [e for e in record.trainer.state.log_history if "curriculum/rho" in e]
    shares = [e["mean_rho"] for e in (json.loads(line) for line in (Path(record.trainer.args.output_dir) / "events.jsonl").read_text().splitlines()) if e["event"] == "step"]
    assert [e["curriculum/rho"] for e in logs] == pytest.approx(shares, rel=1e-3)


def test_trls_table_of_outputs_has_what_was_revealed(tmp_path):
    """Its completions are without their prefix, which `log_extra` puts beside them; in evaluation there is none."""
    record = Record(tmp_path, log_completions=True, max_steps=2, eval_steps=2, save_strategy="no")
    record.trainer.train()
    first, last = (pandas.read_parquet(tmp_path / "completions" / f"completions_0000{step}.parquet") for step in (1, 2))
    out, columns = training(record)[0][1], record.calls["reward"][0]
    assert list(first["revealed"]) == TOKENIZER.batch_decode(out["revealed"]) and list(first["rho"]) == pytest.approx(out["rho"], abs=1e-4)
    assert any(first["revealed"]) and [a + b for a, b in zip(first["revealed"], first["completion"])] == columns["completions"]
    assert len(last) == 16 and list(last["revealed"][-4:]) == [""] * 4 and list(last["rho"][-4:]) == [0.0] * 4  # the evaluation's own rows


def test_the_reward_keeps_its_name_in_the_log(record):
    assert any("rewards/reward/mean" in e for e in record.trainer.state.log_history)


def test_a_resumed_run_is_given_its_state_and_ends_as_the_undisturbed_one(record, tmp_path):
    whole = Record(tmp_path / "whole", half, max_steps=2, eval_strategy="no", shuffle_dataset=False)
    whole.trainer.train()
    again = Record(tmp_path / "again", half, max_steps=2, eval_strategy="no", shuffle_dataset=False)
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    step, states, _ = again.calls["begin"][0]
    assert step == 1 and states["CurriculumGRPO"]["attributes"]["batches"] == 1
    assert again.adaback.curriculum.state_dict() == whole.adaback.curriculum.state_dict()
    assert training(again)[0][1] == training(whole)[1][1]  # the same rollouts: TRL restores the random state
    assert again.ended_as(whole)
    assert last_checkpoint(tmp_path / "whole") == str(tmp_path / "whole" / "checkpoint-2")


def test_resumed_at_its_last_step_trl_would_take_one_more(record, tmp_path):
    """Why a finished run's checkpoint is refused, and last_checkpoint has `before`."""
    again = Record(tmp_path)
    with pytest.raises(UserError, match="The checkpoint is of step 3 of 3: this run is finished, and TRL would take one step more; raise max_steps"):
        again.trainer.train(resume_from_checkpoint=last_checkpoint(record.trainer.args.output_dir))
    again.adaback._restore = lambda saved: None
    again.trainer.args.max_steps = 4  # so that it is not refused; and 3 again before the first step
    again.trainer.add_callback(type("Back", (transformers.TrainerCallback,), {"on_step_begin": lambda self, args, state, control, **_: setattr(state, "max_steps", 3)})())
    again.trainer.train(resume_from_checkpoint=last_checkpoint(record.trainer.args.output_dir))
    assert again.trainer.state.global_step == 4


def test_a_dataset_smaller_than_a_generation_batch_is_refused(tmp_path):
    """TRL would end at once, and say nothing."""
    with pytest.raises(UserError, match="A generation batch holds 8 samples, more than the dataset has, so TRL would train nothing"):
        Record(tmp_path, per_device_train_batch_size=16).trainer.train()


def test_a_sampler_that_shuffles_begins_again_when_resumed(record):
    """Why `catch_up`: a new process begins with the first epoch's order, whatever epoch it resumes in."""
    sampler = record.trainer._get_train_sampler()
    orders = [list(sampler) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2] and list(record.trainer._get_train_sampler()) == orders[0]
    loader = record.trainer.get_train_dataloader()
    catch_up(loader, 2)
    assert list(get_sampler(loader)) == orders[2]


@pytest.mark.parametrize("step", [2, 3])  # between two epochs, and within the second
def test_resumed_in_a_later_epoch_a_shuffled_run_ends_as_the_undisturbed_one(step, epochs, tmp_path):
    again = Record(tmp_path, half, **EPOCHS)
    again.trainer.train(resume_from_checkpoint=str(Path(epochs.trainer.args.output_dir) / f"checkpoint-{step}"))
    assert again.adaback.curriculum.state_dict() == epochs.adaback.curriculum.state_dict()
    assert [out for _, out in training(again)] == [out for _, out in training(epochs)[step:]]
    assert again.ended_as(epochs)


def test_with_vllm_the_same_prompts_go_to_vllm_and_its_logprobs_come_back(record):
    """A stand-in for TRL's engine, as there is no vLLM here: it is given prompt + prefix as token ids, G equal ones in a row."""

    class Engine:
        def sync_weights(self):
            pass

        def generate(self, prompts, images, num_generations, profiler):
            self.given = (prompts, num_generations)
            return prompts, [[3, 2] for _ in prompts], [[[-0.5], [-0.25]] for _ in prompts], None

    trainer = record.trainer
    data, batches = record.adaback.dataset, record.adaback.batches
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(), -1
    trainer.model.train()
    try:
        out = record.adaback.rollout([data[i]["prompt"] for i in (2, 0) for _ in range(G)], trainer)
    finally:
        trainer.use_vllm = False
    prompts, group = trainer.vllm_generation.given
    assert prompts == out["prompt_ids"] and group == G and out["logprobs"] == [[-0.5, -0.25]] * 2 * G and record.adaback.batches == batches
    for i, first in zip((2, 0), (prompts[0], prompts[G])):
        start = record.task.prompt_ids(record.task.train[i])[0]
        assert first[: len(start)] == start and prompts.count(first) == G


def test_vllm_as_a_server_is_asked_once_a_group(record):
    """TRL sends every G-th prompt and asks for G outputs, so the rollouts of a group must share their prefix, as they do."""
    from trl.generation.vllm_generation import VLLMGeneration

    assert "all_prompts[::num_generations]" in inspect.getsource(VLLMGeneration.generate)


def test_a_callback_stops_a_run_at_an_evaluation_and_saves_it(tmp_path, capsys):
    from trl import GRPOTrainer

    task = Parity(TOKENIZER, 4, n_train=4, n_val=2, n_test=1, positions="sequential")
    adaback = CurriculumGRPO(from_task(task), lambda completions, **_: [1.0] * len(completions))
    hooks = adaback.hooks(callbacks=[Keeper(adaback, make_config({"trainer.target_accuracy": 0.98}, out=str(tmp_path)))])
    model = tiny_model(PolicySettings(base="none", layers=1, width=16, heads=2, kv_heads=2))
    args = arguments(tmp_path, save_steps=50, max_steps=10, eval_steps=2, eval_on_start=True)
    trainer = GRPOTrainer(model, args=args, eval_dataset=from_task(task, "val"), processing_class=TOKENIZER, **hooks)
    trainer.train()
    assert trainer.state.global_step == 2 and last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    told = capsys.readouterr().err
    assert "step 0: held out 1.00, 0 rollouts" in told and "step 2: held out 1.00, 32 rollouts" in told


def test_half_a_generation_batch_is_not_saved(tmp_path):
    """Why save_steps should be a multiple of the steps that a batch lasts: resumed in its middle, TRL samples it anew, and it is counted twice."""
    settings = {"num_iterations": 2, "eval_strategy": "no", "shuffle_dataset": False}
    with pytest.warns(UserWarning, match="A generation batch lasts 2 steps and save_steps is 1"):
        whole = Record(tmp_path, max_steps=4, **settings)
    whole.trainer.train()
    assert (whole.trainer.state.global_step, whole.adaback.batches) == (4, 2)
    with pytest.warns(UserWarning, match="save_steps is 1"):
        again = Record(tmp_path / "again", max_steps=4, **settings)
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (again.trainer.state.global_step, again.adaback.batches) == (4, 3)


def test_a_prompt_that_ends_with_the_assistant_would_get_a_second_turn(tmp_path):
    """Why such prompts are refused."""
    from trl import GRPOTrainer

    tokenizer = byte_tokenizer(CHATML)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=tokenizer.eos_token_id
    )
    model = transformers.LlamaForCausalLM(config)
    user, assistant = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "So"}
    data = datasets.Dataset.from_list([{"id": 1, "prompt": [user], "rationale": "So\n#### 5"}])
    adaback = CurriculumGRPO(data, lambda completions, **_: [0.0] * len(completions), method="constant", rho=0.3)
    trainer = GRPOTrainer(
        model,
        args=arguments(tmp_path, per_device_train_batch_size=G, gradient_accumulation_steps=1, max_steps=1, eval_strategy="no"),
        processing_class=tokenizer,
        **adaback.hooks(),
    )
    twice = tokenizer.decode(trainer._tokenize_prompts([[user, assistant]])[0][0])
    assert twice.count("<|im_start|>assistant") == 2
    trainer.train()  # a chat prompt goes all the way
    assert adaback.batches == 1
