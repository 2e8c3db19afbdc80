"""What a page says about its model."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Choice:
    """A model in the page's list.

    Attributes:
      name: the name to choose it by.
      ready: whether it can be chosen; False if it is not on this machine, or is damaged.
      what: which inputs it takes and how large it is, or what is wrong.
      way: the command that gets it, if it is not ready.
    """

    name: str
    ready: bool
    what: str
    way: str = ""


@dataclasses.dataclass(frozen=True)
class About:
    """What a page says about its model.

    Attributes:
      licence: of the weights, in a few words.
      terms: the text of the licence.
      limits: what the model knows, and what it does not.
      examples: descriptions that it can play.
      choices: all models, this one included.
      notice: what went wrong when another model was chosen.
    """

    licence: str
    terms: str
    limits: str
    examples: tuple[str, ...]
    choices: tuple[Choice, ...] = ()
    notice: str = ""
