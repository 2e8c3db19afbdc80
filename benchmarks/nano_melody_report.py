"""How well a model of `nano.build_melody` plays a tune that it hears, on the instrument asked for.

Each request is a held-out composed piece: its caption, and its tune on another instrument than the
caption asks for, in about half of the requests with other instruments below it. The clips are
judged by their chroma (does the loudest pitch class agree, frame by frame, with what the model
heard?), by classifiers fitted on rendered music (`nano_probes.py`), and for silence. They are
compared with

- the same clips judged against the melodies of other requests: chance;
- the real pieces through the codec: the ceiling;
- clips of the same model without the melody, and clips of nano.

    pip install 'musicgen-jax[report]'
    python benchmarks/nano_melody_report.py nano-melody --n 200 --cache features.npz

Prints a table in markdown and appends one JSON line to benchmarks/results.jsonl.
"""

import argparse
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import measuring
import nano_clips
import numpy as np
from clip_measures import half_width, has_silence
from nano_clips import say
from nano_obedience import SHUFFLES, Heard, hits, listen
from nano_probes import Probes
from nano_requests import Request, make_request
from nano_tables import table

from musicgen_jax import MusicGen
from musicgen_jax.metrics.chroma import agreement, loudest_classes
from musicgen_jax.nano import composer, melodies, synth
from musicgen_jax.nano.composer import FRAME_RATE
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

ROWS = {
    "own": "chroma cosine, the model's frames",
    "paper": "chroma cosine, frames of half a second",
    "lead": "instrument",
    "tempo": "tempo class",
    "mode": "mode",
    "metre": "metre",
    "style": "style",
}
COLUMNS = {
    "melody": "with the melody",
    "shuffled": "shuffled requests",
    "text": "without the melody",
    "nano": "nano",
    "codec": "real, through the codec",
}


def tune(request: Request, num_frames: int) -> np.ndarray:
    """The tune of a request on an instrument that it does not ask for: float32 [W]."""
    rng = np.random.default_rng((request.seed, 3))
    own = np.random.default_rng(request.seed)
    spec = composer.sample_spec(own)
    notes = composer.compose(spec, own, num_frames)
    lead = str(rng.choice([name for name in composer.LEADS if name != spec.lead]))
    band = None if rng.random() < 0.5 else str(rng.choice(composer.ACCOMPANIMENTS))
    return synth.render(melodies.played_on(spec, notes, lead, accompaniment=band), num_frames)


def with_melody(
    model: MusicGen,
    requests: Sequence[Request],
    tunes: np.ndarray,
    batch: int,
    seed: int,
    settings: dict,
) -> np.ndarray:
    """Clips [N, W] of requests with their tunes."""
    clips = []
    for part, heard in nano_clips.parts(batch, requests, tunes):
        seeds = [(seed * 1_000_003 + request.seed) % 2**32 for request in part]
        out = model.generate_with_chroma(
            [r.prompt for r in part],
            heard[:, None],
            SAMPLE_RATE,
            separate=False,
            seed=seeds,
            **settings,
        )
        clips.append(nano_clips.mono(model, out.audio))
        say(f"generated {sum(map(len, clips))} of {len(requests)} clips with melodies")
    return np.concatenate(clips)


