"""Tiny SentencePiece models with T5's special ids."""

import io

import sentencepiece

from musicgen_jax.storage.tokenizer import END_ID, PAD_ID

SENTENCES = [
    "a calm piano melody with soft strings in the background",
    "90s rock song with electric guitar and heavy drums",
    "happy electronic dance music, 120 bpm, bright synth lead!",
    "lo-fi hip hop beat to relax and study; warm bass, vinyl noise",
    "an orchestra plays an epic theme (brass, choir and timpani)",
]


UNKNOWN_ID = 2


def train(path, **kwargs):
    """A tiny unigram model with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        **{
            "vocab_size": 78,
            "model_type": "unigram",
            "pad_id": PAD_ID,
            "eos_id": END_ID,
            "unk_id": UNKNOWN_ID,
            "bos_id": -1,
            "minloglevel": 2,
            "num_threads": 1,
        }
        | kwargs,
    )
    path.write_bytes(model.getvalue())
    return path
