"""Many prompts, one file each: work that can be interrupted, resumed and shared by workers.

    OUT_DIR/
      settings.json      the settings of all clips; another run must have the same
      000000.wav ...     clip i of line i, counted from 0
      manifest.jsonl     a line for every finished clip; worker 2 of 4 has manifest-2-of-4.jsonl

Clip i depends only on its text, the seed, i, and the program, whose number of slots is one of the
settings. It does not depend on which other clips are made at the same time. So an interrupted and
resumed run gives the same files to the last bit.

A file appears complete, then its line is added to the manifest, which only this worker writes. If a
worker dies, at most the clips that it had in hand are lost, and the next run makes them again.
Workers divide the lines by their numbers (`--worker 2/4`), without locks: machines need not agree
on anything, not even on the time. To finish a dead worker's share, start it again, or run once
without `--worker`. If two workers make the same clip, they write the same file.
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from musicgen_jax import files
from musicgen_jax.errors import UserError, is_number, user_error
from musicgen_jax.generation.settings import MAX_DURATION

if TYPE_CHECKING:
    from musicgen_jax.generation.piece import GenerationOutput
    from musicgen_jax.generation.request import Request
    from musicgen_jax.model import MusicGen
    from musicgen_jax.serving.ticket import Ticket

SETTINGS = "settings.json"
MODEL_FILES = "model_files"  # in the settings: `files_of` the model
_MANIFEST = re.compile(r"manifest(-\d+-of-\d+)?\.jsonl")
_CLIP = re.compile(r"\d{6,}").fullmatch
_LARGEST = 1 << 28  # bytes of a file of prompts or a manifest
_LONGEST = 10_000  # characters of a line
_MOST_PROMPTS = 1_000_000
STDIN = "-"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One line of the file.

    Attributes:
      index: i, the number of the line, counted from 0.
      text: the description, None for music without one.
      seed: the seed with which `MusicGen.generate` makes this clip alone.
      negative: what the music moves away from, None for nothing.
      duration: seconds, None for those of all clips.
    """

    index: int
    text: str | None
    seed: int
    negative: str | None = None
    duration: float | None = None

    @property
    def own(self) -> dict[str, Any]:
        """The optional fields of a line, None where they are absent."""
        return {"negative": self.negative, "duration": self.duration}


def read_prompts(
    path: str | os.PathLike[str], seed: int, negative: str | None = None
) -> list[Prompt]:
    """Reads all prompts, or refuses the file.

    Args:
      path: a .txt file with a description on each line; or a .jsonl file with a string on each
        line, or an object {"prompt": text or null, "seed": integer, "negative": text or null,
        "duration": seconds}. Only the prompt is needed. UTF-8; empty lines may stand at the end
        only. "-" is stdin, with lines of JSON if it begins with {, else with descriptions.
      seed: clip i gets a seed of its own from it and i, unless its line names one.
      negative: of the clips whose line does not name one.

    Raises:
      UserError: the file cannot be read, or a line is wrong; the message names the first.
    """
    if path == STDIN:
        name, suffix, content = "stdin", "", _read_stdin()
    else:
        name, suffix = str(path), Path(path).suffix.lower()
        if suffix not in (".txt", ".jsonl"):
            raise UserError(f"the prompts must be in a .txt or .jsonl file, got {name!r}")
        content = files.read_bytes(path, _LARGEST)
    content = content.removeprefix(b"\xef\xbb\xbf").rstrip()
    # Whichever system wrote the file; JSON and descriptions alike have no bare line ends inside.
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not content:
        raise UserError(f"{name} holds no prompts")
    if content.count(b"\n") >= _MOST_PROMPTS:
        raise UserError(f"{name} holds more than {_MOST_PROMPTS} prompts: divide it")
    objects = suffix == ".jsonl" or (path == STDIN and content.startswith(b"{"))
    parse = _parse_json if objects else _parse_text
    prompts = []
    for i, line in enumerate(content.split(b"\n")):
        try:
            prompt = parse(line, Prompt(i, None, clip_seed(seed, i), negative or None))
        except ValueError as error:
            raise UserError(f"{name}, line {i + 1}: {error}") from None
        prompts.append(prompt)
    return prompts


def _read_stdin() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    with user_error("read", "stdin"):
        content = stream.read(_LARGEST + 1) if stream else b""
    if len(content) > _LARGEST:
        raise UserError(f"stdin holds more than {_LARGEST} bytes of prompts")
    return content


