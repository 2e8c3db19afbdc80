"""Makes tests/goldens/data/expected.json: audiocraft's own prompts and segments.

    python -m tests.make_data_goldens AUDIOCRAFT

AUDIOCRAFT is a checkout of github.com/facebookresearch/audiocraft. Of its requirements this needs
torch, transformers, soundfile, einops, julius and omegaconf; whatever else it imports is replaced
by a stand-in that nothing calls. Its dice are loaded: each case says how they fall.
"""

import argparse
import dataclasses
import importlib.machinery
import itertools
import json
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch

from tests.goldens.make_goldens_style import StandIns
from tests.helpers.paths import GOLDENS

OUT = GOLDENS / "data" / "expected.json"
FULL = {
    "title": " Enracinement ", "artist": "Voyager I", "key": "C# Minor", "bpm": "120.5",
    "genre": " Electronic ", "moods": ["Uplifting", " Calm", "", None],
    "keywords": "Bright, pulsing cool",
    "description": "A cool song. From Voyager...", "name": "electro_1", "instrument": "Mix",
}  # fmt: skip
RAW = [
    FULL,
    {},
    {"key": "", "bpm": "", "keywords": "", "moods": [], "genre": "None", "description": None},
    {"key": "C major, A minor", "bpm": 98, "moods": "Sad", "keywords": 5, "genre": ["a", "b"]},
    {
        "bpm": "fast",
        "moods": float("nan"),
        "keywords": ["None", "x y"],
        "description": "  spaced  ",
    },
    {"bpm": 7.25, "title": 3, "description": ".", "moods": None, "key": " f ", "genre": " "},
    {"description": " ", "instrument": "Piano, Strings", "keywords": "None", "bpm": "1_20"},
    {"description": "Ends with a dot.", "moods": [1, "dark\tambient"], "key": "None", "genre": "É"},
]
TEXTS = ["warm  pads, slow", "one", "a b c d e f", " leads and trails "]
RATE, SECONDS = 1000, 2.0
FILES = [(0.7, 1.0), (2.0, None), (5.3, 0.25), (9.999, 3.0)]  # duration, weight
PLACES = [0.0, 0.3, 0.77, 0.999]


def wave(duration: float) -> np.ndarray:
    """The audio of a file, as in tests/test_training_data.py: int16 [2, W], each sample another."""
    ramp = np.arange(round(duration * RATE))
    return np.stack([ramp, -2 * ramp]).astype(np.int16)


class OurStandIns(StandIns):
    """But for what reads the audio, and with what normalizes text."""

    def find_spec(self, fullname, path=None, target=None):
        """See there."""
        root = fullname.partition(".")[0]
        if root == "soundfile":
            return None
        if root == "num2words":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return super().find_spec(fullname, path, target)


def merged_texts() -> list[dict]:
    """Texts by audiocraft's augmentation, for every choice of fields and some orders."""
    from audiocraft.data import music_dataset
    from audiocraft.data.music_dataset import MusicInfo, augment_music_info_description

    names = [field.name for field in dataclasses.fields(MusicInfo)]
    cases = []
    for raw in RAW:
        empty = {"meta": None, "seek_time": 0, "n_frames": 0, "total_frames": 0}
        info = MusicInfo.from_dict(raw | empty | {"sample_rate": 1, "channels": 1})
        valid = [
            name
            for name in names
            if name in ("key", "bpm", "genre", "moods", "instrument", "keywords")
            and getattr(info, name) is not None
        ]
        choices = [valid, valid[::2], valid[1:2], []]
        for kept, keep_description, turn in itertools.product(choices, (True, False), (0, 1)):
            falls = [0.0, *(0.0 if name in kept else 0.9 for name in names)]
            falls.append(0.9 if keep_description else 0.0)

            def shuffle(pairs, turn=turn):
                pairs[:] = pairs[::-1] if turn else pairs

            uniform = mock.Mock(side_effect=falls)
            dice = types.SimpleNamespace(uniform=uniform, shuffle=shuffle)
            with mock.patch.object(music_dataset, "random", dice):
                out = augment_music_info_description(info, 0.5, 0.5, 0.5)
            cases.append(
                {
                    "raw": raw,
                    "fields": kept[::-1] if turn else kept,
                    "keep_description": keep_description,
                    "text": out.description,
                }
            )
    return cases


