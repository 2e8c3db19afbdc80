"""CLAP against transformers' ClapModel, ClapFeatureExtractor and RobertaTokenizer."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from musicgen_jax.convert import convert  # noqa: E402
from musicgen_jax.errors import UserError  # noqa: E402
from musicgen_jax.metrics.clap import Clap  # noqa: E402
from musicgen_jax.metrics.clap_audio import log_mel, pieces  # noqa: E402
from musicgen_jax.metrics.protocols import AUDIOCRAFT  # noqa: E402
from tests.helpers import clap_files  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402

RATE = 48000
TEXTS = [
    "A calm piano melody, with soft strings!",
    "90s rock song:\tloud drums & guitar's solo  (120 bpm)",
    " leading space, trailing space ",
    "naïve café \u2013 Ω½Ⅻ 日本語 🎸🎶 ",
    "they'll've don't WE'RE 'S \u00a0 no-break\u3000space\nline\x1cseparator",
    "<mask> in a text, </s> too, and <unk>",
    "",
    "word " * 300,
]


def weights(model):
    """Random numbers of deviation 0.3; of small biases in the text tower, so that texts differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            bias = "text" in name and name.endswith("bias")
            tensor.normal_(float(norm), 0.05 if bias else 0.3)
        front = model.audio_model.audio_encoder.batch_norm
        front.running_mean.normal_(-40, 10)
        front.running_var.uniform_(100, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers writes it."""
    path = tmp_path_factory.mktemp("clap") / "theirs"
    clap_files.write_tokenizer(path)
    size = len(json.loads((path / "vocab.json").read_text()))
    text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    text |= {"intermediate_size": 50, "vocab_size": size + 3}
    sound = {"patch_embeds_hidden_size": 6, "hidden_size": 48, "depths": [2, 2, 3, 1]}
    sound |= {"num_attention_heads": [1, 2, 3, 4]}
    config = transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=20)
    model = transformers.ClapModel(config).eval()
    weights(model)
    model.save_pretrained(path)
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)
    extractor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.ClapModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def ours(folder):
    convert(folder, folder.parent / "ours")
    return Clap.from_pretrained(folder.parent / "ours")


def unit(features):
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def signals():
    rng = np.random.default_rng(3)
    t = np.arange(480_000) / RATE
    music = sum(np.sin(2 * np.pi * f * t) for f in (110, 277, 13_800)) * np.exp(-3 * (t % 0.4))
    speech = rng.normal(0, 0.2, 333_333) * (np.sin(2 * np.pi * 4 * np.arange(333_333) / RATE) > 0)
    clicks = np.zeros(48_000)
    clicks[::4801] = 1
    return {
        "music": 0.2 * music + rng.normal(0, 1e-4, len(t)),
        "speech": speech,
        "clicks": clicks,
        "silence": np.zeros(100_000),
        "one sample": np.ones(1),
    }


@pytest.mark.parametrize("name", list(signals()))
def test_audio(folder, theirs, ours, name):
    wave = signals()[name].astype(np.float32)
    extract = transformers.ClapFeatureExtractor.from_pretrained(folder)
    inputs = extract(wave, sampling_rate=RATE, return_tensors="pt")
    (piece,) = pieces(wave[None], RATE, AUDIOCRAFT.clap)
    assert_close(log_mel(piece), inputs["input_features"][0, 0].numpy(), 1e-5, "spectrum")
    with torch.no_grad():
        expected = unit(theirs.get_audio_features(input_features=inputs["input_features"]))
    assert_close(ours.embed(wave[None], RATE), expected, 1e-5)


def test_texts(folder, theirs, ours):
    read = transformers.RobertaTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )
    batch = read(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    np.testing.assert_array_equal(ours.tokenizer(TEXTS), batch["input_ids"].numpy())
    with torch.no_grad():
        expected = unit(theirs.get_text_features(**batch))
    assert_close(ours.embed_text(TEXTS), expected, 1e-5)


def test_the_epsilon_of_the_settings_counts(folder, theirs, ours):
    """transformers' default is 1e-12, RoBERTa's own 1e-5: it shows where activations are small."""
    assert ours.network.config.text.layer_norm_epsilon == 1e-12
    other = shutil.copytree(folder, folder.parent / "another")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["layer_norm_eps"] = 1e-2
    (other / "config.json").write_text(json.dumps(config))
    convert(other, folder.parent / "ours of another")
    converted = Clap.from_pretrained(folder.parent / "ours of another")
    network = transformers.ClapModel.from_pretrained(other).eval()
    ids = torch.from_numpy(ours.tokenizer(TEXTS[:2])).long()
    with torch.no_grad():
        expected = unit(network.get_text_features(input_ids=ids, attention_mask=(ids != 1).long()))
    assert_close(converted.embed_text(TEXTS[:2]), expected, 1e-5)
    assert np.abs(ours.embed_text(TEXTS[:2]) - expected).max() > 1e-4


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "float16", "processor_config.json"])
def test_other_ways_to_write_the_same(folder, theirs, ours, kind, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    if kind == "pytorch_model.bin":
        (other / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), other / kind)
    elif kind == "float16":
        network = transformers.ClapModel.from_pretrained(folder).half()
        network.save_pretrained(other)
    else:  # as newer versions write it
        front = json.loads((other / "preprocessor_config.json").read_text())
        (other / "preprocessor_config.json").unlink()
        (other / kind).write_text(json.dumps({"feature_extractor": front}))
    convert(other, tmp_path / "ours")
    converted = Clap.from_pretrained(tmp_path / "ours")
    tolerance = 2e-2 if kind == "float16" else 1e-6
    assert_close(converted.embed_text(TEXTS[:3]), ours.embed_text(TEXTS[:3]), tolerance)


def test_other_spectra_and_fusion_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for change in ({"frequency_min": 0}, {"truncation": "fusion"}, {"sampling_rate": 44100}):
        extractor = {"truncation": "rand_trunc", "frequency_min": 50} | change
        transformers.ClapFeatureExtractor(**extractor).save_pretrained(other)
        with pytest.raises(UserError, match=r"front end/\w+ = \w+, which is not supported"):
            convert(other, tmp_path / "ours")
    fused = transformers.ClapConfig(
        text_config={"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1},
        audio_config={
            "enable_fusion": True, "fusion_type": "aff_2d", "patch_embeds_hidden_size": 8,
            "hidden_size": 64, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1],
        },
    )  # fmt: skip
    transformers.ClapModel(fused).save_pretrained(other)
    with pytest.raises(UserError, match="with fusion, which is not supported"):
        convert(other, tmp_path / "ours")


def test_audio_and_texts_at_once_are_scored_as_transformers_does(theirs, ours):
    wave = signals()["music"].astype(np.float32)
    ids = torch.from_numpy(ours.tokenizer(TEXTS[:2])).long()
    spectrum = torch.from_numpy(log_mel(wave))[None, None]
    with torch.no_grad():
        out = theirs(input_ids=ids, attention_mask=(ids != 1).long(), input_features=spectrum)
    logits = out.logits_per_audio[0].numpy() / theirs.logit_scale_a.exp().item()
    rows = ours.embed(wave[None], RATE) @ ours.embed_text(TEXTS[:2]).T
    assert_close(rows[0], logits, 1e-5)
