"""The style model: audiocraft's own numbers, without it. See tests/goldens/style/README.md.

The checkpoint goes through the converter as a user's would.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from musicgen_jax import MusicGen
from musicgen_jax.convert import convert
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.lm import compute_predictions
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

EXCERPT, STRIDE = 0.5, 0.3  # seconds; the model's window is as long as the excerpt
TEXT = "slow strings, a warm bass and a calm piano melody in the background"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The converted model, audiocraft's inputs and outputs, and the folder."""
    out = tmp_path_factory.mktemp("goldens") / "style"
    # MERT is found beside the file; T5 and the codec are those of the other golden models.
    convert(
        GOLDENS / "style",
        out,
        t5_from=str(GOLDENS / "mono/t5-base"),
        encodec_from=str(GOLDENS / "mono/audiocraft"),
    )
    with np.load(GOLDENS / "style/expected.npz") as arrays:
        return MusicGen.from_pretrained(out), SimpleNamespace(**arrays), out


def style_at(model: MusicGen, clip: np.ndarray | None, text: str | None, eval_q: int) -> Condition:
    """The condition of a piece of one window, of a clip as long as the excerpt."""
    return model.style_condition([text], [clip], 32000, eval_q=eval_q, excerpt_length=EXCERPT)


@jax.jit
def logits_of(lm, codes, condition):
    return compute_predictions(lm, codes, lm.fill_nulls(condition))[0]


def given(expected, name: str) -> tuple[str | None, np.ndarray | None]:
    """Text and excerpt of a case; a clip of that length leaves nothing to be drawn."""
    excerpt = expected.clip[:, : int(EXCERPT * 32000)]
    return (
        TEXT if name in ("both", "text", "double") else None,
        excerpt if name in ("both", "style", "double") else None,
    )


def test_config(golden):
    model, _, _ = golden
    style, mert = model.config.lm.style, model.config.mert
    assert (style.feature_dim, style.dim, style.num_heads, style.ds_factor) == (20, 16, 8, 15)
    assert (style.n_q, style.bins, style.num_layers, style.ffn_dim) == (3, 16, 2, 64)
    assert (mert.sample_rate, mert.dim, mert.num_layers, mert.num_heads) == (24000, 20, 2, 2)
    assert mert.num_frames(72000) == 224
    assert model.config.lm.conditioning == "prepend"
    assert model.max_duration == EXCERPT


def test_license_names_all_that_is_in_the_folder(golden):
    text = (golden[2] / "LICENSE").read_text()
    assert "MERT" in text
    assert text.count("CC-BY-NC 4.0") == 2
    assert "Apache" in text


@pytest.mark.parametrize("eval_q", [1, 2, 3])
def test_style_tokens(golden, eval_q):
    model, expected, _ = golden
    condition = style_at(model, given(expected, "style")[1], None, eval_q)
    assert np.all(condition.audio.mask)
    assert_close(condition.audio.vectors, getattr(expected, f"style_{eval_q}"))


@pytest.mark.parametrize("name", ["both", "text", "style", "nothing"])
def test_logits(golden, name):
    """Teacher-forced, with whatever is missing attended as audiocraft's nulls are."""
    model, expected, _ = golden
    text, clip = given(expected, name)
    condition = style_at(model, clip, text, 2)
    logits = np.asarray(logits_of(model.lm, expected.codes, condition))
    reference = getattr(expected, f"{name}_logits")
    np.testing.assert_array_equal(np.isnan(logits), np.isnan(reference))
    known = ~np.isnan(reference)
    assert_close(logits[known], reference[known])


@pytest.mark.parametrize("name", ["both", "text", "style", "nothing", "double"])
def test_greedy_codes(golden, name):
    model, expected, _ = golden
    text, clip = given(expected, name)
    codes = getattr(expected, f"{name}_codes")
    output = model.generate_with_style(
        [text], [clip], 32000, eval_q=2, excerpt_length=EXCERPT, use_sampling=False,
        duration=codes.shape[2] / model.frame_rate, cfg_coef_beta=5.0 if name == "double" else None,
    )  # fmt: skip
    np.testing.assert_array_equal(output.codes, codes)
    if clip is None:
        plain = model.generate([text], duration=codes.shape[2] / 50, use_sampling=False)
        np.testing.assert_array_equal(plain.codes, codes)


@pytest.mark.parametrize("name", ["long", "long_single"])
def test_greedy_codes_of_three_windows(golden, name):
    """The clip moves on with the windows and wraps; the excerpt is all of a window."""
    model, expected, _ = golden
    codes = getattr(expected, f"{name}_codes")
    output = model.generate_with_style(
        [TEXT], expected.clip, 32000, eval_q=2, excerpt_length=EXCERPT, use_sampling=False,
        duration=codes.shape[2] / model.frame_rate, extend_stride=STRIDE,
        cfg_coef_beta=4.0 if name == "long" else None,
    )  # fmt: skip
    np.testing.assert_array_equal(output.codes, codes)
