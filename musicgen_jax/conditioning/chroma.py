"""Melody as a condition: which of the twelve pitch classes sounds loudest, frame by frame.

audiocraft's `modules/chroma.py` and `ChromaStemConditioner`, with librosa's chroma filters.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from musicgen_jax.config import MusicGenConfig

WINDOW = 16384  # samples of one frame, in all official models
HOP = 4096  # samples from one frame to the next, in all official models
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

_A0 = 27.5  # Hz; octaves are counted from here
_CENTRE_OCTAVE, _OCTAVE_WIDTH = 5.0, 2.0  # a bell over octaves: the ear's middle counts most
_LEAST = 1e-6  # the smallest divisor of a frame


def frame_count(samples: int, window: int = WINDOW, hop: int = HOP) -> int:
    """Frames in `samples` samples of audio; shorter audio is padded to one window."""
    return max(samples, window) // hop + 1


def chroma_frames(config: MusicGenConfig) -> int:
    """T, the frames of melody that come before the tokens: 235 at 30 s and 32 kHz."""
    samples = int(config.max_duration * config.sample_rate)
    return frame_count(samples, config.lm.chroma_window, config.lm.chroma_hop)


def samples_heard(num_frames: int, window: int = WINDOW, hop: int = HOP) -> int:
    """Samples that the first `num_frames` frames depend on, in longer audio."""
    return (num_frames - 1) * hop + window // 2


@lru_cache(maxsize=4)
def filter_bank(
    sample_rate: int,
    num_chroma: int = len(PITCHES),
    window: int = WINDOW,
    tuning: float = 0.0,
) -> np.ndarray:
    """The weight of each frequency of the spectrum in each pitch class.

    librosa's `filters.chroma` with `tuning=0` and its defaults: around every pitch class a bell as
    wide as a semitone, or as the distance between two frequencies if that is more. The weights of
    each frequency have Euclidean norm 1, times a bell over octaves around the sixth A.

    Args:
      sample_rate: in Hz.
      num_chroma: pitch classes in an octave, a multiple of 12; the first is C.
      window: samples of one frame.
      tuning: how much higher than A = 440 Hz the music is tuned, in pitch classes.

    Returns:
      float64 [num_chroma, window // 2 + 1].
    """
    frequencies = np.arange(1, window) * (sample_rate / window)
    pitch = num_chroma * np.log2(frequencies / _A0) - tuning
    pitch = np.append(pitch[0] - 1.5 * num_chroma, pitch)  # 0 Hz: far below the lowest pitch
    width = np.append(np.maximum(np.diff(pitch), 1.0), 1.0)
    # From each pitch class to the nearest octave of each frequency, within half an octave.
    half = num_chroma // 2
    classes = np.arange(num_chroma)[:, None]
    distance = np.mod(pitch - classes + half, num_chroma) - half
    bells = np.exp(-2.0 * np.square(distance / width))
    bells /= np.linalg.norm(bells, axis=0)
    bells *= np.exp(-0.5 * np.square((pitch / num_chroma - _CENTRE_OCTAVE) / _OCTAVE_WIDTH))
    from_c = np.roll(bells, -3 * (num_chroma // 12), axis=0)  # counted from A up to this line
    bank = from_c[:, : window // 2 + 1]
    bank.setflags(write=False)  # it is cached
    return bank


@partial(jax.jit, static_argnames=("sample_rate", "num_frames", "num_chroma", "window", "hop"))
def chromagram(
    audio: jax.Array,
    length: jax.Array | int,
    *,
    sample_rate: int,
    num_frames: int,
    num_chroma: int = len(PITCHES),
    window: int = WINDOW,
    hop: int = HOP,
    bank: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Energy of every pitch class, frame by frame, relative to the loudest one.

    One compilation serves all lengths: the audio's end is an argument, not a shape.

    Args:
      audio: float32 [W'], padded after its end with anything.
      length: W, the samples that are not padding, at least `window`.
      sample_rate: in Hz.
      num_frames: T, how many frames to compute; those from `frame_count(W)` on are meaningless.
      num_chroma: pitch classes.
      window: samples of one frame.
      hop: samples from one frame to the next.
      bank: see `filter_bank` (default: that of A = 440 Hz).

    Returns:
      float32 [T, num_chroma], from 0 to 1; all zero in silence.
    """
    if bank is None:
        bank = filter_bank(sample_rate, num_chroma, window).astype(np.float32)
    centres = jnp.arange(num_frames)[:, None] * hop
    at = jnp.abs(centres + jnp.arange(-(window // 2), window // 2)[None])  # mirrored at the start
    at = jnp.where(at < length, at, 2 * (length - 1) - at)  # and at the end
    return _energy(audio[jnp.clip(at, 0, audio.shape[0] - 1)], bank)


@partial(jax.jit, static_argnames=("sample_rate", "hop", "num_chroma", "window"))
def loudest_pitches(
    audio: jax.Array,
    *,
    sample_rate: int,
    hop: int,
    num_chroma: int = len(PITCHES),
    window: int = WINDOW,
) -> jax.Array:
    """The loudest pitch class of every window inside the audio, with any hop.

    Args:
      audio: float32 [(T - 1) * hop + window]; nothing is mirrored.
      sample_rate: in Hz.
      hop: samples from one window to the next.
      num_chroma: pitch classes, at most 256.
      window: samples of one window.

    Returns:
      uint8 [T]; 0, which is C, in silence.
    """
    starts = jnp.arange(0, audio.shape[0] - window + 1, hop)
    bank = filter_bank(sample_rate, num_chroma, window).astype(np.float32)
    chroma = _energy(audio[starts[:, None] + jnp.arange(window)[None]], bank)
    return jnp.argmax(chroma, axis=1).astype(jnp.uint8)


def _energy(frames: jax.Array, bank: jax.Array | np.ndarray) -> jax.Array:
    """[T, window] to [T, num_chroma], see `chromagram`."""
    window = frames.shape[1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)  # periodic
    hann /= np.sqrt(np.sum(np.square(hann)))
    spectrum = jnp.fft.rfft(frames * hann.astype(np.float32)[None])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    chroma = jnp.einsum("cf,tf->tc", bank, power, precision=lax.Precision.HIGHEST)
    return chroma / jnp.maximum(chroma.max(axis=1, keepdims=True), _LEAST)


def melody_chroma(
    audio: np.ndarray,
    *,
    sample_rate: int,
    num_frames: int,
    num_chroma: int = len(PITCHES),
    window: int = WINDOW,
    hop: int = HOP,
    tuning: float = 0.0,
) -> np.ndarray:
    """A melody in the form for the language model: one pitch class per frame.

    Shorter audio is repeated, frame by frame, from its beginning; the end of longer audio is
    ignored. Silence counts as C.

    Args:
      audio: float32 [W], mono.
      sample_rate: in Hz, the model's.
      num_frames: T, the model's.
      num_chroma: pitch classes.
      window: samples of one frame, the model's.
      hop: samples from one frame to the next, the model's.
      tuning: of the audio, see `filter_bank`.

    Returns:
      float32 [T, num_chroma], one-hot.
    """
    # Always padded to the longest audio that is used: one compilation.
    room = max(samples_heard(num_frames, window, hop) + 1, window)
    audio = audio[:room]
    if len(audio) < window:
        missing = window - len(audio)
        audio = np.pad(audio, (missing // 2, missing - missing // 2))
    length = len(audio)
    audio = np.pad(audio, (0, room - length)).astype(np.float32)
    chroma = chromagram(
        audio,
        length,
        sample_rate=sample_rate,
        num_frames=num_frames,
        num_chroma=num_chroma,
        window=window,
        hop=hop,
        bank=filter_bank(sample_rate, num_chroma, window, tuning).astype(np.float32),
    )
    loudest = np.argmax(np.asarray(chroma), axis=1)
    frames = loudest[: frame_count(length, window, hop)]
    return np.eye(num_chroma, dtype=np.float32)[np.resize(frames, num_frames)]


def window_at(audio: np.ndarray, offset: float, *, sample_rate: int, seconds: float) -> np.ndarray:
    """The part of a melody for a later window of a long piece: it moves with time, and wraps.

    Args:
      audio: float32 [W], mono.
      offset: seconds into the piece.
      sample_rate: in Hz.
      seconds: of the window.

    Returns:
      float32 [int(seconds * sample_rate)].
    """
    first = int(offset * sample_rate)
    positions = np.arange(first, first + int(seconds * sample_rate))
    return audio[positions % len(audio)]
