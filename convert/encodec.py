"""EnCodec's table, in the order of the forward pass.

The names in audiocraft, the original encodec and transformers differ by a word or two. These are
the spellings; aliases translate them to the spelling of the rules.
Weight norm is folded here, in float32: w = v * (g / |v|), with the norm over all axes but the
first.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from musicgen_jax.config import EncodecConfig
from musicgen_jax.convert.rules import STACK, Remade, Rule, Table, Transform, template_regex
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError


def fold(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Magnitude [I, 1, 1] and direction [I, J, k] -> weight [I, J, k], float32."""
    g, v = g.astype(np.float32), np.ascontiguousarray(v, np.float32)
    norm = _norm(v)
    if g.shape != norm.shape:
        raise ValueError(f"magnitudes {g.shape} for directions {v.shape}")
    return v * (g / norm)  # in torch's order, which also makes `unfold` exact


def unfold(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A magnitude and a direction that `fold` to exactly the weight [I, J, k].

    The original magnitude and direction are lost; this function uses the weight as the direction.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    norm = _norm(weight)
    # A zero weight has no direction, so any direction will do.
    v = np.where((weight == 0).all(axis=(1, 2), keepdims=True), np.copysign(1, weight), weight)
    return norm, v.astype(np.float32)


def _norm(v: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(v), axis=(1, 2), keepdims=True))


# From torch's Conv1d [out, in, k], as magnitude and direction, to [k, in, out].
convolution = Transform(
    lambda g, v: np.ascontiguousarray(fold(g, v).transpose(2, 1, 0)),
    lambda weight: unfold(weight.transpose(2, 1, 0)),
)
# From torch's ConvTranspose1d [in, out, k] to [k, in, out], y[t s + j] += x[t] @ weight[j].
transposed_convolution = Transform(
    lambda g, v: np.ascontiguousarray(fold(g, v).transpose(2, 0, 1)),
    lambda weight: unfold(weight.transpose(1, 2, 0)),
)
# The same for weights that are not in two parts.
plain_convolution = Transform(
    lambda weight: np.ascontiguousarray(weight.transpose(2, 1, 0)),
    lambda weight: (weight.transpose(2, 1, 0),),
)
plain_transposed_convolution = Transform(
    lambda weight: np.ascontiguousarray(weight.transpose(2, 0, 1)),
    lambda weight: (weight.transpose(1, 2, 0),),
)
# The two biases of torch's LSTM, which appear only as their sum, in float32. The inverse uses -0,
# because x + -0 is x for every x, including -0.
add = Transform(
    lambda x, y: x.astype(np.float32) + y.astype(np.float32),
    lambda bias: (bias, np.full_like(bias, -0.0)),
)


@dataclasses.dataclass(frozen=True)
class Spelling:
    """The words that differ between families of files; a key is a path of such words."""

    layers: str
    convolution: str
    transposed: str
    norm: str
    transposed_norm: str
    book: str
    magnitude: str = "weight_g"
    direction: str = "weight_v"


RULES = Spelling("layers", "conv", "conv", "norm", "norm", "quantizer.layers.{k}.codebook")
SPELLINGS = {
    # Torch's newer name for weight norm.
    "transformers": dataclasses.replace(
        RULES,
        magnitude="parametrizations.weight.original0",
        direction="parametrizations.weight.original1",
    ),
    "audiocraft": Spelling(
        "model",
        "conv.conv",
        "convtr.convtr",
        "conv.norm",
        "convtr.norm",
        "quantizer.vq.layers.{k}._codebook",
    ),
}


def _aliases() -> Iterator[tuple[str, str]]:
    """Aliases from every spelling to the spelling of the rules."""
    for spelling in SPELLINGS.values():
        words = {
            field.name: (re.escape(getattr(spelling, field.name)), getattr(RULES, field.name))
            for field in dataclasses.fields(Spelling)
        }
        layers, ours = words.pop("layers")
        yield rf"^(encoder|decoder)\.{layers}\.", rf"\1.{ours}."
        words.pop("book")
        yield rf"^{template_regex(spelling.book)}\.", RULES.book.replace("{k}", r"\g<k>") + "."
        for theirs, ours in words.values():
            yield rf"\.{theirs}(?=\.|$)", f".{ours}"


