"""adaback_lite.trl without TRL: a stand-in trainer with the few members that are used. tests/test_trl_contract.py has the real one."""

import copy
import json
import pickle
import shutil
import threading
import warnings
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerState

from adaback_lite import Curriculum, UserError, charts, trl
from adaback_lite.curricula import AdaBack
from adaback_lite.policy import tiny_tokenizer
from adaback_lite.runs import Run
from adaback_lite.tasks import Parity
from adaback_lite.trl import CurriculumGRPO, Prompt, from_task, task_reward
from adaback_lite.trl_data import check_dataset, sample_of, with_sample

from .language import CHATML, byte_tokenizer

G = 4
TINY = tiny_tokenizer()


def rows(n=6, **columns) -> datasets.Dataset:
    """Parity-like rows: "01=" and a rationale of 8 characters."""
    own = {"id": [f"s{i}" for i in range(n)], "prompt": [f"<bos>{i % 2}1=" for i in range(n)], "rationale": ["01011010"] * n}
    return datasets.Dataset.from_dict({k: v for k, v in (own | columns).items() if v is not None})


def right(completions, **_):
    return [float(text[:1] == "0") for text in completions]


class Trainer:
    """What `CurriculumGRPO.rollout` uses of a GRPOTrainer. Every completion is `written`."""

    def __init__(self, tokenizer=TINY, rank=0, written=(4, 2)):
        self.processing_class, self.num_generations, self.num_generations_eval = tokenizer, G, 1
        self.model, self.accelerator = SimpleNamespace(training=True), SimpleNamespace(process_index=rank)
        self.eos_token_ids, self.written = [tokenizer.eos_token_id], list(written)

    def _tokenize_prompts(self, prompts):
        if isinstance(prompts[0], str):
            return self.processing_class(text=list(prompts))["input_ids"], None, {}
        return self.processing_class.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"], None, {}

    def _generate_single_turn(self, prompt_ids, images, fields, group):
        self.seen = prompt_ids
        return [list(self.written) for _ in prompt_ids], None


def arguments(tmp_path, **changes):
    own = {"output_dir": str(tmp_path / "run"), "world_size": 1, "num_generations": G, "num_generations_eval": 2, "seed": 3}
    own |= {"remove_unused_columns": False, "restore_callback_states_from_checkpoint": False}
    own |= {"steps_per_generation": 1, "num_iterations": 1, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 5}
    own |= {"chat_template_kwargs": None, "shuffle_dataset": True}
    return SimpleNamespace(**(own | changes))


def begun(tmp_path, dataset=None, reward=right, method="adaback", tokenizer=TINY, state=None, **settings):
    adaback = CurriculumGRPO(dataset if dataset is not None else rows(), reward, method, **settings)
    adaback.on_train_begin(arguments(tmp_path), state or TrainerState(is_world_process_zero=True), None, processing_class=tokenizer)
    return adaback


def ignore(name, value):
    """TRL's log_metric and log_extra, where nobody asks what was logged."""


def step(adaback, samples, trainer=None, log=ignore):
    """One generation batch of these samples (rows of the dataset), G rollouts each; returns what `rollout` gave and the rewards."""
    trainer = trainer or Trainer()
    batch = [adaback.dataset[i] for i in samples for _ in range(G)]
    out = adaback.rollout(copy.deepcopy([row["prompt"] for row in batch]), trainer)
    columns = {name: [row[name] for row in batch] for name in batch[0] if name != "prompt"}
    extra = {name: out[name] for name in ("revealed", "rho") if name in out}
    texts = trainer.processing_class.batch_decode(out["completion_ids"], skip_special_tokens=True)
    (reward,) = adaback.hooks()["reward_funcs"]
    return out, reward(prompts=[row["prompt"] for row in batch], completions=texts, completion_ids=out["completion_ids"], log_metric=log, log_extra=ignore, **columns, **extra)


# ---------------------------------------------------------------- prompt and prefix


def test_a_prompt_is_a_text_that_knows_its_sample_wherever_it_is_carried():
    prompt = Prompt("2 + 2", 7)
    assert prompt == "2 + 2" and isinstance(prompt, str)
    for carried in (copy.deepcopy([prompt])[0], pickle.loads(pickle.dumps(prompt)), with_sample([{"role": "user", "content": "x"}], 7)):
        assert sample_of(carried) == 7
    assert sample_of("2 + 2") == -1


def test_a_prompt_that_lost_its_sample_is_refused(tmp_path):
    with pytest.raises(UserError, match="A training prompt does not know its sample; give GRPOTrainer the dataset of hooks"):
        begun(tmp_path).rollout(["<bos>01="] * G, Trainer())


