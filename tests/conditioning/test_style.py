"""The style conditioner, its excerpts, and generation under it. Its numbers: test_goldens_style."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax import MusicGen, testing
from musicgen_jax.commands.cli import main
from musicgen_jax.conditioning.excerpt import excerpt
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.conditioning.style import Styles
from musicgen_jax.errors import UserError
from musicgen_jax.generation.decode import example_keys
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.sampling import Numbers, guide
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.style_conditioner import StyleConditioner
from musicgen_jax.testing import DEBUG_STYLE, random_model
from tests.helpers import shallow
from tests.helpers.tolerance import assert_close

RATE = DEBUG_STYLE.sample_rate
SETTINGS = {"duration": 0.2, "excerpt_length": 0.25}
TEXTS = ["slow warm strings of long ago", None, "bass"]


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (1, samples)).astype(np.float32)


CLIPS = [noise(1100), noise(2777, 1), None]


@pytest.fixture(scope="module")
def model():
    return random_model(shallow.STYLE)


# --- Generation --------------------------------------------------------------------------------


def test_a_clip_is_the_same_alone_and_in_a_batch(model):
    """Texts of different length, styles of different length and none, each with a seed."""
    settings = SETTINGS | {"cfg_coef_beta": 4.0}
    batch = model.generate_with_style(TEXTS, CLIPS, RATE, seed=[5, 6, 7], **settings)
    for i in range(3):
        alone = model.generate_with_style(
            [TEXTS[i]], CLIPS[i : i + 1], RATE, seed=5 + i, **settings
        )
        np.testing.assert_array_equal(alone.codes[0], batch.codes[i], err_msg=str(i))
    assert len({codes.tobytes() for codes in batch.codes}) == 3


def test_beta_needs_text_and_1_is_ordinary_guidance(model):
    def codes(text, beta):
        return model.generate_with_style(
            [text], CLIPS[:1], RATE, cfg_coef_beta=beta, **SETTINGS
        ).codes

    ordinary = codes(TEXTS[0], None)
    np.testing.assert_array_equal(codes(TEXTS[0], 1), ordinary)
    assert np.any(codes(TEXTS[0], 6.0) != ordinary)
    np.testing.assert_array_equal(codes(None, 6.0), codes(None, None))


def test_seed_and_coarseness_shape_the_style(model):
    def prefix(**changes):
        settings = {"excerpt_length": 0.25, "seed": 0, "eval_q": 4} | changes
        condition = model.style_condition([None], CLIPS[1], RATE, **settings)
        assert np.all(condition.audio.mask)
        return np.asarray(condition.audio.vectors)

    np.testing.assert_array_equal(prefix(), prefix(seed=[0]))
    assert np.any(prefix() != prefix(seed=1))
    assert np.any(prefix() != prefix(eval_q=1))
    assert prefix(excerpt_length=0.5).shape[1] > prefix().shape[1]


def test_one_style_for_all_and_its_form(model):
    def prefix(style, texts):
        return model.style_condition(texts, style, RATE, excerpt_length=0.25, seed=3).audio.vectors

    both = prefix(CLIPS[1], [None, None])
    np.testing.assert_array_equal(both, prefix([CLIPS[1], CLIPS[1]], ["", None]))
    np.testing.assert_array_equal(both, prefix(np.stack([CLIPS[1]] * 2), [None, None]))
    assert np.any(both[0] != both[1])  # each draws its own place
    stereo = np.concatenate([2 * CLIPS[1], 0 * CLIPS[1]])
    assert_close(prefix(stereo, [None]), prefix(CLIPS[1], [None]))


def test_silence_is_a_style_and_not_none(model):
    settings = {"excerpt_length": 0.25}
    silent = model.style_condition([None], np.zeros((1, 1000), np.float32), RATE, **settings)
    assert np.isfinite(silent.audio.vectors).all()
    assert np.abs(silent.audio.vectors).max() > 0
    assert np.all(silent.audio.mask)
    none = model.style_condition([None, None], [None, CLIPS[0]], RATE, **settings)
    assert not np.any(none.audio.vectors[0])
    assert none.audio.mask.any(axis=1).tolist() == [False, True]


def test_nulls_are_one_zero_vector_each(model):
    """audiocraft's: </s> masked, and the first frame of no audio. Both are attended."""
    condition = model.style_condition([None, "a"], [CLIPS[0], None], RATE, excerpt_length=0.25)
    filled = model.lm.fill_nulls(condition)
    assert filled.text.mask.sum(axis=1).tolist() == [1, 2]  # "a" and </s>
    tokens = filled.audio.vectors.shape[1]
    assert filled.audio.mask.sum(axis=1).tolist() == [tokens, 1]
    assert not np.any(filled.audio.vectors[1])
    plain = model.lm.fill_nulls(model.text_condition([None]))
    assert plain.audio.vectors.shape[:2] == (1, 1)
    assert np.all(plain.audio.mask)
    assert not np.any(plain.audio.vectors)


