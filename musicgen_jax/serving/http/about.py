"""What a page says about its model."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class About:
    """What a page says about its model.

    Attributes:
      licence: of the weights, in a few words.
      terms: the text of the licence.
      limits: what the model knows, and what it does not.
      examples: descriptions that it can play.
    """

    licence: str
    terms: str
    limits: str
    examples: tuple[str, ...]
