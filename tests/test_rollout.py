"""Sampling from a shared prefill is sampling each rollout from its own sequence."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from adaback_lite.packing import packed_logprobs
from adaback_lite.rollout import draw, pack_size, sample_rollouts
from tests.helpers import EOS, PAD, ragged_prefixes, slow_logits, slow_logprobs, small_model

BOTH = pytest.mark.parametrize("positions", ["coupled", "sequential"])


def slow_sample(model, prefix, noise, temperature=1.0):
    """One rollout, the obvious way: the whole sequence anew for each token, and a loop over the vocabulary. noise [S]."""
    written = []
    for u in noise[: prefix.max_new].tolist():
        probabilities = (slow_logits(model, prefix, written)[-1] / temperature).softmax(-1).tolist()
        token = next((t for t, cumulated in enumerate(itertools.accumulate(probabilities)) if cumulated > u), 5)
        written.append(token)
        if token == EOS:
            break
    return written


def noise_for(prefixes, G, seed=0):
    return torch.rand(len(prefixes), G, max(p.max_new for p in prefixes), generator=torch.Generator().manual_seed(seed))


def written_tokens(rollouts):
    return [[rollouts.tokens[b, g, rollouts.mask[b, g]].tolist() for g in range(rollouts.mask.shape[1])] for b in range(rollouts.mask.shape[0])]


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shown", [(0, 3, 9, 4), (5, 5)])  # with padding, and without
def test_same_noise_same_tokens_as_the_slow_way(positions, temperature, shown):
    model, prefixes = small_model(kv_heads=2), ragged_prefixes(positions, shown=shown)
    noise = noise_for(prefixes, G=6)
    rollouts = sample_rollouts(model, prefixes, noise, EOS, PAD, temperature)
    expected = [[slow_sample(model, p, noise[b, g], temperature) for g in range(6)] for b, p in enumerate(prefixes)]
    assert written_tokens(rollouts) == expected
    assert rollouts.ended.tolist() == [[w[-1] == EOS for w in group] for group in expected]
    lengths = {len(w) for group in expected for w in group}
    assert len(lengths) > 2 and not rollouts.ended.all() and rollouts.ended.any()  # both ways to stop occur


def test_the_cache_with_room_and_transformers_own_give_the_same_rollouts(monkeypatch):
    """With samples that may write little beside some that may write much, and so many rollouts that <eos> is drawn past a limit too."""
    model, prefixes = small_model(), ragged_prefixes("coupled", shown=(10, 0, 9, 3))
    noise = noise_for(prefixes, G=24)
    roomy = sample_rollouts(model, prefixes, noise, EOS, PAD)
    monkeypatch.setattr("adaback_lite.rollout.new_cache", lambda config, room: DynamicCache(config=config))
    usual = sample_rollouts(model, prefixes, noise, EOS, PAD)
    assert torch.equal(roomy.tokens, usual.tokens) and torch.equal(roomy.mask, usual.mask) and torch.equal(roomy.ended, usual.ended)
    assert not roomy.ended[0].all()


@pytest.mark.parametrize("pack", [1, 2, 3, 6])
def test_how_many_rollouts_share_a_row_changes_no_token(monkeypatch, pack):
    model, prefixes = small_model(), ragged_prefixes("sequential")
    noise = noise_for(prefixes, G=6)
    expected = sample_rollouts(model, prefixes, noise, EOS, PAD)
    monkeypatch.setattr("adaback_lite.rollout.PACK", pack)
    assert pack_size(6, 33) == pack
    got = sample_rollouts(model, prefixes, noise, EOS, PAD)
    assert torch.equal(got.tokens, expected.tokens) and torch.equal(got.mask, expected.mask) and torch.equal(got.ended, expected.ended)


def test_pack_size():
    assert [pack_size(G, 33) for G in (1, 5, 8, 12, 16, 11)] == [1, 5, 8, 6, 8, 1]
    assert [pack_size(8, S) for S in (64, 65, 200, 512, 10_000)] == [8, 4, 2, 1, 1]  # at most 512 columns a row


@torch.no_grad()
def test_same_distribution_as_the_model_says():
    """Chi-square of 6,000 rollouts of at most 3 tokens against the exact probability of each of the possible outputs."""
    model, [prefix] = small_model(sharp=2.0), ragged_prefixes("coupled", shown=(8,))
    assert prefix.max_new == 3
    exact = {}
    for sequence in itertools.chain.from_iterable(itertools.product(range(6), repeat=n) for n in (1, 2, 3)):
        if EOS in sequence[:-1] or (len(sequence) < 3 and sequence[-1] != EOS):
            continue
        log_p = slow_logits(model, prefix, list(sequence[:-1])).log_softmax(-1)
        exact[sequence] = math.exp(sum(float(log_p[i, t]) for i, t in enumerate(sequence)))
    assert sum(exact.values()) == pytest.approx(1.0)
    n = 6000
    counts = dict.fromkeys(exact, 0)
    for sequence in written_tokens(sample_rollouts(model, [prefix], noise_for([prefix], n), EOS, PAD))[0]:
        counts[tuple(sequence)] += 1
    common = [s for s in exact if exact[s] * n >= 5]
    observed = np.array([counts[s] for s in common] + [n - sum(counts[s] for s in common)])
    expected = np.array([exact[s] * n for s in common] + [n - sum(exact[s] * n for s in common)])
    chi2, freedom = float(((observed - expected) ** 2 / expected).sum()), len(common)
    assert freedom > 20
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations above its mean


@pytest.mark.parametrize("rows", [1, 3, 7, 9, 1000])
def test_chunk_size_changes_no_token(rows):
    model, prefixes = small_model(), ragged_prefixes("coupled", shown=(0, 3, 9, 4, 10, 0, 1))
    noise = noise_for(prefixes, G=3)
    whole, cut = sample_rollouts(model, prefixes, noise, EOS, PAD), sample_rollouts(model, prefixes, noise, EOS, PAD, rows=rows)
    assert torch.equal(whole.tokens, cut.tokens) and torch.equal(whole.mask, cut.mask) and torch.equal(whole.ended, cut.ended)
    assert cut.entropy == pytest.approx(whole.entropy, abs=1e-6)


def test_order_of_samples_changes_nothing():
    model, prefixes = small_model(), ragged_prefixes("sequential", shown=(0, 3, 9, 4, 10, 0, 1))
    noise, order = noise_for(prefixes, G=3), [4, 2, 6, 0, 5, 1, 3]
    straight = sample_rollouts(model, prefixes, noise, EOS, PAD, rows=9)
    shuffled = sample_rollouts(model, [prefixes[b] for b in order], noise[order], EOS, PAD, rows=9)
    assert torch.equal(straight.tokens[order], shuffled.tokens) and torch.equal(straight.mask[order], shuffled.mask)


def test_end_token_stops_and_max_new_stops_and_nothing_is_written_after():
    model, prefixes = small_model(), ragged_prefixes("sequential", shown=(0, 3, 9, 10))
    rollouts = sample_rollouts(model, prefixes, noise_for(prefixes, G=16, seed=2), EOS, PAD)
    for b, g in np.ndindex(*rollouts.ended.shape):
        n = int(rollouts.mask[b, g].sum())
        assert rollouts.mask[b, g, :n].all() and 1 <= n <= prefixes[b].max_new
        assert (rollouts.tokens[b, g, n:] == PAD).all()
        ends = (rollouts.tokens[b, g, :n] == EOS).nonzero().flatten().tolist()
        assert ends == ([n - 1] if rollouts.ended[b, g] else [])
        assert rollouts.ended[b, g] or n == prefixes[b].max_new
    assert rollouts.ended.any() and not rollouts.ended.all()


def test_entropy_is_the_mean_over_written_tokens():
    model, prefixes = small_model(), ragged_prefixes("coupled")
    rollouts = sample_rollouts(model, prefixes, noise_for(prefixes, G=3), EOS, PAD, temperature=0.8)
    _, entropy = torch.no_grad()(slow_logprobs)(model, prefixes, rollouts.tokens, rollouts.mask, temperature=0.8)
    assert rollouts.entropy == pytest.approx(float(entropy.sum() / rollouts.mask.sum()), abs=1e-6)


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_update_sees_what_the_sampler_saw(positions, temperature):
    """PITFALLS: a revealed prefix that is prompt in sampling and completion in the loss blows up the ratio. It is 1 on the first pass."""
    model, prefixes = small_model(positions), ragged_prefixes(positions)
    logits_seen = []
    original = torch.Tensor.log_softmax

    def spy(self, *args, **kwargs):
        logits_seen.append(original(self, *args, **kwargs))
        return logits_seen[-1]

    G = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "log_softmax", spy)
        rollouts = sample_rollouts(model, prefixes, noise_for(prefixes, G), EOS, PAD, temperature)
    order = sorted(range(len(prefixes)), key=lambda b: len(prefixes[b].ids))  # the sampler's own order of rows, one chunk; rows at the end drop out
    sampler = torch.zeros(rollouts.mask.shape)
    for s, log_p in enumerate(logits_seen):
        left = order[: len(log_p) // G]
        rows = log_p.gather(1, rollouts.tokens[left].reshape(-1, rollouts.tokens.shape[2])[:, s, None])
        sampler[left, :, s] = rows.reshape(len(left), G).float()
    update, _ = torch.no_grad()(packed_logprobs)(model, prefixes, rollouts.tokens, rollouts.mask, PAD, temperature)
    ratio = (update - sampler).exp()[rollouts.mask]
    assert float((ratio - 1).abs().max()) < 1e-5
    slow, _ = torch.no_grad()(slow_logprobs)(model, prefixes, rollouts.tokens, rollouts.mask, temperature)
    assert float(((slow - sampler)[rollouts.mask]).abs().max()) < 1e-5


JUST_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@pytest.mark.parametrize(
    ("probabilities", "u", "token"),
    [
        ([0.25, 0.5, 0.25], 0.0, 0),
        ([0.25, 0.5, 0.25], 0.2499, 0),
        ([0.25, 0.5, 0.25], 0.25, 1),  # the first token whose cumulated probability *exceeds* u
        ([0.25, 0.5, 0.25], 0.7499, 1),
        ([0.25, 0.5, 0.25], 0.75, 2),
        ([0.25, 0.5, 0.25], JUST_BELOW_ONE, 2),
        ([0.0, 0.0, 1.0], 0.0, 2),
        ([0.0, 1.0, 0.0], 0.0, 1),
        ([0.0, 1.0, 0.0], JUST_BELOW_ONE, 1),
        ([0.5, 0.0, 0.5], 0.5, 2),
        ([0.5, 0.5, 0.0], JUST_BELOW_ONE, 1),
    ],
)
def test_draw_by_hand(probabilities, u, token):
    assert draw(torch.tensor([probabilities]).log(), torch.tensor([u])).tolist() == [token]


def test_tokens_of_probability_zero_are_never_drawn():
    """Many random rows, many tokens banned, the two ends of the noise among the draws."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 50, generator=g) * 4
    banned = torch.rand(2000, 50, generator=g) < 0.6
    banned[:, 7] = False
    logits = logits.masked_fill(banned, -torch.inf)
    for u in (torch.zeros(2000), torch.full((2000,), JUST_BELOW_ONE), torch.rand(2000, generator=g)):
        token = draw(logits, u)
        assert not banned.gather(1, token[:, None]).any()


def test_draw_is_row_by_row():
    logits, u = torch.randn(40, 6), torch.rand(40)
    assert draw(logits, u).tolist() == [int(draw(logits[i : i + 1], u[i : i + 1])) for i in range(40)]
