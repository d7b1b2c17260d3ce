"""A packed group is the same computation as its rollouts one by one."""

import itertools

import pytest
import torch

from adaback_lite import packing
from adaback_lite.evaluate import make_prefix
from adaback_lite.grpo import policy_loss
from adaback_lite.packing import Prefix, block_mask, left_pad, one_pass_hidden, packed_logprobs, two_pass_hidden, unpacked_logprobs
from tests.helpers import EOS, PAD, ZERO, gradients, ragged_prefixes, ragged_rollouts, slow_logprobs, small_model, small_task

BOTH = pytest.mark.parametrize("positions", ["coupled", "sequential"])
# Models are in double precision but packed_logprobs rounds logits to single: 6e-8 of logits below about 10.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@BOTH
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_equals_one_by_one(positions, kv_heads, temperature):
    model, prefixes = small_model(kv_heads=kv_heads), ragged_prefixes(positions)
    tokens, mask = ragged_rollouts(prefixes)
    logp, entropy = packed_logprobs(model, prefixes, tokens, mask, PAD, temperature)
    slow_logp, slow_entropy = slow_logprobs(model, prefixes, tokens, mask, temperature)
    assert slow_logp[mask].std() > 0.2  # the model is not near uniform, so a wrong context would show
    torch.testing.assert_close(logp.double(), slow_logp, **CLOSE)
    torch.testing.assert_close(entropy.double(), slow_entropy, **CLOSE)
    assert (logp[~mask] == 0).all() and (entropy[~mask] == 0).all()


@BOTH
def test_packed_gradients_equal_one_by_one(positions):
    model, prefixes = small_model(), ragged_prefixes(positions)
    tokens, mask = ragged_rollouts(prefixes)
    weight = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * mask

    def scalar(logp, entropy):
        return (weight * logp).sum() + 0.1 * (weight * entropy).sum()

    packed = gradients(model, scalar(*packed_logprobs(model, prefixes, tokens, mask, PAD)))
    slow = gradients(model, scalar(*slow_logprobs(model, prefixes, tokens, mask)))
    assert slow.abs().max() > 1
    torch.testing.assert_close(packed, slow, rtol=1e-4, atol=1e-5)


@BOTH
def test_librarys_unpacked_way_is_the_slow_way(positions):
    model, prefixes = small_model(), ragged_prefixes(positions)
    tokens, mask = ragged_rollouts(prefixes)
    for got, slow in zip(unpacked_logprobs(model, prefixes, tokens, mask, PAD, 0.8), slow_logprobs(model, prefixes, tokens, mask, 0.8)):
        torch.testing.assert_close(got.double(), slow, **CLOSE)


@pytest.mark.parametrize(("lengths", "G", "S"), [((4, 2, 1), 3, 2), ((3,), 1, 4), ((2, 5), 2, 0), ((3, 1), 0, 0)])
def test_block_mask_against_a_slow_loop(lengths, G, S):
    P = max(lengths)
    valid = torch.tensor([[c >= P - n for c in range(P)] for n in lengths])
    got = block_mask(valid, G, S)
    T = P + G * S
    assert got.shape == (len(lengths), 1, T, T) and got.dtype == torch.bool
    for n, row, column in itertools.product(range(len(lengths)), range(T), range(T)):
        rollout_of = [None if t < P else (t - P) // S for t in (row, column)] if S else [None, None]
        if row == column:
            sees = True
        elif column > row:
            sees = False
        elif column < P:
            sees = bool(valid[n, column])
        else:
            sees = rollout_of[0] == rollout_of[1]
        assert bool(got[n, 0, row, column]) == sees, (n, row, column)


def test_left_pad_by_hand():
    ids, positions, valid = left_pad([Prefix([7, 8, 9], [0, 1, 2], 3, 4), Prefix([5], [4], 5, 2)], pad_id=PAD)
    assert ids.tolist() == [[7, 8, 9], [PAD, PAD, 5]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 4]]
    assert valid.tolist() == [[True, True, True], [False, False, True]]


def test_a_rollout_sees_no_other():
    model, prefixes = small_model(), ragged_prefixes("coupled")
    tokens, mask = ragged_rollouts(prefixes)
    before, _ = packed_logprobs(model, prefixes, tokens, mask, PAD)
    changed = tokens.clone()
    changed[:, 1] = ZERO + (tokens[:, 1] == ZERO).long()  # every token of rollout 1 becomes another
    after, _ = packed_logprobs(model, prefixes, changed, mask, PAD)
    assert torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 2], after[:, 2])
    assert (before[:, 1] - after[:, 1]).abs()[mask[:, 1]].max() > 0.1


