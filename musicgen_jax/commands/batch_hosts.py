"""The clips of `batch` and `evaluate --model`, made by several processes that share one model.

The first process alone reads the prompts and sees the clips' folder. It tells the others what is
missing, and all make it together. Then the first one writes.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from musicgen_jax.commands import batch_folder
from musicgen_jax.commands.batch_folder import Folder, Maker, Prompt
from musicgen_jax.errors import UserError
from musicgen_jax.runtime import processes
from musicgen_jax.serving import in_step
from musicgen_jax.storage import checkpoint, hub


@dataclasses.dataclass(frozen=True)
class Job:
    """What the first process knows.

    Attributes:
      folder: the clips' folder.
      settings: of all clips; the model and the number of slots are added.
      prompts: of the clips to make.
    """

    folder: Folder
    settings: dict[str, Any]
    prompts: Sequence[Prompt]


def make_clips(
    open_maker: Callable[[argparse.Namespace], Maker], args: argparse.Namespace, job: Job | None
) -> Iterator[Path]:
    """Makes clips in all processes, and writes them in the first.

    Args:
      open_maker: called with `args` in every process. The model must be found by each.
      args: of the command, the same in every process.
      job: in the first process; None in the others.

    Yields:
      in every process, each file after it is written.

    Raises:
      UserError: in every process: one finds no model or another one, the first cannot write, or as
        `batch_folder.make_clips`.
    """

    def plan() -> dict[str, Any]:
        assert job is not None
        prompts = [dataclasses.astuple(prompt) for prompt in job.prompts]
        return {
            "slots": args.slots or job.folder.setting("slots"),
            "prompts": prompts,
            "known": batch_folder.knows(job.folder, job.settings),
        }

    plans = processes.told_by_first(plan)
    prompts = [Prompt(*fields) for fields in plans["prompts"]]
    if not prompts and plans["known"]:
        return
    _require_one_model(args.model)
    maker = open_maker(args)
    slots = batch_folder.slots_for(maker.model, plans["slots"])
    digest = batch_folder.digest(maker.model)
    requests = processes.together(lambda: [maker.request(prompt) for prompt in prompts])
    made = in_step.make_clips(maker.model.parts, requests, slots=slots)

    def begin() -> None:
        assert job is not None
        batch_folder.begin(job.folder, job.settings | {"model": digest}, slots)

    processes.in_first(begin)
    for index, output in made:
        prompt = prompts[index]

        def write(prompt=prompt, output=output) -> str:
            assert job is not None
            file = job.folder.path / job.folder.name(prompt)
            maker.write(file, prompt, output)
            seconds = output.audio.shape[2] / output.sample_rate
            job.folder.finished(prompt, seconds, str(output.program))
            return str(file)

        yield Path(processes.told_by_first(write))


def _require_one_model(name: str) -> None:
    """UserError, before they load it, if not all processes find the same model."""
    found = processes.together(lambda: repr(checkpoint.load_config(hub.find_model(name))))
    first = processes.told_by_first(lambda: found)

    def compare() -> None:
        if found != first:
            raise UserError(f"the model {name} differs from that of process 0")

    processes.together(compare)
