"""The bundled model by the measures of the papers, with `musicgen-jax evaluate` alone.

Question: how far is its music from real pieces, beside what its codec allows, other real pieces,
its first version, and noise? The reference is N held-out pieces as the composer renders them; the
model gets their captions. Embedding `encodec-emb` (the bundled codec's encoder) and chroma need no
foreign weights. Not "good music": only "like our composer". The encoder is the model's own, which
favours the model over music of any other codec.

    python benchmarks/nano_evaluate.py --n 100

Against the first version of the model that today's code can read:

    mkdir -p runs/nano-v1
    git archive 39fa63c musicgen_jax/nano/model | tar -x -C runs/nano-v1
    python benchmarks/nano_evaluate.py --n 100 --first runs/nano-v1/musicgen_jax/nano/model

Prints a table in Markdown and appends one JSON line to benchmarks/results.jsonl. It takes about 9
minutes of a core's time; if it is interrupted, the same command goes on. The reports, with players,
are in the folder --out.
"""

import contextlib
import csv
import io
import json
import time
from pathlib import Path

import measuring
import nano_clips
import numpy as np
from nano_requests import make_request

from musicgen_jax import MusicGen, audio
from musicgen_jax.commands import cli
from musicgen_jax.nano.build import HELD_OUT_SEED
from musicgen_jax.nano.composer import FRAME_RATE
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

OTHERS = 500_000  # seeds from the requests' pieces to other held-out ones
NAMES = {
    "nano": "nano",
    "first": "the first nano",
    "codec": "real, through nano's codec",
    "others": "other real pieces",
    "noise": "white noise, as loud",
}


def write_clips(folder: Path, clips: np.ndarray) -> None:
    """Writes clips [N, W] as 000.wav and so on, unless they are all there."""
    if len(list(folder.glob("*.wav"))) == len(clips):
        return
    for i, clip in enumerate(clips):
        audio.write(folder / f"{i:03}.wav", clip[None], SAMPLE_RATE, "clip")


def write_sets(out: Path, count: int, seconds: float, batch: int) -> None:
    """Writes the captions, the reference and the sets that no language model makes."""
    frames = round(seconds * FRAME_RATE)
    with (out / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "caption"])
        writer.writerows([f"{i:03}", make_request(i).prompt] for i in range(count))
    real = np.stack([piece(HELD_OUT_SEED + i, frames)[1] for i in range(count)])
    write_clips(out / "real", real)
    others = [piece(HELD_OUT_SEED + OTHERS + i, frames)[1] for i in range(count)]
    write_clips(out / "others", np.stack(others))
    model = MusicGen.from_pretrained("nano")
    write_clips(out / "codec", nano_clips.through_codec(model, real, batch)[0])
    write_clips(out / "noise", nano_clips.white_noise(real, np.random.default_rng(0)))


def evaluated(out: Path, name: str, *words: str) -> dict:
    """The report of one set."""
    nano_clips.say(f"evaluating {NAMES[name]}")
    common = ["--reference", out / "real", "--embedding", "encodec", "--metrics", "fad,kad,chroma"]
    common += ["--cache", out / "features", "--out", out / "reports" / name, "--json"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if cli.main(["evaluate", *words, *map(str, common)]):
            raise SystemExit(f"no report of {name}")
    return json.loads(printed.getvalue())["metrics"]


def table(reports: dict[str, dict]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| clips | FAD | FAD of infinitely many clips, 95 % | KAD | chroma cosine |"]
    lines.append("|---|---|---|---|---|")
    for name, metrics in reports.items():
        fad, infinity = metrics["fad"]["value"], metrics["fad"]["infinity"]
        low, high = infinity["interval"]
        cells = (
            NAMES[name],
            f"{fad:.1f}",
            f"{infinity['value']:.1f} ({low:.1f} to {high:.1f})",
            f"{metrics['kad']['value']:.2f}",
            f"{metrics['chroma']['value']:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--n", type=int, default=100, help="number of pieces")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a clip")
    parser.add_argument("--batch-size", type=int, default=10, help="clips at once")
    parser.add_argument("--first", type=Path, help="folder of another model, to compare with")
    parser.add_argument("--out", type=Path, default=Path("runs/nano-evaluate"))
    args = parser.parse_args()
    if args.quick:
        args.n, args.seconds, args.out = 8, 2.8, args.out.with_name(f"{args.out.name}-quick")
    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    write_sets(args.out, args.n, args.seconds, args.batch_size)
    reports = {}
    for name, model in (("nano", "nano"), ("first", args.first)):
        if model is not None:
            words = ["--model", str(model), "--captions", str(args.out / "captions.csv")]
            words += ["--duration", str(args.seconds), "--batch-size", str(args.batch_size)]
            reports[name] = evaluated(args.out, name, *words)
    for name in ("codec", "others", "noise"):
        reports[name] = evaluated(args.out, name, "--audio", str(args.out / name))
    print(table(reports))
    minutes = (time.monotonic() - start) / 60
    cpu_minutes = time.process_time() / 60
    print(f"{minutes:.1f} minutes, {cpu_minutes:.1f} of a core")
    figures = {
        name: {
            "fad": metrics["fad"]["value"],
            "infinity": metrics["fad"]["infinity"],
            "kad": metrics["kad"]["value"],
            "chroma": metrics["chroma"]["value"],
            "rows": metrics["fad"]["rows"],
        }
        for name, metrics in reports.items()
    }
    measuring.record(
        "nano_evaluate",
        args,
        n=args.n,
        seconds=args.seconds,
        minutes=minutes,
        cpu_minutes=cpu_minutes,
        weights=reports["nano"]["fad"]["weights"],
        figures=figures,
    )


if __name__ == "__main__":
    main()
