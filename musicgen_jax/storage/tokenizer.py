"""Text to token ids, with T5's sentencepiece model."""

import os
from collections.abc import Sequence

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.files import read_bytes

_MAX_BYTES = 1 << 26  # T5's has 0.8 MB
PAD_ID = 0
END_ID = 1
MAX_TOKENS = 2048  # about 1,500 words; T5-base needs 0.2 GB for a layer's attention to them


class Tokenizer:
    """T5's unigram tokenizer: sentencepiece ids, then `</s>`, padded with 0.

    Whitespace of any kind becomes single spaces, and unknown characters (emoji) become `<unk>`.
    Nothing is truncated, as in audiocraft. More than `MAX_TOKENS` tokens are refused: the memory
    of the text encoder grows with the square of the prompt's length. Control symbols such as `</s>`
    in a prompt are ordinary text.

    Args:
      path: a sentencepiece model with pad 0, end of sentence 1 (T5's `spiece.model`).

    Raises:
      UserError: the file is missing, unreadable or not such a model.
    """

    def __init__(self, path: str | os.PathLike[str]):
        import sentencepiece  # imported here: it takes 30 ms and loads a native library

        model = read_bytes(path, _MAX_BYTES)
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model) and self._pieces.LoadFromSerializedProto(model)
        except RuntimeError:
            loaded = False
        if not loaded:
            raise UserError(f"the tokenizer {path} is damaged: not a sentencepiece model")
        if (self._pieces.pad_id(), self._pieces.eos_id()) != (PAD_ID, END_ID):
            raise UserError(
                f"the tokenizer {path} is not a T5 tokenizer: its ids for padding and end are "
                f"{self._pieces.pad_id()} and {self._pieces.eos_id()}, not {PAD_ID} and {END_ID}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces; T5 checkpoints round their embedding table up from it."""
        return self._pieces.vocab_size()

    def __call__(
        self, texts: Sequence[str | None], length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes a batch of prompts.

        A row that is None or "" has no prompt: its mask is all False, the null condition. A single
        space is a prompt, as in audiocraft.

        Args:
          texts: B prompts.
          length: L to pad to (default: the longest row's length).

        Returns:
          ids int32 [B, L] and mask bool [B, L], True at the tokens of a prompt and its `</s>`.

        Raises:
          UserError: `texts` is not a list of strings and Nones, or a prompt exceeds `length` or
            `MAX_TOKENS`.
        """
        if isinstance(texts, str | bytes):
            raise UserError("prompts must be a list of strings; for one prompt give a list of one")
        rows = [self._encode(text, index) for index, text in enumerate(texts)]
        longest = max((len(row) for row in rows), default=1)
        if length is None:
            length = longest
        if longest > (length := min(length, MAX_TOKENS)):
            index = max(range(len(rows)), key=lambda i: len(rows[i]))
            raise UserError(f"prompt {index} has {longest} tokens, at most {length} fit")
        ids = np.full((len(rows), length), PAD_ID, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = text is not None and text != ""
        return ids, mask

    def _encode(self, text: str | None, index: int) -> list[int]:
        if text is not None and not isinstance(text, str):
            raise UserError(f"prompt {index} must be a string or None, got {type(text).__name__}")
        text = text or ""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate: command line bytes not in UTF-8
            raise UserError(f"prompt {index} is not valid Unicode text") from error
        return [*self._pieces.EncodeAsIds(text), END_ID]
