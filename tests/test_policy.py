"""A LoRA adapter is all that its run changes; frozen weights in 4 bits are the dense ones they stand for, in logits and in gradients."""

import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig, GraniteForCausalLM, MistralConfig, MistralForCausalLM

import adaback_lite as ab
from adaback_lite import policy, sft, trainer
from adaback_lite.build import build_policy, build_task
from adaback_lite.config import make_config
from adaback_lite.errors import UserError
from adaback_lite.packing import one_pass_hidden, packed_logprobs
from adaback_lite.policy import add_adapter, clone_trained, load_pretrained, load_tokenizer, load_trained, tiny_model, trained_tensors, updating, with_trained
from adaback_lite.runs import load_run
from adaback_lite.trainer import new_state, reference_policy, rl_step
from tests.helpers import PAD, ragged_prefixes, ragged_rollouts, slow_logprobs, small_config, taught, taught_config
from tests.language import CHATML, byte_model, byte_tokenizer, saved, stir, wide
from tests.test_sft import is_same, swept

LORA = {"policy.lora_rank": 4, "grpo.lr": 0.02}
SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
NF4 = {**LORA, "policy.quantize": "nf4"}
IDS = torch.tensor([[1, 3, 4, 4, 3, 5, 3, 4]])


def lora_config(out="unused", **settings):
    """The taught model of the other tests, with an adapter."""
    return taught_config(out, **{**LORA, **settings})


def wide_config(**settings):
    return small_config(**{"policy.name": wide(), **settings})


def started(config):
    """(state, task, tokenizer) before the first step."""
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    return new_state(config, model, task), task, tokenizer


def everything(model) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