def test_a_rollout_depends_on_all_of_its_past_and_on_nothing_later():
    model, prefixes = small_model(), ragged_prefixes("sequential", shown=(2,))
    tokens, mask = ragged_rollouts(prefixes, G=2)
    tokens[0, 1], mask[0, 1] = torch.randint(EOS, 6, (tokens.shape[2],), generator=torch.Generator().manual_seed(5)), True
    before, _ = packed_logprobs(model, prefixes, tokens, mask, PAD)
    for place in range(tokens.shape[2]):
        changed = tokens.clone()
        changed[0, 1, place] = EOS + (tokens[0, 1, place] == EOS).long()
        moved = (packed_logprobs(model, prefixes, changed, mask, PAD)[0] - before)[0, 1].abs() > 1e-6
        assert not moved[:place].any() and moved[place:].all(), place
    for place in range(len(prefixes[0].ids)):  # the prompt and the revealed part are context
        ids = list(prefixes[0].ids)
        ids[place] = EOS
        other = [Prefix(ids, prefixes[0].positions, prefixes[0].next_position, prefixes[0].max_new)]
        assert ((packed_logprobs(model, other, tokens, mask, PAD)[0] - before)[0, 1].abs() > 1e-7).all()


def test_padding_and_junk_outside_the_mask_change_nothing():
    model, prefixes = small_model(), ragged_prefixes("coupled")
    tokens, mask = ragged_rollouts(prefixes)
    before, _ = packed_logprobs(model, prefixes, tokens, mask, PAD)
    junk = torch.where(mask, tokens, EOS)
    torch.testing.assert_close(packed_logprobs(model, prefixes, junk, mask, pad_id=ZERO)[0], before, **CLOSE)


