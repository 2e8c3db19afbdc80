"""Writes tests/goldens/style: a small style model in the official formats, audiocraft's numbers.

    python -m tests.make_goldens_style AUDIOCRAFT

AUDIOCRAFT is a checkout of github.com/facebookresearch/audiocraft. Of its requirements this needs
torch, transformers, einops, julius, omegaconf, num2words, sentencepiece and protobuf; whatever
else it imports is replaced by a stand-in; of these only xformers' `unbind` is called, which is
torch's.

The model is built by audiocraft's own builder from audiocraft's own recipe, with smaller numbers;
the conditioner's inner sizes, which audiocraft does not let one choose, are replaced afterwards by
smaller modules of the same classes. MERT is a small HuBERT of transformers, which is what MERT is;
T5 and the codec are those of tests/goldens/mono. Weights are random and seeded.
"""

import argparse
import functools
import importlib.abc
import importlib.machinery
import itertools
import json
import platform
import re
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from omegaconf import OmegaConf

from tests.helpers.paths import GOLDENS

OUT, T5 = GOLDENS / "style", GOLDENS / "mono" / "t5-base"
SEED = 6  # of the first twelve the one that decides the most clearly
MARGIN = 2e-4  # gap between the best two candidates, of the largest value; rounding is near 1e-6
DIM, CARD, TEXT_DIM = 24, 32, 20
STYLE = {"dim": 16, "num_heads": 8, "num_layers": 2, "n_q": 3, "bins": 16}
MERT_DIM = 20
EXCERPT, WINDOW, STRIDE, LONG = 0.5, 0.5, 0.3, 0.9  # seconds; the last of the long piece
RATE, CLIP, FRAMES = 32000, 22400, 12  # a clip of 0.7 s
EXCERPT_FRAMES = 37  # of MERT
TEXT = "slow strings, a warm bass and a calm piano melody in the background"
UNUSED = {
    "av", "demucs", "dora", "encodec", "flashy", "hydra", "laion_clap", "librosa", "soundfile",
    "spacy", "torchaudio", "torchdiffeq", "torchmetrics", "torchvision", "xformers",
}  # fmt: skip


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are imported but not used."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in UNUSED or fullname.startswith("audiocraft.solvers"):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def attribute(name):
        if name.startswith("__"):
            raise AttributeError(name)
        # Of xformers.ops all that audiocraft's attention needs is torch's own function.
        return mock.MagicMock(name=name, unbind=torch.unbind)


