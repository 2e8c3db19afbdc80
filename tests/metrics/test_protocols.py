"""The table of protocols, and PaSST's pieces under each."""

import types

import numpy as np
import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.passt import Passt
from musicgen_jax.metrics.protocols import AUDIOCRAFT, FADTK, PROTOCOLS, STABLE_AUDIO

RATE = 32000


@pytest.mark.parametrize(
    ("metric", "embedding", "names"),
    [
        ("fad", "vggish", ["audiocraft", "fadtk"]),
        ("kad", "encodec", ["fadtk"]),
        ("fad", "mert", ["fadtk"]),
        ("kld", "", ["audiocraft", "stable-audio"]),
        ("clap", "", ["audiocraft", "stable-audio"]),
        ("chroma", "", ["audiocraft", "fadtk", "stable-audio"]),
    ],
)
def test_who_defines_what(metric, embedding, names):
    found = [p.name for p in PROTOCOLS.values() if protocols.defines(p, metric, embedding)]
    assert found == names
    assert protocols.default(metric, embedding).name == names[0]


def test_an_unknown_protocol():
    with pytest.raises(UserError, match="one of audiocraft, fadtk, stable-audio, got 'mine'"):
        protocols.find("mine")


def test_only_audiocraft_changes_the_level_of_generated_clips():
    assert [p.loudness for p in (AUDIOCRAFT, FADTK, STABLE_AUDIO)] == [-14, None, None]


def pieces(protocol, seconds):
    network = types.SimpleNamespace(
        config=types.SimpleNamespace(seconds=protocols.find(protocol).passt.seconds)
    )
    passt = Passt(network, protocol)  # type: ignore[arg-type]
    return [len(p) / RATE for p in passt._pieces(np.ones(round(seconds * RATE)))]


@pytest.mark.parametrize(
    ("seconds", "audiocraft", "stable_audio"),
    [
        (0.1, [], []),
        (0.15, [], []),
        (0.2, [0.2], [0.2]),  # stable-audio-metrics does not pad what is nearly nothing
        (2, [2], [10]),
        (10, [10], [10]),
        (12, [12], [10, 10]),
        (15, [15], [10, 10]),
        (16, [16], [10, 10, 10]),
        (20.1, [20], [10, 10, 10, 10]),
        (41, [20, 20, 1], [10] * 8),
    ],
)
def test_the_pieces_of_a_clip(seconds, audiocraft, stable_audio):
    assert pieces("audiocraft", seconds) == audiocraft
    assert pieces("stable-audio", seconds) == stable_audio


def test_what_a_network_is_not_used_for():
    with pytest.raises(UserError, match="fadtk does not measure with PaSST"):
        Passt(None, "fadtk")  # type: ignore[arg-type]