def test_the_dataset_gives_numbered_prompts_and_leaves_the_rest():
    adaback = CurriculumGRPO(rows(), right)
    row = adaback.dataset[4]
    assert row["prompt"] == "<bos>01=" and row["prompt"].sample == 4 and row["id"] == "s4" and row["rationale"] == "01011010"
    assert [p.sample for p in adaback.dataset.select([5, 0, 5])[:]["prompt"]] == [5, 0, 5]


def test_the_prefix_is_prompt_with_the_rationales_own_tokens_and_the_group_shares_it(tmp_path):
    adaback, trainer = begun(tmp_path, method="constant", rho=0.5), Trainer()
    out, _ = step(adaback, [0, 1], trainer)
    prompts = TINY(["<bos>01=", "<bos>11="])["input_ids"]
    prefix = TINY("0101", add_special_tokens=False)["input_ids"]
    assert out["prompt_ids"] == [prompts[0] + prefix] * G + [prompts[1] + prefix] * G == trainer.seen
    assert out["revealed"] == [prefix] * 2 * G and out["rho"] == [0.5] * 2 * G and out["completion_ids"] == [[4, 2]] * 2 * G


def test_different_samples_of_a_batch_have_cuts_of_their_own(tmp_path):
    adaback = begun(tmp_path)
    out, _ = step(adaback, [0, 1, 2])
    shares = np.array(out["rho"]).reshape(3, G)
    assert (shares == shares[:, :1]).all() and len(set(shares[:, 0])) == 3
    expected = AdaBack(6, 3).reveal(np.array([0, 1, 2]), 0)
    assert shares[:, 0].tolist() == expected.tolist()  # the seed is TRL's args.seed
    assert [len(r) for r in out["revealed"][::G]] == [min(int(8 * r + 1e-9), 7) for r in expected]


def test_nothing_is_revealed_in_evaluation_and_the_curriculum_hears_nothing(tmp_path):
    adaback, trainer = begun(tmp_path, method="constant", rho=0.9), Trainer()
    trainer.model.training = False
    out = adaback.rollout(["<bos>01=", "<bos>11="], trainer)  # prompts of any data set, without numbers
    assert out["prompt_ids"] == TINY(["<bos>01=", "<bos>11="])["input_ids"] and set(out) == {"prompt_ids", "completion_ids", "logprobs"}
    (reward,) = adaback.hooks()["reward_funcs"]
    assert reward(prompts=["<bos>01=", "<bos>11="], completions=["0", "1"], completion_ids=[[3], [4]], log_extra=ignore) == [1.0, 0.0]
    adaback.on_evaluate(arguments(tmp_path), None, None, metrics={"eval_loss": 0.0})
    assert adaback.batches == 0 and adaback.accuracy == 0.5 and adaback.evaluated == [1.0, 0.0]
    assert reward(prompts=["<bos>01="], completions=["0"], completion_ids=[[3]], log_extra=ignore) == [1.0]
    adaback.on_evaluate(arguments(tmp_path), None, None, metrics={"test_loss": 0.0})  # a test set is no look on the way
    assert adaback.accuracy == 0.5 and adaback.evaluated == [1.0]
    (look,) = [e for e in Run(tmp_path / "run").events if e["event"] == "eval"]
    assert (look["n"], look["right"], look["accuracy"], look["step"]) == (2, 1.0, 0.5, 0)


def test_samples_that_fill_the_last_batch_of_an_evaluation_count_once(tmp_path):
    adaback = begun(tmp_path)
    (reward,) = adaback.hooks()["reward_funcs"]
    reward(prompts=list("ppqqpp"), completions=["0", "1", "1", "1", "0", "0"], completion_ids=[[3]] * 6, id=["a", "a", "a", "a", "a", "a"], log_extra=ignore)
    adaback.on_evaluate(arguments(tmp_path), None, None, metrics={"eval_loss": 0.0})
    assert adaback.evaluated == [1.0, 0.0, 0.0, 0.0]  # two of each


@pytest.mark.parametrize(
    "rationale, answer, hidden", [("a\nb\n#### 42", None, 2), ("so \\boxed{42}", None, 10), ("it is 42.", "42", 3), ("it is 42.", None, 1), ("x 42 y 42", "42", 2)]
)
def test_the_answer_is_never_shown(tmp_path, rationale, answer, hidden):
    data = rows(1, rationale=[rationale], prompt=["q"], answer=None if answer is None else [answer])
    adaback = begun(tmp_path, data, method="constant", rho=1.0, tokenizer=byte_tokenizer())
    out, _ = step(adaback, [0], Trainer(byte_tokenizer()))
    assert byte_tokenizer().decode(out["revealed"][0]) == rationale[:-hidden]