@torch.no_grad()
def logits(model, ids=IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


def adapter_gradients(model, prefixes, tokens, mask) -> dict[str, torch.Tensor]:
    """Of a loss over log-probabilities and entropies, by name; all parameters without one are left out."""
    model.zero_grad()
    logp, entropy = packed_logprobs(model, prefixes, tokens, mask, PAD)
    weight = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    ((weight * logp).sum() + 0.1 * (weight * entropy).sum()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("settings", [LORA, NF4], ids=["dense", "nf4"])
def test_only_the_adapter_changes(settings):
    config = wide_config(**settings, **{"method": "sft+adaback", "trainer.sft_max_steps": 2, "trainer.sft_eval_every": 1})
    state, task, tokenizer = started(config)
    before = everything(state.model)
    assert len(before) > len(trained_tensors(state.model)) == 2 * 2 * 7  # A and B of seven linear layers in each of two layers
    list(sft.sft_steps(state, config, task, PAD))
    after_sft = everything(state.model)
    events = [rl_step(state, config, task, tokenizer) for _ in range(3)]
    assert any(e["grad_norm"] > 0 for e in events)
    after = everything(state.model)
    for name, tensor in before.items():
        if "lora_" in name:
            assert not torch.equal(after[name], after_sft[name]), name
            assert "lora_A" in name or not torch.equal(after_sft[name], tensor), name  # A has no gradient while B is 0
        else:
            assert torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype, name
    assert {n for n, p in state.model.named_parameters() if p.requires_grad} == {n for n in before if "lora_" in n}
    trained = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in state.model.named_parameters() if "lora_" in n}


def test_an_untrained_adapter_changes_nothing():
    plain, adapted = build_policy(wide_config())[0], build_policy(wide_config(**LORA))[0]
    assert all((t == 0).all() == ("lora_B" in n) for n, t in trained_tensors(adapted).items())
    assert torch.equal(logits(plain), logits(adapted))
    stir(adapted)
    assert (logits(plain) - logits(adapted)).abs().max() > 0.1


def test_an_adapters_first_weights_are_a_function_of_the_seed_alone():
    def first(seed):
        return clone_trained(build_policy(lora_config(seed=seed))[0])

    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = first(0)
    assert torch.equal(torch.get_rng_state(), before)  # and takes nothing from the global generator
    torch.manual_seed(6)
    assert is_same(first(0), one) and not is_same(first(1), one)


def test_trained_tensors_are_the_models_own_and_load_trained_is_the_inverse():
    for config in (lora_config(), taught_config()):
        model = build_policy(config)[0]
        kept, before = clone_trained(model), logits(model)
        with torch.no_grad():
            for t in trained_tensors(model).values():
                t += 0.1
        assert not torch.equal(logits(model), before)
        load_trained(model, kept)
        assert torch.equal(logits(model), before)
        name = next(iter(kept))
        for wrong in ({}, {**kept, "more": kept[name]}, {k: v for k, v in kept.items() if k != name}, {**kept, name: kept[name][:1]}):
            with pytest.raises(ValueError, match="another model or adapter"):
                load_trained(model, wrong)
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("settings", [{"policy.name": taught()}, {"policy.name": "tiny", "policy.base": "none"}], ids=["folder", "tiny"])
def test_peft_itself_loads_a_checkpoint(tmp_path, settings):
    config = lora_config(tmp_path / "run", **{**settings, "method": "sft+rl", "trainer.max_steps": 3})
    run = ab.train(config, progress=False)
    ours = run.load_policy()[0]
    base = AutoModelForCausalLM.from_pretrained(taught()) if config.policy.name != "tiny" else tiny_model(config.policy, config.seed)
    bare = logits(base)
    folder = run.checkpoints()[0]
    assert {p.name for p in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "winner.safetensors", "state.json"}
    theirs = PeftModel.from_pretrained(base, folder).eval()
    assert torch.equal(logits(ours), logits(theirs)) and not torch.equal(logits(theirs), bare)


def test_each_learning_rate_starts_from_the_same_adapter(monkeypatch):
    _, _, both = swept(monkeypatch, [0.5, 0.4, 0.5, 0.4], **LORA, **{"trainer.sft_max_steps": 4})
    _, _, only = swept(monkeypatch, [0.5, 0.4], **LORA, **{"trainer.sft_max_steps": 4, "trainer.sft_lrs": (0.03,)})
    assert all("lora_" in n for n in both[0])
    assert is_same(both[2], only[0]) and is_same(both[3], only[1]) and not is_same(both[0], only[0])


def test_rl_starts_from_sfts_adapter(monkeypatch):
    """The best look's adapter is the winner: what the policy is when SFT ends, with a fresh optimizer."""
    _, state, looks = swept(monkeypatch, [0.9, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9], **LORA)
    assert is_same(trained_tensors(state.model), looks[1]) and is_same(state.winner, looks[1])
    assert state.optimizer.state_dict()["state"] == {}


def test_sft_then_rl_with_an_adapter_runs_to_its_end_and_counts(tmp_path):
    run = ab.train(lora_config(tmp_path / "run", **{"method": "sft+rl", "trainer.max_steps": 3}), progress=False)
    start = run.events[0]
    assert start["event"] == "start" and start["sampling"] == "merged"
    # rank 4 on q, o (16 to 16), k, v (16 to 8), gate, up (16 to 64) and down (64 to 16)
    assert start["trained_parameters"] == 4 * (2 * 32 + 2 * 24 + 3 * 80) and start["parameters"] > 2 * start["trained_parameters"]
    assert {"sft", "sft_end", "step", "end"} <= {e["event"] for e in run.events}
    assert run.summary["steps"] == 3 and run.summary["sft_lr"] in (0.003, 0.03)


# ---------------------------------------------------------------- the KL term's reference


def first_kl(monkeypatch, state, config, task, tokenizer, reference) -> tuple[float, float]:
    """(the step's loss, the same by slow separate models): on the first pass the advantages sum to 0, so what is left is grpo.kl times the mean of k3."""
    seen = {}
    original = trainer.sample_rollouts
    monkeypatch.setattr(trainer, "sample_rollouts", lambda *args: seen.setdefault("out", (args[1], original(*args)))[1])
    twin = build_policy(config)[0]
    load_trained(twin, clone_trained(state.model))
    event = rl_step(state, config, task, tokenizer)
    prefixes, rollouts = seen["out"]
    with torch.no_grad():
        logp = slow_logprobs(twin, prefixes, rollouts.tokens, rollouts.mask)[0]
        kept = slow_logprobs(reference, prefixes, rollouts.tokens, rollouts.mask)[0]
    d = kept - logp
    k3 = (d.exp() - d - 1).sum(2) / rollouts.mask.sum(2)
    return event["loss"], config.grpo.kl * float(k3.mean())


def test_the_kl_reference_is_the_base_with_the_adapter_off(monkeypatch):
    config = lora_config(**{"grpo.kl": 0.7})
    state, task, tokenizer = started(config)
    assert state.reference is None  # no second model is held
    stir(state.model)
    loss, expected = first_kl(monkeypatch, state, config, task, tokenizer, AutoModelForCausalLM.from_pretrained(taught()).eval())
    assert loss == pytest.approx(expected, rel=1e-3) and expected > 1e-3


def test_after_sft_the_kl_reference_is_sfts_adapter(monkeypatch):
    config = lora_config(**{"grpo.kl": 0.7, "method": "sft+rl"})
    state, task, tokenizer = started(config)
    list(sft.sft_steps(state, config, task, PAD))
    reference = build_policy(config)[0]
    load_trained(reference, clone_trained(state.model))
    base = AutoModelForCausalLM.from_pretrained(taught()).eval()
    assert (logits(reference) - logits(base)).abs().max() > 0.01  # the two would be told apart
    stir(state.model)
    loss, expected = first_kl(monkeypatch, state, config, task, tokenizer, reference)
    assert loss == pytest.approx(expected, rel=1e-3) and expected > 1e-3


def test_looking_at_the_reference_leaves_the_policy_as_it_was():
    model = build_policy(lora_config())[0]
    stir(model)
    before, base = logits(model), AutoModelForCausalLM.from_pretrained(taught()).eval()
    other = {k: v + 0.1 for k, v in clone_trained(model).items()}
    with with_trained(model, None) as plain:
        assert torch.equal(logits(plain), logits(base)) and not torch.is_grad_enabled()
    assert torch.equal(logits(model), before) and torch.is_grad_enabled()
    with with_trained(model, other) as changed:
        assert not torch.equal(logits(changed), before)
    assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError, match="in between"), with_trained(model, other):
        raise RuntimeError("in between")
    assert torch.equal(logits(model), before)


