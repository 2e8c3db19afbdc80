"""Architecture of every model as frozen dataclasses, and their JSON round trip.

No jax here: tools, docs and the command line read configs without starting a backend.
Field names follow audiocraft; sizes of the official models are at the end of the file.
"""

import dataclasses
import json
import math
import types
import typing

FORMAT_VERSION = 1

# Accepted values of arguments, shared by Python and the command line, which parses without jax.
DTYPES = ("float32", "bfloat16", "int8")  # of the language model
CACHE_DTYPES = ("float32", "bfloat16", "float8_e4m3fn")  # of its keys and values
JOINS = ("hard", "crossfade")  # between the windows of a long piece, see `generation.joins`


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
class MertConfig:
    """MERT, which hears the style of a clip: HuBERT's network, trained on music at 24 kHz.

    The defaults are m-a-p/MERT-v1-95M.
    """

    sample_rate: int = 24000
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    dim: int = 768
    num_heads: int = 12
    num_layers: int = 12
    ffn_dim: int = 3072
    conv_pos_kernel: int = 128
    conv_pos_groups: int = 16

    def __post_init__(self) -> None:
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(lengths) != 1 or not self.conv_dim:
            raise ValueError("conv_dim, conv_kernel and conv_stride must be of one length")
        if self.dim % self.num_heads or self.dim % self.conv_pos_groups:
            raise ValueError(
                f"dim {self.dim} must divide by {self.num_heads} heads and by "
                f"{self.conv_pos_groups} groups"
            )

    def num_frames(self, num_samples: int) -> int:
        """Frames that it makes of so many samples, about 75 a second; 0 of too few."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return max(num_samples, 0)


@dataclasses.dataclass(frozen=True)
class StyleConfig:
    """The style conditioner: features of a clip through a transformer and a quantizer.

    The defaults are those of facebook/musicgen-style.
    """

    feature_dim: int = 768  # width of MERT
    dim: int = 512
    num_heads: int = 8
    num_layers: int = 8
    ffn_dim: int = 2048
    n_q: int = 6
    bins: int = 1024
    ds_factor: int = 15  # of so many frames one becomes a token: 5 tokens a second

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and divide by {self.num_heads} heads")
        if self.n_q < 1 or self.ds_factor < 1:
            raise ValueError(f"n_q and ds_factor must be at least 1, got {self}")


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
    style: StyleConfig | None = None  # in the style model

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
    """EnCodec: SEANet encoder and decoder around a residual vector quantizer.

    The defaults are the 32 kHz model of MusicGen; the last fields are what the general models at
    24 and 48 kHz do differently.
    """

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
    causal: bool = False  # convolutions see no later samples
    trim_right_ratio: float = 1.0  # share of a transposed convolution cut off at its end, if causal
    norm: str = "weight_norm"  # which is folded; or "time_group_norm", of whole segments
    conv_shortcut: bool = False  # a 1x1 convolution as the skip of residual blocks
    normalize: bool = False  # segments to one level, their own kept beside the codes
    chunk_length_s: float | None = None  # segments of so many seconds; None: a clip is one
    overlap: float = 0.0  # share of a segment that the next one covers again

    def __post_init__(self) -> None:
        if self.norm not in ("weight_norm", "time_group_norm"):
            known = "'weight_norm' or 'time_group_norm'"
            raise ValueError(f"norm must be {known}, got {self.norm!r}")
        if not 0 <= self.trim_right_ratio <= 1 or not 0 <= self.overlap < 1:
            raise ValueError(
                "trim_right_ratio must be from 0 to 1 and overlap from 0 to below 1, got "
                f"{self.trim_right_ratio} and {self.overlap}"
            )
        seconds = self.chunk_length_s
        if seconds is not None and not (0 < seconds < math.inf and self.segment_length):
            raise ValueError(f"chunk_length_s must be at least a sample, got {seconds}")

    @property
    def segment_length(self) -> int:
        """Samples of a segment; 0 if a clip is one segment."""
        return int((self.chunk_length_s or 0) * self.sample_rate)

    @property
    def segment_stride(self) -> int:
        """Samples from the start of one segment to that of the next."""
        return max(1, int((1 - self.overlap) * self.segment_length))

    @property
    def bandwidth(self) -> float:
        """Kilobits per second with all codebooks."""
        return self.n_q * self.bandwidth_per_book

    @property
    def bandwidth_per_book(self) -> float:
        """Kilobits per second of one codebook."""
        return math.ceil(self.frame_rate) * self.bits / 1000

    @property
    def bits(self) -> int:
        """Bits that a code takes."""
        return (self.bins - 1).bit_length()

    def num_books(self, bandwidth: float | None) -> int:
        """The most codebooks that fit in `bandwidth` kilobits per second; None: all.

        Raises:
          ValueError: it is too little for one codebook or more than all of them take.
        """
        if bandwidth is None:
            return self.n_q
        books = bandwidth / self.bandwidth_per_book + 1e-6  # 2.2 / 0.55 must not be 3.99
        if not 1 <= books < self.n_q + 1:
            raise ValueError(
                f"bandwidth must be from {self.bandwidth_per_book:g} to {self.bandwidth:g} kb/s, "
                f"got {bandwidth:g}"
            )
        return int(books)

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length


@dataclasses.dataclass(frozen=True)
class HTDemucsConfig:
    """Hybrid Transformer Demucs, which splits music into stems; names and meanings as in demucs.

    The defaults are those of the released `htdemucs`. Only its kind is described: two branches that
    never merge, complex numbers as channels, no norms in the convolutions outside DConv.
    """

    sources: tuple[str, ...] = ("drums", "bass", "other", "vocals")
    sample_rate: int = 44100
    audio_channels: int = 2
    segment_length: int = 343980  # samples that it was trained on: 7.8 s; it always sees so many
    channels: int = 48
    growth: int = 2
    depth: int = 4
    nfft: int = 4096
    kernel_size: int = 8
    stride: int = 4
    context: int = 1  # neighbours on each side that a decoder layer looks at
    freq_emb: float = 0.2  # weight of the frequency embedding, 0 for none
    emb_scale: float = 10.0  # the embedding is stored smaller by this
    dconv_mode: int = 3  # 1: residual branches in the encoder, 2: in the decoder, 3: in both
    dconv_depth: int = 2
    dconv_comp: int = 8
    bottom_channels: int = 512  # width of the transformer, 0: that of the last encoder layer
    t_layers: int = 5
    t_heads: int = 8
    t_hidden_scale: float = 4.0
    t_cross_first: bool = False
    t_weight_pos_embed: float = 1.0

    def __post_init__(self) -> None:
        if len(set(self.sources)) != len(self.sources) or not self.sources:
            raise ValueError(f"sources must be different names, got {self.sources}")
        if self.kernel_size != 2 * self.stride or self.stride % 2:
            raise ValueError(
                f"kernel_size must be twice an even stride, got {self.kernel_size}, {self.stride}"
            )
        bins = self.nfft // 2 // self.stride ** (self.depth - 1)
        if self.nfft % (2 * self.stride**self.depth) or bins <= self.kernel_size:
            raise ValueError(
                f"nfft {self.nfft} must divide by {2 * self.stride**self.depth} and leave more "
                f"than {self.kernel_size} bins to the last of {self.depth} layers: merging "
                "branches are not supported"
            )
        if self.segment_length <= self.nfft:
            raise ValueError(f"segment_length {self.segment_length} must exceed nfft {self.nfft}")
        if self.dim % 4 or self.dim % self.t_heads:
            raise ValueError(f"width {self.dim} must divide by 4 and by {self.t_heads} heads")
        if self.channels < self.dconv_comp and self.dconv_mode:
            raise ValueError(f"channels {self.channels} must be at least {self.dconv_comp}")

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.bottom_channels or self.channels * self.growth ** (self.depth - 1)


@dataclasses.dataclass(frozen=True)
class MusicGenConfig:
    """A whole model: text encoder, language model, codec and how they fit together."""

    t5: T5Config
    lm: LMConfig
    encodec: EncodecConfig
    audio_channels: int = 1  # 2: stereo, codebooks interleaved left and right
    max_duration: float = 30.0  # seconds in one window, as in training
    name: str = ""
    mert: MertConfig | None = None  # in the style model

    def __post_init__(self) -> None:
        if self.lm.n_q != self.encodec.n_q * self.audio_channels:
            raise ValueError(
                f"the LM has {self.lm.n_q} codebooks, the codec {self.encodec.n_q} on each of "
                f"{self.audio_channels} channels"
            )
        if self.encodec.normalize or self.encodec.chunk_length_s is not None:
            raise ValueError("a codec with levels or segments beside its codes suits no LM")
        if self.lm.card != self.encodec.bins:
            raise ValueError(
                f"the LM knows {self.lm.card} codes, the codec has {self.encodec.bins}"
            )
        if self.lm.text_dim != self.t5.d_model:
            raise ValueError(
                f"the LM takes text of width {self.lm.text_dim}, T5 gives {self.t5.d_model}"
            )
        if (self.lm.style is None) != (self.mert is None):
            raise ValueError("a style conditioner and MERT belong together: one of them is missing")
        if self.lm.style and self.mert and self.lm.style.feature_dim != self.mert.dim:
            raise ValueError(
                f"the style conditioner takes features of width {self.lm.style.feature_dim}, "
                f"MERT gives {self.mert.dim}"
            )

    @property
    def sample_rate(self) -> int:
        """Samples per second and channel."""
        return self.encodec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.encodec.frame_rate


@dataclasses.dataclass(frozen=True)
class VggishConfig:
    """VGGish, whose embeddings the Frechet Audio Distance compares: 0.96 s of log-mel to `dim`.

    The defaults are the released model.
    """

    channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512)  # of the six convolutions
    hidden: int = 4096
    dim: int = 128

    def __post_init__(self) -> None:
        if len(self.channels) != 6 or min(*self.channels, self.hidden, self.dim) < 1:
            raise ValueError(f"VGGish has six convolutions and no empty layer, got {self}")


@dataclasses.dataclass(frozen=True)
class PasstConfig:
    """PaSST, a classifier of audio in overlapping patches of 16 frames and bands.

    The defaults are the released 20 s model.
    """

    time_positions: int = 200
    band_positions: int = 12
    dim: int = 768
    num_heads: int = 12
    num_layers: int = 12
    ffn_dim: int = 3072
    num_classes: int = 527

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1 or self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must divide by {self.num_heads} heads, got {self}")

    @property
    def seconds(self) -> int:
        """The longest clip: patches begin every tenth of a second."""
        return max(round(self.time_positions / 10), 1)


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


def _parse(hint: typing.Any, value: object, where: str):
    if isinstance(hint, types.UnionType):  # `X | None`, the only union in use
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return None if value is None else _parse(hint, value, where)
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
ENCODEC_24KHZ = EncodecConfig(
    sample_rate=24000,
    n_filters=32,
    ratios=(8, 5, 4, 2),
    n_q=32,
    bins=1024,
    causal=True,
    conv_shortcut=True,
)
ENCODEC_48KHZ = EncodecConfig(
    sample_rate=48000,
    channels=2,
    n_filters=32,
    ratios=(8, 5, 4, 2),
    n_q=16,
    bins=1024,
    norm="time_group_norm",
    conv_shortcut=True,
    normalize=True,
    chunk_length_s=1.0,
    overlap=0.01,
)
OFFICIAL_CODECS: dict[str, EncodecConfig] = {
    "facebook/encodec_24khz": ENCODEC_24KHZ,
    "facebook/encodec_32khz": ENCODEC_32KHZ,
    "facebook/encodec_48khz": ENCODEC_48KHZ,
}
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
        style=StyleConfig() if style else None,
    )
    return MusicGenConfig(
        T5_BASE,
        lm,
        ENCODEC_32KHZ,
        audio_channels=2 if stereo else 1,
        name=name,
        mert=MertConfig() if style else None,
    )


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
