"""MusicGen as its users see it: random weights, but every line of the real code."""

import dataclasses
import importlib.util
import inspect
import math
import sys
import types
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation import program
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.encodec import channels
from musicgen_jax.storage import checkpoint, hub
from tests.helpers import shallow
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

RATE = testing.DEBUG.sample_rate


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return testing.random_model(shallow.TEXT)


@pytest.fixture(scope="module")
def stereo() -> MusicGen:
    return testing.random_model(shallow.STEREO)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


# --- Generation ---------------------------------------------------------------------------------


def test_output_is_what_the_codec_makes_of_the_codes(model):
    out = model.generate(["a calm waltz", "drums"], duration=0.5, seed=3)
    assert out.codes.shape == (2, 4, 25)
    assert out.codes.dtype == np.int32
    assert out.codes.min() >= 0
    assert out.codes.max() < testing.DEBUG.lm.card
    assert out.audio.shape == (2, 1, 2000)
    assert out.audio.dtype == np.float32
    assert out.sample_rate == model.sample_rate == RATE
    assert_close(out.audio, model.decode(out.codes))
    assert np.abs(out.audio).max() > 1, "loudness and clipping belong to saving"


def test_neither_neighbours_nor_padding_change_a_clip(model):
    prompts = ["a calm waltz", "loud drums and " * 20 + "a tuba", None]
    together = model.generate(prompts, duration=0.5, seed=7)
    alone = model.generate(prompts[:1], duration=0.5, seed=7)
    np.testing.assert_array_equal(together.codes[:1], alone.codes)
    assert (together.codes[0] != together.codes[1]).any()


def test_a_seed_of_its_own_gives_a_clip_what_it_gives_alone(model):
    pair = model.generate(["bells", "bells"], duration=0.5, seed=[5, np.int64(6)])
    alone = model.generate(["bells"], duration=0.5, seed=6)
    np.testing.assert_array_equal(pair.codes[1:], alone.codes)
    assert (pair.codes[0] != pair.codes[1]).any()


def test_one_compilation_serves_two_durations_and_other_prompts(model):
    model.generate(["a calm waltz"], duration=0.5)
    before = program._advance._cache_size(), program._start._cache_size()
    model.generate(["drums"], duration=0.9, temperature=0.7, cfg_coef=2.0, seed=1)
    assert (program._advance._cache_size(), program._start._cache_size()) == before


def test_duration_in_seconds_becomes_whole_frames(model):
    assert model.generate(["x"], duration=0.519).codes.shape == (1, 4, 25)


@pytest.mark.parametrize("nothing", [[None], [""]])
def test_no_description_is_unconditional(model, nothing):
    expected = model.generate_unconditional(1, duration=0.5, seed=4)
    np.testing.assert_array_equal(
        model.generate(nothing, duration=0.5, seed=4).codes, expected.codes
    )


def test_unconditional_clips_differ(model):
    out = model.generate_unconditional(num_samples=2, duration=0.5)
    assert out.codes.shape == (2, 4, 25)
    assert (out.codes[0] != out.codes[1]).any()