def test_without_an_adapter_the_reference_is_a_frozen_copy():
    state, task, tokenizer = started(taught_config(**{"grpo.kl": 0.1}))
    with torch.no_grad():
        for p in state.model.parameters():
            p += 0.1
    with reference_policy(state) as model:
        assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(taught()).eval()))


# ---------------------------------------------------------------- dropout and checkpointing


def test_dropout_acts_in_updates_and_nowhere_else():
    """The first step's rollouts are those without dropout, its gradient is not; the same run twice is the same."""
    results = []
    for dropout in (0.0, 0.5, 0.5):
        config = lora_config(**{"policy.lora_dropout": dropout, "method": "constant", "trainer.batch_size": 12})
        state, task, tokenizer = started(config)
        stir(state.model)
        torch.manual_seed(len(results))  # what else draws from the global generator does not matter
        before = torch.get_rng_state()
        events = [rl_step(state, config, task, tokenizer) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(m.training for m in state.model.modules())
        results.append((events, clone_trained(state.model)))
    (without, _), (with_it, weights), (again, same_weights) = results
    for k in ("reward", "entropy", "generated_tokens", "shown"):
        assert with_it[0][k] == without[0][k]
    assert without[0]["grad_norm"] > 0 and abs(with_it[0]["grad_norm"] / without[0]["grad_norm"] - 1) > 0.01
    assert again == with_it and is_same(weights, same_weights)


def test_dropout_is_seeded_by_names():
    settings = lora_config(**{"policy.lora_dropout": 0.5}).policy
    model = build_policy(lora_config(**{"policy.lora_dropout": 0.5}))[0]
    stir(model)

    def seen(*names):
        with updating(model, settings, *names):
            assert model.training
            return logits(model)

    assert torch.equal(seen(0, "rl", 3, 1), seen(0, "rl", 3, 1))
    assert len({seen(*n).sum().item() for n in [(0, "rl", 3, 1), (0, "rl", 3, 2), (0, "rl", 4, 1), (1, "rl", 3, 1), (0, "sft", 3, 1)]}) == 5
    assert not model.training
    with pytest.raises(RuntimeError, match="in between"), updating(model, settings, 0):
        raise RuntimeError("in between")
    assert not model.training


@pytest.mark.parametrize("settings", [{}, LORA, {**LORA, "policy.lora_dropout": 0.3}, NF4], ids=["all weights", "adapter", "dropout", "nf4"])
def test_gradient_checkpointing_changes_no_gradient(settings):
    prefixes = ragged_prefixes("coupled", shown=(0, 3, 9, 10))
    tokens, mask = ragged_rollouts(prefixes, G=2)
    tokens, mask = tokens[..., :7], mask[..., :7]  # short ones take one pass with and without checkpointing
    results, calls = [], []
    for checkpointing in (False, True):
        config = wide_config(**settings, **{"policy.checkpointing": checkpointing})
        model = build_policy(config)[0]
        stir(model)
        assert model.is_activation_checkpointing == checkpointing
        count = []
        handle = model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        with updating(model, config.policy, 0):
            results.append(adapter_gradients(model, prefixes, tokens, mask))
        handle.remove()
        calls.append(len(count))
    plain, saved_memory = results
    assert calls == [1, 2]  # each layer runs again in the backward pass
    assert plain.keys() == saved_memory.keys() and len(plain) >= 20
    for name, grad in plain.items():
        torch.testing.assert_close(saved_memory[name], grad, rtol=1e-4, atol=1e-6 + 1e-5 * float(grad.abs().max()))
    assert max(float(g.abs().max()) for g in plain.values()) > 0.01


def test_checkpointing_takes_one_pass_however_long_the_rollouts(monkeypatch):
    """A cache that is written on the way does not survive layers that run twice: the gradient would be another."""
    prefixes = ragged_prefixes("coupled", shown=(0, 1))
    tokens, mask = ragged_rollouts(prefixes, G=8)
    config = wide_config(**LORA, **{"policy.checkpointing": True})
    model = build_policy(config)[0]
    stir(model)
    plain = adapter_gradients(build_same(model, wide_config(**LORA)), prefixes, tokens, mask)  # two passes
    with updating(model, config.policy, 0):
        got = adapter_gradients(model, prefixes, tokens, mask)
    for name, grad in plain.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-3, atol=1e-5 + 1e-4 * float(grad.abs().max()))


