"""A piece of music: its condition goes in; checks, windows, codes and audio follow.

What every `MusicGen.generate_*` goes through, whatever its condition comes from.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.conditioning import arguments
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_number
from musicgen_jax.generation.decode import example_keys
from musicgen_jax.generation.joins import check_join, decode_windows, overlap_frames
from musicgen_jax.generation.progress import Progress, progress_callback
from musicgen_jax.generation.window_store import Checkpoint, condition_digest, fingerprint, machine
from musicgen_jax.generation.windows import Window, assemble, generate_windows, layout
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.encodec import Encodec, channels
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime.sharding import mesh_of

DEFAULT_DURATION = 8.0
MAX_DURATION = 24 * 3600  # seconds; a bound on slips of the finger
_BLOCK_SECONDS = 4.0  # of audio decoded at once where nobody waits for it

Callback = Callable[[int, int], None] | None
OnAudio = Callable[[np.ndarray], object]


@dataclasses.dataclass(frozen=True)
class GenerationOutput:
    """Generated music, on the host.

    Attributes:
      audio: float32 [B, C, W], the codec's own output: it may exceed 1 in places. Loudness and
        clipping belong to saving, see `musicgen_jax.audio`.
      codes: int32 [B, K, T], what the language model wrote.
      sample_rate: samples per second and channel.
    """

    audio: np.ndarray
    codes: np.ndarray
    sample_rate: int


def generate_piece(
    lm: LM,
    encodec: Encodec,
    config: MusicGenConfig,
    texts: Sequence[str | None],
    condition_at: Callable[[float], Condition],
    *,
    progress: Progress = False,
    on_audio: OnAudio | None = None,
    **settings,
) -> GenerationOutput:
    """Generates under any condition: condition -> LM -> codes -> EnCodec -> waveform.

    Args:
      lm: this and the others as in `Piece`.
      encodec: see there.
      config: see there.
      texts: see there.
      condition_at: see there.
      progress: as in `MusicGen.generate`.
      on_audio: as in `MusicGen.generate`.
      **settings: the other arguments of `Piece`.
    """
    piece = Piece(lm, encodec, config, texts, condition_at, **settings)
    C = config.audio_channels
    with progress_callback(progress) as callback:
        if len(piece.windows) == 1 and on_audio is None:
            codes = assemble(piece.codes(callback))
            audio = channels.decode(encodec, jnp.asarray(codes, jnp.int32), C, mesh_of(lm))
        else:
            stretches = [np.zeros((len(texts), C, 0), np.float32)]
            for stretch in piece.audio(callback):
                (on_audio or stretches.append)(stretch)
            codes, audio = assemble(piece.done), np.concatenate(stretches, axis=2)
    return GenerationOutput(np.asarray(audio), codes, config.sample_rate)


class Piece:
    """Music for B descriptions. Everything is checked here; nothing is generated yet.

    Args:
      lm: language model.
      encodec: codec.
      config: of the model.
      texts: B checked descriptions.
      condition_at: the condition (B rows, the same shapes each time) of the window that begins so
        many seconds into the piece. Not called before all else is checked.
      duration: this and the others as in `MusicGen.generate`.
      prompt_codes: see there.
      seed: see there.
      extend_stride: see there.
      join: see there.
      checkpoint: see there.
      chunk_seconds: see there.
      top_k: see there.
      top_p: see there.
      temperature: see there.
      cfg_coef: see there.
      cfg_coef_beta: see `MusicGen.generate_with_style`.
      **sampling: further arguments of `generate.stream_codes`, already checked.

    Attributes:
      windows: how the piece is laid out.
      done: windows and the codes made in them so far, see `windows.assemble`.

    Raises:
      UserError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        lm: LM,
        encodec: Encodec,
        config: MusicGenConfig,
        texts: Sequence[str | None],
        condition_at: Callable[[float], Condition],
        *,
        duration: float = DEFAULT_DURATION,
        prompt_codes: jax.Array | np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike | None = None,
        chunk_seconds: float | None = None,
        top_k: int = arguments.DEFAULT_TOP_K,
        top_p: float = 0.0,
        temperature: float = 1.0,
        cfg_coef: float = 3.0,
        cfg_coef_beta: float | None = None,
        **sampling,
    ):
        self.lm, self.encodec, self.config = lm, encodec, config
        self.condition_at = condition_at
        self.done: list[tuple[Window, np.ndarray]] = []
        batch = len(texts)
        frames = num_frames(config, duration)
        arguments.check_sampling(
            top_k, top_p, temperature, cfg_coef, cfg_coef_beta, card=config.lm.card
        )
        self._sampling = {
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "cfg_coef": cfg_coef,
            "cfg_coef_beta": cfg_coef_beta,
            **sampling,
        }
        seed = arguments.check_seed(seed, batch)
        self._keys = example_keys(seed, batch)
        self._prompt = None
        if prompt_codes is not None:
            codes = check_codes(config, prompt_codes, "prompt_codes")
            check_prompt(config, codes.shape[2], frames)
            self._prompt = np.asarray(arguments.match_batch(codes, batch))
        self._chunk = _chunk_frames(config, chunk_seconds)
        self.windows = self._layout(frames, extend_stride, join)
        self._store = None
        if checkpoint is not None:
            self._store = self._checkpoint(checkpoint, texts, seed=seed, join=join)

    def codes(self, callback: Callback = None) -> Iterator[tuple[Window, np.ndarray]]:
        """Generates, see `windows.generate_windows`; what it yields is also kept in `done`."""
        pieces = generate_windows(
            self.lm,
            self.condition_at,
            self.windows,
            keys=self._keys,
            prompt=self._prompt,
            frame_rate=self.config.frame_rate,
            chunk=self._chunk,
            callback=callback,
            store=self._store,
            **self._sampling,
        )
        for piece in pieces:
            self.done.append(piece)
            yield piece

    def audio(self, callback: Callback = None) -> Iterator[np.ndarray]:
        """Generates, and yields audio as it becomes final, float32 [B, C, n]."""
        return decode_windows(
            self.encodec,
            self.windows,
            self.codes(callback),
            channels=self.config.audio_channels,
            block=self.block,
        )

    @property
    def block(self) -> int:
        """Frames of which audio is made at once, unless the piece is decoded as a whole."""
        return self._chunk or max(1, round(_BLOCK_SECONDS * self.config.frame_rate))

    def _layout(self, frames: int, extend_stride: float | None, join: str) -> list[Window]:
        rate, longest = self.config.frame_rate, self.config.max_duration
        check_join(join)
        window = _window_frames(self.config)
        if extend_stride is None:
            stride = max(1, window * 3 // 5)
        elif is_number(extend_stride) and 1 / rate <= extend_stride < longest:
            stride = int(extend_stride * rate)
        else:
            raise UserError(
                f"extend_stride must be at least one frame, {1 / rate:g} s, and less than "
                f"{longest:g} s, got {extend_stride!r}"
            )
        return layout(
            frames,
            window=window,
            stride=stride,
            prompt=0 if self._prompt is None else self._prompt.shape[2],
            overlap=overlap_frames(join, window, stride, rate),
        )

    def _checkpoint(
        self, folder: str | os.PathLike, texts: Sequence[str | None], **settings
    ) -> Checkpoint:
        """A folder for this and no other generation."""
        ends = (self.windows[0], self.windows[-1])
        settings |= {
            **self._sampling,
            "descriptions": list(texts),
            "duration": self.windows[-1].end / self.config.frame_rate,
            "windows": [dataclasses.astuple(window) for window in self.windows[:2]],
            "prompt": None
            if self._prompt is None
            else hashlib.sha256(self._prompt.tobytes()).hexdigest(),
            "condition": condition_digest(
                *(self.condition_at(window.start / self.config.frame_rate) for window in ends)
            ),
            "model": fingerprint(self.lm, self.encodec),
            "machine": machine(mesh_of(self.lm)),
        }
        lm = self.config.lm
        return Checkpoint(folder, settings, batch=len(texts), codebooks=lm.n_q, card=lm.card)


# --- Checks that need the config ------------------------------------------------------------------


def num_frames(config: MusicGenConfig, duration: float) -> int:
    """The whole frames of `duration` seconds; UserError if that is no good duration."""
    if not is_number(duration) or not 0 < duration <= MAX_DURATION:
        raise UserError(
            f"duration must be more than 0 and at most {MAX_DURATION} seconds (a day), "
            f"got {duration!r}"
        )
    frames = int(duration * config.frame_rate)
    if frames < 1:
        raise UserError(
            f"duration must be at least one frame, {1 / config.frame_rate:g} seconds, "
            f"got {duration!r}"
        )
    return frames


def check_prompt(config: MusicGenConfig, prompt: int, total: int) -> None:
    """UserError if a prompt of so many frames leaves nothing to generate of `total` frames."""
    seconds = prompt / config.frame_rate
    if prompt >= total:
        raise UserError(
            f"the prompt lasts {seconds:.2f} s and leaves nothing of the duration of "
            f"{total / config.frame_rate:.2f} s, which includes it: raise the duration or cut the "
            "prompt"
        )
    if prompt >= _window_frames(config):
        raise UserError(
            f"the prompt lasts {seconds:.2f} s: it must be shorter than the "
            f"{config.max_duration:g} s that the model sees at once"
        )


def check_codes(config: MusicGenConfig, codes: jax.Array | np.ndarray, what: str) -> jax.Array:
    """The codes as int32 [B, K, T]; UserError if they are no codes of this model."""
    values = np.asarray(codes)
    K, card = config.lm.n_q, config.lm.card
    if values.ndim != 3 or values.shape[1] != K or not values.size:
        raise UserError(f"{what} must be [B, {K}, T], got the shape {list(values.shape)}")
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{what} must be integers, got {values.dtype}")
    if values.min() < 0 or values.max() >= card:
        raise UserError(
            f"{what} must be from 0 to {card - 1}, got {values.min()} to {values.max()}"
        )
    return jnp.asarray(codes, jnp.int32)


def _window_frames(config: MusicGenConfig) -> int:
    return int(config.max_duration * config.frame_rate)


def _chunk_frames(config: MusicGenConfig, chunk_seconds: float | None) -> int:
    if chunk_seconds is None:
        return 0
    if not is_number(chunk_seconds) or not 0 < chunk_seconds <= config.max_duration:
        raise UserError(
            f"chunk_seconds must be more than 0 and at most {config.max_duration:g}, "
            f"got {chunk_seconds!r}"
        )
    return max(1, round(chunk_seconds * config.frame_rate))
