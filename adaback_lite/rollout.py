"""Sampling: G rollouts of every sample from one prefill of its prompt and revealed prefix."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from .packing import Prefix, block_mask, left_pad


@dataclass(frozen=True)
class Rollouts:
    """What was written. B samples, G rollouts each, S tokens at most."""

    tokens: torch.Tensor  # [B, G, S] token ids, pad where nothing was written
    mask: torch.Tensor  # [B, G, S] True for written tokens, the end token included
    ended: torch.Tensor  # [B, G] whether the end token was written before max_new ran out
    entropy: float  # mean entropy, in nats, of the distributions that were sampled from


PACK = 8  # rollouts that share one row of the cache, at most
PACKED_COLUMNS = 512  # columns that these may add to it; beyond that, looking past the others' columns costs more than it saves


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, with room for what is still to be written.

    transformers' own layer concatenates, which copies everything anew for each token; measured on the tiny policy that was a
    third of the sampling time. `keys` and `values` are views of the filled part of the room.
    """

    room = 0  # columns that will be added after the prefill

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self.filled = key_states, value_states, key_states.shape[-2]
            return self.keys, self.values
        end = self.filled + key_states.shape[-2]
        self._keys[:, :, self.filled : end], self._values[:, :, self.filled : end] = key_states, value_states
        self.filled = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats):
        """Copy the prefill to the rows of its sample, and make the room."""
        self._keys, self._values = (_with_room(x, repeats, self.room) for x in (self.keys, self.values))
        self.keys, self.values = self._keys[:, :, : self.filled], self._values[:, :, : self.filled]

    def keep_first(self, rows: int):
        """Forget all rows but the first ones."""
        self._keys, self._values = self._keys[:rows], self._values[:rows]


def _with_room(x: torch.Tensor, repeats: int, room: int) -> torch.Tensor:  # [n, H, P, d] -> [n * repeats, H, P + room, d]
    n, H, P, d = x.shape
    roomy = x.new_empty(n, repeats, H, P + room, d)
    roomy[:, :, :, :P] = x[:, None]
    return roomy.view(n * repeats, H, P + room, d)


def new_cache(config, room: int) -> Cache:
    """An empty cache with room for so many columns after the prefill; transformers' own where a model has other kinds of layers."""
    usual = DynamicCache(config=config)
    if any(type(layer) is not DynamicLayer for layer in usual.layers):
        return usual
    layers = [RoomyLayer() for _ in usual.layers]
    for layer in layers:
        layer.room = room
    return Cache(layers=layers)


def pack_size(G: int, S: int) -> int:
    """Rollouts that share a row of the cache: a divisor of G, at most PACK, that adds at most PACKED_COLUMNS columns."""
    return max(g for g in range(1, PACK + 1) if G % g == 0 and (g == 1 or g * S <= PACKED_COLUMNS))