def test_steps_are_lines_or_what_a_list_says(tmp_path):
    tokenizer = byte_tokenizer()
    lines = begun(tmp_path / "a", rows(1, rationale=["one\ntwo\n#### 3"], prompt=["q"]), method="constant", rho=0.8, unit="step", tokenizer=tokenizer)
    assert tokenizer.decode(step(lines, [0], Trainer(tokenizer))[0]["revealed"][0]) == "one\ntwo\n"
    listed = begun(tmp_path / "b", rows(1, rationale=[["one ", "two ", "three"]], prompt=["q"]), method="constant", rho=0.6, unit="step", tokenizer=tokenizer)
    assert tokenizer.decode(step(listed, [0], Trainer(tokenizer))[0]["revealed"][0]) == "one "


def test_a_chat_prompt_leaves_one_assistant_turn_open(tmp_path):
    tokenizer = byte_tokenizer(CHATML)
    messages = [{"role": "user", "content": "How many?"}]
    adaback = begun(tmp_path, rows(1, prompt=[messages], rationale=["so\n#### 5"]), method="constant", rho=0.5, tokenizer=tokenizer)
    out, _ = step(adaback, [0], Trainer(tokenizer, written=tokenizer("5", add_special_tokens=False)["input_ids"]))
    assert tokenizer.decode(out["prompt_ids"][0]) == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\nso\n#"


def test_reward_functions_are_given_whole_outputs(tmp_path):
    seen = {}

    def reward(completions, **columns):
        seen.update(columns, completions=completions)
        return [1.0] * len(completions)

    adaback = begun(tmp_path, reward=reward, method="constant", rho=0.5)
    step(adaback, [0])
    assert seen["completions"] == ["01011"] * G and seen["completion_ids"] == [[4, 2]] * G and seen["id"] == ["s0"] * G and seen["rho"] == [0.5] * G
    chat = byte_tokenizer(CHATML)
    adaback = begun(tmp_path / "chat", rows(1, prompt=[[{"role": "user", "content": "?"}]], rationale=["ab#### 5"]), reward, method="constant", rho=0.3, tokenizer=chat)
    step(adaback, [0], Trainer(chat, written=chat("x", add_special_tokens=False)["input_ids"]))
    assert seen["completions"] == [[{"role": "assistant", "content": "abx"}]] * G


def test_further_reward_functions_are_given_whole_outputs_and_are_not_heard(tmp_path):
    seen = []

    def longer(completions, **_):
        seen.extend(completions)
        return [float("nan")] * len(completions)

    adaback = begun(tmp_path, method="constant", rho=0.5)
    out, _ = step(adaback, [0])
    _, further = adaback.hooks(reward_funcs=[longer])["reward_funcs"]
    assert further(prompts=["p"] * G, completions=["1"] * G, completion_ids=out["completion_ids"], revealed=out["revealed"], rho=out["rho"]) == [None] * G
    assert seen == ["01011"] * G and adaback.batches == 1 and further.__name__ == "longer"


@pytest.mark.parametrize("bad", ["a-model", SimpleNamespace(forward=0)])
def test_reward_models_are_refused(bad):
    with pytest.raises(UserError, match="reward_funcs must be plain functions: TRL would show a model or a coroutine the output without its revealed prefix"):
        CurriculumGRPO(rows(), right).hooks(reward_funcs=[bad])


def test_a_reward_function_with_too_few_values_is_told_so(tmp_path):
    adaback = begun(tmp_path, reward=lambda completions, **_: [1.0] * 3)
    with pytest.raises(UserError, match="returned 3 values for 4 outputs; it must return one for each"):
        step(adaback, [0])


# ---------------------------------------------------------------- what the curriculum hears


class Recorder(Curriculum):
    """Shows half, and keeps what it is told."""

    def __init__(self, n_samples=6, seed=0):
        super().__init__(n_samples, seed)
        self.heard = []

    def reveal(self, sample_ids, step):
        self.heard.append(["reveal", sample_ids.tolist(), step])
        return np.full(len(sample_ids), 0.5)

    def update(self, sample_ids, rho, reward):
        self.heard.append(["update", sample_ids.tolist(), rho.tolist(), reward.tolist()])


def test_update_hears_the_mean_of_each_group_and_groups_without_reward_are_no_news(tmp_path):
    given = iter([[1, 0, 0, 0, None, None, None, None, 1, float("nan"), 1, 0], [0] * 8])
    adaback = begun(tmp_path, reward=lambda completions, **_: next(given), curriculum=Recorder())
    logged = []
    step(adaback, [4, 1, 2], log=lambda *pair: logged.append(pair))
    step(adaback, [0, 3])
    assert adaback.curriculum.heard == [
        ["reveal", [4, 1, 2], 0],
        ["update", [4, 2], [0.5, 0.5], [0.25, 2 / 3]],
        ["reveal", [0, 3], 1],
        ["update", [0, 3], [0.5, 0.5], [0.0, 0.0]],
    ]
    assert logged == [("curriculum/rho", 0.5), ("curriculum/shown_tokens", 4.0)]
    first, second = (e for e in Run(tmp_path / "run").events if e["event"] == "step")
    assert (first["ids"], first["reward"], first["grad_groups"], first["rollouts"], first["generated_tokens"]) == (["s4", "s2"], [0.25, 0.6667], 1.0, 12, 24)
    assert (second["step"], second["grad_groups"], second["rollouts"], second["mean_reward"]) == (2, 0.0, 20, 0.0)


