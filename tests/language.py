"""Small language models and tokenizers that tests make themselves, in milliseconds: no network, no cache."""

import functools
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adaback_lite.config import PolicySettings
from adaback_lite.policy import tiny_model, tiny_tokenizer
from adaback_lite.sft import rationale_loss
from adaback_lite.tasks import Parity

ROOT = Path(__file__).resolve().parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
_FOLDERS = tempfile.TemporaryDirectory(prefix="adaback-language-")


def byte_tokenizer(template: str | None = None, frame: str | None = None, **special) -> PreTrainedTokenizerFast:
    """One token a byte, and the marks. `frame` as "<bos> $A" says what is put around a text; `special` replaces the names of special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(MARKS + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if frame:
        core.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[(m, i) for i, m in enumerate(MARKS)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<|im_end|>" if template else "<eos>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **{k: v for k, v in names.items() if v})
    tokenizer.chat_template = template
    return tokenizer


def byte_model(seed: int = 0, context: int = 1024, **settings) -> LlamaForCausalLM:
    """A random Llama for `byte_tokenizer`."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(max_position_embeddings=context, pad_token_id=0, bos_token_id=1, eos_token_id=2, **{"vocab_size": len(MARKS) + 256, **sizes, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def saved(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def wide() -> str:
    """A folder with a model for small_config's parity, wide enough for 4-bit blocks, after a little SFT: as helpers.taught, it knows the form and guesses the bits."""
    model = tiny_model(PolicySettings(base="none", layers=2, width=64, heads=4, kv_heads=2), 1)
    task = Parity(tiny_tokenizer(), 6, 3, 20, 4, 6, seed=0, positions="coupled")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    for _ in range(60):
        optimizer.zero_grad()
        rationale_loss(model, task, task.train[:8], 0)[0].backward()
        optimizer.step()
    return str(saved(Path(_FOLDERS.name) / "wide", model, tiny_tokenizer()))


def stir(model, scale: float = 0.2, seed: int = 0) -> None:
    """Give an adapter that changes nothing yet (B = 0) something to do."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=g) * scale)
