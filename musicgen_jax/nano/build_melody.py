"""Makes a melody model from nano: `python -m musicgen_jax.nano.build_melody RUN_DIR`.

The model has the codec, the text encoder and the tokenizer of nano. Its language model starts from
nano's weights. It reads the text by cross-attention, as nano does, and learns to follow a melody
that comes before the tokens. It ships as musicgen_jax/nano/melody; MODEL_CARD.md says what was
measured.

The build composes and encodes pieces, trains, and packs the model's folder. Each stage saves its
progress and is skipped if its result exists, so an interrupted build resumes. With `--from` it
starts from another melody model, for example the one of an earlier build, and with `--mean-with` it
packs the mean of both.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.nano import captions
from musicgen_jax.nano.build import LICENSE, TEXT_LENGTH, log_to
from musicgen_jax.nano.melodies import LABELS, MelodyPieces, excerpt, rendering, tune_labels
from musicgen_jax.nano.pieces import spec_of
from musicgen_jax.nano.synth import render
from musicgen_jax.nano.weights import language_model, mean_of, text_encoder
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.channels import encode
from musicgen_jax.storage import checkpoint, loading
from musicgen_jax.storage.hub import find_model
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training import lm as lm_training
from musicgen_jax.training import lm_loop, state_file
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.batches import Dropout, Tokenize, fixed_length
from musicgen_jax.training.optimizer import OptimizerConfig

NAME = "nano-melody"
STRIDE = 3  # codec frames from one chroma frame to the next; the shortest notes have 5
WINDOW = 2560  # samples of a chroma frame: 0.16 s
SECONDS = 10.0  # of the model's window
STEPS, BATCH = 3300, 4
OPTIMIZER = OptimizerConfig(learning_rate=1.5e-3, warmup_steps=50, final_learning_rate=0.0)
# audiocraft drops everything from one example in five and the melody alone from half of the others.
# Here the training is short, and text without a melody is known from nano.
DROPOUT = Dropout(everything=0.1, description=0.05, self_wav=0.1)
PIECES, HELD_OUT_PIECES, RENDERINGS = range(5000), 64, 2
_SHARPNESS, _PREFERENCE, _MARK, _AHEAD = 4.0, 2.5, 3.0, 2.5  # see `_listening`
PER_FILE = 250  # pieces
SEED, HELD_OUT_SEED = 60_000_000, 70_000_000  # disjoint from the seeds of `nano.build`


def melody_config(base: MusicGenConfig) -> MusicGenConfig:
    """The architecture of the melody model on the codec and the text encoder of `base`."""
    lm = dataclasses.replace(
        base.lm,
        chroma_bins=12,
        chroma_window=WINDOW,
        chroma_hop=STRIDE * base.encodec.hop_length,
        chroma_stride=STRIDE,
        chroma_tonic=7,  # G: nano plays G major and E minor
    )
    return dataclasses.replace(base, lm=lm, max_duration=SECONDS, name=NAME)


def training(
    steps: int = STEPS,
    learning_rate: float = OPTIMIZER.learning_rate,
    no_melody: float = DROPOUT.self_wav,
) -> lm_training.LMTrainConfig:
    """How the language model is trained."""
    return lm_training.LMTrainConfig(
        phases=(lm_training.Phase(steps, round(SECONDS * 25), BATCH),),
        optimizer=dataclasses.replace(OPTIMIZER, learning_rate=learning_rate),
        dropout=dataclasses.replace(DROPOUT, self_wav=no_melody),
        codebook_weights=(4.0, 2.0, 1.0, 1.0),  # as for nano
        label_classes=LABELS,
        label_weight=1.0,
    )


def encode_pieces(path: Path, codec: Encodec, model: MusicGenConfig, seeds: range) -> MelodyPieces:
    """Codes and chroma of pieces: loaded from `path` if it exists, otherwise made and saved."""
    if path.exists():
        return MelodyPieces.load(path)
    frames = round(model.max_duration * model.frame_rate)
    codes, tunes, chroma = [], [], []
    for seed in seeds:
        spec, notes = excerpt(seed, frames)
        codes.append(np.asarray(encode(codec, render(notes, frames)[None, None]))[0])
        tunes.append(tune_labels(spec, notes, frames))
        rng = np.random.default_rng((seed, 2))
        chroma.append([rendering(spec, notes, rng, model) for _ in range(RENDERINGS)])
    pieces = MelodyPieces(
        codes=np.stack(codes).astype(np.int16),
        tunes=np.stack(tunes),
        chroma=np.array(chroma, np.uint8),
        seeds=np.asarray(seeds),
    )
    pieces.save(path)
    return pieces


def joined(shelves: list[MelodyPieces]) -> MelodyPieces:
    """The pieces of several files as one."""
    names = [field.name for field in dataclasses.fields(MelodyPieces)]
    return MelodyPieces(*(np.concatenate([getattr(s, name) for s in shelves]) for name in names))


def beginning(start: Path, model: MusicGenConfig) -> dict[str, Any]:
    """The language model's first parameters: those of the model `start` that fit, others new.

    Everything but the projection of the chroma comes from nano, and one head starts anew; see
    `_listening`.
    """
    old = language_model(start)
    made = lm_training.init(model, training(1)).params["lm"]

    def chosen(new: Any, old: Any) -> Any:
        if isinstance(new, dict):
            return {key: chosen(value, (old or {}).get(key)) for key, value in new.items()}
        fits = old is not None and old.shape == new.shape
        return np.array(old if fits else new, np.float32)

    lm = chosen(made, old)
    return lm if "chroma_conditioner" in old else _listening(lm, model)


def _listening(lm: dict[str, Any], model: MusicGenConfig) -> dict[str, Any]:
    """Makes the first head of the first layer attend to the chroma that is due next.

    A model needs thousands of steps to discover by itself that the chroma in the prefix belongs to
    the tokens with the same position numbers. Here the queries and keys of the head are the faster
    half of the position vectors, so the head attends to positions with nearly the same number. The
    queries are those of `_AHEAD` frames later: where a note begins, the chroma frame of that time
    often still has the previous note. A mark in the slowest sines, which are nearly zero in the
    first minutes, distinguishes chroma frames from tokens.
    """
    width = model.lm.dim // model.lm.num_heads
    half, fast = model.lm.dim // 2, width // 2 - 1
    slow = np.arange(half * 8 // 9, half)
    query, key = np.zeros((2, width, model.lm.dim), np.float32)
    for i in range(fast):
        angle = _AHEAD / 10000 ** (i / (half - 1))
        key[i, i] = key[fast + i, half + i] = _SHARPNESS
        query[i, i] = query[fast + i, half + i] = _SHARPNESS * np.cos(angle)
        query[fast + i, i] = _SHARPNESS * np.sin(angle)
        query[i, half + i] = -_SHARPNESS * np.sin(angle)
    query[2 * fast, slow] = key[2 * fast, half + slow] = _PREFERENCE
    weight = lm["transformer"]["layers"][0]["self_attn"]["in_proj"]["weight"]
    weight[:width], weight[model.lm.dim :][:width] = query, key
    project = lm["chroma_conditioner"]["output_proj"]
    project["weight"] *= 3
    project["bias"][half + slow] += _MARK
    return lm


def make_evaluation(
    model: MusicGenConfig, held_out: MelodyPieces, tokenize: Tokenize
) -> Callable[[dict], dict]:
    """Makes an evaluation: cross-entropy of held-out pieces, for each combination of inputs."""
    loss = jax.jit(lm_training.make_loss(model))
    codes, rng = held_out.codes[:16].astype(np.int32), np.random.default_rng(0)
    prompts: list[str | None] = [
        captions.caption(spec_of(int(seed)), rng) for seed in held_out.seeds[:16]
    ]
    right = np.eye(12, dtype=np.float32)[held_out.chroma[:16, 0]]
    has, hasnt = np.ones(len(codes), bool), np.zeros(len(codes), bool)
    batches = {
        "held out": Batch(codes, *tokenize(prompts), chroma=right, has_audio=has),
        "wrong melodies": Batch(
            codes, *tokenize(prompts), chroma=np.roll(right, 1, axis=0), has_audio=has
        ),
        "no melody": Batch(codes, *tokenize(prompts), chroma=right, has_audio=hasnt),
        "wrong prompts": Batch(
            codes, *tokenize(prompts[1:] + prompts[:1]), chroma=right, has_audio=has
        ),
    }

    def evaluate(params: dict) -> dict:
        figures = {}
        for name, batch in batches.items():
            mean, books = loss(params, batch)
            figures |= {name: mean, f"{name}, book 0": books[0]}
        return figures

    return evaluate


def train(
    run: Path, start: Path, config: lm_training.LMTrainConfig, pieces: range
) -> tuple[MusicGenConfig, dict]:
    """Trains the language model, or loads `run/lm`; returns the architecture and parameters."""
    base = find_model("nano")
    base_config = checkpoint.load_config(base)
    model = melody_config(base_config)
    codec = loading.load_encodec(base, base_config.encodec)
    shelves = [
        encode_pieces(
            run / f"pieces{first}.npz",
            codec,
            model,
            range(SEED + first, SEED + min(first + PER_FILE, pieces.stop)),
        )
        for first in range(pieces.start, pieces.stop, PER_FILE)
    ]
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + HELD_OUT_PIECES)
    held_out = encode_pieces(run / "held_out.npz", codec, model, seeds)
    tokenize = fixed_length(Tokenizer(base / checkpoint.TOKENIZER), TEXT_LENGTH)
    path = run / "lm"
    if path.exists():
        state = state_file.load_state(path, lm_training.abstract_state(model, config))
    else:
        state = lm_training.init(model, config, text_encoder(base), lm=beginning(start, model))
    if int(state.step) < config.phases[0].steps:
        state = lm_loop.train(
            model,
            config,
            joined(shelves),
            tokenize,
            state=state,
            log=log_to(run / "lm.jsonl"),
            save=lambda state, score: state_file.save_state(path, state),
            evaluate=make_evaluation(model, held_out, tokenize),
            every=10,
            save_every=50,
        )
    return model, state.params


def pack(path: Path, model: MusicGenConfig, lm: dict[str, Any]) -> None:
    """Writes the model folder: the language model as int8, the rest copied from nano."""
    base = find_model("nano")
    with checkpoint.writing_model(path) as writer:
        writer.share_component("t5")
        writer.write_component("lm", lm, storage="int8")
        writer.share_component("encodec")
        source = {"made by": "musicgen_jax.nano.build_melody", "described in": "MODEL_CARD.md"}
        tokenizer = base / checkpoint.TOKENIZER
        writer.finish(model, tokenizer=tokenizer, license=LICENSE, source=source)


def build(
    run: Path,
    start: str | Path = "nano",
    config: lm_training.LMTrainConfig | None = None,
    pieces: range = PIECES,
    mean: str | Path | None = None,
) -> Path:
    """Runs all unfinished stages and returns the folder of the model, see `mean_of`."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "model").exists():
        model, params = train(run, find_model(start), config or training(), pieces)
        lm = params["lm"]
        if mean is not None:
            lm = mean_of(lm, language_model(find_model(mean)))
        pack(run / "model", model, lm)
    return run / "model"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a melody model from nano.")
    parser.add_argument("run", type=Path, help="folder of the run: states, logs, codes, the model")
    parser.add_argument("--from", dest="start", default="nano", help="model to start from")
    for name, default, meaning in (
        ("steps", STEPS, "of training"),
        ("learning-rate", OPTIMIZER.learning_rate, "the highest"),
        ("no-melody", DROPOUT.self_wav, "share of the examples that lose their melody"),
        ("first-piece", PIECES.start, "number of the first piece"),
        ("pieces", len(PIECES), "how many"),
    ):
        text = f"{meaning}; default: {default}"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    parser.add_argument("--mean-with", metavar="MODEL", help="pack the mean with an earlier model")
    args = parser.parse_args()
    config = training(args.steps, args.learning_rate, args.no_melody)
    pieces = range(args.first_piece, args.first_piece + args.pieces)
    print(f"made {build(args.run, args.start, config, pieces, args.mean_with)}")


if __name__ == "__main__":
    main()
