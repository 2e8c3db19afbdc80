"""Clips through slots against the same clips one after the other.

Question: how much more music does one machine make if N clips share the language model's steps? At
an official model's true shape, with random weights, guidance, 16 text tokens and clips of mixed
lengths, so that slots become free at different times. Without text encoder and codec.

    python benchmarks/slots.py --slots 4 --dtype float32 --rounds 3
    python benchmarks/slots.py --slots 16 --dtype int8 --rounds 3

The clips one after the other are made by the fastest program for one clip. In slots the longest
come first, as in `batch`. A step of a clip counts once, however many rows run next to it: the last
clips leave slots empty, as they do in real life.
First each side makes the shortest and the longest clip, which compiles its programs.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import lm_steps
import measuring
import numpy as np

from musicgen_jax import testing
from musicgen_jax.config import OFFICIAL_MODELS, MusicGenConfig
from musicgen_jax.generation.decode import generate_codes
from musicgen_jax.generation.request import Request
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.shapes import shapes_up_to
from musicgen_jax.storage.loading import Parts

QUANTUM = 10  # steps, as in `serving.scheduler`
SHORTEST = 0.6  # of the longest clip


def requests(config: MusicGenConfig, count: int, longest: float) -> list[Request]:
    """Clips of mixed lengths, the same in every run, the longest first."""
    lengths = np.random.default_rng(0).uniform(longest * SHORTEST, longest, count)
    lengths = np.sort(lengths)[::-1]
    return [
        Request(config=config, descriptions=["music"], duration=float(seconds), seed=i)
        for i, seconds in enumerate(lengths)
    ]


def one_by_one(lm: LM, clips: Sequence[Request], condition: Condition) -> Callable[[], None]:
    def run() -> None:
        for clip in clips:
            generate_codes(lm, condition, num_frames=clip.frames, keys=clip.keys)

    return run


def in_slots(engine: Engine, clips: Sequence[Request], condition: Condition) -> Callable[[], None]:
    def run() -> None:
        waiting, busy = deque(clips), set[int]()
        while waiting or busy:
            for slot in range(engine.slots):
                if slot not in busy and waiting:
                    clip = waiting.popleft()
                    engine.insert(slot, engine.prepare(clip, clip.windows[0], condition))
                    busy.add(slot)
            engine.run(min(QUANTUM, *(int(engine.left[slot]) for slot in busy)))
            engine.read()
            busy -= {slot for slot in busy if not engine.left[slot]}

    return run


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="float32", choices=lm_steps.DTYPES)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--clips", type=int, help="how many are made (default: 2 for each slot)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of the longest clip (default: 10)"
    )
    args = parser.parse_args(argv)
    config = OFFICIAL_MODELS[f"facebook/musicgen-{args.size}"]
    if args.quick:
        config, args.rounds, args.seconds = testing.DEBUG, 1, 0.2
    clips = requests(config, args.clips or 2 * args.slots, args.seconds)
    lm = lm_steps.random_lm(config.lm, args.dtype)
    # Neither text encoder nor codec is used.
    parts = Parts(config, None, lm, None, None)  # type: ignore[arg-type]
    text = np.random.default_rng(0).normal(size=(1, lm_steps.TEXT_TOKENS, config.lm.dim))
    mask = jnp.ones((1, lm_steps.TEXT_TOKENS), bool)
    condition = Condition(Embedded(jnp.asarray(text, lm.dtype), mask))
    (shape,) = shapes_up_to(parts, max(clip.frames for clip in clips), text=1)
    engine = Engine(parts, slots=args.slots, shape=shape)
    ways = {
        f"{args.slots} slots": partial(in_slots, engine),
        "one by one": partial(one_by_one, lm),
    }
    runs, first_runs = (
        {name: way(some, condition) for name, way in ways.items()}
        for some in (clips, clips[:: max(len(clips) - 1, 1)])
    )
    result = measuring.in_turn(runs, args.rounds, first_runs)
    steps = sum(clip.frames + max(config.lm.delays) for clip in clips)
    speeds = measuring.summary(result, steps, "steps of a clip", f"{args.slots} slots")
    return measuring.record(
        "slots",
        args,
        size=args.size,
        dtype=args.dtype,
        slots=args.slots,
        clips=len(clips),
        longest_seconds=args.seconds,
        steps=steps,
        program=str(engine.program),
        sides=result,
        **speeds,
    )


if __name__ == "__main__":
    main()
