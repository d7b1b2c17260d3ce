"""Advantages, weights and losses against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.helpers  # noqa: F401  (hypothesis' profile)
from adaback_lite.grpo import advantages, has_gradient, kl_loss, policy_loss, token_weights

A = {"rtol": 1e-4, "atol": 1e-5}


def close(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected), **A)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1.1, 0.1, 1.1, 0.1], [0, 0, 0, 0]])
    close(advantages(rewards, scale_std=False), [[0.75, -0.25, -0.25, -0.25], [0.5, -0.5, 0.5, -0.5], [0.0, 0, 0, 0]])
    close(advantages(rewards), [[1.73205, -0.57735, -0.57735, -0.57735], [1.0, -1, 1, -1], [0.0, 0, 0, 0]])
    assert has_gradient(rewards).tolist() == [True, True, False]


rewards_lists = st.integers(2, 12).flatmap(lambda g: st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 1.1]), min_size=g, max_size=g), min_size=1, max_size=5))


@given(rewards_lists, st.booleans())
def test_advantages_sum_to_zero_and_equal_rewards_give_none(rewards, scale):
    rewards = torch.tensor(rewards)
    a = advantages(rewards, scale)
    assert a.sum(dim=1).abs().max() < 1e-4
    assert (a[~has_gradient(rewards)] == 0).all()
    assert (a[has_gradient(rewards)].abs().amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.3, 1.0, 1.1])
def test_equal_rewards_have_no_advantage_whatever_their_mean_rounds_to(reward):
    """Ten times 1.1 has a single-precision mean one bit off, which the deviation of 1e-6 would blow up to 0.1."""
    for G in range(2, 20):
        assert (advantages(torch.full((1, G), reward)) == 0).all()


MASK = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 0, 0, 0]]], dtype=torch.bool)


def test_weights_by_hand():
    """B = 2, G = 2, S = 4; the rollouts have 2, 4, 1 and 1 tokens."""
    close(token_weights(MASK, "grpo"), [[[1 / 8, 1 / 8, 0, 0], [1 / 16] * 4], [[1 / 4, 0, 0, 0], [1 / 4, 0, 0, 0]]])
    close(token_weights(MASK, "dapo"), (MASK / 8).tolist())
    close(token_weights(MASK, "dr_grpo"), (MASK / 16).tolist())
    close(token_weights(MASK, "dr_grpo", max_length=10), (MASK / 40).tolist())


lengths = st.integers(1, 5).flatmap(lambda g: st.lists(st.lists(st.integers(1, 7), min_size=g, max_size=g), min_size=1, max_size=5))


@given(lengths)
def test_weights_sum_to_one(n):
    mask = torch.arange(7) < torch.tensor(n)[..., None]
    for norm in ("grpo", "dapo"):
        weight = token_weights(mask, norm)
        assert float(weight.sum()) == pytest.approx(1.0, abs=1e-5)
        assert (weight[~mask] == 0).all() and (weight[mask] > 0).all()
    assert (token_weights(mask, "grpo").sum(dim=2) - 1 / mask[..., 0].numel()).abs().max() < 1e-6  # each rollout counts the same


def test_a_rollout_without_tokens_gets_no_weight_and_no_nan():
    mask = torch.tensor([[[1, 1], [0, 0]]], dtype=torch.bool)
    for norm in ("grpo", "dapo", "dr_grpo"):
        assert token_weights(mask, norm)[0, 1].tolist() == [0, 0]


def test_clipped_loss_by_hand():
    """One token a rollout, weight 1 each. ratio 1.5 and 0.5, each with a positive and a negative advantage, limits 0.8 and 1.3."""
    old = torch.zeros(1, 4, 1)
    logp = torch.log(torch.tensor([[[1.5], [0.5], [1.5], [0.5]]])).requires_grad_()
    advantage = torch.tensor([[3.0, 2.0, -2.0, -1.0]])
    loss = policy_loss(logp, old, advantage, torch.ones(1, 4, 1), clip_low=0.2, clip_high=0.3)
    # min(1.5 * 3, 1.3 * 3) + min(0.5 * 2, 0.8 * 2) + min(1.5 * -2, 1.3 * -2) + min(0.5 * -1, 0.8 * -1) = 3.9 + 1 - 3 - 0.8
    assert float(loss.detach()) == pytest.approx(-(3.9 + 1.0 - 3.0 - 0.8))
    (grad,) = torch.autograd.grad(loss, logp)
    close(grad.flatten(), [0.0, -1.0, 3.0, 0.0])  # clipped ones have none, the others -ratio * advantage


def test_gradient_of_a_policy_with_two_actions_by_hand():
    """z = (ln 3, 0): p = (3/4, 1/4). The first pass, a token each: action 0 with advantage 2/3, action 1 twice with -1/3 and -1/2."""
    z = torch.tensor([math.log(3.0), 0.0], requires_grad=True)
    log_p = z.log_softmax(-1)
    logp = torch.stack([log_p[0], log_p[1], log_p[1]])[None, :, None]
    loss = policy_loss(logp, logp.detach(), torch.tensor([[2 / 3, -1 / 3, -1 / 2]]), torch.full((1, 3, 1), 1 / 3))
    # d log p0 = (1/4, -1/4), d log p1 = (-3/4, 3/4); -(1/3) * (2/3 * 1/4 + 5/6 * 3/4) = -(1/3) * (1/6 + 5/8) = -19/72
    (grad,) = torch.autograd.grad(loss, z)
    close(grad, [-19 / 72, 19 / 72])
    # A later pass: the same, sampled at p = (1/2, 1/2), so the ratios are 3/2 and 1/2; nothing is clipped
    old = torch.full((1, 3, 1), math.log(0.5))
    log_p = z.log_softmax(-1)
    loss = policy_loss(torch.stack([log_p[0], log_p[1], log_p[1]])[None, :, None], old, torch.tensor([[2 / 3, -1 / 3, -1 / 2]]), torch.full((1, 3, 1), 1 / 3), 1.0, 1.0)
    assert float(loss.detach()) == pytest.approx(-(1 / 3) * (1.5 * 2 / 3 - 0.5 * 5 / 6))
    (grad,) = torch.autograd.grad(loss, z)
    close(grad, [-(1 / 3) * (1.5 / 6 + 0.5 * 5 / 8), (1 / 3) * (1.5 / 6 + 0.5 * 5 / 8)])


def test_kl_by_hand():
    logp, reference = torch.tensor([[[math.log(0.5), 0.0]]], requires_grad=True), torch.tensor([[[math.log(0.25), 0.0]]])
    loss = kl_loss(logp, reference, torch.tensor([[[0.5, 0.5]]]))
    assert float(loss.detach()) == pytest.approx(0.5 * (0.5 - math.log(0.5) - 1))
    (grad,) = torch.autograd.grad(loss, logp)
    close(grad, [[[0.25, 0.0]]])  # 0.5 * (1 - reference / policy)


def test_kl_estimate_is_unbiased():
    """Its mean under the policy is the true KL(policy, reference)."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    assert float(kl_loss(p.log(), q.log(), p)) == pytest.approx(float((p * (p / q).log()).sum()))


