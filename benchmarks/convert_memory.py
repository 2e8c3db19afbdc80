"""Peak memory and time of a conversion at an official model's true size.

Question: does the converter hold one component and not the model twice? Made-up weights in
audiocraft's pair of files (the language model in float16) and a t5-base folder, of the true
shapes; no torch anywhere. The bound is the largest component on disk + 1.5 GB.

    python benchmarks/convert_memory.py --model facebook/musicgen-large --folder /scratch

Needs about twice the model's size on disk (17 GB for musicgen-large), all removed at the end.
Appends one JSON line to benchmarks/results.jsonl. Exits with 1 above the bound.
"""

import argparse
import datetime
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from musicgen_jax.config import ENCODEC_32KHZ, OFFICIAL_MODELS, MusicGenConfig, T5Config
from musicgen_jax.convert import lm, t5
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.convert.torch_writer import write_torch

ALLOWANCE = 1.5e9  # bytes beyond the largest component


def lm_shapes(config: MusicGenConfig) -> dict[str, tuple[int, ...]]:
    """Audiocraft's keys and their shapes."""
    D, E, F, V = config.lm.dim, config.lm.text_dim, config.lm.ffn_dim, config.lm.card
    by_target = {
        "text_conditioner/output_proj/weight": (D, E),
        "emb/embedding": (V + 1, D),
        "heads/weight": (V, D),
        "in_proj/weight": (3 * D, D),
        "out_proj/weight": (D, D),
        "linear1/weight": (F, D),
        "linear2/weight": (D, F),
    }
    shapes = {}
    for rule in lm.AUDIOCRAFT.rules:
        shape = next((s for end, s in by_target.items() if rule.target.endswith(end)), (D,))
        (template,) = rule.templates
        count = config.lm.num_layers if "{i}" in template else config.lm.n_q
        for n in range(count) if "{" in template else (0,):
            shapes[template.format(i=n, k=n)] = shape
    return shapes


