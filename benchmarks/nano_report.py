"""How well the bundled model follows its prompts, and how close it is to real pieces.

Question: does the music have the lead, the tempo, the mode, the metre and the style that the prompt
names? The prompts describe composed pieces that were not used for training. Half are plain, and
half use phrasings that never occur in training captions. The judges are classifiers fitted on
rendered music only, and a tempo estimate that is fitted on nothing (`nano_probes.py`). They judge
the generated clips, the same pieces rendered, the rendered pieces through the codec (the ceiling),
and clips generated without guidance. Frechet distances to real pieces are compared with those of
real pieces through the codec, of shuffled codes, of noise and of another model (`nano_frechet.py`).
The figures mean "like our composer", not "good music": do not compare them with those of models
that were trained on recordings.

    pip install 'musicgen-jax[report,plot]'
    python benchmarks/nano_report.py --n 200 --cache features.npz --figures benchmarks
    python benchmarks/nano_report.py --first 10000 --top-k 50 # choose settings on other prompts

Against an earlier version of the bundled model, here the first one that today's code can read:

    git log --format='%h %s' -- musicgen_jax/nano/model       # all versions
    mkdir -p runs/nano-v1
    git archive 39fa63c musicgen_jax/nano/model | tar -x -C runs/nano-v1
    python benchmarks/nano_report.py --n 200 --against runs/nano-v1/musicgen_jax/nano/model

Prints tables in markdown and appends one JSON line to benchmarks/results.jsonl.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import measuring
import nano_clips
import nano_frechet
import nano_pictures
import numpy as np
from clip_measures import has_silence, repetition, si_sdr
from nano_clips import say
from nano_obedience import Heard, listen, obedience
from nano_probes import Probes, features
from nano_requests import Request, make_request
from nano_tables import as_markdown

from musicgen_jax import MusicGen
from musicgen_jax.nano.composer import FRAME_RATE
from musicgen_jax.nano.pieces import piece

CLIPPED = 0.999  # magnitude of a sample


def health(heard: Mapping[str, Heard], codes: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Faults of clips by condition: silence, clipping, the same instrument or token everywhere."""
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
        }
    return table


def cross_entropies(
    model: MusicGen, codes: np.ndarray, prompts: Sequence[str | None], batch: int
) -> list[float]:
    """Nats per token of each codebook when the model reads `codes` [N, K, T] with prompts."""
    sums, counts = np.zeros(codes.shape[1]), np.zeros(codes.shape[1])
    for part, texts in nano_clips.parts(batch, codes, prompts):
        logits = np.asarray(model.lm_logits(part, texts))  # [B, K, T, V]
        predicted = np.isfinite(logits[..., 0])
        top = logits.max(-1)
        total = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
        nats = total - np.take_along_axis(logits, part[..., None], -1)[..., 0]
        sums += np.where(predicted, nats, 0).sum((0, 2))
        counts += predicted.sum((0, 2))
    return (sums / counts).tolist()


def closeness(
    model: MusicGen, heard: Mapping[str, Heard], real_codes: np.ndarray, batch: int
) -> dict[str, dict]:
    """Frechet distances of the clips, and of signals that should be far away; see `nano_frechet`.

    Args:
      model: its codec decodes and measures.
      heard: clips of the same requests by condition.
      real_codes: int [N, K, T], the codes of "codec".
      batch: clips at a time.
    """
    rng = np.random.default_rng(0)

    def from_codes(codes: np.ndarray) -> np.ndarray:
        return nano_clips.decoded(model, codes, batch)

    # One at a time: together they would need gigabytes.
    spoilt: dict[str, Callable[[], np.ndarray]] = {
        "frames_shuffled": lambda: from_codes(nano_clips.frames_shuffled(real_codes, rng)),
        "books_shuffled": lambda: from_codes(nano_clips.books_shuffled(real_codes, rng)),
        "white_noise": lambda: nano_clips.white_noise(heard["rendered"].audio, rng),
    }
    rows = {n: nano_frechet.embed(model, h.audio, h.items, batch) for n, h in heard.items()}
    for name, make in spoilt.items():
        audio = make()
        rows[name] = nano_frechet.embed(model, audio, [features(clip) for clip in audio], batch)
        say(f"compared: {name}")
    return nano_frechet.distances(rows)


