"""EnCodec's table, in the order of the forward pass.

audiocraft's names and transformers' differ by a word or two: aliases bring both to transformers'.
Weight norm is folded here, in float32: w = g * v / |v|, the norm over all axes but the first.
"""

import re

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


def _weight_norm(source: str) -> tuple[str, str]:
    return f"{source}.conv.weight_g", f"{source}.conv.weight_v"


def _blocks_and_lstm(side: str) -> list[Rule]:
    to, layer = f"{side}/layers/{{i}}", f"{side}.layers.{{i}}"
    rules = []
    for n in (1, 3):
        block = f"{layer}.block.{n}"
        rules += [
            Rule(f"{to}/block/{n}/weight", _weight_norm(block), convolution),
            Rule(f"{to}/block/{n}/bias", f"{block}.conv.bias"),
        ]
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
    decoder = [Rule("decoder/layers/{i}/bias", "decoder.layers.{i}.conv.bias")]
    for i in (0, *upsampling, index + 1):
        transform = transposed_convolution if i in upsampling else convolution
        source = _weight_norm(f"decoder.layers.{i}")
        decoder.append(Rule(f"decoder/layers/{i}/weight", source, transform))
    return Table(
        rules=(
            Rule("encoder/layers/{i}/weight", _weight_norm("encoder.layers.{i}"), convolution),
            Rule("encoder/layers/{i}/bias", "encoder.layers.{i}.conv.bias"),
            *_blocks_and_lstm("encoder"),
            Rule("quantizer/embed", "quantizer.layers.{k}.codebook.embed", stack),
            *decoder,
            *_blocks_and_lstm("decoder"),
        ),
        aliases=_ALIASES,
        ignored=_IGNORED,
    )


def derive_config(part: Part, n_q: int | None = None) -> EncodecConfig:
    """Sizes from the tensors; rate, padding and dilation from the settings.

    Args:
      part: the codec.
      n_q: books that the language model uses; the file may hold more, which are left out.

    Raises:
      UserError: the codec is of a kind that is not supported, or lacks what tells its size.
    """
    _check_supported(part)
    names = Table((), _ALIASES)
    shapes = {names.rename(key): tensor.shape for key, tensor in part.tensors.items()}

    def indices(pattern: str) -> list[int]:
        return sorted({int(m[1]) for key in shapes if (m := re.fullmatch(pattern, key))})

    books = indices(r"quantizer\.layers\.(\d{1,3})\.codebook\.embed")
    convolutions = [
        indices(rf"{side}\.layers\.(\d{{1,3}})\.conv\.weight_v") for side in ("encoder", "decoder")
    ]
    blocks = indices(r"encoder\.layers\.(\d{1,3})\.block\.1\.conv\.weight_v")
    try:
        (first, *_, last), (_, *upsampling, _) = convolutions
        n_filters, channels, kernel_size = shapes[f"encoder.layers.{first}.conv.weight_v"]
        dimension, _, last_kernel_size = shapes[f"encoder.layers.{last}.conv.weight_v"]
        hidden, dim, residual_kernel_size = shapes[
            f"encoder.layers.{blocks[0]}.block.1.conv.weight_v"
        ]
        bins, _ = shapes[f"quantizer.layers.{books[0]}.codebook.embed"]
        kernels = [shapes[f"decoder.layers.{i}.conv.weight_v"][2] for i in upsampling]
        compress, n_residual_layers = dim // hidden, len(blocks) // len(kernels)
    except (ValueError, LookupError, ArithmeticError):
        raise UserError(
            f"{part.origin} is not a 32 kHz EnCodec: convolutions with weight norm, residual "
            "blocks or codebooks are missing or of unexpected shape"
        ) from None
    audiocraft = part.family == "audiocraft"
    return EncodecConfig(
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
    )


def without_unused_books(part: Part, n_q: int) -> Part:
    """The codec without the codebooks that the language model does not use."""
    names = Table((), _ALIASES)

    def used(key: str) -> bool:
        match = re.match(r"quantizer\.layers\.(\d+)\.", names.rename(key))
        return match is None or int(match[1]) < n_q

    return part._replace(tensors={k: t for k, t in part.tensors.items() if used(k)})


def _check_supported(part: Part) -> None:
    if part.family == "audiocraft":
        part.require("compression_model", "encodec")
        part.require("encodec.quantizer", "rvq")
        part.require("seanet.causal", "false")
        part.require("encodec.causal", "false")
        part.require("encodec.renormalize", "false")
        part.require("seanet.norm", "weight_norm")
        part.require("seanet.true_skip", "true")
        part.require("seanet.activation", "ELU")
        part.require("seanet.pad_mode", "reflect", "constant")
    else:
        part.require("use_causal_conv", False)
        part.require("norm_type", "weight_norm")
        part.require("use_conv_shortcut", False)
        part.require("normalize", False)
        part.require("chunk_length_s", None)
        part.require("pad_mode", "reflect", "constant")
    if any(".shortcut." in key for key in part.tensors):
        raise UserError(f"{part.origin} has convolutions as skips, which are not supported")
