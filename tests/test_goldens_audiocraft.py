"""Models that audiocraft itself built and exported: see tests/goldens/audiocraft/README.md."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax import MusicGen
from musicgen_jax.config import STEREO_DELAYS
from musicgen_jax.convert import convert
from musicgen_jax.generation.piece import Piece
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.generation.windows import assemble
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.patterns import to_steps
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

RATE, FRAMES, PROMPT = 32000, 12, 5
TEXT = "slow strings, a warm bass and a calm piano melody in the background"
MELODIES = {"long": (36.0, 0.5), "short": (2.7, 0.5), "tiny": (0.3, 0.1)}
WINDOW, STRIDE, LONG, LONG_MELODY = 0.6, 0.36, 1.2, (0.77, 0.11)


def melody(seconds: float, step: float = 0.5) -> np.ndarray:
    """[1, W], a walk over the pitches, a new one every `step` seconds; as the goldens' script."""
    time = np.arange(int(seconds * RATE)) / RATE
    note = 7 * np.floor(time / step) % 12
    return (0.5 * np.sin(2 * np.pi * 220 * 2 ** (note / 12) * time))[None].astype(np.float32)


def clip(channels: int, length: int) -> np.ndarray:
    """[1, C, W], a tone in noise; as the goldens' script."""
    rng = np.random.default_rng(length)
    tone = np.sin(0.02 * np.pi * np.arange(length))
    return 0.3 * (tone + rng.standard_normal((1, channels, length))).astype(np.float32)


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    """name -> the converted model, and audiocraft's outputs."""
    home, loaded = tmp_path_factory.mktemp("audiocraft"), {}
    for name in ("text", "stereo", "melody"):
        shutil.copytree(GOLDENS / "audiocraft" / name, home / name)
    shutil.copytree(GOLDENS / "mono" / "t5-base", home / "t5-base")
    # Where the two that point to a codec look for it: beside them, by its name.
    shutil.copytree(GOLDENS / "audiocraft" / "text", home / "encodec_32khz")
    (home / "encodec_32khz" / "state_dict.bin").unlink()
    for name in ("text", "stereo", "melody"):
        convert(home / name, home / "ours" / name)
        with np.load(home / name / "expected.npz") as arrays:
            expected = SimpleNamespace(**arrays)
        loaded[name] = MusicGen.from_pretrained(home / "ours" / name), expected
    return loaded


def test_configs(goldens):
    for name, (model, _) in goldens.items():
        config = model.config
        stereo = name == "stereo"
        assert config.audio_channels == (2 if stereo else 1)
        assert config.lm.delays == (STEREO_DELAYS if stereo else (0, 1, 2, 3))
        assert config.lm.conditioning == ("prepend" if name == "melody" else "cross")
        assert config.lm.chroma_bins == (12 if name == "melody" else 0)
        assert config.encodec.ratios == (8, 5, 4, 4)
        assert (config.sample_rate, config.max_duration) == (RATE, 30.0)


@pytest.mark.parametrize("name", ["text", "stereo"])
def test_logits(goldens, name):
    model, expected = goldens[name]
    for case, text in (("text", TEXT), ("nothing", None)):
        check_logits(model.lm_logits(expected.codes, [text]), getattr(expected, f"{case}_logits"))


def test_logits_of_the_melody_model(goldens):
    """All four ways of saying something or nothing; what is missing stands for itself."""
    model, expected = goldens["melody"]
    chroma = model.chroma(melody(*MELODIES["short"]), RATE, separate=False)
    lm = model.lm
    for case, text in (("both", TEXT), ("text", TEXT), ("melody", None), ("nothing", None)):
        condition = model.text_condition([text])
        if case in ("both", "melody"):
            prefix = lm.chroma_conditioner(jnp.asarray(chroma))
            audio = Embedded(prefix, jnp.ones(prefix.shape[:2], bool))
            condition = dataclasses.replace(condition, audio=audio)
        else:
            logits = model.lm_logits(expected.codes, [text])
            check_logits(logits, getattr(expected, f"{case}_logits"))
        logits = step_logits(lm, lm.fill_nulls(condition), expected.codes)
        wanted = getattr(expected, f"{case}_logits")
        for k, delay in enumerate(lm.config.delays):
            assert_close(logits[:, k, delay:FRAMES], wanted[:, k, : FRAMES - delay], what=case)


@jax.jit
def full_sequence(lm, steps, condition: Condition):
    return lm(steps, condition)


def step_logits(lm, condition: Condition, codes):
    steps = to_steps(jnp.asarray(codes), lm.config.delays, lm.config.special_token)
    return full_sequence(lm, steps[:, :, :FRAMES], condition)


def check_logits(ours, theirs):
    """Both leave out the last frames of delayed books, each in its own way."""
    ours = np.asarray(ours)
    predicted = ~np.isnan(ours)
    assert predicted.sum() > 0.8 * ours.size
    np.testing.assert_array_equal(predicted, ~np.isnan(theirs))
    assert_close(ours[predicted], theirs[predicted])


