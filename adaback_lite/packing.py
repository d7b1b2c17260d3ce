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
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

# Two passes are the cheaper way where the rollouts have more than 3 tokens for each of the prefix and the packed sequence is long for the model's width,
# so that looking at pairs of tokens costs as much as the matrix products (measured on the tiny policy; SmolLM2, 576 wide, is better off with one).
TWO_PASSES_ABOVE, LONG_FOR_ITS_WIDTH = 3, 3
LOGITS_AT_ONCE = 2**23  # tokens times vocabulary; 32 MB in float32


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
    """Log-probabilities of every generated token, each shared part being read once.

    Args:
        tokens: [N, G, S] what was generated; anything where `mask` is False.
        mask: [N, G, S] True for real tokens, the end token among them.

    Returns (logp [N, G, S], entropy [N, G, S] in nats), both 0 where there is no token.
    """
    P, (_, G, S) = max(len(p.ids) for p in prefixes), tokens.shape
    # Gradient checkpointing runs each layer twice, which a cache that is written on the way does not survive.
    few = G * (S - 1) <= TWO_PASSES_ABOVE * P or LONG_FOR_ITS_WIDTH * model.get_output_embeddings().weight.shape[1] >= P + G * (S - 1)
    one_pass = few or model.is_activation_checkpointing
    hidden = one_pass_hidden if one_pass else two_pass_hidden
    return _logprobs_at(model, hidden(model, prefixes, tokens, pad_id), tokens, mask, temperature)


def one_pass_hidden(model, prefixes: list[Prefix], tokens: torch.Tensor, pad_id: int) -> torch.Tensor:  # [N, G, S] -> [N, G, S, D]
    """The last hidden states from which each of the tokens is predicted, by the packed sequence drawn above."""
    N, G, S = tokens.shape
    ids, positions, valid = left_pad(prefixes, pad_id)  # [N, P] each
    suffix_ids, suffix_positions = _suffixes(prefixes, tokens)  # [N, G, S-1] each
    hidden = model.get_decoder()(
        input_ids=torch.cat([ids, suffix_ids.flatten(1)], dim=1).to(model.device),
        position_ids=torch.cat([positions, suffix_positions.flatten(1)], dim=1).to(model.device),
        attention_mask=block_mask(valid, G, S - 1).to(model.device),
        use_cache=False,
    ).last_hidden_state  # [N, P + G(S-1), D]
    P = ids.shape[1]
    first = hidden[:, P - 1, None, None].expand(-1, G, -1, -1)  # [N, G, 1, D]
    rest = hidden[:, P:].unflatten(1, (G, S - 1))  # [N, G, S-1, D]
    return torch.cat([first, rest], dim=2)


def two_pass_hidden(model, prefixes: list[Prefix], tokens: torch.Tensor, pad_id: int) -> torch.Tensor:  # [N, G, S] -> [N, G, S, D]
    """The same in two passes: the shared part once, then the G rollouts as rows over copies of its keys and values, through which gradients flow.

    As many tokens, but no pairs of rollouts to mask out: cheaper where the rollouts are long and the prefix short.
    """
    N, G, S = tokens.shape
    ids, positions, valid = left_pad(prefixes, pad_id)  # [N, P] each
    suffix_ids, suffix_positions = _suffixes(prefixes, tokens)  # [N, G, S-1] each
    decoder, cache = model.get_decoder(), DynamicCache(config=model.config)
    causal = block_mask(valid, 0, 0).to(model.device)
    shared = decoder(input_ids=ids.to(model.device), position_ids=positions.to(model.device), attention_mask=causal, past_key_values=cache, use_cache=True)
    first = shared.last_hidden_state[:, -1, None, None].expand(-1, G, -1, -1)  # [N, G, 1, D]
    cache.batch_repeat_interleave(G)
    sees = block_mask(valid, 1, S - 1)[:, :, valid.shape[1] :]  # [N, 1, S-1, P + S-1]
    rest = decoder(
        input_ids=suffix_ids.flatten(0, 1).to(model.device),
        position_ids=suffix_positions.flatten(0, 1).to(model.device),
        attention_mask=sees.repeat_interleave(G, dim=0).to(model.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # [N*G, S-1, D]
    return torch.cat([first, rest.unflatten(0, (N, G))], dim=2)


def _suffixes(prefixes, tokens):
    """Token and position ids of all rollouts but for their last token, which is never read. [N, G, S-1] each."""
    start = torch.tensor([p.next_position for p in prefixes])  # [N]
    ids = tokens[:, :, :-1]
    return ids, (start[:, None, None] + torch.arange(ids.shape[2])).expand(ids.shape)


def unpacked_logprobs(model, prefixes: list[Prefix], tokens: torch.Tensor, mask: torch.Tensor, pad_id: int, temperature: float = 1.0):
    """The same by the obvious way, each rollout a full sequence of its own: what the tests and the benchmark compare with."""
    N, G, S = tokens.shape
    repeated = [p for p in prefixes for _ in range(G)]
    tokens, mask = tokens.reshape(N * G, 1, S), mask.reshape(N * G, 1, S)
    logp, entropy = _logprobs_at(model, one_pass_hidden(model, repeated, tokens, pad_id), tokens, mask, temperature)
    return logp.reshape(N, G, S), entropy.reshape(N, G, S)


def _logprobs_at(model, hidden, tokens, mask, temperature):
    """Vocabulary logits for real tokens only, never for the prompt, and a chunk at a time: whole, they would be the largest tensor of an update.

    Of each chunk only the hidden states are kept for the gradient; its logits are computed again when the gradient comes through.
    """
    mask = mask.to(hidden.device)
    rows, wanted = hidden[mask], tokens.to(mask.device)[mask]  # [M, D], [M]
    head = model.get_output_embeddings()
    chunk = max(LOGITS_AT_ONCE // head.weight.shape[0], 1)
    if len(rows) <= chunk:
        parts = [_chunk_logprobs(head, rows, wanted, temperature)]
    else:
        parts = [checkpoint(_chunk_logprobs, head, r, w, temperature, use_reentrant=False) for r, w in zip(rows.split(chunk), wanted.split(chunk))]
    empty = torch.zeros(mask.shape, device=hidden.device)
    logp, entropy = (empty.masked_scatter(mask, torch.cat(values)) for values in zip(*parts))
    return logp, entropy


def _chunk_logprobs(head, rows, wanted, temperature):  # [m, D], [m] -> [m], [m]
    log_probs = (head(rows).float() / temperature).log_softmax(dim=-1)  # [m, V]
    return log_probs.gather(1, wanted[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(dim=-1)


def microbatches(prefix_lengths: list[int], suffix_lengths: list[int], G: int, limit: int) -> list[list[int]]:
    """Groups sorted by length and cut so that a padded microbatch has at most `limit` tokens (one group at least)."""
    batches, current, P, S = [], [], 0, 0
    for b in sorted(range(len(prefix_lengths)), key=lambda b: (prefix_lengths[b], suffix_lengths[b])):
        p, s = max(P, prefix_lengths[b]), max(S, suffix_lengths[b])
        if current and (len(current) + 1) * (p + G * (s - 1)) > limit:
            batches.append(current)
            current, p, s = [], prefix_lengths[b], suffix_lengths[b]
        current, P, S = [*current, b], p, s
    return [*batches, current] if current else batches
