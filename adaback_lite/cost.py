"""What a training step costs: plain arithmetic from a model's shape, the lengths in a batch and a machine's few speeds.

    cost = step_cost(Work(reveal=0.5), SHAPES["llama-3.1-8b"], Machine(flops=5e14, bandwidth=2.7e12), lora_rank=16, checkpointing=True)
    cost.decode.seconds, cost.decode.bytes, cost.seconds

Memory, and what both say of 1B, 8B and 70B on GPUs, stand in cost_predictions.py.

PREFILL reads prompts and revealed prefixes. DECODE writes the rest, one token at a time, and for each reads all weights and all cached keys and
values. UPDATE reads everything again, forward and backward. Each is a sum of three kinds of work:

    matrices    2 FLOPs for each token and weight;                          their bytes are the weights
    attention   4 * (heads * head size) FLOPs for each pair of tokens;      its bytes are the cached keys and values
    the rest    no FLOPs to speak of;                                       its bytes are activations and logits

The first two take the longer of FLOPs / (FLOP/s) and bytes / (bytes/s), the rest its bytes, and each pass through a layer and each written token a
fixed time. Two ways of taking the same step are compared:

    packed      ours: prompt and prefix once a group, in sampling and update (rollout.py, packing.py); a row stops at its own length; groups without a
                gradient are left out of the update (trainer.py)
    padded      TRL with transformers' generate: prompt and prefix once a rollout, padded to the batch's longest; every row is written to the
                longest remainder; all groups are updated (tests/benchmarks/README.md); the cache concatenates, which copies it for each token

Left out: rewards, moving data between GPUs, repeating keys and values for grouped heads, merging an adapter, KL, SFT. tests/benchmarks/cost.py
checks the model against the clock of a CPU, and data/results/cost.json says how far it is off. Not checked there: GPUs, bfloat16, adapters, gradient
checkpointing, grouped heads, and the cost of logits, for the vocabulary has six tokens.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, model_validator

from .config import GRPOSettings, Settings, TrainerSettings
from .errors import UserError

PARTS = ("prefill", "decode", "update")
# Reads and writes of each logit, in float32, from the output layer to a drawn token: counted in rollout.py. An update's loss has about as many
# (packing.py). TRL's have fewer; the same number is taken for both, so that the ways differ by their lengths alone.
LOGIT_TOUCHES = 20
# Reads and writes of the cache for a written token: attention reads it; transformers' DynamicCache, which concatenates, reads and writes it before.
CACHE_TOUCHES = {"packed": 1, "padded": 3}


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: norms, attention with grouped keys and values, a gated MLP of three matrices, no biases."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = False  # the output layer is the embedding
    head_size: int = 0  # 0 is width / heads
    source: str = ""

    @property
    def query_width(self) -> int:
        """heads * head size."""
        return self.heads * (self.head_size or self.width // self.heads)

    @property
    def kv_width(self) -> int:
        """Numbers in one token's keys of one layer; its values are as many."""
        return self.kv_heads * (self.head_size or self.width // self.heads)

    @property
    def cache_column(self) -> int:
        """Numbers that one token adds to the cache: keys and values of all layers."""
        return 2 * self.kv_width * self.layers

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's seven matrices: q, k, v, o, gate, up, down."""
        w, q, k, m = self.width, self.query_width, self.kv_width, self.intermediate
        return [(w, q), (w, k), (w, k), (q, w), (w, m), (w, m), (m, w)]

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of all layers."""
        return self.layers * sum(a * b for a, b in self.matrices)

    @property
    def head_weights(self) -> int:
        """Weights of the output layer."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All: matrices, norms, embedding, and an output layer of its own where it is not tied."""
        return self.layer_weights + (2 * self.layers + 1) * self.width + self.head_weights * (1 if self.tied else 2)

    @property
    def activations(self) -> int:
        """Numbers that a forward pass of one token moves through memory besides weights and cache: inputs and outputs of each operation, counted in
        transformers' Llama layer, which fuses none. Two norms and two sums: 20 widths; rotary positions: 8 of queries and keys; the MLP's gate: 5 of the
        intermediate size; the seven matrices: what goes in and comes out."""
        w, q, k, m = self.width, self.query_width, self.kv_width, self.intermediate
        return self.layers * (20 * w + 8 * (q + k) + 5 * m + sum(a + b for a, b in self.matrices))

    @property
    def kept(self) -> int:
        """Numbers of one token that a layer keeps for its backward pass, roughly: 7 widths, 4 of queries and keys, 4 of the intermediate size."""
        return 7 * self.width + 4 * (self.query_width + self.kv_width) + 4 * self.intermediate

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on all matrices of all layers (peft's all-linear leaves out the output layer)."""
        return self.layers * sum(rank * (a + b) for a, b in self.matrices)


def shape_of(config, source: str = "") -> Shape:
    """The shape of a transformers configuration (LlamaConfig and its like)."""
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        head_size=getattr(config, "head_dim", None) or 0,
        source=source,
    )


# From the config.json of each on the Hugging Face Hub; tiny from PolicySettings' defaults.
SHAPES: dict[str, Shape] = {
    "tiny": Shape(2, 64, 4, 4, 256, 6, source="adaback_lite.policy.tiny_model"),
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152, tied=True, source="HuggingFaceTB/SmolLM2-135M-Instruct"),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, tied=True, source="meta-llama/Llama-3.2-1B"),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 14336, 128256, source="meta-llama/Llama-3.1-8B"),
    "llama-3.1-70b": Shape(80, 8192, 64, 8, 28672, 128256, source="meta-llama/Llama-3.1-70B"),
}