CASES = {
    "text": ("text", "nothing", "prompt"),
    "stereo": ("text", "nothing", "prompt"),
    "melody": ("both", "text", "melody", "nothing", "prompt", "double"),
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases]
)
def test_greedy_music_with_guidance(goldens, name, case):
    model, expected = goldens[name]
    text = None if case in ("melody", "nothing") else TEXT
    settings = {"duration": FRAMES / 50, "use_sampling": False, "cfg_coef": 3.0}
    if case == "prompt":
        settings["prompt_codes"] = expected.codes[:, :, :PROMPT]
    if case == "double":  # guided by the text and the melody, each by its own strength
        settings["cfg_coef_beta"] = 4.0
    if name == "melody" and case not in ("text", "nothing"):
        wav = melody(*MELODIES["short"])
        output = model.generate_with_chroma([text], wav, RATE, separate=False, **settings)
    else:
        output = model.generate([text], **settings)
    np.testing.assert_array_equal(output.codes, getattr(expected, f"{case}_codes"))
    if hasattr(expected, f"{case}_audio"):
        assert_close(output.audio, getattr(expected, f"{case}_audio"), what="sound")


@pytest.mark.parametrize(
    ("name", "length"), [("text", 1), ("text", 640), ("text", 3001), ("stereo", 3001)]
)
def test_codec(goldens, name, length):
    model, expected = goldens[name]
    codes = getattr(expected, f"audio_{length}_codes")
    audio = clip(model.audio_channels, length)
    np.testing.assert_array_equal(model.encode(audio, RATE), codes)
    assert_close(model.decode(codes), getattr(expected, f"audio_{length}_sound"), what="sound")


@pytest.mark.parametrize("name", MELODIES)
def test_chroma(goldens, name):
    """Longer than a window, shorter, and shorter than one frame: always 235 frames."""
    model, expected = goldens["melody"]
    chroma = model.chroma(melody(*MELODIES[name]), RATE, separate=False)
    assert (chroma.shape, chroma.dtype) == ((1, 235, 12), np.float32)
    np.testing.assert_array_equal(chroma[0].argmax(axis=1), getattr(expected, f"{name}_chroma"))
    assert (chroma.sum(axis=2) == 1).all()


def test_a_long_piece_moves_through_the_melody(goldens):
    """Three windows; in each the melody goes on where it is then, and begins again at its end."""
    model, expected = goldens["melody"]
    config = dataclasses.replace(model.config, max_duration=WINDOW)
    short = MusicGen(config, model.t5, model.lm, model.encodec, model.tokenizer)
    settings = {"duration": LONG, "extend_stride": STRIDE, "use_sampling": False}
    wav = melody(*LONG_MELODY)
    output = short.generate_with_chroma([TEXT], wav, RATE, separate=False, **settings)
    np.testing.assert_array_equal(output.codes, expected.windows_codes)


LONG_PIECES = {  # seconds, stride, frames of prompt; as the script of these goldens
    "half": (1.3, 0.6, 0),
    "three": (2.3, 0.6, 0),
    "full": (2.2, 0.6, 0),
    "odd": (1.77, 0.43, 0),
    "wide": (2.5, 0.9, 0),
    "prompt": (1.9, 0.6, 17),
    "late": (1.7, 0.6, 44),
}


@pytest.mark.parametrize("name", ["text", "stereo"])
def test_pieces_of_several_windows(goldens, name):
    """Tokens of every window, and the sound of them decoded as one."""
    whole, _ = goldens[name]
    config = dataclasses.replace(whole.config, max_duration=1.0)
    model = MusicGen(config, whole.t5, whole.lm, whole.encodec, whole.tokenizer)
    with np.load(GOLDENS / "long" / "expected.npz") as arrays:
        expected = {key.removeprefix(f"{name}_"): value for key, value in arrays.items()}
    text = model.text_condition([TEXT])
    for case, (seconds, stride, given) in LONG_PIECES.items():
        codes = expected[f"{case}_codes"].astype(np.int32)
        request = Request(
            config=config,
            descriptions=[TEXT],
            duration=seconds,
            extend_stride=stride,
            sampling=Sampling(use_sampling=False),
            prompt_codes=codes[:, :, :given] if given else None,
        )
        parts = dataclasses.replace(model.parts, config=config)
        piece = Piece(parts, request, lambda offset, texts: text)
        np.testing.assert_array_equal(assemble(piece.codes()), codes, case)
    for case in ("half", "three"):
        seconds, stride, _ = LONG_PIECES[case]
        settings = {"duration": seconds, "extend_stride": stride, "use_sampling": False}
        chunks = list(model.stream([TEXT], chunk_seconds=0.3, **settings))
        audio = np.concatenate(chunks, axis=2)[:, :, ::7]
        assert_close(audio, expected[f"{case}_audio"])