def build_same(model, config):
    """Another policy with the same adapter."""
    other = build_policy(config)[0]
    load_trained(other, clone_trained(model))
    return other


# ---------------------------------------------------------------- where the adapter is


def test_targets_by_name():
    names = list(trained_tensors(build_policy(lora_config(**{"policy.lora_targets": "q_proj, v_proj"}))[0]))
    assert sorted(names) == [f"base_model.model.model.layers.0.self_attn.{m}.lora_{x}.weight" for m in ("q_proj", "v_proj") for x in "AB"]
    everywhere = trained_tensors(build_policy(lora_config())[0])
    assert {n.split(".")[-3] for n in everywhere} == {f"{m}_proj" for m in ("q", "k", "v", "o", "gate", "up", "down")}  # and not the output layer


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("nonesuch", ["policy.lora_targets", "nonesuch", "all-linear"]),
        ("q_proj,nonesuch", ["policy.lora_targets", "'nonesuch'", "no such layer"]),  # peft takes this one without a word
        ("q_proj,embed_tokens", ["policy.lora_targets", "model.embed_tokens", "no linear layer"]),
        ("input_layernorm", ["policy.lora_targets", "input_layernorm", "all-linear"]),
        ("q_proj,", ["policy.lora_targets", "''"]),
    ],
)
def test_targets_that_are_not_there(targets, words):
    with pytest.raises(UserError) as error:
        build_policy(lora_config(**{"policy.lora_targets": targets}))
    assert all(word in str(error.value) for word in words), error.value


