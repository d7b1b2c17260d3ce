"""A run's folder: settings, events, checkpoints, summary. Everything that can be known of a run stands in it.

    config.yaml        every setting; training from it again gives the same run
    events.jsonl       one JSON object a line, in order; charts, tables and diagnoses read nothing else
    outputs.jsonl      what the policy wrote, for people to look at (outputs.py)
    checkpoints/       step-2-rl-00000100/ and so on: *.safetensors and state.json, nothing pickled
    summary.json       written when the run ends

Events ("event" names the kind; "wall", seconds of training so far, is the only value that differs between equal runs):

    start       method, seed, curriculum (the class, where one of the user's own was given),
                samples, parameters, trained_parameters, machine; with word problems what was dropped and why; with an adapter how it is sampled
    step        RL step: step, rollouts and generated_tokens so far, and for the B samples of the step ids, rho, reward (mean of
                the group), shown (tokens), low and high (interval after the update, or null), then mean_reward, mean_rho,
                grad_groups (share of groups with a gradient), entropy, cut, wrong, unparseable and timeout (shares of rollouts), loss, grad_norm
    sft         lr, step, loss, val_loss, and trained_tokens so far
    sft_end     lr that won, trained_tokens, and test_accuracy with its interval before any RL
    eval        stage, step, rollouts, n, right, accuracy: held-out inputs, nothing revealed
    diagnosis   kind, text, advice, step
    change      a setting was changed by hand: step (those done when it acted), name, value, before
    checkpoint, resume, end
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import warnings
from pathlib import Path

import safetensors.torch
import torch

from .config import Config, dump_config, load_config
from .errors import UserError
from .outputs import FILE as OUTPUTS
from .outputs import Visit, find_visit

CHECKPOINT_VERSION = 1


class Run:
    """A run's folder, for reading. `load_run` opens one; `train` returns one."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @property
    def config(self) -> Config:
        return load_config(self.folder / "config.yaml")

    @property
    def events(self) -> list[dict]:
        """All events so far; works while the run is being written, and on a killed one."""
        return read_events(self.folder / "events.jsonl")

    @property
    def so_far(self) -> list[dict]:
        """As `events`, for who looks on: that a last line is being written is no news to them, so it is left out without a warning."""
        return read_events(self.folder / "events.jsonl", warns=False)

    @property
    def steps_done(self) -> int:
        """The last RL step that the events tell of."""
        return max((e["step"] for e in self.so_far if e["event"] == "step"), default=0)

    @property
    def summary(self) -> dict | None:
        """The summary of a finished run, else None."""
        path = self.folder / "summary.json"
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is damaged; delete it and run 'adaback train --resume --out {self.folder}', which writes it anew.") from None

    def outputs(self, sample_id: int, step: int | None = None) -> Visit:
        """What was written for a sample at its last visit (up to `step`). Raises UserError when nothing is kept of it."""
        return find_visit(self.folder, sample_id, step)

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"), reverse=True)

    def load_checkpoint(self):
        """(model, tokenizer, state) of the newest checkpoint; `state` is a dict with the stage, the step, digests and, of our own trainer, what else is saved beside the tensors."""
        if by_trl(self.so_far):
            from .trl_checkpoints import load_policy

            return load_policy(self.config, self.folder)
        from .build import build_policy
        from .policy import load_trained
        from .resume import weights_part

        model, tokenizer = build_policy(self.config)
        tensors, state = newest_checkpoint(self)
        load_trained(model, tensors[weights_part(model)])
        return model, tokenizer, state

    def load_policy(self):
        """(model, tokenizer) as they stand in the newest checkpoint."""
        return self.load_checkpoint()[:2]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def load_run(folder: str | os.PathLike) -> Run:
    """Open a run's folder. Raises UserError when it is missing or is not one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no run in {folder}: the folder does not exist; 'adaback train --out {folder}' makes one.")
    if not (folder / "config.yaml").is_file():
        if seeds := seed_folders(folder):
            raise UserError(f"{folder} holds one run a seed; name one of them, as {seeds[0]}, or give --seeds as when it was started.")
        if by_trl(Run(folder).so_far):
            raise UserError(f"{folder} is the folder of a TRL script, which keeps no config.yaml; the charts draw it as charts.rho('{folder}'), and there is no more to show.")
        raise UserError(f"{folder} is not a run's folder: it has no config.yaml; name the folder that was given as --out.")
    load_config(folder / "config.yaml")
    return Run(folder)


def seed_folders(folder: str | os.PathLike) -> list[Path]:
    """The runs in a folder that `adaback train --seeds` filled: seed-0, seed-1 and so on; none for a run's own folder."""
    return [] if (Path(folder) / "config.yaml").is_file() else sorted(path.parent for path in Path(folder).glob("seed-*/config.yaml"))


