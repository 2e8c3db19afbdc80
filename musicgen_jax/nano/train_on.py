"""Trains nano further on new pieces: `python -m musicgen_jax.nano.train_on RUN_DIR`.

The build composes and encodes pieces that `nano.build` does not use, trains the language model from
nano's weights, and packs the mean of the weights before and after. Codec, text encoder and
tokenizer do not change. The next time, `--first-piece` chooses other pieces. Each stage saves its
progress and is skipped if its result exists, so an interrupted build resumes. MODEL_CARD.md says
what was measured.
"""

import argparse
import dataclasses
from pathlib import Path

from flax import nnx

from musicgen_jax.nano import build
from musicgen_jax.nano.pieces import Library, Pieces
from musicgen_jax.nano.weights import language_model, mean_of, text_encoder
from musicgen_jax.storage import checkpoint, loading
from musicgen_jax.storage.hub import find_model
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training import lm as lm_training
from musicgen_jax.training import lm_loop, state_file
from musicgen_jax.training.batches import fixed_length
from musicgen_jax.training.optimizer import OptimizerConfig

FIRST_PIECE, SHORT_PIECES, LONG_PIECES = 100_000, 4000, 1500
SHORT_STEPS, LONG_STEPS, LEARNING_RATE = 1300, 1200, 1e-3
SHARE = 0.5


def training(
    short_steps: int = SHORT_STEPS,
    long_steps: int = LONG_STEPS,
    learning_rate: float = LEARNING_RATE,
) -> lm_training.LMTrainConfig:
    """How the language model is trained: as before, with a learning rate that falls to zero."""
    return dataclasses.replace(
        build.LM_TRAINING,
        phases=(
            lm_training.Phase(short_steps, frames=200, batch_size=8),
            lm_training.Phase(long_steps, frames=325, batch_size=5),  # two phrases
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate, final_learning_rate=0.0),
    )


def train(
    run: Path,
    start: Path,
    codec: dict,
    config: lm_training.LMTrainConfig,
    short: range,
    long: range,
    share: float,
) -> dict:
    """Trains the language model, or loads `run/lm`.

    Args:
      run: folder of the run.
      start: folder of the model to start from.
      codec: parameters of the codec.
      config: how to train.
      short: seeds of the pieces of 10 s.
      long: seeds of the pieces of 26 s.
      share: how much the weights after training count in the mean.

    Returns:
      the parameters to pack: those of the text encoder, and of the language model the mean of
      before and after.
    """
    model = checkpoint.load_config(start)

    def encoded(name: str, seeds: range, frames: int) -> Pieces:
        return build.encode_pieces(run / f"{name}.npz", codec, seeds, frames)

    shelves = (
        encoded("short", short, build.SHORT_FRAMES),
        encoded("long", long, build.LONG_FRAMES),
    )
    seeds = range(build.HELD_OUT_SEED, build.HELD_OUT_SEED + build.HELD_OUT_PIECES)
    held_out = encoded("held_out", seeds, build.SHORT_FRAMES)
    tokenize = fixed_length(Tokenizer(start / checkpoint.TOKENIZER), build.TEXT_LENGTH)
    evaluate = build.make_evaluation(held_out, tokenize)
    log = build.log_to(run / "lm.jsonl")
    path, before = run / "lm", language_model(start)
    if path.exists():
        state = state_file.load_state(path, lm_training.abstract_state(model, config))
    else:
        state = lm_training.init(model, config, text_encoder(start), lm=before)
    if int(state.step) < config.steps:
        state = lm_loop.train(
            model,
            config,
            Library(shelves),
            tokenize,
            state=state,
            log=log,
            save=lambda state, score: state_file.save_state(path, state),
            evaluate=evaluate,
            every=10,
            save_every=50,
        )
    after = state.params["lm"]
    params = {**state.params, "lm": mean_of(after, before, share)}
    for kind, lm in (("before", before), ("after", after), ("mean", params["lm"])):
        found = evaluate({**params, "lm": lm})
        log({"weights": kind, **{name: float(value) for name, value in found.items()}})
    return params


def build_on(
    run: Path,
    start: str | Path = "nano",
    config: lm_training.LMTrainConfig | None = None,
    short: range = range(FIRST_PIECE, FIRST_PIECE + SHORT_PIECES),
    long: range = range(FIRST_PIECE + SHORT_PIECES, FIRST_PIECE + SHORT_PIECES + LONG_PIECES),
    share: float = SHARE,
) -> Path:
    """Runs all unfinished stages and returns the folder of the model; pieces count from 0."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "model").exists():
        folder = find_model(start)
        encodec = loading.load_encodec(folder, checkpoint.load_config(folder).encodec)
        codec = nnx.to_pure_dict(nnx.state(encodec, nnx.Param))
        short, long = (
            range(build.LM_SEED + pieces.start, build.LM_SEED + pieces.stop)
            for pieces in (short, long)
        )
        params = train(run, folder, codec, config or training(), short, long, share)
        build.pack(run / "model", codec, params, folder / checkpoint.TOKENIZER)
    return run / "model"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train nano further on new pieces.")
    parser.add_argument("run", type=Path, help="folder of the run: states, logs, codes, the model")
    parser.add_argument("--from", dest="start", default="nano", help="model to start from")
    for name, default, meaning in (
        ("short-steps", SHORT_STEPS, "of 8 segments of 8 s"),
        ("long-steps", LONG_STEPS, "of 5 segments of 13 s"),
        ("learning-rate", LEARNING_RATE, "the highest"),
        ("share", SHARE, "how much the weights after training count in the mean, from 0 to 1"),
        ("first-piece", FIRST_PIECE, "number of the first piece"),
        ("short-pieces", SHORT_PIECES, "pieces of 10 s"),
        ("long-pieces", LONG_PIECES, "pieces of 26 s"),
    ):
        text = f"{meaning}; default: {default}"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share must be from 0 to 1, got {args.share}")
    config = training(args.short_steps, args.long_steps, args.learning_rate)
    middle = args.first_piece + args.short_pieces
    short, long = range(args.first_piece, middle), range(middle, middle + args.long_pieces)
    print(f"made {build_on(args.run, args.start, config, short, long, args.share)}")


if __name__ == "__main__":
    main()
