"""Seconds that the networks of `evaluate` take for 100 clips of 10 s, against their originals.

Question: how long does it take to measure a set of clips? Our side measures files as `evaluate`
does, several at once. The originals begin with waveforms, and take them one after the other or all
as one batch. The clips have the network's own rate, and both sides end with its embedding, front
end included, in float32 with random weights.

    pip install torchvggish hear21passt --no-deps --target WHERE
    python benchmarks/evaluate.py --networks clap vggish --originals WHERE --clips 10
    python benchmarks/evaluate.py --networks passt --originals WHERE --clips 4

CLAP's peer is transformers' ClapModel with its feature extractor. VGGish's and PaSST's are the real
packages in WHERE. What those import and do not need here is replaced by stand-ins.

For CLAP, which is mostly matrix products, it also prints what they alone would take: those of a
clip at the speed of a product of 1024 x 1024 numbers.
"""

import argparse
import functools
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx

from musicgen_jax import audio
from musicgen_jax.config import ClapConfig, HtsatConfig, PasstConfig, RobertaConfig, VggishConfig
from musicgen_jax.metrics.features import Extractor, describe

Ours = Callable[[np.ndarray, int], np.ndarray]
Side = Callable[[list[np.ndarray]], object]
TOKENS = (4096, 1024, 256, 64)  # of HTSAT's stages
RATES = {"clap": 48_000, "vggish": 16_000, "passt": 32_000}


def ours(network: str, quick: bool) -> Ours:
    """Our side, from float32 [C, W] and its rate to rows."""
    rngs = nnx.Rngs(0)
    if network == "clap":
        from musicgen_jax.metrics.clap import Clap, ClapNetwork

        text = RobertaConfig(num_layers=1)  # of no use here
        sound = HtsatConfig(dim=32, depths=(1, 1, 1, 1)) if quick else HtsatConfig()
        return Clap(ClapNetwork(ClapConfig(sound, text), rngs=rngs)).embed
    if network == "vggish":
        from musicgen_jax.metrics.vggish import Vggish, VggishNetwork

        return Vggish(VggishNetwork(VggishConfig(), rngs=rngs), "fadtk").embed
    from musicgen_jax.metrics.passt import Passt, PasstNetwork

    layers = 1 if quick else PasstConfig().num_layers
    return Passt(PasstNetwork(PasstConfig(num_layers=layers), rngs=rngs)).probabilities


