"""What docs/from-transformers.md says of transformers is so."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.helpers.paths import ROOT  # noqa: E402

PAGE = (ROOT / "docs/from-transformers.md").read_text()


def test_its_default_top_k_is_the_one_that_the_page_names():
    assert transformers.GenerationConfig()._get_default_generation_params()["top_k"] == 50
    assert "theirs is 50" in PAGE


def test_what_the_page_names_exists():
    for name in re.findall(r"`(Musicgen\w+|Encodec\w+|AutoProcessor)\b", PAGE):
        assert hasattr(transformers, name), name
    model = transformers.MusicgenForConditionalGeneration
    assert callable(model.get_unconditional_inputs)
    assert callable(model.from_sub_models_pretrained)
    # Its processor imports torchaudio when it is looked into, so only its source is read.
    melody = importlib.util.find_spec(
        "transformers.models.musicgen_melody.processing_musicgen_melody"
    )
    assert melody is not None
    assert "def get_unconditional_inputs(" in Path(melody.origin).read_text()
    from transformers.models.musicgen import processing_musicgen as processing

    assert callable(processing.MusicgenProcessor.batch_decode)
    assert {"do_sample", "guidance_scale", "max_new_tokens"} <= vars(
        transformers.GenerationConfig()
    ).keys()
    assert "streamer" in inspect.signature(model.generate).parameters