def test_scaling_is_alpha_over_rank():
    """W + alpha / rank * B A, by hand."""
    config = lora_config(**{"policy.lora_rank": 4, "policy.lora_alpha": 6.0})
    model, base = build_policy(config)[0], AutoModelForCausalLM.from_pretrained(taught()).eval()
    stir(model)
    t = trained_tensors(model)
    with torch.no_grad():
        for name, layer in base.named_modules():
            if f"base_model.model.{name}.lora_A.weight" in t:
                layer.weight += 6.0 / 4 * t[f"base_model.model.{name}.lora_B.weight"] @ t[f"base_model.model.{name}.lora_A.weight"]
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- all weights, some of them tied


def tied_folder(tmp_path) -> str:
    """As the listed models are: what reads a token and what writes it is one matrix."""
    from adaback_lite.policy import tiny_tokenizer

    config = tiny_model(small_config().policy).config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return str(saved(tmp_path / "tied", AutoModelForCausalLM.from_config(config), tiny_tokenizer()))


def test_tied_weights_are_saved_once_and_come_back(tmp_path):
    settings = {"policy.name": tied_folder(tmp_path), "method": "sft+rl", "trainer.max_steps": 2, "trainer.checkpoint_every": 1}
    run = ab.train(small_config(tmp_path / "run", **settings), progress=False)
    model = run.load_policy()[0]
    assert "lm_head.weight" not in trained_tensors(model) and model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    longer = ab.train(small_config(tmp_path / "run", **{**settings, "trainer.max_steps": 4}), resume=True, progress=False)
    whole = ab.train(small_config(tmp_path / "whole", **{**settings, "trainer.max_steps": 4}), progress=False)
    assert is_same(clone_trained(longer.load_policy()[0]), clone_trained(whole.load_policy()[0]))
    assert not is_same(clone_trained(longer.load_policy()[0]), clone_trained(model))


def test_tied_weights_with_a_kl_term_after_sft(tmp_path):
    settings = {"policy.name": tied_folder(tmp_path), "method": "sft+rl", "grpo.kl": 0.1, "trainer.checkpoint_every": 1}
    ab.train(small_config(tmp_path / "run", **settings, **{"trainer.max_steps": 1}), progress=False)
    run = ab.train(small_config(tmp_path / "run", **settings, **{"trainer.max_steps": 2}), resume=True, progress=False)
    assert run.summary["steps"] == 2


# ---------------------------------------------------------------- 4 bits


def nf4_pair():
    """(NF4 + LoRA, dense model of the dequantised weights + the same adapter)."""
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit

    config = wide_config(**NF4)
    packed, dense = build_policy(config)[0], load_pretrained(wide_config().policy)[0]
    plain, quantised = dict(dense.named_modules()), 0
    with torch.no_grad():
        for name, layer in packed.get_base_model().named_modules():
            if isinstance(layer, Linear4bit) and name.endswith("base_layer"):
                weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                target = plain[name.removesuffix(".base_layer")]
                assert weight.shape == target.weight.shape and 0.01 < (weight - target.weight).norm() / target.weight.norm() < 0.2
                target.weight.copy_(weight)
                quantised += 1
    assert quantised == 14
    dense = add_adapter(dense, wide_config(**LORA).policy, config.seed)
    for model in (packed, dense):
        stir(model)
    assert is_same(clone_trained(packed), clone_trained(dense))
    return packed, dense


def check_pair(packed, dense):
    prefixes = ragged_prefixes("coupled")
    tokens, mask = ragged_rollouts(prefixes)
    for _ in range(2):  # bitsandbytes repacks at the first forward pass without gradient, and the damage is done from then on
        torch.testing.assert_close(logits(packed), logits(dense), rtol=1e-4, atol=1e-4)
        got, expected = adapter_gradients(packed, prefixes, tokens, mask), adapter_gradients(dense, prefixes, tokens, mask)
        assert got.keys() == expected.keys() and len(got) == 28
        for name, grad in expected.items():
            assert grad.abs().max() > 1e-3, name
            torch.testing.assert_close(got[name], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()), msg=lambda text, name=name: f"{name}: {text}")


