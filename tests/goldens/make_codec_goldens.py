"""Makes tests/goldens/codecs: tiny codecs of the 24 and 48 kHz kinds, and PyTorch's numbers.

    pip install -e ".[test,parity]"
    python -m tests.make_codec_goldens

Each stands there twice: as transformers' folder and as the bare dict of the original encodec, with
random weights. The references are transformers' own classes in float32. Seeds are tried until no
choice of a code hangs on the last bits.
"""

import re
import shutil

import numpy as np
import safetensors.numpy
import torch
import transformers

from tests.helpers import paths

GOLDENS = paths.GOLDENS / "codecs"
MARGIN = 5e-4  # gap between the best two codes, of the largest distance; rounding is near 1e-6
SIZES = {
    "num_filters": 4,
    "hidden_size": 12,
    "codebook_dim": 12,
    "codebook_size": 32,
    "num_lstm_layers": 1,
}
OUR_SIZES = {"n_filters": 4, "dimension": 12, "bins": 32, "lstm": 1, "conv_shortcut": True}
# The kinds at toy rates: 30 frames a second, 0.15 kb/s a book.
KINDS = {
    "24 kHz": (
        {"sampling_rate": 180, "upsampling_ratios": [3, 2], "target_bandwidths": [0.3, 0.75]},
        {"sample_rate": 180, "ratios": (3, 2), "n_q": 5, "causal": True},
    ),
    "24 kHz, half trimmed": (
        {
            "sampling_rate": 450,
            "upsampling_ratios": [5, 3],
            "target_bandwidths": [0.3, 0.75],
            "trim_right_ratio": 0.5,
            "num_residual_layers": 2,
        },
        {
            "sample_rate": 450,
            "ratios": (5, 3),
            "n_q": 5,
            "causal": True,
            "trim_right_ratio": 0.5,
            "n_residual_layers": 2,
        },
    ),
    "48 kHz": (
        {
            "sampling_rate": 200,
            "audio_channels": 2,
            "upsampling_ratios": [4, 2],
            "target_bandwidths": [0.25, 0.5],
            "norm_type": "time_group_norm",
            "use_causal_conv": False,
            "normalize": True,
            "chunk_length_s": 1.0,
            "overlap": 0.1,
        },
        {
            "sample_rate": 200,
            "channels": 2,
            "ratios": (4, 2),
            "n_q": 4,
            "norm": "time_group_norm",
            "normalize": True,
            "chunk_length_s": 1.0,
            "overlap": 0.1,
        },
    ),
}


WIDTHS = {"24 kHz": 113, "48 kHz": 545}


def make_model(kind, seed=0):
    """transformers' codec with random weights."""
    torch.manual_seed(seed)
    model = transformers.EncodecModel(transformers.EncodecConfig(**SIZES, **KINDS[kind][0])).eval()
    randomize(model)
    return model


def randomize(model):
    """Weights under which the sound picks the codes; small gains would leave it to the biases."""
    config = model.config
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "quantizer" in name or not tensor.is_floating_point():
                continue
            if name.endswith(("original0", "norm.weight")):
                tensor.uniform_(0.8, 1.6)
            else:
                tensor.normal_(0.0, 0.1 if "bias" in name else 0.5)
        clip = noise(config.audio_channels, config.sampling_rate)
        residual = model.encoder(torch.from_numpy(clip)).transpose(1, 2)[0]  # [T, D]
        for layer in model.quantizer.layers:  # codes near the latents, and near what they leave
            embed = layer.codebook.embed
            embed.copy_(residual.mean(0) + residual.std(0) * torch.randn_like(embed))
            residual = residual - embed[torch.cdist(residual, embed).argmin(1)]


def noise(channels, width, batch=1):
    rng = np.random.default_rng(width)
    return rng.standard_normal((batch, channels, width)).astype(np.float32)