def pitches(model: MusicGen, clips: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The loudest pitch class of each frame, by measure and clip."""
    return {
        "own": [melodies.loudest(clip, model.config) for clip in clips],
        "paper": [loudest_classes(clip[None], SAMPLE_RATE) for clip in clips],
    }


def agree(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The share of frames in which pairs of clips agree."""
    same, frames = np.sum([agreement(a, b) for a, b in zip(first, second, strict=True)], axis=0)
    return float(same / frames)


def measure(
    clips: dict[str, np.ndarray],
    tunes: np.ndarray,
    requests: Sequence[Request],
    probes: Probes,
    model: MusicGen,
) -> dict[str, dict[str, float]]:
    """The figures by row and column; "silent" is a row too."""
    heard: dict[str, Heard] = {name: listen(audio, probes) for name, audio in clips.items()}
    asked = pitches(model, tunes)
    played = {name: pitches(model, audio) for name, audio in clips.items()}
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(requests)) for _ in range(SHUFFLES)]
    rows: dict[str, dict[str, float]] = {}
    for row in ROWS:
        if row in asked:
            rows[row] = {name: agree(played[name][row], asked[row]) for name in clips}
            chance = [
                agree(played["melody"][row], [asked[row][i] for i in order]) for order in orders[:5]
            ]
        else:
            told = [i for i, request in enumerate(requests) if request.tells(row)]
            wanted = [requests[i] for i in told]
            answers = {name: h.answers[row][told] for name, h in heard.items()}
            rows[row] = {name: float(hits(row, a, wanted).mean()) for name, a in answers.items()}
            chance = [
                float(hits(row, answers["melody"][np.argsort(o[o < len(told)])], wanted).mean())
                for o in orders
            ]
        rows[row]["shuffled"] = float(np.mean(chance))
    rows["silent"] = {
        name: float(np.mean([has_silence(clip) for clip in audio])) for name, audio in clips.items()
    }
    return rows


def as_markdown(rows: dict[str, dict[str, float]], n: int) -> str:
    """The figures as a table; ± is half of a 95 % interval over clips."""
    lines = []
    for row, title in ROWS.items():
        figures = rows[row]
        share = f"{100 * figures['melody'] / figures['codec']:.0f} %" if figures["codec"] else "-"
        cells = {name: f"{figures[name]:.2f}" for name in COLUMNS}
        if row not in ("own", "paper"):
            cells["melody"] += f" ± {half_width(figures['melody'], n):.2f}"
        first, *rest = cells.values()
        lines.append([title, first, share, *rest])
    silent = [f"{rows['silent'].get(name, np.nan):.2f}" for name in COLUMNS]
    lines.append(["clips with a silent second", silent[0], "-", "-", *silent[2:]])
    first, *rest = COLUMNS.values()
    return table([f"n = {n}", first, "of the ceiling", *rest], lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="nano-melody, or the folder of a model like it")
    parser.add_argument("--n", type=int, default=200, help="requests")
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--batch", type=int, default=20, help="clips at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the generation")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds, > 4.1")
    parser.add_argument("--cfg-coef", type=float, default=3.0, help="1: no guidance")
    parser.add_argument("--probe-clips", type=int, default=3000, help="clips to fit the probes on")
    parser.add_argument("--cache", type=Path, help="npz file that keeps the probes' features")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if importlib.util.find_spec("sklearn") is None:
        parser.error("needs scikit-learn: pip install 'musicgen-jax[report]'")
    if args.duration <= 4.1 or args.n < 2:
        parser.error("--duration must be more than 4.1 (a bar, twice) and --n at least 2")
    settings = {"duration": args.duration, "cfg_coef": args.cfg_coef}
    model, nano = MusicGen.from_pretrained(args.model), MusicGen.from_pretrained("nano")
    requests = [make_request(i) for i in range(args.first, args.first + args.n)]
    num_frames = int(args.duration * FRAME_RATE)
    tunes = np.stack([tune(request, num_frames) for request in requests])
    real = np.stack([piece(request.seed, num_frames)[1] for request in requests])
    clips = {
        "melody": with_melody(model, requests, tunes, args.batch, args.seed, settings),
        "text": nano_clips.generate(model, requests, args.batch, args.seed, settings)[0],
        "nano": nano_clips.generate(nano, requests, args.batch, args.seed, settings)[0],
        "codec": nano_clips.through_codec(model, real, args.batch)[0],
    }
    probes = Probes(*nano_clips.training_clips(args.probe_clips, num_frames, args.cache))
    say("probes fitted")
    rows = measure(clips, tunes, requests, probes, model)
    print(as_markdown(rows, args.n))
    measuring.record(
        "nano_melody_report",
        argparse.Namespace(quick=False, results=args.results),
        judges=f"scikit-learn {importlib.metadata.version('scikit-learn')}",
        model=model.name,
        n=args.n,
        first=args.first,
        seed=args.seed,
        probe_clips=args.probe_clips,
        **settings,
        rows={row: {k: round(v, 4) for k, v in values.items()} for row, values in rows.items()},
    )


if __name__ == "__main__":
    main()
