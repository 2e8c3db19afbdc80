"""Converted models give transformers' numbers, from every kind of file there is."""

import argparse
import json
import math
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from musicgen_jax.convert import command, convert, verify  # noqa: E402
from musicgen_jax.convert.pipeline import abstract_params  # noqa: E402
from musicgen_jax.convert.torch_writer import write_torch  # noqa: E402
from musicgen_jax.convert.torch_zip import read_torch  # noqa: E402
from musicgen_jax.errors import UserError  # noqa: E402
from musicgen_jax.nn.condition import Condition, Embedded  # noqa: E402
from musicgen_jax.nn.encodec.model import Encodec  # noqa: E402
from musicgen_jax.storage import arrays, checkpoint  # noqa: E402
from musicgen_jax.testing import character_tokenizer  # noqa: E402
from tests.helpers.official_files import CODEC_CFG, audiocraft_codec  # noqa: E402
from tests.helpers.paths import GOLDENS  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402

D, V, E, HEADS = 24, 16, 20, 2
RATIOS = (5, 2)
STEREO = "stereo"


def make_model(*, channels=1, text_dim=E, codec_books=4):
    """transformers' model with random weights, of odd sizes."""
    text = transformers.T5Config(
        vocab_size=50, d_model=text_dim, d_kv=6, d_ff=14, num_layers=3, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    sizes = {
        "sampling_rate": 1000, "num_filters": 4, "upsampling_ratios": list(RATIOS),
        "hidden_size": 12, "codebook_dim": 12, "codebook_size": V, "num_lstm_layers": 2,
        "kernel_size": 5, "last_kernel_size": 3, "residual_kernel_size": 3,
        "num_residual_layers": 2, "dilation_growth_rate": 3, "use_causal_conv": False,
        "use_conv_shortcut": False, "norm_type": "weight_norm", "pad_mode": "reflect",
    }  # fmt: skip
    bits = transformers.EncodecConfig(**sizes).codebook_nbits
    sizes["target_bandwidths"] = [codec_books * 100 * bits / 1000]
    audio = transformers.EncodecConfig(**sizes)
    assert audio.num_quantizers == codec_books
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=3, num_attention_heads=HEADS, ffn_dim=40,
        num_codebooks=4 * channels, audio_channels=channels, pad_token_id=V, bos_token_id=V,
        dropout=0.0,
    )  # fmt: skip
    config = transformers.MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict()
    )
    config._attn_implementation = "eager"
    model = transformers.MusicgenForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(mean + 0.3 * torch.randn(p.shape, generator=generator))
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=["mono", STEREO])
def model(request):
    return make_model(channels=2 if request.param == STEREO else 1)


def write_small_files(model, folder):
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(character_tokenizer())


def split(state):
    """Two shards and their index."""
    keys = list(state)
    half = len(keys) // 2
    return {k: state[k] for k in keys[:half]}, {k: state[k] for k in keys[half:]}


def untied(model):
    """The state dict as transformers writes it: one name per tensor, weight norm's old names."""
    names = {
        ".parametrizations.weight.original0": ".weight_g",
        ".parametrizations.weight.original1": ".weight_v",
    }
    state = {}
    for key, value in model.state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        state[key] = value
    return state


def save(model, folder, kind):
    """Saves as transformers does, in one of its four kinds of files."""
    if kind in ("safetensors", "sharded safetensors"):
        size = "40KB" if "sharded" in kind else "1GB"
        model.save_pretrained(folder, max_shard_size=size)
        (folder / "spiece.model").write_bytes(character_tokenizer())
        shards = len(list(folder.glob("model-*.safetensors")))
        assert shards > 1 if "sharded" in kind else shards == 0
        return
    write_small_files(model, folder)
    if kind == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return
    index = {}
    for i, shard in enumerate(split(untied(model)), 1):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "pytorch_model.bin.index.json").write_text(text)