def clip_seed(seed: int, index: int) -> int:
    """The seed of clip `index`, below 2^32; it differs for every clip and every seed."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def _parse_text(line: bytes, usual: Prompt) -> Prompt:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text:
        raise ValueError("empty; for music without a description use lines of JSON and null")
    return dataclasses.replace(usual, text=_checked(text))


def _parse_json(line: bytes, usual: Prompt) -> Prompt:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        value = {"prompt": value}
    if unknown := sorted(value.keys() - {"prompt", "seed", "negative", "duration"}):
        raise ValueError(
            f"unknown field {unknown[0]!r:.80}, known are prompt, seed, negative and duration"
        )
    if "prompt" not in value:
        raise ValueError("the field prompt is missing")
    text, seed, duration = value["prompt"], value.get("seed"), value.get("duration")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the prompt must be a string or null, got {json.dumps(text):.80}")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise ValueError(f"the seed must be an integer from 0 to {2**32 - 1}, got {seed!r:.80}")
    against = value.get("negative", usual.negative)
    if against is not None and not isinstance(against, str):
        raise ValueError(f"the negative must be a string or null, got {json.dumps(against):.80}")
    if duration is not None and not (is_number(duration) and 0 < duration <= MAX_DURATION):
        raise ValueError(
            f"the duration must be more than 0 and at most {MAX_DURATION} seconds (a day), got "
            f"{duration!r:.80}"
        )
    return Prompt(
        usual.index,
        _checked(text) if text else None,
        usual.seed if seed is None else seed,
        _checked(against) if against else None,
        duration,
    )


def _checked(text: str) -> str:
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text)} characters; a description has at most {_LONGEST}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON lets through
        raise ValueError("not valid text: it contains half of a character") from None
    return text


# --- The folder -----------------------------------------------------------------------------------


class Folder:
    """The clips that are finished, and their settings.

    Args:
      path: the folder; made if it does not exist.
      suffix: of the clips' files.
      worker: its number, from 1, and the number of workers.

    Raises:
      UserError: it cannot be made or read.
    """

    def __init__(self, path: str | os.PathLike[str], suffix: str, worker: tuple[int, int]):
        self.path, self.suffix = Path(path), suffix
        number, count = worker
        self.manifest = "manifest.jsonl" if count == 1 else f"manifest-{number}-of-{count}.jsonl"
        with user_error("write", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        files.remove_abandoned(self.path)

    def name(self, prompt: Prompt) -> str:
        """The clip's file, within the folder."""
        return f"{prompt.index:06d}{self.suffix}"

    def agree(self, settings: Mapping[str, Any], *, keep: bool) -> None:
        """Compares settings with those of the folder.

        Args:
          settings: plain JSON types; all of them, or some.
          keep: whether to store them if the folder has none yet.

        Raises:
          UserError: they differ; the message names the first that does. Or the folder has clips of
            somebody else.
        """
        file = self.path / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if not file.exists():
            names = self.path.glob(f"*{self.suffix}")
            clips = sorted(each.name for each in names if _CLIP(each.stem))
            begun = file.exists() or any(self.path.glob("manifest*.jsonl"))  # by another worker now
            if clips and not begun:
                raise UserError(
                    f"{self.path / clips[0]} was not made here, and would be overwritten: choose "
                    "another folder"
                )
            if keep:
                files.write_bytes(file, json.dumps(wanted, indent=2).encode())
            return
        found = files.read_json(file)
        for key, value in wanted.items():
            if key != MODEL_FILES and found.get(key) != value:
                before = "" if key == "model" else f" {found.get(key)!r:.80}, not {value!r:.80}"
                raise UserError(
                    f"{self.path} was started with "
                    + (f"{key}{before}" if before else "another model")
                    + ": choose another folder"
                )

    def missing(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts whose clips are not finished.

        Raises:
          UserError: a finished clip is of another prompt, or a manifest cannot be read.
        """
        records: dict[int, list[dict]] = {}
        for record in self._records():
            records.setdefault(record["index"], []).append(record)
        left = []
        for prompt in prompts:
            file, sizes = self.path / self.name(prompt), []
            for record in records.get(prompt.index, []):
                text, seed = record.get("prompt"), record.get("seed")
                for name, wanted in prompt.own.items():
                    if record.get(name) != wanted:
                        raise UserError(
                            f"line {prompt.index + 1}: {file} was made with the {name} "
                            f"{record.get(name)!r:.80}, not {wanted!r:.80}: choose another folder"
                        )
                if (text, seed) != (prompt.text, prompt.seed):
                    raise UserError(
                        f"line {prompt.index + 1}: {file} is of the prompt {text!r:.80} with the "
                        f"seed {seed!r:.20}, not of {prompt.text!r:.80} with {prompt.seed}: choose "
                        "another folder"
                    )
                sizes.append(record.get("bytes"))
            if not sizes or not file.is_file() or file.stat().st_size not in sizes:
                left.append(prompt)
        return left

    def begun(self) -> bool:
        """Whether the folder has settings."""
        return (self.path / SETTINGS).exists()

    def setting(self, key: str) -> Any:
        """A setting that the folder was started with; None if it has none of this name."""
        return files.read_json(self.path / SETTINGS).get(key) if self.begun() else None

    def finished(self, prompt: Prompt, seconds: float, program: str) -> None:
        """Adds a finished clip's line to the manifest; `program` names what made it."""
        file = self.path / self.name(prompt)
        record = {
            "index": prompt.index,
            "file": file.name,
            "prompt": prompt.text,
            **{name: value for name, value in prompt.own.items() if value is not None},
            "seed": prompt.seed,
            "seconds": seconds,
            "bytes": file.stat().st_size,
            "program": program,
        }
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        path = self.path / self.manifest
        with user_error("write", path), path.open("a+b") as manifest:
            if manifest.tell():  # a line that a dying worker left unfinished stays separate
                manifest.seek(-1, os.SEEK_END)
                line = line if manifest.read(1) == b"\n" else b"\n" + line
            manifest.write(line)
            manifest.flush()
            os.fsync(manifest.fileno())

    def _records(self) -> Iterator[dict]:
        """Every whole line of every manifest; a line that a dying worker began does not count."""
        with user_error("read", self.path):
            manifests = sorted(f for f in self.path.iterdir() if _MANIFEST.fullmatch(f.name))
        for file in manifests:
            for line in files.read_bytes(file, _LARGEST).split(b"\n"):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict) and type(record.get("index")) is int:
                    yield record