@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=20))
def test_kl_is_never_negative(pairs):
    logp, reference = torch.tensor(pairs, dtype=torch.float64).T
    assert (kl_loss(logp, reference, torch.ones_like(logp)) >= -1e-12).all()


@settings(max_examples=50)
@given(rewards_lists, st.sampled_from(["grpo", "dapo", "dr_grpo"]), st.booleans(), st.integers(0, 1000))
def test_groups_without_gradient_may_be_left_out(rewards, norm, scale, seed):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.tensor(rewards)
    B, G = rewards.shape
    mask = torch.arange(5) < torch.randint(1, 6, (B, G, 1), generator=g)
    logits = torch.randn(B, G, 5, 4, generator=g, requires_grad=True)
    logp = logits.log_softmax(-1)[..., 0]
    weight, a, keep = token_weights(mask, norm), advantages(rewards, scale), has_gradient(rewards)
    whole = policy_loss(logp, logp.detach(), a, weight)
    (grad,) = torch.autograd.grad(whole, logits, retain_graph=True)
    assert (grad[~keep] == 0).all() and (grad[~mask] == 0).all()
    (part,) = torch.autograd.grad(policy_loss(logp[keep], logp[keep].detach(), a[keep], weight[keep]), logits)
    torch.testing.assert_close(part, grad, rtol=0, atol=1e-7)
