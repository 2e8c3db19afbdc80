"""Finds the tokenizer of CLAP's text tower, which LAION's files do not contain."""

import json
from pathlib import Path

from musicgen_jax import files
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.clap_tokenizer import MAX_BYTES, MERGES, VOCABULARY

WHOLE = "tokenizer.json"  # both in one file
FILES = (VOCABULARY, MERGES, WHOLE)


def read_bpe(folder: Path) -> dict[str, bytes] | None:
    """The two files of a byte-level BPE: {"vocab.json": ..., "merges.txt": ...}.

    Args:
      folder: with the two files, or with tokenizer.json, which holds both.

    Returns:
      None if the folder has neither.

    Raises:
      UserError: a file is damaged, too large, or of another kind of tokenizer.
    """
    if all((folder / name).is_file() for name in (VOCABULARY, MERGES)):
        pair = {name: files.read_bytes(folder / name, MAX_BYTES) for name in (VOCABULARY, MERGES)}
        for name, data in pair.items():
            if data.startswith(b"version https://git-lfs"):
                raise UserError(f"{folder / name} is a pointer of Git LFS: run `git lfs pull`")
        return pair
    whole = folder / WHOLE
    if not whole.is_file():
        return None
    model = files.read_json(whole).get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UserError(f"{whole} is not a byte-level BPE, and CLAP needs RoBERTa's")
    # A pair is one text with a space in it, or a list of two in newer files.
    merges = model.get("merges")
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges or ()]
    if not isinstance(merges, list) or not all(isinstance(pair, str) for pair in pairs):
        raise UserError(f"{whole} has no list of merges")
    vocabulary = json.dumps(model.get("vocab"), ensure_ascii=False)
    return {VOCABULARY: vocabulary.encode(), MERGES: "\n".join(pairs).encode()}