def test_nf4_is_the_dense_model_of_its_weights_in_logits_and_gradients():
    packed, dense = nf4_pair()
    assert logits(packed).std() > 0.3
    check_pair(packed, dense)


def test_the_comparison_finds_bitsandbytes_shortcut_without_backward(monkeypatch):
    """On a processor that has it; on others there is nothing to switch off."""
    from bitsandbytes.nn import Linear4bit

    there = Linear4bit(64, 64).support_avx512bf16_for_cpu
    assert not any(m.support_avx512bf16_for_cpu for m in nf4_pair()[0].modules() if isinstance(m, Linear4bit))
    monkeypatch.setattr(policy, "keep_gradients", lambda model: None)
    monkeypatch.setattr(policy, "check_kind", lambda model, place: None)  # its forward pass would repack the weights before they are compared
    packed, dense = nf4_pair()
    assert all(m.support_avx512bf16_for_cpu == there for m in packed.modules() if isinstance(m, Linear4bit))
    if there:
        with pytest.raises(AssertionError):
            check_pair(packed, dense)
    else:
        check_pair(packed, dense)


def test_packed_weights_never_change():
    from bitsandbytes.nn import Linear4bit

    config = wide_config(**NF4, **{"trainer.batch_size": 12})
    state, task, tokenizer = started(config)

    def frozen():
        layers = {n: m for n, m in state.model.named_modules() if isinstance(m, Linear4bit)}
        states = {n: m.weight.quant_state.as_dict(packed=True) for n, m in layers.items()}
        return {n: m.weight.data.clone() for n, m in layers.items()} | {f"{n}.{k}": v.clone() for n, s in states.items() for k, v in s.items()}

    before = frozen()
    assert all(before[n].dtype == torch.uint8 for n in before if n.endswith("base_layer")) and len(before) > 14
    events = [rl_step(state, config, task, tokenizer) for _ in range(3)]
    assert max(e["grad_norm"] for e in events) > 0
    after = frozen()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_nf4_takes_an_eighth_of_the_memory():
    packed, dense = nf4_pair()

    def bytes_of(model):
        return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "_proj.base_layer" in n)

    assert bytes_of(dense) == 8 * bytes_of(packed)


def test_nf4_without_an_adapter_is_refused():
    with pytest.raises(UserError, match=r"policy\.quantize nf4 freezes the weights.*policy\.lora_rank"):
        make_config({"policy.quantize": "nf4"})


def test_nf4_without_a_usable_bitsandbytes(monkeypatch):
    from bitsandbytes import functional

    def missing(*_, **__):
        raise RuntimeError("kernel not\n  available")

    monkeypatch.setattr(functional, "quantize_4bit", missing)
    with pytest.raises(UserError, match=r"cannot quantise to 4 bits on cpu here \(kernel not available\); set policy\.quantize none"):
        build_policy(wide_config(**NF4))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"cannot quantise to 4 bits on cpu.*policy\.quantize none"):
        build_policy(wide_config(**NF4))


# ---------------------------------------------------------------- where and in what type


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        assert policy.chosen_device(make_config({"policy.device": "cuda"}).policy) == "cuda"
        return
    with pytest.raises(UserError, match=r"policy\.device is cuda, but torch sees no GPU here; set policy\.device cpu"):
        build_policy(wide_config(**{"policy.device": "cuda"}))


