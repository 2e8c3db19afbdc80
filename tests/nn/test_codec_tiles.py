"""The codec's convolutions tile by tile: what comes out is what the whole gives."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import seanet
from musicgen_jax.nn.encodec.tiles import Tiling, in_tiles
from tests.helpers.codecs import make_codec
from tests.helpers.tolerance import assert_close

TINY = EncodecConfig(n_filters=2, dimension=5, bins=7, lstm=1, ratios=(2, 3, 2))
KINDS = {
    "32 kHz": TINY,
    "24 kHz": dataclasses.replace(TINY, causal=True, conv_shortcut=True, trim_right_ratio=0.5),
    "48 kHz": dataclasses.replace(TINY, norm="time_group_norm", channels=2),
    "two blocks": dataclasses.replace(TINY, n_residual_layers=2, ratios=(3, 2)),
    "one ratio": dataclasses.replace(TINY, ratios=(4,), lstm=0),
    "odd kernels": dataclasses.replace(TINY, ratios=(5, 4, 2), kernel_size=5, last_kernel_size=3),
    "odd and causal": dataclasses.replace(TINY, ratios=(5, 3), causal=True, residual_kernel_size=5),
}

whole = jax.jit(lambda part, x: part(x))
tiled = jax.jit(lambda part, x: part.in_tiles(x))


@pytest.mark.parametrize(
    ("kind", "width"), [*itertools.product(KINDS, (59, 1501)), ("32 kHz", 1), ("32 kHz", 900)]
)
def test_tiles_give_what_the_whole_gives(kind, width, monkeypatch):
    monkeypatch.setattr(seanet, "_CPU_TILE", 1)
    config = KINDS[kind]
    encodec = make_codec(config, std=0.2)
    rng = np.random.default_rng(width)
    wav = rng.standard_normal((2, width, config.channels), np.float32)
    latents = rng.standard_normal((2, width, config.dimension), np.float32)
    for part, x in ((encodec.encoder, wav), (encodec.decoder, latents)):
        assert_close(tiled(part, x), whole(part, x), 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_shorter_reach_would_be_heard(side, monkeypatch):
    """Counter-proof: the reach is not much longer than it must be."""
    monkeypatch.setattr(seanet, "_CPU_TILE", 1)
    encodec = make_codec(dataclasses.replace(TINY, ratios=(2, 8, 8)), std=0.2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 300, TINY.dimension), np.float32))
    y = whole(encodec.decoder, x)

    def shortened(stack, x, tiling, tile):
        tiling = dataclasses.replace(tiling, **{side: getattr(tiling, side) - 2})
        return in_tiles(stack, x, tiling, tile)

    monkeypatch.setattr(seanet, "in_tiles", shortened)
    assert np.abs(jax.jit(lambda x: encodec.decoder.in_tiles(x))(x) - y).max() > 1e-3


def test_memory_between_the_layers_does_not_grow_with_the_clip():
    config = dataclasses.replace(TINY, n_filters=16, ratios=(2, 8, 8), lstm=0)
    encodec = make_codec(config, std=0.2)

    def needed(decode, frames: int) -> int:
        x = jnp.zeros((1, frames, config.dimension))
        return decode.lower(encodec.decoder, x).compile().memory_analysis().temp_size_in_bytes

    assert needed(tiled, 20_000) < needed(whole, 20_000) / 4


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 60),
    tile=st.integers(1, 9),
    reach=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_any_tile_of_any_stack(width, tile, reach):
    """A moving sum with zeros beyond both ends, up by two."""
    left, right = reach

    def stack(x, array=jnp):
        padded = array.pad(x, ((0, 0), (left, right), (0, 0)))
        y = sum(padded[:, i : i + x.shape[1]] for i in range(left + right + 1))
        return array.repeat(y, 2, axis=1)

    x = np.arange(width, dtype=np.float32)[None, :, None] ** 2
    y = jax.jit(lambda x: in_tiles(stack, x, Tiling(1, 2, left, right), tile))(x)
    np.testing.assert_array_equal(y, stack(x, np))