def test_a_curriculums_own_numbers_are_not_taken_for_intervals(tmp_path):
    curriculum = Recorder()
    curriculum.rho_min, curriculum.frontier = 0.1, np.zeros(2)
    step(begun(tmp_path, curriculum=curriculum), [0])
    assert [(e["low"], e["high"]) for e in Run(tmp_path / "run").events if e["event"] == "step"] == [(None, None)]
    with pytest.raises(UserError, match="The curriculum is made for 5 samples, but the dataset has 6"):
        CurriculumGRPO(rows(), right, curriculum=Recorder(5))


def test_evaluations_of_several_datasets_are_told_by_their_names(tmp_path):
    adaback = begun(tmp_path)
    (reward,) = adaback.hooks()["reward_funcs"]
    reward(prompts=["p", "q"], completions=["0", "1"], completion_ids=[[3]] * 2, log_extra=ignore)
    adaback.on_evaluate(arguments(tmp_path), None, None, metrics={"eval_hard_loss": 0.0, "eval_hard_reward": 0.5})
    assert [(e["name"], e["accuracy"]) for e in Run(tmp_path / "run").events if e["event"] == "eval"] == [("hard", 0.5)]


def test_a_batch_of_which_no_group_has_a_reward_is_a_step_without_an_event(tmp_path):
    adaback = begun(tmp_path, reward=lambda completions, **_: [None] * len(completions), curriculum=Recorder())
    step(adaback, [0])
    assert adaback.batches == 1 and adaback.curriculum.heard[-1] == ["update", [], [], []] and [e["event"] for e in Run(tmp_path / "run").events] == ["start"]


def test_charts_draw_the_events(tmp_path):
    values = np.random.default_rng(0).integers(0, 2, (8, 3 * G)).tolist()
    given = iter(values)
    adaback = begun(tmp_path, reward=lambda completions, **_: next(given), tau=0.7)
    for i in range(8):
        step(adaback, [i % 6, (i + 1) % 6, (i + 2) % 6])
    adaback.on_evaluate(arguments(tmp_path), None, None, metrics={})
    run = Run(tmp_path / "run")
    for draw in (charts.rho, charts.reward, charts.heatmap):
        assert draw(run).to_dict()
    points = [row for row in charts.intervals(run, ids=["s1", "s2"]).to_dict()["data"]["values"] if "result" in row]
    assert any(0.5 <= row["reward"] < 0.7 for row in points)  # where it shows that the drawing knows tau
    assert all(row["result"] == ("solved" if row["reward"] >= 0.7 else "not solved") for row in points)


# ---------------------------------------------------------------- N processes


