"""Writes tests/goldens/audiocraft: small models that audiocraft itself made, and its numbers.

    python -m tests.make_goldens_audiocraft AUDIOCRAFT

AUDIOCRAFT is a checkout of github.com/facebookresearch/audiocraft. Of its requirements this needs
torch, torchaudio (its Python part), transformers, einops, julius, librosa, omegaconf, num2words,
sentencepiece and protobuf; whatever else it imports is replaced by a stand-in that nothing calls.

A text model, a stereo one and a melody one are built by audiocraft's builders from audiocraft's
recipes with smaller numbers, written by audiocraft's export, read back by its loaders, and played
by its `MusicGen`. The codec is exported in full for the text model; the others point to it, as the
official ones do. T5 is that of tests/goldens/mono. Demucs is stubbed out: separation gives the
audio itself. Weights are random and seeded.
"""

import argparse
import functools
import platform
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from omegaconf import OmegaConf

from tests.goldens.make_goldens_style import MARGIN, Margins, StandIns, randomize
from tests.helpers.paths import GOLDENS

OUT, T5 = GOLDENS / "audiocraft", GOLDENS / "mono" / "t5-base"
SEEDS = {"codec": 5, "text": 1, "stereo": 26, "melody": 25}
DIM, CARD, TEXT_DIM, RATE, FRAMES, PROMPT = 24, 32, 20, 32000, 12, 5
CODEC_NAME = "facebook/encodec_32khz"
TEXT = "slow strings, a warm bass and a calm piano melody in the background"
LENGTHS = {"text": (1, 640, 3001), "stereo": (3001,), "melody": ()}
NEEDED = {"librosa", "soundfile", "torchaudio"}  # unlike for the style model
# The long piece, in seconds: a window is short, so that it has few frames of melody.
WINDOW, STRIDE, LONG = 0.6, 0.36, 1.2


class OurStandIns(StandIns):
    """But for what the melody needs."""

    def find_spec(self, fullname, path=None, target=None):
        """See there."""
        if fullname.partition(".")[0] in NEEDED:
            return None
        return super().find_spec(fullname, path, target)


def stub_modules() -> None:
    """torchaudio without its compiled part, and a demucs that hears everything as vocals."""
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    for what in ("align", "rir"):  # decorators of what would need it
        setattr(extension, f"fail_if_no_{what}", lambda function: function)
    sys.modules["torchaudio._extension"] = extension
    sys.meta_path.insert(0, OurStandIns())
    import demucs.apply
    import demucs.audio
    import demucs.pretrained

    class Demucs:
        sources = ("drums", "bass", "other", "vocals")
        samplerate, audio_channels = RATE, 1
        to = lambda self, device: self  # noqa: E731

    def apply_model(model, wav, device):
        silence = torch.zeros_like(wav)
        return torch.stack([silence, silence, silence, wav], dim=1)

    demucs.pretrained.get_model = lambda name: Demucs()
    demucs.apply.apply_model = apply_model
    demucs.audio.convert_audio = lambda wav, from_rate, to_rate, channels: wav


def main() -> None:
    """Replaces tests/goldens/audiocraft."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audiocraft", type=Path)
    checkout = parser.parse_args().audiocraft
    stub_modules()
    sys.path.insert(0, str(checkout))
    torch.set_num_threads(1)  # sums in one order
    # Its files hold an OmegaConf object until they are exported.
    torch.load = functools.partial(torch.load, weights_only=False)
    shutil.rmtree(OUT, ignore_errors=True)
    least = {}
    for name in ("text", "stereo", "melody"):
        save(checkout, name)
        with Margins() as margins:
            expected = reference(name, margins)
        np.savez_compressed(OUT / name / "expected.npz", **expected)
        least |= {f"{name}, {case}": value for case, value in margins.least.items()}
    write_readme(least)
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    assert size < 700_000, size
    print(f"{size} bytes, closest decisions {least}")
    assert min(least.values()) > MARGIN, "try another seed"


# --- The models --------------------------------------------------------------------------------


def recipe(checkout: Path, *files: str, **settings):
    """audiocraft's own settings, merged, and ours."""
    read = [OmegaConf.load(checkout / "config" / file) for file in files]
    cfg = OmegaConf.merge(*read, settings)
    cfg.pop("defaults", None)
    return cfg


