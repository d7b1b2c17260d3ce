"""SFT is plain cross-entropy on the rationale, its sweep picks what held-out data picks, and its batches are fair."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaback_lite import sft
from adaback_lite.policy import clone_trained
from adaback_lite.sft import batch_ids, held_out_loss, rationale_loss
from adaback_lite.trainer import build_policy, build_task, new_state
from tests.helpers import EOS, PAD, gradients, small_config, small_model, small_task, taught_config


@pytest.mark.parametrize("positions", ["coupled", "sequential"])
def test_rationale_loss_is_transformers_own(positions):
    """The same by `labels`, -100 on the prompt: every rationale token and the end token, nothing else."""
    task, model = small_task(positions=positions), small_model(positions)
    samples = task.train[:4]
    loss, tokens = rationale_loss(model, task, samples, PAD)
    ids, labels, places = [], [], []
    for s in samples:
        prompt, at, start = task.prompt_ids(s)
        target = task.rationale_ids(s) + [EOS]
        ids.append(prompt + target)
        labels.append([-100] * len(prompt) + target)
        places.append(at + list(range(start, start + len(target))))
    ids = torch.tensor(ids)
    own = model(input_ids=ids, position_ids=torch.tensor(places), attention_mask=torch.ones_like(ids), labels=torch.tensor(labels)).loss
    assert tokens == 4 * 11
    assert float(loss.detach()) == pytest.approx(float(own.detach()), abs=1e-6)
    torch.testing.assert_close(gradients(model, loss), gradients(model, own), rtol=1e-4, atol=1e-6)


def test_held_out_loss_is_of_the_held_out_inputs_and_needs_no_gradient():
    task, model = small_task(), small_model()
    assert held_out_loss(model, task, PAD, 4096) == float(rationale_loss(model, task, task.val, PAD)[0].detach())
    assert held_out_loss(model, task, PAD, 4096) != float(rationale_loss(model, task, task.test, PAD)[0].detach())
    assert all(p.grad is None for p in model.parameters())


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_batches_hold_no_sample_twice_and_an_epoch_is_a_permutation(n_train, batch_size, seed):
    B = min(batch_size, n_train)
    whole = n_train // B
    for epoch in range(2):
        batches = [batch_ids(n_train, batch_size, seed, epoch * whole + i).tolist() for i in range(whole)]
        assert all(len(b) == B for b in batches)
        picked = [i for b in batches for i in b]
        assert len(set(picked)) == len(picked) and set(picked) <= set(range(n_train))
        if n_train % B == 0:
            assert sorted(picked) == list(range(n_train))


def test_batches_are_a_function_of_seed_and_step():
    def order(seed, steps):
        return [batch_ids(100, 10, seed, s).tolist() for s in steps]

    assert order(0, range(30)) == order(0, range(30)) != order(1, range(30))
    assert order(0, range(10)) != order(0, range(10, 20))  # another epoch, another order
    assert order(0, [17]) == [order(0, range(30))[17]]


def test_every_sample_has_its_turn_when_batches_do_not_divide_them():
    counts = np.bincount(np.concatenate([batch_ids(20, 6, 0, s) for s in range(300)]), minlength=20)  # 100 epochs of 18 of 20
    assert counts.sum() == 1800 and counts.min() > 75  # 90 in the mean, 3 is a standard deviation


def swept(monkeypatch, losses, **settings):
    """Run the stage with the given held-out losses in place of the real ones. (events, state, weights at each look)."""
    config = taught_config(**{"method": "sft", "trainer.sft_max_steps": 20, "trainer.sft_eval_every": 2, **settings})
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    state, looks, told = new_state(config, model, task), [], iter(losses)

    def look(model, *_):
        looks.append(clone_trained(model))
        return next(told)

    monkeypatch.setattr(sft, "held_out_loss", look)
    events = [e for e in sft.sft_steps(state, config, task, PAD) if e]
    return events, state, looks


def is_same(a, b):
    return all(torch.equal(a[k], b[k]) for k in b)


def test_early_stopping_and_the_choice_of_the_learning_rate(monkeypatch):
    """Patience 2. The first rate is best at its second look and stops at its fourth; the second rate is better at its first and stops at its third."""
    events, state, looks = swept(monkeypatch, [0.9, 0.6, 0.7, 0.6, 0.5, 0.8, 0.55])
    assert [(e["lr"], e["step"]) for e in events] == [(0.003, 2), (0.003, 4), (0.003, 6), (0.003, 8), (0.03, 2), (0.03, 4), (0.03, 6)]
    assert (state.sft["winner_lr"], state.sft["winner_loss"]) == (0.03, 0.5)
    assert is_same(state.model.state_dict(), looks[4])  # the best look's weights, not the last ones
    assert state.optimizer.state_dict()["state"] == {}  # RL starts with a fresh optimizer
    assert state.sft["trained_tokens"] == 14 * 6 * 13  # 8 and 6 steps of 6 rationales of 12 tokens and an end


def test_a_later_rate_that_is_no_better_loses(monkeypatch):
    events, state, looks = swept(monkeypatch, [0.5, 0.6, 0.7, 0.5, 0.9, 0.9])
    assert state.sft["winner_lr"] == 0.003 and is_same(state.model.state_dict(), looks[0])


def test_without_early_stopping_the_last_step_is_looked_at(monkeypatch):
    events, state, _ = swept(monkeypatch, [1.0 - 0.1 * i for i in range(8)], **{"trainer.sft_max_steps": 7})
    assert [e["step"] for e in events] == [2, 4, 6, 7] * 2


def test_each_rate_starts_from_the_same_weights(monkeypatch):
    _, _, both = swept(monkeypatch, [0.5, 0.4, 0.5, 0.4], **{"trainer.sft_max_steps": 4})
    _, _, only = swept(monkeypatch, [0.5, 0.4], **{"trainer.sft_max_steps": 4, "trainer.sft_lrs": (0.03,)})
    assert is_same(both[2], only[0]) and is_same(both[3], only[1]) and not is_same(both[0], only[0])


def test_a_first_step_is_adams_on_the_batch():
    config = small_config(**{"method": "sft", "trainer.sft_lrs": (0.01,), "trainer.sft_max_steps": 1})
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    twin = build_policy(config)[0]
    list(sft.sft_steps(new_state(config, model, task), config, task, PAD))
    loss, _ = rationale_loss(twin, task, [task.train[i] for i in batch_ids(20, 6, config.seed, 0)], PAD)
    grad = gradients(twin, loss)
    grad = grad * min(1.0, config.grpo.max_grad_norm / float(grad.norm()))
    before, after = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (twin, model))
    torch.testing.assert_close(after - before, -0.01 * grad / (grad.abs() + 1e-8), rtol=1e-3, atol=2e-6)


def test_sft_learns_what_it_is_shown():
    """Twenty chains of degree 1 (Z_i = X_i): a tiny model gets them and unseen ones."""
    config = taught_config(**{"method": "sft", "task.degree": 1, "trainer.sft_lrs": (0.005,), "trainer.sft_max_steps": 150, "trainer.sft_eval_every": 50, "trainer.batch_size": 20})
    model, tokenizer = build_policy(config)
    task = build_task(config, tokenizer)
    before = held_out_loss(model, task, PAD, 4096)
    state = new_state(config, model, task)
    list(sft.sft_steps(state, config, task, PAD))
    # Of 13 tokens 6 are free bits (ln 2 each), so 0.32 is the floor; guessing Z too is twice that.
    assert held_out_loss(state.model, task, PAD, 4096) < 0.45 < before
