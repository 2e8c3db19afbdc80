"""From answers to tables: simulated studies with known means, and the texts about them."""

import csv
import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.listening import analysis, order, plot
from musicgen_jax.listening.answers import Answer, Rater
from musicgen_jax.listening.screening import Rules
from musicgen_jax.listening.study import Item
from tests.helpers.studies import study_of

MEANS = {"ours": 70.0, "other": 58.0, "reference": 95.0, "anchor": 20.0}


def study(pieces=10, per_rater=10, melodies=4):
    """A study of four systems with texts; the first pieces have melodies."""
    made = study_of(pieces, per_rater)
    items = []
    for i, item in enumerate(made.items):
        clips = [dataclasses.replace(c, system=s) for c, s in zip(item.clips, MEANS, strict=True)]
        melody = f"{10**6 + i:016x}.wav" if i < melodies else None
        items.append(Item(f"=piece {i}", "a text", melody, tuple(clips)))
    return dataclasses.replace(made, systems=tuple(MEANS), items=tuple(items))


def rated(found, honest, clickers=0, seed=0):
    """Raters and answers: what honest ones hear, and what clickers click."""
    rng = np.random.default_rng(seed)
    raters, answers = [], []
    for number in range(honest + clickers):
        raters.append(Rater(number, f"key{number}", "=1+1" if number == 0 else ""))
        bias = rng.normal(0, 2)
        for item in order.items_for(found, number):
            for clip in item.clips:
                for scale in item.scales:
                    score = MEANS[clip.system] + bias + rng.normal(0, 6)
                    if number >= honest:
                        score = rng.integers(1, 101)
                    score = int(np.clip(round(score), 1, 100))
                    answers.append(Answer(number, clip.file, scale, score, 1.0, 1.7e9 + number))
    return raters, answers


@pytest.fixture(scope="module")
def simulated():
    found = study()
    people = rated(found, 10, clickers=4)
    return found, people, analysis.analyse(found, *people, Rules())


def test_means_are_found_and_clickers_are_out(simulated):
    _, _, results = simulated
    assert results["raters"]["counted"] == list(range(10))
    assert {one["rater"] for one in results["raters"]["left_out"]} == {10, 11, 12, 13}
    for scale in results["scales"].values():
        for system, mean in MEANS.items():
            found = scale["systems"][system]
            assert found["mean"] == pytest.approx(mean, abs=3)
            assert found["low"] < found["mean"] < found["high"]
            assert found["high"] - found["low"] < 12
        assert scale["alpha"] > 0.8
    # Over everybody, clickers pull the best and the worst to the middle.
    everybody = results["everybody"]["overall"]["systems"]
    assert everybody["reference"]["mean"] < 88
    assert everybody["anchor"]["mean"] > 25


def test_comparisons_leave_the_anchor_out_and_find_the_difference(simulated):
    _, _, results = simulated
    pairs = results["scales"]["overall"]["pairs"]
    assert [pair["systems"] for pair in pairs] == [
        ["ours", "other"], ["ours", "reference"], ["other", "reference"],
    ]  # fmt: skip
    assert pairs[0]["difference"] == pytest.approx(12, abs=3)
    assert pairs[0]["low"] > 0
    assert pairs[0]["p_corrected"] < 0.05
    assert pairs[0]["p"] <= pairs[0]["p_corrected"]


def test_equal_systems_are_not_told_apart():
    found = study()
    raters, answers = rated(found, 8)
    rng = np.random.default_rng(4)
    files = {clip.file: clip.system for item in found.items for clip in item.clips}
    noise = [
        dataclasses.replace(a, score=int(rng.integers(40, 70)))
        if files[a.clip] in ("ours", "other")
        else a
        for a in answers
    ]
    results = analysis.analyse(found, raters, noise, Rules())
    assert results["scales"]["overall"]["pairs"][0]["p_corrected"] > 0.05


def test_melody_scores_come_from_pieces_with_a_melody(simulated):
    _, _, results = simulated
    scores = {s["short"]: s["systems"]["ours"]["scores"] for s in results["scales"].values()}
    assert scores == {"OVL": 100, "REL": 100, "MEL": 40}


