"""A group as one sequence: the shared part once, then G rollouts, each seeing the shared part and itself.

G rollouts of one sample share their prompt and revealed prefix (P tokens). Written out G times that is G * (P + S) tokens to
run the model on; packed it is P + G * (S - 1):

    columns   | shared: P tokens, padded on the left | rollout 0: S-1 | rollout 1: S-1 | ...
    positions | as in the prompt                     | each goes on from the prompt's end
    sees      | itself, causally                     | the shared part and itself, causally

The last token of a rollout is predicted but never read, hence S - 1. The first token of all G rollouts is predicted at the
same place, the last shared column.

A Prefix is what one sample's rollouts share; N of them with similar lengths make a microbatch.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Prefix:
    """Prompt and revealed prefix of one sample."""

    ids: list[int]  # token ids [P]
    positions: list[int]  # position ids [P]
    next_position: int  # position id of the first token that is written
    max_new: int  # tokens that may be written, the end token included


def left_pad(prefixes: list[Prefix], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, position ids and validity, each [N, P], padded on the left."""
    P = max(len(p.ids) for p in prefixes)
    ids = torch.tensor([[pad_id] * (P - len(p.ids)) + p.ids for p in prefixes])
    positions = torch.tensor([[0] * (P - len(p.ids)) + p.positions for p in prefixes])
    lengths = torch.tensor([len(p.ids) for p in prefixes])
    valid = torch.arange(P)[None] >= P - lengths[:, None]
    return ids, positions, valid


def block_mask(valid: torch.Tensor, G: int, S: int) -> torch.Tensor:
    """Who sees whom: True where row may look at column. valid [N, P] -> [N, 1, T, T] with T = P + G * S.

    With G = 0 this is the ordinary causal mask. Every token sees itself, padding too: a row that sees nothing would be NaN.
    """
    P = valid.shape[1]
    T = P + G * S
    column = torch.arange(T)
    segment = torch.where(column < P, 0, (column - P) // max(S, 1) + 1)  # [T] 0 is shared
    same = (segment[None, :] == 0) | (segment[None, :] == segment[:, None])  # [T, T]
    allowed = same & (column[None, :] <= column[:, None])  # [T, T]
    usable = torch.cat([valid, valid.new_ones(valid.shape[0], G * S)], dim=1)  # [N, T]
    mask = allowed[None] & usable[:, None, :] | torch.eye(T, dtype=torch.bool)[None]  # [N, T, T]
    return mask[:, None]


def packed_logprobs(model, prefixes: list[Prefix], tokens: torch.Tensor, mask: torch.Tensor, pad_id: int, temperature: float = 1.0):
    """Log-probabilities of every generated token, from one packed pass.

    Args:
        tokens: [N, G, S] what was generated; anything where `mask` is False.
        mask: [N, G, S] True for real tokens, the end token among them.

    Returns (logp [N, G, S], entropy [N, G, S] in nats), both 0 where there is no token.
    """
    N, G, S = tokens.shape
    ids, positions, valid = left_pad(prefixes, pad_id)  # [N, P] each
    P = ids.shape[1]
    start = torch.tensor([p.next_position for p in prefixes])  # [N]
    suffix_ids = tokens[:, :, :-1].reshape(N, G * (S - 1))
    suffix_positions = (start[:, None, None] + torch.arange(S - 1)).expand(N, G, S - 1).reshape(N, G * (S - 1))
    hidden = model.get_decoder()(
        input_ids=torch.cat([ids, suffix_ids], dim=1).to(model.device),
        position_ids=torch.cat([positions, suffix_positions], dim=1).to(model.device),
        attention_mask=block_mask(valid, G, S - 1).to(model.device),
        use_cache=False,
    ).last_hidden_state  # [N, P + G(S-1), D]
    first = hidden[:, P - 1, None, None].expand(-1, G, -1, -1)  # [N, G, 1, D]
    rest = hidden[:, P:].reshape(N, G, S - 1, hidden.shape[-1])  # [N, G, S-1, D]
    return _logprobs_at(model, torch.cat([first, rest], dim=2), tokens, mask, temperature)


def unpacked_logprobs(model, prefixes: list[Prefix], tokens: torch.Tensor, mask: torch.Tensor, pad_id: int, temperature: float = 1.0):
    """The same by the obvious way, each rollout a full sequence of its own: what the tests and the benchmark compare with."""
    N, G, S = tokens.shape
    repeated = [p for p in prefixes for _ in range(G)]
    logp, entropy = packed_logprobs(model, repeated, tokens.reshape(N * G, 1, S), mask.reshape(N * G, 1, S), pad_id, temperature)
    return logp.reshape(N, G, S), entropy.reshape(N, G, S)


def _logprobs_at(model, hidden, tokens, mask, temperature):
    """Vocabulary logits for real tokens only, never for the prompt: they are the largest tensor of an update."""
    mask = mask.to(hidden.device)
    logits = model.get_output_embeddings()(hidden[mask]).float() / temperature  # [M, V]
    log_probs = logits.log_softmax(dim=-1)
    empty = torch.zeros(mask.shape, device=logits.device)
    logp = empty.masked_scatter(mask, log_probs.gather(1, tokens.to(mask.device)[mask][:, None])[:, 0])
    entropy = empty.masked_scatter(mask, -(log_probs.exp() * log_probs).sum(dim=-1))
    return logp, entropy
