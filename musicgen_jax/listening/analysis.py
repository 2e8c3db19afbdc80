"""From answers to results: means with intervals, comparisons, agreement, and who was left out."""

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.listening.agreement import krippendorff_alpha
from musicgen_jax.listening.answers import Answer, Rater
from musicgen_jax.listening.intervals import DRAWS, LEVEL, intervals
from musicgen_jax.listening.screening import Rules, screen
from musicgen_jax.listening.significance import fewest, holm, paired_p
from musicgen_jax.listening.study import ANCHOR, REFERENCE, SCALES, Study


@dataclasses.dataclass(frozen=True)
class Scores:
    """All answers as arrays.

    Attributes:
      raters: those who finished a piece, by number.
      scales: keys of `SCALES`, the questions.
      values: float64 [raters, questions, pieces, systems]; NaN where there is no score.
      heard: float64 [raters], the mean share that was heard of what the study asks for.
      unfinished: how many scores are not in `values`: other clips of their pieces have none yet.
    """

    raters: tuple[Rater, ...]
    scales: tuple[str, ...]
    values: np.ndarray
    heard: np.ndarray
    unfinished: int


def tabulate(study: Study, raters: Sequence[Rater], answers: Sequence[Answer]) -> Scores:
    """Sorts answers into arrays.

    A piece counts once a rater has answered one question for all of its clips. Otherwise the means
    of two systems would be over different pieces.

    Raises:
      UserError: no rater has come that far.
    """
    places = {
        clip.file: (i, study.systems.index(clip.system))
        for i, item in enumerate(study.items)
        for clip in item.clips
    }
    scales = study.scales
    shape = (len(raters), len(scales), len(study.items), len(study.systems))
    values, heard = np.full(shape, np.nan), np.full(shape, np.nan)
    numbers = {rater.number: i for i, rater in enumerate(raters)}
    for answer in answers:
        place = (numbers[answer.rater], scales.index(answer.scale), *places[answer.clip])
        values[place] = answer.score
        heard[place] = min(1.0, answer.heard / study.must_hear) if study.must_hear else 1.0
    given = np.count_nonzero(~np.isnan(values))
    values[np.isnan(values).any(axis=-1)] = np.nan
    known = ~np.isnan(values)
    active = known.any(axis=(1, 2, 3))
    if not active.any():
        raise UserError(
            f"no rater has finished a piece yet: {len(raters)} came, and {given} scores are saved"
        )
    shares = np.where(known, heard, 0).sum(axis=(1, 2, 3))[active]
    return Scores(
        tuple(raters[int(i)] for i in np.flatnonzero(active)),
        scales,
        values[active],
        shares / known.sum(axis=(1, 2, 3))[active],
        int(given - known.sum()),
    )


def analyse(
    study: Study, raters: Sequence[Rater], answers: Sequence[Answer], rules: Rules
) -> dict[str, Any]:
    """Computes all results.

    Args:
      study: the study.
      raters: everybody who came.
      answers: all answers.
      rules: for `screening.screen`.

    Returns:
      the results in plain JSON types. "scales" is over the raters that count, "everybody" over all.

    Raises:
      UserError: nobody has finished a piece, or nobody counts.
    """
    scores = tabulate(study, raters, answers)
    reference = study.systems.index(REFERENCE) if REFERENCE in study.systems else None
    out = screen(scores.values, scores.heard, reference, rules)
    kept = [i for i in range(len(scores.raters)) if i not in out]
    if not kept:
        first = next(iter(out))
        hint = " (--least-reference 0 turns off the rule about the reference)"
        by_reference = any("reference" in reason for reason in out.values())
        raise UserError(
            f"every rater is left out; rater {scores.raters[first].number} {out[first]}"
            f"{hint if by_reference else ''}"
        )
    return {
        "study": study.id,
        "title": study.title,
        "systems": list(study.systems),
        "pieces": len(study.items),
        "raters": {
            "joined": len(raters),
            "finished_a_piece": len(scores.raters),
            "counted": [scores.raters[i].number for i in kept],
            "left_out": [
                {"rater": scores.raters[i].number, "reason": reason} for i, reason in out.items()
            ],
        },
        "unfinished_scores": scores.unfinished,
        "rules": dataclasses.asdict(rules),
        "scales": _scales(study, scores.scales, scores.values[kept]),
        "everybody": _scales(study, scores.scales, scores.values),
        "definitions": {
            "interval": f"{LEVEL:.0%}, bootstrap over raters and pieces, {DRAWS} draws, widened as "
            "t is wider than normal",
            "p": "sign flips by rater and by piece, the larger p-value, two-sided, corrected over "
            "the pairs of a scale (Holm)",
            "alpha": "Krippendorff's, interval data, over all clips of all systems",
        },
    }


