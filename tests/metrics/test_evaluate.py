"""`musicgen-jax evaluate`: what it reports, what it skips, and what it refuses."""

import json
import os

import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.codec import Codec
from musicgen_jax.commands import cli
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import frechet, statistics_file
from musicgen_jax.metrics.clips import find_clips
from musicgen_jax.metrics.codec_embedding import CodecEmbedding
from musicgen_jax.metrics.features import Extractor, describe
from musicgen_jax.metrics.kernel import RowSample

RATE = 16000
NOTES = (220.0, 261.63, 329.63)


def tone(frequency, noise=0.0, seconds=1.0):
    t = np.arange(int(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * frequency * t) + noise * np.random.default_rng(0).normal(
        size=t.size
    )
    return wave[None].astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three real clips; the same with noise; other notes."""
    root = tmp_path_factory.mktemp("clips")
    for i, note in enumerate(NOTES):
        audio.write(root / f"real/{i}.wav", tone(note), RATE)
        audio.write(root / f"noisy/{i}.wav", tone(note, 0.02), RATE)
        audio.write(root / f"other/{i}.wav", tone(note * 1.5, 0.2), RATE)
    return root


@pytest.fixture
def run(model, capsys):
    """Runs the command with the debug model's codec: exit code, stdout, stderr."""

    def call(audio_folder, reference, *words):
        arguments = ["evaluate", "--audio", audio_folder, "--reference", reference]
        arguments += ["--embedding", "encodec", "--codec", model, *words]
        code = cli.main([str(word) for word in arguments])
        return code, *capsys.readouterr()

    return call


def test_a_report(run, folders, tmp_path):
    values = {}
    for name in ("real", "noisy", "other"):
        code, out, _ = run(folders / name, folders / "real", "--json", "--out", tmp_path / name)
        assert code == 0
        report = json.loads(out)
        assert report == json.loads((tmp_path / name / "report.json").read_text())
        values[name] = {metric: result["value"] for metric, result in report["metrics"].items()}
    assert values["real"]["fad"] == pytest.approx(0, abs=1e-9)
    assert values["real"]["fad"] < values["noisy"]["fad"] < values["other"]["fad"]
    assert values["real"]["kad"] < values["other"]["kad"]
    assert values["noisy"]["chroma"] == 1
    assert values["other"]["chroma"] == 0
    fad = report["metrics"]["fad"]
    assert fad["clips"] == fad["reference_clips"] == 3
    assert (fad["embedding"], fad["protocol"]) == ("encodec-emb", "fadtk")
    assert len(fad["weights"]) == 64
    assert [clip["id"] for clip in report["clips"]] == ["0", "1", "2"]
    assert report["not_computed"].keys() == {"kld", "clap"}
    text = (tmp_path / "other" / "report.md").read_text()
    assert f"{fad['value']:.6g}" in text
    assert fad["definition"] in text


def test_the_figure_is_that_of_the_rows(run, folders, model):
    embedding = CodecEmbedding(Codec.from_pretrained(model))
    x, y = (
        np.concatenate([embedding.embed(*audio.read(file)) for file in find_clips(folder).values()])
        for folder in (folders / "noisy", folders / "real")
    )
    _, out, _ = run(folders / "noisy", folders / "real", "--json", "--metrics", "fad")
    fad = json.loads(out)["metrics"]["fad"]
    assert fad["value"] == pytest.approx(frechet.frechet_distance(x, y), rel=1e-9)
    assert (fad["rows"], fad["reference_rows"]) == (len(x), len(y))


def test_statistics_stand_for_their_clips(run, folders, tmp_path):
    file = tmp_path / "real.npz"
    with_clips = run(folders / "noisy", folders / "real", "--json", "--save-statistics", file)[1]
    code, out, _ = run(folders / "noisy", file, "--json")
    assert code == 0
    fads = [json.loads(text)["metrics"]["fad"] for text in (with_clips, out)]
    assert fads[1]["value"] == pytest.approx(fads[0]["value"], rel=1e-7)
    assert fads[1]["reference_rows"] == fads[0]["reference_rows"]
    assert "not its statistics" in json.loads(out)["not_computed"]["chroma"]


def test_broken_clips_are_skipped_and_named(run, folders, tmp_path):
    for i, note in enumerate(NOTES):
        audio.write(tmp_path / f"{i}.wav", tone(note), RATE)
    (tmp_path / "broken.wav").write_text("not audio")
    (tmp_path / "notes.txt").write_text("not looked at")
    code, out, _ = run(tmp_path, folders / "real")
    assert code == 0
    assert "skipped 1 of 4 clips (audio): broken: cannot read" in out


def test_what_is_cached_is_not_computed_again(folders, tmp_path):
    calls = []

    def extract(wav, rate):
        calls.append(rate)
        return wav[:, :3]

    def values(folder, key="a"):
        found = describe(find_clips(folder), {"x": Extractor(key, extract)}, cache)
        return {clip.name: clip.values["x"] for clip in found}

    cache = tmp_path / "cache"
    first = values(folders / "real")
    again = values(folders / "real")
    assert len(calls) == 3
    assert all(np.array_equal(first[name], again[name]) for name in first)
    values(folders / "real", key="b")  # another network
    assert len(calls) == 6
    values(folders / "noisy")  # other content under the same names
    assert len(calls) == 9
    for entry in cache.iterdir():
        entry.write_bytes(b"damaged")
    assert np.array_equal(values(folders / "real")["0"], first["0"])
    assert len(calls) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "fadtk", "--metrics", "kld"], "fadtk does not define kld, only audiocraft"),
        (["--metrics", "clap"], "cannot compute clap"),
        (
            ["--protocol", "audiocraft", "--metrics", "fad"],
            "audiocraft does not define fad on encodec",
        ),
        (["--save-statistics", "x.txt"], "written to a .npz"),
        (["--codec", "missing"], "no model 'missing'"),
    ],
)
def test_refused_in_one_line(run, folders, words, message):
    metrics = [] if "--metrics" in words else ["--metrics", "fad"]
    code, out, err = run(folders / "noisy", folders / "real", *words, *metrics)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_missing_and_empty_folders(run, folders, tmp_path):
    for bad, message in ((tmp_path / "no", "does not exist"), (tmp_path, "no audio files")):
        code, _, err = run(bad, folders / "real")
        assert code == 2
        assert message in err