# ---------------------------------------------------------------- work and machines


class Work(Settings):
    """The lengths of one step. A rollout is as long as what is hidden of the rationale, as if the policy wrote rationales of the right length."""

    prompts: int = Field(TrainerSettings().batch_size, ge=1, le=100_000, description="samples a step, B")
    group: int = Field(GRPOSettings().group_size, ge=2, le=1024, description="rollouts a sample, G")
    prompt: int = Field(128, ge=1, le=1_000_000, description="tokens of a prompt, P (our choice; gsm-symbolic has 117 on average by SmolLM2's tokenizer)")
    rationale: int = Field(128, ge=1, le=1_000_000, description="tokens after a prompt, m, the end token among them (our choice; gsm-symbolic has 96)")
    reveal: float = Field(0.0, ge=0, le=1, description="share of them that is revealed, rho, on average; one stays hidden in any case")
    longest: int | None = Field(None, ge=1, description="tokens of the longest remainder in the batch; the remainders are spread evenly around their mean. None: all are equal")
    grad_groups: float = Field(1.0, ge=0, le=1, description="share of groups whose rewards differ, so that they carry a gradient")

    @model_validator(mode="after")
    def _check(self):
        mean = self.mean_hidden
        if self.longest is not None and not mean <= self.longest <= min(self.rationale, 2 * mean - 1):
            raise ValueError(f"longest is {self.longest}, but with a mean remainder of {mean} it must lie between {mean} and {min(self.rationale, 2 * mean - 1)}")
        return self

    @property
    def mean_hidden(self) -> int:
        """Tokens that a rollout writes, on average."""
        return max(round((1 - self.reveal) * self.rationale), 1)

    def hidden(self) -> np.ndarray:
        """[B] tokens that each sample's rollouts write, in ascending order."""
        mean = self.mean_hidden
        longest = (self.longest or mean) if self.prompts > 1 else mean  # one sample has no spread
        return np.rint(np.linspace(2 * mean - longest, longest, self.prompts)).astype(int)


class Machine(Settings):
    """The speeds that are reached, not those on the data sheet. Several GPUs count as one that is so many times as fast and large."""

    flops: float = Field(ge=1e6, description="FLOP/s that large matrix products reach")
    bandwidth: float = Field(ge=1e6, description="bytes/s that reading weights and cache reaches")
    step_seconds: float = Field(0.0, ge=0, description="seconds of fixed cost for each token that is written, whatever the model and the batch")
    layer_seconds: float = Field(0.0, ge=0, description="seconds of fixed cost for each pass through a layer, forward; backward has twice as many")
    launches_ahead: bool = Field(False, description="whether a pass takes the longer of its fixed cost and its work, as on a GPU, and not their sum")
    number_bytes: int = Field(4, ge=1, le=8, description="bytes of a weight, an activation and a cached number: 4 in float32, 2 in bfloat16")


class How(Settings):
    """How a step is taken."""

    way: Literal["packed", "padded"] = Field("packed", description="as here, or as TRL with transformers' generate does it")
    lora_rank: int = Field(0, ge=0, le=1024, description="rank of a LoRA adapter on all linear layers, from whose merged weights is sampled; 0 trains all weights")
    checkpointing: bool = Field(False, description="gradient checkpointing: the update runs the layers forward once more")
    rows: int = Field(TrainerSettings().rollout_rows, ge=1, description="packed: sequences sampled at once; padded samples all at once")
    update_tokens: int = Field(TrainerSettings().update_tokens, ge=1, description="tokens of one forward and backward pass; one group (packed) or one row (padded) at least")


