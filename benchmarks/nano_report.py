"""How well the bundled model does what its prompts ask.

Question: does the music have the lead, the tempo, the mode, the metre and the style that the
prompt names? Prompts describe composed pieces that no training has seen; half are in the plain
form, half in phrasings that training captions never use. The judges are classifiers fitted on
rendered music only, and a tempo estimate that is fitted on nothing (`nano_probes.py`). Beside the
generated clips they judge the same pieces rendered for real, as they are and through the codec,
which is the ceiling. The figures mean "like our composer", not "good music": never set them
beside those of models that were trained on recordings.

    pip install 'musicgen-jax[report]'
    python benchmarks/nano_report.py --n 200
    python benchmarks/nano_report.py --n 200 --cfg-coef 1     # without guidance
    python benchmarks/nano_report.py --first 10000 --top-k 50 # settings are chosen on other prompts

Prints tables in markdown and appends one JSON line to benchmarks/results.jsonl.
"""

import argparse
import collections
import datetime
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import nano_probes
import numpy as np
from clip_measures import frechet, half_width, has_silence, principal, repetition, si_sdr
from nano_probes import PROBE_SEED, Features, Probes, features, label, same_tempo, tempo_bpm

from musicgen_jax import MusicGen
from musicgen_jax.audio import convert_audio
from musicgen_jax.nano import captions, composer, synth
from musicgen_jax.nano.build import HELD_OUT_SEED, piece
from musicgen_jax.nano.composer import FRAME_RATE, PieceSpec
from musicgen_jax.nano.pieces import spec_of
from musicgen_jax.nano.synth import SAMPLE_RATE

HERE = Path(__file__).parent
CLIPPED = 0.999  # magnitude of a sample
SHUFFLES = 50

ROWS = {
    "lead": "instrument",
    "tempo": "tempo class",
    "bpm": "tempo within 8 %, probe",
    "pulse": "tempo within 8 %, autocorrelation",
    "mode": "mode",
    "metre": "metre",
    "style": "style",
}


@dataclass(frozen=True)
class Request:
    """A held-out piece and words that ask for it; `plain` tells which kind of words."""

    seed: int
    spec: PieceSpec
    prompt: str
    plain: bool

    def tells(self, row: str) -> bool:
        """Whether the prompt says what the row of the table is about."""
        if row in ("bpm", "pulse"):
            return self.prompt.endswith(" bpm")
        return row != "metre" or self.plain or len(composer.STYLE_METRES[self.spec.style]) == 1


def make_request(index: int) -> Request:
    """The request of an index: even ones in plain words, with beats a minute unless in 6/8."""
    seed = HELD_OUT_SEED + index
    spec = spec_of(seed)
    if index % 2:
        prompt = captions.held_out_caption(spec, np.random.default_rng((seed, 1)))
        return Request(seed, spec, prompt, plain=False)
    bpm = "" if spec.metre == "6/8" else f", {round(spec.bpm)} bpm"
    return Request(seed, spec, captions.full_caption(spec) + bpm, plain=True)


# ------------------------------------------------------------------------------- sound to row


@dataclass(frozen=True)
class Heard:
    """Clips as the judges hear them: audio [N, W], features, and answers [N] by row."""

    audio: np.ndarray
    items: Sequence[Features]
    answers: Mapping[str, np.ndarray]


def listen(audio: np.ndarray, probes: Probes) -> Heard:
    """Judges clips, float32 [N, W] at the composer's sample rate."""
    items = [features(clip) for clip in audio]
    answers = dict(probes.predict(items))
    answers["bpm"] = answers["bpm"].astype(float)
    answers["pulse"] = np.array([tempo_bpm(item.onset) for item in items])
    return Heard(audio, items, answers)