def save_audiocraft(model, folder, *, half=True, infix="", xp_cfg=None):
    """The same weights as audiocraft's pair of files, with T5 in a folder beside them."""
    folder.mkdir()
    source = model.state_dict()
    words = {
        "self_attn_layer_norm": "norm1",
        "encoder_attn_layer_norm": "norm_cross",
        "final_layer_norm": "norm2",
        "fc1": "linear1",
        "fc2": "linear2",
        "encoder_attn": "cross_attention",
    }
    lm = {}
    for key, value in source.items():
        value = value.half() if half else value
        if key.startswith("enc_to_dec_proj."):
            key = f"condition_provider.conditioners.description.output_proj.{key[16:]}"
        elif not key.startswith("decoder."):
            continue
        key = key.removeprefix("decoder.").removeprefix("model.decoder.")
        key = key.replace("embed_tokens.", "emb.").replace("lm_heads.", "linears.")
        if key.startswith("layers."):
            key = f"transformer.{key}"
            for new, old in words.items():
                key = key.replace(f".{new}.", f".{old}.")
        elif key.startswith("layer_norm."):
            key = f"out_norm.{key[11:]}"
        for attention in ("self_attn", "cross_attention"):
            key = key.replace(f".{attention}.", f".{attention}.{infix}")
        if ".q_proj." in key:
            lm[key.replace("q_proj.weight", "in_proj_weight")] = value
        elif ".k_proj." in key or ".v_proj." in key:
            continue
        else:
            lm[key] = value
    for key in [key for key in lm if key.endswith("in_proj_weight")]:
        i = key.split(".")[2]
        name = "self_attn" if "self_attn" in key else "encoder_attn"
        parts = [source[f"decoder.model.decoder.layers.{i}.{name}.{p}_proj.weight"] for p in "qkv"]
        lm[key] = torch.cat(parts).to(lm[key].dtype)

    codec = {}
    for key, value in untied(model).items():
        if not key.startswith("audio_encoder."):
            continue
        key = key.removeprefix("audio_encoder.")
        if key.startswith("quantizer."):
            key = key.replace("quantizer.layers", "quantizer.vq.layers")
            key = key.replace(".codebook.", "._codebook.")
        else:
            i = int(key.split(".")[2])
            transposed = key.startswith("decoder.") and i in (3, 7)
            conv = "convtr" if transposed else "conv"
            key = key.replace(".layers.", ".model.").replace(".conv.", f".{conv}.{conv}.")
        codec[key] = value
    delays = "".join(f"    - {k // model.config.decoder.audio_channels}\n" for k in range(len(
        [key for key in lm if key.startswith("emb.")])))  # fmt: skip
    if xp_cfg is None:
        xp_cfg = (
            f"sample_rate: 1000\ntransformer_lm:\n  num_heads: {HEADS}\n  activation: gelu\n"
            f"codebooks_pattern:\n  modeling: delay\n  delay:\n    delays:\n{delays}"
            "conditioners:\n  description:\n    model: t5\n    t5:\n      name: t5-base\n"
        )
    codec_cfg = (
        "sample_rate: 1000\nencodec:\n  sample_rate: ${sample_rate}\n  causal: false\n"
        "seanet:\n  dilation_base: 3\n  norm: weight_norm\n  pad_mode: reflect\n"
    )
    torch.save(
        {"best_state": lm, "xp.cfg": xp_cfg, "version": "1.3", "exported": True},
        folder / "state_dict.bin",
    )
    torch.save(
        {"best_state": codec, "xp.cfg": codec_cfg, "version": "1.3", "exported": True},
        folder / "compression_state_dict.bin",
    )
    save_t5(model, folder / "t5-base")


