"""Makes the bundled model from scratch: `python -m musicgen_jax.nano.build RUN_DIR`.

The build composes and renders music, trains the codec on it, encodes the music, trains the language
model on the codes, and packs everything into the folder that ships in the wheel. Each stage saves
its progress and is skipped if its result exists, so an interrupted build resumes.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from musicgen_jax.config import LMConfig, MusicGenConfig, T5Config
from musicgen_jax.nano import captions, composer, places
from musicgen_jax.nano.pieces import Library, Pieces, piece, spec_of
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.channels import encode
from musicgen_jax.nn.shapes import filled, module_shapes
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training import codec as codec_training
from musicgen_jax.training import codec_settings, lm_loop, state_file
from musicgen_jax.training import lm as lm_training
from musicgen_jax.training import text as text_training
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.batches import Dropout, Tokenize, fixed_length

CODEC = codec_settings.NANO_CODEC
MODEL = MusicGenConfig(
    t5=T5Config(vocab_size=800, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4),
    lm=LMConfig(dim=192, num_heads=3, num_layers=6, card=1024, text_dim=128),
    encodec=CODEC,
    name="nano",
)
CODEC_TRAINING = codec_settings.NANO_TRAINING
# The first stage ends when the codes are good enough to learn from. The codes then hold more detail
# than the decoder plays: a classifier finds the lead, one of eight instruments, from the codes of
# 998 of 1,000 clips. So a second stage trains only the decoder, on more pieces, and the codes keep
# their meaning.
DECODER_TRAINING = codec_settings.DECODER_TRAINING
LM_TRAINING = lm_training.LMTrainConfig(
    phases=(
        lm_training.Phase(steps=1500, frames=80, batch_size=20),  # how a beat is set up
        lm_training.Phase(steps=4500, frames=200, batch_size=8),
        lm_training.Phase(steps=5000, frames=650, batch_size=3),  # how themes return
    ),
    dropout=Dropout(everything=0.3),  # without a prompt, it learns to continue the music
    # The first codebook holds notes and onsets; the others mostly correct errors of the codec.
    codebook_weights=(4.0, 2.0, 1.0, 1.0),
    label_classes=places.CLASSES,
)
TEXT_TRAINING = text_training.TextTrainConfig(steps=2700)
DECODER_PIECES, DECODER_FRAMES = 2600, 256
# Training uses each long piece once or twice. With a few hundred, the model memorised the notes.
CODEC_PIECES, SHORT_PIECES, LONG_PIECES, HELD_OUT_PIECES = 500, 9000, 9000, 64
TOKENIZER_CAPTIONS = 15_000
SHORT_FRAMES = 256  # many beginnings teach more than a few whole pieces
LONG_FRAMES = 656  # two phrases (except of slow 4/4 pieces), or the whole tune if it is fast
TEXT_LENGTH = 48  # tokens; the few longer captions are truncated

# Seeds of the pieces. The ranges are disjoint: no piece serves two purposes.
CODEC_SEED, LM_SEED, HELD_OUT_SEED = 10_000_000, 20_000_000, 30_000_000
DECODER_SEED = 15_000_000

LICENSE = """The weights in this folder were trained by the musicgen_jax project from scratch, on
music that its own code composed and synthesised. They are released under the MIT licence, as the
code is. No weights and no data of anybody else went into them.
"""


def train_codec(run: Path) -> dict:
    """Trains the codec, or loads it from `run/codec`, and returns its parameters."""
    path = run / "codec"
    abstract = jax.eval_shape(lambda: codec_training.init(CODEC, CODEC_TRAINING))
    state = state_file.load_state(path, abstract) if path.exists() else None
    if state is None or int(state.step) < CODEC_TRAINING.steps:
        seeds = range(CODEC_SEED, CODEC_SEED + CODEC_PIECES)
        clips = np.stack([piece(seed)[1].astype(np.float16) for seed in seeds])
        state = codec_training.train(
            CODEC,
            CODEC_TRAINING,
            clips,
            state=state,
            log=log_to(run / "codec.jsonl"),
            save=lambda state, score: state_file.save_state(path, state),
        )
    return codec_training.codec_params(state)


def train_decoder(run: Path, codec: dict) -> dict:
    """Trains a better decoder, or loads it from `run/decoder`; returns the codec's parameters."""
    path = run / "decoder"
    abstract = jax.eval_shape(lambda: codec_training.init(CODEC, DECODER_TRAINING))
    state = state_file.load_state(path, abstract) if path.exists() else None
    if state is None or int(state.step) < DECODER_TRAINING.steps:
        seeds = range(DECODER_SEED, DECODER_SEED + DECODER_PIECES)
        clips = np.stack([piece(seed, DECODER_FRAMES)[1].astype(np.float16) for seed in seeds])
        state = codec_training.train(
            CODEC,
            DECODER_TRAINING,
            clips,
            params=codec,
            state=state,
            log=log_to(run / "decoder.jsonl"),
            save=lambda state, score: state_file.save_state(path, state),
        )
    return codec_training.codec_params(state)


def encode_pieces(path: Path, codec: dict, seeds: range, num_frames: int) -> Pieces:
    """The codes of pieces: loaded from `path` if it exists, otherwise encoded and saved there."""
    if path.exists():
        return Pieces.load(path)
    encodec = filled(module_shapes(Encodec, CODEC), lambda _: codec)
    sounds = (piece(seed, num_frames)[1] for seed in seeds)
    codes = [np.asarray(encode(encodec, wav[None, None]))[0].astype(np.int16) for wav in sounds]
    pieces = Pieces(np.stack(codes), np.asarray(seeds))
    pieces.save(path)
    return pieces