def test_unfinished_pieces_do_not_count_and_are_counted():
    found = study(pieces=3, per_rater=3, melodies=0)
    raters, answers = rated(found, 4)
    gone = answers[-1]  # one clip of the last rater's last piece
    scores = analysis.tabulate(found, raters, answers[:-1])
    assert scores.unfinished == 3
    assert np.isnan(scores.values[3, found.scales.index(gone.scale)]).sum() == 4
    results = analysis.analyse(found, raters, answers[:-1], Rules(reference=0))
    said = analysis.summary(results)
    assert "3 scores do not count: other clips of the piece have no score yet" in said
    with pytest.raises(UserError, match="no rater has finished a piece yet: 4 came, and 1 scores"):
        analysis.tabulate(found, raters, answers[:1])


def test_a_rater_who_answered_nothing_is_not_left_out_but_absent(simulated):
    found, (raters, answers), _ = simulated
    results = analysis.analyse(found, [*raters, Rater(14, "k", "")], answers, Rules())
    assert results["raters"]["joined"] == 15
    assert results["raters"]["finished_a_piece"] == 14


def test_everybody_left_out_is_an_error_with_a_way_out():
    found = study()
    raters, answers = rated(found, 3)
    low = [dataclasses.replace(a, score=max(1, a.score - 20)) for a in answers]
    with pytest.raises(UserError, match="--least-reference 0"):
        analysis.analyse(found, raters, low, Rules())
    results = analysis.analyse(found, raters, low, Rules(reference=0))
    assert len(results["raters"]["counted"]) == 3


def test_little_heard_is_measured_against_what_was_demanded():
    found = dataclasses.replace(study(), must_hear=0.5)
    raters, answers = rated(found, 4)
    half = [dataclasses.replace(a, heard=0.5 if a.rater else 0.3) for a in answers]
    results = analysis.analyse(found, raters, half, Rules())
    (out,) = results["raters"]["left_out"]
    assert out["rater"] == 0
    assert "heard 60%" in out["reason"]


def test_one_rater_gives_means_without_intervals():
    found = study()
    results = analysis.analyse(found, *rated(found, 1), Rules())
    assert results["scales"]["overall"]["systems"]["ours"]["low"] is None
    assert results["scales"]["overall"]["alpha"] is None
    assert results["scales"]["overall"]["pairs"][0]["p"] == 1
    for text in (analysis.summary(results), analysis.markdown(results), plot.svg(results)):
        assert "None" not in text
        assert "nan" not in text


def test_too_few_raters_are_told_before_they_wonder(simulated):
    lines = [x for x in analysis.summary(simulated[2]).splitlines() if "cannot show" in x]
    assert lines == [
        "MEL: 10 raters and 4 pieces cannot show a difference at 5 %: it takes 7 of each"
    ]


def test_texts_have_every_figure(simulated):
    _, _, results = simulated
    json.dumps(results, allow_nan=False)
    found = results["scales"]["overall"]["systems"]["ours"]
    cell = f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"
    for text in (analysis.summary(results), analysis.markdown(results)):
        assert cell in text
        assert "OVL: ours - other = +1" in text
        assert "10 of 14 raters count (14 came)" in text
        assert "rater 13 is left out" in text
    assert analysis.summary(results).splitlines()[0].split() == ["system", "OVL", "REL", "MEL"]


def test_the_csv_has_every_answer_and_no_formula(simulated):
    found, (raters, answers), results = simulated
    text = analysis.answers_csv(found, raters, answers, results["raters"]["counted"])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(answers)
    assert rows[0]["name"] == "'=1+1"
    assert {row["piece"] for row in rows} == {f"'=piece {i}" for i in range(10)}
    assert {row["system"] for row in rows} == set(MEANS)
    counted = {"counts": "1", "scale": "OVL", "system": "ours"}
    kept = [int(row["score"]) for row in rows if counted.items() <= row.items()]
    assert np.mean(kept) == pytest.approx(results["scales"]["overall"]["systems"]["ours"]["mean"])


def test_the_picture_is_valid_and_to_scale(simulated):
    _, _, results = simulated
    results = results | {"title": 'A "title" & <more>'}
    root = ElementTree.fromstring(plot.svg(results))
    assert root.attrib["aria-label"] == results["title"]
    space = "{http://www.w3.org/2000/svg}"
    centres = [float(circle.attrib["cx"]) for circle in root.iter(f"{space}circle")]
    means = [s["systems"][name]["mean"] for s in results["scales"].values() for name in MEANS]
    slope, at_zero = np.polyfit(means, centres, 1)
    assert np.allclose(np.array(means) * slope + at_zero, centres, atol=0.1)
    assert slope > 0
