"""Runs an exported MusicGen with NumPy, JAX and flatbuffers. Copy and change it as you like.

    exported = Exported("musicgen-small-export")
    vectors = exported.text(ids, mask)
    codes = exported.codes(vectors, mask, frames=500, seed=0)  # int32 [B, K, T]
    audio = exported.audio(codes)  # float32 [B, C, W]

Ids are int32 [B, L] from T5's tokenizer (tokenizer.model, for sentencepiece) and end with 1 (</s>);
the rest is 0. The mask is bool [B, L], True up to the 1; a row without a single True is
music without a description. B and L are those of manifest.json.
"""

import json
from pathlib import Path

import jax
import jax.export
import numpy as np


class Exported:
    """The programs and weights of a folder that `musicgen-jax export` made."""

    def __init__(self, folder):
        folder = Path(folder)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.weights, self.programs = {}, {}
        for name, entry in self.manifest["weights"].items():
            with np.load(folder / entry["file"]) as file:  # .view: NumPy's files lack bfloat16
                arrays = {key: file[key].view(a["dtype"]) for key, a in entry["arrays"].items()}
            self.weights[name] = jax.device_put(arrays)
        for name, entry in self.manifest["programs"].items():
            program = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
            state = [i for i, a in enumerate(entry["arguments"]) if a["name"] == "state"]
            self.programs[name] = jax.jit(program.call, donate_argnums=state)

    def run(self, name, *arguments):
        """Runs a program; its weights are the first argument."""
        weights = self.manifest["programs"][name]["arguments"][0]["weights"]
        return self.programs[name](self.weights[weights], *arguments)

    def text(self, ids, mask):
        """Vectors [B, L, D] of token ids."""
        return self.run("text", np.asarray(ids, np.int32), np.asarray(mask, bool))

    def codes(
        self, vectors, mask, frames, seed=0, greedy=False, temperature=1.0, top_p=0.0, cfg_coef=3.0
    ):
        """Codes [B, K, frames]; clip i is drawn by the seed and i."""
        if not 0 < frames <= self.manifest["frames"]:
            raise ValueError(f"frames must be from 1 to {self.manifest['frames']}, got {frames}")
        rows = np.arange(self.manifest["batch"], dtype=np.uint32)
        seeds = np.full_like(rows, seed)
        mask = np.asarray(mask, bool)
        state, constant = self.run("start", vectors, mask, seeds, rows, np.int32(frames))
        delays = self.manifest["delays"]
        numbers = [np.float32(x) for x in (temperature, top_p, cfg_coef)]
        count = np.int32(frames + max(delays))  # or fewer at a time, to stream
        state = self.run("greedy" if greedy else "sample", state, constant, count, *numbers)
        steps = np.asarray(state["steps"])  # [B, K, S]; codebook k begins at step 1 + its delay
        return np.stack([steps[:, k, 1 + d : 1 + d + frames] for k, d in enumerate(delays)], axis=1)

    def audio(self, codes):
        """Waveform [B, C, W] of codes, from -1 to 1 and in places beyond."""
        return np.asarray(self.run("audio", np.asarray(codes, np.int32)))
