"""Which excerpts of a clip there are styles of, and which of them lie in a segment."""

import dataclasses
from typing import Annotated

from musicgen_jax.config.schema import Between


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

    length: Annotated[int, Between(1, 1 << 20)]
    stride: Annotated[int, Between(1, 1 << 20)]
    books: Annotated[int, Between(1, 128)]
    bins: Annotated[int, Between(1, 1 << 16)]
    tokens: Annotated[int, Between(1, 1 << 12)]
    conditioner: str

    def to_settings(self) -> dict:
        """What the index of the shards says of it, plain JSON types."""
        return {f"style_{name}": value for name, value in dataclasses.asdict(self).items()}

    @property
    def enough(self) -> int:
        """Frames in which an excerpt lies wherever they begin, if the clip goes on so long."""
        return self.length + self.stride - 1

    def inside(self, start: int, stop: int) -> slice:
        """Which excerpts lie between two frames of a clip; all of them between 0 and its end."""
        first = -(-start // self.stride)
        return slice(first, max(first, (stop - self.length) // self.stride + 1))
