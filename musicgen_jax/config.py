"""Architecture of every model as frozen dataclasses, and their JSON round trip.

No jax here: tools, docs and the command line read configs without starting a backend.
Field names follow audiocraft; sizes of the official models are at the end of the file.
"""

import dataclasses
import json
import math
import typing

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class T5Config:
    """T5 encoder (v1.0: ReLU, not gated; no attention scale; relative positions)."""

    vocab_size: int = 32128
    d_model: int = 768
    d_kv: int = 64
    d_ff: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Transformer language model over `n_q` delayed codebooks of `card` entries.

    `conditioning` says how the text enters: "cross" (cross-attention: the text-to-music models) or
    "prepend" (in front of the tokens: the melody and style models).
    """

    dim: int
    num_heads: int
    num_layers: int
    n_q: int = 4
    card: int = 2048
    delays: tuple[int, ...] = (0, 1, 2, 3)
    ffn_dim: int = 0  # 0: four times `dim`
    text_dim: int = 768
    conditioning: str = "cross"
    chroma_bins: int = 0  # 12 in the melody models, else 0
    style_dim: int = 0  # width of the style tokens (512) in the style model, else 0

    def __post_init__(self) -> None:
        if not self.ffn_dim:
            object.__setattr__(self, "ffn_dim", 4 * self.dim)
        if self.conditioning not in ("cross", "prepend"):
            known = "'cross' or 'prepend'"
            raise ValueError(f"conditioning must be {known}, got {self.conditioning!r}")
        if len(self.delays) != self.n_q or min(self.delays) != 0:
            raise ValueError(
                f"delays must be {self.n_q} numbers (one per codebook), the smallest 0, "
                f"got {self.delays}"
            )
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and divide by {self.num_heads} heads")

    @property
    def special_token(self) -> int:
        """The token of every slot that holds no code: start of sequence and delay padding."""
        return self.card


@dataclasses.dataclass(frozen=True)
class EncodecConfig:
    """EnCodec: SEANet encoder and decoder around a residual vector quantizer."""

    sample_rate: int = 32000
    channels: int = 1
    n_filters: int = 64
    ratios: tuple[int, ...] = (8, 5, 4, 4)  # upsampling order; the encoder uses them reversed
    dimension: int = 128
    n_q: int = 4
    bins: int = 2048
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    n_residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    lstm: int = 2  # number of layers, 0 for none
    pad_mode: str = "reflect"

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length


@dataclasses.dataclass(frozen=True)
class MusicGenConfig:
    """A whole model: text encoder, language model, codec and how they fit together."""

    t5: T5Config
    lm: LMConfig
    encodec: EncodecConfig
    audio_channels: int = 1  # 2: stereo, codebooks interleaved left and right
    max_duration: float = 30.0  # seconds in one window, as in training
    name: str = ""

    def __post_init__(self) -> None:
        if self.lm.n_q != self.encodec.n_q * self.audio_channels:
            raise ValueError(
                f"the LM has {self.lm.n_q} codebooks, the codec {self.encodec.n_q} on each of "
                f"{self.audio_channels} channels"
            )
        if self.lm.card != self.encodec.bins:
            raise ValueError(
                f"the LM knows {self.lm.card} codes, the codec has {self.encodec.bins}"
            )
        if self.lm.text_dim != self.t5.d_model:
            raise ValueError(
                f"the LM takes text of width {self.lm.text_dim}, T5 gives {self.t5.d_model}"
            )

    @property
    def sample_rate(self) -> int:
        """Samples per second and channel."""
        return self.encodec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.encodec.frame_rate


def to_dict(config: object) -> dict:
    """A config as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]


def from_dict(cls: type, values: dict, where: str = "config"):
    """Builds the config dataclass `cls` from plain JSON types, checking names and types.

    Raises:
      ValueError: a field is unknown, missing or of the wrong type; the message names it.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown field {', '.join(unknown)}")
    kwargs = {}
    for name, field in fields.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"{where}: field {name} is missing")
            continue
        kwargs[name] = _parse(hints[name], values[name], f"{where}.{name}")
    return cls(**kwargs)


def _parse(hint: type, value: object, where: str):
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_parse(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


# --- The official models (github.com/facebookresearch/audiocraft, model_cards/) ---------------

T5_BASE = T5Config()
ENCODEC_32KHZ = EncodecConfig()
STEREO_DELAYS = (0, 0, 1, 1, 2, 2, 3, 3)


def _official(name: str, dim: int, layers: int, *, melody=False, style=False, stereo=False):
    lm = LMConfig(
        dim=dim,
        num_heads=dim // 64,
        num_layers=layers,
        n_q=8 if stereo else 4,
        delays=STEREO_DELAYS if stereo else (0, 1, 2, 3),
        conditioning="prepend" if melody or style else "cross",
        chroma_bins=12 if melody else 0,
        style_dim=512 if style else 0,
    )
    channels = 2 if stereo else 1
    return MusicGenConfig(T5_BASE, lm, ENCODEC_32KHZ, audio_channels=channels, name=name)


OFFICIAL_MODELS: dict[str, MusicGenConfig] = {
    config.name: config
    for config in (
        _official("facebook/musicgen-small", 1024, 24),
        _official("facebook/musicgen-medium", 1536, 48),
        _official("facebook/musicgen-large", 2048, 48),
        _official("facebook/musicgen-melody", 1536, 48, melody=True),
        _official("facebook/musicgen-melody-large", 2048, 48, melody=True),
        _official("facebook/musicgen-stereo-small", 1024, 24, stereo=True),
        _official("facebook/musicgen-stereo-medium", 1536, 48, stereo=True),
        _official("facebook/musicgen-stereo-large", 2048, 48, stereo=True),
        _official("facebook/musicgen-stereo-melody", 1536, 48, melody=True, stereo=True),
        _official("facebook/musicgen-stereo-melody-large", 2048, 48, melody=True, stereo=True),
        _official("facebook/musicgen-style", 1536, 48, style=True),
    )
}