def parsed() -> list[dict]:
    """What audiocraft takes for the values of each raw object."""
    from audiocraft.data.music_dataset import MusicInfo

    out = []
    for raw in RAW:
        getters = {name: MusicInfo.attribute_getter(name) for name in FULL}
        values = {name: getters[name](raw[name]) for name in FULL if name in raw}
        out.append({"raw": raw, "values": {n: v for n, v in values.items() if v is not None}})
    return out


def dropped_words() -> list[dict]:
    """Texts as the T5 conditioner hands them to its tokenizer, with words left out."""
    from audiocraft.modules import conditioners

    cases = []
    for text, seed in itertools.product(TEXTS, range(3)):
        falls = np.random.default_rng(seed).random(len(text.split(" "))).round(3).tolist()
        seen: list[str] = []

        class Tokens(dict):
            def to(self, device):
                return self

        def tokenize(entries, seen=seen, **kwargs):
            seen.extend(entries)
            return Tokens(attention_mask=torch.ones(1, 1))

        conditioner = mock.Mock(
            normalize_text=False, word_dropout=0.4, training=True, t5_tokenizer=tokenize
        )
        dice = types.SimpleNamespace(random=mock.Mock(side_effect=falls))
        with mock.patch.object(conditioners, "random", dice):
            conditioners.T5Conditioner.tokenize(conditioner, [text])
        cases.append({"text": text, "falls": falls, "word_dropout": 0.4, "kept": seen[0]})
    return cases


def segments() -> tuple[list[dict], list[dict]]:
    """Probabilities of files, and segments of each from several places."""
    from audiocraft.data import audio_dataset
    from audiocraft.data.audio_dataset import AudioDataset, AudioMeta

    probabilities, drawn = [], []
    with tempfile.TemporaryDirectory() as folder:
        metas = []
        for i, (duration, weight) in enumerate(FILES):
            path = f"{folder}/{i}.flac"
            soundfile.write(path, wave(duration).T, RATE)
            metas.append(AudioMeta(path, duration, RATE, None, weight))
        for on_duration, on_weight in itertools.product((False, True), repeat=2):
            kwargs = {"sample_on_duration": on_duration, "sample_on_weight": on_weight}
            dataset = AudioDataset(metas, SECONDS, **kwargs)
            values = dataset._get_sampling_probabilities().tolist()
            probabilities.append({**kwargs, "probabilities": values})
        for i, place, ratio in itertools.product(range(len(FILES)), PLACES, (0.5, 0.8)):
            dataset = AudioDataset(
                metas, SECONDS, sample_rate=RATE, channels=1, min_segment_ratio=ratio,
                return_info=True,
            )  # fmt: skip
            dataset.sample_file = lambda index, rng, i=i: metas[i]
            fall = torch.tensor([place], dtype=torch.float64)
            with mock.patch.object(audio_dataset.torch, "rand", lambda *a, fall=fall, **k: fall):
                audio, info = dataset[0]
            drawn.append(
                {
                    "file": i,
                    "place": place,
                    "min_segment_ratio": ratio,
                    "seek_time": info.seek_time,
                    "n_frames": info.n_frames,
                    "first": float(audio[0, 0]),
                    "sum": float(audio.double().sum()),
                    "total": audio.shape[1],
                }
            )
    return probabilities, drawn


def main() -> None:
    """Replaces tests/goldens/data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audiocraft", type=Path)
    sys.path.insert(0, str(parser.parse_args().audiocraft))
    sys.meta_path.insert(0, OurStandIns())
    probabilities, drawn = segments()
    expected = {
        "files": FILES,
        "rate": RATE,
        "seconds": SECONDS,
        "parsed": parsed(),
        "merged": merged_texts(),
        "words": dropped_words(),
        "probabilities": probabilities,
        "segments": drawn,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(expected, indent=0) + "\n", encoding="utf-8")
    print(f"{len(expected['merged'])} texts, {len(drawn)} segments,", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