def original(network: str, place: Path | None, quick: bool) -> Side:
    """The other side, from waveforms to rows, all in one batch.

    Raises:
      ImportError: its package is not there.
    """
    import torch

    if network == "clap":
        import transformers

        sizes = {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]}
        if quick:
            sizes = {"patch_embeds_hidden_size": 32, "hidden_size": 256, "depths": [1, 1, 1, 1]}
        config = transformers.ClapConfig(text_config={"num_hidden_layers": 1}, audio_config=sizes)
        model = transformers.ClapModel(config).eval()
        extract = transformers.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)

        def clap(waves):
            inputs = extract(waves, sampling_rate=RATES["clap"], return_tensors="pt")
            return model.get_audio_features(input_features=inputs["input_features"])

        return clap
    if place is None:
        raise ImportError(f"name the folder of {network}'s package with --originals")
    sys.path.insert(0, str(place))
    if network == "vggish":
        sys.modules["resampy"] = types.ModuleType("resampy")
        from torchvggish import torchvggish, vggish_input

        net = torchvggish.VGG(torchvggish.make_layers(), postprocess=False).eval()
        examples = vggish_input.waveform_to_examples
        return lambda waves: net(torch.cat([examples(w.astype(float), 16_000) for w in waves]))
    for name in ("timm", "timm.models", "timm.models._hub", "torchaudio"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models._hub"].download_cached_file = None  # type: ignore[attr-defined]
    # Kaldi's filters are torchaudio's; here any matrix of the size will do.
    banks = types.SimpleNamespace(
        get_mel_banks=lambda n, fft, *_, **__: (torch.rand(n, fft // 2), 0)
    )
    sys.modules["torchaudio"].compliance = types.SimpleNamespace(kaldi=banks)  # type: ignore
    torch.stft = functools.partial(_real_stft, torch.stft)
    from hear21passt.models.passt import PaSST
    from hear21passt.models.preprocess import AugmentMelSTFT

    layers = 1 if quick else 12
    net = PaSST(img_size=(128, 2000), stride=10, depth=layers, distilled=True, num_classes=527)
    net, front = net.eval(), AugmentMelSTFT(freqm=0, timem=0).eval()
    return lambda waves: net(front(torch.from_numpy(np.stack(waves)))[:, None])[0].softmax(-1)


def _real_stft(stft, *args, **kwargs):
    import torch

    kwargs["return_complex"] = True  # what newer versions of torch insist on
    return torch.view_as_real(stft(*args, **kwargs))


def sides(network: str, files: dict[str, Path], args: argparse.Namespace) -> dict[str, Callable]:
    """What to run in turn, by name."""
    import torch

    place, quick = args.originals, args.quick
    waves = [audio.read(file)[0][0] for file in files.values()]
    extractors = {"rows": Extractor("", ours(network, quick))}
    runs: dict[str, Callable] = {
        "musicgen_jax": lambda: [clip.values["rows"] for clip in describe(files, extractors)]
    }
    try:
        theirs = original(network, place, quick)
    except ImportError as error:
        print(f"{network}: no original: {error}")
        return runs

    def one_by_one():
        with torch.inference_mode():
            for wave in waves:
                theirs([wave])

    def in_one_batch():
        with torch.inference_mode():
            theirs(waves)

    return runs | {"original": one_by_one, "original, one batch": in_one_batch}


def clips(folder: Path, network: str, count: int) -> dict[str, Path]:
    """Files of noise at the network's rate, 10 s each."""
    rng, rate = np.random.default_rng(0), RATES[network]
    found = {f"{i}": folder / f"{i}.wav" for i in range(count)}
    for file in found.values():
        audio.write(file, rng.normal(0, 0.1, (1, 10 * rate)).astype(np.float32), rate)
    return found


def products_alone(config: HtsatConfig) -> float:
    """Seconds of the products of CLAP's audio tower for a clip, at the speed of a large product.

    Attention is counted as well, the front end is not.
    """
    side, operations = 1024, 0
    for width, depth, tokens in zip(config.widths, config.depths, TOKENS, strict=True):
        block = 12 * width * width + 2 * 64 * width  # of a token: weights, and a window of 64
        merge = 8 * width * width / 4 if tokens > TOKENS[-1] else 0
        operations += 2 * tokens * (depth * block + merge)
    matrix = jnp.ones((side, side), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="float32"))
    seconds = min(measuring.measure(lambda: product(matrix))[0] for _ in range(20))
    return operations * seconds / (2 * side**3)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--networks", nargs="+", choices=RATES, default=["clap"])
    parser.add_argument("--originals", type=Path, help="folder with torchvggish and hear21passt")
    parser.add_argument("--clips", type=int, default=10, help="clips in one run")
    args = parser.parse_args(argv)
    if args.quick:
        args.clips, args.rounds = 1, 1
    lines = []
    for network in RATES:  # CLAP first: stand-ins would disturb transformers
        if network not in args.networks:
            continue
        print(f"--- {network}, {args.clips} clips of 10 s")
        with tempfile.TemporaryDirectory() as folder:
            files = clips(Path(folder), network, args.clips)
            result = measuring.in_turn(sides(network, files, args), args.rounds)
        speeds = measuring.summary(result, args.clips, "clips", "musicgen_jax")
        seconds = {name: round(100 / v[0], 1) for name, v in speeds["per_second"].items()}
        print(f"seconds per 100 clips: {seconds}")
        values = {"network": network, "clips": args.clips, "seconds_per_100_clips": seconds}
        memory = {"peak_bytes": measuring.peak_memory()}
        if network == "clap":
            least = round(100 * products_alone(HtsatConfig()), 1)
            print(f"matrix products alone: {least} seconds per 100 clips")
            values["seconds_of_products"] = least
        lines.append(measuring.record("evaluate", args, **values, **memory, **speeds, sides=result))
    return lines


if __name__ == "__main__":
    main()
