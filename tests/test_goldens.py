"""The numbers of the real PyTorch code, without it: see tests/goldens/README.md.

The checkpoints go through the converter as a user's would, and every stage is compared.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax import MusicGen
from musicgen_jax.config import STEREO_DELAYS
from musicgen_jax.convert import convert
from musicgen_jax.nn.condition import Condition, Embedded, null_like
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

SOURCES = ("mono/transformers", "mono/audiocraft", "stereo/transformers")
LENGTHS = {"mono": (1, 639, 640, 641, 3000), "stereo": (21, 91)}
CASES = {
    "mono": ("text", "batch", "unconditional", "continuation"),
    "stereo": ("text", "continuation"),
}


def per_source(table):
    """(source, entry) for every entry of the source's model."""
    return [(source, entry) for source in SOURCES for entry in table[source.split("/")[0]]]


@pytest.fixture(scope="session")
def goldens(tmp_path_factory):
    """source -> its converted model, and the reference's inputs and outputs."""
    loaded = {}
    for source in SOURCES:
        out = tmp_path_factory.mktemp("goldens") / "model"
        convert(GOLDENS / source, out)
        with np.load(GOLDENS / source.split("/")[0] / "expected.npz") as arrays:
            loaded[source] = MusicGen.from_pretrained(out), SimpleNamespace(**arrays)
    return loaded


@pytest.fixture(params=SOURCES)
def golden(goldens, request):
    return goldens[request.param]


def test_the_config_is_that_of_the_checkpoint(golden):
    model, expected = golden
    channels = model.audio_channels
    assert model.config.lm.delays == ((0, 1, 2, 3) if channels == 1 else STEREO_DELAYS)
    assert model.config.encodec.ratios == ((8, 5, 4, 4) if channels == 1 else (5, 4))
    assert (model.sample_rate, model.frame_rate) == (32000 if channels == 1 else 1000, 50)
    assert (model.config.lm.n_q, model.config.lm.card) == (4 * channels, expected.logits.shape[-1])
    assert model.lm.dtype == jnp.float32


def test_tokenizer(golden):
    model, expected = golden
    ids, mask = model.tokenizer([str(text) for text in expected.texts])
    np.testing.assert_array_equal(ids, expected.ids)
    np.testing.assert_array_equal(mask, expected.mask)
    assert mask.any(axis=1).tolist() == [True, True, False]


def test_text_encoder(golden):
    """At masked positions hidden states mean nothing, but must not poison what follows."""
    model, expected = golden
    hidden = np.asarray(jax.jit(lambda t5, *x: t5(*x))(model.t5, expected.ids, expected.mask))
    assert np.isfinite(hidden).all()
    assert_close(hidden[expected.mask], expected.hidden[expected.mask], what="T5")


def test_text_condition(golden):
    model, expected = golden
    condition = model.text_condition([str(text) for text in expected.texts])
    width = expected.mask.shape[1]
    np.testing.assert_array_equal(condition.text.mask[:, :width], expected.mask)
    assert not np.any(condition.text.mask[:, width:])
    assert_close(condition.text.vectors[:, :width], expected.cross, what="condition")
    assert not np.any(np.asarray(condition.text.vectors)[~np.asarray(condition.text.mask)])


def test_logits_of_whole_sequences(golden):
    model, expected = golden
    logits = jax.jit(lambda lm, *x: lm(*x))
    condition = Condition(Embedded(jnp.asarray(expected.cross), jnp.asarray(expected.mask)))
    with_text = logits(model.lm, expected.steps, condition)
    assert_close(with_text, expected.logits, what="with text")
    without = logits(model.lm, expected.steps, null_like(condition))
    assert_close(without, expected.logits_null, what="without")


def test_logits_of_codes(golden):
    """From texts, in the order of codes: frame t of a book is predicted at step t + delay."""
    model, expected = golden
    logits = np.asarray(model.lm_logits(expected.codes, [str(text) for text in expected.texts]))
    frames = expected.codes.shape[2]
    for k, delay in enumerate(model.config.lm.delays):
        assert_close(
            logits[:, k, : frames - delay], expected.logits[:, k, delay:frames], what=f"book {k}"
        )
        assert np.isnan(logits[:, k, frames - delay :]).all()


@pytest.mark.parametrize(("source", "name"), per_source(CASES))
def test_greedy_music(goldens, source, name):
    """Twelve frames: tokens exactly, then their sound."""
    model, expected = goldens[source]
    codes, audio = getattr(expected, f"{name}_codes"), getattr(expected, f"{name}_audio")
    settings = {"duration": codes.shape[2] / model.frame_rate, "use_sampling": False}
    settings |= {"cfg_coef": 3.0}
    texts = [str(text) for text in expected.texts]
    match name:
        case "text":
            output = model.generate(texts[:1], **settings)
        case "batch":  # of prompts of different length
            output = model.generate(texts[:2], **settings)
        case "unconditional":
            output = model.generate_unconditional(1, **settings)
        case "continuation":  # of five frames
            clip = expected.audio_3000 if model.audio_channels == 1 else expected.audio_91
            output = model.generate_continuation(clip, model.sample_rate, texts[:1], **settings)
    np.testing.assert_array_equal(output.codes, codes)
    assert_close(output.audio, audio, what="sound")


@pytest.mark.parametrize(("source", "length"), per_source(LENGTHS))
def test_codec(goldens, source, length):
    model, expected = goldens[source]
    audio, codes, sound = (
        getattr(expected, f"audio_{length}{part}") for part in ("", "_codes", "_sound")
    )
    np.testing.assert_array_equal(model.encode(audio, model.sample_rate), codes)
    assert_close(model.decode(codes), sound, what="sound")
