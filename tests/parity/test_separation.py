"""HTDemucs against demucs itself, with random weights: every module, then from file to stems."""

# ruff: noqa: E402 - what needs torch and demucs is imported after the question whether they are there

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("demucs")

from demucs import states
from demucs.hf import load_safetensors_model
from demucs.htdemucs import HTDemucs as TorchHTDemucs
from safetensors.torch import save_file

from musicgen_jax.conditioning.segments import in_segments
from musicgen_jax.conditioning.separator import Separator, _forward
from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.convert import convert, htdemucs
from musicgen_jax.convert.pipeline import abstract_params, convert_part
from musicgen_jax.convert.rules import apply_table
from musicgen_jax.convert.settings import Part
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.nn.htdemucs.spectrogram import channels_to_complex, spectrogram, waveform
from musicgen_jax.nn.htdemucs.transformer import positions_2d
from tests.goldens.make_goldens_separation import (
    RATE,
    SEGMENT,
    applied,
    forward,
    noise,
    package,
    random_model,
    separated,
)
from tests.helpers.tolerance import assert_close


def part_of(model) -> Part:
    """The model as the converter sees it, without a file."""
    args, kwargs = model._init_args_kwargs
    segment = {"numerator": model.segment.numerator, "denominator": model.segment.denominator}
    tensors = {
        name: LazyTensor(tuple(value.shape), np.dtype(np.float32), value.detach().numpy)
        for name, value in model.state_dict().items()
    }
    assert not args
    return Part("demucs", tensors, kwargs | {"segment": segment}, "demucs")


def to_jax(model) -> Separator:
    part = part_of(model)
    config = htdemucs.derive_config(part)
    return Separator.build(config, lambda _: convert_part("separator", part, config))


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def ours(model):
    return to_jax(model)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@torch.no_grad()
def torch_call(function, *arrays, **kwargs):
    out = function(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays), **kwargs)
    return out[0].numpy() if isinstance(out, tuple) else out.numpy()


def to_theirs(x: np.ndarray) -> np.ndarray:
    """[B, T, F, C] -> [B, C, F, T]."""
    return np.asarray(x).transpose(0, 3, 2, 1)


# --- Modules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1203, 641])
def test_spectrogram_and_back(model, width):
    audio = draw(1, 2, width)
    spectra = torch_call(model._spec, audio)
    got = spectrogram(jnp.asarray(audio), 512)
    for part in (np.real, np.imag):
        assert_close(part(got.swapaxes(-1, -2)), part(spectra), 1e-5)
    # Any spectra, not only those of a waveform: the stems' are none.
    spectra = spectra * draw(*spectra.shape)
    back = torch_call(model._ispec, spectra, length=width)
    assert_close(waveform(jnp.asarray(spectra).swapaxes(-1, -2), width), back, 1e-5)


def test_complex_as_channels(model):
    x = draw(2, 3, 8, 4 * 2 * 2)  # [B, T, F, S C 2]
    theirs = torch_call(model._mask, draw(1), to_theirs(x).reshape(2, 4, 4, 8, 3))
    got = channels_to_complex(jnp.asarray(x)).reshape(2, 4, 2, 3, 8)
    np.testing.assert_array_equal(got.swapaxes(-1, -2), theirs)


@pytest.mark.parametrize("index", [0, 2])
def test_layers_of_the_frequency_branch(model, ours, index):
    encoder = jax.jit(lambda layer, x: layer(x))
    channels, bins = (4, 256) if index == 0 else (16, 16)
    x = draw(2, 7, bins, channels)
    expected = torch_call(model.encoder[index], to_theirs(x))
    got = encoder(ours.model.encoder[index], x)
    assert_close(to_theirs(got), expected, 1e-5)
    decoder = jax.jit(lambda layer, x, skip: layer(x, skip, bins))
    y, skip = draw(*got.shape), 0.5 * draw(*got.shape)[::-1]
    expected = torch_call(model.decoder[2 - index], to_theirs(y), to_theirs(skip), length=7)
    assert_close(to_theirs(decoder(ours.model.decoder[2 - index], y, skip)), expected, 1e-5)


@pytest.mark.parametrize("width", [76, 301])
def test_layers_of_the_time_branch(model, ours, width):
    index = 1 if width == 301 else 2
    x = draw(2, width, 1, 8 * index)
    expected = torch_call(model.tencoder[index], x[:, :, 0].swapaxes(1, 2))
    got = jax.jit(lambda layer, x: layer(x))(ours.model.tencoder[index], x)
    assert_close(got[:, :, 0].swapaxes(1, 2), expected, 1e-5)
    y, skip = draw(*got.shape), draw(*got.shape)[::-1]
    expected = torch_call(
        model.tdecoder[2 - index],
        y[:, :, 0].swapaxes(1, 2),
        skip[:, :, 0].swapaxes(1, 2),
        length=width,
    )
    decoder = jax.jit(lambda layer, x, skip: layer(x, skip, width))
    got = decoder(ours.model.tdecoder[2 - index], y, skip)
    assert_close(got[:, :, 0].swapaxes(1, 2), expected, 1e-5)


def test_transformer(model, ours):
    x, xt = draw(2, 5, 4, 24), draw(2, 13, 24)
    with torch.no_grad():
        expected, expected_t = model.crosstransformer(
            torch.from_numpy(to_theirs(x).copy()), torch.from_numpy(xt).transpose(1, 2)
        )
    got, got_t = jax.jit(lambda t, x, xt: t(x, xt))(ours.model.crosstransformer, x, xt)
    assert_close(to_theirs(got), expected.numpy(), 1e-5)
    assert_close(got_t.swapaxes(1, 2), expected_t.numpy(), 1e-5)


