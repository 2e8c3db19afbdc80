"""The tables of settings know all that the installed libraries' own classes have."""

import inspect

import pytest

from musicgen_jax.convert.known_settings import TABLES, unknown


@pytest.mark.parametrize(
    ("component", "names"),
    [
        ("lm", ["MusicgenDecoderConfig", "MusicgenMelodyDecoderConfig"]),
        ("t5", ["T5Config"]),
        ("encodec", ["EncodecConfig"]),
        ("mert", ["HubertConfig"]),
    ],
)
def test_transformers(component, names):
    transformers = pytest.importorskip("transformers")
    for name in names:
        settings = getattr(transformers, name)().to_dict()
        assert len(settings) > 20
        assert unknown(settings, TABLES["transformers", component]) == []


def test_demucs():
    htdemucs = pytest.importorskip("demucs.htdemucs")
    names = list(inspect.signature(htdemucs.HTDemucs.__init__).parameters)[1:]
    assert sorted(names) == sorted(TABLES["demucs", "separator"])