def test_device_and_type_by_hand(monkeypatch):
    def chosen(**settings):
        s = make_config({"policy.name": "some/model", **{f"policy.{k}": v for k, v in settings.items()}}).policy
        return policy.chosen_device(s), str(policy.chosen_dtype(s)).removeprefix("torch.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen() == chosen(lora_rank=4) == ("cpu", "float32")
    assert chosen(dtype="bfloat16") == ("cpu", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen(lora_rank=4) == ("cuda", "bfloat16")
    assert chosen() == ("cuda", "float32")  # steps of 1e-6 would be lost in bfloat16
    assert chosen(device="cpu", lora_rank=4) == ("cpu", "float32")
    assert chosen(name="tiny") == ("cpu", "float32")


@pytest.mark.parametrize("sampling", ["merged", "adapter"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_bfloat16_trains_and_its_adapter_is_float32(tmp_path, sampling, quantize):
    settings = {**LORA, "policy.dtype": "bfloat16", "policy.quantize": quantize, "policy.sampling": sampling, "trainer.max_steps": 2}
    run = ab.train(small_config(tmp_path / "run", **{"policy.name": wide(), **settings}), progress=False)
    model = run.load_policy()[0]
    assert {t.dtype for t in trained_tensors(model).values()} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert max(float(t.abs().max()) for n, t in trained_tensors(model).items() if "lora_B" in n) > 0
    assert load_run(tmp_path / "run").events[0]["sampling"] == sampling


def test_hidden_states_need_no_adapter_class():
    """The packed computation runs the decoder under peft's wrapper, adapter included."""
    model = build_policy(wide_config(**LORA))[0]
    prefixes = ragged_prefixes("coupled")
    tokens, _ = ragged_rollouts(prefixes)
    before = one_pass_hidden(model, prefixes, tokens, PAD)
    stir(model)
    assert (one_pass_hidden(model, prefixes, tokens, PAD) - before).abs().max() > 0.01


def test_a_layer_that_bitsandbytes_restores_wrongly_on_a_cpu_is_refused(tmp_path):
    """Rows of 96 weights hold one block and a half: what comes back has the scales of other blocks."""
    from bitsandbytes import functional

    def restored(width):
        """(weights, what comes back): every second row is a hundred times as large."""
        w = torch.randn(64, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0]).repeat(32)[:, None]
        return w, functional.dequantize_4bit(*functional.quantize_4bit(w, blocksize=64, quant_type="nf4"))

    def error(width):
        w, back = restored(width)
        return float((back - w).norm() / w.norm())

    assert error(64) < 0.15 and error(128) < 0.15  # what four bits cost
    assert error(96) > 0.5  # when this fails, bitsandbytes has mended it, and check_rows can go
    folder = saved(tmp_path / "m", byte_model(hidden_size=96, num_attention_heads=2), byte_tokenizer())
    with pytest.raises(UserError, match=r"has layers of 96 inputs, no multiple of 64, .* set policy\.quantize none"):
        load_pretrained(make_config({**NF4, "policy.name": str(folder)}).policy)
    assert load_pretrained(make_config({**LORA, "policy.name": str(folder)}).policy)


def test_the_end_token_is_the_one_that_ends_a_turn(tmp_path):
    """A base model may ship a chat template whose turns end otherwise than its texts: then outputs would never count as ended."""
    folder = saved(tmp_path / "m", byte_model(), byte_tokenizer(CHATML, eos_token="<eos>"))
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    for tokenizer in (load_tokenizer(make_config({"policy.name": str(folder)}).policy), load_pretrained(make_config({"policy.name": str(folder)}).policy)[1]):
        assert tokenizer.eos_token == "<|im_end|>" and tokenizer.decode([tokenizer.eos_token_id]) == "<|im_end|>"
    plain = saved(tmp_path / "p", byte_model(), byte_tokenizer())
    assert load_tokenizer(make_config({"policy.name": str(plain)}).policy).eos_token == "<eos>"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=8.0, **SIZES)), "scales or caps its logits"),
        (lambda: MistralForCausalLM(MistralConfig(sliding_window=16, **SIZES)), "a sliding window"),
    ],
)
def test_models_that_would_be_sampled_wrongly_are_refused(tmp_path, make, words):
    folder = saved(tmp_path / "m", make(), byte_tokenizer())
    with pytest.raises(UserError, match=f"{words}.*which this library does not support; set policy.name to another model"):
        load_pretrained(make_config({"policy.name": str(folder)}).policy)