_ALIASES = tuple(_aliases())


def codebook_statistics(book: str, target: str) -> tuple[Remade, ...]:
    """The training state that is stored next to each codebook of a quantizer.

    It is rebuilt as if every entry had been used once, recently. So the state is consistent if
    training resumes.

    Args:
      book: template of the codebooks' keys.
      target: our parameter, which holds all codebooks.
    """
    why = "the state of training: running statistics of the codebooks"
    return (
        Remade(f"{book}.inited", why, target, lambda embed: np.ones(1, embed.dtype)),
        Remade(f"{book}.cluster_size", why, target, lambda embed: np.ones(len(embed), embed.dtype)),
        Remade(f"{book}.embed_avg", why, target, lambda embed: embed),
    )


# Defaults that transformers leaves out of a config.json.
TRANSFORMERS_DEFAULTS = {
    "sampling_rate": 24000,
    "use_causal_conv": True,
    "use_conv_shortcut": True,
}


# The original files contain only tensors. These are their settings according to the original code
# (encodec/model.py), under transformers' names.
_ORIGINAL_24KHZ = {"sampling_rate": 24000, "use_causal_conv": True}
_ORIGINAL_48KHZ = {
    "sampling_rate": 48000,
    "use_causal_conv": False,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
}


def table(config: EncodecConfig, spelling: Spelling = RULES) -> Table:
    """The rules for a codec of these sizes.

    The decoder's rules depend on the config, because only the position identifies a transposed
    convolution.

    Args:
      config: the sizes.
      spelling: spelling of the keys. Reading uses the default, to which aliases translate all
        spellings; writing uses the spelling of one family.
    """
    index = 1 + bool(config.lstm)
    upsampling = []
    for _ in config.ratios:
        upsampling.append(index + 1)  # after an ELU
        index += 2 + config.n_residual_layers
    convolve = functools.partial(_convolution, norm=config.norm, spelling=spelling)
    decoder = []
    for i in (0, *upsampling, index + 1):
        transposed = i in upsampling
        decoder += convolve(f"decoder/layers/{i}", f"decoder.layers.{i}", transposed=transposed)
    return Table(
        rules=(
            *convolve("encoder/layers/{i}", "encoder.layers.{i}"),
            *_blocks_and_lstm("encoder", config, spelling),
            Rule("quantizer/embed", f"{spelling.book}.embed", STACK),
            *decoder,
            *_blocks_and_lstm("decoder", config, spelling),
        ),
        aliases=_ALIASES,
        remade=codebook_statistics(spelling.book, "quantizer/embed"),
    )


def _convolution(
    target: str, source: str, *, norm: str, spelling: Spelling, transposed: bool = False
) -> list[Rule]:
    source = re.sub(r"^(encoder|decoder)\.layers\.", rf"\1.{spelling.layers}.", source)
    layer = f"{source}.{spelling.transposed if transposed else spelling.convolution}"
    if norm == "weight_norm":
        parts = f"{layer}.{spelling.magnitude}", f"{layer}.{spelling.direction}"
        weight = Rule(
            f"{target}/weight", parts, transposed_convolution if transposed else convolution
        )
    else:
        transform = plain_transposed_convolution if transposed else plain_convolution
        weight = Rule(f"{target}/weight", f"{layer}.weight", transform)
    rules = [weight, Rule(f"{target}/bias", f"{layer}.bias")]
    if norm == "time_group_norm":
        normed = f"{source}.{spelling.transposed_norm if transposed else spelling.norm}"
        rules += [
            Rule(f"{target}/norm/scale", f"{normed}.weight"),
            Rule(f"{target}/norm/bias", f"{normed}.bias"),
        ]
    return rules