def test_a_folder_of_broken_clips(run, folders, tmp_path):
    (tmp_path / "a.wav").write_text("not audio")
    code, _, err = run(tmp_path, folders / "real")
    assert code == 2
    assert "none of 1 clips of" in err


def test_pairs_need_common_names(run, folders, tmp_path):
    audio.write(tmp_path / "elsewhere.wav", tone(220), RATE)
    _, out, _ = run(tmp_path, folders / "real", "--json")
    assert "no clip of one folder" in json.loads(out)["not_computed"]["chroma"]


def test_one_name_twice(tmp_path):
    for suffix in (".wav", ".flac"):
        audio.write(tmp_path / f"a{suffix}", tone(220), RATE)
    with pytest.raises(UserError, match="same name"):
        find_clips(tmp_path)


def test_a_sample_of_rows_is_of_the_whole_stream():
    sample = RowSample(50)
    for part in np.array_split(np.arange(1000.0)[:, None], 7):
        sample.add(part)
    rows = sample.rows()[:, 0]
    assert len(np.unique(rows)) == 50
    assert 300 < rows.mean() < 700


# --- Files of statistics ----------------------------------------------------------------------


def test_fadtk_statistics(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 4))
    known = {"vggish.mu": rows.mean(0), "vggish.cov": np.cov(rows, rowvar=False)}
    np.savez(tmp_path / "fma.npz", **known, **{"other.mu": np.zeros(2), "other.cov": np.eye(2)})
    found, about = statistics_file.read(tmp_path / "fma.npz", "vggish")
    assert frechet.distance(found, frechet.gaussian(rows)) == pytest.approx(0, abs=1e-9)
    assert about == {}
    with pytest.raises(UserError, match="no statistics of encodec-emb, only other"):
        statistics_file.read(tmp_path / "fma.npz", "encodec-emb")


def test_statistics_of_another_embedding(tmp_path):
    gaussian = frechet.gaussian(np.random.default_rng(0).normal(size=(9, 3)))
    file = statistics_file.write(tmp_path / "a.npz", gaussian, {"embedding": "vggish"})
    assert statistics_file.read(file, "vggish")[0].count == 9
    with pytest.raises(UserError, match="statistics of vggish, not of encodec-emb"):
        statistics_file.read(file, "encodec-emb")


def test_hostile_statistics(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "pickle.npz", mu=np.array([Bomb()], object), cov=np.eye(1))
    np.savez_compressed(tmp_path / "large.npz", mean=np.zeros(1 << 26), covariance=np.eye(2))
    np.savez(tmp_path / "nan.npz", mean=np.zeros(2), covariance=np.full((2, 2), np.nan))
    (tmp_path / "text.npz").write_text("no zip")
    for name, words in (
        ("pickle", "not a file of statistics"),
        ("large", "too large"),
        ("nan", "not finite"),
        ("text", "not a file of statistics"),
        ("missing", "not a file"),
    ):
        with pytest.raises(UserError, match=words):
            statistics_file.read(tmp_path / f"{name}.npz", "vggish")
    assert not (tmp_path / "ran").exists()
