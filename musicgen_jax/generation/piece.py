"""A piece of music: a request and its condition go in; windows, codes and audio follow."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.generation.joins import decode_windows
from musicgen_jax.generation.plan import cache_lengths
from musicgen_jax.generation.program_name import ProgramName
from musicgen_jax.generation.progress import Progress, progress_callback
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.window_store import (
    WindowStore,
    condition_digest,
    fingerprint,
    machine,
)
from musicgen_jax.generation.windows import Window, assemble, generate_windows
from musicgen_jax.nn.encodec import channels
from musicgen_jax.storage.loading import Parts

_BLOCK_SECONDS = 4.0  # of audio decoded per call where nobody waits for it

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
      program: names what the seed stands for: the compiled program that drew the tokens.
    """

    audio: np.ndarray
    codes: np.ndarray
    sample_rate: int
    program: ProgramName | None = None


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
    with progress_callback(progress) as callback:
        if len(request.windows) == 1 and on_audio is None:
            # Decoded as a whole: bit for bit what `decode` gives for these codes.
            codes = assemble(piece.codes(callback))
            audio = channels.decode(parts.encodec, jnp.asarray(codes), C, parts.mesh)
        else:
            stretches = [np.zeros((request.batch, C, 0), np.float32)]
            for stretch in piece.audio(callback):
                (on_audio or stretches.append)(stretch)
            codes, audio = assemble(piece.done), np.concatenate(stretches, axis=2)
    return GenerationOutput(np.asarray(audio), codes, parts.config.sample_rate, piece.program)


class Piece:
    """Music for a request. Making it opens the folder of finished windows; it generates nothing.

    Args:
      parts: of the model.
      request: what to generate.
      condition_at: the condition of each window.

    Attributes:
      done: windows and the codes made in them so far, see `windows.assemble`.

    Raises:
      UserError: the folder holds another generation, or cannot be used.
    """

    def __init__(self, parts: Parts, request: Request, condition_at: ConditionAt):
        self.parts, self.request, self.condition_at = parts, request, condition_at
        self.done: list[tuple[Window, np.ndarray]] = []
        self._store = None
        if request.checkpoint is not None:
            self._store = open_store(parts, request, condition_at)

    @property
    def program(self) -> ProgramName:
        """Names the program that makes the piece."""
        request, lm = self.request, self.parts.lm
        negatives = request.negative_descriptions
        texts = [*request.descriptions, *(negatives or ())]
        tokens = self.parts.tokenizer(texts)[0].shape[1]
        frames = max(window.length for window in request.windows)
        return ProgramName.of(
            lm,
            self.parts.mesh,
            clips=request.batch,
            slots=False,
            steps=cache_lengths(frames + max(lm.config.delays), lm.tuning)[-1],
            text=lm.tuning.text_length(tokens),
            negatives=negatives is not None and lm.skip_null_rows,
        )

    def codes(self, callback: Callback = None) -> Iterator[tuple[Window, np.ndarray]]:
        """Generates, see `windows.generate_windows`, and keeps what it yields in `done`."""
        for piece in generate_windows(
            self.parts.lm,
            self.condition_at,
            self.request.texts,
            self.request.windows,
            keys=self.request.keys,
            prompt=self.request.prompt,
            sampling=self.request.sampling,
            frame_rate=self.parts.config.frame_rate,
            chunk=self.request.chunk_frames,
            callback=callback,
            store=self._store,
        ):
            self.done.append(piece)
            yield piece

    def audio(self, callback: Callback = None) -> Iterator[np.ndarray]:
        """Generates, and yields audio as it becomes final, float32 [B, C, n]."""
        return decode_windows(
            self.parts.encodec,
            self.request.windows,
            self.codes(callback),
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
      program: that makes it, if it is not the one that `generate_piece` runs.

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