def draw(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:  # [R, V], [R] -> [R]
    """One token a row by inverting the cumulative distribution: the first token whose cumulated probability exceeds u.

    One uniform number in [0, 1) a token, whatever the vocabulary: the same noise gives the same tokens, however the batch is cut.
    """
    cumulated = logits.float().softmax(dim=-1).cumsum(dim=-1)
    cumulated /= cumulated[:, -1:].clone()  # rounding must not leave a gap below 1
    return torch.searchsorted(cumulated, u[:, None].contiguous(), right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample_rollouts(model, prefixes: list[Prefix], noise: torch.Tensor, eos_id: int, pad_id: int, temperature: float = 1.0, rows: int = 512) -> Rollouts:
    """Write G rollouts for each of B prefixes.

    Args:
        noise: [B, G, S] uniform in [0, 1), S at least the largest `max_new`; decides every draw.
        rows: sequences in flight at once. Samples are taken in order of length, so that a chunk wastes little on padding.

    Each chunk: prefill its prefixes once, then token by token until all have ended.
    """
    B, G = noise.shape[:2]
    S = max(p.max_new for p in prefixes)
    tokens = torch.full((B, G, S), pad_id)
    mask = torch.zeros(B, G, S, dtype=torch.bool)
    ended = torch.zeros(B, G, dtype=torch.bool)
    entropy, drawn = 0.0, 0
    order = sorted(range(B), key=lambda b: len(prefixes[b].ids))
    for start in range(0, B, max(rows // G, 1)):
        chosen = order[start : start + max(rows // G, 1)]
        chunk = _sample_chunk(model, [prefixes[b] for b in chosen], noise[chosen], eos_id, pad_id, temperature)
        s = chunk.tokens.shape[2]
        tokens[chosen, :, :s], mask[chosen, :, :s], ended[chosen] = chunk.tokens, chunk.mask, chunk.ended
        entropy += chunk.entropy * int(chunk.mask.sum())
        drawn += int(chunk.mask.sum())
    return Rollouts(tokens, mask, ended, entropy / max(drawn, 1))


@torch.inference_mode()
def _sample_chunk(model, prefixes, noise, eos_id, pad_id, temperature) -> Rollouts:
    """One chunk. As in packing.py, g rollouts of a sample lie side by side in one row and share its prefix:

        columns of a row   | prefix: P, padded on the left | token 0 of rollouts 0 ... g-1 | token 1 of rollouts 0 ... g-1 | ...

    and each step feeds the row one token of each rollout, which sees the prefix and its own columns. n samples make
    n * G / g rows. Rows are sorted so that those with the most to write come first; from the end they are dropped when done.
    """
    n, G = noise.shape[:2]
    order = sorted(range(n), key=lambda i: -prefixes[i].max_new)
    prefixes, noise = [prefixes[i] for i in order], noise[order]
    S, device = prefixes[0].max_new, model.device
    g = pack_size(G, S)
    ids, positions, valid = left_pad(prefixes, pad_id)  # [n, P]
    P, R = ids.shape[1], n * G
    cache, decoder, head = new_cache(model.config, S * g), model.get_decoder(), model.get_output_embeddings()
    roomy = isinstance(cache.layers[0], RoomyLayer)

    hidden = decoder(input_ids=ids.to(device), position_ids=positions.to(device), attention_mask=block_mask(valid, 0, 0).to(device), past_key_values=cache, use_cache=True)
    logits = head(hidden.last_hidden_state[:, -1]).repeat_interleave(G, dim=0)  # [R, V]
    cache.batch_repeat_interleave(G // g)

    u = noise.reshape(R, -1).to(device)  # [R, S]
    limit = torch.tensor([p.max_new for p in prefixes]).repeat_interleave(G).to(device)  # [R]
    next_position = torch.tensor([p.next_position for p in prefixes]).repeat_interleave(G).view(-1, g).to(device)  # [R/g, g]
    own = torch.eye(g, dtype=torch.bool).repeat(1, S)[None].expand(R // g, -1, -1)  # [R/g, g, S*g]
    sees = torch.cat([valid.repeat_interleave(G // g, dim=0)[:, None].expand(-1, g, -1), own], dim=2)[:, None]  # [R/g, 1, g, P + S*g]
    sees = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(~sees, torch.finfo(model.dtype).min).to(device)  # additive, so that it is converted once

    tokens = torch.full((R, S), pad_id, device=device)
    mask = torch.zeros(R, S, dtype=torch.bool, device=device)
    ended = torch.zeros(R, dtype=torch.bool, device=device)
    entropy, active = torch.zeros((), device=device, dtype=torch.float64), R
    for s in range(S):
        writing = (~ended & (s < limit))[:active]
        rows = writing.view(-1, g).any(dim=1).nonzero()
        if len(rows) == 0:
            break
        if roomy and (int(rows[-1]) + 1) * g < active:
            active = (int(rows[-1]) + 1) * g
            writing, logits, sees = writing[:active], logits[:active], sees[: active // g]
            for layer in cache.layers:
                layer.keep_first(active // g)
        log_probs = (logits.float() / temperature).log_softmax(dim=-1)  # [active, V]
        token = draw(log_probs, u[:active, s])  # [active]
        tokens[:active, s] = torch.where(writing, token, pad_id)
        mask[:active, s] = writing
        # xlogy, so that a token of probability 0 adds 0 and not NaN
        entropy -= (torch.special.xlogy(log_probs.exp(), log_probs.exp()).sum(dim=-1) * writing).sum()
        ended[:active] |= writing & (token == eos_id)
        if s + 1 < S:
            hidden = decoder(
                input_ids=tokens[:active, s].view(-1, g),
                position_ids=next_position[: active // g] + s,
                attention_mask=sees[..., : P + g * (s + 1)],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = head(hidden).view(active, -1)
    back = torch.tensor(order).argsort()
    written = [x.reshape(n, G, *x.shape[1:]).cpu()[back] for x in (tokens, mask, ended)]
    return Rollouts(*written, float(entropy) / max(int(mask.sum()), 1))
