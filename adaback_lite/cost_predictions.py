"""What the model of cost says of GPUs that were not at hand: the memory of a step, how many GPUs hold it, and its seconds. ARITHMETIC, NOT MEASURED.

    predictions()               a table for 1B, 8B and 70B on H100s
    step_cost(Work(reveal=0.5), SHAPES["llama-3.1-8b"], machine_of(GPU(), gpus=2), lora_rank=16, checkpointing=True)      one of its rows
"""

from dataclasses import dataclass

from pydantic import Field

from .config import Settings
from .cost import COUNTS, PARTS, SHAPES, How, Machine, Shape, Work, logits_at_once, make, step_cost
from .errors import UserError


class GPU(Settings):
    """One GPU by its data sheet, and how much of that is reached. Defaults: NVIDIA H100 SXM, from its data sheet; the shares and seconds are our choice."""

    peak_flops: float = Field(989e12, gt=0, description="FLOP/s, bfloat16, dense")
    peak_bandwidth: float = Field(3.35e12, gt=0, description="bytes/s of its memory")
    memory: float = Field(80e9, gt=0, description="bytes of its memory")
    flops_reached: float = Field(0.5, gt=0, le=1, description="share of the FLOP/s that large matrix products reach (our choice)")
    bandwidth_reached: float = Field(0.8, gt=0, le=1, description="share of the bytes/s that is reached (our choice)")
    memory_usable: float = Field(0.9, gt=0, le=1, description="share of the memory that may be filled (our choice)")
    step_seconds: float = Field(1e-3, ge=0, description="seconds of fixed cost for each token that is written: drawing it, and Python (our choice)")
    layer_seconds: float = Field(
        3e-4, ge=0, description="seconds to launch a layer's operations one by one, as transformers does (our choice); next to 0 with CUDA graphs, as in vLLM"
    )


def machine_of(gpu: GPU, gpus: int = 1) -> Machine:
    """So many of these GPUs under tensor parallelism, with IDEAL scaling: n are n times as fast and move no data between them. Optimistic."""
    return Machine(
        flops=gpus * gpu.peak_flops * gpu.flops_reached,
        bandwidth=gpus * gpu.peak_bandwidth * gpu.bandwidth_reached,
        step_seconds=gpu.step_seconds,
        layer_seconds=gpu.layer_seconds,
        launches_ahead=True,
        number_bytes=2,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes that a step needs, the libraries' own not among them."""

    weights: float  # with an adapter twice: as they are, and merged for sampling
    trained: float  # what training adds: gradients, AdamW's moments, weights in float32
    cache: float
    update: float  # what a pass of the update keeps, and its logits

    @property
    def total(self) -> float:
        """Sampling and update follow each other, so the larger of their two needs counts."""
        return self.weights + self.trained + max(self.cache, self.update)


def memory(work: Work, shape: Shape, number_bytes: int = 2, **how) -> Memory:
    """Memory of a step with weights of `number_bytes`. `how` as in step_cost.

    For each trained weight 16 bytes less its own: gradient, and in float32 the weight and two moments. Logits of the update: three copies in float32 (rough).
    """
    how = make(How, **how)
    sample, update = COUNTS[how.way]
    merged = shape.layer_weights if how.lora_rank and how.way == "packed" else 0  # TRL's generate samples through the adapter
    weights = number_bytes * (shape.parameters + merged)
    trained = 16 * shape.adapter(how.lora_rank) if how.lora_rank else (16 - number_bytes) * shape.parameters
    kept = shape.layers * shape.width + shape.kept if how.checkpointing else shape.layers * shape.kept
    passes = [p.tokens * kept * number_bytes + min(p.logits, logits_at_once(shape) if how.way == "packed" else p.logits) * shape.vocabulary * 12 for p in update(work, shape, how)]
    return Memory(weights, trained, number_bytes * shape.cache_column * max(c.held for c in sample(work, how)), max(passes, default=0))


def gpus_needed(need: Memory, gpu: GPU) -> int:
    """The fewest GPUs that hold it, a power of two, as tensor parallelism wants it; all divides evenly between them (optimistic)."""
    n = 1
    while n * gpu.memory * gpu.memory_usable < need.total:
        n *= 2
    return n


def predictions(
    models=("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b"), reveals=(0.0, 0.25, 0.5, 0.75), groups=(4, 8, 16), gpu: GPU | None = None, lora_rank: int = 16, **work
) -> list[dict]:
    """ARITHMETIC, NOT MEASURED: a step of each model, all weights trained and with an adapter, both ways; a row for each. `work`: other settings of Work.

    Remainders are spread as widely as their mean allows, as AdaBack's are at first. Gradient checkpointing, as is TRL's default. For each model and kind
    of training the fewest GPUs on which all its steps in the table fit, so that its rows can be compared. Seconds; memory in 10^9 bytes, all GPUs together.
    """
    gpu, rows = gpu or GPU(), []
    for name in models:
        if name not in SHAPES:
            raise UserError(f"There is no shape of a model {name!r}; there are: {', '.join(SHAPES)}.")
        for rank in (lora_rank, 0):
            steps = []
            for rho, G in [(rho, G) for rho in reveals for G in groups]:
                mean = make(Work, **{**work, "reveal": rho, "group": G})
                one = make(Work, **{**work, "reveal": rho, "group": G, "longest": min(mean.rationale, 2 * mean.mean_hidden - 1)})
                for way in COUNTS:
                    how = {"way": way, "lora_rank": rank, "checkpointing": True}
                    steps.append((one, how, memory(one, SHAPES[name], **how)))
            gpus = max(gpus_needed(need, gpu) for _, _, need in steps)
            for one, how, need in steps:
                cost = step_cost(one, SHAPES[name], machine_of(gpu, gpus), **how)
                about = {"model": name, "trained": "adapter" if rank else "all weights", "reveal": one.reveal, "group": one.group, "way": how["way"], "gpus": gpus}
                rows.append({**about, **{part: getattr(cost, part).seconds for part in PARTS}, "seconds": cost.seconds, "memory_gb": need.total / 1e9})
    return rows
