"""adaback_lite: learn, teach and try AdaBack, a per-sample curriculum for reinforcement learning of reasoning models.

    import adaback_lite as ab

    run = ab.train(method="adaback", seed=0, out="runs/a")
    print(run.summary["test_accuracy"])
    ab.charts.rho(run)
"""

import importlib
import os
from typing import TYPE_CHECKING

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:  # for editors and type checkers; at run time a name is loaded when it is first asked for
    from .config import PRESETS, Config, load_config, make_config, preset
    from .curricula import AdaBack, Curriculum
    from .errors import UserError
    from .evaluation import compare_runs, evaluate_run
    from .parallel import train_many
    from .runs import Run, load_run
    from .tasks import Parity, Sample, Verdict
    from .tasks.text import TextTask
    from .trainer import train

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "AdaBack",
    "Config",
    "Curriculum",
    "Parity",
    "Run",
    "Sample",
    "TextTask",
    "UserError",
    "Verdict",
    "compare_runs",
    "evaluate_run",
    "load_config",
    "load_run",
    "make_config",
    "preset",
    "train",
    "train_many",
]

# Where each public name lives. They are loaded late because torch takes seconds, which `adaback --help` need not wait for.
_HOME = {
    "PRESETS": "config",
    "AdaBack": "curricula",
    "Config": "config",
    "Curriculum": "curricula",
    "Parity": "tasks",
    "Run": "runs",
    "Sample": "tasks",
    "TextTask": "tasks.text",
    "UserError": "errors",
    "Verdict": "tasks",
    "compare_runs": "evaluation",
    "evaluate_run": "evaluation",
    "load_config": "config",
    "load_run": "runs",
    "make_config": "config",
    "preset": "config",
    "train": "trainer",
    "train_many": "parallel",
}


def __getattr__(name: str):
    """A public name, or a module of the package (`ab.charts`), loaded when it is first asked for."""
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":  # the module is there, but something that it needs is not
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
