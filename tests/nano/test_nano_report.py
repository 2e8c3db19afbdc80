"""The report on how the bundled model obeys its prompts: its judges and its arithmetic."""

import dataclasses
import importlib.util
import json

import clip_measures
import nano_clips
import nano_frechet
import nano_obedience
import nano_pictures
import nano_probes
import nano_report
import nano_tables
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nano_probes import features, same_tempo, tempo_bpm
from nano_requests import make_request

from musicgen_jax import MusicGen, testing
from musicgen_jax.nano import captions, composer
from musicgen_jax.nano.pieces import piece, spec_of
from musicgen_jax.nano.synth import SAMPLE_RATE

small = settings(max_examples=20, deadline=None)


def clicks(bpm: float, seconds: float = 8.0, offbeat: float = 0.0) -> np.ndarray:
    """Short bursts of noise on every beat, weaker ones in between."""
    rng = np.random.default_rng(0)
    audio = 1e-4 * rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    burst = rng.standard_normal(400) * np.exp(-np.arange(400) / 100)
    for i, start in enumerate(np.arange(0.1, seconds - 0.1, 30 / bpm)):
        at = int(start * SAMPLE_RATE)
        audio[at : at + 400] += burst * (1.0 if i % 2 == 0 else offbeat)
    return audio


def tone(hertz: float, seconds: float = 5.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


# ------------------------------------------------------------------------------------- judges


@small
@given(st.floats(50, 180), st.sampled_from((0.0, 0.4)))
def test_the_tempo_of_clicks_is_found_up_to_octaves(bpm, offbeat):
    found = tempo_bpm(features(clicks(bpm, offbeat=offbeat)).onset)
    octaves = np.log2(found / bpm)
    assert abs(octaves - round(octaves)) < np.log2(1.03)
    assert 74 < found <= 150


def test_a_tempo_is_right_within_eight_percent_of_any_octave():
    waltz = dataclasses.replace(spec_of(0), metre="3/4", frames_per_eighth=10)
    assert waltz.bpm == 75
    assert all(same_tempo(75 * 2.0**k * off, waltz) for k in (-1, 0, 1) for off in (0.93, 1.079))
    assert not any(same_tempo(75 * off, waltz) for off in (0.92, 1.09, 2 / 3, 1.5, 3))
    jig = dataclasses.replace(waltz, metre="6/8")
    assert same_tempo(50, jig)
    assert same_tempo(75, jig)
    assert not same_tempo(60, jig)


def test_loudness_is_no_feature():
    audio = nano_probes.rendered(3, 150)[1]
    loud, soft = features(audio), features(0.3 * audio)
    for field in dataclasses.fields(loud):
        a, b = (getattr(x, field.name) for x in (loud, soft))
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max())


@pytest.mark.parametrize(("hertz", "pitch_class"), [(200, 0), (450, 2), (500, 4), (1600, 0)])
def test_harmony_counts_pitch_classes_from_the_composers_g(hertz, pitch_class):
    assert features(tone(hertz)).harmony[:12].argmax() == pitch_class


def test_features_need_a_whole_bar_in_mono():
    with pytest.raises(ValueError, match="more than 4 s"):
        features(tone(200, 4.0))
    with pytest.raises(ValueError, match=r"\(2, 80000\)"):
        features(np.zeros((2, 80000)))


def test_a_worn_clip_is_noisier_but_the_same_music():
    audio = nano_probes.rendered(5, 150)[1]
    results = [nano_probes.worn(audio, np.random.default_rng(i)) for i in range(5)]
    for copy in results:
        assert copy.shape == audio.shape
        assert 0.5 < np.corrcoef(audio, copy)[0, 1] < 0.9999
    assert np.abs(results[0] - results[1]).max() > 0.01


@pytest.mark.extra
def test_probes_tell_what_they_were_fitted_to_tell():
    pytest.importorskip("sklearn")
    specs, items = nano_clips.training_clips(160, 125)
    probes = nano_probes.Probes(specs[:120], items[:120])
    answers = probes.predict(items[120:])
    assert set(answers) == set(nano_probes.ATTRIBUTES)
    for attribute, least in (("lead", 0.25), ("tempo", 0.6)):  # chance: an eighth, a third
        truth = [nano_probes.label(spec, attribute) for spec in specs[120:]]
        assert np.mean(answers[attribute] == truth) > least


