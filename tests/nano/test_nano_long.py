"""The report on continuations and form: pieces whose form is known, and a whole run."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("sklearn")

import nano_long
from nano_requests import make_request

from musicgen_jax import testing
from musicgen_jax.nano.composer import EIGHTHS_PER_BAR, FRAME_RATE
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def pieces():
    """Twelve real pieces of 20 s: their sound and what they are."""
    requests = [make_request(i) for i in range(12)]
    return (
        [piece(request.seed, 20 * FRAME_RATE)[1] for request in requests],
        [request.spec for request in requests],
    )


def test_a_composed_piece_comes_back_to_itself_and_noise_does_not(pieces):
    clips, specs = pieces
    real, error = nano_long.form(clips, specs)
    assert real > 5 * error > 0
    rng = np.random.default_rng(0)
    noise, _ = nano_long.form([rng.standard_normal(len(clip)) for clip in clips], specs)
    assert abs(noise) < real / 10


def test_a_piece_that_only_repeats_one_bar_has_the_most_of_it(pieces):
    clips, specs = pieces

    def first_bar_only(clip, spec):
        bar = EIGHTHS_PER_BAR[spec.metre] * spec.frames_per_eighth * SAMPLE_RATE // FRAME_RATE
        return np.tile(clip[:bar], len(clip) // bar)

    same = [first_bar_only(clip, spec) for clip, spec in zip(clips, specs, strict=True)]
    assert nano_long.form(same, specs)[0] > nano_long.form(clips, specs)[0]
    for clip, spec in zip(same, specs, strict=True):
        rows = nano_long.bars(clip, spec)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        assert (rows[1:-1] @ rows[1]).min() > 0.99


def test_the_whole_report_runs_on_a_random_model(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(testing.DEBUG, max_duration=12.0)
    model = testing.random_model(config)
    monkeypatch.setattr(nano_long.MusicGen, "from_pretrained", lambda name: model)
    for name, seconds in (("PROMPT", 1), ("REST", 5), ("LONG", 12)):
        monkeypatch.setattr(nano_long, name, seconds)
    results = tmp_path / "results.jsonl"
    nano_long.main(["--n", "30", "--batch", "15", "--probe-clips", "60", "--results", str(results)])
    record = json.loads(results.read_text())
    printed = capsys.readouterr().out
    assert "more alike to its own past" in printed
    for row, title in nano_long.ROWS.items():
        assert title in printed
        rates = record["continuation"][row]
        # Noise is not music: what is heard in it has nothing to do with what went before.
        assert rates["continued"] <= rates["others"] + 2 * rates["half_width"]
    assert record["form"]["rendered"][0] > 3 * abs(record["form"]["generated"][0])


def test_too_few_pieces_are_refused_in_one_line(capsys):
    with pytest.raises(SystemExit):
        nano_long.main(["--n", "3"])
    assert "--n must be at least 30" in capsys.readouterr().err
