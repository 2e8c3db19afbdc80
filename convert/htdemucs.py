"""HTDemucs' table, in the order of the forward pass, and its settings.

demucs saves a model with the arguments of its constructor. The file is a pickle
(`955717e8-8726e21a.th`: klass, args, kwargs, state) or, on the Hub, safetensors with the arguments
in the metadata.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.convert.pickled import Inert
from musicgen_jax.convert.rules import Rule, Table, norm, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

FAMILY = "demucs"
# demucs' file names: eight digits of the training run; in .th also eight of a checksum.
FILE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8})?\.th|[0-9a-f]{8}\.safetensors")
KLASS = "demucs.htdemucs.HTDemucs"
# Names in demucs' pickles, besides tensors. Earlier models are listed to recognise them.
NAMES = frozenset({KLASS, "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs", "fractions.Fraction"})
_MOST = 1 << 20  # limit for any size: above it no tensor could fit, and powers take forever
_MOST_SECONDS = 600
_FRACTION = re.compile(r"[0-9]{1,18}(/[0-9]{1,18})?")


def pointwise(weight: np.ndarray) -> np.ndarray:
    """From a convolution [out, in, 1] or [out, in, 1, 1] -> [out, in]."""
    if any(size != 1 for size in weight.shape[2:]):
        raise ValueError(f"not pointwise: {weight.shape}")
    return weight.reshape(weight.shape[:2])


def strided(weight: np.ndarray) -> np.ndarray:
    """From Conv1d [out, in, k] or Conv2d [out, in, k, 1] -> [k, in, out]."""
    return np.ascontiguousarray(_one_axis(weight).transpose(2, 1, 0))


def transposed(weight: np.ndarray) -> np.ndarray:
    """From ConvTranspose1d [in, out, k] or 2d [in, out, k, 1] -> [k, in, out]."""
    return np.ascontiguousarray(_one_axis(weight).transpose(2, 0, 1))


def over_time(weight: np.ndarray) -> np.ndarray:
    """From Conv1d [out, in, kT] -> [kT, 1, in, out]."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0)[:, None])


def over_both(weight: np.ndarray) -> np.ndarray:
    """From Conv2d [out, in, kF, kT] -> [kT, kF, in, out]."""
    return np.ascontiguousarray(weight.transpose(3, 2, 1, 0))


def _one_axis(weight: np.ndarray) -> np.ndarray:
    if weight.ndim == 4 and weight.shape[3] == 1:
        return weight[..., 0]
    if weight.ndim != 3:
        raise ValueError(f"not along one axis: {weight.shape}")
    return weight


def _dconv(side: str) -> list[Rule]:
    target, source = f"{side}/{{i}}/dconv/layers/{{j}}", f"{side}.{{i}}.dconv.layers.{{j}}"
    return [
        *with_bias(f"{target}/conv1", f"{source}.0", over_time),
        *norm(f"{target}/norm1", f"{source}.1"),
        *with_bias(f"{target}/conv2", f"{source}.3", pointwise),
        *norm(f"{target}/norm2", f"{source}.4"),
        Rule(f"{target}/gamma/scale", f"{source}.6.scale"),
    ]


def _encoder(side: str) -> list[Rule]:
    return [
        *with_bias(f"{side}/{{i}}/conv", f"{side}.{{i}}.conv", strided),
        *_dconv(side),
        *with_bias(f"{side}/{{i}}/rewrite", f"{side}.{{i}}.rewrite", pointwise),
    ]


def _decoder(side: str, rewrite: Callable[..., np.ndarray]) -> list[Rule]:
    return [
        *with_bias(f"{side}/{{i}}/rewrite", f"{side}.{{i}}.rewrite", rewrite),
        *_dconv(side),
        *with_bias(f"{side}/{{i}}/conv_tr", f"{side}.{{i}}.conv_tr", transposed),
    ]


def _transformer(layers: str) -> list[Rule]:
    target, source = f"{layers}/{{i}}", f"{layers}.{{i}}".replace("/", ".")
    return [
        Rule(f"{target}/attn/in_proj/weight", f"{source}.attn.in_proj_weight"),
        Rule(f"{target}/attn/in_proj/bias", f"{source}.attn.in_proj_bias"),
        *with_bias(f"{target}/attn/out_proj", f"{source}.attn.out_proj"),
        *with_bias(f"{target}/linear1", f"{source}.linear1"),
        *with_bias(f"{target}/linear2", f"{source}.linear2"),
        *norm(f"{target}/norm1", f"{source}.norm1"),
        *norm(f"{target}/norm2", f"{source}.norm2"),
        *norm(f"{target}/norm3", f"{source}.norm3"),
        *norm(f"{target}/norm_out", f"{source}.norm_out"),
        Rule(f"{target}/gamma_1/scale", f"{source}.gamma_1.scale"),
        Rule(f"{target}/gamma_2/scale", f"{source}.gamma_2.scale"),
    ]


TABLE = Table(
    rules=(
        *_encoder("encoder"),
        Rule("freq_emb", "freq_emb.embedding.weight"),
        *_encoder("tencoder"),
        *with_bias("channel_upsampler", "channel_upsampler", pointwise),
        *with_bias("channel_upsampler_t", "channel_upsampler_t", pointwise),
        *norm("crosstransformer/norm_in", "crosstransformer.norm_in"),
        *norm("crosstransformer/norm_in_t", "crosstransformer.norm_in_t"),
        *_transformer("crosstransformer/layers"),
        *_transformer("crosstransformer/layers_t"),
        *with_bias("channel_downsampler", "channel_downsampler", pointwise),
        *with_bias("channel_downsampler_t", "channel_downsampler_t", pointwise),
        *_decoder("decoder", over_both),
        *_decoder("tdecoder", over_time),
    ),
    aliases=((r"\.(self|cross)_attn\.", ".attn."),),
)


