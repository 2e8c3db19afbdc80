"""Commands that make something and can be taken up again, on tiny models and data."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from musicgen_jax import audio, testing
from musicgen_jax.commands import cli
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.storage import checkpoint
from tests.helpers import lm_runs, shallow
from tests.helpers.paths import GOLDENS, ROOT

RATE = 4000
WORDS = ["bells", "a calm waltz", "drums", "a jig on the flute", "tuba", "harp"]


@dataclasses.dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
      name: in reports.
      begin: its words, from the folder of inputs and the folder that it may write to.
      again: the words that take it up after it was cut off; the same unless it says so.
      mark: what is in the folder once it has to be taken up by other words.
      made: what it made, as bytes by name; equal whatever happened on the way.
    """

    name: str
    begin: Callable[[Path, Path], list[str]]
    made: Callable[[Path], dict[str, bytes]]
    again: Callable[[Path, Path], list[str]] | None = None
    mark: str = "run"

    def words(self, home: Path, out: Path) -> list[str]:
        """Its words for `out` as it is."""
        started = (out / self.mark).exists()
        return self.again(home, out) if started and self.again else self.begin(home, out)


def start(words: list[str], **pipes) -> subprocess.Popen[str]:
    """The command as a process of its own, on one CPU device, in a session of its own."""
    module = "tests.helpers.lm_runs" if words[0] == "lm_runs" else "musicgen_jax"
    words = words[1:] if words[0] == "lm_runs" else words
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env=environment,
        cwd=ROOT,
        text=True,
        errors="backslashreplace",
        stdout=subprocess.DEVNULL,
        **pipes,
    )


def prepare(home: Path) -> None:
    """Writes what the commands read."""
    windows = dataclasses.replace(shallow.TEXT, max_duration=1.0, name="short")
    testing.save_random_model(home / "model", windows)
    (home / "prompts.txt").write_text("\n".join(WORDS * 2))
    rng = np.random.default_rng(0)
    captions = ["ytid,caption"]
    for i, text in enumerate(WORDS):
        noise = rng.normal(0, 0.1, (1, 4 * RATE)).astype(np.float32)
        audio.write(home / f"music/{i}.wav", noise, RATE)
        (home / f"music/{i}.json").write_text(json.dumps({"description": text}))
        captions.append(f"{i},{text}")
    (home / "captions.csv").write_text("\n".join(captions))
    encode = ["train", "encode", home / "music", home / "codes", "--model", home / "model"]
    assert cli.main([str(word) for word in encode]) == 0


# --- What was made ------------------------------------------------------------------------------


def _files(pattern: str, *, without: tuple[str, ...] = ()) -> Callable[[Path], dict[str, bytes]]:
    def made(out: Path) -> dict[str, bytes]:
        found = {
            str(path.relative_to(out)): path.read_bytes()
            for path in sorted(out.rglob(pattern))
            if path.is_file() and path.name not in without and not path.name.endswith(".lock")
        }
        assert found, f"nothing like {pattern} in {out}"
        return found

    return made


def _weights(*names: str) -> Callable[[Path], dict[str, bytes]]:
    """Of model folders: every component's parameters and the config."""

    def made(out: Path) -> dict[str, bytes]:
        found = {}
        for name in names:
            info = checkpoint.load_info(out / name)
            for part, config in info.parts.items():
                tree = checkpoint.load_params(out / name, part, abstract_params(part, config))
                digest = hashlib.sha256()
                for path, leaf in jax.tree.leaves_with_path(tree):
                    digest.update(jax.tree_util.keystr(path).encode())
                    digest.update(np.asarray(leaf).tobytes())
                found[f"{name}/{part}"] = digest.digest()
        return found

    return made


def _evaluation(out: Path) -> dict[str, bytes]:
    report = json.loads((out / "report.json").read_text())
    return {
        **_files("*.wav")(out),
        "scores": json.dumps([report["metrics"], report["clips"]], sort_keys=True).encode(),
    }


def _lm_run(out: Path) -> dict[str, bytes]:
    records = json.dumps(lm_runs.records(out / "run")).encode()
    return {**_weights("run/model", "run/model-last")(out), "records": records}


# --- The commands -------------------------------------------------------------------------------


def _words(text: str) -> Callable[[Path, Path], list[str]]:
    def words(home: Path, out: Path) -> list[str]:
        return [word.format(home=home, out=out) for word in text.split()]

    return words


LONG = "generate bells --model {home}/model -o {out}/long.wav --duration 6 --seed 3"
FINETUNE = (
    "finetune {home}/model {home}/codes --run {out}/run --seconds 0.4 --batch-size 2"
    " --steps 12 --lora 2 --save-every 3 --log-every 2"
)

JOBS = (
    Job("generate --resume", _words(f"{LONG} --join crossfade --resume"), _files("*.wav")),
    Job(
        "batch",
        _words("batch {home}/prompts.txt {out} --model {home}/model --duration 0.5 --seed 5"),
        _files("*.wav"),
    ),
    Job(
        "evaluate",
        _words(
            "evaluate --model {home}/model --captions {home}/captions.csv --reference"
            " {home}/music --out {out} --duration 0.5 --metrics fad,chroma --embedding encodec"
        ),
        _evaluation,
    ),
    Job(
        "train encode",
        _words(
            "train encode {home}/music {out}/codes --model {home}/model --seconds 1"
            " --shard-mb 0.002"
        ),
        _files("*"),
    ),
    Job(
        "train lm",
        _words("lm_runs {out}/run {home}/model --steps 20"),
        _lm_run,
    ),
    Job(
        "finetune",
        _words(FINETUNE),
        _files("adapter.safetensors"),
        again=_words("finetune --run {out}/run --resume"),
    ),
    Job(
        "convert",
        _words(f"convert {GOLDENS}/mono/transformers {{out}}/model"),
        _weights("model"),
        again=_words("info {out}/model"),  # it is there, and whole
        mark="model",
    ),
)