def test_one_token_rollouts():
    """S = 1: nothing is read but the prefix."""
    model, prefixes = small_model(), ragged_prefixes("sequential", shown=(10, 8))
    tokens = torch.tensor([[[EOS], [ZERO]], [[ZERO], [EOS]]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    logp, entropy = packed_logprobs(model, prefixes, tokens, mask, PAD)
    slow_logp, slow_entropy = slow_logprobs(model, prefixes, tokens, mask)
    torch.testing.assert_close(logp.double(), slow_logp, **CLOSE)
    torch.testing.assert_close(entropy.double(), slow_entropy, **CLOSE)


class Watched(torch.nn.Module):
    """A model whose output layer remembers which hidden states it was asked for; the rest of their gradient is what the loss gives to hidden states."""

    def __init__(self, model):
        super().__init__()
        self.model, self.hidden, self.device = model, None, model.device

    def get_decoder(self):
        def run(**inputs):
            out = self.model.get_decoder()(**inputs)
            self.hidden, self.inputs = out.last_hidden_state, inputs["input_ids"]
            self.hidden.retain_grad()
            return out

        return run

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()


@BOTH
def test_prompt_and_revealed_prefix_get_no_loss_and_the_end_token_does(positions):
    """The gradient of the loss is 0 at every place whose next token is given, and not 0 at each place whose next token was written, <eos> too."""
    task = small_task(positions=positions)
    shown = [0, 4, 7]
    prefixes = [make_prefix(task, s, k) for s, k in zip(task.train, shown)]
    written = [[task.rationale_ids(s)[k:] + [EOS], [ZERO, EOS]] for s, k in zip(task.train, shown)]
    S = max(p.max_new for p in prefixes)
    tokens = torch.tensor([[w + [PAD] * (S - len(w)) for w in group] for group in written])
    mask = torch.tensor([[[i < len(w) for i in range(S)] for w in group] for group in written])
    watched = Watched(small_model(positions))
    logp, _ = packed_logprobs(watched, prefixes, tokens, mask, PAD)
    policy_loss(logp, logp.detach(), torch.tensor([[1.0, -0.7]] * 3), mask / 10).backward()
    touched = watched.hidden.grad.abs().amax(dim=-1) > 1e-9  # [N, T] places whose next token has a loss
    P = max(len(p.ids) for p in prefixes)
    for n, group in enumerate(written):
        expected = [False] * (P - 1) + [True]  # of the shared part only its last place predicts a written token
        for w in group:
            expected += [i < len(w) - 1 for i in range(S - 1)]  # the place before each written token, the one before <eos> among them
        assert touched[n].tolist() == expected
    # <eos> itself: its own log-probability has gradient through the place before it
    end_only = torch.zeros_like(mask, dtype=torch.float32)
    end_only[1, 1, 1] = 1.0
    grad = torch.autograd.grad((packed_logprobs(watched, prefixes, tokens, mask, PAD)[0] * end_only).sum(), watched.hidden)[0].abs().amax(dim=-1)
    assert grad[1, P + (S - 1)] > 1e-6 and (grad > 0).sum() == 1


@pytest.mark.parametrize("positions", ["coupled", "sequential"])
def test_one_pass_and_two_give_the_same_hidden_states_and_gradients(positions):
    model, prefixes = small_model(positions), ragged_prefixes(positions)
    tokens = torch.randint(3, 5, (len(prefixes), 4, 7), generator=torch.Generator().manual_seed(0))
    results = []
    for way in (one_pass_hidden, two_pass_hidden):
        model.zero_grad()
        hidden = way(model, prefixes, tokens, PAD)
        hidden.square().sum().backward()
        results.append((hidden.detach(), {n: p.grad.clone() for n, p in model.get_decoder().named_parameters()}))
    (one, one_grads), (two, two_grads) = results
    assert float((one - two).abs().max()) < 1e-5
    for name, grad in one_grads.items():
        torch.testing.assert_close(two_grads[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


def test_the_cheaper_way_is_taken(monkeypatch):
    """Long rollouts after a short prefix take two passes, short ones after a long prefix take one; a model that is wide for the length always takes one."""
    prefixes, taken = ragged_prefixes("coupled"), []
    for name in ("one_pass_hidden", "two_pass_hidden"):
        original = getattr(packing, name)
        monkeypatch.setattr(packing, name, lambda *args, name=name, original=original: taken.append(name) or original(*args))
    P = max(len(p.ids) for p in prefixes)
    for width in (16, 64):  # the longer of the two is 4 P + 2 = 66 tokens: more than 3 * 16, less than 3 * 64
        for S in (2, 3 * P + 3):
            tokens = torch.full((len(prefixes), 1, S), 3)
            packing.packed_logprobs(small_model(width=width), prefixes, tokens, torch.ones_like(tokens, dtype=torch.bool), PAD)
    assert P + 3 * P + 2 == 66 and taken == ["one_pass_hidden", "two_pass_hidden", "one_pass_hidden", "one_pass_hidden"]


def chunks_of(monkeypatch, rows):
    """Let at most so many rows of logits be made at once; a list that fills with how many were."""
    sizes, original = [], packing._chunk_logprobs
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", rows * 6)  # a vocabulary of 6
    monkeypatch.setattr(packing, "_chunk_logprobs", lambda head, r, *args: sizes.append(len(r)) or original(head, r, *args))
    return sizes


@pytest.mark.parametrize("rows", [0, 1, 5, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_chunk_at_a_time_is_the_whole(monkeypatch, rows, temperature):
    """Log-probabilities, entropies and gradients; no chunk is larger than allowed, and each is made again for its gradient."""
    model, prefixes = small_model(), ragged_prefixes("coupled")
    tokens, mask = ragged_rollouts(prefixes)
    weight = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * mask

    def run():
        logp, entropy = packed_logprobs(model, prefixes, tokens, mask, PAD, temperature)
        return logp, entropy, gradients(model, (weight * logp).sum() + 0.1 * (weight * entropy).sum())

    whole = run()
    sizes = chunks_of(monkeypatch, rows)
    cut = run()
    n = int(mask.sum())
    assert n > 40 and max(sizes) <= max(rows, 1) and sum(sizes) == 2 * n
    for a, b in zip(cut, whole):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert (cut[0][~mask] == 0).all() and (cut[1][~mask] == 0).all() and whole[2].abs().max() > 1
    with torch.no_grad():
        sizes.clear()
        assert torch.equal(packed_logprobs(model, prefixes, tokens, mask, PAD, temperature)[0], cut[0])
    assert sum(sizes) == n  # without a gradient, once


def test_what_fits_is_one_chunk_and_what_does_not_is_not(monkeypatch):
    model, prefixes = small_model(), ragged_prefixes("coupled")
    tokens, mask = ragged_rollouts(prefixes)
    n = int(mask.sum())
    sizes = chunks_of(monkeypatch, n)
    packed_logprobs(model, prefixes, tokens, mask, PAD)
    assert sizes == [n]
    sizes = chunks_of(monkeypatch, n - 1)
    packed_logprobs(model, prefixes, tokens, mask, PAD)
    assert sorted(set(sizes)) == [1, n - 1]


def test_a_chunk_keeps_hidden_states_for_its_gradient_and_no_logits(monkeypatch):
    """What autograd holds back between the two passes: with chunks nothing as large as a chunk's logits, [rows, vocabulary]."""
    rows, V, D = 64, 4096, 8
    head, tokens = torch.nn.Linear(D, V, bias=False), torch.zeros(1, 1, rows, dtype=torch.long)
    hidden, mask = torch.randn(1, 1, rows, D, requires_grad=True), torch.ones(1, 1, rows, dtype=torch.bool)

    class Model:
        def get_output_embeddings(self):
            return head

    def largest_kept():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel() if t is not head.weight and t.shape != (D, V) else 0) or t, lambda t: t):
            logp, entropy = packing._logprobs_at(Model(), hidden, tokens, mask, 1.0)
        (logp + entropy).sum().backward()
        return max(kept)

    assert largest_kept() == rows * V
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", 16 * V)
    assert largest_kept() <= rows * D


def test_no_token_at_all_is_no_chunk():
    model, prefixes = small_model(), ragged_prefixes("coupled", shown=(0, 3))
    tokens = torch.full((2, 2, 3), PAD)
    logp, entropy = packed_logprobs(model, prefixes, tokens, torch.zeros(2, 2, 3, dtype=torch.bool), PAD)
    assert logp.shape == entropy.shape == (2, 2, 3) and not logp.any() and not entropy.any()
