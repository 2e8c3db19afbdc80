"""Configs as JSON, and what they refuse."""

import dataclasses
import json
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from musicgen_jax.config import (
    OFFICIAL_MODELS,
    ClapConfig,
    EncodecConfig,
    HTDemucsConfig,
    LMConfig,
    MertConfig,
    MusicGenConfig,
    PasstConfig,
    StyleConfig,
    VggishConfig,
    from_dict,
    to_dict,
)
from musicgen_jax.testing import DEBUG, DEBUG_STYLE


@pytest.mark.parametrize("config", [*OFFICIAL_MODELS.values(), DEBUG, DEBUG_STYLE])
def test_json_round_trip(config):
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(MusicGenConfig, values) == config
    assert (values["mert"] is None) == (config.mert is None)


def test_what_is_none_by_default_may_be_left_out():
    values = to_dict(DEBUG)
    del values["mert"], values["lm"]["style"]
    assert from_dict(MusicGenConfig, values) == DEBUG


def lm_with(style):
    return to_dict(DEBUG_STYLE.lm) | {"style": style}


@pytest.mark.parametrize(
    ("style", "message"),
    [
        (3, "lm.style must be an object with fields, got 3"),
        (False, "lm.style must be an object with fields, got False"),
        ({"wide": 3}, "unknown field lm.style.wide: known are feature_dim, dim"),
        ({"dim": None}, "lm.style.dim must be a whole number, got None"),
        ({"dim": 9}, "dim 9 must be even"),
        ({"n_q": 0}, "lm.style.n_q must be from 1 to 10000000, got 0"),
    ],
)
def test_a_broken_part_is_named(style, message):
    with pytest.raises(ValueError, match=message):
        from_dict(LMConfig, lm_with(style), "lm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mert": None}, "belong together"),
        ({"lm": dataclasses.replace(DEBUG_STYLE.lm, style=None)}, "belong together"),
        ({"mert": MertConfig()}, "features of width 12, MERT gives 768"),
    ],
)
def test_style_and_mert_fit_each_other(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DEBUG_STYLE, **change)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"conv_kernel": (3,)}, "of one length"),
        ({"num_heads": 7}, "must divide by 7 heads"),
        ({"conv_pos_groups": 5}, "5 groups"),
    ],
)
def test_mert_refuses_what_does_not_divide(sizes, message):
    with pytest.raises(ValueError, match=message):
        MertConfig(**sizes)


def test_frames_of_mert():
    """75 a second, less what the first window needs."""
    config = MertConfig()
    assert [config.num_frames(n) for n in (0, 399, 400, 719, 720)] == [0, 0, 1, 1, 2]
    assert config.num_frames(30 * config.sample_rate) == 2249
    assert StyleConfig().ds_factor * 15 >= config.num_frames(3 * config.sample_rate)


def numbers_of(config):
    """Names and types of the numbers in a dataclass of settings, and in those inside it."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from numbers_of(part)
            elif part in (int, float) and get_origin(hint) is not Annotated:
                yield f"{config.__name__}.{name}", part


def test_every_number_has_a_range():
    """1e308 seconds at 16,000 samples a second once overflowed."""
    configs = (MusicGenConfig, HTDemucsConfig, VggishConfig, PasstConfig, ClapConfig)
    assert [name for config in configs for name in numbers_of(config)] == []


@pytest.mark.parametrize("seconds", [1e308, 1e-308, -1.0, float("nan"), float("inf")])
def test_seconds_beyond_reason(seconds):
    with pytest.raises(ValueError, match="max_duration"):
        from_dict(MusicGenConfig, to_dict(DEBUG) | {"max_duration": seconds})
    with pytest.raises(ValueError, match="chunk_length_s"):
        from_dict(EncodecConfig, to_dict(DEBUG.encodec) | {"chunk_length_s": seconds})
