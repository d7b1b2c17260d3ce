"""Every setting once: its type, default, bounds and one line of help.

The command line, the notebooks' parameters and `config.yaml` are all made from these classes. A setting that stands
nowhere in the paper is marked "our choice". Unknown names are refused; a number given as text ('1e-4') is a number.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError

CONFIG_VERSION = 1
MAX_LENGTH = 64

Method = Literal["adaback", "rl", "sft", "sft+rl", "sft+adaback", "r3", "r3-staged", "uft", "anneal", "frontier", "constant"]
METHODS: tuple[str, ...] = get_args(Method)

TaskName = Literal[
    "parity",
    "gsm8k", "gsm8k-base7", "gsm8k-tensor2", "gsm8k-tensor3", "gsm8k-tensor4",
    "gsm-symbolic", "gsm-symbolic-base7", "gsm-symbolic-tensor2", "gsm-symbolic-tensor3", "gsm-symbolic-tensor4",
    "math", "deepscaler",
]  # fmt: skip
TASKS: tuple[str, ...] = get_args(TaskName)


class Settings(BaseModel):
    """Base of all groups: frozen, and no name it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class TaskSettings(Settings):
    """What is learnt. Chain-of-Parities: Z_i = Z_{i-1} xor Y_i xor X_i, with Y_i free (paper). All others are word problems, for language models."""

    name: TaskName = Field("parity", description="the task; -base7 writes all numbers in base 7, -tensor2 puts two problems into one prompt (paper)")
    length: int = Field(16, ge=1, le=MAX_LENGTH, description="parity: chain length L, bits in the input and steps in the rationale")
    degree: int = Field(3, ge=1, le=8, description="parity: bits in each step's parity: 1 copies X_i, 2 = X_i xor Y_i, 3 = the paper's, 4 and more add X_{i-1}, X_{i-2}, ...")
    data: str = Field("", description="word problems: a folder or .jsonl file in the authors' format; empty takes the data set from the Hub (gsm-symbolic needs neither)")
    shots: int = Field(0, ge=0, le=16, description="word problems: worked examples before the question, taken from the training problems (paper: not found)")
    notes: bool = Field(False, description="gsm8k: keep the calculator notes <<48/2=24>> in the rationale (our choice: off, the equation stands beside it anyway)")
    max_new: int = Field(256, ge=4, le=8192, description="word problems: tokens that an output may have for each problem in the prompt, when nothing is shown")
    room: float = Field(2.0, ge=1, le=100, description="word problems: in training an output may have this many times the hidden tokens, and 16 more, within max_new (our choice)")
    check_seconds: float = Field(5.0, gt=0, le=600, description="math, deepscaler: time limit for checking one answer")
    n_train: int = Field(1024, ge=1, le=1_000_000, description="training inputs; of word problems at most what there is")
    n_val: int = Field(256, ge=1, le=100_000, description="held-out inputs that early stopping and target_accuracy look at")
    n_test: int = Field(512, ge=1, le=100_000, description="test inputs, looked at once, at the end of a run")
    format_reward: float = Field(0.0, ge=0, le=1, description="reward for a well-formed output, right or wrong, on top of the 1 for a right one (paper: 0.1 without SFT)")