def t5_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the encoder."""
    E, F, inner = config.d_model, config.d_ff, config.d_kv * config.num_heads
    by_key = {
        "shared.weight": (config.vocab_size, E),
        "relative_attention_bias.weight": (
            config.relative_attention_num_buckets,
            config.num_heads,
        ),
        "SelfAttention.o.weight": (E, inner),
        "wi.weight": (F, E),
        "wo.weight": (E, F),
    } | {f"SelfAttention.{name}.weight": (inner, E) for name in "qkv"}
    shapes = {}
    for rule in t5.TABLE.rules:
        (template,) = rule.templates
        shape = next((s for end, s in by_key.items() if template.endswith(end)), (E,))
        for n in range(config.num_layers) if "{i}" in template else (0,):
            shapes[template.format(i=n)] = shape
    return shapes


def codec_shapes() -> dict[str, tuple[int, ...]]:
    """Audiocraft's keys and shapes of the 32 kHz codec."""
    c, shapes = ENCODEC_32KHZ, {}

    def conv(name: str, first: int, second: int, kernel: int, out: int) -> None:
        shapes[f"{name}.weight_g"] = (first, 1, 1)
        shapes[f"{name}.weight_v"] = (first, second, kernel)
        shapes[f"{name}.bias"] = (out,)

    def block(side: str, i: int, dim: int) -> None:
        conv(f"{side}.model.{i}.block.1.conv.conv", dim // 2, dim, 3, dim // 2)
        conv(f"{side}.model.{i}.block.3.conv.conv", dim, dim // 2, 1, dim)

    def lstm(side: str, i: int, dim: int) -> None:
        for n in range(c.lstm):
            for kind in ("ih", "hh"):
                shapes[f"{side}.model.{i}.lstm.weight_{kind}_l{n}"] = (4 * dim, dim)
                shapes[f"{side}.model.{i}.lstm.bias_{kind}_l{n}"] = (4 * dim,)

    dim, i = c.n_filters, 0
    conv("encoder.model.0.conv.conv", dim, c.channels, c.kernel_size, dim)
    for ratio in reversed(c.ratios):
        block("encoder", i + 1, dim)
        i += 3
        conv(f"encoder.model.{i}.conv.conv", 2 * dim, dim, 2 * ratio, 2 * dim)
        dim *= 2
    lstm("encoder", i + 1, dim)
    conv(f"encoder.model.{i + 3}.conv.conv", c.dimension, dim, c.last_kernel_size, c.dimension)
    conv("decoder.model.0.conv.conv", dim, c.dimension, c.kernel_size, dim)
    lstm("decoder", 1, dim)
    i = 3
    for ratio in c.ratios:
        conv(f"decoder.model.{i}.convtr.convtr", dim, dim // 2, 2 * ratio, dim // 2)
        dim //= 2
        block("decoder", i + 1, dim)
        i += 3
    conv(f"decoder.model.{i}.conv.conv", c.channels, dim, c.last_kernel_size, c.channels)
    for k in range(c.n_q):
        book = f"quantizer.vq.layers.{k}._codebook"
        shapes |= {f"{book}.inited": (1,), f"{book}.cluster_size": (c.bins,)}
        shapes |= {f"{book}.{name}": (c.bins, c.dimension) for name in ("embed", "embed_avg")}
    return shapes


def write_official(folder: Path, config: MusicGenConfig) -> None:
    """The files of a model, with made-up numbers."""
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)

    def lazy(shape: tuple[int, ...], dtype: np.dtype) -> LazyTensor:
        return LazyTensor(shape, dtype, lambda: np.resize(noise.astype(dtype), shape))

    half, single = np.dtype(np.float16), np.dtype(np.float32)
    state = {key: lazy(shape, half) for key, shape in lm_shapes(config).items()}
    settings = f"transformer_lm:\n  num_heads: {config.lm.num_heads}\n"
    write_torch(folder / "state_dict.bin", {"best_state": state, "xp.cfg": settings})
    state = {key: lazy(shape, single) for key, shape in codec_shapes().items()}
    write_torch(folder / "compression_state_dict.bin", {"best_state": state, "xp.cfg": ""})
    (folder / "t5-base").mkdir()
    state = {key: lazy(shape, single).read() for key, shape in t5_shapes(config.t5).items()}
    safetensors.numpy.save_file(state, folder / "t5-base" / "model.safetensors")
    (folder / "t5-base" / "spiece.model").write_bytes(b"made up")


def measure(source: Path, out: Path) -> tuple[float, float]:
    """Peak resident bytes and seconds of a conversion in its own process."""
    code = (
        "import resource, sys\n"
        "from musicgen_jax.convert import convert\n"
        "convert(sys.argv[1], sys.argv[2], log=print)\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, source, out], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    print(done.stdout, end="")
    match = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert match is not None
    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss
    return int(match[1]) * unit, seconds


def main() -> int:
    """Makes the files, converts them, and compares the peak with the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="facebook/musicgen-small", choices=OFFICIAL_MODELS)
    parser.add_argument("--folder", type=Path, help="where there is room; by default the temporary")
    args = parser.parse_args()
    config = OFFICIAL_MODELS[args.model]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        write_official(source, config)
        peak, seconds = measure(source, out)
        components = json.loads((out / "config.json").read_text())["components"]
        largest = max(component["bytes"] for component in components.values())
        shutil.rmtree(out)
    bound = largest + ALLOWANCE
    line = {
        "benchmark": "convert_memory",
        "date": datetime.date.today().isoformat(),
        "model": args.model,
        "peak_gb": round(peak / 1e9, 3),
        "largest_component_gb": round(largest / 1e9, 3),
        "bound_gb": round(bound / 1e9, 3),
        "seconds": round(seconds, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    print(json.dumps(line))
    with (Path(__file__).parent / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return int(peak > bound)


if __name__ == "__main__":
    sys.exit(main())