def measure(
    model: MusicGen,
    requests: Sequence[Request],
    *,
    probe_clips: int,
    batch: int,
    seed: int,
    settings: dict,
    n_off: int = 0,
    against: MusicGen | None = None,
    cache: Path | None = None,
) -> tuple[dict, dict[str, Heard]]:
    """All numbers of the report, and its clips.

    Args:
      model: the model to measure.
      requests: its prompts.
      probe_clips: number of rendered clips to fit the probes on.
      batch: clips at a time.
      seed: of the generation.
      settings: arguments of `MusicGen.generate`, including `duration`.
      n_off: number of requests that are also generated without guidance.
      against: another model, for the same requests and seeds.
      cache: see `nano_clips.training_clips`.
    """
    num_frames = int(settings["duration"] * FRAME_RATE)
    specs, items = nano_clips.training_clips(probe_clips, num_frames, cache)
    probes = Probes(specs, items)
    say("probes fitted")
    raw = np.stack([piece(request.seed, num_frames)[1] for request in requests])
    decoded, real_codes = nano_clips.through_codec(model, raw, batch)
    began = time.monotonic()
    generated, codes = nano_clips.generate(model, requests, batch, seed, settings)
    seconds = time.monotonic() - began
    heard = {
        "generated": listen(generated, probes),
        "codec": listen(decoded, probes),
        "rendered": listen(raw, probes),
    }
    written = {"generated": codes, "codec": real_codes}
    if against:
        say("the other model")
        audio, written["against"] = nano_clips.generate(against, requests, batch, seed, settings)
        heard["against"] = listen(audio, probes)
    unguided = None
    if n_off:
        say("without guidance")
        off = {**settings, "cfg_coef": 1.0}
        unguided = listen(nano_clips.generate(model, requests[:n_off], batch, seed, off)[0], probes)
    prompts = [request.prompt for request in requests]
    wrong = prompts[2:] + prompts[:2]  # another request's prompt, in the same kind of words
    result = {
        "obedience": obedience(heard, requests, unguided),
        "health": health(heard, written),
        "frechet": closeness(model, heard, real_codes, batch),
        "codec_si_sdr_db": float(np.median(si_sdr(raw, decoded))),
        "cross_entropy": {
            "own_prompt": cross_entropies(model, real_codes, prompts, batch),
            "wrong_prompt": cross_entropies(model, real_codes, wrong, batch),
            "no_prompt": cross_entropies(model, real_codes, [None] * len(prompts), batch),
        },
        "generation_seconds": round(seconds, 1),
    }
    return result, heard


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = {k: p.default for k, p in inspect.signature(MusicGen.generate).parameters.items()}
    parser.add_argument("--model", default="nano", help='"nano" or a model folder')
    parser.add_argument("--against", type=Path, help="folder of a model to compare with")
    parser.add_argument("--n", type=int, default=200, help="prompts")
    parser.add_argument("--n-off", type=int, help="so many also without guidance; default: half")
    parser.add_argument("--first", type=int, default=0, help="number of the first prompt")
    parser.add_argument("--batch", type=int, default=20, help="clips at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the generation")
    parser.add_argument("--duration", type=float, default=usual["duration"], help="seconds, > 4.1")
    parser.add_argument("--top-k", type=int, default=usual["top_k"])
    parser.add_argument("--temperature", type=float, default=usual["temperature"])
    parser.add_argument("--cfg-coef", type=float, default=usual["cfg_coef"], help="1: none")
    parser.add_argument("--probe-clips", type=int, default=3000, help="clips to fit the probes on")
    parser.add_argument("--cache", type=Path, help="npz file that keeps the probes' features")
    parser.add_argument(
        "--figures", type=Path, help=f"folder for {nano_pictures.FILE} (needs matplotlib)"
    )
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if importlib.util.find_spec("sklearn") is None:
        parser.error("needs scikit-learn: pip install 'musicgen-jax[report]'")
    if args.figures and importlib.util.find_spec("matplotlib") is None:
        parser.error("--figures needs matplotlib: pip install 'musicgen-jax[plot]'")
    if args.duration <= 4.1 or args.n < 30:
        parser.error("--duration must be more than 4.1 (a bar, twice) and --n at least 30")
    settings = {
        "duration": args.duration,
        "top_k": args.top_k,
        "temperature": args.temperature,
        "cfg_coef": args.cfg_coef,
    }
    n_off = args.n // 2 if args.n_off is None else args.n_off
    n_off = 0 if args.cfg_coef == 1 else n_off  # guidance is off anyway
    if not 0 <= n_off <= args.n:
        parser.error("--n-off must be from 0 to --n")
    model = MusicGen.from_pretrained(args.model)
    against = MusicGen.from_pretrained(args.against) if args.against else None
    requests = [make_request(i) for i in range(args.first, args.first + args.n)]
    result, heard = measure(
        model,
        requests,
        probe_clips=args.probe_clips,
        batch=args.batch,
        seed=args.seed,
        settings=settings,
        n_off=n_off,
        against=against,
        cache=args.cache,
    )
    print(as_markdown(result))
    if args.figures:
        few = nano_pictures.chosen(requests)
        clips = {name: h.audio[few] for name, h in heard.items()}
        path = args.figures / nano_pictures.FILE
        nano_pictures.draw(path, [requests[i] for i in few], clips)
    measuring.record(
        "nano_report",
        argparse.Namespace(quick=False, results=args.results),
        judges=f"scikit-learn {importlib.metadata.version('scikit-learn')}",
        model=args.model if args.model == "nano" else model.name,
        against=str(args.against) if args.against else None,
        n=args.n,
        n_off=n_off,
        first=args.first,
        seed=args.seed,
        probe_clips=args.probe_clips,
        **settings,
        **_rounded(result),
    )


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
