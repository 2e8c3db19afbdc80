"""Melody and stereo models against transformers' MusicGen Melody, saved by the real library."""

import importlib
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from musicgen_jax import MusicGen  # noqa: E402
from musicgen_jax.conditioning import chroma  # noqa: E402
from musicgen_jax.convert import convert, verify  # noqa: E402
from musicgen_jax.errors import UserError  # noqa: E402
from musicgen_jax.nn.condition import Condition, Embedded  # noqa: E402
from musicgen_jax.storage import checkpoint  # noqa: E402
from musicgen_jax.testing import character_tokenizer  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402
from tests.parity import torchaudio_stand_in  # noqa: E402

D, V, E, RATE, FRAMES = 24, 32, 20, 32000, 12
TEXT = "slow strings, a warm bass"


# --- The chromagram ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extractor():
    torchaudio = torchaudio_stand_in.install()
    # Not by its name in the package, which transformers hides where torchaudio is not installed.
    theirs = importlib.import_module(
        "transformers.models.musicgen_melody.feature_extraction_musicgen_melody"
    )
    theirs.torchaudio = torchaudio
    return theirs.MusicgenMelodyFeatureExtractor()


def tone(frequency: float, samples: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)).astype(np.float32)


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.3, samples).astype(np.float32)


def scale(samples: int) -> np.ndarray:
    """A new pitch every second."""
    notes = [tone(220 * 2 ** (n / 12), RATE) for n in range(math.ceil(samples / RATE))]
    return np.concatenate(notes)[:samples]


CLIPS = {
    "C": tone(261.63, 50_000),
    "A": tone(440, 50_000),
    "one sample": noise(1),
    "odd and short": noise(1001),
    "a sample short": noise(16_383),
    "one window": noise(16_384),
    "noise": noise(100_001),
    "30 s": scale(30 * RATE),
}


@pytest.mark.parametrize("name", CLIPS)
def test_chroma(extractor, name):
    expected = extractor(CLIPS[name], sampling_rate=RATE)["input_features"][0].numpy()
    ours = chroma.melody_chroma(CLIPS[name], sample_rate=RATE, num_frames=235)
    assert len(expected) == chroma.frame_count(len(CLIPS[name]))
    repeated = np.tile(expected, (math.ceil(235 / len(expected)), 1))[:235]
    np.testing.assert_array_equal(ours, repeated)
    if name in ("C", "A"):
        assert (ours.argmax(axis=1) == chroma.PITCHES.index(name)).all()


def test_chroma_of_a_longer_melody(extractor):
    """transformers cuts the audio at 30 s, audiocraft the frames: the last two hear beyond."""
    audio = scale(36 * RATE)
    expected = extractor(audio, sampling_rate=RATE)["input_features"][0].numpy()
    ours = chroma.melody_chroma(audio, sample_rate=RATE, num_frames=235)
    np.testing.assert_array_equal(ours[:233], expected[:233])
    cut = chroma.melody_chroma(audio[: 30 * RATE], sample_rate=RATE, num_frames=235)
    np.testing.assert_array_equal(cut, expected)


def test_filter_bank():
    theirs = transformers.audio_utils.chroma_filter_bank(
        num_frequency_bins=chroma.WINDOW, sampling_rate=RATE, tuning=0, num_chroma=12
    )
    np.testing.assert_allclose(chroma.filter_bank(RATE), theirs, atol=1e-12)


# --- Whole models --------------------------------------------------------------------------------


def make_model(channels: int):
    """transformers' melody model with random weights of odd sizes, at the official rates."""
    text = transformers.T5Config(
        vocab_size=50, d_model=E, d_kv=6, d_ff=14, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    codec = {
        "sampling_rate": RATE, "num_filters": 2, "upsampling_ratios": [8, 5, 4, 4],
        "hidden_size": 12, "codebook_dim": 12, "codebook_size": V, "num_lstm_layers": 1,
        "num_residual_layers": 1, "use_causal_conv": False, "use_conv_shortcut": False,
        "norm_type": "weight_norm", "pad_mode": "reflect",
        "target_bandwidths": [4 * 50 * np.log2(V).item() / 1000],
    }  # fmt: skip
    decoder = transformers.MusicgenMelodyDecoderConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, ffn_dim=40,
        num_codebooks=4 * channels, audio_channels=channels, pad_token_id=V, bos_token_id=V,
        dropout=0.0, max_position_embeddings=64,
    )  # fmt: skip
    config = transformers.MusicgenMelodyConfig(
        text_encoder=text.to_dict(),
        audio_encoder=transformers.EncodecConfig(**codec).to_dict(),
        decoder=decoder.to_dict(),
    )
    config._attn_implementation = "eager"
    model = transformers.MusicgenMelodyForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = V
    model.generation_config.decoder_start_token_id = V
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if name.endswith(("norm.weight", "weight.original0")) else 0.0
            std = 1.0 if "embed_tokens" in name or name.startswith("audio_enc_to") else 0.3
            p.copy_(mean + std * torch.randn(p.shape, generator=generator))
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def pair(request, tmp_path_factory):
    """transformers' model, the folder it saved, and ours."""
    folder = tmp_path_factory.mktemp("melody")
    model = make_model(request.param)
    model.save_pretrained(folder / "hf")
    (folder / "hf" / "spiece.model").write_bytes(character_tokenizer())
    convert(folder / "hf", folder / "ours")
    return SimpleNamespace(
        model=model, source=folder / "hf", converted=folder / "ours",
        ours=MusicGen.from_pretrained(folder / "ours"),
    )  # fmt: skip


def ids_of(pair, text: str) -> dict[str, torch.Tensor]:
    """transformers' arguments; no text is the masked end that audiocraft makes of it."""
    ids, mask = pair.ours.tokenizer([text])
    return {
        "input_ids": torch.from_numpy(ids).long(),
        "attention_mask": torch.from_numpy(mask).long(),
    }