def test_progress_counts_up_to_the_end(model):
    calls = []
    model.generate(["x"], duration=0.5, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(set(done))
    assert done[-1] == totals[0]
    assert len(done) > 1


def test_progress_bar_is_on_stderr_and_only_on_demand(model, capsys):
    model.generate(["x"], duration=0.5)
    assert capsys.readouterr() == ("", "")
    model.generate(["x"], duration=0.5, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err


def test_zero_temperature_is_greedy_whatever_the_seed(model):
    greedy = model.generate(["x"], duration=0.5, use_sampling=False)
    cold = model.generate(["x"], duration=0.5, temperature=0, seed=9)
    np.testing.assert_array_equal(greedy.codes, cold.codes)


# --- Logits ---------------------------------------------------------------------------------------


def test_greedy_codes_are_the_arguments_of_the_largest_guided_logits(model):
    prompt, cfg_coef = "a calm waltz", 2.5
    codes = model.generate([prompt], duration=0.5, use_sampling=False, cfg_coef=cfg_coef).codes
    logits = np.asarray(model.lm_logits(np.repeat(codes, 2, axis=0), [prompt, None]))
    assert logits.shape == (2, 4, 25, testing.DEBUG.lm.card)
    assert logits.dtype == np.float32
    guided = logits[1] + (logits[0] - logits[1]) * cfg_coef
    for book, delay in enumerate(testing.DEBUG.lm.delays):
        predicted = guided[book, : 25 - delay]
        np.testing.assert_array_equal(predicted.argmax(-1), codes[0, book, : 25 - delay])
        assert np.isnan(guided[book, 25 - delay :]).all()


# --- Audio in ------------------------------------------------------------------------------------


def test_continuation_begins_with_the_codes_of_the_prompt(model):
    prompt = noise(1, 800)
    out = model.generate_continuation(prompt, RATE, ["bells"], duration=0.5)
    np.testing.assert_array_equal(out.codes[:, :, :10], model.encode(prompt, RATE))
    assert out.codes.shape == (1, 4, 25)


def test_continuation_without_descriptions_takes_every_row_of_the_prompt(model):
    prompt = noise(2, 1, 800)
    out = model.generate_continuation(prompt, RATE, duration=0.5)
    np.testing.assert_array_equal(out.codes[:, :, :10], model.encode(prompt, RATE))


def test_one_prompt_serves_several_descriptions(model):
    prompt = noise(1, 800)
    out = model.generate_continuation(prompt, RATE, ["bells", "drums"], duration=0.5)
    codes = model.encode(prompt, RATE)
    np.testing.assert_array_equal(out.codes[:, :, :10], np.repeat(codes, 2, axis=0))


def test_a_prompt_of_another_rate_is_resampled_and_stereo_becomes_mono(model, monkeypatch):
    codes = jnp.zeros((1, 4, 10), jnp.int32)
    time = np.arange(800) / RATE
    wave = np.sin(2 * np.pi * 200 * time, dtype=np.float32)[None]
    faster = np.sin(2 * np.pi * 200 * np.arange(1600) / (2 * RATE), dtype=np.float32)
    sides = np.stack([faster * 1.5, faster * 0.5])
    heard = []
    monkeypatch.setattr(channels, "encode", lambda codec, wav, mesh: heard.append(wav) or codes)
    model.generate_continuation(sides, 2 * RATE, ["bells"], duration=0.5)
    assert heard[0].shape == (1, 1, 800)
    # Resampling rings at both ends; in between it is the same wave.
    assert_close(heard[0][0, :, 100:-100], wave[:, 100:-100], relative=1e-2)


def test_encode_and_decode_agree_on_lengths(model):
    for samples in (80, 81):
        codes = model.encode(noise(1, samples), RATE)
        assert codes.shape == (1, 4, math.ceil(samples / 80))
        assert model.decode(codes).shape == (1, 1, 80 * codes.shape[2])


def test_stereo_books_are_interleaved_left_then_right(stereo, model):
    audio = noise(2, 2, 400)
    codes = np.asarray(stereo.encode(audio, RATE))
    assert codes.shape == (2, 8, 5)
    decoded = stereo.decode(codes)
    for side in (0, 1):  # by the same codec: its seed is the same
        one_side = model.encode(audio[:, side : side + 1], RATE)
        np.testing.assert_array_equal(codes[:, side::2], one_side)
        assert_close(decoded[:, side : side + 1], model.decode(one_side))


def test_stereo_generates_and_takes_a_mono_prompt(stereo):
    out = stereo.generate_continuation(noise(1, 400), RATE, ["bells"], duration=0.5)
    assert out.audio.shape == (1, 2, 2000)
    np.testing.assert_array_equal(out.codes[:, ::2, :5], out.codes[:, 1::2, :5])


# --- Loading --------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_model(folder):
    loaded = MusicGen.from_pretrained(str(folder))
    built = testing.random_model(tokenizer=loaded.tokenizer)
    assert loaded.config == testing.DEBUG
    codes = np.random.default_rng(0).integers(0, 37, (1, 4, 9), dtype=np.int32)
    assert_close(
        np.nan_to_num(loaded.lm_logits(codes, ["a calm waltz"])),
        np.nan_to_num(built.lm_logits(codes, ["a calm waltz"])),
    )
    assert_close(loaded.decode(codes), built.decode(codes))


def test_dtype_is_the_language_models_alone(folder):
    model = MusicGen.from_pretrained(folder, dtype="bfloat16")
    assert model.lm.heads.weight.dtype == jnp.bfloat16
    assert model.t5.final_norm.scale.dtype == jnp.float32
    assert model.encodec.quantizer.embed.dtype == jnp.float32
    assert model.generate(["x"], duration=0.5).audio.dtype == np.float32
    assert MusicGen.from_pretrained(folder).lm.heads.weight.dtype == jnp.float32


def test_unknown_dtype(folder):
    for dtype in ("float16", "nonsense", jnp.int16):
        with pytest.raises(UserError, match="float32, bfloat16 or int8"):
            MusicGen.from_pretrained(folder, dtype=dtype)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no model 'musicgen-tiny'.*nano.*facebook/musicgen-small"):
        MusicGen.from_pretrained("musicgen-tiny")


def test_a_pytorch_folder_is_told_to_be_converted(tmp_path):
    for file in ("state_dict.bin", "model.safetensors", "pytorch_model.bin.index.json"):
        (tmp_path / file).mkdir(parents=True)
        (tmp_path / "config.json").write_text('{"model_type": "musicgen"}')
        with pytest.raises(UserError, match="musicgen-jax convert"):
            MusicGen.from_pretrained(tmp_path)
        (tmp_path / file).rmdir()


def test_a_folder_without_its_config(folder, tmp_path):
    copy = tmp_path / "copy"
    (copy / "lm").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json"):
        MusicGen.from_pretrained(copy)


def test_the_home_of_models_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MUSICGEN_JAX_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.models_home() == tmp_path / "musicgen-jax"
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path / "home"))
    assert hub.models_home() == tmp_path / "home"


