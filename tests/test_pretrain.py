"""The base: it can copy and end, and knows no parity. A shipped one that knew the answer would make every figure a fraud."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from adaback_lite.config import PolicySettings
from adaback_lite.errors import UserError
from adaback_lite.evaluate import evaluate, wilson
from adaback_lite.packing import Prefix, packed_logprobs
from adaback_lite.policy import load_pretrained, tiny_tokenizer
from adaback_lite.pretrain import SHIPPED, base_folder, base_name, copy_chains, save_base, train_base
from adaback_lite.seeding import numpy_generator
from adaback_lite.tasks import Parity
from adaback_lite.tasks.parity import prompt_positions
from tests.helpers import BOS, EOS, EQUALS, ONE, PAD, ZERO

L = 16
BASES = pytest.mark.parametrize("positions", ["coupled", "sequential"])


@functools.cache
def base(positions):
    return load_pretrained(PolicySettings(), base_folder(PolicySettings(positions=positions), L, make=False))


@functools.cache
def sampled(positions):
    """2,000 outputs for parity inputs, nothing shown."""
    model, tokenizer = base(positions)
    task = Parity(tokenizer, L, 3, 1, 1, 2000, seed=11, positions=positions)
    return evaluate(model, tokenizer, task, task.test, seed=5)


@torch.no_grad()
def z_probabilities(positions, inputs: list[str], outputs: list[str]) -> np.ndarray:
    """The probability that the base gives to each right Z_i, everything before it given: [n, L]. 0.5 is guessing."""
    model, _ = base(positions)
    at, start = prompt_positions(L, positions)
    prefixes = [Prefix([BOS, *(ZERO + int(c) for c in x), EQUALS], at, start, 2 * L + 1) for x in inputs]
    tokens = torch.tensor([[ZERO + int(c) for c in out] for out in outputs])[:, None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    logp, _ = packed_logprobs(model, prefixes, tokens, mask, PAD)
    return logp[:, 0, 1::2].exp().double().numpy()


@BASES
def test_its_outputs_are_valid_parities_no_more_often_than_coins(positions):
    """2,000 samples: with 2^-16 each, 0.03 in all, and three or more once in 200,000 times."""
    judged = sampled(positions)
    assert sum(v.right for group in judged.verdicts for v in group) < 3
    first_wrong = np.array([v.step for group in judged.verdicts for v in group if v.step])
    assert 1.8 < first_wrong.mean() < 2.3  # 2 for coins: each step is right half of the time


@torch.no_grad()
def chance_of_a_valid_chain(positions, n=250, seed=0) -> float:
    """The base's probability of a valid output, over random inputs, by a particle filter: counting successes would take millions of samples.

    n chains grow side by side, Y_i as the base draws it and Z_i as the parity wants it. Each is weighted with the probability that the base would have
    written a bit there and that Z_i, and the next step grows from chains drawn by weight. The product of the mean weights is an unbiased estimate.
    """
    model, _ = base(positions)
    g, (at, start) = torch.Generator().manual_seed(seed), prompt_positions(L, positions)
    places = torch.tensor(at + list(range(start, start + 2 * L)))
    x = torch.randint(0, 2, (n, L), generator=g)
    ids = torch.cat([torch.full((n, 1), BOS), ZERO + x, torch.full((n, 1), EQUALS)], dim=1)
    z, chance = torch.zeros(n, dtype=torch.long), 1.0

    def next_token() -> torch.Tensor:
        where = places[: ids.shape[1]].expand(n, -1)
        return model(input_ids=ids, position_ids=where, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits[:, -1].softmax(-1)

    for i in range(L):
        bits = next_token()[:, [ZERO, ONE]]
        y = (torch.rand(n, generator=g) * bits.sum(dim=1) < bits[:, 1]).long()
        z = z ^ y ^ x[:, i]
        ids = torch.cat([ids, ZERO + y[:, None]], dim=1)
        weight = bits.sum(dim=1) * next_token().gather(1, ZERO + z[:, None])[:, 0]
        ids = torch.cat([ids, ZERO + z[:, None]], dim=1)
        chance *= float(weight.mean())
        kept = torch.multinomial(weight, n, replacement=True, generator=g)
        ids, x, z = ids[kept], x[kept], z[kept]
    return chance * float(next_token()[:, EOS].mean())


@BASES
def test_its_chance_of_a_valid_parity_is_that_of_coins(positions):
    """2^-16. With 3,000 chains the estimate was 1.03 times that for coupled positions and 0.95 for sequential ones; with 250 it spreads by about 0.25."""
    assert 0.4 < chance_of_a_valid_chain(positions) * 2**L < 2.0


@BASES
def test_its_outputs_are_parseable_and_end(positions):
    assert 1 - sampled(positions).share("unparseable") > 0.95


@BASES
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_single_steps_of_a_parity_are_no_better_than_guesses(positions, degree):
    """Teacher-forced on 1,000 correct chains, the more probable Z_i is right half of the time or less, at every step.

    Less, because an undecided mix of copying rules is not blind to a parity but slightly wrong about it: where it leans to 0 and X and Y disagree it
    says X and Y, which is a parity one time in four. An ideal mixture of the four rules is right in 0.485 of the steps of degree 3, the bases in 0.45 to 0.5.
    """
    task = Parity(tiny_tokenizer(), L, degree, 1000, 1, 1, seed=12, positions=positions)
    p = z_probabilities(positions, [s.prompt[:-1] for s in task.train], [s.rationale for s in task.train])
    right = p > 0.5
    assert wilson(int(right.sum()), right.size, z=4)[0] < 0.5 and right.mean() > 0.43
    for i in range(L):
        assert wilson(int(right[:, i].sum()), 1000, z=4.5)[0] < 0.5, i
    assert p.mean() < 0.51  # no confidence in the right answer either


@BASES
def test_it_copies(positions):
    """Late in a chain, when the rule is plain, Z_i follows it; the free bits stay coins."""
    inputs, outputs = copy_chains(numpy_generator("test"), 400, L)
    p = z_probabilities(positions, inputs, outputs)
    assert (p[:, L // 2 :] > 0.5).mean() > 0.9
    rule_x = np.array([out[1::2] == x for x, out in zip(inputs, outputs)])
    assert rule_x.sum() > 60 and (p[rule_x][:, L // 2 :] > 0.5).mean() > 0.9  # looking up X_i, the skill that it is for


@BASES
def test_anyone_can_load_it(positions):
    folder = base_folder(PolicySettings(positions=positions), L, make=False)
    assert folder.parent == SHIPPED
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("0110=", add_special_tokens=False)["input_ids"]
    assert ids == [ZERO, ONE, ONE, ZERO, EQUALS] and tokenizer.decode(ids) == "0110="
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    model, _ = base(positions)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (PAD, BOS, EOS)
    assert model.config._attn_implementation == "sdpa" and not model.training
    made = json.loads((folder / "made.json").read_text())
    assert made["length"] == L and PolicySettings(**made["policy"]) == PolicySettings(positions=positions)
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))  # nothing pickled


def test_copy_chains_never_combine_two_bits():
    inputs, outputs = copy_chains(numpy_generator("test"), 2000, 8)
    counts = {"x": 0, "y": 0, "0": 0, "1": 0}
    for x, out in zip(inputs, outputs):
        y, z = out[::2], out[1::2]
        rules = {"x": x, "y": y, "0": "0" * 8, "1": "1" * 8}
        follows = [name for name, value in rules.items() if value == z]
        assert follows, (x, out)  # each chain is one copying rule from end to end
        for name in follows:
            counts[name] += 1 / len(follows)
    assert all(abs(n - 500) < 100 for n in counts.values())
    bits = np.array([[int(c) for c in x + out[::2]] for x, out in zip(inputs, outputs)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05  # X and Y are fair coins ...
    assert np.abs(np.corrcoef(bits.T) - np.eye(16)).max() < 0.1  # ... that know nothing of each other


def quick(seed_noise=0, steps=6):
    torch.manual_seed(seed_noise)  # the global generator must not matter
    settings = PolicySettings(layers=1, width=16, heads=2, kv_heads=2)
    losses = []
    model, _ = train_base(settings, 4, steps=steps, batch_size=8, progress=lambda step, loss: losses.append((step, loss)))
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_is_deterministic():
    (losses, weights), (again, same) = quick(0), quick(1)
    assert losses == again and torch.equal(weights, same)
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]


def test_training_learns():
    losses, _ = quick(steps=400)
    assert losses[0][1] > 1.5 and losses[-1][1] < 0.8  # from six tokens at random to bits


def test_a_base_is_made_once_and_whole(tmp_path, monkeypatch):
    settings = PolicySettings(layers=1, width=16, heads=2, kv_heads=2)
    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no base tiny-coupled-L4-1x16-h2kv2-theta50-r\d+ yet"):
        base_folder(settings, 4, make=False)
    calls = []

    def short(settings, length, progress=None):
        calls.append(length)
        return train_base(settings, length, steps=2, batch_size=4)

    monkeypatch.setattr("adaback_lite.pretrain.train_base", short)
    folder = base_folder(settings, 4)
    assert folder == tmp_path / base_name(settings, 4) == base_folder(settings, 4) and calls == [4]
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]  # nothing half-made beside it
    model, tokenizer = load_pretrained(PolicySettings(), folder)
    assert tokenizer.decode([ZERO, ONE]) == "01" and model.config.hidden_size == 16
    threads = torch.get_num_threads()
    save_base(settings, 4, folder)  # making it anew replaces it
    assert calls == [4, 4] and load_pretrained(PolicySettings(), folder) and torch.get_num_threads() == threads


def test_everything_a_base_depends_on_is_in_its_name():
    changes = [{}, {"positions": "sequential"}, {"layers": 3}, {"width": 32}, {"heads": 2, "kv_heads": 2}, {"kv_heads": 2}, {"rope_theta": 60}]
    names = {base_name(PolicySettings(), 8), *(base_name(PolicySettings(**c), 16) for c in changes)}
    assert len(names) == 8


def test_shipped_bases_are_small():
    assert sum(p.stat().st_size for p in Path(SHIPPED).rglob("*") if p.is_file()) < 2**21
