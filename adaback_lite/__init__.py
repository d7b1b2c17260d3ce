"""adaback_lite: learn, teach and try AdaBack, a per-sample curriculum for reinforcement learning of reasoning models.

    import adaback_lite as ab

    run = ab.train(method="adaback", seed=0, out="runs/a")
    print(run.summary["test_accuracy"])
    ab.charts.rho(run)
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from .config import Config, load_config, make_config
from .curricula import AdaBack, Curriculum
from .errors import UserError
from .parallel import train_many
from .runs import Run, load_run
from .tasks import Parity, Sample, Verdict
from .trainer import train

__version__ = "0.1.0"
__all__ = ["AdaBack", "Config", "Curriculum", "Parity", "Run", "Sample", "UserError", "Verdict", "load_config", "load_run", "make_config", "train", "train_many"]
