"""Every reader of files from outside, with a small valid file of the project's own making."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from musicgen_jax import audio, testing
from musicgen_jax.audio import clip_settings
from musicgen_jax.commands.batch_folder import read_prompts
from musicgen_jax.config import toml
from musicgen_jax.convert import pipeline
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.generation.window_store import WindowStore
from musicgen_jax.generation.windows import Window
from musicgen_jax.listening import analysis, study
from musicgen_jax.listening import captions as study_captions
from musicgen_jax.listening.answers import Answer, Answers
from musicgen_jax.metrics import captions, statistics_file
from musicgen_jax.metrics.frechet import gaussian_of
from musicgen_jax.model import MusicGen
from musicgen_jax.storage import checkpoint, codec_file, lora_file
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training.codec_settings import CodecRunConfig
from musicgen_jax.training.data import sources
from musicgen_jax.training.data.shards import CodeShards
from musicgen_jax.training.records import records
from tests.helpers.paths import GOLDENS
from tests.helpers.studies import study_of

EARLIER, MONO = GOLDENS / "earlier", GOLDENS / "mono"


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader and how to try it.

    Attributes:
      name: of its tests and of its folder in the corpus.
      make: writes what is valid into an empty folder and returns the file to damage.
      read: reads it, from that file; all that follows from its content is looked at.
      costly: whether one reading takes more than about 50 ms.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    costly: bool = False


def _copied(source: Path, file: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        if source.is_file():
            return Path(shutil.copy(source, folder))
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return folder / file

    return make


def _written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return make


def _sound(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / f"tone.{suffix}"
        wave = 0.3 * np.sin(np.arange(3200) * 0.1)
        soundfile.write(file, np.stack([wave, -wave], axis=1), 16000)
        return file

    return make


def _model(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        testing.save_random_model(folder / "model")
        return folder / "model" / file

    return make


def _load_model(file: Path) -> None:
    folder = next(p for p in file.parents if p.name == "model")
    MusicGen.from_pretrained(folder)


def _statistics(folder: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(9, 3))
    gaussian = gaussian_of(rows.mean(0), np.cov(rows.T), 9)
    return statistics_file.write(folder / "s.npz", gaussian, {"embedding": "vggish"})


def _derive(file: Path) -> None:
    found = pipeline.find_parts(str(file.parent))
    configs, parts = pipeline.derive_configs(found.parts)
    pipeline.whole_config(configs, parts, "fuzzed")


def _records(file: Path) -> None:
    records(file.parent)


def _audio(file: Path) -> None:
    found = audio.info(file)
    wav, rate = audio.read(file)
    assert wav.shape[0] <= max(found.channels, 1)
    audio.convert_audio(wav, rate, 16000, 1)


def _clip(folder: Path) -> Path:
    made = {"model": "nano", "prompt": "a waltz", "program": "batch=1"}
    wave = np.zeros((1, 800), np.float32)
    return audio.write(folder / "x.wav", wave, 8000, comment=clip_settings.dump(made))


def _shards(file: Path) -> None:
    shards = CodeShards.open(file.parent)
    for i in range(min(len(shards), 3)):
        shards.codes(i)


def _resumable(file: Path) -> None:
    settings = json.loads((EARLIER / "resumable" / "settings.json").read_text())
    store = WindowStore(file.parent, settings, batch=1, codebooks=4, card=10**6)
    store.load(Window(number=0, start=0, length=150, prompt=0, overlap=0))


_PROMPTS = "\n".join(
    json.dumps(line) for line in ["a waltz", {"prompt": "a jig", "seed": 7}, {"prompt": None}]
)
_MANIFEST = "\n".join(
    json.dumps({"path": f"{name}.wav", "duration": 2.5, "sample_rate": 16000, "weight": None})
    for name in "ab"
)
_CAPTIONS = 'ytid,start_s,caption\n-abc,30,"a calm, slow waltz"\nxyz,0,"drums"\n'


def _study(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made = study_of(2, 2)
        study.clips_folder(folder).mkdir()
        for item in made.items:
            for clip in item.clips:
                (study.clips_folder(folder) / clip.file).touch()
        (folder / "study.json").write_bytes(study.dump(made))
        with Answers(folder, made) as store:
            rater = store.join("Ada")
            for i, item in enumerate(made.items):
                for k, clip in enumerate(item.clips):
                    score = 10 * k + i + 1
                    store.record(Answer(rater.number, clip.file, "overall", score, 1.0, 1e9))
        return folder / file

    return make


def _results(file: Path) -> None:
    found = study.load(file.parent)
    with Answers(file.parent, found, create=False) as store:
        raters, answers = store.raters(), store.all()
    analysis.tabulate(found, raters, answers)
    analysis.answers_csv(found, raters, answers, [])


READERS = [
    Reader("model config", _model("config.json"), _load_model, costly=True),
    Reader("model info", _model("config.json"), lambda file: checkpoint.load_info(file.parent)),
    Reader("adapter", _copied(EARLIER / "adapter.safetensors"), lora_file.load),
    Reader("codes", _copied(EARLIER / "codes.npz"), codec_file.read),
    Reader("tokenizer", _copied(MONO / "t5-base/spiece.model"), Tokenizer),
    Reader("torch", _copied(MONO / "audiocraft/state_dict.bin"), read_torch),
    Reader(
        "transformers config", _copied(MONO / "transformers", "config.json"), _derive, costly=True
    ),
    Reader(
        "transformers weights",
        _copied(MONO / "transformers", "model.safetensors"),
        _derive,
        costly=True,
    ),
    Reader(
        "settings",
        _written("s.toml", toml.dump(CodecRunConfig())),
        lambda file: toml.read(file, CodecRunConfig),
    ),
    Reader("prompts", _written("p.jsonl", _PROMPTS), lambda file: read_prompts(file, 0)),
    Reader(
        "plain prompts", _written("p.txt", "a waltz\na jig\n"), lambda file: read_prompts(file, 0)
    ),
    Reader(
        "manifest",
        _written("m.jsonl", _MANIFEST),
        lambda file: sources.find(file, sources.Skipped()),
    ),
    Reader("captions", _written("c.csv", _CAPTIONS), captions.read),
    Reader("captions of a study", _written("c.csv", _CAPTIONS), study_captions.read),
    Reader("study", _study("study.json"), _results),
    Reader("answers", _study("answers.sqlite"), _results),
    Reader("records", _written("metrics.jsonl", '{"step": 1, "loss": 2.5}\n' * 3), _records),
    Reader("settings of a clip", _clip, clip_settings.read),
    Reader("shards index", _copied(EARLIER / "shards", "index.json"), _shards),
    Reader("shards codes", _copied(EARLIER / "shards", "codes-00000.npy"), _shards),
    Reader("statistics", _statistics, lambda file: statistics_file.read(file, "vggish")),
    Reader("resumable settings", _copied(EARLIER / "resumable", "settings.json"), _resumable),
    Reader("resumable codes", _copied(EARLIER / "resumable", "window-00000.npy"), _resumable),
    *(
        Reader(f"sound {suffix}", _sound(suffix), _audio)
        for suffix in ("wav", "flac", "ogg", "mp3")
    ),
]