def test_the_probes_features_are_kept_for_the_same_question_only(tmp_path, monkeypatch):
    path = tmp_path / "features.npz"
    specs, items = nano_clips.training_clips(2, 125, path)
    with monkeypatch.context() as patch:
        patch.setattr(nano_probes, "rendered", None)  # must not be called again
        again = nano_clips.training_clips(2, 125, path)
        with pytest.raises(TypeError):
            nano_clips.training_clips(2, 126, path)
    assert again[0] == specs
    for old, new in zip(items, again[1], strict=True):
        np.testing.assert_array_equal(old.rhythm, new.rhythm)


# ----------------------------------------------------------------------------------- requests


@small
@given(st.integers(0, 1000))
def test_requests_say_what_they_are_scored_on(index):
    request = make_request(index)
    spec, prompt = request.spec, request.prompt
    assert request == make_request(index)
    assert captions.NOUNS[spec.style][0] in prompt
    assert any(name in prompt for name in captions.INSTRUMENTS[spec.lead])
    assert request.plain == (index % 2 == 0)
    assert request.tells("bpm") == (f"{round(spec.bpm)} bpm" in prompt)
    if request.tells("metre"):
        assert spec.metre in prompt or composer.STYLE_METRES[spec.style] == (spec.metre,)
    else:
        assert spec.metre not in prompt


# --------------------------------------------------------------------------------- arithmetic


def test_shuffled_prompts_leave_what_luck_gives():
    requests = [make_request(i) for i in range(400)]
    truth = np.array([request.spec.lead for request in requests])
    assert nano_obedience.hits("lead", truth, requests).all()
    assert nano_obedience.shuffled("lead", truth, requests) == pytest.approx(1 / 8, abs=0.02)
    one = np.full(400, "organ")
    assert nano_obedience.shuffled("lead", one, requests) == pytest.approx(
        np.mean(truth == "organ")
    )


@pytest.mark.parametrize(
    ("rate", "count", "expected"), [(0.5, 100, 0.0962), (0.0, 100, 0.0185), (1.0, 20, 0.0806)]
)
def test_half_width_is_wilsons(rate, count, expected):
    assert clip_measures.half_width(rate, count) == pytest.approx(expected, abs=1e-4)


def test_silence_is_found_wherever_it_is():
    clip = tone(300, 8.0)
    assert not clip_measures.has_silence(clip)
    for start in (0.0, 3.2, 6.75):
        holed = clip.copy()
        at = int(start * SAMPLE_RATE)
        holed[at : at + int(1.25 * SAMPLE_RATE)] *= 1e-3
        assert clip_measures.has_silence(holed)
    assert clip_measures.has_silence(0 * clip)


def test_repetition_looks_at_the_first_book():
    codes = np.zeros((1, 2, 5), int)
    codes[0, 0] = [1, 1, 2, 2, 3]
    assert clip_measures.repetition(codes) == 0.5


def test_si_sdr_is_blind_to_scale():
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 100_000))
    assert clip_measures.si_sdr(clean, 3 * (clean + 0.1 * noise)) == pytest.approx(20, abs=0.1)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5000, 3))
    assert clip_measures.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert clip_measures.frechet(a, a + np.array([3, 0, 4])) == pytest.approx(25, abs=1e-9)
    # tr(S + 4S - 2 * 2S) = tr(S)
    expected = np.trace(np.cov(a, rowvar=False)) + np.sum(a.mean(0) ** 2)
    assert clip_measures.frechet(a, 2 * a) == pytest.approx(expected, rel=1e-9)


def test_cross_entropy_is_that_of_the_logits():
    class Model:
        def lm_logits(self, codes, texts):
            logits = np.zeros((*codes.shape, 4), np.float32)
            logits[:, 0, :, 1] = np.log(5)  # book 0: token 1 has 5/8
            logits[:, 1, -1] = np.nan
            return logits

    codes = np.ones((5, 2, 6), int)
    codes[:, 1, -1] = 3
    got = nano_report.cross_entropies(Model(), codes, ["a"] * 5, 2)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, [-np.log(5 / 8), np.log(4)], rtol=1e-6)


# ------------------------------------------------------------------- distances and pictures


@pytest.fixture(scope="module")
def real_clips():
    """The bundled model, 20 real clips and what is made of them."""
    model = MusicGen.from_pretrained("nano")
    rendered = np.stack([piece(make_request(i).seed, 105)[1] for i in range(20)])
    decoded, codes = nano_clips.through_codec(model, rendered, 20)
    return model, rendered, decoded, codes