def test_the_conditioner_stays_in_full_precision():
    """A rounded distance picks another code; the language model may be bfloat16."""
    lm = nnx.eval_shape(
        lambda: LM(DEBUG_STYLE.lm, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    dtypes = {
        name: {str(leaf.dtype) for leaf in jax.tree.leaves(part)}
        for name, part in nnx.to_pure_dict(nnx.state(lm)).items()
    }
    assert dtypes.pop("style_conditioner") == {"float32"}
    assert dtypes.pop("out_norm") == {"float32"}  # as all layer norms
    assert dtypes.pop("transformer") == {"bfloat16", "float32"}
    assert set.union(*dtypes.values()) == {"bfloat16"}


# --- The conditioner ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditioner():
    config = DEBUG_STYLE.lm.style
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: StyleConditioner(config, 16, rngs=nnx.Rngs(0)))
    )
    weights = testing.random_params(nnx.to_pure_dict(state), seed=1, std=1.0)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graphdef, state)


encode = jax.jit(StyleConditioner.encode, static_argnums=2)


def test_fewer_codebooks_are_the_first_ones(conditioner):
    features = np.random.default_rng(0).standard_normal((2, 21, 12)).astype(np.float32)
    codes = np.asarray(encode(conditioner, features, 4))
    assert codes.shape == (2, 4, 6)  # every fourth of 21 frames
    np.testing.assert_array_equal(encode(conditioner, features, 2), codes[:, :2])
    assert len(np.unique(codes)) > 4
    tokens = jax.jit(StyleConditioner.__call__, static_argnums=2)(conditioner, features, 2)
    vectors = sum(np.asarray(conditioner.rvq.embed[...])[k][codes[:, k]] for k in range(2))
    projection = conditioner.output_proj
    expected = vectors @ np.asarray(projection.weight[...]).T + np.asarray(projection.bias[...])
    assert_close(tokens, expected)


def test_every_frame_looks_at_all_of_the_excerpt(conditioner):
    """Not causal: the last frame, which is no token itself, moves what becomes the first."""
    features = np.random.default_rng(0).standard_normal((16, 9, 12)).astype(np.float32)
    changed = features.copy()
    changed[:, -2] *= -5
    first, other = (np.asarray(encode(conditioner, x, 4))[:, :, 0] for x in (features, changed))
    assert np.any(first != other)


# --- Excerpts ----------------------------------------------------------------------------------


def keys(*seeds: int) -> jax.Array:
    return example_keys(list(seeds), len(seeds))


def test_excerpts_are_drawn_from_the_whole_clip():
    clip = np.arange(13.0)
    starts = [int(excerpt(clip, 10, key)[0]) for key in keys(*range(30))]
    assert set(starts) == {0, 1, 2, 3}
    for key, start in zip(keys(*range(5)), starts, strict=False):
        np.testing.assert_array_equal(excerpt(clip, 10, key), clip[start : start + 10])
    np.testing.assert_array_equal(excerpt(clip, 13, keys(4)[0]), clip)


@pytest.mark.parametrize("offset", [0, 7, 40])
def test_excerpts_of_a_window_come_from_the_clip_as_it_goes_on(offset):
    """audiocraft's way to make the window, then any part of it."""
    clip = np.arange(13.0)
    window = clip[np.arange(offset, offset + 20) % 13]
    for key in keys(*range(8)):
        part = excerpt(clip, 6, key, offset=offset, window=20)
        assert any(np.array_equal(part, window[i : i + 6]) for i in range(15))
    whole = excerpt(clip, 12, keys(0)[0], offset=offset, window=12)
    np.testing.assert_array_equal(whole, window[:12])


def test_each_window_draws_anew():
    clip = np.arange(1000.0)
    (key,) = keys(0)
    draws = [
        int(excerpt(clip, 10, key, offset=offset, window=500)[0]) - offset
        for offset in (0, 50, 100)
    ]
    assert len(set(draws)) == 3


def test_excerpts_depend_on_neither_the_batch_nor_the_rate_of_others():
    config = DEBUG_STYLE
    settings = {"config": config, "duration": 1.0, "excerpt_length": 0.25}
    batch = Styles(CLIPS, RATE, keys=keys(5, 6, 7), **settings)
    assert batch.has_style.tolist() == [True, True, False]
    for i in range(2):
        alone = Styles([CLIPS[i]], RATE, keys=keys(5 + i), **settings)
        np.testing.assert_array_equal(alone.excerpts_at(0.0)[0], batch.excerpts_at(0.0)[i])