def on_ranks(n: int, monkeypatch, work):
    """`work(rank)` in n threads, in which `gather_object` joins the lists of all in their order, as accelerate's does."""
    barrier, shared, results, errors, local = threading.Barrier(n), [None] * n, [None] * n, [], threading.local()

    def gather(part):
        shared[local.rank] = part
        barrier.wait(10)
        whole = [x for piece in shared for x in piece]
        barrier.wait(10)
        return whole

    def run(rank):
        local.rank = rank
        try:
            results[rank] = work(rank)
        except Exception as error:  # a failing rank must not leave the others waiting
            errors.append(error)
            barrier.abort()

    monkeypatch.setattr(trl, "gather_object", gather)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return results


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), method=st.sampled_from(["adaback", "r3", "frontier", "uft"]))
def test_n_processes_are_one(tmp_path_factory, seed, method):
    """The same rows over 1, 2 or 4 processes, also where a group lies across two of them: the same draws, and the same state to the bit."""
    batches = np.random.default_rng(seed).permuted(np.tile(np.arange(6), (5, 1)), axis=1)[:, :4].tolist()

    def reward(completions, id, rho, **_):
        return [float(hash_of(name, share, i) < 0.5) for i, (name, share) in enumerate(zip(id, rho))]

    def hash_of(name, share, i):
        return (int(name[1:]) * 0.37 + share * 1.7) % 1.0

    def train(n):
        folder = tmp_path_factory.mktemp("ranks")

        def work(rank):
            state = TrainerState(is_world_process_zero=rank == 0)
            adaback = CurriculumGRPO(rows(), reward, method)
            adaback.on_train_begin(arguments(folder, world_size=n), state, None, processing_class=TINY)
            drawn = []
            for samples in batches:
                every = [i for i in samples for _ in range(G)]
                mine = every[rank * len(every) // n : (rank + 1) * len(every) // n]
                prompts, trainer = [adaback.dataset[i]["prompt"] for i in mine], Trainer(rank=rank)
                out = adaback.rollout(prompts, trainer)
                (heard,) = adaback.hooks()["reward_funcs"]
                drawn.append(out["rho"])
                heard(
                    prompts=prompts, completions=["0"] * len(mine), completion_ids=out["completion_ids"], id=[f"s{i}" for i in mine],
                    revealed=out["revealed"], rho=out["rho"], log_metric=ignore, log_extra=ignore,
                )  # fmt: skip
            return adaback.curriculum.state_dict(), drawn

        with pytest.MonkeyPatch.context() as patch:
            results = on_ranks(n, patch, work)
        assert all(state == results[0][0] for state, _ in results)
        rho = [sum(parts, []) for parts in zip(*(drawn for _, drawn in results))]
        events = [{k: v for k, v in e.items() if k != "wall"} for e in Run(folder / "run").events if e["event"] == "step"]
        return results[0][0], rho, events

    one = train(1)
    assert train(2) == one and train(8) == one  # 16 rows over 8: two processes to a group


def test_a_curriculum_that_draws_by_chance_on_each_process_is_refused(tmp_path, monkeypatch):
    class Unseeded(Recorder):
        def reveal(self, sample_ids, step):
            return np.random.default_rng().random(len(sample_ids))

    def work(rank):
        adaback = CurriculumGRPO(rows(), right, curriculum=Unseeded())
        adaback.on_train_begin(arguments(tmp_path / str(rank)), TrainerState(), None, processing_class=TINY)
        return adaback.rollout([adaback.dataset[rank]["prompt"]] * G, Trainer(rank=rank))

    with pytest.raises(UserError, match="The curriculum drew differently on different processes; let it draw from self.rng"):
        on_ranks(2, monkeypatch, work)


def test_what_is_wrong_on_one_process_is_raised_on_all(tmp_path, monkeypatch):
    def work(rank):
        adaback = CurriculumGRPO(rows(), right)
        adaback.on_train_begin(arguments(tmp_path / str(rank)), TrainerState(), None, processing_class=TINY)
        with pytest.raises(UserError, match="does not know its sample"):
            adaback.rollout(["<bos>01="] * G if rank else [adaback.dataset[0]["prompt"]] * G, Trainer(rank=rank))

    on_ranks(2, monkeypatch, work)


def test_a_group_of_two_samples_is_refused(tmp_path):
    adaback = begun(tmp_path)
    prompts = [adaback.dataset[i]["prompt"] for i in (0, 0, 1, 1)]
    with pytest.raises(UserError, match="A group of 4 rollouts is not of one sample; give GRPOTrainer the dataset of hooks"):
        adaback.rollout(prompts, Trainer())


# ---------------------------------------------------------------- saved and restored


def saved_by(adaback, **state) -> TrainerState:
    """What TRL would read from trainer_state.json."""
    return TrainerState(global_step=2, is_world_process_zero=True, stateful_callbacks=json.loads(json.dumps({"CurriculumGRPO": adaback.state()})), **state)


@pytest.mark.parametrize("method", ["adaback", "r3", "r3-staged", "uft", "anneal", "frontier", "constant", "rl"])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path, method):
    def reward(completions, rho, **_):
        return [float(share > 0.4) for share in rho]

    whole = begun(tmp_path / "whole", reward=reward, method=method)
    for samples in ([0, 1, 2], [3, 4, 5], [1, 3, 5], [0, 2, 4]):
        step(whole, samples)
    half = begun(tmp_path / "half", reward=reward, method=method)
    for samples in ([0, 1, 2], [3, 4, 5]):
        step(half, samples)
    state = saved_by(half)
    step(half, [2, 1, 0])  # after the checkpoint, and lost with the kill
    again = begun(tmp_path / "half", reward=reward, method=method, state=state)
    for samples in ([1, 3, 5], [0, 2, 4]):
        step(again, samples)
    assert again.curriculum.state_dict() == whole.curriculum.state_dict()
    numbers = ("batches", "rollouts", "generated_tokens")
    assert [getattr(again, n) for n in numbers] == [getattr(whole, n) for n in numbers] == [4, 48, 96]
    logs = [[{k: v for k, v in e.items() if k not in ("wall", "machine")} for e in Run(tmp_path / name / "run").events if e["event"] != "resume"] for name in ("whole", "half")]
    assert logs[0] == logs[1]


def test_resumed_in_another_folder_a_new_log_begins(tmp_path):
    adaback = begun(tmp_path / "a")
    step(adaback, [0, 1])
    again = begun(tmp_path / "b", state=saved_by(adaback))
    step(again, [2])
    assert [e["event"] for e in Run(tmp_path / "b" / "run").events] == ["resume", "step"]


