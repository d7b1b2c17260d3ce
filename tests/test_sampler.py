"""The merged copy samples what the adapter would, costs the memory of its linear layers alone, and leaves the policy untouched."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

import adaback_lite as ab
from adaback_lite import sampler
from adaback_lite.build import build_policy
from adaback_lite.policy import add_adapter, clone_trained
from adaback_lite.rollout import sample_rollouts
from adaback_lite.sampler import MergedCopy, merged_copy
from adaback_lite.trainer import rl_step
from tests.helpers import EOS, PAD, ragged_prefixes, small_config
from tests.language import stir, wide
from tests.test_policy import LORA, NF4, everything, logits, lora_config, started, wide_config
from tests.test_rollout import noise_for, slow_sample, written_tokens

KINDS = pytest.mark.parametrize("settings", [LORA, NF4], ids=["dense", "nf4"])


@KINDS
def test_logits_are_the_adapters(settings):
    policy = build_policy(wide_config(**settings))[0]
    stir(policy)
    copy = MergedCopy(policy)
    assert len(copy.layers) == 14 and not hasattr(copy.model.model.layers[0].mlp.up_proj, "base_layer")
    torch.testing.assert_close(logits(copy.model), logits(policy), rtol=1e-4, atol=1e-4)
    with policy.disable_adapter():
        assert (logits(copy.model) - logits(policy)).abs().max() > 0.1  # the adapter is in it


@KINDS
def test_logits_are_the_adapters_after_steps_too_once_it_is_refreshed(settings):
    config = wide_config(**settings, **{"trainer.batch_size": 12})
    state, task, tokenizer = started(config)
    assert max(rl_step(state, config, task, tokenizer)["grad_norm"] for _ in range(3)) > 0
    stale = (logits(state.merged.model) - logits(state.model)).abs().max()
    torch.testing.assert_close(logits(state.sampling_model()), logits(state.model), rtol=1e-4, atol=1e-4)
    assert stale > 10 * (logits(state.merged.model) - logits(state.model)).abs().max()
    assert state.sampling_model() is state.merged.model


@KINDS
def test_the_policy_is_untouched_and_what_is_frozen_is_shared(settings):
    policy = build_policy(wide_config(**settings))[0]
    stir(policy)
    before, said = everything(policy), logits(policy)
    copy = MergedCopy(policy)
    for _ in range(3):  # merging in and out again and again would leave rounding behind
        copy.refresh()
    after = everything(policy)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(logits(policy), said)
    theirs = {n.removeprefix("base_model.model."): p for n, p in policy.named_parameters()}
    shared = {n for n, p in copy.model.named_parameters() if n in theirs and p.data_ptr() == theirs[n].data_ptr()}
    own = {n for n, _ in copy.model.named_parameters()} - shared
    assert shared == {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} | {
        f"model.layers.{i}.{n}_layernorm.weight" for i in range(2) for n in ("input", "post_attention")
    }
    assert own == {n.replace(".base_layer", "") for n in theirs if n.endswith("_proj.base_layer.weight")}
    assert not any(p.requires_grad for n, p in copy.model.named_parameters() if n in own)


def test_rollouts_through_the_copy_are_the_slow_way_through_the_adapter():
    policy = build_policy(wide_config(**LORA))[0]
    stir(policy)
    prefixes = ragged_prefixes("coupled")
    noise = noise_for(prefixes, G=4)
    rollouts = sample_rollouts(MergedCopy(policy).model, prefixes, noise, EOS, PAD)
    with torch.no_grad():
        assert written_tokens(rollouts) == [[slow_sample(policy, p, noise[b, g]) for g in range(4)] for b, p in enumerate(prefixes)]


# ---------------------------------------------------------------- layers of other models


def adapted(model, **settings):
    policy = add_adapter(model.eval(), lora_config(**settings).policy, 0)
    stir(policy)
    return policy


def test_biases_stay():
    """Qwen2 has some in its attention."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=6, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias.normal_()
    policy = adapted(model)
    copy = MergedCopy(policy).model
    torch.testing.assert_close(logits(copy), logits(policy), rtol=1e-4, atol=1e-4)
    bias = policy.get_base_model().model.layers[0].self_attn.q_proj.base_layer.bias
    assert copy.model.layers[0].self_attn.q_proj.bias.data_ptr() == bias.data_ptr() and copy.model.layers[0].self_attn.o_proj.bias is None


def test_gpt2_holds_its_weights_the_other_way_round():
    torch.manual_seed(0)
    policy = adapted(GPT2LMHeadModel(GPT2Config(vocab_size=6, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)))
    copy = MergedCopy(policy)
    assert len(copy.layers) == 8
    torch.testing.assert_close(logits(copy.model), logits(policy), rtol=1e-4, atol=1e-4)
    with policy.disable_adapter():
        assert (logits(copy.model) - logits(policy)).abs().max() > 0.01
    prefixes = ragged_prefixes("sequential")
    noise = noise_for(prefixes, G=2)
    rollouts = sample_rollouts(copy.model, prefixes, noise, EOS, PAD)
    with torch.no_grad():
        assert written_tokens(rollouts) == [[slow_sample(policy, p, noise[b, g]) for g in range(2)] for b, p in enumerate(prefixes)]


