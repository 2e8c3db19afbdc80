"""How well nano-melody plays tunes that no composer of ours wrote, as people would give them.

Two tunes, in keys and tunings of their own: whistled, sung, played on a sampled piano and heard
through a telephone, and on a sampled violin with drums behind it. The voice is espeak-ng's, the
instruments are fluidsynth's with a free SoundFont; both are programs of the system:

    apt-get install fluidsynth timgm6mb-soundfont espeak-ng
    python benchmarks/nano_melodies_from_life.py --out ./life

For each clip it prints the key and tuning that were heard, the share of moments in which the music
has the pitch class that the tune has there, and the same share for the other tune: chance. Clips
that need a missing program are named and left out.
"""

import argparse
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from nano_tables import table

from musicgen_jax import MusicGen, audio
from musicgen_jax.conditioning.key import find_move
from musicgen_jax.nano import melodies

RATE = 16_000
SECONDS_A_BEAT = 0.48
PIANO, VIOLIN, DRUMS = 0, 40, 9  # General MIDI: two programs and the channel of percussion
SOUNDFONTS = ("/usr/share/sounds/sf2/TimGM6mb.sf2", "/usr/share/sounds/sf2/FluidR3_GM.sf2")


@dataclass(frozen=True)
class Tune:
    """A tune: its notes as (semitones above the tonic, beats)."""

    name: str
    key: str
    tonic: int  # MIDI
    notes: tuple[tuple[int, float], ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return SECONDS_A_BEAT * sum(beats for _, beats in self.notes)

    def timed(self) -> list[tuple[float, float, int]]:
        """(start, seconds, MIDI pitch) of each note."""
        ends = SECONDS_A_BEAT * np.cumsum([beats for _, beats in self.notes])
        lengths = [SECONDS_A_BEAT * beats for _, beats in self.notes]
        return [
            (float(end - length), length, self.tonic + step)
            for end, length, (step, _) in zip(ends, lengths, self.notes, strict=True)
        ]


JOY = Tune(
    "Ode to Joy",
    "B flat major",
    70,
    tuple(
        zip((4, 4, 5, 7, 7, 5, 4, 2, 0, 0, 2, 4, 4, 2, 2), (*[1] * 12, 1.5, 0.5, 2), strict=True)
    ),
)
BALLAD = Tune(
    "a ballad",
    "F sharp minor",
    66,
    tuple(
        zip(
            (0, 0, 7, 7, 3, 2, 0, 7, 10, 12, 10, 7, 5, 3, 5),
            (2, 1, 2, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2),
            strict=True,
        )
    ),
)


# --- Ways to give a tune ------------------------------------------------------------------------


def whistled(tune: Tune) -> np.ndarray:
    """A sine with vibrato, breath, and a slide from note to note; 35 cents flat, octaves up."""
    pitch = np.zeros(int(tune.seconds * RATE))
    loud = np.zeros_like(pitch)
    for start, length, midi in tune.timed():
        span = slice(int(start * RATE), int((start + length) * RATE))
        pitch[span] = midi + 12 - 0.35
        edge = np.minimum(np.arange(len(pitch[span])), np.arange(len(pitch[span]))[::-1])
        loud[span] = np.minimum(edge / (0.04 * RATE), 1)
    kernel = np.hanning(int(0.06 * RATE))
    pitch = np.convolve(np.pad(pitch, len(kernel) // 2, mode="edge"), kernel / kernel.sum(), "same")
    pitch = pitch[len(kernel) // 2 :][: len(loud)]
    pitch += 0.15 * np.sin(2 * np.pi * 5.5 * np.arange(len(pitch)) / RATE)
    phase = 2 * np.pi * np.cumsum(440 * 2 ** ((pitch - 69) / 12)) / RATE
    breath = np.random.default_rng(0).standard_normal(len(pitch))
    return (loud * (0.3 * np.sin(phase) + 0.01 * breath)).astype(np.float32)


def sung(tune: Tune) -> np.ndarray:
    """A "loo" of espeak-ng for each note, played so fast that it has the note's pitch."""
    words = ["espeak-ng", "--stdout", "-s", "80", "-p", "40", "loo"]
    said = subprocess.run(words, capture_output=True, check=True).stdout
    voice, rate = soundfile.read(io.BytesIO(said), dtype="float32")
    loudest = int(np.argmax(np.convolve(voice**2, np.ones(rate // 10), "same")))
    vowel = voice[max(loudest - rate // 20, 0) :][: rate // 10]  # a tenth of a second
    lags = np.correlate(vowel, vowel, "full")[len(vowel) :]
    low, high = rate // 400, rate // 70
    # The shortest lag at which it repeats: twice the period fits as well.
    peaks = [i for i in range(low, high) if lags[i - 1] < lags[i] >= lags[i + 1]]
    period = 1 + next(i for i in peaks if lags[i] > 0.8 * max(lags[peak] for peak in peaks))
    cycles = np.tile(vowel[:period], 400)  # one period of the voice, for as long as wanted
    out = np.zeros(int(tune.seconds * RATE), np.float32)
    for start, length, midi in tune.timed():
        hertz = 440 * 2 ** ((midi - 12 + 0.2 - 69) / 12)  # a low voice, 20 cents sharp
        count = int(length * RATE * 0.9)
        drift = 1 + 0.006 * np.sin(2 * np.pi * 5 * np.arange(count) / RATE)
        at = np.cumsum(hertz * drift) * period / RATE % (len(cycles) - 1)
        note = np.interp(at, np.arange(len(cycles)), cycles)
        begin = int(start * RATE)
        out[begin : begin + count] += note * np.hanning(count) ** 0.3
    return 0.3 * out / np.abs(out).max()


def telephone_piano(tune: Tune) -> np.ndarray:
    """A sampled piano as a telephone hears it: 300 to 3,400 Hz, with noise."""
    wav = played(tune, PIANO, drums=False)
    spectrum = np.fft.rfft(wav)
    hertz = np.fft.rfftfreq(len(wav), 1 / RATE)
    wav = np.fft.irfft(spectrum * ((hertz > 300) & (hertz < 3400)), len(wav))
    noise = np.random.default_rng(1).standard_normal(len(wav))
    return (wav + 0.05 * np.sqrt(np.mean(wav**2)) * noise).astype(np.float32)


def violin_with_drums(tune: Tune) -> np.ndarray:
    """A sampled violin with a drum kit behind it."""
    return played(tune, VIOLIN, drums=True)


def played(tune: Tune, program: int, *, drums: bool) -> np.ndarray:
    """The tune through fluidsynth."""
    font = next(path for path in SOUNDFONTS if Path(path).exists())
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "tune.mid"), Path(folder, "tune.wav")
        midi.write_bytes(midi_file(tune, program, drums=drums))
        words = ["fluidsynth", "-ni", "-g", "0.6", "-r", str(RATE), "-F", wav, font, midi]
        subprocess.run(words, capture_output=True, check=True)
        samples, _ = soundfile.read(wav, dtype="float32")
    return samples.mean(axis=1)[: int(tune.seconds * RATE)]


def midi_file(tune: Tune, program: int, *, drums: bool) -> bytes:
    """A standard MIDI file of one track."""
    beat = 480
    events = [(0, bytes([0xC0, program]))]
    at = 0
    for step, beats in tune.notes:
        length, pitch = round(beat * beats), tune.tonic + step
        events.append((at, bytes([0x90, pitch, 90])))
        events.append((at + length - 20, bytes([0x80, pitch, 0])))
        at += length
    for i in range(2 * at // beat if drums else 0):
        for key in (36 if i % 4 == 0 else 38 if i % 4 == 2 else 42,):  # kick, snare, hat
            events.append((i * beat // 2, bytes([0x90 | DRUMS, key, 70])))
    data, now = b"\0\xff\x51\x03" + round(SECONDS_A_BEAT * 1e6).to_bytes(3, "big"), 0
    for time, event in sorted(events, key=lambda event: event[0]):
        data += _variable(time - now) + event
        now = time
    data += b"\0\xff\x2f\0"
    head = b"MThd" + (6).to_bytes(4, "big") + b"\0\0\0\1" + beat.to_bytes(2, "big")
    return head + b"MTrk" + len(data).to_bytes(4, "big") + data


def _variable(number: int) -> bytes:
    out = bytes([number & 0x7F])
    while number := number >> 7:
        out = bytes([0x80 | number & 0x7F]) + out
    return out


# A loud "la" is another matter: its loudest partials are those of its vowel, and the chroma hears
# these, as the original's does.
WAYS: dict[str, tuple[Callable[[Tune], np.ndarray], str]] = {
    "whistled, 35 cents flat": (whistled, ""),
    'sung on "loo", 20 cents sharp': (sung, "espeak-ng"),
    "piano on the telephone": (telephone_piano, "fluidsynth"),
    "violin with drums": (violin_with_drums, "fluidsynth"),
}


# --- The measure --------------------------------------------------------------------------------


def classes(tune: Tune, frames: int, hop: int) -> np.ndarray:
    """The pitch class of the tune at each chroma frame."""
    notes = tune.timed()
    at = np.arange(frames) * hop / RATE
    which = np.searchsorted([start for start, _, _ in notes], at, side="right") - 1
    return np.array([notes[i][2] % 12 for i in which])


def main() -> None:
    """Makes the clips, the music, and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano-melody")
    parser.add_argument("--prompt", default="a slow flute with guitar")
    parser.add_argument("--seeds", type=int, default=4, help="clips for each way and tune")
    parser.add_argument("--out", type=Path, help="folder for the clips")
    args = parser.parse_args()
    model = MusicGen.from_pretrained(args.model)
    lm = model.config.lm
    grid = lm.chroma_window, lm.chroma_hop
    lines = []
    for way, (make, program) in WAYS.items():
        if program and shutil.which(program) is None:
            print(f"{way}: {program} is not installed, left out")
            continue
        for tune, other in ((JOY, BALLAD), (BALLAD, JOY)):
            wav = make(tune)
            seconds = min(tune.seconds, other.seconds, model.max_duration)
            move = find_move(wav, RATE, lm.chroma_tonic or 0, *grid)
            out = model.generate_with_chroma(
                [args.prompt] * args.seeds,
                wav[None],
                RATE,
                separate=False,
                duration=seconds,
                seed=list(range(args.seeds)),
            )
            heard = np.stack([melodies.loudest(clip[0], model.config) for clip in out.audio])
            own, others = (
                float((heard == (classes(t, heard.shape[1], grid[1]) + move.semitones) % 12).mean())
                for t in (tune, other)
            )
            tuned = f"{round(100 * move.tuning):+d} cents"
            lines.append(
                [
                    way,
                    f"{tune.name}, {tune.key}",
                    f"{move.heard}, {tuned}",
                    f"{own:.2f}",
                    f"{others:.2f}",
                ]
            )
            if args.out:
                name = f"{way} {tune.name}".replace(",", "").replace(" ", "-")
                audio.write(args.out / f"{name}-given.wav", wav[None], RATE, strategy="peak")
                audio.write(args.out / f"{name}.wav", out.audio[0], RATE, strategy="loudness")
    print(table(["given", "tune", "heard", "follows", "the other tune"], lines))


if __name__ == "__main__":
    main()
