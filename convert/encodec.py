"""EnCodec's table, in the order of the forward pass.

The names of audiocraft, of the original encodec and of transformers differ by a word or two:
aliases bring all to transformers'.
Weight norm is folded here, in float32: w = g * v / |v|, the norm over all axes but the first.
"""

import re
from typing import Any

import numpy as np

from musicgen_jax.config import EncodecConfig
from musicgen_jax.convert.rules import Rule, Table
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError


def fold(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Magnitude [I, 1, 1] and direction [I, J, k] -> weight [I, J, k], float32."""
    g, v = g.astype(np.float32), v.astype(np.float32)
    norm = np.sqrt(np.sum(np.square(v), axis=(1, 2), keepdims=True))
    if g.shape != norm.shape:
        raise ValueError(f"magnitudes {g.shape} for directions {v.shape}")
    return g * v / norm


def convolution(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """From torch's Conv1d [out, in, k], as magnitude and direction, -> [k, in, out]."""
    return np.ascontiguousarray(fold(g, v).transpose(2, 1, 0))


def transposed_convolution(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """From torch's ConvTranspose1d [in, out, k] -> [k, in, out], y[t s + j] += x[t] @ weight[j]."""
    return np.ascontiguousarray(fold(g, v).transpose(2, 0, 1))


def plain_convolution(weight: np.ndarray) -> np.ndarray:
    """As `convolution`, of a weight that is not in two parts."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0))


def plain_transposed_convolution(weight: np.ndarray) -> np.ndarray:
    """As `transposed_convolution`, of a weight that is not in two parts."""
    return np.ascontiguousarray(weight.transpose(2, 0, 1))


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The two biases of torch's LSTM, which only ever appear as their sum, float32."""
    return x.astype(np.float32) + y.astype(np.float32)


def stack(*books: np.ndarray) -> np.ndarray:
    """K x [bins, dim] -> [K, bins, dim]."""
    return np.stack(books)


_ALIASES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"\.(conv|convtr)\.norm\.", ".norm."),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
    # torch's newer name of weight norm: original0 is the magnitude, original1 the direction.
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
_IGNORED = {
    r"quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)": (
        "the state of training: running statistics of the codebooks"
    ),
}
# What transformers leaves out of a config.json when it is the default.
TRANSFORMERS_DEFAULTS = {
    "sampling_rate": 24000,
    "use_causal_conv": True,
    "use_conv_shortcut": True,
}


# The originals are bare dicts of tensors: what their code says about them (encodec/model.py), in
# transformers' words.
_ORIGINAL_24KHZ = {"sampling_rate": 24000, "use_causal_conv": True}
_ORIGINAL_48KHZ = {
    "sampling_rate": 48000,
    "use_causal_conv": False,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
}


def _weight(target: str, source: str, norm: str, *, transposed: bool = False) -> Rule:
    if norm == "weight_norm":
        parts = f"{source}.conv.weight_g", f"{source}.conv.weight_v"
        return Rule(target, parts, transposed_convolution if transposed else convolution)
    transform = plain_transposed_convolution if transposed else plain_convolution
    return Rule(target, f"{source}.conv.weight", transform)


def _bias_and_norm(target: str, source: str, norm: str) -> list[Rule]:
    rules = [Rule(f"{target}/bias", f"{source}.conv.bias")]
    if norm == "time_group_norm":
        rules += [
            Rule(f"{target}/norm/scale", f"{source}.norm.weight"),
            Rule(f"{target}/norm/bias", f"{source}.norm.bias"),
        ]
    return rules


def _blocks_and_lstm(side: str, config: EncodecConfig) -> list[Rule]:
    to, layer = f"{side}/layers/{{i}}", f"{side}.layers.{{i}}"
    rules = []
    parts = [("block/1", "block.1"), ("block/3", "block.3")]
    parts += [("shortcut", "shortcut")] * config.conv_shortcut
    for target, source in parts:
        names = f"{to}/{target}", f"{layer}.{source}"
        rules.append(_weight(f"{names[0]}/weight", names[1], config.norm))
        rules += _bias_and_norm(*names, config.norm)
    lstm = f"{layer}.lstm"
    return [
        *rules,
        Rule(f"{to}/lstm/{{l}}/weight_ih", f"{lstm}.weight_ih_l{{l}}"),
        Rule(f"{to}/lstm/{{l}}/weight_hh", f"{lstm}.weight_hh_l{{l}}"),
        Rule(f"{to}/lstm/{{l}}/bias", (f"{lstm}.bias_ih_l{{l}}", f"{lstm}.bias_hh_l{{l}}"), add),
    ]


def table(config: EncodecConfig) -> Table:
    """The rules for a codec of these sizes.

    They depend on it in the decoder, where only the position tells a transposed convolution.
    """
    index = 1 + bool(config.lstm)
    upsampling = []
    for _ in config.ratios:
        upsampling.append(index + 1)  # behind an ELU
        index += 2 + config.n_residual_layers
    decoder = _bias_and_norm("decoder/layers/{i}", "decoder.layers.{i}", config.norm)
    for i in (0, *upsampling, index + 1):
        target, source = f"decoder/layers/{i}/weight", f"decoder.layers.{i}"
        decoder.append(_weight(target, source, config.norm, transposed=i in upsampling))
    return Table(
        rules=(
            _weight("encoder/layers/{i}/weight", "encoder.layers.{i}", config.norm),
            *_bias_and_norm("encoder/layers/{i}", "encoder.layers.{i}", config.norm),
            *_blocks_and_lstm("encoder", config),
            Rule("quantizer/embed", "quantizer.layers.{k}.codebook.embed", stack),
            *decoder,
            *_blocks_and_lstm("decoder", config),
        ),
        aliases=_ALIASES,
        ignored=_IGNORED,
    )


def derive_config(part: Part, n_q: int | None = None) -> EncodecConfig:
    """Sizes, norm and skips from the tensors; rate, padding and levels from the settings.

    Without settings, a codec with convolutions as skips is one of the two originals.

    Args:
      part: the codec.
      n_q: books that the language model uses; the file may hold more, which are left out.

    Raises:
      UserError: the codec is of a kind that is not supported, or lacks what tells its size.
    """
    names = Table((), _ALIASES)
    shapes = {names.rename(key): tensor.shape for key, tensor in part.tensors.items()}
    shortcut = any(".shortcut." in key for key in shapes)
    norm, weight = "weight_norm", "conv.weight_v"
    if any(key.endswith(".norm.weight") for key in shapes):
        norm, weight = "time_group_norm", "conv.weight"
    if shortcut and not part.settings:
        original = _ORIGINAL_24KHZ if norm == "weight_norm" else _ORIGINAL_48KHZ
        part = part._replace(family="transformers", settings=original)
    _check_supported(part, norm, shortcut)
    if shortcut and part.settings.get("sampling_rate") == 32000:
        raise UserError(
            f"{part.origin} is the first upload of encodec_32khz, whose skips are wrong: download "
            "it again"
        )

    def indices(pattern: str) -> list[int]:
        return sorted({int(m[1]) for key in shapes if (m := re.fullmatch(pattern, key))})

    books = indices(r"quantizer\.layers\.(\d{1,3})\.codebook\.embed")
    convolutions = [
        indices(rf"{side}\.layers\.(\d{{1,3}})\.{weight}") for side in ("encoder", "decoder")
    ]
    blocks = indices(rf"encoder\.layers\.(\d{{1,3}})\.block\.1\.{weight}")
    try:
        (first, *_, last), (_, *upsampling, _) = convolutions
        n_filters, channels, kernel_size = shapes[f"encoder.layers.{first}.{weight}"]
        dimension, _, last_kernel_size = shapes[f"encoder.layers.{last}.{weight}"]
        block = shapes[f"encoder.layers.{blocks[0]}.block.1.{weight}"]
        hidden, dim, residual_kernel_size = block
        bins, _ = shapes[f"quantizer.layers.{books[0]}.codebook.embed"]
        kernels = [shapes[f"decoder.layers.{i}.{weight}"][2] for i in upsampling]
        compress, n_residual_layers = dim // hidden, len(blocks) // len(kernels)
    except (ValueError, LookupError, ArithmeticError):
        raise UserError(
            f"{part.origin} is not an EnCodec: convolutions, residual blocks or codebooks are "
            "missing or of unexpected shape"
        ) from None
    audiocraft = part.family == "audiocraft"
    return _config(
        part,
        sample_rate=part.number("sample_rate" if audiocraft else "sampling_rate", 32000),
        channels=channels,
        n_filters=n_filters,
        ratios=tuple(kernel // 2 for kernel in kernels),
        dimension=dimension,
        n_q=min(n_q or len(books), len(books)),
        bins=bins,
        kernel_size=kernel_size,
        last_kernel_size=last_kernel_size,
        residual_kernel_size=residual_kernel_size,
        n_residual_layers=n_residual_layers,
        dilation_base=part.number(
            "seanet.dilation_base" if audiocraft else "dilation_growth_rate", 2
        ),
        compress=compress,
        lstm=len(indices(r"encoder\.layers\.\d{1,3}\.lstm\.weight_ih_l(\d)")),
        # The released codec reflects; audiocraft's training recipe says otherwise.
        pad_mode=str(part.settings.get("seanet.pad_mode" if audiocraft else "pad_mode", "reflect")),
        causal=part.flag("seanet.causal" if audiocraft else "use_causal_conv"),
        trim_right_ratio=part.number(
            "seanet.decoder.trim_right_ratio" if audiocraft else "trim_right_ratio", 1.0
        ),
        norm=norm,
        conv_shortcut=shortcut,
        normalize=part.flag("encodec.renormalize" if audiocraft else "normalize"),
        # audiocraft's codecs take a clip whole.
        chunk_length_s=None if audiocraft else part.number("chunk_length_s", 0.0) or None,
        overlap=0.0 if audiocraft else part.number("overlap", 0.0),
    )


def _config(part: Part, **fields: Any) -> EncodecConfig:
    try:
        return EncodecConfig(**fields)
    except ValueError as error:
        raise UserError(f"{part.origin}: {error}") from None


def without_unused_books(part: Part, n_q: int) -> Part:
    """The codec without the codebooks that the language model does not use."""
    names = Table((), _ALIASES)

    def used(key: str) -> bool:
        match = re.match(r"quantizer\.layers\.(\d+)\.", names.rename(key))
        return match is None or int(match[1]) < n_q

    return part._replace(tensors={k: t for k, t in part.tensors.items() if used(k)})


def _check_supported(part: Part, norm: str, shortcut: bool) -> None:
    """Refuses what is not implemented, and settings that are not those of the tensors."""
    if part.family == "audiocraft":
        part.require("compression_model", "encodec")
        part.require("encodec.quantizer", "rvq")
        part.require("encodec.causal", part.settings.get("seanet.causal", "false"))
        part.require("seanet.norm", norm)
        part.require("seanet.true_skip", str(not shortcut).lower())
        part.require("seanet.activation", "ELU")
        part.require("seanet.pad_mode", "reflect", "constant")
    else:
        part.require("norm_type", norm)
        part.require("use_conv_shortcut", shortcut)
        part.require("pad_mode", "reflect", "constant")