@pytest.mark.slow
def test_distances_grow_with_what_is_spoilt(real_clips):
    model, rendered, decoded, codes = real_clips
    heard = {
        name: nano_obedience.Heard(audio, [features(clip) for clip in audio], {})
        for name, audio in (("codec", decoded), ("rendered", rendered))
    }
    far = nano_report.closeness(model, heard, codes, 20)
    assert set(far) == {"codec", "rendered", "frames_shuffled", "books_shuffled", "white_noise"}
    shuffles = {"frames_shuffled", "books_shuffled"}
    for kind in nano_frechet.EMBEDDINGS:
        for to in nano_frechet.REFERENCES:
            to_it = {name: values[kind][to] for name, values in far.items()}
            spoilt = [to_it[name] for name in shuffles]
            assert 0 < 1.2 * to_it["codec"] < min(spoilt)
            assert 1.5 * max(spoilt) < to_it["white_noise"]
    # The codec colours what is heard, though its own encoder hardly notices.
    codec, rendered = far["codec"]["log_mel"], far["rendered"]["log_mel"]
    assert rendered["rendered"] < codec["rendered"]
    assert codec["codec"] < rendered["codec"]


def test_spoilt_clips_keep_what_they_should(real_clips):
    _, rendered, _, codes = real_clips
    rng = np.random.default_rng(0)
    noise = nano_clips.white_noise(rendered, rng)
    level, expected = (np.sqrt((x.astype(float) ** 2).mean(1)) for x in (noise, rendered))
    np.testing.assert_allclose(level, expected, rtol=0.02)
    frames, books = nano_clips.frames_shuffled(codes, rng), nano_clips.books_shuffled(codes, rng)
    for shuffled in (frames, books):
        assert (shuffled != codes).mean() > 0.5
        np.testing.assert_array_equal(np.sort(shuffled, axis=2), np.sort(codes, axis=2))

    def whole(x):  # the frames of the first clip
        return sorted(map(tuple, x[0].T.tolist()))

    assert whole(frames) == whole(codes) != whole(books)


def test_latents_know_the_order_of_frames():
    class Model:
        sample_rate = SAMPLE_RATE
        encodec = None

    audio = np.random.default_rng(0).standard_normal((3, 640)).astype(np.float32)

    def encoder(_, wav):  # 64 latents of one sample each, every tenth
        return wav[:, 0].reshape(len(wav), 10, 64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano_frechet, "_encoder", encoder)
        rows = nano_frechet.latents(Model(), audio, 2)  # type: ignore[arg-type]
        frames = audio.reshape(3, 10, 64)
        frames = frames[:, np.argsort(frames.mean(2)[0])]
        other = nano_frechet.latents(Model(), frames.reshape(3, 640), 2)  # type: ignore[arg-type]
    assert rows.shape == (3, 192)
    np.testing.assert_allclose(rows[:, :128], other[:, :128], atol=1e-6)
    assert np.abs(rows[:, 128:] - other[:, 128:]).max() > 0.01


def test_no_piece_is_compared_with_itself():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 3))
    rows[20:] += 5  # two halves that have nothing in common
    scale = [1 / (rows[half].std(0) + 1e-3) for half in (slice(20), slice(20, 40))]
    shift = np.array([rows[:20].mean(0) - rows[20:].mean(0)])
    least = np.mean([np.sum((shift * s) ** 2) for s in scale])  # of the means alone
    assert nano_frechet.across(rows, rows) > 0.99 * least > 50
    assert clip_measures.frechet(rows, rows) < 1e-9  # as it would be otherwise
    with pytest.raises(ValueError, match="reference"):
        nano_frechet.across(rows[:39], rows)


def test_few_rows_are_projected_onto_few_axes_of_the_reference_alone():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((40, 30)) * np.arange(30, 0, -1)
    project = clip_measures.principal(reference)
    assert project(reference).shape == (40, 10)
    assert clip_measures.principal(np.tile(reference, (10, 1)))(reference).shape == (40, 24)
    # Rows of another scale and place are measured by the reference's.
    np.testing.assert_allclose(
        project(3 * reference + 2) - project(reference * 0 + 2),
        3 * (project(reference) - project(reference * 0)),
        atol=1e-9,
    )


