"""Which excerpts of a clip there are styles of, and which of them lie in a segment."""

import dataclasses

from musicgen_jax.training.data.metadata import check_count

_MAX = 1 << 20


@dataclasses.dataclass(frozen=True)
class StyleGrid:
    """The styles of a clip: the codes of excerpts of one length, a fixed stride apart.

    audiocraft draws a length from 1.5 to 4.5 s and a place in the segment, both for all examples of
    a step; here each example draws one of the excerpts that were encoded.

    Attributes:
      length: frames of codes that an excerpt lasts.
      stride: frames of codes from one excerpt to the next.
      books: codebooks of the style conditioner, K.
      bins: codes are below it.
      tokens: of an excerpt, P.
      conditioner: the fingerprint of its codebooks.
    """

    length: int
    stride: int
    books: int
    bins: int
    tokens: int
    conditioner: str

    @classmethod
    def from_index(cls, index: dict) -> "StyleGrid":
        """Reads the index of shards.

        Raises:
          ValueError: a number is wrong.
          KeyError: one is missing.
        """
        return cls(
            length=check_count("style_length", index["style_length"], 1, _MAX),
            stride=check_count("style_stride", index["style_stride"], 1, _MAX),
            books=check_count("style_books", index["style_books"], 1, 128),
            bins=check_count("style_bins", index["style_bins"], 1, 1 << 16),
            tokens=check_count("style_tokens", index["style_tokens"], 1, 1 << 12),
            conditioner=str(index["style_conditioner"]),
        )

    def to_settings(self) -> dict:
        """What `from_index` reads, plain JSON types."""
        return {f"style_{name}": value for name, value in dataclasses.asdict(self).items()}

    @property
    def enough(self) -> int:
        """Frames in which an excerpt lies wherever they begin, if the clip goes on so long."""
        return self.length + self.stride - 1

    def inside(self, start: int, stop: int) -> slice:
        """Which excerpts lie between two frames of a clip; all of them between 0 and its end."""
        first = -(-start // self.stride)
        return slice(first, max(first, (stop - self.length) // self.stride + 1))
