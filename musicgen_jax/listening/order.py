"""Which pieces a rater hears, in which order, and under which letters their clips appear.

Everything depends only on the study's seed and the rater's number, so that the page shows the same
after a restart.
"""

import numpy as np

from musicgen_jax.listening.study import Clip, Item, Study

_DEAL, _ITEMS, _CLIPS = range(3)  # independent streams of one seed


def items_for(study: Study, number: int) -> list[Item]:
    """The pieces of rater `number` (from 0), in the order in which they are heard.

    If raters hear fewer than all pieces, the pieces are dealt in turn: after any number of raters,
    no piece was dealt more than one time more often than another.
    """
    count, each = len(study.items), min(study.per_rater, len(study.items))
    deck = _generator(study, _DEAL).permutation(count)
    hand = [deck[(number * each + i) % count] for i in range(each)]
    return [study.items[i] for i in _generator(study, _ITEMS, number).permutation(hand)]


def clips_for(study: Study, number: int, item: Item) -> list[Clip]:
    """The clips of a piece in the order in which rater `number` sees them: A, B, C and so on."""
    rng = _generator(study, _CLIPS, number, study.items.index(item))
    return [item.clips[i] for i in rng.permutation(len(item.clips))]


def _generator(study: Study, *which: int) -> np.random.Generator:
    return np.random.default_rng((study.seed, *which))
