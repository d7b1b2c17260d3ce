"""The model of cost: worked by hand, counted on the real code, and held to how it must scale."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from adaback_lite import UserError, cost, results
from adaback_lite.config import PolicySettings
from adaback_lite.cost import SHAPES, Machine, Shape, Work, shape_of, step_cost
from adaback_lite.policy import tiny_model
from tests.benchmarks import cost as study
from tests.benchmarks import step

from . import helpers  # noqa: F401  (its profile for hypothesis: no deadline, the same examples on every run)

TOY = Shape(layers=1, width=2, heads=1, kv_heads=1, intermediate=3, vocabulary=5)
TOY_WORK = Work(prompts=1, group=2, prompt=3, rationale=4, reveal=0.5)  # 5 tokens of prompt and prefix, 2 to write
BOUND = Machine(flops=1e20, bandwidth=1e9)  # by bandwidth alone
works = st.builds(
    Work, prompts=st.integers(1, 12), group=st.integers(2, 16), prompt=st.integers(1, 60), rationale=st.integers(1, 60), reveal=st.floats(0, 1), grad_groups=st.floats(0, 1)
)


# ---------------------------------------------------------------- shapes


def test_parameters_as_published():
    """1.24, 8.03 and 70.6 billion on their model cards; SmolLM2's and its adapter's stand in data/results/footprint.csv."""
    assert {name: s.parameters for name, s in SHAPES.items()} == {
        "tiny": 132_160,
        "smollm2-135m": 134_515_008,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
    }
    table = results.stored("footprint").table
    assert table.trained.iloc[0] == SHAPES["smollm2-135m"].parameters and table.trained.iloc[2] == SHAPES["smollm2-135m"].adapter(16)


@pytest.mark.parametrize(("tied", "head_dim"), [(True, None), (False, None), (False, 24)])
def test_shape_of_a_model_counts_its_parameters(tied, head_dim):
    config = LlamaConfig(
        num_hidden_layers=3, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80, vocab_size=77, tie_word_embeddings=tied, head_dim=head_dim
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert shape_of(config).parameters == sum(p.numel() for p in model.parameters())
    assert shape_of(config).layer_weights == sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head")
    assert shape_of(tiny_model(PolicySettings()).config).matrices == SHAPES["tiny"].matrices


# ---------------------------------------------------------------- by hand


def test_a_toy_by_hand():
    assert (TOY.layer_weights, TOY.head_weights, TOY.parameters, TOY.cache_column, TOY.activations) == (34, 10, 60, 4, 118)
    machine = Machine(flops=2e6, bandwidth=1e6, step_seconds=0.5, layer_seconds=0.25)
    c = step_cost(TOY_WORK, TOY, machine)
    # 5 tokens, logits for the last, 25 pairs, 5 columns
    assert (c.prefill.tokens, c.prefill.flops) == (5, 2 * (5 * 34 + 10) + 4 * 25 * 2)
    assert c.prefill.bytes == 4 * 44 + 5 * 4 * 4 + 5 * 118 * 4 + 5 * 4 * 20
    assert c.prefill.seconds == pytest.approx((max(360 / 2, 176) + max(200 / 2, 80) + 2760) / 1e6 + 0.25)
    # both rollouts in one row: 2 tokens, each of which may look at 5 + 2 columns; the second token of a rollout is drawn, not read
    assert (c.decode.tokens, c.decode.flops) == (2, 2 * (2 * 34 + 2 * 10) + 4 * 14 * 2)
    assert c.decode.bytes == 4 * 44 + 7 * 4 * 4 + 2 * 118 * 4 + 2 * 5 * 4 * 20
    assert c.decode.seconds == pytest.approx((max(176 / 2, 176) + max(112 / 2, 112) + 1744) / 1e6 + 0.5 + 0.25)
    # 5 + 2 * 1 tokens, 4 of them predicted, 49 pairs; three times forward; AdamW and clipping
    assert (c.update.tokens, c.update.flops) == (7, 2 * (7 * 3 * 34 + 4 * 3 * 10) + 3 * 4 * 49 * 2)
    assert c.update.bytes == 4 * 3 * 44 + 3 * 7 * 118 * 4 + 4 * 5 * 4 * 20 + 10 * 4 * 60
    assert c.update.seconds == pytest.approx((max(1668 / 2, 528) + 1176 / 2 + 11512 + 2400) / 1e6 + 3 * 0.25)
    assert c.seconds == c.prefill.seconds + c.decode.seconds + c.update.seconds and c.sampling_seconds == c.seconds - c.update.seconds


def test_the_padded_toy_by_hand():
    c = step_cost(TOY_WORK, TOY, BOUND, way="padded")
    assert (c.prefill.tokens, c.prefill.flops) == (10, 2 * (10 * 34 + 2 * 10) + 4 * 50 * 2)
    assert (c.decode.tokens, c.decode.flops) == (2, 2 * (2 * 34 + 2 * 10) + 4 * 12 * 2)
    assert c.decode.bytes == 4 * 44 + 3 * 12 * 4 * 4 + 2 * 118 * 4 + 2 * 5 * 4 * 20  # the cache is copied: read, written, read
    assert (c.update.tokens, c.update.flops) == (14, 2 * (14 * 3 * 34 + 6 * 3 * 10) + 3 * 4 * 98 * 2)


def test_adapter_and_checkpointing_by_hand():
    adapter = 31  # inputs and outputs of seven matrices, rank 1
    lora = step_cost(TOY_WORK, TOY, BOUND, lora_rank=1).update
    assert lora.flops == 2 * (7 * (2 * 34 + 3 * adapter) + 4 * 2 * 10) + 3 * 4 * 49 * 2
    assert lora.bytes == 4 * 2 * 44 + 3 * 7 * 118 * 4 + 4 * 5 * 4 * 20 + 10 * 4 * adapter
    assert step_cost(TOY_WORK, TOY, BOUND, checkpointing=True).update.flops == 2 * (7 * 4 * 34 + 4 * 3 * 10) + 4 * 4 * 49 * 2


def test_a_gpu_launches_ahead():
    """A pass takes the longer of launching and working; on a CPU their sum."""
    about = {"flops": 1e6, "bandwidth": 1e9, "layer_seconds": 1.0}
    work = Work(prompts=1, group=2, prompt=3, rationale=1)
    plain, cpu, gpu = (step_cost(work, TOY, Machine(**{**about, **more})).prefill.seconds for more in ({"layer_seconds": 0}, {}, {"launches_ahead": True}))
    assert 0 < plain < 1 and cpu == pytest.approx(1 + plain) and gpu == 1.0


# ---------------------------------------------------------------- against the code that it describes


def counted(model, run):
    """(tokens, pairs, tokens with logits) that the model reads while `run` runs, without a gradient and with one."""
    counts = {False: [0, 0, 0], True: [0, 0, 0]}

    def decoder(_, args, kwargs):
        mine, mask = counts[torch.is_grad_enabled()], kwargs["attention_mask"]
        mine[0] += kwargs["input_ids"].numel()
        mine[1] += 0 if mask is None else mask.numel()  # [rows, 1, queries, columns]

    def head(_, args):
        counts[torch.is_grad_enabled()][2] += args[0].numel() // args[0].shape[-1]

    hooks = [model.get_decoder().register_forward_pre_hook(decoder, with_kwargs=True), model.get_output_embeddings().register_forward_pre_hook(head)]
    run()
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize(("size", "reveal"), [(step.Size(6, 3, 12), 0.0), (step.Size(6, 4, 16), 0.75), (step.Size(70, 8, 32), 0.75), (step.Size(2, 8, 120), 0.0)])
def test_packed_counts_are_those_of_our_trainer(size, reveal):
    """Every token and every pair. The third has two chunks and several microbatches, the last a cache row for 4 rollouts and an update in two passes."""
    ours = step.Ours(size, reveal)
    hidden = step.hidden_tokens(size, reveal)
    prompt = len(ours.task.prompt_ids(ours.task.train[0])[0])
    work = Work(prompts=size.prompts, group=size.group, prompt=prompt, rationale=size.tokens, reveal=reveal, longest=int(hidden.max()))
    assert sorted(hidden) == work.hidden().tolist()
    counts, c, shape = counted(ours.state.model, ours.step), step_cost(work, SHAPES["tiny"], BOUND), SHAPES["tiny"]

    def flops(tokens, pairs, logits, products=1):
        return products * (2 * (tokens * shape.layer_weights + logits * shape.head_weights) + 4 * pairs * shape.query_width * shape.layers)

    assert c.prefill.tokens + c.decode.tokens == counts[False][0] and c.update.tokens == counts[True][0]
    assert c.prefill.flops + c.decode.flops == pytest.approx(flops(*counts[False]))
    assert c.update.flops == pytest.approx(flops(*counts[True], products=3))


def test_padded_counts_are_those_of_generate():
    work = Work(prompts=3, group=2, prompt=5, rationale=8, reveal=0.5, longest=6)  # 2, 4 and 6 tokens to write
    model, ids = step.make_model(), torch.full((6, 5 + 8 - 2), 3)  # no end token is ever drawn, so that every row is written to the longest
    counts = counted(model, lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=6))
    c, shape = step_cost(work, SHAPES["tiny"], BOUND, way="padded"), SHAPES["tiny"]
    assert c.prefill.tokens + c.decode.tokens == counts[False][0]
    pairs = 6 * (11 * 11 + 12 + 13 + 14 + 15 + 16)
    logits = counts[False][2]
    assert logits == 6 * 6  # of a prompt only the last token has some
    assert c.prefill.flops + c.decode.flops == 2 * (counts[False][0] * shape.layer_weights + logits * shape.head_weights) + 4 * pairs * shape.query_width * shape.layers
    assert c.update.tokens == 6 * (11 + 6)


# ---------------------------------------------------------------- how it scales


@given(st.integers(2, 500), st.integers(2, 500))
def test_decode_is_proportional_to_what_is_hidden_where_weights_bind(a, b):
    """One pass through all weights for each token after the first."""
    seconds = [step_cost(Work(prompts=1, group=2, prompt=1, rationale=n), SHAPES["llama-3.1-70b"], BOUND).decode.seconds for n in (a, b)]
    assert seconds[0] / seconds[1] == pytest.approx((a - 1) / (b - 1), rel=0.01)


@given(works, st.floats(0, 1), st.sampled_from(["tiny", "llama-3.2-1b"]))
def test_the_more_is_revealed_the_cheaper_is_an_update(work, other, name):
    low, high = (work.model_copy(update={"reveal": r}) for r in sorted((work.reveal, other)))
    assert step_cost(low, SHAPES[name], BOUND).update.tokens >= step_cost(high, SHAPES[name], BOUND).update.tokens
    machine = Machine(flops=1e12, bandwidth=1e11, layer_seconds=1e-4)
    # with checkpointing always in one pass, so that no change to two comes in between
    seconds = [step_cost(w, SHAPES[name], machine, checkpointing=True).update.seconds for w in (low, high)]
    assert seconds[0] >= seconds[1] * (1 - 1e-9)


@given(works)
def test_packed_reads_fewer_tokens_and_samples_faster_where_bandwidth_binds(work):
    packed, padded = (step_cost(work, SHAPES["smollm2-135m"], BOUND, way=way) for way in ("packed", "padded"))
    assert all(getattr(packed, part).tokens <= getattr(padded, part).tokens for part in cost.PARTS)
    assert packed.sampling_seconds <= padded.sampling_seconds * (1 + 1e-9)


@given(works, st.floats(0.1, 10), st.sampled_from(["packed", "padded"]))
def test_a_machine_that_is_so_many_times_as_fast_takes_so_much_less_time(work, times, way):
    machine = Machine(flops=1e11, bandwidth=1e10, step_seconds=1e-4, layer_seconds=1e-4)
    one, other = (step_cost(work, TOY, m, way=way) for m in (machine, study.faster(machine, times)))
    assert other.seconds == pytest.approx(one.seconds / times)
    assert (other.prefill.flops, other.decode.bytes, other.update.tokens) == (one.prefill.flops, one.decode.bytes, one.update.tokens)


@given(works)
def test_groups_without_a_gradient_are_skipped_by_one_way_only(work):
    every = work.model_copy(update={"grad_groups": 1.0})
    for way, share in (("packed", work.grad_groups), ("padded", 1.0)):
        assert step_cost(work, TOY, BOUND, way=way).update.flops == pytest.approx(share * step_cost(every, TOY, BOUND, way=way).update.flops)


@given(st.integers(1, 50), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_remainders_have_the_mean_and_the_longest_that_are_asked_for(prompts, rationale, reveal, spread):
    mean = Work(rationale=rationale, reveal=reveal).mean_hidden
    longest = mean + round(spread * (min(rationale, 2 * mean - 1) - mean))
    hidden = Work(prompts=prompts, rationale=rationale, reveal=reveal, longest=longest).hidden()
    assert len(hidden) == prompts and hidden.min() >= 1 and (np.diff(hidden) >= 0).all()
    if prompts == 1:
        assert hidden.tolist() == [Work(rationale=rationale, reveal=reveal).mean_hidden]
    if prompts > 1:
        assert hidden.max() == longest and hidden.mean() == pytest.approx(mean)


# ---------------------------------------------------------------- mistakes


def test_mistakes():
    for call, words in (
        (lambda: step_cost(TOY_WORK, TOY, BOUND, way="vllm"), "How's setting 'way' is 'vllm', but it should be 'packed' or 'padded'."),
        (lambda: step_cost(TOY_WORK, TOY, BOUND, wey="padded"), "How has no setting 'wey'; it has: way, lora_rank"),
        (lambda: cost.make(Work, reveal=1.5), "Work's setting 'reveal' is 1.5, but it should be less than or equal to 1."),
        (lambda: cost.make(Work, longest=3, rationale=8), "Work: longest is 3, but with a mean remainder of 8 it must lie between 8 and 8."),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value).startswith(words)


def test_import_is_light():
    code = "import sys, adaback_lite.cost_predictions; sys.exit(sorted({'torch', 'transformers', 'pandas', 'altair'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------- what is stored


def test_stored_errors_are_those_of_the_stored_table_and_constants():
    table, facts = results.stored("cost")
    assert {n: e["n"] for n, e in facts["errors"].items()} == {
        "grid, calibration, sampling": 8, "grid, calibration, update": 8, "grid, held out, sampling": 28, "grid, held out, update": 28,
        "step benchmark, calibration, sampling": 2, "step benchmark, calibration, update": 2, "step benchmark, held out, sampling": 2, "step benchmark, held out, update": 2,
    }  # fmt: skip
    for name, told in facts["errors"].items():
        source, used, part = name.split(", ")
        error = table[(table.source == source) & (table.used == used) & (table.part == part)].eval("predicted / measured - 1")
        assert told["median"] == pytest.approx(error.abs().median(), abs=2e-4) and abs(told["worst"]) == pytest.approx(error.abs().max(), abs=2e-4)
    machine = Machine(**facts["calibrated"])
    for row in table[table.source == "grid"].itertuples():
        assert row.used == ("calibration" if row.size in ("0.13 M", "1.2 M") and row.group == 8 else "held out") and row.low <= row.measured <= row.high
        work = Work(prompts=facts["settings"]["prompts"], group=row.group, prompt=18, rationale=32, reveal=row.reveal)
        c = step_cost(work, study.shape(row.size), machine)
        assert row.predicted == pytest.approx(c.sampling_seconds if row.part == "sampling" else c.update.seconds, rel=1e-4)
