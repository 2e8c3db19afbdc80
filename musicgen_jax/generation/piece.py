"""A piece of music: a request and its condition go in; windows, codes and audio follow."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.errors import UserError
from musicgen_jax.generation.joins import decode_windows
from musicgen_jax.generation.plan import cache_lengths
from musicgen_jax.generation.program_name import ProgramName
from musicgen_jax.generation.progress import Progress, progress_callback
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue
from musicgen_jax.generation.window_store import (
    WindowStore,
    condition_digest,
    fingerprint,
    machine,
)
from musicgen_jax.generation.windows import Window, assemble, generate_windows
from musicgen_jax.nn.encodec import channels
from musicgen_jax.storage.loading import Parts

_BLOCK_SECONDS = 4.0  # of audio decoded per call if nobody waits for it

Codes = tuple[Window, np.ndarray]  # int32 [B, K, t], the next frames of a window
Callback = Callable[[int, int], None] | None
OnAudio = Callable[[np.ndarray], object]


@dataclasses.dataclass(frozen=True)
class GenerationOutput:
    """Generated music, on the host.

    Attributes:
      audio: float32 [B, C, W], the codec's own output: it may exceed 1 in places. Loudness and
        clipping belong to saving, see `musicgen_jax.audio`.
      codes: int32 [B, K, T], the tokens of the language model.
      sample_rate: samples per second and channel.
      program: the name of the compiled program that drew the tokens; a seed's result depends on it.
      schedule: the cues of the request, each at the second where it took effect.
    """

    audio: np.ndarray
    codes: np.ndarray
    sample_rate: int
    program: ProgramName | None = None
    schedule: tuple[Cue, ...] = ()


def generate_piece(
    parts: Parts,
    request: Request,
    condition_at: ConditionAt,
    *,
    progress: Progress = False,
    on_audio: OnAudio | None = None,
) -> GenerationOutput:
    """Condition -> LM -> codes -> EnCodec -> waveform.

    Args:
      parts: of the model.
      request: what to generate.
      condition_at: the condition of each window.
      progress: as in `MusicGen.generate`.
      on_audio: as in `MusicGen.generate`.
    """
    piece = Piece(parts, request, condition_at)
    C = parts.config.audio_channels
    done: list[Codes] = []
    with progress_callback(progress) as callback:
        if len(request.windows) == 1 and on_audio is None:
            # Decoded as a whole: bit for bit what `decode` gives for these codes.
            done.extend(piece.codes(callback))
            codes = assemble(done)
            audio = channels.decode(parts.encodec, jnp.asarray(codes), C, parts.mesh)
        else:
            stretches = [np.zeros((request.batch, C, 0), np.float32)]
            for stretch in piece.audio(callback, done.append):
                (on_audio or stretches.append)(stretch)
            codes, audio = assemble(done), np.concatenate(stretches, axis=2)
    return GenerationOutput(
        np.asarray(audio),
        codes,
        parts.config.sample_rate,
        piece.program,
        piece.timeline.schedule,
    )


class Piece:
    """Music for a request. Making it opens the folder of finished windows; it generates nothing.

    Args:
      parts: of the model.
      request: what to generate.
      condition_at: the condition of each window.

    Attributes:
      timeline: which settings hold when; cues may be added while the piece is made.

    Raises:
      UserError: the folder holds another generation, or cannot be used.
    """

    def __init__(self, parts: Parts, request: Request, condition_at: ConditionAt):
        self.parts, self.request, self.condition_at = parts, request, condition_at
        self.timeline = request.timeline()
        self._store = None
        if request.checkpoint is not None:
            self._store = open_store(parts, request, condition_at)

    @property
    def schedule(self) -> tuple[Cue, ...]:
        """All changes, see `Session.schedule`."""
        return self.timeline.schedule

    def steer(self, cue: Cue) -> float:
        """Adds a cue at the next frame that is not drawn, and returns that frame's second.

        Raises:
          UserError: as `Timeline.add`; a text has too many tokens; or finished windows are kept,
            which would then no longer belong to the request.
        """
        if self._store is not None:
            raise UserError("a piece with a checkpoint cannot be steered: give it a schedule")
        self.parts.tokenizer([None, *cue.texts.values()])
        return self.timeline.add(cue, self.timeline.now)

    @property
    def program(self) -> ProgramName:
        """Names the program that makes the piece."""
        request, lm = self.request, self.parts.lm
        tokens = self.parts.tokenizer(request.every_text)[0].shape[1]
        frames = request.windows[0].length
        return ProgramName.of(
            lm,
            self.parts.mesh,
            clips=request.batch,
            slots=False,
            steps=cache_lengths(frames + max(lm.config.delays), lm.tuning)[-1],
            text=lm.tuning.text_length(tokens),
            negatives=request.has_negatives and lm.skip_null_rows,
        )

    def codes(self, callback: Callback = None) -> Iterator[Codes]:
        """Generates, see `windows.generate_windows`."""
        return generate_windows(
            self.parts.lm,
            self.condition_at,
            self.timeline,
            self.request.windows,
            keys=self.request.keys,
            prompt=self.request.prompt,
            frame_rate=self.parts.config.frame_rate,
            chunk=self.request.chunk_frames,
            callback=callback,
            store=self._store,
        )

    def audio(
        self, callback: Callback = None, on_codes: Callable[[Codes], object] | None = None
    ) -> Iterator[np.ndarray]:
        """Generates, and yields audio as it becomes final, float32 [B, C, n].

        Args:
          callback: as in `generate_windows`.
          on_codes: called with everything that `codes` yields.
        """

        def codes() -> Iterator[Codes]:
            for each in self.codes(callback):
                if on_codes is not None:
                    on_codes(each)
                yield each

        return decode_windows(
            self.parts.encodec,
            self.request.windows,
            codes(),
            channels=self.parts.config.audio_channels,
            block=block_frames(self.request),
        )


def open_store(
    parts: Parts, request: Request, condition_at: ConditionAt, program: ProgramName | None = None
) -> WindowStore:
    """The folder `request.checkpoint`, of this generation and of no other.

    Args:
      parts: of the model.
      request: what to generate.
      condition_at: the condition of each window.
      program: the program that makes it, if it is not the one that `generate_piece` runs.

    Raises:
      UserError: the folder holds another generation, or cannot be used.
    """
    config = parts.config
    starts = (request.windows[0].start, request.windows[-1].start)
    prompt = request.prompt
    settings = {
        **dataclasses.asdict(request.sampling),
        "seed": request.seed,
        "join": request.join,
        "descriptions": list(request.descriptions),
        "duration": request.windows[-1].end / config.frame_rate,
        "windows": [dataclasses.astuple(window) for window in request.windows[:2]],
        "prompt": None
        if prompt is None
        else hashlib.sha256(np.ascontiguousarray(prompt).tobytes()).hexdigest(),
        "condition": condition_digest(
            *(condition_at(start / config.frame_rate, request.texts) for start in starts)
        ),
        "model": fingerprint(parts.lm, parts.encodec),
        "machine": machine(parts.mesh),
    }
    if request.negative_descriptions is not None:  # folders of older versions still resume
        settings["negative_descriptions"] = list(request.negative_descriptions)
    if request.schedule:
        settings["schedule"] = [cue.fields() for cue in request.timeline().schedule]
    if request.followed is not None:
        settings["followed"] = request.followed
    if program is not None:
        settings["program"] = str(program)
    assert request.checkpoint is not None
    return WindowStore(
        request.checkpoint,
        settings,
        batch=request.batch,
        codebooks=config.lm.n_q,
        card=config.lm.card,
    )


def block_frames(request: Request) -> int:
    """Frames of audio decoded per call, unless the piece is decoded as a whole."""
    return request.chunk_frames or max(1, round(_BLOCK_SECONDS * request.config.frame_rate))
