"""Frame labels that the language model learns to predict next to the codes.

A small model that only predicts codes follows the instrument but hardly the metre, because the next
code mostly continues the same note. So during training it also predicts labels of each frame, from
the codes so far and the prompt: the place in the bar, the place in the eighth note, the chord, the
bar of the tune, the lead and the style. To predict the place in the bar, it has to count in the
tempo and the metre that the prompt names. Without a prompt, the other labels make it listen to the
music so far. The heads that read these labels are discarded after training.
"""

import numpy as np

from musicgen_jax.nano import composer
from musicgen_jax.nano.composer import PieceSpec


def _starts(sizes: dict) -> tuple[dict, int]:
    """The offset of each key's values if all are concatenated, and the total number of values."""
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
    """The labels of some frames of a piece.

    Args:
      spec: of the piece.
      chords: of its phrases; see `composer.draw_chords`.
      start: the first frame.
      frames: number of frames.

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