def train_tokenizer(path: Path) -> Path:
    """Trains a sentencepiece model with T5's special ids on captions, unless `path` exists."""
    if path.exists():
        return path
    import sentencepiece

    def texts() -> Iterator[str]:
        for seed in range(LM_SEED, LM_SEED + TOKENIZER_CAPTIONS):
            yield captions.caption(spec_of(seed), np.random.default_rng((seed, 1)))

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=texts(),
        model_writer=model,
        vocab_size=MODEL.t5.vocab_size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",  # ignores case
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=2,
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())
    return path


def train_text_encoder(run: Path, tokenize: Tokenize) -> dict:
    """Trains the text encoder to predict the attributes of pieces from captions."""

    def draw(rng: np.random.Generator, mistakable: bool) -> composer.PieceSpec:
        spec = composer.sample_spec(rng)
        while mistakable and not (spec.accompaniment and spec.lead in composer.ACCOMPANIMENTS):
            spec = composer.sample_spec(rng)
        return spec

    def batch(rng: np.random.Generator, size: int) -> text_training.Batch:
        # If both instruments can play either part ("piano with guitar"), it is hard to tell the
        # lead # from the accompaniment. This is so in one piece in five. Here, more than half of
        # the captions # are of such pieces.
        specs = [draw(rng, mistakable=row % 2 == 1) for row in range(size)]
        ids, mask = tokenize([captions.training_caption(spec, rng) for spec in specs])
        labels = {
            name: np.array([values.index(getattr(spec, name)) for spec in specs])
            for name, values in composer.ATTRIBUTES.items()
        }
        return ids, mask, labels

    classes = {name: len(values) for name, values in composer.ATTRIBUTES.items()}
    return text_training.train(
        MODEL.t5, TEXT_TRAINING, classes, batch, log=log_to(run / "text.jsonl")
    )


def train_lm(run: Path, train: Library, held_out: Pieces, tokenize: Tokenize) -> dict:
    """Trains text encoder and language model, or loads `run/lm`; returns their parameters."""
    path = run / "lm"
    abstract = lm_training.abstract_state(MODEL, LM_TRAINING)
    if path.exists():
        state = state_file.load_state(path, abstract)
    else:
        state = lm_training.init(MODEL, LM_TRAINING, train_text_encoder(run, tokenize))
    if int(state.step) < LM_TRAINING.steps:
        state = lm_loop.train(
            MODEL,
            LM_TRAINING,
            train,
            tokenize,
            state=state,
            log=log_to(run / "lm.jsonl"),
            save=lambda state, score: state_file.save_state(path, state),
            evaluate=make_evaluation(held_out, tokenize),
        )
    return state.params


def make_evaluation(held_out: Pieces, tokenize: Callable) -> Callable[[dict], dict]:
    """Makes an evaluation: cross-entropy of held-out pieces with right and with wrong captions."""
    loss = jax.jit(lm_training.make_loss(MODEL))
    codes = held_out.codes[:32, :, :200].astype(np.int32)
    rng = np.random.default_rng(0)
    prompts = [captions.caption(spec_of(int(seed)), rng) for seed in held_out.seeds[:32]]
    matched = Batch(codes, *tokenize(prompts))
    shuffled = Batch(codes, *tokenize(prompts[1:] + prompts[:1]))

    def evaluate(params: dict) -> dict:
        mean, per_codebook = loss(params, matched)
        books = {f"held out, book {k}": value for k, value in enumerate(per_codebook)}
        return {"held out": mean, "wrong prompts": loss(params, shuffled)[0], **books}

    return evaluate


def pack(path: Path, codec: dict, params: dict, tokenizer: Path) -> None:
    """Writes the model folder: int8 text encoder and language model, float16 codec."""
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), codec)
    with checkpoint.writing_model(path) as writer:
        writer.write_component("t5", params["t5"], storage="int8")
        writer.write_component("lm", params["lm"], storage="int8")
        writer.write_component("encodec", half)
        source = {"made by": "musicgen_jax.nano.build", "described in": "MODEL_CARD.md"}
        writer.finish(MODEL, tokenizer=tokenizer, license=LICENSE, source=source)


def log_to(path: Path) -> Callable[[dict], None]:
    """Makes a function that appends records to a JSONL file and prints them."""

    def log(record: dict) -> None:
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **record})
        with path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    return log


def build(run: Path) -> Path:
    """Runs all unfinished stages and returns the folder of the model."""
    run.mkdir(parents=True, exist_ok=True)
    codec = train_codec(run)
    encoded = {
        name: encode_pieces(run / f"{name}.npz", codec, range(seed, seed + count), frames)
        for name, seed, count, frames in (
            ("short", LM_SEED, SHORT_PIECES, SHORT_FRAMES),
            ("long", LM_SEED + SHORT_PIECES, LONG_PIECES, LONG_FRAMES),
            ("held_out", HELD_OUT_SEED, HELD_OUT_PIECES, SHORT_FRAMES),
        )
    }
    train = Library((encoded["short"], encoded["long"]))
    tokenizer = train_tokenizer(run / "tokenizer.model")
    tokenize = fixed_length(Tokenizer(tokenizer), TEXT_LENGTH)
    params = train_lm(run, train, encoded["held_out"], tokenize)
    if not (run / "model").exists():
        pack(run / "model", train_decoder(run, codec), params, tokenizer)
    return run / "model"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the bundled model from scratch.")
    parser.add_argument("run", type=Path, help="folder of the run: states, logs, codes, the model")
    print(f"made {build(parser.parse_args().run)}: it ships as musicgen_jax/nano/model")