class PolicySettings(Settings):
    """The model that is trained."""

    name: str = Field("tiny", min_length=1, description="'tiny', a small Llama built from these settings; or a causal LM: a name that 'adaback models' lists, a Hub name, a folder, a .gguf file")
    revision: str = Field("", description="Hub name: the commit, branch or tag to load; empty is the one pinned for listed models, else the newest")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model is; 'auto' takes a GPU if there is one, for tiny the CPU")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number type of frozen weights and of computing; 'auto': bfloat16 on a GPU with LoRA, else float32")
    quantize: Literal["none", "nf4"] = Field("none", description="nf4: frozen weights in 4 bits, NF4 with double quantisation (bitsandbytes); needs LoRA")
    lora_rank: int = Field(0, ge=0, le=1024, description="rank of the LoRA adapter that is trained in place of the weights; 0 trains all weights")
    lora_alpha: float = Field(32.0, gt=0, le=4096, description="LoRA: the adapter's output is scaled by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="LoRA: dropout before the adapter, in updates only")
    lora_targets: str = Field("all-linear", min_length=1, description="LoRA: the linear layers that get an adapter: 'all-linear', or names as q_proj,v_proj")
    sampling: Literal["merged", "adapter"] = Field("merged", description="LoRA: sample from a dense copy with the adapter merged in (faster, where memory allows), or through the adapter")
    checkpointing: bool = Field(False, description="gradient checkpointing: less memory in the update for about a third more time")
    base: Literal["copy", "none"] = Field("copy", description="where tiny starts: 'copy' is pretrained on copying and format, never on parities; 'none' is random")
    positions: Literal["coupled", "sequential"] = Field("coupled", description="position ids: 'coupled' gives X_i and Y_i the same one, 'sequential' counts on as usual")
    layers: int = Field(2, ge=1, le=16, description="transformer layers of tiny")
    width: int = Field(64, ge=8, le=1024, description="hidden width of tiny")
    heads: int = Field(4, ge=1, le=16, description="attention heads of tiny")
    kv_heads: int = Field(4, ge=1, le=16, description="key-value heads of tiny; fewer make the cache smaller")
    rope_theta: float = Field(50.0, gt=1, le=1e6, description="rotary base frequency of tiny; small, because its contexts are short")

    @model_validator(mode="after")
    def _check(self):
        if self.width % (2 * self.heads):
            raise ValueError(f"policy.width ({self.width}) must be a multiple of twice policy.heads ({self.heads})")
        if self.heads % self.kv_heads:
            raise ValueError(f"policy.heads ({self.heads}) must be a multiple of policy.kv_heads ({self.kv_heads})")
        if self.quantize != "none" and not self.lora_rank:
            raise ValueError("policy.quantize nf4 freezes the weights, so something else must be trained: set policy.lora_rank, for example to 16")
        return self


class CurriculumSettings(Settings):
    """How much of the rationale is shown. Which settings count depends on the method; each says so."""

    tau: float = Field(0.5, ge=0, le=1.5, description="adaback, frontier: a group whose mean reward reaches tau counts as solved (paper: swept, default unknown)")
    alpha: float = Field(0.05, ge=0, le=1, description="adaback: weight of the newest interval in the averages that give an unseen sample its first interval (not in the paper)")
    ema_init: Literal["both", "max", "none"] = Field("both", description="adaback: which ends of an unseen sample's interval come from the averages; 'none' starts every sample at [0, 1] (our choice)")
    zero_prob: float = Field(0.1, ge=0, le=1, description="adaback: probability that a visit shows nothing, whatever the interval says (paper: 0.1)")
    zero_updates: Literal["never", "success", "always"] = Field("never", description="adaback: whether such a forced visit updates the interval (not in the paper; our choice)")
    recovery: float = Field(0.0, ge=0, le=1, description="adaback: on a failure, rho_max moves this share of the way back to 1; 0 is the paper's one-way ratchet (our addition)")
    unit: Literal["token", "step"] = Field("token", description="all: cut the rationale at a token (paper) or only between reasoning steps, in word problems lines (our addition)")
    min_hidden: int = Field(1, ge=1, le=10_000, description="all: at least so many tokens of the rationale stay hidden, in word problems always the answer (our choice)")
    cuts: int = Field(6, ge=1, le=1000, description="r3, r3-staged: start states a sample, evenly spaced, the whole task among them (R3: 5 or 6)")
    horizon: int = Field(600, ge=1, le=10_000_000, description="r3-staged, uft, anneal: steps until the schedule has reached 0")
    shape: Literal["linear", "cosine"] = Field("linear", description="anneal: how rho falls from 1 to 0 over the horizon")
    uft_start: float = Field(0.95, ge=0, le=1, description="uft: chance at first that a step is shown (UFT: 0.95)")
    uft_end: float = Field(0.05, ge=0, le=1, description="uft: the same at the end of the horizon; after it nothing is shown (UFT: 0.05)")
    probe: float = Field(0.25, ge=0, le=1, description="frontier: share of visits that probe below the frontier (MFC: 0.25)")
    patience: int = Field(3, ge=1, le=1000, description="frontier: failures at the frontier in a row before it rises (MFC: 3)")
    rise: float = Field(0.1, gt=0, le=1, description="frontier: how far it rises (MFC: 0.1)")
    rho: float = Field(0.5, ge=0, le=1, description="constant: the share that is always shown")


class GRPOSettings(Settings):
    """The policy update."""

    group_size: int = Field(8, ge=2, le=1024, description="rollouts a sample, G (paper: 8)")
    lr: float = Field(3e-4, gt=0, le=1, description="learning rate of the RL stage (paper, for 1B models: 1e-6)")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="the gradient is scaled down to this norm (our choice)")
    scale_std: bool = Field(True, description="divide advantages by the group's standard deviation")
    norm: Literal["grpo", "dapo", "dr_grpo"] = Field("grpo", description="average over tokens: within each rollout (grpo), over all of the batch (dapo), or by a constant length (dr_grpo)")
    passes: int = Field(1, ge=1, le=64, description="updates from one batch of rollouts; clipping acts from the second on")
    clip_low: float = Field(0.2, ge=0, le=1, description="the ratio is clipped below 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, le=10, description="the ratio is clipped above 1 + clip_high")
    kl: float = Field(0.0, ge=0, le=10, description="weight of the KL term to the starting policy (paper: 0)")
    entropy: float = Field(0.0, ge=0, le=1, description="weight of an entropy bonus (paper: 0)")
    temperature: float = Field(1.0, gt=0, le=10, description="sampling temperature, in training and in evaluation")


class TrainerSettings(Settings):
    """How long, how often, how large."""

    max_steps: int = Field(1000, ge=0, le=100_000_000, description="RL steps after which a run stops")
    target_accuracy: float = Field(0.98, ge=0, le=1, description="stop when held-out accuracy reaches this; 0 never stops for it")
    batch_size: int = Field(32, ge=1, le=100_000, description="samples a step, each with its group of rollouts; all of them if there are fewer (paper: 256, of what is not said)")
    eval_every: int = Field(25, ge=1, le=1_000_000, description="steps between held-out evaluations")
    checkpoint_every: int = Field(100, ge=1, le=1_000_000, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="checkpoints kept, newest first")
    keep_outputs: int = Field(1, ge=0, le=1_000_000, description="every so many steps the outputs are kept in the run's outputs.jsonl, for people to look at; 0 keeps none")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 leaves torch's own choice. Results are bit-identical only for equal numbers of threads")
    rollout_rows: int = Field(512, ge=1, le=1_000_000, description="sequences sampled at once; changes memory and speed only")
    update_tokens: int = Field(4096, ge=1, le=100_000_000, description="padded tokens of one forward and backward pass; changes memory and speed only")
    sft_lrs: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((3e-4, 1e-3, 3e-3), min_length=1, max_length=16, description="sft: learning rates tried; the one with the best held-out loss is kept")
    sft_max_steps: int = Field(1500, ge=1, le=10_000_000, description="sft: steps at most for each learning rate, of trainer.batch_size rationales each")
    sft_eval_every: int = Field(50, ge=1, le=1_000_000, description="sft: steps between looks at the held-out loss")
    sft_patience: int = Field(4, ge=1, le=10_000, description="sft: looks without a better held-out loss before a learning rate is given up")


class Config(Settings):
    """One run."""

    version: int = Field(CONFIG_VERSION, description="version of this file's format")
    method: Method = Field("adaback", description="how it is trained")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of data, sampling and curriculum")
    out: str = Field("runs/run", min_length=1, description="folder of the run")
    task: TaskSettings = TaskSettings()
    policy: PolicySettings = PolicySettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    grpo: GRPOSettings = GRPOSettings()
    trainer: TrainerSettings = TrainerSettings()

    @model_validator(mode="after")
    def _check(self):
        if self.version != CONFIG_VERSION:
            raise ValueError(f"version is {self.version}, this adaback-lite reads version {CONFIG_VERSION}; write the file anew with this release, or use the release that wrote it")
        if self.task.name != "parity" and self.policy.name == "tiny":
            raise ValueError(f"policy.name is tiny, which knows no words, but task.name is {self.task.name}; set policy.name, for example to smollm2, or start from --preset cpu")
        if self.task.name == "parity" and self.curriculum.min_hidden > 2 * self.task.length:
            raise ValueError(f"curriculum.min_hidden ({self.curriculum.min_hidden}) is more than the rationale's {2 * self.task.length} tokens")
        return self

    @property
    def uses_sft(self) -> bool:
        """Whether an SFT stage comes first."""
        return self.method.startswith("sft")

    @property
    def curriculum_name(self) -> str | None:
        """Name of the RL stage's curriculum; None where there is no RL stage."""
        last = self.method.removeprefix("sft").removeprefix("+")
        return {"": None, "rl": "none"}.get(last, last)


# The settings that may change while a run trains (control.py), and stand first in the widgets. Every change is an event of the run.
LIVE: tuple[str, ...] = ("curriculum.alpha", "curriculum.tau", "curriculum.zero_prob", "grpo.lr")

# Settings to start from for a language model; options given beside a preset win. For parity the defaults above are the preset.
_LANGUAGE_MODEL = {
    "policy.name": "smollm2", "policy.lora_rank": 16, "grpo.lr": 1e-4, "task.shots": 1,
    "trainer.sft_lrs": [1e-4, 3e-4], "trainer.target_accuracy": 0.0,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {  # two steps, to see that everything works: CI, and a first try
        **_LANGUAGE_MODEL, "task.n_train": 8, "task.n_val": 4, "task.n_test": 4, "task.max_new": 48,
        "trainer.batch_size": 2, "trainer.max_steps": 2, "trainer.eval_every": 2, "trainer.checkpoint_every": 1, "trainer.sft_max_steps": 2, "trainer.sft_eval_every": 1,
        "grpo.group_size": 4, "trainer.rollout_rows": 32, "trainer.update_tokens": 2048,
    },
    "cpu": {  # a laptop without a GPU: SmolLM2 in 4 bits, some 40 minutes
        **_LANGUAGE_MODEL, "policy.quantize": "nf4", "task.n_train": 32, "task.n_val": 16, "task.n_test": 32, "task.max_new": 160,
        "trainer.batch_size": 4, "trainer.max_steps": 24, "trainer.eval_every": 24, "trainer.checkpoint_every": 2, "trainer.sft_max_steps": 40, "trainer.sft_eval_every": 10,
        "trainer.rollout_rows": 32, "trainer.update_tokens": 2048,
    },
    "gpu": {  # one GPU of 16 GB or more
        **_LANGUAGE_MODEL, "policy.quantize": "nf4", "task.n_train": 6000, "task.n_val": 200, "task.n_test": 1000, "task.max_new": 300,
        "trainer.batch_size": 32, "trainer.max_steps": 500, "trainer.eval_every": 50, "trainer.checkpoint_every": 25, "trainer.sft_max_steps": 600,
        "trainer.rollout_rows": 256, "trainer.update_tokens": 16384,
    },
}  # fmt: skip


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset by dotted name, to be given to `train` or `make_config` with others. Raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"There is no preset '{name}'; there are: {', '.join(PRESETS)}.")
    return dict(PRESETS[name])