def make(kind: type[Settings], **values) -> Any:
    """A checked Work, Machine or How. Raises UserError in one sentence for an unknown name or a value out of bounds."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"{kind.__name__}'s setting '{problem['loc'][0]}' is {problem['input']!r}" if problem["loc"] else f"{kind.__name__}"
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{kind.__name__} has no setting '{problem['loc'][0]}'; it has: {', '.join(kind.model_fields)}.") from None
        what = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"].replace("Input should be ", "it should be ")
        raise UserError(f"{where}{', but' if problem['loc'] else ':'} {what}.") from None


# ---------------------------------------------------------------- the cost of a step


@dataclass(frozen=True)
class Part:
    """One part of a step."""

    tokens: float  # that the model reads, padding included
    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """One step."""

    prefill: Part
    decode: Part
    update: Part

    @property
    def sampling_seconds(self) -> float:
        return self.prefill.seconds + self.decode.seconds

    @property
    def seconds(self) -> float:
        return self.sampling_seconds + self.update.seconds


def step_cost(work: Work, shape: Shape, machine: Machine, **how) -> Cost:
    """Seconds, tokens, FLOPs and bytes of one step of GRPO with one gradient step. `how`: the settings of How. Raises UserError for one that is wrong."""
    how = make(How, **how)
    touches, sample, update = CACHE_TOUCHES[how.way], *COUNTS[how.way]
    chunks, passes = sample(work, how), update(work, shape, how)
    prefill = [_forward(shape, machine, *c.prefill) for c in chunks]
    decode = [_forward(shape, machine, *c.decode, touches, machine.step_seconds) for c in chunks]
    whole = _sum([_backward(shape, machine, p, how) for p in passes])
    # Clipping reads the gradients twice and writes them once, AdamW reads four numbers for each weight and writes three; in float32.
    optimizer = 10 * 4 * (shape.adapter(how.lora_rank) if how.lora_rank else shape.parameters) if passes else 0
    return Cost(_sum(prefill), _sum(decode), Part(whole.tokens, whole.flops, whole.bytes + optimizer, whole.seconds + optimizer / machine.bandwidth))


def _sum(parts: list[Part]) -> Part:
    return Part(*(float(sum(np.sum(getattr(p, name)) for p in parts)) for name in ("tokens", "flops", "bytes", "seconds")))


def _seconds(machine: Machine, matrices, attention, rest, fixed):
    """Of one pass. Matrices and attention as (FLOPs, bytes), rest in bytes, the fixed cost in seconds."""
    work = sum(np.maximum(flops / machine.flops, moved / machine.bandwidth) for flops, moved in (matrices, attention)) + rest / machine.bandwidth
    return np.maximum(work, fixed) if machine.launches_ahead else work + fixed


def _forward(shape: Shape, machine: Machine, tokens, pairs, columns, logits, touches=1, fixed=0.0) -> Part:
    """A forward pass; of decoding one for each value of the counts, which then are arrays.

    tokens: read; pairs: of a token and one that it may look at, masked ones included; columns: of the cache that are read; logits: tokens that get some.
    """
    every = np.ones_like(tokens)  # each pass reads all weights
    matrices = 2 * (tokens * shape.layer_weights + logits * shape.head_weights), every * machine.number_bytes * (shape.layer_weights + shape.head_weights)
    attention = 4 * pairs * shape.query_width * shape.layers, touches * columns * shape.cache_column * machine.number_bytes
    rest = tokens * shape.activations * machine.number_bytes + logits * shape.vocabulary * 4 * LOGIT_TOUCHES
    seconds = _seconds(machine, matrices, attention, rest, fixed + shape.layers * machine.layer_seconds)
    return Part(tokens, matrices[0] + attention[0], matrices[1] + attention[1] + rest, seconds)


def _backward(shape: Shape, machine: Machine, p: "Pass", how: How) -> Part:
    """One forward and backward pass of the update.

    A matrix product costs 1 forward, 1 for the gradient of its input and 1 for that of its weights, which frozen weights have not; attention 1 and 2.
    """
    more = 1 if how.checkpointing else 0
    products, again = (2 if how.lora_rank else 3), 1 if p.logits_twice else 0
    layers = (products + more) * shape.layer_weights + (3 + more) * shape.adapter(how.lora_rank)
    flops = 2 * (p.tokens * layers + p.logits * (products + again) * shape.head_weights)
    moved = machine.number_bytes * ((products + more) * shape.layer_weights + (products + again) * shape.head_weights)
    attention = (3 + more) * 4 * p.pairs * shape.query_width * shape.layers
    rest = (3 + more) * p.tokens * shape.activations * machine.number_bytes + (1 + again) * p.logits * shape.vocabulary * 4 * LOGIT_TOUCHES
    seconds = _seconds(machine, (flops, moved), (attention, 0), rest, (3 + more) * shape.layers * machine.layer_seconds)
    return Part(*(p.share * x for x in (p.tokens, flops + attention, moved + rest, seconds)))


# ---------------------------------------------------------------- how many tokens, pairs and columns


class Chunk(NamedTuple):
    """What is sampled at once. Counts as `_forward` takes them; of decoding arrays [S - 1]: the first token needs no pass of its own."""

    prefill: tuple
    decode: tuple
    held: int  # columns of the cache at the end


class Pass(NamedTuple):
    """A forward and backward pass of the update, of which `share` is taken."""

    tokens: int
    pairs: int
    logits: int  # tokens that get some
    share: float
    logits_twice: bool  # they are computed once more in the backward pass


def _packed_sampling(work: Work, how: How) -> list[Chunk]:
    """As rollout.sample_rollouts."""
    from .rollout import pack_size

    chunks, G, hidden = [], work.group, work.hidden()[::-1]  # the shortest prefix first
    at_once = max(how.rows // G, 1)
    for start in range(0, len(hidden), at_once):
        h = hidden[start : start + at_once]
        n, P, S = len(h), int(work.prompt + work.rationale - h.min()), int(h.max())
        g, s = pack_size(G, S), np.arange(S - 1)
        active = (h[None] > s[:, None]).sum(axis=1) * G  # [S - 1] a row is dropped after its last token
        columns = P + g * (s + 1)  # that a row of g rollouts has
        chunks.append(Chunk((n * P, n * P * P, n * P, n), (active, active * columns, active // g * columns, active), n * G // g * (P + g * S)))
    return chunks


def _padded_sampling(work: Work, how: How) -> list[Chunk]:
    """As transformers' generate: every rollout a row of its own, written to the longest remainder."""
    hidden, R = work.hidden(), work.prompts * work.group
    P, S = int(work.prompt + work.rationale - hidden.min()), int(hidden.max())
    columns, every = P + 1 + np.arange(S - 1), np.full(S - 1, R)
    return [Chunk((R * P, R * P * P, R * P, R), (every, every * columns, every * columns, every), R * (P + S))]