def test_resampling():
    """A tone stays that tone; the length is rounded down; a constant stays one up to its ends."""
    time = np.arange(2001) / 4000
    tone = np.sin(2 * np.pi * 310 * time).astype(np.float32)
    for rate in (3000, 6000, 4000):
        out = np.asarray(resample_frac(jnp.asarray(np.stack([tone, 0 * tone + 0.5])), 4000, rate))
        assert out.shape == (2, 2001 * rate // 4000)
        expected = np.sin(2 * np.pi * 310 * np.arange(out.shape[1]) / rate)
        assert np.abs(out[0] - expected)[100:-100].max() < 1e-3
        assert np.abs(out[1] - 0.5).max() < 1e-5


# --- Guidance ----------------------------------------------------------------------------------


def test_double_guidance():
    c, w, u = (jnp.asarray(x, jnp.float32) for x in ([[1.0, 5.0]], [[2.0, 1.0]], [[-1.0, 3.0]]))

    def guided(sides, coef, beta=None):
        return guide(jnp.stack(sides), Numbers.of([Sampling(cfg_coef=coef, cfg_coef_beta=beta)]))

    assert_close(guided([c, w, u], 3.0, 5.0), u + 3 * (w + 5 * (c - w) - u))
    assert_close(guided([c, w, u], 3.0, 1.0), guided([c, u], 3.0))
    assert_close(guided([c, w, u], 1.0, 0.0), w)


# --- Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": noise(900)}, r"style of clip 0 lasts 0.23 s, less than the excerpt of 0.25 s"),
        ({"style": [None, noise(1100), noise(9)]}, "style of clip 2 lasts 0.00 s"),
        ({"style": np.full((1, 1100), np.nan, np.float32)}, "style holds NaN or infinity"),
        ({"style": [noise(1100)] * 2}, "2 styles for 3 descriptions"),
        ({"style": []}, "style list is empty"),
        ({"style": [noise(1100)[None]] * 3 + [None]}, "4 styles for 3"),
        ({"style": [np.stack([noise(1100)] * 2)] * 3}, r"each style of a list must be \[C, W\]"),
        ({"style": np.zeros((1, 1100), np.int16)}, "must be float samples"),
        ({"style": "song.wav"}, "must be float samples"),
        ({"style_sample_rate": 0}, "sample rate must be a positive integer"),
        ({"eval_q": 0}, "eval_q must be an integer from 1 to 4, got 0"),
        ({"eval_q": 5}, "eval_q must be an integer from 1 to 4, got 5"),
        ({"eval_q": True}, "eval_q must be"),
        ({"excerpt_length": 0}, "excerpt_length must be more than 0 and at most 3 seconds"),
        ({"excerpt_length": 3.1}, "excerpt_length must be"),
        ({"excerpt_length": float("nan")}, "excerpt_length must be"),
        ({"excerpt_length": 0.001}, "too short for a single token"),
        ({"cfg_coef_beta": float("inf")}, "cfg_coef_beta must be a finite number .* or None"),
        ({"cfg_coef_beta": "5"}, "cfg_coef_beta must be a finite number .* or None"),
        ({"seed": [1]}, "1 seeds for 3 clips"),
        ({"duration": -1}, "duration must be"),
        ({"descriptions": "text"}, "descriptions must be a list"),
    ],
)
def test_bad_input_is_one_line(model, arguments, message):
    default = {"descriptions": TEXTS, "style": noise(1100), "style_sample_rate": RATE}
    with pytest.raises(UserError, match=message) as error:
        model.generate_with_style(**(default | SETTINGS | arguments))
    assert "\n" not in str(error.value)


def test_other_models_take_no_style():
    text_model = random_model(shallow.TEXT)
    with pytest.raises(UserError, match="debug takes no style: use facebook/musicgen-style"):
        text_model.generate_with_style(["a"], noise(1100), RATE)
    with pytest.raises(UserError, match="cfg_coef_beta is for models"):
        Request(config=text_model.config, descriptions=["a"], sampling=Sampling(cfg_coef_beta=2.0))


# --- From a folder, by the command line --------------------------------------------------------


def test_command_line(tmp_path, monkeypatch, capsys, model):
    from musicgen_jax import audio

    monkeypatch.chdir(tmp_path)
    testing.save_random_model("model", shallow.STYLE)
    assert (tmp_path / "model" / "mert").is_dir()
    audio.write("style.wav", noise(3000), RATE, "clip")
    command = ["generate", "--model", "model", "--style", "style.wav", "--duration", "0.2"]
    command += ["--excerpt-length", "0.25", "--eval-q", "2", "--cfg-coef-beta", "4", "--seed", "8"]
    assert main([*command, "bass", "--save-codes"]) == 0, capsys.readouterr().err
    clip, rate = audio.read("style.wav")
    expected = MusicGen.from_pretrained("model").generate_with_style(
        ["bass"], clip, rate, eval_q=2, cfg_coef_beta=4.0, seed=8, **SETTINGS
    )
    np.testing.assert_array_equal(np.load("out.npy"), expected.codes[0])
    assert main([*command, "--continue-from", "style.wav"]) == 2
    assert "cannot be combined" in capsys.readouterr().err
    assert main(["generate", "a", "--cfg-coef-beta", "4"]) == 2
    assert "--style FILE" in capsys.readouterr().err