def test_an_adapter_on_the_output_layer_is_merged_there_and_the_tied_embedding_stays():
    config = build_policy(wide_config())[0].config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    from transformers import LlamaForCausalLM

    policy = adapted(LlamaForCausalLM(config), **{"policy.lora_targets": "lm_head"})
    copy = MergedCopy(policy).model
    torch.testing.assert_close(logits(copy), logits(policy), rtol=1e-4, atol=1e-4)
    assert copy.lm_head.weight.data_ptr() != copy.model.embed_tokens.weight.data_ptr() == policy.get_input_embeddings().weight.data_ptr()


def test_in_bfloat16_the_sum_is_rounded_once():
    policy = build_policy(wide_config(**LORA, **{"policy.dtype": "bfloat16"}))[0]
    stir(policy, scale=0.01)
    copy = MergedCopy(policy)
    for layer, dense in copy.layers:
        delta = 8.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # alpha 32, rank 4
        assert dense.weight.dtype == torch.bfloat16
        torch.testing.assert_close(dense.weight.float(), (layer.base_layer.weight.float() + delta).bfloat16().float(), rtol=2**-7, atol=0)
        assert (dense.weight == (layer.base_layer.weight.float() + delta).bfloat16()).float().mean() > 0.999  # the product may be summed in another order


# ---------------------------------------------------------------- when there is one


def test_there_is_a_copy_only_where_it_is_wanted_and_possible():
    policy = build_policy(wide_config(**LORA))[0]
    assert isinstance(merged_copy(policy, "merged"), MergedCopy)
    assert merged_copy(policy, "adapter") is None
    assert merged_copy(build_policy(wide_config())[0], "merged") is None


@pytest.mark.parametrize(("settings", "size"), [(LORA, 4), (NF4, 4), ({**LORA, "policy.dtype": "bfloat16"}, 2), ({**NF4, "policy.dtype": "bfloat16"}, 2)])
def test_the_copy_is_made_where_four_fifths_of_the_free_memory_hold_it(monkeypatch, settings, size):
    # q, o: 64 x 64; k, v: 64 x 32; gate, up, down: 64 x 256; two layers
    needed = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256) * size
    policy = build_policy(wide_config(**settings))[0]
    monkeypatch.setattr(sampler, "free_memory", lambda device: needed / 0.8 - 8)
    assert merged_copy(policy, "merged") is None
    monkeypatch.setattr(sampler, "free_memory", lambda device: needed / 0.8 + 8)
    copy = merged_copy(policy, "merged")
    assert sum(dense.weight.numel() * dense.weight.element_size() for _, dense in copy.layers) == needed


def test_free_memory_is_some_of_what_the_machine_has():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 2**20 < sampler.free_memory(torch.device("cpu")) < total


def test_without_memory_for_the_copy_a_run_samples_through_the_adapter_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "free_memory", lambda device: 1000)
    run = ab.train(lora_config(tmp_path / "run", **{"trainer.max_steps": 1}), progress=False)
    assert run.events[0]["sampling"] == "adapter" and run.summary["steps"] == 1


@KINDS
def test_sampling_merged_or_through_the_adapter_is_nearly_the_same_run(settings):
    results = []
    for sampling in ("merged", "adapter"):
        config = lora_config(**{**settings, "policy.quantize": "none"}) if settings is LORA else small_config(**{"policy.name": wide(), **settings})
        config = ab.config.override(config, {"policy.sampling": sampling, "grpo.group_size": 8, "trainer.batch_size": 12})
        state, task, tokenizer = started(config)
        assert (state.merged is None) == (sampling == "adapter")
        results.append(([rl_step(state, config, task, tokenizer) for _ in range(4)], clone_trained(state.model)))
    (merged, merged_weights), (through, through_weights) = results
    assert max(e["grad_norm"] for e in merged) > 0
    for k in ("ids", "rho", "reward", "shown", "generated_tokens"):
        assert merged[0][k] == through[0][k]
    assert merged[0]["entropy"] == pytest.approx(through[0]["entropy"], abs=1e-5)
    assert merged[0]["grad_norm"] == pytest.approx(through[0]["grad_norm"], rel=1e-4)
    for a, b in zip(merged, through):
        assert a["mean_reward"] == pytest.approx(b["mean_reward"], abs=2 / 96 + 1e-6)
    moved = max(float((t - s).abs().max()) for t, s in zip(merged_weights.values(), clone_trained(build_policy(config)[0]).values()))
    apart = max(float((merged_weights[n] - through_weights[n]).abs().max()) for n in merged_weights)
    assert apart < 0.05 * moved