def save_t5(model, folder):
    """As the whole t5-base: with a decoder, a head, and both names of the embedding."""
    folder.mkdir()
    (folder / "spiece.model").write_bytes(character_tokenizer())
    model.config.text_encoder.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.text_encoder.state_dict().items()}
    state["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(3, 3)
    state["lm_head.weight"] = state["shared.weight"].clone()
    torch.save(state, folder / "pytorch_model.bin")


def save_codec(model, folder):
    folder.mkdir()
    model.config.audio_encoder.save_pretrained(folder)
    state = {
        k.removeprefix("audio_encoder."): v
        for k, v in untied(model).items()
        if k.startswith("audio_encoder.")
    }
    torch.save(state, folder / "pytorch_model.bin")


# --- Whole models ------------------------------------------------------------------------------


def check_same_numbers(model, converted):
    """Every stage of the converted model against `model` itself, as the test built it."""
    config = checkpoint.load_config(converted)
    rng = np.random.default_rng(3)
    ids = rng.integers(2, 50, (2, 7)).astype(np.int32)
    mask = np.arange(7) < np.array([[7], [4]])
    with torch.no_grad():
        expected = model.text_encoder(
            torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state
    hidden = verify.call(verify.load("t5", config.t5, converted), ids, mask)
    assert_close(hidden[mask], expected.numpy()[mask], what="T5")

    steps = rng.integers(0, V + 1, (2, config.lm.n_q, 9)).astype(np.int32)
    with torch.no_grad():
        logits = model(
            encoder_outputs=(expected,),
            attention_mask=torch.from_numpy(mask).long(),
            decoder_input_ids=torch.from_numpy(steps).long().flatten(0, 1),
        ).logits

    def from_hidden(lm, steps, hidden, mask):
        cross = lm.text_conditioner(hidden, mask)
        return lm(steps, Condition(Embedded(cross, mask)))

    lm = verify.load("lm", config.lm, converted)
    ours = verify.call(lm, steps, expected.numpy(), mask, method=from_hidden)
    assert_close(ours, logits.numpy().reshape(ours.shape), what="LM")

    codec = verify.load("encodec", config.encodec, converted)
    audio = rng.normal(0, 0.3, (1, 1, 123)).astype(np.float32)
    books = config.encodec.n_q
    with torch.no_grad():
        latents = model.audio_encoder.encoder(torch.from_numpy(audio))
        codes = model.audio_encoder.quantizer.encode(latents, None)[:books]
        sound = model.audio_encoder.decoder(model.audio_encoder.quantizer.decode(codes))
    codes = codes.transpose(0, 1).numpy()
    np.testing.assert_array_equal(verify.call(codec, audio, method=Encodec.encode), codes)
    decoded = verify.call(codec, codes.astype(np.int32), method=Encodec.decode)
    assert_close(decoded, sound.numpy(), what="codec")


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    """The model by way of the first kind of file."""
    folder = tmp_path_factory.mktemp("converted")
    save(model, folder / "hf", "safetensors")
    convert(folder / "hf", folder / "ours")
    return folder / "ours"


def test_transformers_model(model, converted):
    config = checkpoint.load_config(converted)
    channels = model.config.decoder.audio_channels
    assert config.audio_channels == channels
    assert config.lm.delays == tuple(k // channels for k in range(4 * channels))
    assert (config.lm.num_heads, config.lm.ffn_dim) == (HEADS, 40)
    assert config.t5.relative_attention_max_distance == 20
    assert (config.encodec.ratios, config.encodec.dilation_base) == (RATIOS, 3)
    assert config.encodec.n_residual_layers == 2
    assert "CC-BY-NC" in (converted / "LICENSE").read_text()
    check_same_numbers(model, converted)


@pytest.mark.parametrize("kind", ["sharded safetensors", "bin", "sharded bin"])
def test_every_kind_of_file_gives_the_same(model, converted, tmp_path, kind):
    save(model, tmp_path / "hf", kind)
    config = convert(tmp_path / "hf", tmp_path / "ours")
    assert config == checkpoint.load_config(converted)
    for component in checkpoint.component_configs(config):
        abstract = abstract_params(component, getattr(config, component))
        trees = [
            checkpoint.load_params(path, component, abstract)
            for path in (converted, tmp_path / "ours")
        ]
        jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize("infix", ["", "mha."])
def test_audiocraft_files(model, tmp_path, infix):
    """The LM is stored in half precision: the reference gets the same rounding."""
    save_audiocraft(model, tmp_path / "ac", infix=infix)
    convert(tmp_path / "ac", tmp_path / "ours")
    rounded = make_model(channels=model.config.decoder.audio_channels)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if name.startswith(("decoder.", "enc_to_dec_proj.")):
                parameter.copy_(parameter.half().float())
    check_same_numbers(rounded, tmp_path / "ours")
    stored = arrays.stored_shapes(tmp_path / "ours" / "lm")
    assert stored["emb", "embedding"].dtype == np.float16  # nothing gained, nothing lost
    names = checkpoint.load_info(tmp_path / "ours").source["components"]
    assert names == {"t5": "t5-base", "lm": "ac", "encodec": "ac"}


def test_audiocraft_without_settings_takes_the_official_ones(tmp_path):
    model = make_model(channels=2)
    save_audiocraft(model, tmp_path / "ac", xp_cfg="")
    config = convert(tmp_path / "ac", tmp_path / "ours")
    assert config.lm.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    assert config.audio_channels == 2


def test_pointer_to_a_codec(tmp_path):
    model = make_model()
    save_audiocraft(model, tmp_path / "ac")
    pointer = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.2"}
    torch.save(pointer, tmp_path / "ac" / "compression_state_dict.bin")
    save_codec(model, tmp_path / "elsewhere")
    convert(tmp_path / "ac", tmp_path / "given", encodec_from=str(tmp_path / "elsewhere"))
    save_codec(model, tmp_path / "encodec_32khz")
    convert(tmp_path / "ac", tmp_path / "found")
    for name in ("given", "found"):
        config = checkpoint.load_config(tmp_path / name)
        codec = verify.load("encodec", config.encodec, tmp_path / name)
        expected = torch.stack(
            [layer.codebook.embed for layer in model.audio_encoder.quantizer.layers]
        )
        np.testing.assert_array_equal(codec.quantizer.embed[...], expected.numpy())


def test_components_alone(tmp_path):
    model = make_model()
    save_codec(model, tmp_path / "codec")
    save_t5(model, tmp_path / "t5")
    assert set(convert(tmp_path / "codec", tmp_path / "ours-codec")) == {"encodec"}
    assert set(convert(tmp_path / "t5", tmp_path / "ours-t5")) == {"t5"}
    assert checkpoint.load_info(tmp_path / "ours-t5").parts["t5"].d_ff == 14
    assert (tmp_path / "ours-t5" / "tokenizer.model").is_file()


def test_equal_widths_have_no_projection(tmp_path):
    """transformers leaves the text's projection out; ours is the identity then."""
    model = make_model(text_dim=D)
    assert not hasattr(model, "enc_to_dec_proj")
    save(model, tmp_path / "hf", "safetensors")
    convert(tmp_path / "hf", tmp_path / "ours")
    config = checkpoint.load_config(tmp_path / "ours")
    lm = verify.load("lm", config.lm, tmp_path / "ours")
    np.testing.assert_array_equal(lm.text_conditioner.output_proj.weight[...], np.eye(D))
    check_same_numbers(model, tmp_path / "ours")


def test_books_that_the_lm_does_not_use_are_left_out(tmp_path):
    model = make_model(codec_books=6)
    save(model, tmp_path / "hf", "safetensors")
    assert convert(tmp_path / "hf", tmp_path / "ours").encodec.n_q == 4
    check_same_numbers(model, tmp_path / "ours")


# --- Verifying ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "audiocraft"])
def test_command_line_verifies(model, tmp_path, kind, capsys):
    if kind == "audiocraft":
        save_audiocraft(model, tmp_path / "source")
    else:
        save(model, tmp_path / "source", kind)
    run([str(tmp_path / "source"), str(tmp_path / "ours"), "--verify"])
    assert len(stage_names(capsys)) == 4


def test_verify_finds_other_weights(tmp_path):
    save(make_model(), tmp_path / "hf", "safetensors")
    convert(tmp_path / "hf", tmp_path / "ours")
    other = make_model()
    with torch.no_grad():
        other.decoder.lm_heads[2].weight[3] += 1.0
        other.audio_encoder.decoder.layers[0].conv.bias += 1.0
    shutil.rmtree(tmp_path / "hf")
    save(other, tmp_path / "hf", "safetensors")
    with pytest.raises(UserError, match=r"differs .* in LM, logits and EnCodec, sound"):
        verify.verify(tmp_path / "hf", tmp_path / "ours", log=lambda line: None)


@pytest.mark.parametrize("name", ["24khz/transformers", "48khz/transformers", "24khz/original.th"])
def test_codecs_alone_are_verified(name, tmp_path, capsys):
    args = [str(GOLDENS / "codecs" / name), str(tmp_path / "ours"), "--verify"]
    run(args)
    assert stage_names(capsys) == [
        "EnCodec, share of other codes",
        "EnCodec, sound of the same codes",
    ]


def test_a_codec_of_an_odd_number_of_codes_is_verified(tmp_path, capsys):
    """transformers' own model refuses what is not a power of two."""
    package = {"best_state": audiocraft_codec(), "xp.cfg": CODEC_CFG}
    write_torch(tmp_path / "compression_state_dict.bin", package)
    run([str(tmp_path / "compression_state_dict.bin"), str(tmp_path / "ours"), "--verify"])
    assert len(stage_names(capsys)) == 2


@pytest.mark.parametrize(
    ("name", "stages"),
    [("mono/t5-base", ["T5, hidden states"]), ("style/MERT-v1-95M", ["MERT, features"])],
)
def test_other_components_alone_are_verified(name, stages, tmp_path, capsys):
    run([str(GOLDENS / name), str(tmp_path / "ours"), "--verify"])
    assert stage_names(capsys) == stages


def test_what_cannot_be_verified_is_said_before_converting(tmp_path):
    source = GOLDENS / "separation/955717e8-18a7d9ef.th"
    with pytest.raises(UserError, match=r"separator cannot be verified.*leave out --verify"):
        run([str(source), str(tmp_path / "ours"), "--verify"])
    assert not (tmp_path / "ours").exists()


def run(arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(arguments))


def stage_names(capsys):
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert all(float(line.rsplit(": ", 1)[1]) < 1e-4 for line in lines)
    return [line.strip().rsplit(": ", 1)[0] for line in lines]


# --- torch's files -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "bool"])
def test_reader_agrees_with_torch(tmp_path, dtype):
    base = (torch.arange(60).reshape(3, 4, 5) % 7).to(getattr(torch, dtype))
    values = {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2, 1:4],
        "row": base[2, 3],
        "scalar": base[0, 0, 3],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base.float()),
    }
    torch.save(values, tmp_path / "x.bin")
    read = read_torch(tmp_path / "x.bin")
    assert list(read) == list(values)
    for name, tensor in values.items():
        expected = tensor.detach()
        got = read[name].read()
        assert read[name].shape == got.shape == tuple(expected.shape)
        assert read[name].dtype == got.dtype
        assert str(expected.dtype).removeprefix("torch.") == got.dtype.name
        np.testing.assert_array_equal(got.astype(np.float64), expected.double().numpy())


def test_writer_is_read_by_torch(tmp_path):
    rng = np.random.default_rng(0)
    value = {
        "best_state": {"a": rng.normal(size=(3, 5)).astype(np.float16), "b": np.arange(4)},
        "xp.cfg": "text: ü\n",
        "list": [None, True, 2**40, -3],
    }
    write_torch(tmp_path / "x.bin", value)
    read = torch.load(tmp_path / "x.bin", weights_only=True)
    np.testing.assert_array_equal(read["best_state"]["a"].numpy(), value["best_state"]["a"])
    np.testing.assert_array_equal(read["best_state"]["b"].numpy(), value["best_state"]["b"])
    assert (read["xp.cfg"], read["list"]) == (value["xp.cfg"], value["list"])


def test_the_format_from_before_torch_1_6_is_read(tmp_path):
    values = {"a": torch.randn(3, 2), "b": torch.arange(5)}
    torch.save(values, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    read = read_torch(tmp_path / "x.bin")
    for name, expected in values.items():
        np.testing.assert_array_equal(read[name].read(), expected.numpy())


def test_three_of_transformers_tokens_belong_to_the_delay_pattern(model):
    """docs/from-transformers.md: 256 tokens are 253 frames."""
    ids = torch.tensor([[3, 4, 5]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "guidance_scale": 3}
    audio = model.generate(**given, max_new_tokens=23, do_sample=False)
    assert audio.shape[-1] == (23 - 3) * math.prod(RATIOS)
