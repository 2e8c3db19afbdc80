"""Folders as they are in life: broken, silent, short, mixed. And clips that get worse in order."""

import json

import numpy as np
import pytest
import soundfile

from musicgen_jax import audio, metrics, testing
from musicgen_jax.codec import Codec
from musicgen_jax.commands import cli
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.codec_embedding import CodecEmbedding
from musicgen_jax.metrics.features import Extractor, describe
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

RATE = 8000


def noise(seed, seconds=1.0, channels=1, rate=RATE):
    shape = channels, round(seconds * rate)
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path)
    return path


@pytest.fixture
def evaluate(model, tmp_path, capsys):
    """Evaluates tmp_path/made against tmp_path/real: exit code, report or the error's line."""

    def call(*words):
        words = ["--audio", tmp_path / "made", "--reference", tmp_path / "real", *words]
        words += ["--embedding", "encodec", "--codec", model, "--json"]
        code = cli.main(["evaluate", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0 or err.count("\n") == 1
        return code, json.loads(out) if out else err

    return call


def test_one_broken_clip_among_many_kinds(evaluate, tmp_path):
    for side in ("made", "real"):
        for i, (rate, channels) in enumerate([(8000, 1), (44100, 2), (22050, 1)]):
            audio.write(tmp_path / side / f"{i}.wav", noise(i, 1, channels, rate), rate)
    made = tmp_path / "made"
    (made / "broken.wav").write_bytes((made / "1.wav").read_bytes()[:30])
    soundfile.write(made / "nan.wav", np.full((800, 1), np.nan, np.float32), RATE, subtype="FLOAT")
    audio.write(made / "silent.wav", np.zeros((1, RATE), np.float32), RATE)
    (made / "empty.wav").touch()
    (made / "folder.wav").mkdir()
    code, report = evaluate("--out", tmp_path / "out")
    assert code == 0
    assert [clip["id"] for clip in report["clips"]] == ["0", "1", "2", "silent"]
    reasons = {each["id"]: each["reason"] for each in report["audio"]["skipped"]}
    assert reasons.keys() == {"broken", "nan", "empty"}
    assert "NaN" in reasons["nan"]
    assert report["audio"]["clips"] == 7
    warnings = "\n".join(report["warnings"])
    assert "1 silent clip (audio): silent" in warnings
    assert "several rates or channels (8000 Hz x 1, 22050 Hz x 1, 44100 Hz x 2)" in warnings
    assert "4 clips without a clip of its name as reference: broken, empty, nan, silent" in warnings
    assert "fad: 200 and 150 rows; sets of these sizes from one Gaussian would score" in warnings
    assert "broken" in (tmp_path / "out/report.html").read_text()


def test_one_clip_and_a_tiny_one(evaluate, tmp_path):
    for side in ("made", "real"):
        audio.write(tmp_path / side / "a.wav", noise(1), RATE)
    code, report = evaluate()
    assert code == 0
    assert report["metrics"]["chroma"]["value"] == 1
    audio.write(tmp_path / "made/a.wav", noise(1, 0.001), RATE)  # one row, so no covariance
    code, report = evaluate()
    assert code == 0
    assert "at least 2 rows" in report["not_computed"]["fad"]
    assert report["metrics"]["chroma"]["rows"] == 1
    code, error = evaluate("--metrics", "fad")
    assert code == 2
    assert "cannot compute fad: a covariance needs at least 2 rows, got 1" in error


def test_pairs_that_do_not_match(evaluate, tmp_path):
    for side, names in (("made", "abc"), ("real", "bcd")):
        for name in names:
            audio.write(tmp_path / side / f"{name}.wav", noise(ord(name)), RATE)
    code, report = evaluate()
    assert code == 0
    assert report["metrics"]["chroma"]["pairs"] == 2
    warnings = "\n".join(report["warnings"])
    assert "1 clip without a clip of its name as reference: a" in warnings
    assert "1 clip of the reference without one to judge: d" in warnings


def test_a_manifest_may_name_what_is_gone(evaluate, tmp_path):
    for side in ("made", "real"):
        audio.write(tmp_path / side / "a.wav", noise(1), RATE)
    (tmp_path / "list.csv").write_text("file\nmade/a.wav\nmade/gone.wav\n")
    code, report = evaluate("--audio", tmp_path / "list.csv")
    assert code == 0
    assert [each["id"] for each in report["audio"]["skipped"]] == ["made/gone"]


def test_a_changed_file_is_noticed(evaluate, tmp_path):
    for side in ("made", "real"):
        for i in range(2):
            audio.write(tmp_path / side / f"{i}.wav", noise(i), RATE)
    cache = ("--cache", tmp_path / "cache")
    first, again = (evaluate(*cache)[1] for _ in range(2))
    assert first == again
    audio.write(tmp_path / "made/1.wav", noise(9), RATE)
    changed = evaluate(*cache)[1]
    assert changed["metrics"]["fad"]["value"] > 1.5 * first["metrics"]["fad"]["value"]
    assert changed["audio"]["identity"] != first["audio"]["identity"]
    assert changed["reference"]["identity"] == first["reference"]["identity"]


def test_workers_share_two_folders(model, tmp_path, capsys):
    for side in ("made", "real"):
        for i in range(5):
            audio.write(tmp_path / side / f"{i}.wav", noise(i), RATE)
    words = ["evaluate", "--audio", tmp_path / "made", "--reference", tmp_path / "real"]
    words += ["--embedding", "encodec", "--codec", model, "--out", tmp_path / "out"]
    words = [str(word) for word in words]
    entries = []
    for part, count in (("1/2", "measured 6 clips"), ("2/2", "measured 4 clips")):
        assert cli.main([*words, "--worker", part]) == 0
        assert f"part {part[0]} of 2: {count}" in capsys.readouterr().out
        assert not (tmp_path / "out/report.json").exists()
        entries.append(set((tmp_path / "out/features").iterdir()))
    assert cli.main(words) == 0
    assert set((tmp_path / "out/features").iterdir()) == entries[1] > entries[0]
    assert json.loads((tmp_path / "out/report.json").read_text())["metrics"]["fad"]["clips"] == 5


def test_the_last_clip_that_fails_costs_itself_alone(tmp_path):
    for i in range(5):
        audio.write(tmp_path / f"{i}.wav", noise(i, 0.1), RATE)
    files = {str(i): tmp_path / f"{i}.wav" for i in range(5)}

    def fragile(wav, rate):
        if wav[0, 0] == audio.read(files["4"])[0][0, 0]:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nallocating")
        return wav[:, :3]

    def nothing(wav, rate):
        return wav[:0]

    def endless(wav, rate):
        return np.full((1, 1), np.inf)

    kinds = {"a": fragile, "b": nothing, "c": endless}
    found = list(describe(files, {name: Extractor(name, f) for name, f in kinds.items()}))
    assert [clip.values.keys() for clip in found] == [{"a"}] * 4 + [set()]
    assert found[4].faults["a"] == "RESOURCE_EXHAUSTED: out of memory"
    assert found[0].faults["b"] == "0.10 s are too short"
    assert "not finite" in found[0].faults["c"]


def test_clips_of_a_set_have_the_numbers_of_each_alone(model, tmp_path):
    seconds = [1.0, 0.7, 2.0, 1.0]
    for i in range(12):
        audio.write(tmp_path / f"{i}.wav", noise(i, seconds[i % 4]), RATE)
    (tmp_path / "5.wav").write_bytes(b"RIFF")
    clips = {name: tmp_path / f"{name}.wav" for name in map(str, (*range(12), "gone"))}
    embedding = CodecEmbedding(Codec.from_pretrained(model))
    extractors = {"a": Extractor("a", embedding.embed)}
    together = list(describe(clips, extractors))
    assert [clip.name for clip in together] == list(clips)
    for clip in together:
        (alone,) = describe({clip.name: clips[clip.name]}, extractors)
        assert (clip.content, clip.fault, clip.faults) == (
            alone.content,
            alone.fault,
            alone.faults,
        )
        assert clip.values.keys() == alone.values.keys()
        for key, value in clip.values.items():
            np.testing.assert_array_equal(value, alone.values[key])
    assert [clip.name for clip in together if clip.fault] == ["5", "gone"]


def test_a_cache_that_cannot_be_written_is_not_the_clips_fault(tmp_path):
    audio.write(tmp_path / "a.wav", noise(1), RATE)
    (tmp_path / "cache").write_text("a file")
    extractors = {"a": Extractor("a", lambda wav, rate: wav)}
    with pytest.raises(UserError, match="cannot write"):
        list(describe({"a": tmp_path / "a.wav"}, extractors, tmp_path / "cache"))


def test_named_statistics(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    audio.write(tmp_path / "made/a.wav", noise(1), RATE)
    code, error = evaluate("--reference", "fma_pop")
    assert code == 2
    assert "pip download" in error
    (tmp_path / "statistics").mkdir()
    known = {"encodec-emb.mu": np.zeros(6), "encodec-emb.cov": np.eye(6)}
    np.savez(tmp_path / "statistics/fma_pop.npz", **known)
    code, report = evaluate("--reference", "fma_pop")
    assert code == 0
    assert report["metrics"].keys() == {"fad"}
    assert len(report["metrics"]["fad"]["reference"]) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "clap"], "it needs --captions"),
        (["--worker", "1/2"], "--worker needs --out"),
        (["--save-statistics", "a.npz", "--metrics", "chroma"], "--save-statistics needs fad"),
        (["--save-statistics", "a.npz", "--worker", "1/2", "--out", "o"], "leave it out with --w"),
        (["--captions", "gone.csv"], "gone.csv does not exist"),
    ],
)
def test_refused(evaluate, tmp_path, monkeypatch, words, message):
    def never(*_):
        raise AssertionError("measured")

    monkeypatch.setattr("musicgen_jax.metrics.evaluation.evaluate", never)
    for side in ("made", "real"):
        audio.write(tmp_path / side / "a.wav", noise(1), RATE)
    code, error = evaluate(*words)
    assert code == 2
    assert message in error