def _scales(study: Study, scales: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    return {scale: _scale(study, scale, values[:, i]) for i, scale in enumerate(scales)}


def _scale(study: Study, scale: str, values: np.ndarray) -> dict[str, Any]:
    """Results of one question, from float [raters, pieces, systems]."""
    count = np.count_nonzero(~np.isnan(values), axis=(0, 1))
    means = {
        system: {**dataclasses.asdict(found), "scores": int(n)}
        for system, found, n in zip(study.systems, intervals(values), count, strict=True)
        if found is not None
    }
    # A low-passed clip is certainly worse; and each extra comparison costs the others power.
    compared = [k for k, system in enumerate(study.systems) if system != ANCHOR]
    pairs = list(itertools.combinations(compared, 2)) if means else []
    differences = [values[:, :, a] - values[:, :, b] for a, b in pairs]
    p_values = [paired_p(difference) for difference in differences]
    found = intervals(np.stack(differences, axis=-1)) if pairs else []
    known = ~np.isnan(values).all(axis=-1)
    there = int(known.any(axis=-1).sum()), int(known.any(axis=0).sum())
    return {
        "short": SCALES[scale].short,
        "raters": there[0],
        "pieces": there[1],
        "fewest": fewest(len(pairs)),
        "systems": means,
        "alpha": krippendorff_alpha(values.reshape(len(values), -1)),
        "pairs": [
            {
                "systems": [study.systems[a], study.systems[b]],
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "p": p,
                "p_corrected": corrected,
            }
            for (a, b), difference, p, corrected in zip(
                pairs, found, p_values, holm(p_values), strict=True
            )
            if difference is not None
        ],
    }


# --- Texts ------------------------------------------------------------------------------------


def table(results: dict[str, Any], which: str = "scales") -> list[list[str]]:
    """Means with intervals, a row for each system and a column for each scale, heads included."""
    scales = results[which]
    rows = [["system", *(scale["short"] for scale in scales.values())]]
    for system in results["systems"]:
        cells = [_cell(scale["systems"].get(system)) for scale in scales.values()]
        rows.append([system, *cells])
    return rows


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:.1f}"
    return f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


def summary(results: dict[str, Any]) -> str:
    """The results as text for a terminal."""
    rows = table(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += ["", *_comparisons(results), "", *_people(results)]
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        f"# {results['title']}",
        "",
        "Means of scores from 1 to 100, with 95 % intervals over raters and pieces. OVL: overall "
        "quality. REL: relevance to the text. MEL: adherence to the melody.",
        "",
        *_markdown_table(table(results)),
        "",
        "![means and intervals](results.svg)",
        "",
        "## Differences",
        "",
        *(f"* {line}" for line in _comparisons(results)),
        "",
        f"p-values: {results['definitions']['p']}.",
        "",
        "## Raters",
        "",
        *(f"* {line}" for line in _people(results)),
        "",
    ]
    if results["raters"]["left_out"]:
        lines += ["With everybody:", "", *_markdown_table(table(results, "everybody")), ""]
    return "\n".join(lines)


def _markdown_table(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _comparisons(results: dict[str, Any]) -> list[str]:
    lines = []
    for scale in results["scales"].values():
        if scale["pairs"] and min(scale["raters"], scale["pieces"]) < scale["fewest"]:
            lines.append(
                f"{scale['short']}: {scale['raters']} raters and {scale['pieces']} pieces cannot "
                f"show a difference at 5 %: it takes {scale['fewest']} of each"
            )
        for pair in scale["pairs"]:
            a, b = pair["systems"]
            interval = "" if pair["low"] is None else f" [{pair['low']:+.1f}, {pair['high']:+.1f}]"
            verdict = "differ" if pair["p_corrected"] < 0.05 else "no difference shown"
            lines.append(
                f"{scale['short']}: {a} - {b} = {pair['difference']:+.1f}{interval}, "
                f"p = {pair['p_corrected']:.2g}: {verdict}"
            )
    return lines


def _people(results: dict[str, Any]) -> list[str]:
    raters = results["raters"]
    finished, counted = raters["finished_a_piece"], len(raters["counted"])
    lines = [f"{counted} of {finished} raters count ({raters['joined']} came)"]
    lines += [f"rater {one['rater']} is left out: {one['reason']}" for one in raters["left_out"]]
    if scores := results["unfinished_scores"]:
        noun = "score does" if scores == 1 else "scores do"
        lines.append(f"{scores} {noun} not count: other clips of the piece have no score yet")
    for scale in results["scales"].values():
        if scale["alpha"] is not None:
            lines.append(
                f"{scale['short']}: agreement between raters, alpha = {scale['alpha']:.2f}"
            )
    return lines


def answers_csv(
    study: Study, raters: Sequence[Rater], answers: Sequence[Answer], counted: Sequence[int]
) -> str:
    """All answers, a line each.

    Names and ids come from outside, and spreadsheets run what begins with = or the like: such a
    text gets an apostrophe in front.
    """
    made_by = {clip.file: (item, clip.system) for item in study.items for clip in item.clips}
    names = {rater.number: rater.name for rater in raters}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rater", "name", "counts", "piece", "system", "scale", "score", "heard", "at"])
    for answer in answers:
        item, system = made_by[answer.clip]
        writer.writerow(
            [
                answer.rater,
                _harmless(names[answer.rater]),
                int(answer.rater in counted),
                _harmless(item.id),
                system,
                SCALES[answer.scale].short,
                answer.score,
                f"{answer.heard:.3f}",
                datetime.fromtimestamp(answer.at, UTC).isoformat(timespec="seconds"),
            ]
        )
    return text.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
