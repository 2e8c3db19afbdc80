"""How the bundled model continues: whether it keeps the character of a piece, and its form.

Question one: the model gets 4 s of a real piece, without text, and generates 8 s more. Do these
have the lead, the tempo, the mode, the metre and the style of the 4 s? The judges are those of
`nano_report.py`. For comparison they also judge the real next 8 s through the codec, and each
continuation against another piece.

Question two: the model generates 26 s from text that names the beats a minute. How similar is each
bar to the most similar bar at least one phrase earlier? Composed tunes have the form A A' B A'. A
bar is the chroma of its eighths. The similarity is the correlation of two bars, minus the
correlation with bars of other pieces of the same mode and metre, which is what chance gives.

    pip install 'musicgen-jax[report]'
    python benchmarks/nano_long.py --n 100 --cache features.npz
"""

import argparse
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import measuring
import nano_clips
import numpy as np
from clip_measures import half_width
from nano_clips import say
from nano_obedience import ROWS, hits, listen, shuffled
from nano_probes import Probes
from nano_requests import Request, make_request
from nano_tables import table

from musicgen_jax import MusicGen
from musicgen_jax.nano.composer import EIGHTHS_PER_BAR, FRAME_RATE, PieceSpec
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

PROMPT, REST, LONG = 4, 8, 26  # seconds; two phrases last at most 26 s, except slow ones in 4/4
PHRASE = 4  # bars
_WINDOW = 2048  # samples


def continued(
    model: MusicGen, requests: Sequence[Request], probes: Probes, batch: int, seed: int
) -> dict[str, dict]:
    """Hit rates, row by row, of the continuations of each request's piece."""
    frames, cut = (PROMPT + REST) * FRAME_RATE, PROMPT * SAMPLE_RATE
    raw = np.stack([piece(request.seed, frames)[1] for request in requests])
    made = []
    for (part,) in nano_clips.parts(batch, raw):
        output = model.generate_continuation(
            part[:, None, :cut], SAMPLE_RATE, duration=PROMPT + REST, seed=seed
        )
        made.append(nano_clips.mono(model, output.audio))
    say(f"continued {len(raw)} pieces")
    heard = {
        "continued": listen(np.concatenate(made)[:, cut:], probes),
        "codec": listen(nano_clips.through_codec(model, raw, batch)[0][:, cut:], probes),
    }
    rows = {}
    for row in ROWS:
        rates = {
            name: float(hits(row, h.answers[row], requests).mean()) for name, h in heard.items()
        }
        chance = shuffled(row, heard["continued"].answers[row], requests)
        rows[row] = {
            **rates,
            "half_width": half_width(rates["continued"], len(raw)),
            "others": chance,
        }
    return rows


@functools.cache
def _chroma_filters() -> np.ndarray:
    """[_WINDOW // 2 + 1, 12], mapping each bin between 100 Hz and 2 kHz to its pitch class."""
    hertz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)
    inside = (hertz > 100) & (hertz < 2000)
    classes = np.rint(12 * np.log2(np.maximum(hertz, 1) / 440)).astype(int) % 12
    return (inside[:, None] * np.eye(12)[classes]).astype(np.float32)


def bars(audio: np.ndarray, spec: PieceSpec) -> np.ndarray:
    """Whole bars of a clip that begins on a downbeat, [bar, eighth * class], each standardised."""
    eighth = spec.frames_per_eighth * SAMPLE_RATE // FRAME_RATE
    count = len(audio) // eighth // EIGHTHS_PER_BAR[spec.metre] * EIGHTHS_PER_BAR[spec.metre]
    middle = np.arange(count) * eighth + eighth // 2
    padded = np.pad(audio, _WINDOW // 2)
    frames = padded[middle[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    chroma = np.log1p(np.abs(np.fft.rfft(frames)) @ _chroma_filters())
    rows = chroma.reshape(-1, EIGHTHS_PER_BAR[spec.metre] * 12)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def form(clips: Sequence[np.ndarray], specs: Sequence[PieceSpec]) -> tuple[float, float]:
    """How much more similar a bar is to its own past than to other pieces; the standard error."""
    pieces = [bars(clip, spec) for clip, spec in zip(clips, specs, strict=True)]
    gains = []
    for i, (own, spec) in enumerate(zip(pieces, specs, strict=True)):
        kind = spec.mode, spec.metre
        others = [j for j, s in enumerate(specs) if j != i and (s.mode, s.metre) == kind]
        if len(own) <= PHRASE or not others:
            continue
        for at in range(PHRASE, len(own)):
            past = at - PHRASE + 1
            best = (own[:past] @ own[at]).max()
            chance = np.mean([(pieces[j][:past] @ own[at]).max() for j in others])
            gains.append((i, best - chance))
    by_piece = [np.mean([g for k, g in gains if k == i]) for i in {k for k, _ in gains}]
    return float(np.mean(by_piece)), float(np.std(by_piece) / len(by_piece) ** 0.5)


def forms(
    model: MusicGen, requests: Sequence[Request], batch: int, seed: int
) -> dict[str, tuple[float, float]]:
    """`form` of generated pieces, and of real ones through the codec and as they are."""
    told = [r for r in requests if r.tells("bpm")]
    specs = [request.spec for request in told]
    raw = np.stack([piece(request.seed, LONG * FRAME_RATE)[1] for request in told])
    generated = nano_clips.generate(model, told, batch, seed, {"duration": float(LONG)})[0]
    return {
        "generated": form(generated, specs),
        "codec": form(nano_clips.through_codec(model, raw, batch)[0], specs),
        "rendered": form(raw, specs),
    }


def as_markdown(rows: dict[str, dict], structure: dict[str, tuple[float, float]]) -> str:
    """Both tables."""
    first = table(
        ["what it heard for 4 s", "continued", "real, through the codec", "others' pieces"],
        [
            [
                ROWS[row],
                f"{r['continued']:.2f} ± {r['half_width']:.2f}",
                f"{r['codec']:.2f}",
                f"{r['others']:.2f}",
            ]
            for row, r in rows.items()
        ],
    )
    names = {"generated": "generated", "codec": "real, through the codec", "rendered": "real"}
    second = table(
        ["26 s", "more alike to its own past than to other pieces"],
        [[names[k], f"{mean:.3f} ± {1.96 * error:.3f}"] for k, (mean, error) in structure.items()],
    )
    return f"{first}\n\n{second}"


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano", help='"nano" or a model folder')
    parser.add_argument("--n", type=int, default=100, help="pieces")
    parser.add_argument("--batch", type=int, default=20, help="clips at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the generation")
    parser.add_argument("--probe-clips", type=int, default=3000, help="clips to fit the probes on")
    parser.add_argument("--cache", type=Path, help="npz file that keeps the probes' features")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("sklearn") is None:
        parser.error("needs scikit-learn: pip install 'musicgen-jax[report]'")
    if args.n < 30:
        parser.error("--n must be at least 30")
    model = MusicGen.from_pretrained(args.model)
    requests = [make_request(i) for i in range(args.n)]
    probes = Probes(*nano_clips.training_clips(args.probe_clips, REST * FRAME_RATE, args.cache))
    rows = continued(model, requests, probes, args.batch, args.seed)
    structure = forms(model, requests, args.batch, args.seed)
    print(as_markdown(rows, structure))
    return measuring.record(
        "nano_long",
        argparse.Namespace(quick=False, results=args.results),
        model=args.model if args.model == "nano" else model.name,
        n=args.n,
        seed=args.seed,
        continuation=rows,
        form=structure,
    )


if __name__ == "__main__":
    main()
