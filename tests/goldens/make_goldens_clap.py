"""Writes tests/goldens/metrics/clap.npz with laion-clap's own network and front end.

    pip download laion-clap==1.1.7 torchlibrosa==0.1.0 --no-deps, and unzip both into WHERE
    pip install librosa --target WHERE
    python tests/goldens/make_goldens_clap.py WHERE

The network is small and its weights are drawn by name, so only outputs are stored. What laion-clap
imports but does not need here is replaced by stand-ins; librosa gives torchlibrosa its window and
mel filters. RoBERTa's weights come from the Hub, so a small RoBERTa takes their place.
"""

import importlib.abc
import importlib.machinery
import sys
import types
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

GOLDENS = Path(__file__).parent / "metrics"
DIM, DEPTHS, HEADS, SPACE = 8, (2, 2, 3, 2), (1, 2, 4, 4), 24
VOCABULARY, TEXT_DIM, TEXT_LAYERS = 330, 768, 1  # laion-clap has no other width
SIGNALS = {"music": 480_000, "noise": 300_000, "clicks": 100_001, "silence": 48_000}
TEXTS = ((0, 5, 6, 7, 2), (0, 329, 2), (0, *range(40, 115), 2), (0, 2))
_MISSING = {"torchvision", "h5py", "webdataset", "braceexpand", "pandas", "wget", "timm", "ftfy"}


def signal(name: str) -> np.ndarray:
    """Float32 [W] at 48 kHz."""
    n = SIGNALS[name]
    rng, t = np.random.default_rng(0), np.arange(n) / 48000
    if name == "music":  # a chord of plucked notes over a quiet noise, near both ends of the bank
        notes = sum(
            np.sin(2 * np.pi * f * t) / (i + 1) for i, f in enumerate((55, 440, 660, 13_500))
        )
        return (0.2 * notes * np.exp(-2 * (t % 0.5)) + rng.normal(0, 1e-3, n)).astype(np.float32)
    if name == "noise":  # in bursts, as speech
        return (rng.normal(0, 0.1, n) * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)
    wave = np.zeros(n, np.float32)
    if name == "clicks":
        wave[::7001] = 0.9
    return wave


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name: norms around 1, all others around 0, deviation 0.3."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_mean"):
        return rng.normal(-40, 10, shape).astype(np.float32)
    if name.endswith("running_var"):
        return rng.uniform(100, 400, shape).astype(np.float32)
    norm = name.endswith("weight") and len(shape) == 1
    # Wide sums would saturate the pooler.
    deviation = 0.1 if shape[-1:] == (TEXT_DIM,) and "embeddings" not in name else 0.3
    return rng.normal(float(norm), deviation, shape).astype(np.float32)


def ids() -> np.ndarray:
    """The token ids of `TEXTS`, int64 [texts, 77]."""
    rows = np.ones((len(TEXTS), 77), np.int64)
    for row, text in zip(rows, TEXTS, strict=True):
        row[: len(text)] = text
    return rows


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that are not installed and of which nothing is used."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in _MISSING:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: mock.MagicMock(name=name)
        return module

    def exec_module(self, module):
        pass


def model(source: str):
    """laion-clap's CLAP with the weights above, and its way to fill a clip."""
    import torch
    import transformers

    sys.meta_path.append(_StandIns())
    sys.path[:0] = [source, f"{source}/laion_clap"]
    small = transformers.RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_DIM,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=12,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    roberta = transformers.RobertaModel(small)
    transformers.RobertaModel.from_pretrained = lambda *_, **__: roberta
    for tokenizer in ("BertTokenizer", "RobertaTokenizer", "BartTokenizer"):
        getattr(transformers, tokenizer).from_pretrained = lambda *_, **__: None
    from clap_module import htsat
    from clap_module import model as module
    from training.data import get_audio_features

    module.create_htsat_model = lambda config, *_: htsat.HTSAT_Swin_Transformer(
        embed_dim=DIM, depths=list(DEPTHS), num_heads=list(HEADS), config=config
    )
    audio = module.CLAPAudioCfp("HTSAT", "tiny", hop_size=480)
    text = module.CLAPTextCfg(77, VOCABULARY, 512, 8, 12, "roberta")
    clap = module.CLAP(DIM * 8, audio, text, joint_embed_shape=SPACE).eval()
    with torch.no_grad():
        for name, tensor in clap.state_dict().items():
            if tensor.dtype == torch.float32 and _drawn(name):
                tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return clap, get_audio_features


def _drawn(name: str) -> bool:
    return not any(part in name for part in ("extractor", "attn_mask"))


def main(source: str) -> None:
    """Computes and writes."""
    import torch

    clap, get_audio_features = model(source)
    arrays = {}
    with torch.no_grad():
        for name in SIGNALS:
            wave = torch.from_numpy(signal(name))
            features = get_audio_features({}, wave, 480_000, "rand_trunc", "repeatpad", {})
            tower = clap.audio_branch
            power = tower.spectrogram_extractor(features["waveform"][None])
            arrays[f"{name}/spectrum"] = tower.logmel_extractor(power)[0, 0, ::20].numpy()
            arrays[f"{name}/embedding"] = clap.get_audio_embedding([features])[0].numpy()
        tokens = torch.from_numpy(ids())
        batch = {"input_ids": tokens, "attention_mask": (tokens != 1).long()}
        arrays["texts"] = clap.get_text_embedding(batch).numpy()
    state = clap.state_dict()
    arrays["melW"] = state["audio_branch.logmel_extractor.melW"].numpy()
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    arrays["shapes"] = np.array([f"{name} {' '.join(map(str, s))}" for name, s in shapes.items()])
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS / "clap.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
