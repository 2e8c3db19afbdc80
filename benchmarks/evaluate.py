"""Seconds that the networks of `evaluate` take for 100 clips of 10 s, against their originals.

Question: how long does it take to measure a set of clips? Both sides begin with a waveform at the
network's own rate and end with its embedding, front end included, in float32 with random weights.

    pip install torchvggish hear21passt --no-deps --target WHERE
    python benchmarks/evaluate.py --networks clap vggish passt --originals WHERE --rounds 5

CLAP's peer is transformers' ClapModel with its feature extractor. VGGish's and PaSST's are the real
packages in WHERE. What those import and do not need here is replaced by stand-ins.
"""

import functools
import sys
import types
from collections.abc import Callable
from pathlib import Path

import measuring
import numpy as np
from flax import nnx

from musicgen_jax.config import ClapConfig, HtsatConfig, PasstConfig, RobertaConfig, VggishConfig

Side = Callable[[np.ndarray], object]
RATES = {"clap": 48_000, "vggish": 16_000, "passt": 32_000}


def ours(network: str, quick: bool) -> Side:
    """Our side, from float32 [W] to rows."""
    rngs, rate = nnx.Rngs(0), RATES[network]
    if network == "clap":
        from musicgen_jax.metrics.clap import Clap, ClapNetwork

        text = RobertaConfig(num_layers=1)  # of no use here
        sound = HtsatConfig(dim=32, depths=(1, 1, 1, 1)) if quick else HtsatConfig()
        clap = Clap(ClapNetwork(ClapConfig(sound, text), rngs=rngs))
        return lambda wav: clap.embed(wav[None], rate)
    if network == "vggish":
        from musicgen_jax.metrics.vggish import Vggish, VggishNetwork

        vggish = Vggish(VggishNetwork(VggishConfig(), rngs=rngs), "fadtk")
        return lambda wav: vggish.embed(wav[None], rate)
    from musicgen_jax.metrics.passt import Passt, PasstNetwork

    layers = 1 if quick else PasstConfig().num_layers
    passt = Passt(PasstNetwork(PasstConfig(num_layers=layers), rngs=rngs))
    return lambda wav: passt.probabilities(wav[None], rate)


def original(network: str, place: Path | None, quick: bool) -> Side:
    """The other side.

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

        def clap(wav):
            inputs = extract(wav, sampling_rate=RATES["clap"], return_tensors="pt")
            return model.get_audio_features(input_features=inputs["input_features"])

        return clap
    if place is None:
        raise ImportError(f"name the folder of {network}'s package with --originals")
    sys.path.insert(0, str(place))
    if network == "vggish":
        sys.modules["resampy"] = types.ModuleType("resampy")
        from torchvggish import torchvggish, vggish_input

        net = torchvggish.VGG(torchvggish.make_layers(), postprocess=False).eval()
        return lambda wav: net(vggish_input.waveform_to_examples(wav.astype(np.float64), 16_000))
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
    return lambda wav: net(front(torch.from_numpy(wav)[None])[:, None])[0].softmax(-1)


def _real_stft(stft, *args, **kwargs):
    import torch

    kwargs["return_complex"] = True  # what newer versions of torch insist on
    return torch.view_as_real(stft(*args, **kwargs))


def sides(network: str, place: Path | None, clips: int, quick: bool) -> dict[str, Callable]:
    import torch

    rng, rate = np.random.default_rng(0), RATES[network]
    waves = [rng.normal(0, 0.1, 10 * rate).astype(np.float32) for _ in range(clips)]
    mine = ours(network, quick)
    runs: dict[str, Callable] = {"musicgen_jax": lambda: [mine(wave) for wave in waves]}
    try:
        theirs = original(network, place, quick)
    except ImportError as error:
        print(f"{network}: no original: {error}")
        return runs

    def peer():
        with torch.inference_mode():
            for wave in waves:
                theirs(wave)

    return runs | {"original": peer}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--networks", nargs="+", choices=RATES, default=["clap"])
    parser.add_argument("--originals", type=Path, help="folder with torchvggish and hear21passt")
    parser.add_argument("--clips", type=int, default=2, help="clips in one run")
    args = parser.parse_args(argv)
    if args.quick:
        args.clips, args.rounds = 1, 1
    lines = []
    for network in RATES:  # CLAP first: stand-ins would disturb transformers
        if network not in args.networks:
            continue
        print(f"--- {network}, {args.clips} clips of 10 s")
        runs = sides(network, args.originals, args.clips, args.quick)
        result = measuring.in_turn(runs, args.rounds)
        speeds = measuring.summary(result, args.clips, "clips", "musicgen_jax")
        seconds = {name: round(100 / v[0], 1) for name, v in speeds["per_second"].items()}
        print(f"seconds per 100 clips: {seconds}")
        values = {"network": network, "clips": args.clips, "seconds_per_100_clips": seconds}
        memory = {"peak_bytes": measuring.peak_memory()}
        lines.append(measuring.record("evaluate", args, **values, **memory, **speeds, sides=result))
    return lines


if __name__ == "__main__":
    main()