@pytest.mark.parametrize("name", ["facebook/musicgen-small", "musicgen-small", "small"])
def test_an_official_name_finds_its_converted_copy(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    (tmp_path / "facebook--musicgen-small").mkdir()
    assert hub.find_model(name) == tmp_path / "facebook--musicgen-small"


def test_an_official_name_without_the_hub_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"musicgen-jax\[hub\]") as caught:
        MusicGen.from_pretrained("musicgen-small")
    assert "\n" not in str(caught.value)


class FakeHub(types.ModuleType):
    """Serves the golden model as facebook/musicgen-small."""

    def __init__(self):
        super().__init__("huggingface_hub")
        self.folder, self.downloads = GOLDENS / "mono" / "transformers", 0

    def HfApi(self):
        return self

    def model_info(self, repo, revision=None):
        if repo != "facebook/musicgen-small":
            raise OSError(f"404: no {repo}")
        files = [types.SimpleNamespace(rfilename=file.name) for file in self.folder.iterdir()]
        return types.SimpleNamespace(sha="c0ffee", siblings=files)

    def snapshot_download(self, repo, *, revision, allow_patterns):
        self.downloads += 1
        return str(self.folder)


def test_an_official_name_is_converted_once_and_a_failure_is_one_line(monkeypatch, tmp_path):
    fake = FakeHub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"404: no facebook/musicgen-medium$") as caught:
        hub.find_model("medium")
    assert "\n" not in str(caught.value)
    made = hub.find_model("small")
    assert checkpoint.load_config(made).name == "facebook/musicgen-small"
    assert hub.find_model("facebook/musicgen-small") == made
    assert fake.downloads == 1


# --- Bad input ------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf

