"""From clips to what raters hear: one rate, one length and one loudness per piece, and the anchor.

Only the music may distinguish one system from another. So all clips of a study have one sample rate
and one number of channels, and all clips of a piece have one length and one loudness.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from musicgen_jax import audio
from musicgen_jax.errors import UserError
from musicgen_jax.listening.pairing import Piece
from musicgen_jax.listening.study import ANCHOR, REFERENCE

SHORTEST = 1.0  # seconds
_RATES = (16_000, 48_000)  # the anchor's filter needs the first; nobody hears above the second
_PEAK = 10 ** (-1 / 20)  # no clip is scaled above this
_FADE = 0.005  # seconds, at the ends: clips are cut


@dataclasses.dataclass(frozen=True)
class Form:
    """What all clips of a study share.

    Attributes:
      sample_rate: in Hz.
      channels: 1, or 2 if any clip has more than one.
      seconds: the longest part of a clip that is kept.
      lufs: the loudness in LUFS, if no clip of the piece would exceed -1 dB of full scale.
    """

    sample_rate: int
    channels: int
    seconds: float
    lufs: float


def form_of(pieces: Iterable[Piece], seconds: float, lufs: float) -> Form:
    """The form for the clips of some pieces: the highest of their rates, and stereo if one is.

    Raises:
      UserError: a clip cannot be read.
    """
    rate, channels = _RATES[0], 1
    for piece in pieces:
        for file in piece.clips.values():
            info = audio.info(file)
            rate, channels = max(rate, info.sample_rate), max(channels, info.channels)
    return Form(min(rate, _RATES[1]), min(channels, 2), seconds, lufs)


def render(piece: Piece, form: Form) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Makes the clips of a piece.

    Each is resampled, cut to the length of the shortest, and scaled to the loudness of the others.
    Clips are only ever scaled, never limited: if one would exceed -1 dB of full scale, all clips of
    the piece become that much quieter.

    Returns:
      {system: float32 [C, W]}, with `ANCHOR` if there is a `REFERENCE`; and the melody, float32
      [C, W], or None.

    Raises:
      UserError: a file cannot be read, is silent, or is shorter than a second.
    """
    clips = {system: _read(file, form) for system, file in piece.clips.items()}
    length = min(clip.shape[1] for clip in clips.values())
    clips = {system: _faded(clip[:, :length], form) for system, clip in clips.items()}
    for system, clip in clips.items():
        if audio.loudness(clip, form.sample_rate) == -math.inf:
            raise UserError(f"{piece.clips[system]} is silent: it has no loudness to match")
    if REFERENCE in clips:
        clips[ANCHOR] = low_pass(clips[REFERENCE], form.sample_rate)
        if audio.loudness(clips[ANCHOR], form.sample_rate) == -math.inf:
            raise UserError(
                f"{piece.clips[REFERENCE]} has nothing below 3.5 kHz: no anchor can be made from it"
            )
    clips = match_loudness(clips, form.sample_rate, form.lufs)
    melody = piece.caption.melody
    if melody is None:
        return clips, None
    tune = _faded(_read(melody, form), form)
    if audio.loudness(tune, form.sample_rate) == -math.inf:
        raise UserError(f"{melody} is silent: it cannot be used as a melody")
    return clips, match_loudness({"": tune}, form.sample_rate, form.lufs)[""]


def match_loudness(
    clips: dict[str, np.ndarray], sample_rate: int, lufs: float
) -> dict[str, np.ndarray]:
    """Scales clips, float [C, W] and none silent, to one loudness: `lufs` or what they all allow.

    Returns:
      {name: float32 [C, W]} with no sample above -1 dB of full scale.
    """
    measured = {name: audio.loudness(clip, sample_rate) for name, clip in clips.items()}
    room = {name: 20 * math.log10(_PEAK / np.abs(clip).max()) for name, clip in clips.items()}
    target = min(lufs, *(measured[name] + room[name] for name in clips))
    return {
        name: (clip * 10 ** ((target - measured[name]) / 20)).astype(np.float32)
        for name, clip in clips.items()
    }


def low_pass(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """The low anchor of MUSHRA (ITU-R BS.1534): nothing above 3.5 kHz.

    The recommendation allows 0.1 dB of ripple up to 3.5 kHz and asks for 25 dB less at 4 kHz and
    50 dB less at 4.5 kHz. A windowed sinc with linear phase does better, without delay.

    Args:
      wav: float [C, W].
      sample_rate: in Hz, at least 16000.

    Returns:
      float32 [C, W].
    """
    half = round(0.004 * sample_rate)
    n = np.arange(-half, half + 1)
    cutoff = 3750 / sample_rate  # the middle between 3.5 and 4 kHz
    taps = 2 * cutoff * np.sinc(2 * cutoff * n) * np.kaiser(len(n), 5.65)  # 60 dB
    taps /= taps.sum()
    length = wav.shape[1]
    size = 1 << (length + len(taps)).bit_length()
    spectrum = np.fft.rfft(wav.astype(np.float64), size) * np.fft.rfft(taps, size)
    return np.fft.irfft(spectrum, size)[:, half : half + length].astype(np.float32)


def _read(file: Path, form: Form) -> np.ndarray:
    wav, rate = audio.read(file, seconds=form.seconds)
    if wav.shape[0] > 2:
        wav = audio.convert_channels(wav, 1)
    wav = audio.convert_audio(wav, rate, form.sample_rate, form.channels)
    wav = wav[:, : int(form.seconds * form.sample_rate)]
    if wav.shape[1] < SHORTEST * form.sample_rate:
        seconds = wav.shape[1] / form.sample_rate
        raise UserError(f"{file} lasts {seconds:.2f} s: a clip needs at least {SHORTEST:g} s")
    return wav


def _faded(wav: np.ndarray, form: Form) -> np.ndarray:
    ramp = np.linspace(0, 1, round(_FADE * form.sample_rate), dtype=np.float32)
    wav = wav.copy()
    wav[:, : len(ramp)] *= ramp
    wav[:, -len(ramp) :] *= ramp[::-1]
    return wav
