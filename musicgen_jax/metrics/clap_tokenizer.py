"""Text to token ids for CLAP: RoBERTa's byte-level BPE, by the `tokenizers` library."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.files import read_bytes

VOCABULARY, MERGES = "vocab.json", "merges.txt"
SOURCE = "FacebookAI/roberta-base"
LENGTH = 77  # tokens that CLAP reads
START_ID, PAD_ID, END_ID = 0, 1, 2
MAX_BYTES = 1 << 24  # RoBERTa's files have about 1 MB

_SPECIAL = {"<s>": START_ID, "<pad>": PAD_ID, "</s>": END_ID, "<unk>": 3}
_MASK = "<mask>"


class ClapTokenizer:
    """RoBERTa's tokenizer: `<s>`, the first 75 pieces of the text, `</s>`.

    As in the original, a text of `</s>` or `<mask>` means the special token.

    Args:
      vocabulary: content of RoBERTa's vocab.json.
      merges: content of its merges.txt.
      origin: of the two, for messages.

    Raises:
      UserError: the files are not RoBERTa's, or the library is not installed.
    """

    def __init__(self, vocabulary: bytes, merges: bytes, origin: str):
        try:
            import tokenizers
            from tokenizers import models, pre_tokenizers
        except ImportError:
            raise UserError(
                'CLAP reads texts with a library: pip install "musicgen-jax[evaluate]"'
            ) from None
        ids = _vocabulary(vocabulary, origin)
        try:
            bpe = models.BPE(vocab=ids, merges=_merges(merges))
            self._pieces = tokenizers.Tokenizer(bpe)
        except Exception as error:  # the library raises only this class
            raise UserError(f"{origin}: {MERGES} does not fit {VOCABULARY}: {error}") from None
        self._pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._pieces.add_special_tokens(list(_SPECIAL))
        if _MASK in ids:
            self._pieces.add_special_tokens([tokenizers.AddedToken(_MASK, lstrip=True)])
        self.vocab_size = len(ids)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "ClapTokenizer":
        """Reads vocab.json and merges.txt of a folder.

        Raises:
          UserError: a file is missing, or see the class.
        """
        folder = Path(folder)
        for name in (VOCABULARY, MERGES):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder} has no {name}, and CLAP cannot read text without it: copy "
                    f"{VOCABULARY} "
                    f"and {MERGES} of {SOURCE} there"
                )
        vocabulary, merges = (read_bytes(folder / name, MAX_BYTES) for name in (VOCABULARY, MERGES))
        return cls(vocabulary, merges, str(folder))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, including both ends; CLAP reads the first 77."""
        return [len(pieces) + 2 for pieces in self._encode(texts)]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenizes texts, int32 [B, 77], padded with 1.

        Raises:
          UserError: `texts` is not a list of strings, or one of them is not valid Unicode.
        """
        ids = np.full((len(texts), LENGTH), PAD_ID, np.int32)
        for row, pieces in zip(ids, self._encode(texts), strict=True):
            used = [START_ID, *pieces[: LENGTH - 2], END_ID]
            row[: len(used)] = used
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str | bytes):
            raise UserError("texts must be a list of strings; for one text give a list of one")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index} must be a string, got {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError:  # a lone surrogate: bytes that are not UTF-8
                raise UserError(f"text {index} is not valid Unicode") from None
        encoded = self._pieces.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


def _vocabulary(data: bytes, origin: str) -> dict[str, int]:
    """The id of each piece, checked to be RoBERTa's kind of vocabulary."""
    try:
        ids: Any = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: {VOCABULARY} is not readable JSON: {error}") from None
    if not isinstance(ids, dict) or any(type(number) is not int for number in ids.values()):
        raise UserError(f"{origin}: {VOCABULARY} must hold an object of pieces and ids")
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{origin}: {VOCABULARY} must number its pieces from 0 without a gap")
    for piece, number in _SPECIAL.items():
        if ids.get(piece) != number:
            raise UserError(
                f"{origin}: {VOCABULARY} is not RoBERTa's: {piece} must have the id {number}, not "
                f"{ids.get(piece)}"
            )
    return ids


def _merges(data: bytes) -> list[tuple[str, str]]:
    """The pairs of merges.txt, best first."""
    lines = data.decode("utf-8-sig").splitlines()
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = []
    for line in lines:
        if line:
            first, second = line.split(" ")
            pairs.append((first, second))
    return pairs
