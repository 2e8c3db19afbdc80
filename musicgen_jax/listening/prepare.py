"""Makes the folder of a study, or finds that it already exists."""

import contextlib
import dataclasses
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from musicgen_jax import audio, files
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.listening import captions, stimuli, study
from musicgen_jax.listening.pairing import Piece, pair
from musicgen_jax.listening.study import ANCHOR, REFERENCE, Clip, Item, Study

_UNEQUAL = 0.1  # seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """The inputs of a study.

    Attributes:
      systems: {name: folder of clips}; one called `REFERENCE` is the hidden reference.
      captions: a table, see `captions.read`; None: no texts and no melodies.
      title: title of the page.
      seed: seed of the order of pieces and clips.
      per_rater: how many pieces one rater hears; None: all.
      must_hear: the share of a clip that must be heard before it is scored.
      seconds: the longest part of a clip that is kept.
      lufs: loudness of the clips, see `stimuli.Form`.
      skip: leave out pieces with a clip that cannot be used.
    """

    systems: Mapping[str, Path]
    captions: Path | None = None
    title: str = "Listening study"
    seed: int = 0
    per_rater: int | None = None
    must_hear: float = 1.0
    seconds: float = 30.0
    lufs: float = -18.0
    skip: bool = False


def prepare(
    plan: Plan,
    folder: Path,
    note: Callable[[str], None],
    bar: Bar = plain,
) -> Study:
    """Makes a study, unless the same one is in the folder already.

    Args:
      plan: the inputs of the study.
      folder: where it goes; it appears complete or not at all.
      note: takes a line about each thing that the user should know.
      bar: wraps the iteration over pieces.

    Raises:
      UserError: the clips cannot be used, or the folder holds something else.
    """
    texts = captions.read(plan.captions) if plan.captions is not None else None
    pieces, notes = pair(plan.systems, texts)
    for line in notes:
        note(f"{line}: left out")
    inputs = _digest(plan, pieces)
    if study.is_study(folder):
        known = study.load(folder)
        if known.inputs != inputs:
            raise UserError(
                f"{folder} holds another study (other clips or settings): choose another folder, "
                f"or leave out --systems to continue that study"
            )
        return known
    files.check_vacant(folder)
    if REFERENCE not in plan.systems:
        note(
            f"no system is called {REFERENCE}: there is no hidden reference and no anchor, and "
            "raters are not screened by them"
        )
    pieces = _readable(pieces, plan, note)
    form = stimuli.form_of(pieces, plan.seconds, plan.lufs)
    with files.new_folder(folder) as temporary:
        items = []
        for piece in bar(pieces, total=len(pieces), desc="preparing", unit="piece"):
            with _skipping(piece, plan, note):
                items.append(_item(piece, form, study.clips_folder(temporary)))
        if not items:
            raise UserError("no piece is left: every one has a clip that cannot be used")
        made = _study(plan, inputs, form, tuple(items))
        files.write_bytes(temporary / "study.json", study.dump(made))
    return made


def _study(plan: Plan, inputs: str, form: stimuli.Form, items: tuple[Item, ...]) -> Study:
    names = [name for name in plan.systems if name != REFERENCE]
    names += [REFERENCE, ANCHOR] if REFERENCE in plan.systems else []
    return Study(
        format=study.FORMAT,
        id=secrets.token_hex(8),
        inputs=inputs,
        title=plan.title,
        seed=plan.seed,
        per_rater=min(plan.per_rater or len(items), len(items)),
        must_hear=plan.must_hear,
        sample_rate=form.sample_rate,
        systems=tuple(names),
        items=items,
    )


@contextlib.contextmanager
def _skipping(piece: Piece, plan: Plan, note: Callable[[str], None]) -> Iterator[None]:
    """With `plan.skip`, a clip that cannot be used costs its piece, not the study."""
    try:
        yield
    except UserError as error:
        if not plan.skip:
            raise UserError(f"{error} (or add --skip to leave such pieces out)") from None
        note(f"{piece.id} is left out: {error}")


def _readable(pieces: list[Piece], plan: Plan, note: Callable[[str], None]) -> list[Piece]:
    """The pieces whose files are audio. Says so where clips of a piece differ in length."""
    kept, unequal = [], []
    for piece in pieces:
        with _skipping(piece, plan, note):
            lengths = [audio.info(file).duration for file in piece.clips.values()]
            kept.append(piece)
            if max(lengths) - min(lengths) > _UNEQUAL and min(lengths) < plan.seconds:
                unequal.append(piece.id)
    if unequal:
        note(
            f"clips of different length are cut to the shortest of their piece, in {len(unequal)} "
            f"of {len(kept)} pieces, first in {unequal[0]}"
        )
    return kept


def _item(piece: Piece, form: stimuli.Form, folder: Path) -> Item:
    wavs, melody = stimuli.render(piece, form)

    def write(wav) -> str:
        name = f"{secrets.token_hex(8)}.wav"
        # Unchanged, since its level is set: "clip" does not change samples below -1 dB.
        audio.write(folder / name, wav, form.sample_rate, "clip", peak_clip_headroom_db=0)
        return name

    return Item(
        id=piece.id,
        text=piece.caption.text,
        melody=None if melody is None else write(melody),
        clips=tuple(Clip(system, write(wav)) for system, wav in wavs.items()),
    )


def _digest(plan: Plan, pieces: list[Piece]) -> str:
    """A digest of everything that distinguishes this study from another."""
    settings = dataclasses.asdict(plan) | {"systems": list(plan.systems), "captions": None}
    digest = hashlib.sha256(json.dumps(settings).encode())
    for piece in pieces:
        digest.update(json.dumps([piece.id, piece.caption.text]).encode())
        for file in (*piece.clips.values(), piece.caption.melody):
            if file is not None:
                digest.update(_content(file))
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    with user_error("read", file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