def test_the_state_before_training_is_empty():
    assert CurriculumGRPO(rows(), right).state() == {"args": {}, "attributes": {}}


def resumed(tmp_path, changes=None, dataset=None, method="adaback", curriculum=None, state=None, **settings):
    adaback = begun(tmp_path / "old")
    step(adaback, [0, 1])
    again = CurriculumGRPO(dataset if dataset is not None else rows(), right, method, curriculum=curriculum, **settings)
    again.on_train_begin(arguments(tmp_path / "new", **(changes or {})), state or saved_by(adaback), None, processing_class=TINY)


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"changes": {"world_size": 3}}, "was written by 1 process and is resumed by 3, but it holds a random state for each of them; launch with --num_processes 1"),
        ({"changes": {"num_generations": 8}}, r"with other rollouts in a group \(4, now 8\); resume with the same"),
        ({"changes": {"seed": 9}}, r"with other seed \(3, now 9\)"),
        ({"method": "r3"}, r"with other curriculum \(adaback, now r3\)"),
        ({"tau": 0.7}, r"with other tau \(0.5, now 0.7\); resume with the same"),
        ({"dataset": rows().select([1, 0, 2, 3, 4, 5])}, "with other samples, or in another order; resume with the same"),
        ({"curriculum": Recorder()}, "with other curriculum"),
        ({"state": TrainerState(global_step=2, is_world_process_zero=True, stateful_callbacks={})}, "was written without this curriculum, so there is nothing to go on from"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        resumed(tmp_path, **changed)


def test_a_curriculum_that_cannot_be_restored_is_refused(tmp_path):
    class Forgetful:
        def reveal(self, sample_ids, step):
            return np.zeros(len(sample_ids))

        def update(self, sample_ids, rho, reward):
            pass

    adaback = begun(tmp_path, curriculum=Forgetful())
    step(adaback, [0])
    state = saved_by(adaback)
    with pytest.raises(UserError, match="does not fit this curriculum .* derived from adaback_lite.Curriculum"):
        begun(tmp_path, curriculum=Forgetful(), state=state)


def test_what_existed_is_not_lost(tmp_path):
    adaback = begun(tmp_path)
    step(adaback, [0])
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    begun(tmp_path)  # killed before its first checkpoint: the same run from its start
    assert len((tmp_path / "run" / "events.jsonl").read_bytes()) < len(before)
    checkpoint = tmp_path / "run" / "checkpoint-5"
    checkpoint.mkdir()
    begun(tmp_path)  # killed while it wrote its first one
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run already; its checkpoints lack the random state of some process, so it cannot go on; choose another output_dir"):
        begun(tmp_path)
    (checkpoint / "rng_state.pth").touch()
    with pytest.raises(UserError, match=r"holds a run already; go on with it by trainer.train\(resume_from_checkpoint=last_checkpoint\('.*run'\)\), or choose another output_dir"):
        begun(tmp_path)
    shutil.rmtree(checkpoint)
    begun(tmp_path).on_train_end(None, None, None)
    with pytest.raises(UserError, match="holds a run already"):
        begun(tmp_path)


# ---------------------------------------------------------------- our tasks


@pytest.fixture(scope="module")
def parity():
    return Parity(TINY, 5, n_train=4, n_val=2, n_test=2, positions="sequential")


def test_a_tasks_samples_and_verdicts_are_the_tasks_own(parity):
    data, correct = from_task(parity), task_reward(parity, TINY, bonus=0.1)
    sample = parity.train[1]
    assert data[1] == {"id": "train/1", "prompt": "<bos>" + sample.prompt, "rationale": parity.steps(sample), "answer": sample.answer}
    assert TINY(data[1]["prompt"])["input_ids"] == parity.prompt_ids(sample)[0] and "".join(data[1]["rationale"]) == sample.rationale
    ids = parity.rationale_ids(sample)
    wrong, end = [*ids[4:-1], 7 - ids[-1]], TINY.eos_token_id
    outputs = [[*ids[4:], end], ids[4:], [*wrong, end], [*ids[4:-1], 0, ids[-1], end], [end]]
    assert correct(completion_ids=outputs, id=["train/1"] * 5, revealed=[ids[:4]] * 5) == [1.1, 0.0, 0.1, 0.0, 0.0]
    assert correct(completion_ids=[[*ids, end], [*wrong, end]], id=["train/1"] * 2) == [1.0, 0.0]  # evaluation: no bonus
    val = parity.rationale_ids(parity.val[0])
    assert correct(completion_ids=[[*val, end]], id=["val/0"]) == [1.0]


def test_coupled_positions_are_refused():
    with pytest.raises(UserError, match="TRL numbers positions one after the other; make the parity task with policy.positions sequential"):
        from_task(Parity(TINY, 5, n_train=2, n_val=2, n_test=2))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "dataset, sentence",
    [
        (rows(rationale=None), r"has no column 'rationale', only id, prompt; name the one that holds it: dataset.rename_column\('...', 'rationale'\)\.$"),
        (rows(id=None), r"has no column 'id', only prompt, rationale; .* or number the rows: dataset.add_column\('id', list\(range\(len\(dataset\)\)\)\)"),
        (rows(prompt=None), "has no column 'prompt'"),
        (rows(id=["a", "b", "a", "c", "d", "a"]), "has the id 'a' 3 times, but each sample needs an id of its own"),
        (rows(id=["a", None, "c", "d", "e", "f"]), "has the id None, but ids must be texts or whole numbers"),
        (rows(id=[[1], [2], [3], [4], [5], [6]]), r"has the id \[1\], but ids must be texts"),
        (rows(2, id=[b"a", b"b"]), "has the id b'a', but ids must be texts"),
        (rows(2, id=[0.5, 1.5]), "has the id 0.5, but ids must be texts"),
        (rows(1, rationale=[7]), "Sample 's0' has a rationale that is neither a text nor a list of texts"),
        (rows(1, rationale=[[{"role": "assistant", "content": "so"}]]), "Sample 's0' has a rationale that is neither a text nor a list of texts"),
        (rows(1, rationale=[["0", None]]), "Sample 's0' has a rationale that is neither"),
        (rows(1, rationale=["it is 42"], answer=[42.0]), "Sample 's0' has the answer '42.0', which does not stand in its rationale"),
        (rows(1, prompt=[["a"]]), "neither text nor chat messages with text"),
        (rows(1, prompt=[[{"content": "a"}]]), "neither text nor chat messages with text"),
        (rows(1, prompt=[""]), "neither text nor chat messages with text"),
        (rows(0), "The dataset has no rows"),
        (rows(rationale=["01"] * 5 + [" "]), "Sample 's5' has no rationale; leave it out"),
        (rows(rationale=[["0"], ["1"], None, ["0"], ["1"], ["0"]]), "Sample 's2' has no rationale"),
        (rows(1, prompt=[[{"role": "user", "content": "?"}, {"role": "assistant", "content": "So"}]]), "Sample 's0' has a prompt that ends with the assistant's message"),
        (rows(1, prompt=[[{"role": "user", "content": [{"type": "image"}]}]]), "neither text nor chat messages with text"),
        (rows(rho=[0.1] * 6), "has a column 'rho', a name under which"),
        (rows().with_format("numpy"), "has a format or transform of its own"),
        (rows().to_iterable_dataset(), "must be a datasets.Dataset, whose rows can be told apart, not IterableDataset"),
        ([{"prompt": "x"}], "not list"),
    ],
)
def test_bad_data_is_one_sentence(dataset, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        CurriculumGRPO(dataset, right)
    assert str(error.value).count("\n") == 0


def test_good_data_is_read():
    ids, rationales, answers = check_dataset(rows(2, id=[5, 9], rationale=["a\n7", "c"], answer=[7, None]))
    assert ids == [5, 9] and rationales == [["a\n", "7"], ["c"]] and answers == ["7", ""]


@pytest.mark.parametrize(
    "how, sentence",
    [
        ({"method": "sft+rl"}, "method is sft.rl, but inside TRL only the RL stage is ours; train with TRL's SFTTrainer first"),
        ({"method": "adabac"}, "method"),
        ({"tau": 7}, "The setting 'curriculum.tau' is 7, but should be"),
        ({"taw": 0.3}, "curriculum.taw"),
        ({"reward": "a-model"}, "reward must be a plain function"),
        ({"curriculum": Recorder(), "tau": 0.3}, "method and settings belong to the curricula that are made here"),
        ({"curriculum": Recorder(), "method": "r3"}, "method and settings belong"),
        ({"curriculum": Recorder}, r"curriculum must be an instance, not a class; give Recorder\(len\(dataset\)\)"),
    ],
)
def test_bad_settings_are_one_sentence(how, sentence):
    with pytest.raises(UserError, match=sentence):
        CurriculumGRPO(**({"dataset": rows(), "reward": right} | how))


def test_a_coroutine_is_no_reward():
    async def reward(completions, **_):
        return [0.0]

    with pytest.raises(UserError, match="not a model or a coroutine: the curriculum has to hear it at once"):
        CurriculumGRPO(rows(), reward)


def test_trainer_arguments_that_would_do_something_else_are_refused(tmp_path):
    adaback = CurriculumGRPO(rows(), right)
    adaback.on_init_end(arguments(tmp_path), None, None)
    with pytest.raises(UserError, match="remove_unused_columns is on, which drops the rationales"):
        adaback.on_init_end(arguments(tmp_path, remove_unused_columns=True), None, None)
    with pytest.raises(UserError, match="restore_callback_states_from_checkpoint is on, which would replace the curriculum"):
        adaback.on_init_end(arguments(tmp_path, restore_callback_states_from_checkpoint=True), None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adaback.on_init_end(arguments(tmp_path, steps_per_generation=4, num_iterations=2, gradient_accumulation_steps=2, save_steps=8), None, None)
    for saves, passes, accumulated, said in ((6, 8, 2, 4), (1, 3, 2, 1.5), (3, 3, 2, 1.5)):
        with pytest.warns(UserWarning, match=f"A generation batch lasts {said} steps and save_steps is {saves}: .* make it last whole steps, and save_steps a multiple"):
            adaback.on_init_end(arguments(tmp_path, steps_per_generation=passes, gradient_accumulation_steps=accumulated, save_steps=saves), None, None)


def test_a_folder_of_our_own_trainer_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "events.jsonl"
    log.write_text('{"event": "start", "machine": {}}\n{"event": "step"}\n')
    for state in (None, TrainerState(global_step=2, is_world_process_zero=True)):
        with pytest.raises(UserError, match="holds a run of our own trainer; choose another output_dir"):
            begun(tmp_path, state=state)
    assert log.read_text().count("\n") == 2


def test_a_template_that_closes_the_turn_is_refused(tmp_path):
    closes = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think></think>' }}{% endif")
    with pytest.raises(UserError, match="leaves no open assistant turn for a revealed prefix to continue"):
        begun(tmp_path, rows(1, prompt=[[{"role": "user", "content": "?"}]]), tokenizer=byte_tokenizer(closes))


def test_a_template_may_leave_it_open_with_a_setting(tmp_path):
    """As Qwen3's does: it closes a thought in what is open, or in what is past, but for enable_thinking=False."""
    from pathlib import Path as Folder

    import trl as installed

    tokenizer = byte_tokenizer((Folder(installed.__file__).parent / "chat_templates" / "qwen3.jinja").read_text())
    adaback = CurriculumGRPO(rows(1, prompt=[[{"role": "user", "content": "?"}]]), right)
    state = TrainerState(is_world_process_zero=True)
    with pytest.raises(UserError, match="; set the template by GRPOConfig.chat_template_kwargs=...., as enable_thinking=False for Qwen3, use another model, or"):
        adaback.on_train_begin(arguments(tmp_path), state, None, processing_class=tokenizer)
    adaback.on_train_begin(arguments(tmp_path, chat_template_kwargs={"enable_thinking": False}), state, None, processing_class=tokenizer)


def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not give back the text it was given"):
        begun(tmp_path, rows(1, rationale=["0 1 x"]))


def test_two_starts_are_refused(tmp_path):
    framed = byte_tokenizer(frame="<bos> $A")
    adaback = begun(tmp_path, rows(1, prompt=["<bos>2 + 2"]), tokenizer=framed)
    with pytest.raises(UserError, match="The prompts begin with <bos> twice"):
        step(adaback, [0], Trainer(framed))


def test_an_end_token_after_the_prompt_is_left_out(tmp_path):
    framed = byte_tokenizer(frame="<bos> $A <eos>")
    adaback = begun(tmp_path, rows(1, prompt=["2"]), method="constant", rho=0.25, tokenizer=framed)
    out, _ = step(adaback, [0], Trainer(framed))
    assert framed.decode(out["prompt_ids"][0]) == "<bos>201"


def test_images_and_forgotten_callbacks_are_refused(tmp_path):
    adaback, trainer = CurriculumGRPO(rows(), right), Trainer()
    with pytest.raises(UserError, match=r"give GRPOTrainer all of \*\*hooks\(\), its callbacks too"):
        adaback.rollout([adaback.dataset[0]["prompt"]] * G, trainer)
    trainer._tokenize_prompts = lambda prompts: ([[1]], ["picture"], {})
    with pytest.raises(UserError, match="The prompts hold images"):
        adaback.rollout([adaback.dataset[0]["prompt"]] * G, trainer)


@pytest.mark.parametrize(
    "version, sentence",
    [
        ("1.15.0", "TRL 1.15.0 is too old"),
        ("1.17.0", "TRL 1.17.0 is too new"),
        ("1.17.0.dev0", "TRL 1.17.0.dev0 is too new"),
        ("2.0.0rc1", "too new"),
        (None, "TRL is not installed"),
    ],
)
def test_an_untested_trl_is_refused(monkeypatch, version, sentence):
    def answer(name):
        if version is None:
            raise trl.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(trl.metadata, "version", answer)
    with pytest.raises(UserError, match=f"{sentence}.*pip install"):
        trl.check_version()
    monkeypatch.setattr(trl.metadata, "version", lambda name: "1.16.3")
    trl.check_version()