def reference(model, audio, bandwidth):
    """Codes of each segment [B, K, T], levels [B] or None, and the waveform.

    Through the model's own steps: its `encode` cannot stack a last but one segment that is short,
    nor its `decode` add one whose last frame reaches beyond the last segment's.
    """
    wav, config = torch.from_numpy(audio), model.config
    width = config.chunk_length or wav.shape[2]
    stride = config.chunk_stride or wav.shape[2]
    codes, scales, waves = [], [], []
    with torch.no_grad():
        for start in range(0, wav.shape[2], stride):
            one, scale = model._encode_frame(wav[:, :, start : start + width], bandwidth)
            codes.append(one.numpy())
            scales.append(None if scale is None else scale.view(-1).numpy())
            wave = model._decode_frame(one, scale)
            left = wav.shape[2] - start
            waves.append(wave[..., :left] if start and left > stride else wave)
        wave = model._linear_overlap_add(waves, stride) if config.chunk_length else waves[0]
    return codes, scales, wave[..., : wav.shape[2]].numpy()


def margin(model, audio):
    """The smallest gap between the best two codes, relative to the largest distance."""
    wav, config = torch.from_numpy(audio), model.config
    width = config.chunk_length or wav.shape[2]
    gaps = []
    with torch.no_grad():
        for start in range(0, wav.shape[2], config.chunk_stride or wav.shape[2]):
            clip = wav[:, :, start : start + width]
            if config.normalize:
                clip = clip / (clip.mean(1, keepdim=True).pow(2).mean().sqrt() + 1e-8)
            residual = model.encoder(clip).transpose(1, 2)[0]  # [T, D]
            for layer in model.quantizer.layers:
                distances = torch.cdist(residual, layer.codebook.embed).pow(2)
                best = distances.topk(2, largest=False).values
                gaps.append(((best[:, 1] - best[:, 0]) / distances.max()).min().item())
                residual = residual - layer.codebook.embed[distances.argmin(1)]
    return min(gaps)


def official_state(model):
    """The state dict with the names of weight norm that the official files have."""
    names = (("parametrizations.weight.original0", "weight_g"),)
    names += (("parametrizations.weight.original1", "weight_v"),)
    state = {}
    for key, tensor in model.state_dict().items():
        for new, old in names:
            key = key.replace(new, old)
        state[key] = tensor.contiguous()
    return state


def original_state(model):
    """The same in the spelling of the original encodec: encoder.model.0.conv.conv.weight_g."""
    state = {}
    for key, tensor in official_state(model).items():
        key = key.replace(".codebook.", "._codebook.").replace("quantizer.", "quantizer.vq.", 1)
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.*)", key)
        if match and "lstm" not in key:
            side, index, rest = match.groups()
            layer = getattr(model, side).layers[int(index)]
            conv = "convtr" if type(layer).__name__ == "EncodecConvTranspose1d" else "conv"
            rest = re.sub(r"(^|\.)conv\.", rf"\1{conv}.{conv}.", rest)
            rest = re.sub(r"(^|\.)norm\.", rf"\1{conv}.norm.", rest)
            key = f"{side}.model.{index}.{rest}"
        elif match:
            key = key.replace(".layers.", ".model.", 1)
        state[key] = tensor
    return state


def main() -> None:
    """Replaces the folder."""
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for kind, width in WIDTHS.items():
        audio = noise(KINDS[kind][0].get("audio_channels", 1), width)
        seed = next(s for s in range(1000) if margin(make_model(kind, s), audio) > MARGIN)
        model = make_model(kind, seed)
        folder = GOLDENS / kind.replace(" ", "").lower()
        (folder / "transformers").mkdir(parents=True)
        model.config.save_pretrained(folder / "transformers")
        arrays = {key: tensor.numpy() for key, tensor in official_state(model).items()}
        safetensors.numpy.save_file(arrays, folder / "transformers" / "model.safetensors")
        torch.save(original_state(model), folder / "original.th")
        codes, scales, wave = reference(model, audio, model.config.target_bandwidths[-1])
        used = [len(np.unique(book)) for book in np.concatenate(codes, axis=2)[0]]
        assert min(used) > 5, used
        arrays = {"audio": audio, "codes": np.concatenate(codes, axis=2), "wave": wave}
        if model.config.normalize:
            arrays["scales"] = np.stack(scales, axis=1)
        np.savez_compressed(folder / "expected.npz", **arrays)
        print(f"{kind}: seed {seed}, margin {margin(model, audio):.1e}")


if __name__ == "__main__":
    main()