def main() -> None:
    """Replaces tests/goldens/style."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audiocraft", type=Path)
    checkout = parser.parse_args().audiocraft
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, str(checkout))
    torch.set_num_threads(1)  # sums in one order
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    generator = torch.Generator().manual_seed(SEED)
    mert = build_mert(generator)
    lm, cfg = build_lm(checkout, mert, generator)
    save_mert(mert, OUT / "MERT-v1-95M")
    save_lm(lm, cfg)
    with Margins() as margins:
        expected = reference(lm, margins)
    np.savez_compressed(OUT / "expected.npz", **expected)
    write_readme(margins.least)
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    assert size < 400_000, size
    print(f"{size} bytes, closest decisions {margins.least}")
    assert min(margins.least.values()) > MARGIN, "try another seed"


# --- The model ---------------------------------------------------------------------------------


def build_mert(generator: torch.Generator):
    """HuBERT in the official proportions: the same strides, so 75 frames a second at 24 kHz."""
    config = transformers.HubertConfig(
        hidden_size=MERT_DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28,
        conv_dim=[8] * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        attn_implementation="eager",
    )  # fmt: skip
    mert = transformers.HubertModel(config).eval()
    randomize(mert, generator)
    return mert


def build_lm(checkout: Path, mert, generator: torch.Generator):
    """audiocraft's language model with its conditioners, and the config it is made from."""
    from audiocraft.models import builders
    from audiocraft.modules import conditioners
    from audiocraft.modules.transformer import StreamingTransformer
    from audiocraft.quantization import ResidualVectorQuantizer

    class SmallStyle(conditioners.StyleConditioner):
        """The real one, around smaller modules."""

        def __init__(self, output_dim: int, n_q_out: int, bins: int, **kwargs):
            super().__init__(output_dim=output_dim, n_q_out=n_q_out, bins=bins, **kwargs)
            self.dim = dim = STYLE["dim"]
            self.embed = torch.nn.Linear(MERT_DIM, dim)
            self.transformer = StreamingTransformer(
                d_model=dim, num_heads=STYLE["num_heads"], num_layers=STYLE["num_layers"],
                dim_feedforward=4 * dim, memory_efficient=True, activation="gelu", norm_first=True,
                causal=False, layer_scale=None, bias_ff=False, bias_attn=False,
            )  # fmt: skip
            self.batch_norm = torch.nn.BatchNorm1d(dim, affine=False)
            self.rvq = ResidualVectorQuantizer(dim, n_q=n_q_out, q_dropout=True, bins=bins)
            self.output_proj = torch.nn.Linear(dim, output_dim)

    recipe = checkout / "config"
    cfg = OmegaConf.merge(
        OmegaConf.load(recipe / "model/lm/default.yaml"),
        OmegaConf.load(recipe / "model/lm/musicgen_lm.yaml"),
        OmegaConf.load(recipe / "conditioner/style2music.yaml"),
        {
            "solver": "musicgen", "sample_rate": RATE, "channels": 1, "device": "cpu",
            "dtype": "float32", "dataset": {"segment_duration": WINDOW},
            "interleave_stereo_codebooks": {"use": False, "per_timestep": False},
            "transformer_lm": {"dim": DIM, "num_heads": 2, "num_layers": 2, "card": CARD},
            "conditioners": {
                "self_wav": {"style": {"n_q_out": STYLE["n_q"], "bins": STYLE["bins"]}}
            },
        },
    )  # fmt: skip
    cfg.pop("defaults", None)
    conditioners.T5Conditioner.MODELS_DIMS["t5-base"] = TEXT_DIM
    tokenizer = transformers.T5Tokenizer.from_pretrained(T5)
    t5 = transformers.T5EncoderModel.from_pretrained(T5, attn_implementation="eager")
    give = lambda value: lambda *_, **__: value  # noqa: E731
    with (
        mock.patch.object(builders, "StyleConditioner", SmallStyle),
        mock.patch.object(transformers.AutoModel, "from_pretrained", give(mert)),
        mock.patch.object(conditioners.T5Tokenizer, "from_pretrained", give(tokenizer)),
        mock.patch.object(conditioners.T5EncoderModel, "from_pretrained", give(t5.eval())),
    ):
        lm = builders.get_lm_model(cfg).eval()
    randomize(lm, generator)
    with torch.no_grad():
        style = lm.condition_provider.conditioners["self_wav"]
        norm = style.batch_norm
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        norm.num_batches_tracked.fill_(500_000)
        for layer in style.rvq.vq.layers:
            book = layer._codebook
            book.inited.fill_(1)  # or else the first call would make codebooks of its own
            book.embed.normal_(0, 1.0, generator=generator)
            book.cluster_size.uniform_(1, 9, generator=generator)
            book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        # As in the official file every number is one of half precision.
        for tensor in [*lm.parameters(), *lm.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return lm, cfg


def randomize(model, generator: torch.Generator) -> None:
    """Standard deviation 0.3, around 1 in norms: with smaller numbers mistakes are invisible."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = re.search(r"norm\w*\.weight$", name) or name.endswith("original0")
            std = 1.0 if name.startswith("emb.") else 0.3
            p.copy_((1.0 if norm else 0.0) + std * torch.randn(p.shape, generator=generator))


# --- The files ---------------------------------------------------------------------------------


def save_mert(mert, folder: Path) -> None:
    """As on the Hub: a pickle with weight norm's older names, and MERT's own settings."""
    folder.mkdir()
    names = {"original0": "weight_g", "original1": "weight_v"}
    state = {
        re.sub(r"parametrizations\.weight\.(original[01])", lambda m: names[m[1]], key): value
        for key, value in mert.state_dict().items()
    }
    torch.save(state, folder / "pytorch_model.bin")
    settings = mert.config.to_dict()
    del settings["conv_pos_batch_norm"]
    settings |= {
        "architectures": ["MERTModel"], "model_type": "mert_model", "sample_rate": 24000,
        "attention_relax": -1.0, "deepnorm": False, "feature_extractor_cqt": False,
        "feature_extractor_cqt_bins": 336,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")


def save_lm(lm, cfg) -> None:
    """What audiocraft's own export makes of a checkpoint of training."""
    from audiocraft.utils.export import export_lm

    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in lm.state_dict().items()
    }
    checkpoint = OUT / "checkpoint.th"
    torch.save({"best_state": {"model": state}, "fsdp_best_state": {}, "xp.cfg": cfg}, checkpoint)
    with mock.patch.object(torch, "load", functools.partial(torch.load, weights_only=False)):
        export_lm(checkpoint, OUT / "state_dict.bin")
    checkpoint.unlink()


# --- The numbers -------------------------------------------------------------------------------


class Margins:
    """Measures how close the best two candidates come wherever audiocraft takes the best."""

    def __init__(self):
        self.least: dict[str, float] = {}
        self.case = ""

    def __enter__(self):
        from audiocraft.quantization.core_vq import EuclideanCodebook

        quantize, argmax = EuclideanCodebook.quantize, torch.argmax

        def quantize_measured(book, x):
            # Of what is given, which comes first, only every 15th frame becomes a token.
            if len(x) >= EXCERPT_FRAMES:
                kept = x[:EXCERPT_FRAMES:15]
                self.note(-(kept[:, None] - book.embed).square().sum(-1))
            return quantize(book, x)

        def argmax_measured(x, *args, **kwargs):
            self.note(x)
            return argmax(x, *args, **kwargs)

        self.patches = [
            mock.patch.object(EuclideanCodebook, "quantize", quantize_measured),
            mock.patch.object(torch, "argmax", argmax_measured),
        ]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()

    def note(self, scores: torch.Tensor) -> None:
        best, second = scores.topk(2, dim=-1).values.unbind(-1)
        gap = ((best - second).min() / scores.abs().max()).item()
        self.least[self.case] = min(gap, self.least.get(self.case, np.inf))


