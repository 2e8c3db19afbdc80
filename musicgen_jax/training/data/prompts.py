"""Makes the prompt of a training example from metadata, as audiocraft does.

`draw` makes the random choices; `merge_text` and `keep_words` apply them and are deterministic.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.training.data.metadata import MusicInfo

MERGED = ("key", "bpm", "genre", "moods", "keywords", "instrument")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How prompts vary (default: as in MusicGen's training, conditioner/text2music.yaml).

    Attributes:
      merge_text_p: probability that other metadata are added to the description.
      drop_desc_p: probability that the description is then left out.
      drop_other_p: probability that each other field is then *kept*. The name is audiocraft's and
        says the opposite, but audiocraft's code, which trained the official models, keeps the
        field.
      word_dropout: probability that a word is left out.
    """

    merge_text_p: float = 0.25
    drop_desc_p: float = 0.5
    drop_other_p: float = 0.5
    word_dropout: float = 0.3

    def __post_init__(self) -> None:
        for name, p in dataclasses.asdict(self).items():
            if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
                raise UserError(f"{name} must be a probability, from 0 to 1, got {p!r}")


def draw(info: MusicInfo, rng: np.random.Generator, config: PromptConfig) -> str:
    """Draws a prompt; "", the null condition, if there is no metadata or all was dropped."""
    text = info.description
    if config.merge_text_p:
        fields: list[str] = []
        keep_description = True
        if rng.random() < config.merge_text_p:
            known = [name for name in MERGED if getattr(info, name) is not None]
            fields = [name for name in known if rng.random() < config.drop_other_p]
            rng.shuffle(fields)
            keep_description = rng.random() >= config.drop_desc_p
        text = merge_text(info, fields, keep_description)
    if not text or not config.word_dropout:
        return text or ""
    return keep_words(text, rng.random(text.count(" ") + 1) >= config.word_dropout)


def merge_text(info: MusicInfo, fields: Sequence[str], keep_description: bool) -> str | None:
    """The description followed by other metadata (`augment_music_info_description`).

    Args:
      info: the metadata.
      fields: the names from `MERGED` to add, in this order; each must have a value.
      keep_description: whether to keep the description.

    Returns:
      the text; None if nothing is left.
    """
    others = ". ".join(f"{name}: {_value(getattr(info, name))}" for name in fields)
    if info.description is None or not keep_description:
        return others.strip() or None
    return f"{info.description.rstrip('.')}. {others}".strip()


def keep_words(text: str, keep: Sequence[bool] | np.ndarray) -> str:
    """Keeps the words for which `keep` is true; words are separated by single spaces."""
    words = zip(text.split(" "), keep, strict=True)
    return " ".join(word for word, kept in words if kept)


def _value(value: str | float | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    assert isinstance(value, str) or math.isfinite(value)
    return str(value)