def test_guidance_is_compared_over_the_same_prompts():
    requests = [make_request(i) for i in range(20)]
    truth = {
        row: np.array([r.spec.bpm if row in ("bpm", "pulse") else getattr(r.spec, row)
                       for r in requests])
        for row in nano_obedience.ROWS
    }  # fmt: skip
    wrong = {row: np.array([1.0 if row in ("bpm", "pulse") else "?"] * 20) for row in truth}
    audio = np.zeros((20, 4))
    half_right = {row: np.where(np.arange(20) < 10, truth[row], wrong[row]) for row in truth}
    heard = {
        "generated": nano_obedience.Heard(audio, [], half_right),
        "codec": nano_obedience.Heard(audio, [], truth),
    }
    none_right = nano_obedience.Heard(audio[:10], [], {row: v[:10] for row, v in wrong.items()})
    table = nano_obedience.obedience(heard, requests, none_right)
    lead = table["lead"]
    assert lead["unguided"] == {"n": 10, "without": 0.0, "with": 1.0}
    assert lead["generated"] == lead["of_the_ceiling"] == 0.5
    assert lead["shuffled_prompts"] < 0.3
    told = sum(request.tells("bpm") for request in requests[:10])
    assert table["bpm"]["unguided"]["n"] == told < 10
    assert "unguided" not in nano_obedience.obedience(heard, requests)["lead"]


@pytest.mark.extra
def test_the_picture_is_small_and_shows_what_differs(tmp_path, real_clips):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    _, rendered, decoded, _ = real_clips
    requests = [make_request(i) for i in range(20)]
    few = nano_pictures.chosen(requests)
    assert len({requests[i].spec.lead for i in few}) == len(few) == nano_pictures.PICTURES
    clips = {"generated": decoded[few], "codec": decoded[few], "rendered": rendered[few]}
    path = tmp_path / "new" / "picture.png"
    nano_pictures.draw(path, [requests[i] for i in few], clips)
    assert path.stat().st_size < 120_000
    assert list(path.parent.iterdir()) == [path]
    with image.open(path) as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert 600 < width <= 1000
    assert 300 < height <= 700
    assert pixels.std() > 30  # neither white nor black


# --------------------------------------------------------------------------------- everything


@pytest.mark.extra
def test_the_whole_report_runs_on_a_random_model(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    config = dataclasses.replace(testing.DEBUG, max_duration=6.0)
    models = {"nano": testing.random_model(config), "old": testing.random_model(config, seed=9)}
    monkeypatch.setattr(nano_report.MusicGen, "from_pretrained", lambda name: models[str(name)])
    results = tmp_path / "results.jsonl"
    drawn = []
    monkeypatch.setattr(nano_pictures, "draw", lambda *args: drawn.append(args))
    find = importlib.util.find_spec  # nothing is drawn here: matplotlib need not be there
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: n == "matplotlib" or find(n, *a))
    monkeypatch.setattr(
        "sys.argv",
        f"nano_report --n 30 --batch 15 --duration 4.2 --probe-clips 60 --results {results} "
        f"--figures {tmp_path / 'figures'} --against old".split(),
    )
    nano_report.main()
    printed = capsys.readouterr().out
    record = json.loads(results.read_text())
    assert record["benchmark"] == "nano_report"
    assert record["cfg_coef"] == 3.0
    assert record["n_off"] == 15
    assert set(record["obedience"]) == set(nano_obedience.ROWS)
    for row, title in nano_obedience.ROWS.items():
        assert title in printed
        rates = record["obedience"][row]
        # Noise is not music: what is heard in it has nothing to do with the prompts.
        assert rates["generated"] <= rates["shuffled_prompts"] + 2 * rates["half_width"]
        assert {"against", "unguided", "of_the_ceiling"} <= rates.keys()
    assert record["obedience"]["pulse"]["rendered"] > 0.9
    assert set(record["frechet"]) == set(nano_tables.CONDITIONS)
    for name, values in record["frechet"].items():
        assert nano_tables.CONDITIONS[name] in printed
        assert values["log_mel"]["rendered"] > 0
    assert record["frechet"]["generated"] != record["frechet"]["against"]
    real = {name: values["log_mel"]["rendered"] for name, values in record["frechet"].items()}
    assert real["generated"] > 3 * real["rendered"]
    assert real["white_noise"] > 3 * real["rendered"]
    for column in ("of the ceiling", "without guidance", "shuffled prompts", "the other model"):
        assert column in printed
    assert len(record["cross_entropy"]["own_prompt"]) == 4
    for values in record["cross_entropy"].values():
        assert np.isfinite(values).all()
    ((path, requests, clips),) = drawn
    assert path == tmp_path / "figures" / nano_pictures.FILE
    assert {clip.shape for clip in clips.values()} == {(len(requests), int(4.2 * SAMPLE_RATE))}


@pytest.mark.extra
def test_a_short_duration_is_refused_in_one_line(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("sys.argv", ["nano_report", "--duration", "3"])
    with pytest.raises(SystemExit):
        nano_report.main()
    assert "--duration must be more than 4.1" in capsys.readouterr().err