@torch.no_grad()
def reference(lm, margins: Margins) -> dict[str, np.ndarray]:
    """Inputs, and what audiocraft computes."""
    from audiocraft.models.musicgen import MusicGen

    codec = types.SimpleNamespace(
        sample_rate=RATE, frame_rate=50, channels=1, eval=lambda: codec, cardinality=CARD
    )
    model = MusicGen("style", codec, lm, max_duration=30)
    model.max_duration = WINDOW
    conditioner = lm.condition_provider.conditioners["self_wav"]
    # What `get_pretrained` sets too, to no effect here.
    conditioner.match_len_on_eval, conditioner._use_masking = True, False

    rng = np.random.default_rng(0)
    time = np.arange(CLIP) / RATE
    tones = np.sin(2 * np.pi * 330 * time * (1 + time)) + np.sin(2 * np.pi * 1210 * time)
    clip = (0.3 * tones + 0.1 * rng.standard_normal(CLIP))[None].astype(np.float32)
    excerpt = clip[:, : int(EXCERPT * RATE)]  # audiocraft draws where; of this there is one place
    expected = {"clip": clip, "codes": rng.integers(0, CARD, (1, 4, FRAMES), np.int32)}

    def attributes(text, wav):
        wavs = [None if wav is None else torch.from_numpy(wav)]
        return model._prepare_tokens_and_attributes([text], None, wavs)[0]

    for eval_q in range(1, STYLE["n_q"] + 1):
        margins.case = "conditioner"
        model.set_style_conditioner_params(eval_q=eval_q, excerpt_length=EXCERPT)
        tokenized = lm.condition_provider.tokenize(attributes(TEXT, excerpt))
        vectors, mask = lm.condition_provider(tokenized)["self_wav"]
        assert mask.all()
        expected[f"style_{eval_q}"] = vectors.numpy()
    given = {
        "both": (TEXT, excerpt), "text": (TEXT, None), "style": (None, excerpt),
        "nothing": (None, None),
    }  # fmt: skip
    model.set_style_conditioner_params(eval_q=2, excerpt_length=EXCERPT)
    for name, (text, wav) in given.items():
        output = lm.compute_predictions(
            torch.from_numpy(expected["codes"]).long(), attributes(text, wav)
        )
        expected[f"{name}_logits"] = output.logits.numpy()
    cases = {
        "both": {}, "text": {}, "style": {}, "nothing": {}, "double": {"cfg_coef_beta": 5.0},
        "long": {"duration": LONG, "cfg_coef_beta": 4.0}, "long_single": {"duration": LONG},
    }  # fmt: skip
    for name, settings in cases.items():
        margins.case = name
        model.set_generation_params(
            use_sampling=False, extend_stride=STRIDE, **{"duration": FRAMES / 50} | settings
        )
        text, wav = given.get(name, (TEXT, clip if name.startswith("long") else excerpt))
        expected[f"{name}_codes"] = model._generate_tokens(attributes(text, wav), None).numpy()
    check(expected)
    return {
        name: value.astype(np.int32) if value.dtype.kind == "i" else value
        for name, value in expected.items()
    }


def check(expected: dict[str, np.ndarray]) -> None:
    """Whatever is given must make a difference, or else a test could not notice its absence."""
    short = [v for name, v in expected.items() if name.endswith("_codes") and "long" not in name]
    for i, codes in enumerate(short):
        assert not any(np.array_equal(codes, other) for other in short[:i])
        assert len(np.unique(codes)) > 8
    shares = (expected["long_codes"] == expected["long_single_codes"]).mean()
    assert shares < 0.9, shares
    styles = [expected[f"style_{eval_q}"] for eval_q in range(1, STYLE["n_q"] + 1)]
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.pairwise(styles))
    assert np.abs(np.diff(styles[-1], axis=1)).max() > 0.1  # its tokens differ from each other


def write_readme(least: dict[str, float]) -> None:
    import audiocraft

    versions = {
        "Python": platform.python_version(), "audiocraft": audiocraft.__version__,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    closest = "\n".join(f"    {name}: {value:.1e}" for name, value in least.items())
    (OUT / "README.md").write_text(
        "# Golden files of the style model\n\n"
        "A small style model in audiocraft's and MERT's formats, with random weights, and what\n"
        "audiocraft itself computes with it. T5 and the codec are those of `mono`. Made by\n"
        "`python -m tests.make_goldens_style AUDIOCRAFT` with\n\n"
        + "".join(f"    {name} {version}\n" for name, version in versions.items())
        + "\nTokens are compared exactly. The best two candidates of any decision, relative to\n"
        f"the largest value, come as near as this (the script demands {MARGIN:.0e}):\n\n{closest}\n"
    )


if __name__ == "__main__":
    main()