def hits(row: str, answers: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Which answers are right, bool [N]."""
    specs = [request.spec for request in requests]
    if row in ("bpm", "pulse"):
        pairs = zip(answers, specs, strict=True)
        return np.array([same_tempo(float(answer), spec) for answer, spec in pairs])
    return answers == np.array([label(spec, row) for spec in specs])


def chance(row: str, answers: np.ndarray, requests: Sequence[Request]) -> float:
    """The hit rate of the same answers given to each other's requests, mean of many shuffles."""
    rng = np.random.default_rng(0)
    order = [rng.permutation(len(answers)) for _ in range(SHUFFLES)]
    return float(np.mean([hits(row, answers[o], requests).mean() for o in order]))


def obedience(heard: Mapping[str, Heard], requests: Sequence[Request]) -> dict[str, dict]:
    """Per row: n, and by condition the hit rate, over the prompts that tell the attribute."""
    table = {}
    for row in ROWS:
        told = [i for i, request in enumerate(requests) if request.tells(row)]
        if not told:
            continue
        asked = [requests[i] for i in told]
        right = {name: hits(row, h.answers[row][told], asked) for name, h in heard.items()}
        plain = np.array([request.plain for request in asked])
        table[row] = {
            "n": len(told),
            **{name: float(r.mean()) for name, r in right.items()},
            "half_width": half_width(float(right["generated"].mean()), len(told)),
            "plain_words": _mean(right["generated"][plain]),
            "new_words": _mean(right["generated"][~plain]),
            "chance": chance(row, heard["generated"].answers[row][told], asked),
        }
    return table


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


# ---------------------------------------------------------------------------- health of clips


def _timbre(items: Sequence[Features]) -> np.ndarray:
    return np.stack([item.timbre for item in items]).astype(np.float64)


def health(
    heard: Mapping[str, Heard], codes: Mapping[str, np.ndarray], reference: np.ndarray
) -> dict[str, dict]:
    """Faults of the clips, and how far their log-mel statistics are from `reference` [M, D].

    A codec colours everything. The distance to real clips that went through it, too, is between
    halves of the requests, so that no two clips compared are of the same piece.
    """
    project = principal(reference)
    half = len(heard["codec"].items) // 2
    coloured = project(_timbre(heard["codec"].items[half:]))
    table = {}
    for name, h in heard.items():
        leads = collections.Counter(h.answers["lead"].tolist())
        lead, count = leads.most_common(1)[0]
        table[name] = {
            "silent": float(np.mean([has_silence(clip) for clip in h.audio])),
            "clipped": float(np.mean(np.abs(h.audio).max(1) >= CLIPPED)),
            "most_heard_share": count / len(h.audio),
            "most_heard_lead": lead,
            "leads_heard": dict(leads),
            "repetition": repetition(codes[name]) if name in codes else None,
            "frechet": frechet(project(_timbre(h.items)), project(reference)),
            "frechet_codec": frechet(project(_timbre(h.items[:half])), coloured),
        }
    return table


def cross_entropies(
    model: MusicGen, codes: np.ndarray, prompts: Sequence[str | None], batch: int
) -> list[float]:
    """Nats per token of each codebook when the model reads `codes` [N, K, T] with prompts."""
    sums, counts = np.zeros(codes.shape[1]), np.zeros(codes.shape[1])
    for part, texts in _parts(batch, codes, prompts):
        logits = np.asarray(model.lm_logits(part, texts))  # [B, K, T, V]
        predicted = np.isfinite(logits[..., 0])
        top = logits.max(-1)
        total = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
        nats = total - np.take_along_axis(logits, part[..., None], -1)[..., 0]
        sums += np.where(predicted, nats, 0).sum((0, 2))
        counts += predicted.sum((0, 2))
    return (sums / counts).tolist()


# ----------------------------------------------------------------------------------- the work


def _parts(size: int, *sequences):
    for at in range(0, len(sequences[0]), size):
        yield tuple(s[at : at + size] for s in sequences)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _mono(model: MusicGen, audio: np.ndarray) -> np.ndarray:
    """The model's [B, C, W] as the judges want it, [B, W]."""
    to = SAMPLE_RATE, 1
    return np.stack([convert_audio(clip, model.sample_rate, *to)[0] for clip in audio])


def generate(
    model: MusicGen, requests: Sequence[Request], batch: int, seed: int, settings: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Audio [N, W] and codes [N, K, T]; a clip depends on its request and the seed alone."""
    audio, codes = [], []
    for (part,) in _parts(batch, requests):
        seeds = [(seed * 1_000_003 + request.seed) % 2**32 for request in part]
        output = model.generate([r.prompt for r in part], seed=seeds, **settings)
        audio.append(_mono(model, output.audio))
        codes.append(output.codes)
        _say(f"generated {sum(map(len, codes))} of {len(requests)} clips")
    return np.concatenate(audio), np.concatenate(codes)


def through_codec(model: MusicGen, audio: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips [N, W] as the codec reconstructs them, [N, W], and their codes [N, K, T]."""
    decoded, codes = [], []
    for (part,) in _parts(batch, audio):
        codes.append(np.asarray(model.encode(part[:, None], SAMPLE_RATE)))
        decoded.append(_mono(model, np.asarray(model.decode(codes[-1])))[:, : audio.shape[1]])
    return np.concatenate(decoded), np.concatenate(codes)


def training_clips(
    count: int, num_frames: int, cache: Path | None = None
) -> tuple[list[PieceSpec], list[Features]]:
    """What the probes are fitted on: clips as rendered, every second one worn.

    Args:
      count: of clips.
      num_frames: length of a clip in frames of the composer.
      cache: npz file that keeps the features for the next call with the same code and arguments.
    """
    specs = [spec_of(seed) for seed in range(PROBE_SEED, PROBE_SEED + count)]
    sources = [Path(str(module.__file__)) for module in (nano_probes, composer, synth)]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    key = f"{digest.hexdigest()} {count} {num_frames}"
    names = [field.name for field in fields(Features)]
    if cache and cache.exists():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                rows = zip(*(stored[name] for name in names), strict=True)
                return specs, [Features(*row) for row in rows]
    items = []
    for i in range(count):
        audio = nano_probes.rendered(PROBE_SEED + i, num_frames)[1]
        if i % 2:
            audio = nano_probes.worn(audio, np.random.default_rng(i))
        items.append(features(audio))
        if (i + 1) % 500 == 0:
            _say(f"rendered {i + 1} of {count} clips for the probes")
    if cache:
        arrays = {name: np.stack([getattr(item, name) for item in items]) for name in names}
        np.savez(cache, key=key, **arrays)
    return specs, items


def measure(
    model: MusicGen,
    requests: Sequence[Request],
    *,
    probe_clips: int,
    batch: int,
    seed: int,
    settings: dict,
    cache: Path | None = None,
) -> tuple[dict, dict[str, Heard]]:
    """Everything that the report says, as plain numbers, and the clips that it is about.

    Args:
      model: what is measured.
      requests: what is asked of it.
      probe_clips: how many rendered clips the probes are fitted on.
      batch: clips at a time.
      seed: of the generation.
      settings: arguments of `MusicGen.generate`, `duration` among them.
      cache: see `training_clips`.
    """
    num_frames = int(settings["duration"] * FRAME_RATE)
    specs, items = training_clips(probe_clips, num_frames, cache)
    probes = Probes(specs, items)
    _say("probes fitted")
    raw = np.stack([piece(request.seed, num_frames)[1] for request in requests])
    decoded, real_codes = through_codec(model, raw, batch)
    began = time.monotonic()
    generated, codes = generate(model, requests, batch, seed, settings)
    seconds = time.monotonic() - began
    heard = {
        "generated": listen(generated, probes),
        "codec": listen(decoded, probes),
        "rendered": listen(raw, probes),
    }
    prompts = [request.prompt for request in requests]
    wrong = prompts[2:] + prompts[:2]  # somebody else's, in the same kind of words
    result = {
        "obedience": obedience(heard, requests),
        "health": health(heard, {"generated": codes, "codec": real_codes}, _timbre(items[::2])),
        "codec_si_sdr_db": float(np.median(si_sdr(raw, decoded))),
        "cross_entropy": {
            "own_prompt": cross_entropies(model, real_codes, prompts, batch),
            "wrong_prompt": cross_entropies(model, real_codes, wrong, batch),
            "no_prompt": cross_entropies(model, real_codes, [None] * len(prompts), batch),
        },
        "generation_seconds": round(seconds, 1),
    }
    return result, heard


# ---------------------------------------------------------------------------------- the report


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = ([cell.ljust(width) for cell, width in zip(x, widths, strict=True)] for x in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _rate(rate: float | None, count: int = 0) -> str:
    if rate is None:
        return "-"
    return f"{rate:.2f} ± {half_width(rate, count):.2f}" if count else f"{rate:.2f}"


def as_markdown(result: dict) -> str:
    """The report for people."""
    rows = []
    for row, r in result["obedience"].items():
        rates = [_rate(r[name], r["n"]) for name in ("generated", "codec", "rendered")]
        words = [_rate(r["plain_words"]), _rate(r["new_words"])]
        rows.append([ROWS[row], str(r["n"]), rates[0], *words, _rate(r["chance"]), *rates[1:]])
    head = ["what the prompt names", "n", "generated", "plain words", "new words", "chance"]
    parts = [_table([*head, "real, through the codec", "real"], rows)]

    conditions = result["health"]
    n = max(r["n"] for r in result["obedience"].values())

    def line(title: str, cell: Callable[[dict], str]) -> list[str]:
        return [title, *(cell(values) for values in conditions.values())]

    rows = [
        line("clips with a silent second", lambda v: _rate(v["silent"], n)),
        line("clips that clip", lambda v: _rate(v["clipped"], n)),
        line(
            "most heard instrument",
            lambda v: f"{v['most_heard_lead']} {_rate(v['most_heard_share'], n)}",
        ),
        line("first-book token repeated", lambda v: _rate(v["repetition"])),
        line("Frechet distance to real", lambda v: f"{v['frechet']:.1f}"),
        line("... to real through the codec", lambda v: f"{v['frechet_codec']:.1f}"),
    ]
    parts.append(_table(["", "generated", "real, through the codec", "real"], rows))

    entropies = result["cross_entropy"]
    books = range(len(entropies["own_prompt"]))
    rows = [
        [name.replace("_", " "), *(f"{x:.3f}" for x in values), f"{np.mean(values):.3f}"]
        for name, values in entropies.items()
    ]
    head = ["nats per token of real codes", *(f"book {k}" for k in books), "mean"]
    parts.append(_table(head, rows))
    parts.append(
        f"SI-SDR of the codec {result['codec_si_sdr_db']:.1f} dB (median). ± is half of a 95 % "
        "interval; chance is the same answers to shuffled requests.\n"
        "These figures say how much the music is like our composer's, not how good it is."
    )
    return "\n\n".join(parts)


def draw(folder: Path, requests: Sequence[Request], heard: Mapping[str, Heard]) -> None:
    """Writes log-mel spectrograms of the first clips, generated and real, as PNG files."""
    if importlib.util.find_spec("matplotlib") is None:
        _say("no figures: matplotlib is not installed")
        return
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for i, request in enumerate(requests[:8]):
        figure = Figure(figsize=(12, 6), layout="constrained")
        for axes, name in zip(figure.subplots(len(heard), sharex=True), heard, strict=True):
            clip = heard[name].audio[i]
            lead = heard[name].answers["lead"][i]
            extent = (0, len(clip) / SAMPLE_RATE, 0, nano_probes.MEL_BANDS)
            mel = nano_probes.log_mel(clip).T
            axes.imshow(mel, origin="lower", aspect="auto", extent=extent, vmin=-1, vmax=6)
            axes.set(title=f"{name}, heard as {lead}", ylabel="mel band")
        axes.set_xlabel("seconds")
        figure.suptitle(request.prompt, fontsize=9)
        figure.savefig(folder / f"{i:02d}.png", dpi=80)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = {k: p.default for k, p in inspect.signature(MusicGen.generate).parameters.items()}
    parser.add_argument("--model", default="nano", help='"nano" or a model folder')
    parser.add_argument("--n", type=int, default=200, help="prompts")
    parser.add_argument("--first", type=int, default=0, help="number of the first prompt")
    parser.add_argument("--batch", type=int, default=20, help="clips at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the generation")
    parser.add_argument("--duration", type=float, default=usual["duration"], help="seconds, > 4.1")
    parser.add_argument("--top-k", type=int, default=usual["top_k"])
    parser.add_argument("--temperature", type=float, default=usual["temperature"])
    parser.add_argument("--cfg-coef", type=float, default=usual["cfg_coef"], help="1: none")
    parser.add_argument("--probe-clips", type=int, default=3000, help="clips to fit the probes on")
    parser.add_argument("--cache", type=Path, help="npz file that keeps the probes' features")
    parser.add_argument("--figures", type=Path, help="folder for spectrograms (needs matplotlib)")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if importlib.util.find_spec("sklearn") is None:
        parser.error("needs scikit-learn: pip install 'musicgen-jax[report]'")
    if args.duration <= 4.1 or args.n < 30:
        parser.error("--duration must be more than 4.1 (a bar, twice) and --n at least 30")
    settings = {
        "duration": args.duration,
        "top_k": args.top_k,
        "temperature": args.temperature,
        "cfg_coef": args.cfg_coef,
    }
    model = MusicGen.from_pretrained(args.model)
    requests = [make_request(i) for i in range(args.first, args.first + args.n)]
    result, heard = measure(
        model,
        requests,
        probe_clips=args.probe_clips,
        batch=args.batch,
        seed=args.seed,
        settings=settings,
        cache=args.cache,
    )
    print(as_markdown(result))
    if args.figures:
        draw(args.figures, requests, heard)
    packages = ("jax", "flax", "numpy", "scikit-learn")
    record = {
        "benchmark": "nano_report",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "model": args.model if args.model == "nano" else model.name,
        "n": args.n,
        "first": args.first,
        "seed": args.seed,
        "probe_clips": args.probe_clips,
        **settings,
        **_rounded(result),
    }
    with args.results.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
