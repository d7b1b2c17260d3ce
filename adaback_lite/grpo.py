"""Group-relative policy optimisation: advantages, weights, loss. Pure functions of tensors.

What is here is GRPO's core (arXiv 2402.03300) with three well-known variants of the normalisation. Left out, because
no run in this project needs it: a value model, an importance correction for a second sampling engine, dual clipping.

B samples, G rollouts each, S generated tokens at most.
"""

from typing import Literal

import torch


def advantages(rewards: torch.Tensor, scale_std: bool = True) -> torch.Tensor:  # [B, G] -> [B, G]
    """How much better each rollout did than its group: reward minus the group's mean, over the group's standard deviation if wanted.

    Example: rewards [1, 0, 0, 0] -> [0.75, -0.25, -0.25, -0.25] unscaled; the deviation is 0.433, so scaled [1.73, -0.58, -0.58, -0.58].
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred = centred * has_gradient(rewards)[:, None]  # equal rewards, say 1.1 ten times, need not equal their rounded mean
    if not scale_std:
        return centred
    return centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-6)


def has_gradient(rewards: torch.Tensor) -> torch.Tensor:  # [B, G] -> [B] bool
    """Groups whose rewards differ. In the others every advantage is 0: skip them before the forward pass, it changes nothing."""
    return (rewards != rewards[:, :1]).any(dim=1)


def token_weights(mask: torch.Tensor, norm: Literal["grpo", "dapo", "dr_grpo"] = "grpo", max_length: int | None = None) -> torch.Tensor:
    """The weight of each generated token in the loss, so that loss = sum(weight * token loss). [B, G, S] -> [B, G, S]

    Computed once, over the whole batch: the batch may then be cut into microbatches, and groups without gradient left out,
    and the gradient stays the same.
        grpo     mean within each rollout, then over rollouts: long rollouts count as much as short ones
        dapo     mean over all tokens of the batch
        dr_grpo  sum over `max_length` (constant), then mean over rollouts: no reward for being short or long
    """
    mask = mask.float()
    rollouts = mask.shape[0] * mask.shape[1]
    if norm == "grpo":
        return mask / mask.sum(dim=2, keepdim=True).clamp(min=1) / rollouts
    if norm == "dapo":
        return mask / mask.sum().clamp(min=1)
    return mask / (max_length or mask.shape[2]) / rollouts


def policy_loss(
    logp: torch.Tensor,  # [B, G, S] of the tokens under the policy that is trained
    old_logp: torch.Tensor,  # [B, G, S] under the policy that sampled them, without gradient
    advantage: torch.Tensor,  # [B, G]
    weight: torch.Tensor,  # [B, G, S] from token_weights; 0 where there is no token
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:  # scalar
    """The clipped surrogate. On the first pass logp equals old_logp, the ratio is 1 and its gradient is that of -advantage * logp."""
    ratio = torch.exp(logp - old_logp)  # [B, G, S]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratio * advantage[..., None], clipped * advantage[..., None])  # [B, G, S]
    return -(weight * gain).sum()


def kl_loss(logp: torch.Tensor, reference_logp: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """KL to a reference policy by the "k3" estimate exp(d) - d - 1, d = reference - policy: never negative, unbiased. All [B, G, S]."""
    d = reference_logp - logp
    return (weight * (torch.exp(d) - d - 1)).sum()
