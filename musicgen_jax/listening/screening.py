"""Decides which raters count, by the rules in the MusicGen paper.

Copet et al. 2023 leave out raters who did not listen to the full recordings, raters who gave the
reference recordings less than 85, and, as CrowdMOS recommends (Ribeiro et al. 2011), raters whose
scores correlate with those of the others by less than 0.25. In full, a rater is left out for

1. heard: on average, they heard less than 95 % of what the study asks for before scoring;
2. reference: the mean score for the overall quality of the hidden reference is under 85;
3. constant: every score is the same, so that there is no correlation;
4. correlation: Pearson's, between a rater's scores and the mean of the other remaining raters for
   the same clip and question, is under 0.25. The worst is left out first, then all correlations are
   computed again. This needs three raters, and raters with at least eight such scores.

Nobody's answers are deleted: `analysis` reports the figures of all raters as well.
"""

import dataclasses

import numpy as np

HEARD, REFERENCE_MEAN, CORRELATION = 0.95, 85.0, 0.25
_FEWEST_RATERS, _FEWEST_SCORES = 3, 8


@dataclasses.dataclass(frozen=True)
class Rules:
    """The thresholds; `reference` 0 turns that rule off."""

    heard: float = HEARD
    reference: float = REFERENCE_MEAN
    correlation: float = CORRELATION


def screen(
    scores: np.ndarray, heard: np.ndarray, reference: int | None, rules: Rules
) -> dict[int, str]:
    """Finds raters to leave out.

    Args:
      scores: float [raters, questions, pieces, systems], the first question being the overall
        quality; NaN where there is no score.
      heard: float [raters], the mean share of what should be heard.
      reference: index of the hidden reference among the systems, or None.
      rules: the thresholds.

    Returns:
      {index of the rater: reason}, in the order in which they were left out.
    """
    out: dict[int, str] = {}
    flat = scores.reshape(len(scores), -1)
    for rater, row in enumerate(flat):
        given = row[~np.isnan(row)]
        if heard[rater] < rules.heard:
            out[rater] = (
                f"heard {heard[rater]:.0%} of what the study asks for, under {rules.heard:.0%}"
            )
            continue
        if reference is not None and rules.reference:
            own = scores[rater, 0, :, reference]
            own = own[~np.isnan(own)]
            if len(own) and own.mean() < rules.reference:
                out[rater] = (
                    f"gave the hidden reference {own.mean():.1f} on average, under "
                    f"{rules.reference:g}"
                )
                continue
        if len(given) >= _FEWEST_SCORES and np.ptp(given) == 0:
            out[rater] = "gave every clip the same score"
    while True:
        kept = [rater for rater in range(len(flat)) if rater not in out]
        found = correlations(flat[kept])
        low = {r: c for r, c in zip(kept, found, strict=True) if c < rules.correlation}
        if len(kept) < _FEWEST_RATERS or not low:
            return out
        worst = min(low, key=lambda rater: low[rater])
        out[worst] = (
            f"correlates {low[worst]:.2f} with the other raters, under {rules.correlation:g}"
        )


def correlations(flat: np.ndarray) -> np.ndarray:
    """How each rater's scores, float [raters, scores], follow the mean of the others'.

    Returns:
      float [raters]; NaN if fewer than eight scores have others to compare with, or do not vary.
    """
    known = ~np.isnan(flat)
    filled = np.where(known, flat, 0)
    others = known.sum(axis=0) - known
    means = (filled.sum(axis=0) - filled) / np.maximum(others, 1)
    result = np.full(len(flat), np.nan)
    for rater, row in enumerate(flat):
        both = known[rater] & (others[rater] > 0)
        x, y = row[both], means[rater][both]
        if len(x) >= _FEWEST_SCORES and np.ptp(x) > 0 and np.ptp(y) > 0:
            result[rater] = np.corrcoef(x, y)[0, 1]
    return result