def reference(pair, *, guidance=3.0, prompt=None, **inputs) -> tuple[np.ndarray, np.ndarray]:
    """transformers' greedy codes [1, K, FRAMES] and their sound [1, C, W]."""
    model, seen = pair.model, []
    books = model.decoder.num_codebooks
    if prompt is not None:
        inputs["decoder_input_ids"] = torch.from_numpy(prompt.reshape(books, -1)).long()
    decode = model.audio_encoder.decode

    def spy(audio_codes, **settings):
        seen.append(audio_codes[0].numpy())
        return decode(audio_codes, **settings)

    model.audio_encoder.decode = spy
    known = 0 if prompt is None else prompt.shape[2]
    try:
        with torch.no_grad():
            audio = model.generate(
                **inputs,
                do_sample=False,
                guidance_scale=guidance,
                max_new_tokens=FRAMES + 3 - known,  # it counts what the delays take away
            )
    finally:
        del model.audio_encoder.decode
    codes = seen[0] if len(seen) == 1 else np.stack(seen, axis=2).reshape(1, books, -1)
    return codes, audio.numpy()


def test_config(pair):
    config = checkpoint.load_config(pair.converted)
    channels = pair.model.config.decoder.audio_channels
    assert (config.audio_channels, config.lm.n_q) == (channels, 4 * channels)
    assert config.lm.delays == tuple(k // channels for k in range(4 * channels))
    assert (config.lm.conditioning, config.lm.chroma_bins) == ("prepend", 12)


def test_logits(pair):
    """With a melody that changes, with the same text, at every step."""
    lm, model = pair.ours.lm, pair.model
    features = np.eye(12, dtype=np.float32)[np.random.default_rng(0).integers(0, 12, (1, 235))]
    steps = np.random.default_rng(1).integers(0, V + 1, (1, lm.config.n_q, 9)).astype(np.int32)
    inputs = ids_of(pair, TEXT)
    with torch.no_grad():
        expected = model(
            **inputs,
            input_features=torch.from_numpy(features),
            decoder_input_ids=torch.from_numpy(steps[0]).long(),
        ).logits.numpy()
    text = pair.ours.text_condition([TEXT])
    condition = Condition(
        text.text, Embedded(lm.chroma_conditioner(features), jnp.ones((1, 235), bool))
    )
    logits = jax.jit(lambda lm, *x: lm(*x))(lm, steps, condition)
    assert_close(logits[0], expected[:, -9:])


MELODY = scale(3 * RATE + 17)
CASES = {
    "melody": (TEXT, MELODY, None),
    "no melody": (TEXT, None, None),
    "no text": ("", MELODY, None),
    "neither": ("", None, None),
    "prompt": (TEXT, MELODY, 5),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_music_with_guidance(pair, extractor, name):
    text, melody, frames = CASES[name]
    inputs, prompt = ids_of(pair, text), None
    if frames:
        books = pair.ours.config.lm.n_q
        prompt = np.random.default_rng(2).integers(0, V, (1, books, frames)).astype(np.int32)
    if melody is not None:
        inputs["input_features"] = extractor(melody, sampling_rate=RATE)["input_features"]
    codes, audio = reference(pair, prompt=prompt, **inputs)
    settings = {
        "duration": FRAMES / 50, "use_sampling": False, "cfg_coef": 3.0, "prompt_codes": prompt,
    }  # fmt: skip
    if melody is None:
        output = pair.ours.generate([text], **settings)
    else:
        output = pair.ours.generate_with_chroma(
            [text], melody[None], RATE, separate=False, **settings
        )
    np.testing.assert_array_equal(output.codes, codes)
    assert len(np.unique(codes)) > 6
    assert_close(output.audio, audio, what="sound")


def test_the_melody_and_the_text_matter(pair):
    settings = {"duration": FRAMES / 50, "use_sampling": False, "separate": False}
    outputs = [
        pair.ours.generate_with_chroma([text], melody, RATE, **settings).codes
        for text, melody in ((TEXT, MELODY[None]), (TEXT, [None]), ("", MELODY[None]))
    ]
    assert (outputs[0] != outputs[1]).mean() > 0.3
    assert (outputs[0] != outputs[2]).mean() > 0.3


def test_encode_each_channel(pair):
    """Left and right go through the codec for themselves; their books take turns."""
    channels = pair.ours.audio_channels
    audio = np.stack([noise(3001), tone(440, 3001)])[:channels]
    with torch.no_grad():
        encoder = pair.model.audio_encoder
        rows = encoder.encode(torch.from_numpy(audio)[:, None]).audio_codes[0].numpy()
    codes = pair.ours.encode(audio, RATE)
    np.testing.assert_array_equal(codes, rows.swapaxes(0, 1).reshape(1, 4 * channels, -1))


def test_verify(pair):
    lines = []
    stages = verify.verify(pair.source, pair.converted, log=lines.append)
    assert len(stages) == 4
    assert max(stage.error for stage in stages) < 1e-4


# --- Early uploads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [
        "decoder.model.decoder.layers.1.fc1.weight",
        "audio_enc_to_dec_proj.weight",
        "text_encoder.encoder.final_layer_norm.weight",
        "decoder.model.decoder.embed_tokens.",
    ],
)
def test_missing_tensors_are_named_with_the_way_out(tmp_path, lost):
    model = make_model(1)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(lost)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(character_tokenizer())
    name = lost.removeprefix("text_encoder.")
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        convert(tmp_path, tmp_path / "ours")
    assert "newer revision (--revision main)" in str(caught.value)
    assert not (tmp_path / "ours").exists()
