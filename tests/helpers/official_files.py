"""Makes small official files, without torch, in the sizes of the debug model."""

import json

import numpy as np
import safetensors.numpy

from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.testing import DEBUG, character_tokenizer


def lazy(array):
    return LazyTensor(array.shape, array.dtype, lambda: array)


def draw(rng, shape, dtype=np.float32):
    return rng.normal(0, 0.3, shape).astype(dtype)


def audiocraft_lm(config=DEBUG.lm, dtype=np.float16):
    rng = np.random.default_rng(0)
    D, F = config.dim, config.ffn_dim
    layer = {
        "norm1.weight": (D,), "norm1.bias": (D,), "norm2.weight": (D,), "norm2.bias": (D,),
        "norm_cross.weight": (D,), "norm_cross.bias": (D,),
        "self_attn.in_proj_weight": (3 * D, D), "self_attn.out_proj.weight": (D, D),
        "cross_attention.in_proj_weight": (3 * D, D), "cross_attention.out_proj.weight": (D, D),
        "linear1.weight": (F, D), "linear2.weight": (D, F),
    }  # fmt: skip
    text = "condition_provider.conditioners.description.output_proj"
    shapes = {f"{text}.weight": (D, config.text_dim), f"{text}.bias": (D,)}
    shapes |= {f"emb.{k}.weight": (config.card + 1, D) for k in range(config.n_q)}
    for i in range(config.num_layers):
        shapes |= {f"transformer.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= {"out_norm.weight": (D,), "out_norm.bias": (D,)}
    shapes |= {f"linears.{k}.weight": (config.card, D) for k in range(config.n_q)}
    return {name: draw(rng, shape, dtype) for name, shape in shapes.items()}


def audiocraft_codec(config=DEBUG.encodec):
    """Of one residual layer, in audiocraft's spelling."""
    rng = np.random.default_rng(1)
    state = {}

    def conv(name, first, second, kernel, out):
        state[f"{name}.weight_g"] = np.abs(draw(rng, (first, 1, 1))) + 1
        state[f"{name}.weight_v"] = draw(rng, (first, second, kernel))
        state[f"{name}.bias"] = draw(rng, (out,))

    def block(side, i, dim):
        hidden = dim // config.compress
        kernel = config.residual_kernel_size
        conv(f"{side}.model.{i}.block.1.conv.conv", hidden, dim, kernel, hidden)
        conv(f"{side}.model.{i}.block.3.conv.conv", dim, hidden, 1, dim)

    def lstm(side, i, dim):
        for layer in range(config.lstm):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                shape = (4 * dim, dim) if "weight" in name else (4 * dim,)
                state[f"{side}.model.{i}.lstm.{name}_l{layer}"] = draw(rng, shape)

    dim, i = config.n_filters, 0
    conv("encoder.model.0.conv.conv", dim, config.channels, config.kernel_size, dim)
    for ratio in reversed(config.ratios):
        block("encoder", i + 1, dim)
        i += 3
        conv(f"encoder.model.{i}.conv.conv", 2 * dim, dim, 2 * ratio, 2 * dim)
        dim *= 2
    lstm("encoder", i + 1, dim)
    last, width = config.last_kernel_size, config.dimension
    conv(f"encoder.model.{i + 3}.conv.conv", width, dim, last, width)
    conv("decoder.model.0.conv.conv", dim, width, config.kernel_size, dim)
    lstm("decoder", 1, dim)
    i = 3
    for ratio in config.ratios:
        conv(f"decoder.model.{i}.convtr.convtr", dim, dim // 2, 2 * ratio, dim // 2)
        dim //= 2
        block("decoder", i + 1, dim)
        i += 3
    conv(f"decoder.model.{i}.conv.conv", config.channels, dim, last, config.channels)
    for k in range(config.n_q):
        book = f"quantizer.vq.layers.{k}._codebook"
        state[f"{book}.inited"] = np.ones(1, np.float32)
        state[f"{book}.cluster_size"] = draw(rng, (config.bins,))
        state[f"{book}.embed"] = draw(rng, (config.bins, width))
        state[f"{book}.embed_avg"] = draw(rng, (config.bins, width))
    return state


def t5_state(config=DEBUG.t5):
    rng = np.random.default_rng(2)
    E, F, inner = config.d_model, config.d_ff, config.d_kv * config.num_heads
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes = {
        "shared.weight": (config.vocab_size, E),
        bias: (config.relative_attention_num_buckets, config.num_heads),
        "encoder.final_layer_norm.weight": (E,),
    }
    for i in range(config.num_layers):
        attention, ffn = (f"encoder.block.{i}.layer.{n}" for n in (0, 1))
        shapes |= {f"{attention}.SelfAttention.{n}.weight": (inner, E) for n in "qkv"}
        shapes |= {
            f"{attention}.SelfAttention.o.weight": (E, inner),
            f"{attention}.layer_norm.weight": (E,),
            f"{ffn}.DenseReluDense.wi.weight": (F, E),
            f"{ffn}.DenseReluDense.wo.weight": (E, F),
            f"{ffn}.layer_norm.weight": (E,),
        }
    return {name: draw(rng, shape) for name, shape in shapes.items()}


LM_CFG = f"transformer_lm:\n  num_heads: {DEBUG.lm.num_heads}\n"
CODEC_CFG = f"sample_rate: {DEBUG.encodec.sample_rate}\nseanet:\n  pad_mode: reflect\n"


def write_audiocraft(folder, *, lm_state=None, lm_cfg=LM_CFG, codec_cfg=CODEC_CFG):
    folder.mkdir()
    package = {"best_state": lm_state or audiocraft_lm(), "xp.cfg": lm_cfg, "exported": True}
    write_torch(folder / "state_dict.bin", package)
    package = {"best_state": audiocraft_codec(), "xp.cfg": codec_cfg, "exported": True}
    write_torch(folder / "compression_state_dict.bin", package)
    write_t5(folder / "t5-base")
    return folder


def write_t5(folder):
    folder.mkdir()
    safetensors.numpy.save_file(t5_state(), folder / "model.safetensors")
    (folder / "spiece.model").write_bytes(character_tokenizer())
    settings = {"model_type": "t5", "relative_attention_max_distance": 20}
    (folder / "config.json").write_text(json.dumps(settings))