def by_trl(events: list[dict]) -> bool:
    """Whether a run is trained by TRL (trl.py), whose checkpoints only TRL can go on from."""
    return any("trl" in e["machine"] for e in events if e["event"] == "start")


def go_on_command(folder: str | os.PathLike, events: list[dict]) -> str:
    """The command that goes on with a stopped run."""
    if not by_trl(events):
        return f"adaback train --resume --out {folder}"
    processes = next(e["machine"]["processes"] for e in events if e["event"] == "start")
    launcher = "python" if processes == 1 else f"accelerate launch --multi_gpu --num_processes {processes}"
    return f"{launcher} -m adaback_lite.trl_train --resume --out {folder}"


def being_written(folder: str | os.PathLike) -> bool:
    """Whether a process (this one too) holds the lock of a folder: that of a run, or of a sweep's cell. Asks for a shared lock and gives it back at once."""
    try:
        with open(Path(folder) / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_events(path: str | os.PathLike, warns: bool = True) -> list[dict]:
    """All events of a log. A torn last line (a kill in mid-write) is dropped, with a warning unless `warns` is off; any other bad line is refused."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    torn, events = lines.pop(), []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError
        except ValueError:
            raise UserError(f"{path} is damaged at line {number}; restore it from a copy, or train again into another folder.") from None
        events.append(event)
    if torn and warns:
        warnings.warn(f"{path}: the last line is torn (the run was killed while writing it, or is writing now) and is left out.", stacklevel=2)
    return events


class RunWriter(Run):
    """A run's folder, for the one process that writes it."""

    def __init__(self, folder, config: Config):
        super().__init__(folder)
        self._config = config
        self._log = None
        self._lock = None
        self._outputs = None
        self.listeners = []

    def open(self, resume: bool) -> None:
        """Take the folder. Raises UserError when it holds a run already (and `resume` is off), something else, or a run that is being written."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; choose another --out.")
        # A run killed in its first moments leaves its lock and perhaps half a config.yaml, and may start again.
        contents = {p.name for p in folder.iterdir()} - {"lock", "config.yaml.writing"} if folder.is_dir() else set()
        if contents and "config.yaml" not in contents:
            raise UserError(f"{folder} holds files but no run; choose another --out, nothing was changed.")
        if contents and not resume:
            raise UserError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out.")
        if contents and by_trl(self.so_far):
            raise UserError(f"{folder} holds a run that TRL trains; {go_on_command(folder, self.so_far)} goes on with it.")
        with _disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "a")  # noqa: SIM115  (held until close)
            for _ in range(6):  # somebody who only looks (being_written) holds it for a moment
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
            else:
                self._lock.close()
                raise UserError(f"{folder} is being written by another process; wait for it, stop it, or choose another --out.")
            if not (folder / "config.yaml").exists():
                write_atomically(folder / "config.yaml", dump_config(self._config))
            (folder / "checkpoints").mkdir(exist_ok=True)
            for old in (folder / "checkpoints").glob("writing-old-*"):  # killed between two renames: the new one is not there yet
                final = old.with_name(old.name.replace("writing-old-", "step-"))
                if not final.exists():
                    old.rename(final)
            for left_over in (folder / "checkpoints").glob("writing-*"):
                shutil.rmtree(left_over)
            self._log = open(folder / "events.jsonl", "ab", buffering=0)  # noqa: SIM115  (what is written is written; close has nothing left to fail on)
            if self._config.trainer.keep_outputs:
                self._outputs = open(folder / OUTPUTS, "ab", buffering=0)  # noqa: SIM115

    def settle(self) -> None:
        """The folder's run is now this one. Called when nothing can refuse it any more, so that a refused resume leaves a finished run as it was."""
        with _disk(self.folder):
            write_atomically(self.folder / "config.yaml", dump_config(self._config))
            (self.folder / "summary.json").unlink(missing_ok=True)

    def close(self) -> None:
        for handle in (self._log, self._outputs, self._lock):
            if handle is not None:
                handle.close()

    def cut_log(self, size: int, outputs_size: int = 0) -> None:
        """Forget what came after a checkpoint, for it will happen again. Raises UserError when the log is shorter than that; outputs.jsonl may be missing."""
        if self.outputs_size() > outputs_size:
            os.truncate(self.folder / OUTPUTS, outputs_size)
        if self._log.seek(0, os.SEEK_END) < size:
            raise UserError(f"{self.folder / 'events.jsonl'} is shorter than its checkpoint says; it was changed by hand, so train again into another folder.")
        self._log.truncate(size)
        read_events(self.folder / "events.jsonl")  # a damaged log is refused before more is added to it

    def emit(self, event: str, **values) -> None:
        """Append one event."""
        record = {"event": event, **values}
        self._append(self._log, record)
        for listener in self.listeners:
            listener(record)

    def keep_outputs(self, record: dict) -> None:
        """Append one step's outputs (outputs.as_record)."""
        self._append(self._outputs, record)

    def _append(self, file, record: dict) -> None:
        with _disk(self.folder):
            line = json.dumps(record).encode() + b"\n"
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "only part of a line could be written")

    def log_size(self) -> int:
        return self._log.seek(0, os.SEEK_END)

    def outputs_size(self) -> int:
        path = self.folder / OUTPUTS
        return path.stat().st_size if path.exists() else 0

    def save_checkpoint(self, name: str, tensors: dict[str, dict[str, torch.Tensor]], state: dict, adapter=None) -> None:
        """Write a checkpoint beside the others, whole or not at all, then drop those too old to keep.

        With `adapter` (a peft config) the folder is also one that `peft.PeftModel.from_pretrained(base, folder)` loads.
        """
        root = self.folder / "checkpoints"
        temporary, final = root / f"writing-{name}", root / f"step-{name}"
        with _disk(self.folder, clean=temporary):
            temporary.mkdir()
            digests = {}
            for part, values in tensors.items():
                data = safetensors.torch.save({k: v.detach().contiguous().cpu() for k, v in values.items()})
                digests[part] = hashlib.sha256(data).hexdigest()
                _write(temporary / f"{part}.safetensors", data)
            if adapter is not None:
                adapter.save_pretrained(temporary)
            record = {"version": CHECKPOINT_VERSION, "log_size": self.log_size(), "outputs_size": self.outputs_size(), "sha256": digests, **state}
            _write(temporary / "state.json", json.dumps(record).encode())
            if final.exists():  # moved, not deleted file by file: a kill must not leave half of it under a checkpoint's name
                final.rename(root / f"writing-old-{name}")
            temporary.rename(final)
            shutil.rmtree(root / f"writing-old-{name}", ignore_errors=True)
            for old in self.checkpoints()[self._config.trainer.keep_checkpoints :]:
                shutil.rmtree(old)

    def write_summary(self, summary: dict) -> None:
        with _disk(self.folder):
            write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """(tensors by part, state) of one checkpoint. Raises ValueError in words when it is damaged."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("version") != CHECKPOINT_VERSION:
            raise ValueError(f"{folder} is a checkpoint of version {state.get('version')}, not {CHECKPOINT_VERSION}")
        tensors = {}
        for part, digest in state["sha256"].items():
            data = (folder / f"{part}.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"{folder / part}.safetensors is damaged")
            tensors[part] = safetensors.torch.load(data)
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from None
    return tensors, state


def newest_checkpoint(run: Run) -> tuple[dict, dict]:
    """The newest whole checkpoint; damaged ones are passed over with a warning. Raises UserError when none is left."""
    found = run.checkpoints()
    for folder in found:
        try:
            return read_checkpoint(folder)
        except ValueError as error:
            warnings.warn(f"A damaged checkpoint is passed over ({error}).", stacklevel=2)
    if found:
        raise UserError(f"All checkpoints in {run.folder / 'checkpoints'} are damaged; restore one from a copy, or train again into another folder.")
    raise UserError(f"{run.folder} has no checkpoint yet; train longer, or lower trainer.checkpoint_every.")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content, so that a reader or a kill never sees half of it."""
    temporary = path.with_name(path.name + ".writing")
    try:
        _write(temporary, content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _disk(folder: Path, clean: Path | None = None):
    """Turn what a disk can do to us into one sentence; `clean` is removed if it fails."""
    try:
        yield
    except OSError as error:
        if clean is not None:
            shutil.rmtree(clean, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk that holds {folder} is full; free some space and go on with --resume, the last checkpoint is whole.") from error
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); check its permissions or choose another --out.") from error
