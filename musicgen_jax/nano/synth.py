"""Turns notes into sound: an additive synthesiser whose oscillators never restart.

The phase of every partial depends on absolute time, not on the onset of the note. A note is a
window of the periodic steady state of its pitch, shaped by an envelope. So the codec of the bundled
model sees only a few different frames of each pitch: one per frame of its period, which has one to
four frames (four times as many with vibrato, whose rate also divides the frame rate). All partials
are harmonic, and nothing is detuned or random.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from musicgen_jax.nano.composer import FRAME_RATE, Note, frequency

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // FRAME_RATE
"""Samples in a codec frame."""

_HIGHEST = 7_200.0  # Hz: no partials above; Nyquist is 8000
_BANDS = (600.0, 1_600.0)  # Hz: edges between the three groups that decay separately
_VIBRATO_RATE = FRAME_RATE / 4  # Hz: four frames a cycle


@dataclass(frozen=True)
class _Voice:
    """The sound of an instrument.

    Attributes:
        partials: (harmonic number, amplitude) at the pitch of the note.
        gain: Loudness relative to the other instruments.
        attack: Seconds of the raised-cosine onset, for the low, middle and high band.
        decay: Seconds to fall to 1/e, per band; inf holds the note.
        release: Seconds of the raised-cosine fade after the note's release.
        vibrato: Depth of the pitch swing, as a fraction of the frequency.
        tremolo: Depth of the loudness swing.
        formant: (centre, width in octaves, gain) of a fixed resonance in Hz, or None.
        knock: Decay time in seconds to 1/e, and loudness, of a bright burst at the onset.
    """

    partials: tuple[tuple[int, float], ...]
    gain: float
    attack: tuple[float, float, float]
    decay: tuple[float, float, float] = (math.inf, math.inf, math.inf)
    release: float = 0.05
    vibrato: float = 0.0
    tremolo: float = 0.0
    formant: tuple[float, float, float] | None = None
    knock: tuple[float, float] = (0.01, 0.0)


def _series(count: int, rolloff: float, comb: float | None = None, odd: bool = False):
    """Harmonics that fall as k**-rolloff; `comb` is the relative place where a string is hit."""
    return tuple(
        (k, k**-rolloff * (abs(math.sin(math.pi * k * comb)) if comb else 1.0))
        for k in range(1, count + 1)
        if not odd or k % 2
    )


_VOICES = {
    "piano": _Voice(
        _series(14, 1.35, comb=1 / 7.3),
        gain=1.0,
        attack=(0.004, 0.003, 0.002),
        decay=(1.1, 0.5, 0.16),
        release=0.06,
        knock=(0.012, 0.25),
    ),
    "guitar": _Voice(
        _series(22, 0.75, comb=0.23),
        gain=1.0,
        attack=(0.002, 0.002, 0.002),
        decay=(0.55, 0.3, 0.11),
        release=0.08,
    ),
    "organ": _Voice(
        ((1, 1.0), (2, 0.9), (3, 0.45), (4, 0.6), (6, 0.3), (8, 0.4), (12, 0.12), (16, 0.12)),
        gain=0.62,
        attack=(0.012, 0.01, 0.008),
        release=0.04,
        knock=(0.015, 0.3),
    ),
    "strings": _Voice(
        _series(24, 1.05),
        gain=0.72,
        attack=(0.05, 0.05, 0.06),
        release=0.07,
        vibrato=0.007,
        formant=(900.0, 1.4, 1.0),
    ),
    "flute": _Voice(
        ((1, 1.0), (2, 0.22), (3, 0.08), (4, 0.03)),
        gain=0.8,
        attack=(0.04, 0.03, 0.03),
        release=0.05,
        vibrato=0.003,
        tremolo=0.22,
        knock=(0.03, 0.12),
    ),
    "trumpet": _Voice(
        _series(16, 0.45),
        gain=0.7,
        attack=(0.02, 0.03, 0.05),
        release=0.04,
        formant=(1_500.0, 0.9, 3.0),
    ),
    "music_box": _Voice(
        ((1, 1.0), (3, 0.4), (6, 0.22), (10, 0.1)),
        gain=1.0,
        attack=(0.002, 0.002, 0.002),
        decay=(0.7, 0.55, 0.12),
        release=0.3,
    ),
    "synth": _Voice(
        _series(31, 1.0, odd=True),
        gain=0.62,
        attack=(0.004, 0.004, 0.004),
        release=0.03,
    ),
    "bass": _Voice(
        _series(10, 1.3),
        gain=1.0,
        attack=(0.006, 0.005, 0.004),
        decay=(0.7, 0.25, 0.1),
        release=0.05,
    ),
}
_DRUM_GAIN = 0.22
_GAIN = 0.16


def period_frames(instrument: str, pitch: int) -> int:
    """The number of codec frames after which a held note repeats exactly."""
    frames = (frequency(pitch) / FRAME_RATE).denominator
    voice = _VOICES[instrument]
    return math.lcm(frames, 4) if voice.vibrato or voice.tremolo else frames


@functools.cache
def _tables(instrument: str, pitch: int) -> np.ndarray:
    """One period of the steady state, float32 [band, samples]; the last band is the knock."""
    voice = _VOICES[instrument]
    pitch_hz = float(frequency(pitch))
    period = period_frames(instrument, pitch)
    samples = period * HOP
    # Integer arithmetic drops whole turns, so the last sample leads exactly into the first.
    cycles = int(frequency(pitch) * period / FRAME_RATE)
    turns = np.arange(samples) * cycles % samples / samples
    swing = 2 * np.pi * np.arange(samples) * _VIBRATO_RATE / SAMPLE_RATE
    bands = np.zeros((4, samples))
    power = 0.0
    for k, amplitude in voice.partials:
        hertz = k * pitch_hz
        if hertz > _HIGHEST:
            continue
        if voice.formant:
            centre, width, gain = voice.formant
            amplitude *= 1 + gain * math.exp(-((math.log2(hertz / centre) / width) ** 2))
        # Quadratic phases spread the peaks of the partials over the cycle.
        phase = math.pi * k * k / len(voice.partials)
        # Players of a section do not sway in phase: each higher partial lags a little more.
        bend = k * voice.vibrato * pitch_hz / _VIBRATO_RATE * np.sin(swing - 0.4 * k)
        wave = amplitude * np.sin(2 * np.pi * k * turns + phase + bend)
        wave *= 1 + voice.tremolo * np.sin(swing)
        bands[sum(hertz > edge for edge in _BANDS)] += wave
        if k > 1:
            bands[3] += wave * k
        power += amplitude**2 / 2
    knock = np.sqrt(np.mean(bands[3] ** 2))
    bands[:3] *= voice.gain / math.sqrt(power)
    bands[3] *= voice.gain * voice.knock[1] / max(knock, 1e-9)
    return bands.astype(np.float32)


def _rise(samples: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / samples)


@functools.lru_cache(maxsize=256)
def _envelopes(instrument: str, frames: int) -> np.ndarray:
    """Envelopes, float32 [band, samples], of a note of `frames` frames plus its release."""
    voice = _VOICES[instrument]
    held = frames * HOP
    release = round(voice.release * SAMPLE_RATE)
    time = np.arange(held + release) / SAMPLE_RATE
    decays = [*voice.decay, voice.knock[0]]
    attacks = [*voice.attack, 0.002]
    shapes = []
    for decay, attack in zip(decays, attacks, strict=True):
        shape = np.exp(-time / decay)
        ramp = round(attack * SAMPLE_RATE)
        shape[:ramp] *= _rise(ramp)
        shape[held:] *= _rise(release)[::-1]
        shapes.append(shape)
    # The burst decays to exactly zero, so a held note repeats exactly.
    shapes[-1] = np.maximum(shapes[-1] - 0.002, 0)
    return np.stack(shapes).astype(np.float32)


@functools.cache
def _drum(name: str) -> np.ndarray:
    """The one sample of a drum, float32 [samples]; noise from a fixed seed."""
    time = np.arange(int(0.28 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    if name == "kick":
        sound = np.sin(2 * np.pi * (50 * time + 4.5 * (1 - np.exp(-time / 0.03))))
        sound *= np.exp(-time / 0.09)
    elif name == "snare":
        sound = (0.5 * noise + 0.6 * np.sin(2 * np.pi * 200 * time)) * np.exp(-time / 0.06)
    elif name == "hat":
        sound = np.diff(noise, prepend=0.0) * np.exp(-time / 0.02)
    else:
        raise ValueError(f"unknown drum {name!r}: kick, snare or hat")
    sound[-160:] *= _rise(160)[::-1]
    return (sound / np.abs(sound).max() / _GAIN * _DRUM_GAIN).astype(np.float32)


def render(notes: Iterable[Note], num_frames: int) -> np.ndarray:
    """Renders notes to audio.

    The level is fixed: later notes do not change the sound of earlier ones, and a static soft
    limiter keeps the signal inside (-0.9, 0.9).

    Args:
        notes: The notes to play; sound after the end is cut off.
        num_frames: Length in codec frames.

    Returns:
        Mono audio at `SAMPLE_RATE`, float32 [num_frames * HOP].

    Raises:
        ValueError: a pitch outside the scale.
    """
    length = num_frames * HOP
    out = np.zeros(length, np.float32)
    for note in notes:
        start = note.onset_frame * HOP
        if start >= length:
            continue
        if note.instrument not in _VOICES:
            sound = note.velocity * _drum(note.instrument)[: length - start]
        else:
            tables = _tables(note.instrument, note.pitch)
            envelopes = _envelopes(note.instrument, note.frames)[:, : length - start]
            period = tables.shape[1]
            offset = start % period
            samples = envelopes.shape[1]
            repeats = -(-(offset + samples) // period)
            sound = np.zeros(samples, np.float32)
            for table, envelope in zip(tables, envelopes, strict=True):
                if table.any():
                    sound += np.tile(table, repeats)[offset : offset + samples] * envelope
            sound *= note.velocity
        out[start : start + len(sound)] += sound
    return (0.9 * np.tanh(out * (_GAIN / 0.9))).astype(np.float32)
