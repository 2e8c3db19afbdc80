"""The table of numbers for each kind of device."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax.runtime.tuning import CPU, GPU, TPU, Tuning, tuning
from tests.helpers.paths import ROOT


def test_every_platform_has_a_tuning():
    assert (tuning("cpu"), tuning("tpu")) == (CPU, TPU)
    assert tuning("gpu") == tuning("cuda") == tuning("something new") == GPU
    assert tuning() == CPU  # tests run on one


def test_nothing_else_asks_for_the_kind_of_device():
    files = (ROOT / "musicgen_jax").rglob("*.py")
    asking = [file.name for file in files if "default_backend(" in file.read_text("utf-8")]
    assert asking == ["tuning.py"]


@given(st.integers(1, 2000))
def test_texts_are_padded_to_few_lengths(tokens):
    length = CPU.text_length(tokens)
    assert length >= tokens
    assert length == 16 or (length < 2 * tokens and length & (length - 1) == 0)


def test_heads_stay_on_their_device():
    assert TPU.spread(16, 4).heads_per_block == 4
    assert TPU.spread(16, 3).heads_per_block is None  # they do not divide: all in one block
    assert CPU.spread(16, 4) == CPU


def test_lengths_that_do_not_increase_are_refused():
    with pytest.raises(ValueError, match="cache_lengths must increase"):
        Tuning(cache_lengths=(16, 8))