def _packed_update(work: Work, shape: Shape, how: How) -> list[Pass]:
    """As trainer.update and packing.packed_logprobs, in the mean over which groups carry a gradient."""
    from .packing import LONG_FOR_ITS_WIDTH, TWO_PASSES_ABOVE, microbatches

    passes, G, hidden = [], work.group, work.hidden()
    prefixes = (work.prompt + work.rationale - hidden).tolist()
    for batch in microbatches(prefixes, hidden.tolist(), G, how.update_tokens) if work.grad_groups else []:
        n, P, S = len(batch), max(prefixes[b] for b in batch), int(hidden[batch].max())
        rest = G * (S - 1)
        one_pass = rest <= TWO_PASSES_ABOVE * P or P + rest <= LONG_FOR_ITS_WIDTH * shape.width or how.checkpointing
        pairs = n * (P + rest) ** 2 if one_pass else n * (P * P + rest * (P + S - 1))
        logits = G * int(hidden[batch].sum())
        passes.append(Pass(n * (P + rest), pairs, logits, work.grad_groups, logits > logits_at_once(shape)))
    return passes


def _padded_update(work: Work, shape: Shape, how: How) -> list[Pass]:
    """As TRL: rows padded on both sides to the batch's longest."""
    hidden, R = work.hidden(), work.prompts * work.group
    S = int(hidden.max())
    T = int(work.prompt + work.rationale - hidden.min()) + S
    at_once = min(max(how.update_tokens // T, 1), R)
    sizes = [at_once] * (R // at_once) + ([R % at_once] if R % at_once else [])
    return [Pass(n * T, n * T * T, n * (S + 1), 1.0, False) for n in sizes]


def logits_at_once(shape: Shape) -> int:
    """Tokens whose logits packing.py makes at once."""
    from .packing import LOGITS_AT_ONCE

    return max(LOGITS_AT_ONCE // shape.vocabulary, 1)


COUNTS = {"packed": (_packed_sampling, _packed_update), "padded": (_padded_sampling, _padded_update)}