# --- Worse in order -------------------------------------------------------------------------------


def detuned(wav, ratio):
    """Faster and so higher, from the beginning again at the end."""
    at = np.arange(wav.shape[1]) * ratio % (wav.shape[1] - 1)
    return np.interp(at, np.arange(wav.shape[1]), wav[0])[None].astype(np.float32)


def shuffled(wav, rng, seconds=0.05):
    """Its pieces in another order, as if time was cut with scissors."""
    size = round(seconds * SAMPLE_RATE)
    pieces = wav[0, : wav.shape[1] // size * size].reshape(-1, size)
    return pieces[rng.permutation(len(pieces))].reshape(1, -1)


def test_damage_scores_worse_in_order():
    """Two halves of one distribution are near the known bias; damage of any kind is not."""
    rng = np.random.default_rng(0)
    pieces = [piece(seed, 50)[1][None] for seed in range(800_000, 800_024)]
    real, ours = pieces[:12], pieces[12:]
    sets = {
        "half": ours,
        "some noise": [w + rng.normal(0, 0.04, w.shape).astype(np.float32) for w in ours],
        "noise": [w + rng.normal(0, 0.15, w.shape).astype(np.float32) for w in ours],
        "silence": [np.zeros_like(w) for w in ours],
        "detuned": [detuned(w, 2 ** (0.5 / 12)) for w in ours],
        "shuffled": [shuffled(w, rng) for w in ours],
    }
    embedding = CodecEmbedding(Codec.from_pretrained("nano"))

    def rows(clips):
        return np.concatenate([embedding.embed(wav, SAMPLE_RATE) for wav in clips])

    known, heard = rows(real), {name: rows(clips) for name, clips in sets.items()}
    for measure in (metrics.frechet_distance, metrics.kernel_audio_distance):
        value = {name: measure(found, known) for name, found in heard.items()}
        assert value["half"] < value["some noise"] < value["noise"] < value["silence"], value
        assert value["half"] < min(value["detuned"], value["shuffled"]), value
    chroma = {name: metrics.chroma_cosine(clips, ours, SAMPLE_RATE) for name, clips in sets.items()}
    assert chroma["half"] == 1 > chroma["noise"] > chroma["detuned"], chroma
    assert max(chroma["shuffled"], chroma["silence"], chroma["detuned"]) < 0.7, chroma