BAD_SETTINGS = [
    ({"duration": 0}, "duration must be more than 0 and at most 86400 seconds .* got 0"),
    ({"duration": -1.0}, "duration must be more than 0"),
    ({"duration": NAN}, "duration must be more than 0"),
    ({"duration": INF}, "duration must be more than 0"),
    ({"duration": 86401}, "at most 86400 seconds .* got 86401"),
    ({"duration": "8"}, "duration must be"),
    ({"duration": None}, "duration must be"),
    ({"duration": True}, "duration must be"),
    ({"duration": 0.019}, "at least one frame, 0.02 seconds"),
    ({"temperature": -0.1}, "temperature must be 0 .* or more, at most .*, got -0.1"),
    ({"temperature": NAN}, "temperature must be"),
    ({"temperature": INF}, "temperature must be"),
    ({"temperature": 1e39}, "temperature must be 0 .* at most 1e\\+06, got 1e\\+39"),
    ({"cfg_coef": -1e39}, "cfg_coef must be a finite number from -1e\\+06 to 1e\\+06"),
    ({"top_k": -1}, "top_k must be an integer from 0 .*, got -1"),
    ({"top_k": 251}, "top_k must be an integer from 0 .* to 250, got 251"),
    ({"top_k": 2.5}, "top_k must be"),
    ({"top_k": NAN}, "top_k must be"),
    ({"top_p": -0.1}, "top_p must be from 0 .* to 1, got -0.1"),
    ({"top_p": 1.1}, "top_p must be"),
    ({"top_p": NAN}, "top_p must be"),
    ({"use_sampling": "no"}, "use_sampling must be True or False, got 'no'"),
    ({"use_sampling": 1}, "use_sampling must be True or False, got 1"),
    ({"checkpoint": 3}, "checkpoint must be the path of a folder, got 3"),
    ({"cfg_coef": NAN}, "cfg_coef must be a finite number"),
    ({"cfg_coef": "3"}, "cfg_coef must be a finite number"),
    ({"seed": -1}, "seed must be an integer from 0"),
    ({"seed": 2**32}, "seed must be an integer from 0"),
    ({"seed": 1.5}, "seed must be an integer"),
    ({"seed": None}, "seed must be an integer"),
    ({"seed": "7"}, "seed must be an integer"),
    ({"seed": [1, 2]}, "2 seeds for 1 clips"),
    ({"extend_stride": 0}, "extend_stride must be at least one frame, 0.02 s, and less than 3 s"),
    ({"extend_stride": 3}, "extend_stride must be"),
    ({"extend_stride": NAN}, "extend_stride must be"),
    ({"extend_stride": "1"}, "extend_stride must be"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings(model, settings, message):
    audio = noise(1, 80)
    for call in (
        lambda **kw: model.generate(["x"], **kw),
        lambda **kw: model.generate_unconditional(1, **kw),
        lambda **kw: model.generate_continuation(audio, RATE, ["x"], **kw),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call(**({"duration": 0.5} | settings))
        assert "\n" not in str(caught.value)


METHODS = {
    "generate": lambda model: partial(model.generate, ["x"]),
    "stream": lambda model: partial(model.stream, ["x"]),
    "generate_unconditional": lambda model: partial(model.generate_unconditional, 1),
    "generate_continuation": lambda model: partial(
        model.generate_continuation, noise(1, 80), RATE, ["x"]
    ),
    "generate_with_chroma": lambda model: partial(
        model.generate_with_chroma, ["x"], noise(1, 80), RATE
    ),
    "generate_with_style": lambda model: partial(
        model.generate_with_style, ["x"], noise(1, 80), RATE
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [{"tok_k": 5}, {"lengths": (64,)}, {"use_sampling": "no"}])
def test_a_wrong_argument_fails_before_anything_is_written(model, tmp_path, method, wrong):
    folder = tmp_path / "checkpoint"
    with pytest.raises((TypeError, UserError), match=next(iter(wrong))):
        METHODS[method](model)(duration=1.0, checkpoint=folder, **wrong)
    assert not folder.exists()


@pytest.mark.parametrize("method", METHODS)
def test_signatures_are_complete_and_share_their_defaults(method):
    arguments = inspect.signature(getattr(MusicGen, method)).parameters
    assert all(a.kind is not inspect.Parameter.VAR_KEYWORD for a in arguments.values())
    defaults = {
        **{field.name: field.default for field in dataclasses.fields(Sampling)},
        **{field.name: field.default for field in dataclasses.fields(Request)},
    }
    shared = {name: a.default for name, a in arguments.items() if name in defaults}
    if method == "stream":
        assert shared.pop("chunk_seconds") == 1.0
    shared.pop("descriptions", None)
    assert shared == {name: defaults[name] for name in shared}
    assert {"duration", "seed", "join", "checkpoint", "top_k", "cfg_coef"} <= set(shared)


@pytest.mark.parametrize(
    ("descriptions", "message"),
    [
        ([], "descriptions is empty"),
        ("a calm waltz", "must be a list"),
        (None, "must be a list"),
        ([b"waltz"], "must be a text or None"),
        ([3], "must be a text or None"),
    ],
)
def test_bad_descriptions(model, descriptions, message):
    with pytest.raises(UserError, match=message):
        model.generate(descriptions, duration=0.5)
    with pytest.raises(UserError, match=message):
        model.lm_logits(np.zeros((1, 4, 5), np.int32), descriptions)


@pytest.mark.parametrize("count", [0, -1, 1.0, None, True])
def test_bad_number_of_samples(model, count):
    with pytest.raises(UserError, match="num_samples must be a positive integer"):
        model.generate_unconditional(count, duration=0.5)


def spoiled(value: float) -> np.ndarray:
    audio = noise(1, 800)
    audio[0, 17] = value
    return audio


@pytest.mark.parametrize(
    ("prompt", "rate", "message"),
    [
        (
            noise(1, 2000),
            RATE,
            r"the prompt lasts 0.50 s .* duration of 0.50 s.*raise the duration",
        ),
        (noise(1, 4000), RATE, "the prompt lasts 1.00 s"),
        (noise(1, 1), 1, "the prompt lasts 1.00 s"),
        (np.zeros((1, 800), np.float32), RATE, "the prompt is silent"),
        (spoiled(NAN), RATE, "NaN or infinity"),
        (spoiled(INF), RATE, "NaN or infinity"),
        (noise(800), RATE, r"\[C, W\] or \[B, C, W\]"),
        (noise(1, 1, 1, 800), RATE, r"\[C, W\] or \[B, C, W\]"),
        (noise(800, 2), RATE, "looks transposed"),
        (noise(1, 0), RATE, "is empty"),
        (np.ones((1, 800), np.int16), RATE, "must be float samples"),
        ([[0.1, 0.2], [0.3]], RATE, "must be one array"),
        ("song.wav", RATE, "must be float samples"),
        (None, RATE, "must be float samples"),
        (noise(1, 800), 0, "sample rate must be a positive integer"),
        (noise(1, 800), -RATE, "sample rate must be a positive integer"),
        (noise(1, 800), NAN, "sample rate must be a positive integer"),
        (noise(1, 800), None, "sample rate must be a positive integer"),
        (noise(3, 1, 800), RATE, "3 prompts for 2 descriptions"),
    ],
)
def test_bad_prompts(model, prompt, rate, message):
    with pytest.raises(UserError, match=message) as caught:
        model.generate_continuation(prompt, rate, ["x", "y"], duration=0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 3, 5), np.int32), r"must be \[B, 4, T\], got the shape \[1, 3, 5\]"),
        (np.zeros((4, 5), np.int32), r"must be \[B, 4, T\]"),
        (np.zeros((1, 4, 0), np.int32), r"must be \[B, 4, T\]"),
        (np.zeros((1, 4, 5), np.float32), "must be integers"),
        (np.full((1, 4, 5), 37), "must be from 0 to 36, got 37 to 37"),
        (np.full((1, 4, 5), -1), "must be from 0 to 36"),
    ],
)
def test_bad_codes(model, codes, message):
    for call in (
        model.decode,
        lambda codes: model.lm_logits(codes, ["x"]),
        lambda codes: model.generate(["x"], duration=0.5, prompt_codes=codes),
    ):
        with pytest.raises(UserError, match=message):
            call(codes)


def test_output_is_frozen(model):
    out = model.generate(["x"], duration=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.sample_rate = 1
