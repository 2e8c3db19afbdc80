"""The folder of a training run: its settings, its records and its checkpoints.

A run's folder holds config.toml (the settings), run.json (the data's fingerprint), metrics.jsonl
(one record a line) and checkpoints/ (one folder per step: the last few, and the best). At the end
the run adds report.html with the curves.

A process may be killed at any moment. Orbax writes a checkpoint to a temporary folder and renames
it. An older checkpoint is deleted only when a newer one is complete. When a run resumes from a
checkpoint, it drops the records of later steps from metrics.jsonl, because those steps are about to
run again.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
from orbax.checkpoint import v1 as ocp

from musicgen_jax import files
from musicgen_jax.config import toml
from musicgen_jax.config.schema import Config
from musicgen_jax.errors import UserError, machine_fault, reason, user_error
from musicgen_jax.runtime.processes import barrier
from musicgen_jax.storage.arrays import remove_paths
from musicgen_jax.training import report
from musicgen_jax.training.records import METRICS, records

CONFIG, CHECKPOINTS, ABOUT = "config.toml", "checkpoints", "run.json"


class Run:
    """A run in a folder, new or resumed. With several processes, all of them call every method.

    Use it as a context manager: leaving it waits until the pending checkpoint is written.

    Args:
      folder: of the run; with several processes, a folder that all of them share.
      config: a frozen dataclass of settings, saved as config.toml.
      fingerprint: of the training data.
      resume: whether the folder may already hold a run; if False, an existing run is an error.
      data_changed: whether the data may differ from the data that the run began with.
      keep: how many of the last checkpoints to keep; the best one is kept as well.
      tensorboard: whether to write records to tensorboard/ too. Needs the extra `[tensorboard]`.

    Raises:
      UserError: the folder holds a run or unrelated files, another process trains there, the folder
        cannot be written, or the data has changed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: Any,
        *,
        fingerprint: str,
        resume: bool = False,
        data_changed: bool = False,
        keep: int = 3,
        tensorboard: bool = False,
    ):
        self.folder = Path(folder).absolute()
        self._fingerprint, self._keep = fingerprint, max(keep, 1)
        self._first = jax.process_index() == 0  # the process that writes the small files
        self._pending: tuple[int, Any] | None = None
        self._writer: Any = None
        self._lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        # Every process checks the same files by itself, before the first process writes any.
        problem = self._problem(resume, data_changed) or (
            _no_tensorboard() if tensorboard else None
        )
        barrier("run folder: inspected")
        if problem:
            raise UserError(problem)
        with user_error("write", self.folder):
            try:
                if self._first:
                    self._begin(config, tensorboard)
            except filelock.Timeout:  # is an OSError too
                raise UserError(f"another process trains in {self.folder}") from None
        barrier("run folder: ready")

    def _problem(self, resume: bool, data_changed: bool) -> str | None:
        about = self.folder / ABOUT
        if not about.exists():
            if self.folder.exists() and not self.folder.is_dir():
                return f"{self.folder} is a file: give a folder for the run"
            others = [f for f in self.folder.glob("*") if not f.name.startswith(".")]
            if others and not (self.folder / CONFIG).exists():
                return f"{self.folder} is not empty and not a run: choose another folder"
            return None
        if not resume:
            return f"{self.folder} holds a run: continue it with --resume, or choose another folder"
        began = files.read_json(about).get("fingerprint")
        if began != self._fingerprint and not data_changed:
            return (
                f"the data has changed since the run began (fingerprint {began}, now "
                f"{self._fingerprint}): give the same data, or continue anyway with --data-changed"
            )
        return None

    def _begin(self, config: Any, tensorboard: bool) -> None:
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        for entry in (self.folder / CHECKPOINTS).iterdir():
            if not entry.name.isdigit():  # left by a process killed while writing or deleting
                shutil.rmtree(entry, ignore_errors=True)
        self._config = toml.dump(config)
        if not self.steps():  # otherwise once it is known that they fit, see `restore`
            self._keep_settings()
        if tensorboard:
            import tensorboardX  # type: ignore[import-not-found]

            self._writer = tensorboardX.SummaryWriter(str(self.folder / "tensorboard"))

    def _keep_settings(self) -> None:
        _replace(self.folder / CONFIG, self._config)
        about = json.dumps({"fingerprint": self._fingerprint}, indent=2) + "\n"
        _replace(self.folder / ABOUT, about)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._wait()
        except UserError:
            if error is None:  # else report the first failure instead
                raise
        finally:
            if self._writer is not None:
                self._writer.close()
            self._lock.release()

    # --- Records -------------------------------------------------------------------------------

    def log(self, record: dict) -> None:
        """Appends a record, which has "step", to metrics.jsonl.

        Raises:
          UserError: a number in the record is not finite, and training should stop (the message
            names the last good checkpoint); or the file cannot be written.
        """
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                self._wait()
                raise UserError(
                    f"{name} is {value} at step {record['step']}: stopped, {self._where_to_go_on()}"
                )
        if not self._first:
            return
        with user_error("write", self.folder / METRICS):
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            if self._writer is not None:
                for name, value in record.items():
                    if name != "step" and isinstance(value, int | float):
                        self._writer.add_scalar(name, value, record["step"])

    def _forget_after(self, step: int) -> None:
        """Drops the records of later steps, and an incomplete last line."""
        path = self.folder / METRICS
        if not self._first or not path.exists():
            return
        kept = [json.dumps(record) for record in records(self.folder) if record["step"] <= step]
        _replace(path, "".join(line + "\n" for line in kept))

    # --- Checkpoints ---------------------------------------------------------------------------

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Starts to write a checkpoint. Training waits only for the copy to the host.

        Everything up to `step` must have been logged, because a run that resumes from here drops
        the records of later steps.

        Args:
          step: number of steps done.
          state: a pytree of arrays.
          score: figure of merit, lower is better. The checkpoint with the lowest score is kept.

        Raises:
          UserError: this checkpoint or the previous one cannot be written; the message names the
            last good one.
        """
        self._wait()
        if step in self.steps():
            return
        about = {"step": step, "score": score, "fingerprint": self._fingerprint}
        with self._writing(step):
            response = ocp.save_async(
                str(self.folder / CHECKPOINTS / str(step)),
                named_leaves(state),
                custom_metadata=about,
            )
            self._pending = step, response

    def _wait(self) -> None:
        """Waits until the pending checkpoint is complete, then deletes old ones."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        with self._writing(step):
            response.result()
        if self._first:
            remove_paths(self.folder / CHECKPOINTS / str(step))
            self._delete_old()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types
            folder = self.folder / CHECKPOINTS
            if self._first:
                for partial in (p for p in folder.glob(f"{step}*") if not _is_step(p)):
                    shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {step} could not be written ({reason(error)}): stopped, "
                f"{self._where_to_go_on()}"
            ) from error

    def _delete_old(self) -> None:
        steps = self.steps()
        keep = set(steps[-self._keep :])
        if (best := self.best()) is not None:
            keep.add(best)
        for step in set(steps) - keep:
            path = self.folder / CHECKPOINTS / str(step)
            # Rename it first: a half-deleted folder must not look like a checkpoint.
            aside = path.with_name(f"{step}.deleted")
            os.replace(path, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in ascending order."""
        folder = self.folder / CHECKPOINTS
        return sorted(int(path.name) for path in folder.glob("*") if _is_step(path))

    def best(self) -> int | None:
        """The step of the checkpoint with the lowest score (the latest if tied), or None."""
        scores = {step: self._about(step).get("score") for step in self.steps()}
        scored = {step: score for step, score in scores.items() if score is not None}
        return min(scored, key=lambda step: (scored[step], -step)) if scored else None

    def _about(self, step: int) -> dict:
        try:
            metadata = ocp.metadata(str(self.folder / CHECKPOINTS / str(step)))
            return dict(metadata.custom_metadata or {})  # type: ignore[arg-type]
        except Exception:  # a damaged checkpoint has no score
            return {}

    def _where_to_go_on(self) -> str:
        steps = self.steps()
        if not steps:
            return "and there is no checkpoint yet"
        path = self.folder / CHECKPOINTS / str(steps[-1])
        return f"the last good checkpoint is {path}; --resume continues from there"

    def restore(self, abstract: Any, steps: int | None = None) -> tuple[int, Any] | None:
        """Loads the last checkpoint.

        The settings of the run are written now, since they fit what is there. This drops the
        records of later steps from metrics.jsonl. If a checkpoint is damaged, it
        prints a line and tries the previous checkpoint.

        Args:
          abstract: a pytree of `jax.ShapeDtypeStruct`. Each array is read into the sharding of its
            struct, which may differ from the saved one (default: the default device).
          steps: of the whole run, if that is known.

        Returns:
          (steps done, state), or None if there is no checkpoint yet.

        Raises:
          UserError: the checkpoints belong to another model or optimizer, all are damaged, or more
            than `steps` steps are done.
        """
        default = jax.numpy.zeros(()).sharding
        named = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default)
            for name, leaf in named_leaves(abstract).items()
        }
        damaged = []
        for step in reversed(self.steps()):
            path = self.folder / CHECKPOINTS / str(step)
            try:
                stored: Any = ocp.metadata(str(path)).metadata
                if difference := _difference(named, stored):
                    raise UserError(
                        f"{path} is of other settings: {difference}; resume with the settings in "
                        f"{self.folder / CONFIG}, or start a new run"
                    )
                loaded: Any = ocp.load(str(path), named)
            except UserError:
                raise
            except Exception as error:  # Orbax raises many types on damaged files
                if fault := machine_fault(error):
                    raise UserError(f"cannot read {path}: {fault}") from error
                damaged.append(path)
                continue
            if steps is not None and step > steps:
                raise UserError(
                    f"{self.folder} has done {step} steps already: give --steps {step} or more"
                )
            for later in damaged if self._first else []:
                aside = files.unused_name(later.with_name(f"damaged-{later.name}"))
                os.replace(later, aside)
                print(
                    f"checkpoint {later} is damaged and was renamed to {aside.name}: resuming "
                    f"from step "
                    f"{step}",
                    flush=True,
                )
            barrier("run folder: checkpoint read")
            if self._first:
                with user_error("write", self.folder):
                    self._keep_settings()
            self._forget_after(step)
            leaves = [loaded[name] for name in named]  # Orbax has its own order
            return step, jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        if damaged:
            raise UserError(f"every checkpoint in {path.parent} is damaged: start a new run")
        self._forget_after(0)
        return None

    def finish(self) -> Path:
        """Waits for the last checkpoint, writes report.html and returns its path."""
        self._wait()
        path = self.folder / "report.html"
        if self._first:
            config = (self.folder / CONFIG).read_text(encoding="utf-8")
            samples = sorted((self.folder / "samples").glob("*.png"))
            _replace(path, report.page(self.folder.name, config, records(self.folder), samples))
        return path


def saved_config(folder: str | os.PathLike, config: type[Config]) -> Config | None:
    """The settings in a run's folder, or None if it has none."""
    path = Path(folder) / CONFIG
    return toml.read(path, config) if path.is_file() else None


def check_base(folder: str | os.PathLike, began: str, now: str) -> None:
    """Checks that a run keeps its base, because the weights in its checkpoints belong to it.

    Args:
      folder: of the run.
      began: the base that the run began with.
      now: the base that was requested now.

    Raises:
      UserError: the two bases differ.
    """
    if began != now:
        raise UserError(
            f"{folder} began with base {began!r}, not {now!r}: leave --base or CONFIG out; if the "
            f"base was moved, change base in {Path(folder) / CONFIG}"
        )


def _is_step(path: Path) -> bool:
    return re.fullmatch("[0-9]{1,18}", path.name) is not None


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by path, so names on disk do not depend on the classes in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def _difference(wanted: dict, stored: dict) -> str | None:
    for name in wanted.keys() | stored.keys():
        if name not in stored:
            return f"it lacks {name}"
        if name not in wanted:
            return f"it has {name}, which these settings do not have"
        ours, theirs = tuple(wanted[name].shape), tuple(stored[name].shape)
        if ours != theirs:
            return f"{name} is {theirs} there, but {ours} by these settings"
    return None


def _no_tensorboard() -> str | None:
    if importlib.util.find_spec("tensorboardX") is not None:
        return None
    return 'TensorBoard needs tensorboardX: pip install "musicgen-jax[tensorboard]"'


def _replace(path: Path, text: str) -> None:
    files.write_bytes(path, text.encode())