GROUPS: dict[str, type[Settings]] = {
    name: field.annotation for name, field in Config.model_fields.items() if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
}


def setting_names() -> dict[str, Any]:
    """Every setting's dotted name, in order, with its pydantic field: {'method': ..., 'task.length': ..., ...}."""
    names = {}
    for name, field in Config.model_fields.items():
        if name in GROUPS:
            names |= {f"{name}.{inner}": f for inner, f in GROUPS[name].model_fields.items()}
        else:
            names[name] = field
    return names


def bounds(field) -> tuple[float | None, float | None]:
    """Lowest and highest allowed value of a setting's field; None where there is none."""
    low = high = None
    for m in field.metadata:
        if isinstance(m, annotated_types.Ge | annotated_types.Gt):
            low = m.ge if isinstance(m, annotated_types.Ge) else m.gt
        if isinstance(m, annotated_types.Le | annotated_types.Lt):
            high = m.le if isinstance(m, annotated_types.Le) else m.lt
    return low, high


def make_config(settings: dict[str, Any] | None = None, **named) -> Config:
    """A checked configuration from nested groups or dotted names: `make_config({"curriculum.tau": 0.3}, method="rl")`.

    Raises UserError in one sentence for an unknown name, a value out of bounds or of the wrong type.
    """
    nested: dict[str, Any] = {}
    for name, value in {**(settings or {}), **named}.items():
        group, dot, inner = str(name).partition(".")
        if dot:
            block = nested.setdefault(group, {})
            if not isinstance(block, dict) or group not in GROUPS:
                raise UserError(_unknown(str(name)))
            block[inner] = value
        elif isinstance(value, Settings):
            nested[group] = value.model_dump()
        elif isinstance(value, dict):
            nested.setdefault(group, {}).update(value)
        else:
            nested[group] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def override(config: Config, settings: dict[str, Any]) -> Config:
    """`config` with some dotted names changed."""
    return make_config({**flat(config), **settings})


