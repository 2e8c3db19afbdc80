"""The clips of `batch` and `evaluate --model`, made on a Ray cluster.

Workers load the model and send the files; this process alone writes, as in `batch_folder`, so they
need no common folder. A clip depends only on its text, its seed and the program, so it does not
matter which worker makes it, or how often one was lost with it.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from musicgen_jax import files
from musicgen_jax.commands import batch_folder, ray_work
from musicgen_jax.commands.batch_folder import Folder, Maker, Prompt

_AT_ONCE = 64  # clips that a worker has in hand, where neither slots nor a batch size are given


def make_clips(
    open_maker: Callable[[argparse.Namespace], Maker],
    args: argparse.Namespace,
    folder: Folder,
    settings: dict[str, Any],
    prompts: Sequence[Prompt],
    *,
    slots: int | None,
    batch_size: int | None,
) -> Iterator[Path]:
    """Makes clips on the cluster `args.ray`, and writes each when it is finished.

    Args:
      open_maker: called with `args` in every worker. The model must be found on every node.
      args: of the command.
      folder: the clips' folder.
      settings: of all clips; the workers add the model and the number of slots.
      prompts: of the clips to make.
      slots: as in `batch_folder.make_clips`.
      batch_size: clips that each worker has in hand; None for twice the slots.

    Yields:
      every file that it wrote.

    Raises:
      UserError: the workers have different models, or as in `ray_work.spread`.
    """
    slots = slots or folder.setting("slots")
    parser = ("run", "command")  # which cannot be pickled
    plain = argparse.Namespace(**{k: v for k, v in vars(args).items() if k not in parser})
    data, model = args.devices or (1, 1)

    def agree(about: dict[str, Any]) -> None:
        batch_folder.begin(folder, settings | {"model": about["model"]}, about["slots"])

    work = ray_work.Work(
        functools.partial(
            _ClipWorker, functools.partial(open_maker, plain), prompts, folder.suffix, slots
        ),
        prompts,
        at_once=batch_size or (2 * slots if slots else _AT_ONCE),
        devices=data * model,
        agree=agree,
    )
    for prompt, (content, seconds, program) in ray_work.spread(args.ray, work):
        file = folder.path / folder.name(prompt)
        files.write_bytes(file, content)
        folder.finished(prompt, seconds, program)
        yield file


class _ClipWorker:
    """A model with its slots, in an actor."""

    def __init__(
        self,
        open_maker: Callable[[], Maker],
        prompts: Sequence[Prompt],
        suffix: str,
        slots: int | None,
    ):
        from musicgen_jax.serving.scheduler import scheduler_for

        self._maker, self._suffix = open_maker(), suffix
        model = self._maker.model
        slots = batch_folder.slots_for(model, slots)
        self.about = {"model": batch_folder.digest(model), "slots": slots}
        requests = map(self._maker.request, prompts)
        self._scheduler = scheduler_for(model.parts, requests, slots=slots, queue=len(prompts))

    def do(self, prompt: Prompt) -> tuple[bytes, float, str]:
        """The file of a clip, its seconds, and what made it."""
        made = self._scheduler.submit(self._maker.request(prompt)).result()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"clip{self._suffix}")
            self._maker.write(file, prompt, made)
            content = file.read_bytes()
        return content, made.audio.shape[2] / made.sample_rate, str(made.program)