# --- The work -------------------------------------------------------------------------------------


def longest_first(prompts: Sequence[Prompt], duration: float) -> list[Prompt]:
    """The order to make clips in: with short ones at the end, few slots are empty there.

    Args:
      prompts: of the clips.
      duration: seconds of the clips whose line names none.
    """
    return sorted(
        prompts, key=lambda prompt: -(duration if prompt.duration is None else prompt.duration)
    )


def share(prompts: Sequence[Prompt], worker: tuple[int, int] = (1, 1)) -> list[Prompt]:
    """The prompts of one worker: every n-th of all, whatever the others have done."""
    number, count = worker
    return list(prompts[number - 1 :: count])


class Maker(Protocol):
    """A model, and what is asked of it."""

    model: "MusicGen"

    def request(self, prompt: Prompt) -> "Request":
        """What the model is asked for."""
        ...

    def write(self, path: Path, prompt: Prompt, out: "GenerationOutput") -> None:
        """Writes the one clip that was made to a file that appears whole or not at all."""
        ...


def digest(model: "MusicGen") -> str:
    """Names the model in the settings."""
    from musicgen_jax.generation.window_store import fingerprint

    return fingerprint(model.t5, model.lm, model.encodec)


def files_of(model: str | os.PathLike[str]) -> str:
    """Identifies the files of a model, without reading its weights.

    Names and sizes are enough: Orbax draws new names for the files of weights each time it saves.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    from musicgen_jax.storage.hub import find_model

    folder = find_model(model)
    with user_error("read", folder):
        found = [file for file in folder.rglob("*") if file.is_file()]
        lines = [f"{file.relative_to(folder).as_posix()} {file.stat().st_size}" for file in found]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def knows(folder: "Folder", settings: Mapping[str, Any]) -> bool:
    """Whether a folder was begun with the same files of a model; if not, the weights may differ."""
    return folder.setting(MODEL_FILES) == settings[MODEL_FILES]


def slots_for(model: "MusicGen", slots: int | None) -> int:
    """`slots`, or the number for this kind of device and the parts of the data axis."""
    from musicgen_jax.runtime import sharding

    parts = 1 if model.mesh is None else model.mesh.shape[sharding.DATA]
    found = slots or model.lm.tuning.slots * parts
    assert found is not None
    return found


def begin(folder: Folder, settings: dict[str, Any], slots: int) -> None:
    """Compares all settings with those of the folder, or stores them.

    Raises:
      UserError: they differ.
    """
    if folder.begun() and folder.setting("slots") is None:
        print(
            f"musicgen-jax: an earlier version started {folder.path}: new clips come from a "
            f"different program, which the manifest names",
            file=sys.stderr,
        )
        folder.agree(settings, keep=True)
    else:
        folder.agree(settings | {"slots": slots}, keep=True)


def make_clips(
    maker: Maker,
    folder: Folder,
    settings: dict[str, Any],
    prompts: Sequence[Prompt],
    *,
    slots: int | None,
    batch_size: int | None,
) -> Iterator[Path]:
    """Makes clips in slots, and writes them in the order of `prompts`.

    Args:
      maker: makes them.
      folder: the clips' folder. It stores the settings, including the number of slots, once the
        model has accepted them all.
      settings: of all clips.
      prompts: of the clips to make, at least one.
      slots: N; None for that of the folder, or else of this kind of device.
      batch_size: the most clips that are begun and not yet written; None for twice the slots.

    Yields:
      every file that it wrote.
    """
    from musicgen_jax.serving.scheduler import scheduler_for

    slots = slots_for(maker.model, slots or folder.setting("slots"))
    size = batch_size or 2 * slots
    requests = {prompt: maker.request(prompt) for prompt in prompts}
    with scheduler_for(maker.model.parts, requests.values(), slots=slots, queue=size) as scheduler:
        begin(folder, settings, slots)
        left, begun = iter(requests.items()), deque[tuple[Prompt, "Ticket"]]()
        while True:
            for prompt, asked in islice(left, size - len(begun)):
                begun.append((prompt, scheduler.submit(asked)))
            if not begun:
                return
            prompt, ticket = begun.popleft()
            made, file = ticket.result(), folder.path / folder.name(prompt)
            maker.write(file, prompt, made)
            folder.finished(prompt, made.audio.shape[2] / made.sample_rate, str(made.program))
            yield file