def _blocks_and_lstm(side: str, config: EncodecConfig, spelling: Spelling) -> list[Rule]:
    to, layer = f"{side}/layers/{{i}}", f"{side}.layers.{{i}}"
    rules = []
    parts = [("block/1", "block.1"), ("block/3", "block.3")]
    parts += [("shortcut", "shortcut")] * config.conv_shortcut
    for target, source in parts:
        names = f"{to}/{target}", f"{layer}.{source}"
        rules += _convolution(*names, norm=config.norm, spelling=spelling)
    lstm = f"{side}.{spelling.layers}.{{i}}.lstm"
    return [
        *rules,
        Rule(f"{to}/lstm/{{l}}/weight_ih", f"{lstm}.weight_ih_l{{l}}"),
        Rule(f"{to}/lstm/{{l}}/weight_hh", f"{lstm}.weight_hh_l{{l}}"),
        Rule(f"{to}/lstm/{{l}}/bias", (f"{lstm}.bias_ih_l{{l}}", f"{lstm}.bias_hh_l{{l}}"), add),
    ]


def derive_config(part: Part, n_q: int | None = None) -> EncodecConfig:
    """Takes sizes, norm and skips from the tensors, and rate, padding and levels from the settings.

    Without settings, a codec whose skips are convolutions is one of the two original codecs.

    Args:
      part: the codec.
      n_q: number of books that the language model uses; further books in the file are left out.

    Raises:
      UserError: this kind of codec is not supported, or tensors that give its size are missing.
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
        residual_kernel_size = block[2]
        bins, _ = shapes[f"quantizer.layers.{books[0]}.codebook.embed"]
        kernels = [shapes[f"decoder.layers.{i}.{weight}"][2] for i in upsampling]
        n_residual_layers = len(blocks) // len(kernels)
        compress = _compress(part, [shapes[f"encoder.layers.{i}.block.1.{weight}"] for i in blocks])
    except (ValueError, LookupError, ArithmeticError):
        raise UserError(
            f"{part.origin} is not an EnCodec: convolutions, residual blocks or codebooks are "
            "missing or of unexpected shape"
        ) from None
    audiocraft = part.family == "audiocraft"
    return _config(
        part,
        sample_rate=_sample_rate(part),
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
        # The released codec pads by reflection; audiocraft's training recipe differs.
        pad_mode=str(part.settings.get("seanet.pad_mode" if audiocraft else "pad_mode", "reflect")),
        causal=part.flag("seanet.causal" if audiocraft else "use_causal_conv"),
        trim_right_ratio=part.number(
            "seanet.decoder.trim_right_ratio" if audiocraft else "trim_right_ratio", 1.0
        ),
        norm=norm,
        conv_shortcut=shortcut,
        normalize=part.flag("encodec.renormalize" if audiocraft else "normalize"),
        # audiocraft's codecs process a clip as a whole.
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
    """Refuses unsupported features, and settings that contradict the tensors."""
    part.check("encodec")
    if part.family == "audiocraft":
        part.require("encodec.causal", part.settings.get("seanet.causal", "false"))
        part.require("seanet.norm", norm)
        part.require("seanet.true_skip", str(not shortcut).lower())
    else:
        part.require("norm_type", norm)
        part.require("use_conv_shortcut", shortcut)


def _sample_rate(part: Part) -> int:
    if part.family == "transformers":
        return part.number("sampling_rate", 32000)
    return part.number("encodec.sample_rate", part.number("sample_rate", 32000))


def _compress(part: Part, blocks: list[tuple[int, ...]]) -> int:
    """The factor by which residual blocks narrow; several factors can fit, as widths round down."""
    told = part.number("seanet.compress" if part.family == "audiocraft" else "compress", 0)
    widths = [(dim, hidden) for hidden, dim, _ in blocks]
    fitting = (c for c in range(1, widths[0][0] + 1) if all(d // c == h for d, h in widths))
    return told if told > 0 else next(fitting, widths[0][0] // widths[0][1])
