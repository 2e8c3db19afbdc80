"""Where in which piece a frame stands: what the language model learns to tell beside the codes.

A small model that is only asked for codes follows the instrument and hardly the metre: what comes
next is mostly more of the same note. So while it trains it also tells, from what it has read and
been asked for, where in the bar it stands, how far into the eighth note, which chord sounds, which
bar of the tune it is, who leads and in what style. The first it cannot tell without counting in the
tempo and the metre that the prompt names; where there is no prompt, the others make it listen to
what was played. The readers of these labels are thrown away.
"""

import numpy as np

from musicgen_jax.nano import composer
from musicgen_jax.nano.composer import PieceSpec


def _starts(sizes: dict) -> tuple[dict, int]:
    """Where each key's values begin if all are put in one row, and how many there are."""
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, (ends - list(sizes.values())).tolist(), strict=True)), int(ends[-1])


_BARS, _PLACES = _starts(composer.EIGHTHS_PER_BAR)
_EIGHTHS, _PHASES = _starts({n: n for ns in composer.FRAMES_PER_EIGHTH.values() for n in ns})
_CHORDS = tuple(composer.CHORDS)

CLASSES = (
    _PLACES,  # the eighth in a bar of its metre
    _PHASES,  # the frame in an eighth of its length
    len(_CHORDS),
    composer.BARS,  # the bar in the tune
    len(composer.LEADS),
    len(composer.STYLES),
)
"""How many values each label has, in the order in which `places` gives them."""


def places(spec: PieceSpec, chords: dict[str, tuple[str, ...]], start: int, frames: int):
    """Labels of frames of a piece.

    Args:
      spec: of the piece.
      chords: of its phrases, see `composer.draw_chords`.
      start: the first frame.
      frames: how many.

    Returns:
      int32 [6, frames], in the order of `CLASSES`.
    """
    eighth, frame = np.divmod(start + np.arange(frames), spec.frames_per_eighth)
    bar, in_bar = np.divmod(eighth, composer.EIGHTHS_PER_BAR[spec.metre])
    by_bar = np.array([_CHORDS.index(chord) for chord in composer.chords_by_bar(chords)])
    labels = (
        _BARS[spec.metre] + in_bar,
        _EIGHTHS[spec.frames_per_eighth] + frame,
        by_bar[bar % composer.BARS],
        bar % composer.BARS,
        np.full(frames, composer.LEADS.index(spec.lead)),
        np.full(frames, composer.STYLES.index(spec.style)),
    )
    return np.stack(labels).astype(np.int32)