def test_positions_at_the_released_size():
    from demucs.transformer import create_2d_sin_embedding

    expected = create_2d_sin_embedding(512, 8, 336).numpy()
    assert_close(to_theirs(positions_2d(336, 8, 512)[None]), expected, 1e-4)


# --- Whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {
            "sources": ["vocals", "rest"], "audio_channels": 1, "depth": 2, "nfft": 128,
            "dconv_mode": 1, "bottom_channels": 0, "t_cross_first": True, "t_layers": 2,
            "t_hidden_scale": 1.5, "t_weight_pos_embed": 0.5, "growth": 3, "context": 2,
            "freq_emb": 0.7, "segment": Fraction(302, RATE),
        },
        {
            "sources": ["other"], "depth": 2, "nfft": 128, "dconv_mode": 2, "dconv_depth": 1,
            "kernel_size": 4, "stride": 2, "freq_emb": 0, "t_layers": 0, "bottom_channels": 0,
            "segment": Fraction(203, RATE),
        },
    ],
    ids=["other choices", "no transformer"],
)  # fmt: skip
def test_other_settings_and_batches(changes):
    model = random_model(seed=1, **changes)
    ours = to_jax(model)
    mix = np.stack([noise(ours.config.segment_length, ours.config.audio_channels)] * 2)
    mix[1] *= -3  # the rows are normalised each by itself
    mix[1] += 0.5
    expected = forward(model, mix)
    assert 0.05 < np.abs(expected).max() < 100
    assert_close(_forward(ours.model, mix), expected, 5e-5)


@pytest.mark.parametrize("length", [1, 2, 602, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3001])
def test_any_length(model, ours, length):
    audio = noise(length)
    stems = range(len(ours.sources))
    assert_close(ours._separate(audio, tuple(stems), None), applied(model, audio), 5e-5)


@pytest.mark.parametrize("offset", [0, 211, 500])
def test_shift(model, ours, offset):
    audio = noise(1500)
    got = in_segments(
        lambda mix: np.asarray(_forward(ours.model, mix[None]))[0], audio, SEGMENT, 500 - offset
    )
    assert_close(got, applied(model, audio, offset), 5e-5)


def test_shifts_are_drawn_from_the_whole_range(ours, monkeypatch):
    from musicgen_jax.conditioning import separator as module

    leads = []

    def record(process, audio, length, lead):
        leads.append(lead)
        return np.zeros((4, *audio.shape), np.float32)

    monkeypatch.setattr(module, "in_segments", record)
    for seed in range(300):
        ours(noise(10), RATE, seed=seed)
    assert 0 <= min(leads) < 20
    assert 480 < max(leads) <= 500
    assert len(set(leads)) > 150


@pytest.mark.parametrize("audio", [noise(1500) * 0.01, noise(700) + 3.0], ids=["quiet", "offset"])
def test_normalised(model, ours, audio):
    got = ours(audio, RATE)
    assert_close(np.stack(list(got.values())), separated(model, audio), 1e-4)


# --- Files -------------------------------------------------------------------------------------


def save_safetensors(model, path) -> None:
    """The file that demucs' Hub repositories hold (demucs/hf.py reads it)."""
    value = package(model, half=False)
    klass = f"{value['klass'].__module__}.{value['klass'].__name__}"
    segment = value["kwargs"]["segment"]
    fraction = {
        "_type": "fraction",
        "numerator": segment.numerator,
        "denominator": segment.denominator,
    }
    metadata = {
        "klass": klass,
        "args": json.dumps(value["args"]),
        "kwargs": json.dumps(value["kwargs"] | {"segment": fraction}),
    }
    save_file({name: x.contiguous() for name, x in value["state"].items()}, path, metadata)


@pytest.mark.parametrize("kind", ["half", "single", "safetensors"])
def test_a_file_as_demucs_saves_it(model, ours, tmp_path, kind):
    folder = tmp_path / "download"
    folder.mkdir()
    if kind == "safetensors":
        save_safetensors(model, folder / "955717e8.safetensors")
        (folder / "htdemucs.yaml").write_text("models: ['955717e8']\n")
        assert load_safetensors_model(folder / "955717e8.safetensors").segment == model.segment
    else:
        states.save_with_checksum(package(model, half=kind == "half"), folder / "955717e8.th")
        (file,) = folder.iterdir()
        assert states.load_model(file).segment == model.segment
    convert(folder if kind != "single" else file, tmp_path / "out")
    loaded = Separator.from_pretrained(tmp_path / "out")
    assert loaded.config == ours.config
    # The model's numbers are such that half precision holds them.
    leaves = zip(jax.tree.leaves(loaded.model), jax.tree.leaves(ours.model), strict=True)
    assert all(np.array_equal(a, b) for a, b in leaves)


def test_the_released_size_fits_strictly():
    kwargs = {
        "sources": ["drums", "bass", "other", "vocals"],
        "dconv_mode": 3,
        "bottom_channels": 512,
        "segment": Fraction(39, 5),
    }
    with torch.device("meta"):
        model = TorchHTDemucs(**kwargs, rescale=0, emb_smooth=False)
    zeros = {
        name: LazyTensor(tuple(x.shape), np.dtype(np.float16), lambda x=x: np.zeros(x.shape, "f2"))
        for name, x in model.state_dict().items()
    }
    segment = {"numerator": 39, "denominator": 5}
    config = htdemucs.derive_config(Part("demucs", zeros, kwargs | {"segment": segment}, "it"))
    assert config == HTDemucsConfig()
    assert config.segment_length == int(model.segment * model.samplerate)
    apply_table(htdemucs.TABLE, zeros, abstract_params("separator", config), "it")
