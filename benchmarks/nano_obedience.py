"""Whether clips match their prompts, according to judges that are independent of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from clip_measures import half_width
from nano_probes import Features, Probes, features, label, same_tempo, tempo_bpm
from nano_requests import Request

SHUFFLES = 50

ROWS = {
    "lead": "instrument",
    "tempo": "tempo class",
    "bpm": "tempo within 8 %, probe",
    "pulse": "tempo within 8 %, autocorrelation",
    "mode": "mode",
    "metre": "metre",
    "style": "style",
}


@dataclass(frozen=True)
class Heard:
    """Clips for the judges: audio [N, W], features, and answers [N] by row."""

    audio: np.ndarray
    items: Sequence[Features]
    answers: Mapping[str, np.ndarray]


def listen(audio: np.ndarray, probes: Probes) -> Heard:
    """Judges clips, float32 [N, W] at the composer's sample rate."""
    items = [features(clip) for clip in audio]
    answers = dict(probes.predict(items))
    answers["bpm"] = answers["bpm"].astype(float)
    answers["pulse"] = np.array([tempo_bpm(item.onset) for item in items])
    return Heard(audio, items, answers)


def hits(row: str, answers: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Which answers are right, bool [N]."""
    specs = [request.spec for request in requests]
    if row in ("bpm", "pulse"):
        pairs = zip(answers, specs, strict=True)
        return np.array([same_tempo(float(answer), spec) for answer, spec in pairs])
    return answers == np.array([label(spec, row) for spec in specs])


def shuffled(row: str, answers: np.ndarray, requests: Sequence[Request]) -> float:
    """The hit rate of clips judged against other clips' requests, averaged over many shuffles.

    A model that ignores its prompts does no better with the matching ones.
    """
    rng = np.random.default_rng(0)
    order = [rng.permutation(len(answers)) for _ in range(SHUFFLES)]
    return float(np.mean([hits(row, answers[o], requests).mean() for o in order]))


def obedience(
    heard: Mapping[str, Heard], requests: Sequence[Request], unguided: Heard | None = None
) -> dict[str, dict]:
    """Hit rates, row by row, over the prompts that name the attribute.

    Args:
      heard: clips of every request by condition, including "generated" and "codec".
      requests: the requests of these clips.
      unguided: clips of the first few requests, generated without guidance.

    Returns:
      By row: `n`; the rate of every condition, with `half_width` of the generated clips' 95 %
      interval; `of_the_ceiling`, generated over codec; `plain_words` and `new_words`, the
      generated clips' rate by the kind of words; `shuffled_prompts`; and, where there are
      unguided clips, `unguided`, the rates without and with guidance over the same `n` requests.
    """
    table = {}
    for row in ROWS:
        told = [i for i, request in enumerate(requests) if request.tells(row)]
        if not told:
            continue
        asked = [requests[i] for i in told]
        right = {name: hits(row, h.answers[row][told], asked) for name, h in heard.items()}
        rates = {name: float(r.mean()) for name, r in right.items()}
        plain = np.array([request.plain for request in asked])
        table[row] = {
            "n": len(told),
            **rates,
            "half_width": half_width(rates["generated"], len(told)),
            "of_the_ceiling": rates["generated"] / rates["codec"] if rates["codec"] else None,
            "plain_words": _mean(right["generated"][plain]),
            "new_words": _mean(right["generated"][~plain]),
            "shuffled_prompts": shuffled(row, heard["generated"].answers[row][told], asked),
        }
        count = sum(i < len(unguided.audio) for i in told) if unguided else 0
        if unguided and count:
            without = hits(row, unguided.answers[row][told[:count]], asked[:count])
            table[row]["unguided"] = {
                "n": count,
                "without": float(without.mean()),
                "with": float(right["generated"][:count].mean()),
            }
    return table


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