def load_config(path: str | os.PathLike) -> Config:
    """Read a YAML file. Raises UserError when it is missing, not YAML, or not a valid configuration."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no configuration file {path}; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _no_yaml(path, error) from None
    return config_from_yaml(text, str(path))


def config_from_yaml(text: str, where: str = "The text") -> Config:
    """A configuration from YAML. Raises UserError, in one sentence that begins with `where`, when it is not YAML or not valid."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _no_yaml(where, error) from None
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no settings; it should look like 'method: adaback', one setting a line.")
    try:
        return make_config(data)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _no_yaml(where, error: Exception) -> UserError:
    return UserError(f"{where} cannot be read as YAML ({' '.join(str(error).split())}); mend or replace it.")


def dump_config(config: Config) -> str:
    """The complete configuration as YAML; `load_config` gives the same one back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(config: Config) -> dict[str, Any]:
    """All settings by dotted name."""
    values = config.model_dump()
    return {n: values[n.split(".")[0]][n.split(".")[1]] if "." in n else values[n] for n in setting_names()}


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else " 'adaback train --help' lists all."
    return f"There is no setting '{name}'.{hint}"


def _sentence(error: ValidationError) -> str:
    """The first problem of a pydantic error in one plain sentence."""
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
    if problem["type"] == "extra_forbidden":
        return _unknown(name)
    if problem["type"] == "value_error":
        return f"The setting {problem['ctx']['error']}."
    field, value = setting_names().get(name), problem["input"]
    low, high = bounds(field) if field is not None else (None, None)
    allowed = f" It lies between {low:g} and {high:g}." if low is not None and high is not None else ""
    what = problem["msg"].replace("Input should be ", "should be ").replace("Value should", "should")
    return f"The setting '{name}' is {value!r}, but {what}.{allowed}"