def build_codec(checkout: Path):
    """EnCodec and the settings it is made from."""
    from audiocraft.models import builders

    cfg = recipe(
        checkout,
        "model/encodec/default.yaml",
        "model/encodec/encodec_large_nq4_s640.yaml",
        solver="compression", sample_rate=RATE, channels=1, device="cpu",
        seanet={"n_filters": 2, "dimension": 12, "lstm": 1, "pad_mode": "reflect"},
        rvq={"bins": CARD},
    )  # fmt: skip
    codec = builders.get_compression_model(cfg).eval()
    generator = torch.Generator().manual_seed(SEEDS["codec"])
    with torch.no_grad():
        for key, p in codec.named_parameters():
            mean = 1.0 if key.endswith("weight_g") else 0.0
            p.copy_(mean + 0.3 * torch.randn(p.shape, generator=generator))
        for layer in codec.quantizer.vq.layers:
            book = layer._codebook
            book.inited.fill_(True)
            book.embed.normal_(0, 1.0, generator=generator)
            book.cluster_size.uniform_(1, 9, generator=generator)
            book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
    return codec, cfg


def build_lm(checkout: Path, name: str):
    """The language model with its conditioners, and the settings it is made from."""
    from audiocraft.models import builders

    stereo, melody = name == "stereo", name == "melody"
    books = 8 if stereo else 4
    cfg = recipe(
        checkout,
        "model/lm/default.yaml",
        "model/lm/musicgen_lm.yaml",
        f"conditioner/{'chroma2music' if melody else 'text2music'}.yaml",
        solver="musicgen", sample_rate=RATE, channels=2 if stereo else 1, device="cpu",
        dtype="float32", dataset={"segment_duration": 30},
        interleave_stereo_codebooks={"use": stereo, "per_timestep": False},
        transformer_lm={
            "dim": DIM, "num_heads": 2, "num_layers": 2, "hidden_scale": 2, "card": CARD,
            "n_q": books,
        },
        codebooks_pattern={"delay": {"delays": [k // (2 if stereo else 1) for k in range(books)]}},
    )  # fmt: skip
    with t5_from_goldens():
        lm = builders.get_lm_model(cfg).eval()
    generator = torch.Generator().manual_seed(SEEDS[name])
    randomize(lm, generator)
    if melody:  # one pitch class more or less must change the music
        projection = lm.condition_provider.conditioners["self_wav"].output_proj
        with torch.no_grad():
            projection.weight.normal_(0, 1.0, generator=generator)
    return lm, cfg


def t5_from_goldens():
    """While this lasts, "t5-base" is that of tests/goldens/mono."""
    from audiocraft.modules import conditioners

    conditioners.T5Conditioner.MODELS_DIMS["t5-base"] = TEXT_DIM
    t5 = transformers.T5EncoderModel.from_pretrained(T5, attn_implementation="eager").eval()
    tokenizer = transformers.T5Tokenizer.from_pretrained(T5)
    give = lambda value: mock.Mock(from_pretrained=lambda *_, **__: value)  # noqa: E731
    return mock.patch.multiple(conditioners, T5EncoderModel=give(t5), T5Tokenizer=give(tokenizer))


# --- The files ---------------------------------------------------------------------------------


def save(checkout: Path, name: str) -> None:
    """What audiocraft's own export makes of the checkpoints of two trainings."""
    from audiocraft.utils import export

    folder = OUT / name
    lm, cfg = build_lm(checkout, name)
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in lm.state_dict().items()
    }
    checkpoint = OUT / "checkpoint.th"
    OUT.mkdir(exist_ok=True)
    package = {"best_state": {"model": state}, "fsdp_best_state": {}, "xp.cfg": cfg}
    torch.save(package, checkpoint)
    export.export_lm(checkpoint, folder / "state_dict.bin")
    if name == "text":
        codec, cfg = build_codec(checkout)
        package = {"best_state": {"model": codec.state_dict()}, "xp.cfg": cfg}
        torch.save(package, checkpoint)
        export.export_encodec(checkpoint, folder / "compression_state_dict.bin")
    else:
        export.export_pretrained_compression_model(
            CODEC_NAME, folder / "compression_state_dict.bin"
        )
    checkpoint.unlink()


def load(name: str):
    """audiocraft's MusicGen from the exported files, as its `get_pretrained` makes it."""
    from audiocraft.models import loaders
    from audiocraft.models.encodec import CompressionModel
    from audiocraft.models.musicgen import MusicGen

    codec = loaders.load_compression_model(OUT / "text")

    def get_pretrained(codec_name, device="cpu"):
        assert codec_name == CODEC_NAME
        return codec

    with t5_from_goldens(), mock.patch.object(CompressionModel, "get_pretrained", get_pretrained):
        lm = loaders.load_lm_model(OUT / name)
        model = MusicGen(name, loaders.load_compression_model(OUT / name), lm)
    if name == "melody":
        conditioner = lm.condition_provider.conditioners["self_wav"]
        conditioner.match_len_on_eval, conditioner._use_masking = True, False
    return model


# --- The numbers -------------------------------------------------------------------------------


def melody(seconds: float, step: float = 0.5) -> np.ndarray:
    """[1, W], a walk over the pitches, a new one every `step` seconds; W = 32000 seconds."""
    time = np.arange(int(seconds * RATE)) / RATE
    note = 7 * np.floor(time / step) % 12
    return (0.5 * np.sin(2 * np.pi * 220 * 2 ** (note / 12) * time))[None].astype(np.float32)


def clip(channels: int, length: int) -> np.ndarray:
    """[1, C, W], a tone in noise."""
    rng = np.random.default_rng(length)
    tone = np.sin(0.02 * np.pi * np.arange(length))
    return 0.3 * (tone + rng.standard_normal((1, channels, length))).astype(np.float32)


MELODIES = {"long": (36.0, 0.5), "short": (2.7, 0.5), "tiny": (0.3, 0.1)}
LONG_MELODY = (0.77, 0.11)
CASES = {  # text, whether there is a melody, frames of prompt
    "text": {
        "text": (TEXT, False, 0), "nothing": (None, False, 0), "prompt": (TEXT, False, PROMPT),
    },
    "melody": {
        "both": (TEXT, True, 0), "text": (TEXT, False, 0), "melody": (None, True, 0),
        "nothing": (None, False, 0), "prompt": (TEXT, True, PROMPT), "double": (TEXT, True, 0),
    },
}  # fmt: skip
CASES["stereo"] = CASES["text"]


@torch.no_grad()
def reference(name: str, margins: Margins) -> dict[str, np.ndarray]:
    """Inputs, and what audiocraft computes."""
    model = load(name)
    lm, books = model.lm, 8 if name == "stereo" else 4
    rng = np.random.default_rng(0)
    expected = {"codes": rng.integers(0, CARD, (1, books, FRAMES))}
    heard = torch.from_numpy(melody(*MELODIES["short"]))

    def attributes(text, sounds: bool, wav=heard):
        wavs = [wav if sounds else None] if name == "melody" else None
        return model._prepare_tokens_and_attributes([text], None, wavs)[0]

    def generate(conditions, prompt=None, **settings):
        model.set_generation_params(
            use_sampling=False, **{"duration": FRAMES / 50, "extend_stride": STRIDE} | settings
        )
        return model._generate_tokens(conditions, prompt)

    for case, (text, sounds, prompt) in CASES[name].items():
        margins.case = case
        conditions = attributes(text, sounds)
        known = torch.from_numpy(expected["codes"][:, :, :prompt]) if prompt else None
        beta = {"cfg_coef_beta": 4.0} if case == "double" else {}
        codes = generate(conditions, known, **beta)
        expected[f"{case}_codes"] = codes.numpy()
        if case in ("both", "text"):
            expected[f"{case}_audio"] = model.generate_audio(codes).numpy()
        if not prompt and not beta:
            output = lm.compute_predictions(torch.from_numpy(expected["codes"]), conditions)
            expected[f"{case}_logits"] = output.logits.numpy()
    for length in LENGTHS[name]:
        margins.case = "codec"
        audio = clip(model.audio_channels, length)
        with measured_quantizer(margins):
            codes, _ = model.compression_model.encode(torch.from_numpy(audio))
        expected[f"audio_{length}_codes"] = codes.numpy()
        expected[f"audio_{length}_sound"] = model.generate_audio(codes).numpy()
    if name == "melody":
        expected |= melody_reference(model, attributes, generate, margins)
    check(expected)
    return {
        key: value.astype(np.int32) if value.dtype.kind == "i" else value
        for key, value in expected.items()
    }


def measured_quantizer(margins: Margins):
    """While this lasts, `margins` hears how clear the choice of every code is."""
    from audiocraft.quantization.core_vq import EuclideanCodebook

    quantize = EuclideanCodebook.quantize

    def quantize_measured(book, x):
        margins.note(-(x[:, None] - book.embed).square().sum(-1))
        return quantize(book, x)

    return mock.patch.object(EuclideanCodebook, "quantize", quantize_measured)


def melody_reference(model, attributes, generate, margins: Margins) -> dict[str, np.ndarray]:
    """The chroma of melodies of several lengths, and a piece of several windows."""
    conditioner = model.lm.condition_provider.conditioners["self_wav"]
    expected = {}
    for case, sizes in MELODIES.items():
        wav = melody(*sizes)
        conditions = attributes(TEXT, True, torch.from_numpy(wav))
        tokenized = model.lm.condition_provider.tokenize(conditions)["self_wav"]
        chroma = conditioner._get_wav_embedding(tokenized)[0]
        assert chroma.shape == (235, 12)
        expected[f"{case}_chroma"] = chroma.argmax(-1).numpy()
        # The same before the loudest is taken, to see how clear it is.
        with mock.patch.object(conditioner.chroma, "argmax", False):
            loudness = conditioner.chroma(torch.from_numpy(wav)[None])
        margins.case = "chroma"
        margins.note(loudness)
    margins.case = "windows"
    model.max_duration = conditioner.duration = WINDOW
    conditioner.chroma_len = conditioner._get_chroma_len()
    wav = torch.from_numpy(melody(*LONG_MELODY))
    codes = generate(attributes(TEXT, True, wav), duration=LONG)
    expected["windows_codes"] = codes.numpy()
    still = generate(attributes(TEXT, True, wav[:, : int(0.11 * RATE)]), duration=LONG)
    assert (still != codes).float().mean() > 0.2  # the melody's course is heard
    return expected


def check(expected: dict[str, np.ndarray]) -> None:
    """Whatever is given must make a difference, or else a test could not notice its absence."""
    short = [v for k, v in expected.items() if k.endswith("_codes") and k[:5] not in ("audio",)]
    for i, codes in enumerate(short):
        assert not any(np.array_equal(codes, other) for other in short[:i])
        assert len(np.unique(codes)) > 8
    for name, chroma in expected.items():
        if name.endswith("_chroma"):
            assert len(np.unique(chroma)) > 2, (name, chroma)


def write_readme(least: dict[str, float]) -> None:
    """Where the files come from."""
    import audiocraft
    import librosa

    versions = {
        "Python": platform.python_version(), "audiocraft": audiocraft.__version__,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "librosa": librosa.__version__,
    }  # fmt: skip
    closest = "\n".join(f"    {name}: {value:.1e}" for name, value in least.items())
    (OUT / "README.md").write_text(
        "# Golden files made by audiocraft\n\n"
        "Small models with random weights that audiocraft built, exported and read back, and\n"
        "what it computes with them. T5 is that of `mono`; `stereo` and `melody` point to a\n"
        "codec, which is that of `text`. Demucs, which audiocraft puts before the chroma, was\n"
        "stubbed out: it gave the audio back. Made by\n"
        "`python -m tests.make_goldens_audiocraft AUDIOCRAFT` with\n\n"
        + "".join(f"    {name} {version}\n" for name, version in versions.items())
        + "\nTokens are compared exactly. The best two candidates of any decision, relative to\n"
        f"the largest value, come as near as this (the script demands {MARGIN:.0e}):\n\n{closest}\n"
    )


if __name__ == "__main__":
    main()
