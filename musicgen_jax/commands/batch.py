"""`musicgen-jax batch`: a file of prompts to a folder of clips."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.audio import STRATEGIES, clip_settings
from musicgen_jax.commands import first_run, hosts, made, options, ray_work
from musicgen_jax.console import Console
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.commands.batch_folder import Folder, Prompt
    from musicgen_jax.generation.piece import GenerationOutput
    from musicgen_jax.generation.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add("prompts", metavar="PROMPTS", help="a .txt file with a prompt on each line, or a .jsonl "
        'file with {"prompt": TEXT or null} on each line, and optionally "seed", "negative" and '
        '"duration"; '
        "or - for stdin, which may hold either")  # fmt: skip
    add(
        "output",
        metavar="OUT_DIR",
        help="folder for the clips, 000000.wav and so on, and a manifest; existing clips are not "
        "made again",
    )
    options.add_model(parser)
    options.add_dtype(parser)
    options.add_clips_at_once(parser)
    shared = parser.add_mutually_exclusive_group()
    shared.add_argument(
        "--worker",
        type=_worker,
        default="1/1",
        metavar="I/N",
        help="do part I of N of the work; several machines may share OUT_DIR",
    )
    options.add_ray(shared)
    add(
        "--format", choices=("wav", "flac", "mp3", "ogg"), default="wav", help="format of the files"
    )
    options.add_duration(parser, "length of each clip, unless its line sets one")
    options.add_windows(parser)
    options.add_negative(parser, ", unless the line sets its own")
    options.add_sampling(parser)
    options.add_devices(parser)
    add(
        "--strategy",
        choices=STRATEGIES,
        default="loudness",
        help="the level of the files, as in generate",
    )
    options.add_reports(parser)
    hosts.add_arguments(parser)


def _worker(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if slash and all(part.isascii() and part.isdigit() for part in (number, count)):
        worker = int(number), int(count)
        if 1 <= worker[0] <= worker[1]:
            return worker
    raise argparse.ArgumentTypeError(f"must look like 2/4, from 1/4 to 4/4, got {text!r}")


def run(args: argparse.Namespace) -> None:
    """Makes the missing clips. If there are several processes, the first one writes them."""
    from musicgen_jax.generation.request import check_seed

    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.ray:
        ray_work.require()
    hosts.check_clips(args)
    seed = check_seed(args.seed, 1)
    hosts.start(args)

    from musicgen_jax.runtime import processes

    out = Console.of(args)
    work = processes.in_first(lambda: _open(args, seed, out))  # type: ignore[arg-type]
    if processes.several():
        from musicgen_jax.commands import batch_hosts

        job = batch_hosts.Job(work.folder, work.settings, work.share) if work else None
        written = batch_hosts.make_clips(_Maker, args, job)
    else:
        assert work is not None
        written = _written(args, work)
    if work is None:
        for _ in written:
            pass
        return
    with first_run.announced(out.note):
        shown = out.bar(written, total=len(work.share), desc="making", unit="clip")
        for i, file in enumerate(shown, 1):
            facts = clip_settings.read(file) or {} if args.json else {}
            out.made(f"wrote {file} ({i} of {len(work.share)})", file=str(file), **facts)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The work that is left to do in a folder.

    Attributes:
      folder: of the clips.
      settings: of all clips.
      share: the prompts of this worker whose clips are missing.
      finished: whether no clip of any worker is missing, and all are known to be of this model.
    """

    folder: "Folder"
    settings: dict[str, Any]
    share: "list[Prompt]"
    finished: bool


def _open(args: argparse.Namespace, seed: int, out: Console) -> _Work:
    """Reads the prompts and the folder.

    Raises:
      UserError: the prompts cannot be read, or the folder has other settings or clips.
    """
    from musicgen_jax.commands import batch_folder

    prompts = batch_folder.read_prompts(args.prompts, seed, args.negative)
    settings = {
        **options.keywords(options.sampling(args)),
        "duration": args.duration,
        "extend_stride": args.extend_stride,
        "join": args.join,
        "seed": args.seed,
        "strategy": args.strategy,
        "format": args.format,
    }
    folder = batch_folder.Folder(args.output, f".{args.format}", args.worker)
    if args.slots is not None and folder.setting("slots") is not None:
        settings["slots"] = args.slots
    folder.agree(settings, keep=False)
    missing = set(folder.missing(prompts))
    if len(missing) < len(prompts):
        out.say(f"{len(prompts) - len(missing)} of {len(prompts)} clips exist already")
    share = [prompt for prompt in batch_folder.share(prompts, args.worker) if prompt in missing]
    settings[batch_folder.MODEL_FILES] = batch_folder.files_of(args.model)
    finished = not missing and batch_folder.knows(folder, settings)
    return _Work(folder, settings, batch_folder.longest_first(share, args.duration), finished)


def _written(args: argparse.Namespace, work: _Work) -> Iterator[Path]:
    from musicgen_jax.commands import batch_folder

    if work.finished:
        return
    at_once: Any = {"slots": args.slots, "batch_size": args.batch_size}
    if args.ray and work.share:
        from musicgen_jax.commands import batch_ray

        yield from batch_ray.make_clips(
            _Maker, args, work.folder, work.settings, work.share, **at_once
        )
        return
    maker = _Maker(args)  # from here on it may take a while
    work.settings["model"] = batch_folder.digest(maker.model)
    work.folder.agree(work.settings, keep=False)
    if work.share:
        yield from batch_folder.make_clips(maker, work.folder, work.settings, work.share, **at_once)


class _Maker:
    """The model of the command, see `batch_folder.Maker`."""

    def __init__(self, args: argparse.Namespace):
        from musicgen_jax.model import MusicGen
        from musicgen_jax.runtime import compile_cache

        compile_cache.enable()
        self.model = MusicGen.from_pretrained(args.model, dtype=args.dtype, mesh=options.mesh(args))
        self._args, self._sampling = args, options.sampling(args)

    def _arguments(self, prompt: "Prompt") -> argparse.Namespace:
        """The command's arguments, with the line's own duration."""
        own = {} if prompt.duration is None else {"duration": prompt.duration}
        return argparse.Namespace(**{**vars(self._args), **own})

    def request(self, prompt: "Prompt") -> "Request":
        from musicgen_jax.generation.request import Request

        args = self._arguments(prompt)
        try:
            return Request(
                config=self.model.config,
                descriptions=[prompt.text],
                duration=args.duration,
                seed=prompt.seed,
                sampling=self._sampling,
                extend_stride=args.extend_stride,
                join=args.join,
                negative_descriptions=[prompt.negative],
            )
        except UserError as error:
            if prompt.duration is None:  # then it applies to all lines
                raise
            raise UserError(f"line {prompt.index + 1}: {error}") from None

    def write(self, path: Path, prompt: "Prompt", out: "GenerationOutput") -> None:
        from musicgen_jax import audio

        texts = {"prompt": prompt.text, "negative": prompt.negative}
        named = {**texts, "seed": prompt.seed, "program": out.program}
        audio.write(
            path,
            out.audio[0],
            out.sample_rate,
            self._args.strategy,
            loudness_compressor=True,
            comment=made.comment(self._arguments(prompt), self.model, self._sampling, **named),
        )
