"""Refuses a CLAP whose text tower has collapsed: it gives all texts nearly the same vector.

Three independent reports say so of laion/larger_clap_music on the Hub. Scores of such a model look
plausible and mean nothing.
"""

from collections.abc import Mapping

import jax
import numpy as np

from musicgen_jax.config import ClapConfig
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.clap import SOURCE, Clap, ClapNetwork
from musicgen_jax.metrics.clap_tokenizer import MERGES, VOCABULARY, ClapTokenizer
from musicgen_jax.nn.shapes import filled, module_shapes

_UNRELATED = "a slow piano ballad with soft strings", "a dog barks at cars that pass in the rain"
_HIGHEST = 0.95  # cosine


def check(tree: Mapping, config: ClapConfig, pieces: Mapping[str, bytes], origin: str) -> None:
    """Embeds two unrelated sentences and compares them.

    Args:
      tree: the parameters, nested dicts of numpy arrays.
      config: sizes.
      pieces: content of the tokenizer's files.
      origin: the file of the weights, for messages.

    Raises:
      UserError: the cosine of the two is above 0.95, or the tokenizer is of another model.
    """
    tokenizer = ClapTokenizer(pieces[VOCABULARY], pieces[MERGES], "the tokenizer")
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32, copy=False), dict(tree))
    network = filled(module_shapes(ClapNetwork, config), lambda _: wide)
    first, second = Clap(network, tokenizer=tokenizer).embed_text(_UNRELATED)
    cosine = float(first @ second)
    # Written so that NaN fails too.
    if not cosine <= _HIGHEST:
        raise UserError(
            f"{origin} has a collapsed text tower: two unrelated sentences have a cosine of "
            f"{cosine:.4f}, so its scores would mean nothing (a known fault of "
            f"laion/larger_clap_music): convert {SOURCE}"
        )