# --- Settings ----------------------------------------------------------------------------------


def settings_of_package(value: Mapping, origin: str) -> dict[str, Any]:
    """The constructor's arguments from a pickled package.

    Raises:
      UserError: the package has a different class, or demucs did not write it.
    """
    klass = value.get("klass")
    return _arguments(
        str(getattr(klass, "name", klass)), value.get("args"), value.get("kwargs"), origin
    )


def settings_of_metadata(metadata: Mapping[str, str], origin: str) -> dict[str, Any] | None:
    """The constructor's arguments from safetensors metadata; None if it describes no model."""
    if "klass" not in metadata:
        return None
    try:
        args, kwargs = (json.loads(metadata[name]) for name in ("args", "kwargs"))
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{origin} is damaged: its args or kwargs are not JSON") from None
    return _arguments(metadata["klass"], args, kwargs, origin)


def _arguments(klass: str, args: Any, kwargs: Any, origin: str) -> dict[str, Any]:
    if klass != KLASS:
        raise UserError(f"{origin} is a {klass[:100]}, which is not supported: only HTDemucs is")
    if not isinstance(args, (tuple, list)) or len(args) > 1 or not isinstance(kwargs, dict):
        raise UserError(f"{origin} is damaged: it does not say how it is built")
    return {**dict(zip(["sources"], args, strict=False)), **kwargs}


def derive_config(part: Part) -> HTDemucsConfig:
    """The config from the constructor's arguments; missing arguments have demucs' defaults.

    Raises:
      UserError: this kind of model is not supported, or its settings are invalid.
    """
    part.check("separator")
    settings = part.settings
    sources = settings.get("sources")
    if not isinstance(sources, (list, tuple)) or not all(type(name) is str for name in sources):
        raise UserError(f"{part.origin} does not name its sources")
    sizes: dict[str, Any] = {name: _whole(part, name, default) for name, default in _SIZES.items()}
    if settings.get("channels_time") not in (None, sizes["channels"]):
        raise UserError(f"{part.origin} has branches of different width, which are not supported")
    if sizes.pop("norm_starts") < sizes["depth"]:
        raise UserError(f"{part.origin} has norms in its encoder, which are not supported")
    rate = _whole(part, "samplerate", 44100)
    length = _segment_length(part, rate)
    scales: dict[str, Any] = {
        name: _scale(part, name, default) for name, default in _SCALES.items()
    }
    try:
        return HTDemucsConfig(
            sources=tuple(sources),
            sample_rate=rate,
            segment_length=length,
            t_cross_first=bool(settings.get("t_cross_first", False)),
            **sizes,
            **scales,
        )
    except ValueError as error:
        raise UserError(f"{part.origin} is not supported: {error}") from None


# Names, defaults and meanings are those of HTDemucs' constructor.
_SIZES = {
    "audio_channels": 2,
    "channels": 48,
    "growth": 2,
    "nfft": 4096,
    "depth": 4,
    "kernel_size": 8,
    "stride": 4,
    "context": 1,
    "norm_starts": 4,
    "dconv_mode": 1,
    "dconv_depth": 2,
    "dconv_comp": 8,
    "bottom_channels": 0,
    "t_layers": 5,
    "t_heads": 8,
}
_SCALES = {"freq_emb": 0.2, "emb_scale": 10.0, "t_hidden_scale": 4.0, "t_weight_pos_embed": 1.0}


def _whole(part: Part, name: str, default: int) -> int:
    value = part.settings.get(name, default)
    lowest = 0 if name in ("context", "dconv_mode", "bottom_channels", "t_layers") else 1
    limit = 8 if name == "depth" else _MOST
    if type(value) not in (int, float) or value != value or not lowest <= value <= limit:
        raise UserError(f"{part.origin}: {name} must be from {lowest} to {limit}, got {value!r}")
    if value != int(value):
        raise UserError(f"{part.origin}: {name} must be a whole number, got {value!r}")
    return int(value)


def _scale(part: Part, name: str, default: float) -> float:
    value = part.settings.get(name, default)
    if type(value) not in (int, float, bool, type(None)) or not 0 <= (value or 0) <= _MOST:
        raise UserError(f"{part.origin}: {name} must be a number from 0 to {_MOST}, got {value!r}")
    return float(value or 0)


def _segment_length(part: Part, rate: int) -> int:
    """Samples in `segment` seconds, which demucs stores as a fraction: 7.8 could lose a sample."""
    value = part.settings.get("segment", 10)
    if isinstance(value, Inert):  # holds two numbers since Python 3.11, "39/5" before
        terms = value.args if value.name == "fractions.Fraction" else ()
        if len(terms) == 1 and type(terms[0]) is str and _FRACTION.fullmatch(terms[0]):
            terms = tuple(int(term) for term in terms[0].split("/"))
    elif isinstance(value, dict):  # in JSON
        terms = (value.get("numerator"), value.get("denominator"))
    else:
        terms = (value,)
    match terms:
        case (int() | float() as seconds,) if 0 < seconds <= _MOST_SECONDS:
            return int(seconds * rate)
        case (int() as over, int() as under) if 0 < over <= _MOST_SECONDS * under:
            return over * rate // under
    raise UserError(
        f"{part.origin}: segment must be a number of seconds, more than 0 and at most "
        f"{_MOST_SECONDS}"
    )
