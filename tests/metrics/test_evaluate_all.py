"""All measures at once, with small networks: the report's figures are those of Python's."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from musicgen_jax import audio, metrics
from musicgen_jax.commands import cli
from musicgen_jax.convert import convert
from musicgen_jax.convert.torch_writer import write_torch
from tests.goldens.make_goldens_passt import weight
from tests.helpers import clap_files
from tests.helpers.paths import GOLDENS

RATE = 32000
CHANNELS, HIDDEN, DIM = (3, 5, 4, 7, 6, 8), 18, 4
CAPTIONS = {"a": "a calm waltz", "b": "drums " * 90, "c": "a fast jig on the flute"}


def vggish_state():
    state, before = {}, 1
    for i, width in zip((0, 3, 6, 8, 11, 13), CHANNELS, strict=True):
        state[f"features.{i}"] = (width, before, 3, 3)
        before = width
    for i, shape in ((0, (HIDDEN, 24 * before)), (2, (HIDDEN, HIDDEN)), (4, (DIM, HIDDEN))):
        state[f"embeddings.{i}"] = shape
    return {
        f"{name}.{kind}": weight(name + kind, shape if kind == "weight" else shape[:1])
        for name, shape in state.items()
        for kind in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home of models with all networks."""
    files, home = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("home")
    shapes = [line.split() for line in np.load(GOLDENS / "metrics/passt.npz")["shapes"]]
    passt = {name: weight(name, tuple(map(int, sizes))) for name, *sizes in shapes}
    write_torch(files / "passt-s-f128.pt", passt)
    write_torch(files / "vggish-10086976.pth", vggish_state())
    clap_files.write_laion(files / "music_audioset_epoch_15_esc_90.14.pt", clap_files.laion_state())
    clap_files.write_tokenizer(files)
    for file, name in (
        ("passt-s-f128.pt", "passt"),
        ("vggish-10086976.pth", "vggish"),
        ("music_audioset_epoch_15_esc_90.14.pt", "clap"),
    ):
        convert(files / file, home / name)
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of 2 s, as long as the small PaSST hears, and captions."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name in CAPTIONS:
        for side in ("made", "real"):
            clip = rng.normal(0, 0.1, (1, 2 * RATE)).astype(np.float32)
            audio.write(root / side / f"{name}.wav", clip, RATE)
    lines = "".join(f"{name},{text}\n" for name, text in CAPTIONS.items())
    (root / "captions.csv").write_text("id,caption\n" + lines)
    return root


@pytest.fixture
def report(home, folder, monkeypatch, capsys):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(home))

    def call(*words):
        words = ["--audio", folder / "made", "--reference", folder / "real", *words]
        words += ["--captions", folder / "captions.csv", "--json"]
        assert cli.main(["evaluate", *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_the_whole_table(report, home, folder):
    """Every figure is the one of the public functions on what the networks hear."""
    found = report()
    assert found["not_computed"] == {}
    assert found["metrics"].keys() == {"fad", "kad", "kld", "clap", "chroma"}
    assert {result["protocol"] for result in found["metrics"].values()} == {"audiocraft"}
    value = {name: result["value"] for name, result in found["metrics"].items()}
    made, real = (
        [audio.read(folder / side / f"{name}.wav")[0] for name in CAPTIONS]
        for side in ("made", "real")
    )
    loud = [audio.normalize_audio(wav, RATE, "loudness") for wav in made]
    vggish = metrics.Vggish.from_pretrained(home / "vggish")
    x, y = (np.concatenate([vggish.embed(w, RATE) for w in wavs]) for wavs in (loud, real))
    assert len(x) == found["metrics"]["fad"]["rows"] == 9  # 2 s give 3 rows
    assert value["fad"] == pytest.approx(metrics.frechet_distance(x, y), rel=1e-6)
    assert value["kad"] == pytest.approx(metrics.kernel_audio_distance(x, y), rel=1e-6)
    passt = metrics.Passt.from_pretrained(home / "passt")
    q, p = (np.concatenate([passt.probabilities(w, RATE) for w in wavs]) for wavs in (loud, real))
    assert value["kld"] == pytest.approx(metrics.kl_divergence(p, q), rel=1e-6)
    clap = metrics.Clap.from_pretrained(home / "clap")
    heard = np.concatenate([clap.embed(w, RATE) for w in loud])
    score = metrics.clap_score(heard, clap.embed_text(list(CAPTIONS.values())))
    assert value["clap"] == pytest.approx(score, abs=1e-6)
    assert value["chroma"] == pytest.approx(metrics.chroma_cosine(loud, real, RATE))
    assert "clap: 1 of 3 captions are too long" in "\n".join(found["warnings"])
    scores = {clip["id"]: clip["clap"] for clip in found["clips"]}
    assert np.mean(list(scores.values())) == pytest.approx(score, abs=1e-6)


def test_another_tools_definitions(report, home, folder):
    theirs = report("--protocol", "stable-audio")
    assert theirs["metrics"].keys() == {"kld", "clap", "chroma"}
    assert "stable-audio does not define fad on vggish" in theirs["not_computed"]["fad"]
    passt = metrics.Passt.from_pretrained(home / "passt", "stable-audio")
    q, p = (
        np.concatenate(
            [passt.probabilities(*audio.read(folder / side / f"{name}.wav")) for name in CAPTIONS]
        )
        for side in ("made", "real")
    )
    kld = theirs["metrics"]["kld"]
    assert kld["direction"] == "KL(generated || reference)"
    assert kld["value"] == pytest.approx(metrics.kl_divergence(q, p), rel=1e-6)
    assert "measures with PaSST's 10 s model" in "\n".join(theirs["warnings"])
    clap = report("--embedding", "clap", "--metrics", "fad,clap")
    assert clap["metrics"]["fad"]["protocol"] == "fadtk"
    assert clap["metrics"]["clap"]["protocol"] == "audiocraft"
    assert clap["metrics"]["fad"]["embedding"] == "clap-laion-music"


def test_clap_alone_needs_no_reference(home, folder, monkeypatch, capsys):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(home))
    words = ["evaluate", "--audio", folder / "made", "--captions", folder / "captions.csv"]
    assert cli.main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "clap: " in out
    assert "kld: not computed: it needs a --reference" in out


def test_half_a_weight_file_and_another_models(home, folder, tmp_path, report, capsys):
    """One line that names the fault; the other measures go on if nobody asked for this one."""
    import shutil

    broken = tmp_path / "vggish"
    shutil.copytree(home / "vggish", broken)
    largest = max((f for f in broken.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    for place in (broken, home / "passt"):
        found = report("--vggish", place)
        assert str(place) in found["not_computed"]["fad"]
        assert found["not_computed"].keys() == {"fad", "kad"}
        assert found["metrics"]["kld"]["clips"] == 3
    words = ["evaluate", "--audio", folder / "made", "--reference", folder / "real"]
    words += ["--embedding", "vggish", "--vggish", broken, "--metrics", "fad"]
    assert cli.main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(broken) in err
