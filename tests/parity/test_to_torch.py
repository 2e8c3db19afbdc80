"""What is written for transformers runs there: the same greedy tokens as here."""

import json
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from musicgen_jax import MusicGen  # noqa: E402
from musicgen_jax.convert import convert, export_torch  # noqa: E402
from tests.helpers.paths import GOLDENS  # noqa: E402

T5, CODEC = str(GOLDENS / "mono/t5-base"), str(GOLDENS / "audiocraft/text")
TEXT = "slow strings, a warm bass and a calm piano melody in the background"
FRAMES = 10
CLASSES = {
    "melody": transformers.MusicgenMelodyForConditionalGeneration,
    "text": transformers.MusicgenForConditionalGeneration,
    "stereo": transformers.MusicgenForConditionalGeneration,
}


@pytest.mark.parametrize("name", CLASSES)
def test_transformers_plays_the_same(name, tmp_path):
    """From audiocraft's file, through ours, to transformers'."""
    convert(GOLDENS / "audiocraft" / name, tmp_path / "ours", t5_from=T5, encodec_from=CODEC)
    export_torch(tmp_path / "ours", tmp_path / "theirs", format="transformers")
    model, info = CLASSES[name].from_pretrained(
        tmp_path / "theirs", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    model.save_pretrained(tmp_path / "again")  # by its own code, the window included
    assert json.loads((tmp_path / "again/config.json").read_text())["segment_duration"] == 30
    ours = MusicGen.from_pretrained(tmp_path / "ours", dtype="float32")
    codes = ours.generate([TEXT], duration=FRAMES / 50, use_sampling=False).codes

    tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path / "theirs")
    inputs = tokenizer([TEXT], return_tensors="pt")
    np.testing.assert_array_equal(inputs["input_ids"], ours.tokenizer([TEXT])[0])
    expected = greedy_codes(model, **inputs)
    np.testing.assert_array_equal(codes, expected)
    assert len(np.unique(codes)) > 6


def greedy_codes(model, **inputs) -> np.ndarray:
    """Transformers' codes [1, K, FRAMES]; what it returns is sound, so they are overheard."""
    seen, decode = [], model.audio_encoder.decode

    def spy(audio_codes, **settings):
        seen.append(audio_codes[0].numpy())
        return decode(audio_codes, **settings)

    model.audio_encoder.decode = spy
    with torch.no_grad():
        model.generate(
            **inputs,
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=FRAMES + 3,  # it counts what the delays take away
        )
    books = model.decoder.num_codebooks
    return seen[0] if len(seen) == 1 else np.stack(seen, axis=2).reshape(1, books, -1)


def test_processors_load(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(GOLDENS / "mono/transformers", tmp_path / "ours")
        export_torch(tmp_path / "ours", tmp_path / "theirs", format="transformers")
        processor = transformers.MusicgenProcessor.from_pretrained(tmp_path / "theirs")
    inputs = processor(text=[TEXT], return_tensors="pt")
    assert inputs["input_ids"][0, -1] == 1
