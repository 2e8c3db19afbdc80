"""`evaluate --model`: a clip for each caption, which can be interrupted and shared.

    OUT/clips/       the folder of `batch`: 000012.wav is the clip of the caption in row 12

Clip i depends only on its caption, the seed and its row, so a run that was killed and resumed gives
the same files, and so the same figures.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musicgen_jax import audio, files
from musicgen_jax.commands import batch_folder, options
from musicgen_jax.commands.batch_folder import Prompt
from musicgen_jax.console import Bar
from musicgen_jax.errors import UserError
from musicgen_jax.generation.piece import GenerationOutput
from musicgen_jax.generation.request import check_seed
from musicgen_jax.metrics.evaluation import ClipSet
from musicgen_jax.runtime import processes
from musicgen_jax.storage import checkpoint, hub

if TYPE_CHECKING:
    from musicgen_jax.generation.request import Request

_NOT_FINITE = "the model made samples that are NaN or infinite"


class Work:
    """The clips of a model, before and after they are made.

    Args:
      args: of the command.
      texts: captions by id.
      reference: {id: file}; if there are any, only captions with a clip among them count.
      out: the report's folder.

    Raises:
      UserError: no caption has a clip, the model cannot be found, or the folder was started with
        other settings.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        texts: Mapping[str, str],
        reference: Mapping[str, Path],
        out: Path,
    ):
        self.args, self._source = args, args.model
        seed = check_seed(args.seed, 1)
        names = list(texts)[: args.limit]
        self.left_out = {
            name: "no clip in the reference"
            for name in names
            if reference and name not in reference
        }
        self.prompts = {
            name: Prompt(row, texts[name], batch_folder.clip_seed(seed, row))  # type: ignore[arg-type]
            for row, name in enumerate(names)
            if name not in self.left_out
        }
        if not self.prompts:
            raise UserError(
                f"no id in {args.captions} is the name of a clip in {args.reference}: for example "
                f"{names[0]!r:.80} and {next(iter(reference))!r:.80}"
            )
        self.config = checkpoint.load_config(hub.find_model(args.model))
        self.folder = batch_folder.Folder(out / "clips", ".wav", args.worker)
        self.settings: dict[str, Any] = {
            **options.keywords(options.sampling(args)),
            "duration": args.duration,
            "seed": args.seed,
        }
        if args.slots is not None and self.folder.setting("slots") is not None:
            self.settings["slots"] = args.slots
        self.folder.agree(self.settings, keep=False)
        self.settings[batch_folder.MODEL_FILES] = batch_folder.files_of(args.model)

    @property
    def files(self) -> dict[str, Path]:
        """{id: file} of all clips, sorted by id; they need not exist yet."""
        return {
            name: self.folder.path / self.folder.name(prompt)
            for name, prompt in sorted(self.prompts.items())
        }

    @property
    def clips(self) -> ClipSet:
        """The clips to measure: all, or those of this worker."""
        own = set(self._share())
        left_out, found = dict(self.left_out), {}
        for name, file in self.files.items():
            if self.prompts[name] not in own:
                continue
            if file.exists() and not file.stat().st_size:
                left_out[name] = _NOT_FINITE
            else:
                found[name] = file
        return ClipSet(str(self.folder.path), found, left_out)

    @property
    def about(self) -> dict[str, Any]:
        """The model and the settings, for the report."""
        # As they were kept, with the model's digest, which a run that makes nothing lacks.
        settings = files.read_json(self.folder.path / batch_folder.SETTINGS)
        settings.pop(batch_folder.MODEL_FILES, None)
        return {
            "name": self.config.name or self._source,
            "captions": str(self.args.captions),
            "settings": settings,
        }

    def _share(self) -> list[Prompt]:
        return batch_folder.share(list(self.prompts.values()), self.args.worker)

    @property
    def missing(self) -> list[Prompt]:
        """The prompts of this worker whose clips do not exist yet."""
        missing = set(self.folder.missing(list(self.prompts.values())))
        return [prompt for prompt in self._share() if prompt in missing]


def make(args: argparse.Namespace, work: Work | None, bar: Bar) -> None:
    """Makes the missing clips. If there are several processes, all of them call this.

    Args:
      args: of the command.
      work: in the first process; None in the others.
      bar: shows the progress.

    Raises:
      UserError: the model refuses the settings, or a file cannot be written.
    """
    share = processes.in_first(lambda: work.missing if work else []) or []
    if processes.several():
        from musicgen_jax.commands import batch_hosts

        job = batch_hosts.Job(work.folder, work.settings, share) if work else None
        written = batch_hosts.make_clips(_Maker, args, job)
    elif not share and work and batch_folder.knows(work.folder, work.settings):
        return
    else:
        assert work is not None
        written = _written(args, work, share)
    for _ in bar(written, total=len(share), desc="making the clips"):
        pass


def _written(args: argparse.Namespace, work: Work, share: list[Prompt]) -> Iterator[Path]:
    settings = work.settings
    at_once: Any = {"slots": args.slots, "batch_size": args.batch_size}
    if args.ray and share:
        from musicgen_jax.commands import batch_ray

        return batch_ray.make_clips(_Maker, args, work.folder, settings, share, **at_once)
    maker = _Maker(args)
    settings["model"] = batch_folder.digest(maker.model)
    work.folder.agree(settings, keep=False)
    if not share:
        return iter(())
    return batch_folder.make_clips(maker, work.folder, settings, share, **at_once)


class _Maker:
    """The model that is judged, see `batch_folder.Maker`."""

    def __init__(self, args: argparse.Namespace):
        from musicgen_jax.model import MusicGen
        from musicgen_jax.runtime import compile_cache

        compile_cache.enable()
        self.model = MusicGen.from_pretrained(args.model, mesh=options.mesh(args))
        self._args = args

    def request(self, prompt: Prompt) -> "Request":
        from musicgen_jax.generation.request import Request

        return Request(
            config=self.model.config,
            descriptions=[prompt.text],
            duration=self._args.duration,
            seed=prompt.seed,
            sampling=options.sampling(self._args),
        )

    def write(self, path: Path, prompt: Prompt, out: GenerationOutput) -> None:
        """Writes it at the model's own level, clipped at full scale: a protocol may change it."""
        if np.isfinite(out.audio).all():
            audio.write(path, out.audio[0], out.sample_rate, "clip", peak_clip_headroom_db=0)
        else:  # an empty file stands for it: the run continues, and the report names the clip
            files.write_bytes(path, b"")
