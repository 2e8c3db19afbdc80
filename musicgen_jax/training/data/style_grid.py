"""The positions of the style excerpts in a clip, and which of them lie in a segment."""

import dataclasses
from typing import Annotated

from musicgen_jax.config.schema import Between


@dataclasses.dataclass(frozen=True)
class StyleGrid:
    """The layout of the styles of a clip: excerpts of one length at a fixed stride.

    In each step, audiocraft draws one length from 1.5 to 4.5 s and one position in the segment for
    all examples. Here, each example draws one of the encoded excerpts.

    Attributes:
      length: length of an excerpt in code frames.
      stride: code frames between the starts of two excerpts.
      books: K, the number of codebooks of the style conditioner.
      bins: number of values of a code; all codes are below it.
      tokens: P, the number of tokens of an excerpt.
      conditioner: the fingerprint of the conditioner's codebooks.
    """

    length: Annotated[int, Between(1, 1 << 20)]
    stride: Annotated[int, Between(1, 1 << 20)]
    books: Annotated[int, Between(1, 128)]
    bins: Annotated[int, Between(1, 1 << 16)]
    tokens: Annotated[int, Between(1, 1 << 12)]
    conditioner: str

    def to_settings(self) -> dict:
        """The fields for the index of the shards, as plain JSON types."""
        return {f"style_{name}": value for name, value in dataclasses.asdict(self).items()}

    @property
    def enough(self) -> int:
        """The segment length that contains an excerpt at any start, if the clip is long enough."""
        return self.length + self.stride - 1

    def inside(self, start: int, stop: int) -> slice:
        """The excerpts between two frames of a clip; from 0 to the clip's end these are all."""
        first = -(-start // self.stride)
        return slice(first, max(first, (stop - self.length) // self.stride + 1))
