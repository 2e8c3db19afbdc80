"""`musicgen-jax app`: a page in the browser that makes music, on this machine alone."""

import argparse
import dataclasses
import importlib.util
import os
import signal
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_jax.commands import endings, first_run, models, options
from musicgen_jax.config import DTYPES
from musicgen_jax.console import Console
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.serving.http.about import About, Choice
    from musicgen_jax.storage.loading import Parts

_NEEDED = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_LONGEST = 600.0  # seconds of a clip: an hour would fill the memory of a browser's page
_PATIENCE = 24 * 3600.0  # seconds: on a slow machine a clip may take hours
_NANO_KNOWS = (
    "{name} knows eight instruments: piano, guitar, organ, strings, flute, trumpet, music box and "
    "synth. It knows waltzes, marches, lullabies, ballads, jigs, pop and folk tunes, slow, medium "
    "or fast, in major or minor. It has heard only music that a program composed: no voices, no "
    "recordings. For anything else it plays the nearest thing that it knows. {melody}"
)
_NANO_AND_MELODIES = {
    "nano": "To have a tune of your own played, choose nano-melody.",
    "nano-melody": "It plays a tune that you whistle, sing or upload, in G major or E minor.",
}
_NANO_PLAYS = (
    "a slow lullaby on a music box",
    "a fast irish jig for flute with guitar",
    "a calm waltz for solo piano",
    "a sad ballad for strings in minor",
    "a bright parade march with trumpet and drums",
    "a happy pop song with synth, bass and drums",
)
_OFFICIAL_KNOWS = (
    "The official models learnt from instrumental music, mostly Western, with English "
    "descriptions. They sing no words, may end early or fall silent, and can repeat the biases of "
    "their training data. The weights are for research and private use, not for commercial use."
)
_OFFICIAL_PLAYS = (
    "lo-fi hip hop with a warm Rhodes piano and vinyl crackle",
    "80s synth-pop with a driving bass and gated drums",
    "an epic orchestral theme with brass and timpani",
    "acoustic folk with fingerpicked guitar and soft percussion",
    "fast bluegrass with banjo and fiddle",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    options.add_model(parser)
    add("--port", type=int, default=7860, help="0 picks a free one")
    add("--no-open", action="store_true", help="do not open the browser")
    add("--slots", type=int, default=1, metavar="N", help="clips that are made at once; more wait. "
        "The result of a seed depends on it")  # fmt: skip
    add("--dtype", choices=DTYPES, help="dtype of the language model (default: float32 on a CPU, "
        "bfloat16 elsewhere)")  # fmt: skip
    options.add_devices(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"app needs {', '.join(missing)}: pip install 'musicgen-jax[app]'")
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port must be from 0 to 65535, got {args.port}")
    if args.slots < 1:
        raise UserError(f"--slots must be at least 1, got {args.slots}")

    from musicgen_jax.serving.http import run as server

    taken = server.bind("127.0.0.1", args.port)
    try:
        return _serve(args, taken)
    finally:
        taken.close()


def _serve(args: argparse.Namespace, taken: socket.socket) -> int:
    """Serves one model after the other, as the page chooses them; the first one must load."""
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.storage import hub

    compile_cache.enable()
    given = hub.find_model(args.model)
    name: str | None = _name_of(given, args.model)
    places = {name: given}
    notice, before = "", None
    while name is not None:
        choices, found = _choices(places)
        try:
            if name not in found:
                raise UserError("its folder no longer exists")
            parts, about = _load(args, found[name])
        except UserError as error:
            if before is None:
                raise
            name, notice, before = before, f"{name} cannot be loaded: {error}", None
            continue
        about = dataclasses.replace(about, choices=choices, notice=notice)
        before, notice = name, ""
        name = _until_switched(args, taken, name, parts, about)
        del parts  # two models may not fit
    return 0


def _load(args: argparse.Namespace, folder: Path) -> tuple["Parts", "About"]:
    from musicgen_jax.model import MusicGen

    parts = MusicGen.from_pretrained(folder, dtype=args.dtype, mesh=options.mesh(args)).parts
    return parts, _about(folder, parts.config.name)


def _until_switched(
    args: argparse.Namespace, taken: socket.socket, name: str, parts: "Parts", about: "About"
) -> str | None:
    """Serves a model; returns the next one, or None at the end."""
    from musicgen_jax.serving.http import run as server
    from musicgen_jax.serving.http.service import Service
    from musicgen_jax.serving.http.settings import Settings
    from musicgen_jax.serving.scheduler import Scheduler

    settings = Settings(
        model=name,
        max_duration=_LONGEST,
        max_job_duration=_LONGEST,
        max_endless=_PATIENCE,
        deadline=_PATIENCE,
        hear=models.hearing_of(name),
        page=about,
    )
    # Not warm: one listener would rather wait for what they ask for than for everything.
    scheduler = Scheduler(parts, slots=args.slots, seconds=_LONGEST, negatives=True, warm=False)
    service = Service(scheduler, settings)
    http = server.MusicServer(service)
    chosen: list[str] = []

    def switch(other: str) -> None:
        chosen.append(other)
        service.draining = f"{other} is being loaded: try again in a moment"
        http.handle_exit(signal.SIGTERM, None)  # finishes what runs

    service.switch = switch
    url = server.url(taken)
    print(f"{settings.model} plays on {url} (Ctrl-C stops)", flush=True)
    if not args.no_open and _has_screen():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        args.no_open = True  # the page is there when the next model is
    with first_run.announced(Console().note):
        # A server closes its socket: whoever asks meanwhile waits on this one.
        http.run([taken.dup()])
    if http.force_exit:
        # XLA cannot be interrupted: closing would wait for a compilation that nobody needs.
        sys.stderr.flush()
        os._exit(endings.INTERRUPTED)
    scheduler.close()
    return chosen[0] if chosen else None


def _name_of(folder: Path, given: str) -> str:
    """The name under which the page lists a model."""
    for model in models.playable():
        if model["folder"] == str(folder):
            return model["name"]
    return os.path.basename(os.path.normpath(given))


def _choices(places: dict[str, Path]) -> tuple[tuple["Choice", ...], dict[str, Path]]:
    """The models that the page lists, and the folders of those that are on this machine.

    Args:
      places: the model that the command was given, by its name; it may lie anywhere.
    """
    from musicgen_jax.serving.http.about import Choice

    found = models.playable()
    here = (models.BUNDLED, models.READY)
    ready = {each["name"]: Path(each["folder"]) for each in found if each["state"] in here}
    own = [Choice(name, True, "given to the command") for name in places if name not in ready]
    listed = [
        Choice(
            each["name"],
            each["name"] in ready,
            each["what"],
            f"musicgen-jax app --model {each['name']}" if each["state"] == models.MISSING else "",
        )
        for each in found
    ]
    return (*own, *listed), ready | places


def _has_screen() -> bool:
    """Whether a browser can open a window; without one it would take over the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _about(folder: Path, name: str) -> "About":
    """What the page says about the model in a folder."""
    from musicgen_jax.serving.http.about import About

    file = folder / "LICENSE"
    terms = file.read_text("utf-8", "replace")[: 1 << 14] if file.is_file() else ""
    if name in _NANO_AND_MELODIES:
        knows = _NANO_KNOWS.format(name=name, melody=_NANO_AND_MELODIES[name])
        return About("MIT licence", terms, knows, _NANO_PLAYS)
    if "CC-BY-NC 4.0" in terms:
        licence = "CC-BY-NC 4.0, not for commercial use"
        return About(licence, terms, _OFFICIAL_KNOWS, _OFFICIAL_PLAYS)
    return About("licence: see below", terms or "The model's folder has no LICENSE.", "", ())
