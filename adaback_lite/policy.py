"""The model that is trained: always a transformers model with a transformers tokenizer, so the ecosystem's tools work on it."""

import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from .config import PolicySettings
from .errors import UserError
from .seeding import derive

transformers_logging.disable_progress_bar()  # a bar for half a megabyte only clutters notebooks

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


def load_folder(folder: str | Path):
    """(model, tokenizer) from a local transformers folder. Raises UserError when there is none or it is damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"There is no model in {folder}; name a folder with a transformers causal LM (config.json and model.safetensors), or 'tiny'.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32, attn_implementation="sdpa")
            return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers, tokenizers or safetensors raise on a damaged folder
        raise UserError(f"The model in {folder} cannot be loaded ({' '.join(str(error).split())[:200]}); copy or make it anew.") from error
