"""Small listening studies, their servers as processes, and raters without a browser."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax import audio
from musicgen_jax.listening.prepare import Plan, prepare
from musicgen_jax.listening.study import FORMAT, Clip, Item, Study
from tests.helpers.paths import ROOT

RATE = 16_000
SYSTEMS = ("ours", "other", "reference")


def tone(seconds: float, frequency: float, noise: float, seed: int) -> np.ndarray:
    """A note with overtones up to 6 kHz and noise, float32 [1, W]."""
    t = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * frequency * k * t) / k for k in range(1, int(6000 / frequency)))
    wave = 0.1 * wave + noise * np.random.default_rng(seed).normal(size=t.size)
    return wave[None].astype(np.float32)


def make_clips(root: Path, pieces: int = 2, seconds: float = 1.0) -> dict[str, Path]:
    """Writes a clip of each system for each piece; {system: folder}."""
    for s, system in enumerate(SYSTEMS):
        for i in range(pieces):
            wav = tone(seconds, 220 + 40 * i, 0.05 / (1 + s), seed=10 * s + i)
            audio.write(root / system / f"piece{i}.wav", wav, RATE)
    return {system: root / system for system in SYSTEMS}


def make_captions(root: Path, pieces: int = 2, melodies: int = 1) -> Path:
    """Writes a text for each piece, and a melody for the first ones."""
    lines = []
    for i in range(pieces):
        line = {"id": f"piece{i}", "text": f"a tune, number {i}"}
        if i < melodies:
            audio.write(root / "melodies" / f"{i}.wav", tone(1, 220, 0, 0), RATE)
            line["melody"] = f"melodies/{i}.wav"
        lines.append(json.dumps(line))
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root / "captions.jsonl"


def make_study(root: Path, pieces: int = 2, *, texts: bool = True, **plan: Any) -> Study:
    """Makes a study in `root / "study"`."""
    systems = make_clips(root, pieces)
    captions = make_captions(root, pieces) if texts else None
    return prepare(Plan(systems, captions, **plan), root / "study", note=lambda line: None)


def study_of(pieces: int, per_rater: int, seed: int = 0, systems: int = 4) -> Study:
    """A study without files."""
    names = tuple(f"system{k}" for k in range(systems))
    items = tuple(
        Item(str(i), None, None, tuple(
            Clip(name, f"{i * systems + k:016x}.wav") for k, name in enumerate(names)
        ))
        for i in range(pieces)
    )  # fmt: skip
    return Study(FORMAT, "id", "inputs", "title", seed, per_rater, 1.0, 48_000, names, items)


class Process:
    """`musicgen-jax listen --out FOLDER` in a process of its own."""

    def __init__(self, folder: Path, *words: str, port: int = 0):
        command = [sys.executable, "-m", "musicgen_jax", "listen", "--out", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *words],
            cwd=ROOT,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline(), self.process.stdout.readline()]
        if not lines[1].startswith("open "):
            raise AssertionError(self.stop() or lines)
        self.url = lines[1].split()[1]
        self.port = int(self.url.split("#")[0].rstrip("/").rpartition(":")[2])

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        """Ends it; what it had to say on stderr."""
        self.process.terminate()
        return self.process.communicate()[1]


@contextlib.contextmanager
def serving(folder: Path, *words: str, port: int = 0) -> Iterator[Process]:
    """A server that is gone at the end of the block."""
    process = Process(folder, *words, port=port)
    try:
        yield process
    finally:
        process.kill()


class Client:
    """Asks a server, one connection per question."""

    def __init__(self, port: int, **headers: str):
        self.port, self.headers = port, headers

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of an answer."""
        sent = {name.replace("_", "-"): value for name, value in (self.headers | headers).items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a page that must be there."""
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        """Sends JSON: status and JSON of the answer."""
        data = json.dumps(value).encode()
        status, _, body = self.ask("POST", path, data, Content_Type="application/json")
        return status, json.loads(body)

    def join(self, name: str = "") -> str:
        """A new rater's key."""
        status, value = self.post("/api/raters", {"name": name})
        assert status == 201, value
        return value["rater"]
