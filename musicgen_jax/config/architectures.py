"""Architecture of every model as frozen dataclasses.

Field names follow audiocraft; sizes of the official models are at the end of the file.
"""

import dataclasses
import math
from typing import Annotated

from musicgen_jax.config.schema import (
    Between,
    Factor,
    Seconds,
    Share,
    Size,
    SizeOrNone,
    check_ranges,
)

FORMAT_VERSION = 1

# Accepted values of arguments, shared by Python and the command line, which parses without jax.
DTYPES = ("float32", "bfloat16", "int8")  # of the language model
CACHE_DTYPES = ("float32", "bfloat16", "float8_e4m3fn")  # of its keys and values
JOINS = ("hard", "crossfade")  # of the windows of a long piece, see `generation.joins`


@dataclasses.dataclass(frozen=True)
class T5Config:
    """T5 encoder (v1.0: ReLU, not gated; no attention scale; relative positions)."""

    vocab_size: Size = 32128
    d_model: Size = 768
    d_kv: Size = 64
    d_ff: Size = 3072
    num_layers: Size = 12
    num_heads: Size = 12
    relative_attention_num_buckets: Size = 32
    relative_attention_max_distance: Size = 128
    layer_norm_epsilon: Share = 1e-6


@dataclasses.dataclass(frozen=True)
class MertConfig:
    """MERT, which extracts the features of a style: HuBERT's network, trained on music at 24 kHz.

    The defaults are m-a-p/MERT-v1-95M.
    """

    sample_rate: Size = 24000
    conv_dim: tuple[Size, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    dim: Size = 768
    num_heads: Size = 12
    num_layers: Size = 12
    ffn_dim: Size = 3072
    conv_pos_kernel: Size = 128
    conv_pos_groups: Size = 16

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
        """The number of frames for this many samples, about 75 a second; 0 for too few samples."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return max(num_samples, 0)


@dataclasses.dataclass(frozen=True)
class StyleConfig:
    """The style conditioner: features of a clip through a transformer and a quantizer.

    The defaults are those of facebook/musicgen-style.
    """

    feature_dim: Size = 768  # width of MERT
    dim: Size = 512
    num_heads: Size = 8
    num_layers: Size = 8
    ffn_dim: Size = 2048
    n_q: Size = 6
    bins: Size = 1024
    ds_factor: Size = 15  # one frame in this many becomes a token: 5 tokens a second

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and divide by {self.num_heads} heads")


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Transformer language model over `n_q` delayed codebooks of `card` entries.

    `conditioning` says how the text enters: "cross" (cross-attention: the text-to-music models) or
    "prepend" (before the tokens: the official melody and style models). The audio of a melody or
    style model always comes before the tokens.
    """

    dim: Size
    num_heads: Size
    num_layers: Size
    n_q: Size = 4
    card: Size = 2048
    delays: tuple[SizeOrNone, ...] = (0, 1, 2, 3)
    ffn_dim: SizeOrNone = 0  # 0: four times `dim`
    text_dim: Size = 768
    conditioning: str = "cross"
    chroma_bins: SizeOrNone = 0  # 12 in the melody models, else 0
    chroma_window: Annotated[int, Between(16, 1 << 20)] = 16384  # samples of one chroma frame
    chroma_hop: Size = 4096  # samples from one chroma frame to the next
    # Code frames from one chroma frame to the next. Then prefix and tokens are numbered by their
    # time, so a chroma frame has the number of the tokens that sound with it. 0: prefix and tokens
    # are numbered in one row, as in all official models.
    chroma_stride: SizeOrNone = 0
    # The tonic of the only major scale that the model plays, counted from C. Melodies are moved
    # into it; see `conditioning.key`. None: it plays in all keys, as all official models do.
    chroma_tonic: Annotated[int, Between(0, 11)] | None = None
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
        if self.chroma_window % 2:
            raise ValueError(f"chroma_window must be even, got {self.chroma_window}")
        if self.chroma_stride and not self.chroma_bins:
            raise ValueError("chroma_stride needs chroma_bins")

    @property
    def hears(self) -> bool:
        """Whether audio (a melody or a style) comes before the tokens."""
        return bool(self.chroma_bins) or self.style is not None

    @property
    def special_token(self) -> int:
        """The token of every slot that holds no code: start of sequence and delay padding."""
        return self.card


@dataclasses.dataclass(frozen=True)
class EncodecConfig:
    """EnCodec: SEANet encoder and decoder around a residual vector quantizer.

    The defaults are MusicGen's 32 kHz model; the last fields are for the differences of the general
    models at 24 and 48 kHz.
    """

    sample_rate: Size = 32000
    channels: Size = 1
    n_filters: Size = 64
    # In the order of upsampling; the encoder uses them reversed.
    ratios: Annotated[tuple[Size, ...], Between(1, 16)] = (8, 5, 4, 4)
    dimension: Size = 128
    n_q: Size = 4
    bins: Size = 2048
    kernel_size: Size = 7
    last_kernel_size: Size = 7
    residual_kernel_size: Size = 3
    n_residual_layers: SizeOrNone = 1
    dilation_base: Size = 2
    compress: Size = 2
    lstm: SizeOrNone = 2  # number of layers, 0 for none
    pad_mode: str = "reflect"
    causal: bool = False  # convolutions see no later samples
    trim_right_ratio: Share = 1.0  # of a transposed convolution, cut off at its end, if causal
    norm: str = "weight_norm"  # which is folded; or "time_group_norm", of whole segments
    conv_shortcut: bool = False  # a 1x1 convolution as the skip of residual blocks
    normalize: bool = False  # scales segments to one level and stores their own with the codes
    chunk_length_s: Seconds | None = None  # length of a segment; None: a clip is one segment
    overlap: Share = 0.0  # share of a segment that the next one covers again

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.norm not in ("weight_norm", "time_group_norm"):
            known = "'weight_norm' or 'time_group_norm'"
            raise ValueError(f"norm must be {known}, got {self.norm!r}")
        if self.overlap == 1:
            raise ValueError("overlap must be below 1: segments would not move on")
        if self.chunk_length_s is not None and not self.segment_length:
            raise ValueError(f"chunk_length_s must be at least a sample, got {self.chunk_length_s}")

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
        """Bits per code."""
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
    sample_rate: Size = 44100
    audio_channels: Size = 2
    segment_length: Size = 343980  # samples: 7.8 s, as in training; it always sees this many
    channels: Size = 48
    growth: Size = 2
    depth: Size = 4
    nfft: Size = 4096
    kernel_size: Size = 8
    stride: Size = 4
    context: SizeOrNone = 1  # neighbours on each side that a decoder layer sees
    freq_emb: Factor = 0.2  # weight of the frequency embedding, 0 for none
    emb_scale: Factor = 10.0  # the embedding is stored smaller by this
    dconv_mode: SizeOrNone = 3  # 1: residual branches in the encoder, 2: in the decoder, 3: in both
    dconv_depth: SizeOrNone = 2
    dconv_comp: Size = 8
    bottom_channels: SizeOrNone = 512  # width of the transformer, 0: that of the last encoder layer
    t_layers: SizeOrNone = 5
    t_heads: Size = 8
    t_hidden_scale: Factor = 4.0
    t_cross_first: bool = False
    t_weight_pos_embed: Factor = 1.0

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
    audio_channels: Size = 1  # 2: stereo, codebooks interleaved left and right
    max_duration: Seconds = 30.0  # seconds in one window, as in training
    name: str = ""
    mert: MertConfig | None = None  # in the style model

    def __post_init__(self) -> None:
        if self.lm.n_q != self.encodec.n_q * self.audio_channels:
            raise ValueError(
                f"the LM has {self.lm.n_q} codebooks, the codec {self.encodec.n_q} on each of "
                f"{self.audio_channels} channels"
            )
        if self.encodec.normalize or self.encodec.chunk_length_s is not None:
            raise ValueError(
                "a codec that stores levels or segments next to its codes does not suit an LM"
            )
        if self.lm.card != self.encodec.bins:
            raise ValueError(
                f"the LM knows {self.lm.card} codes, but the codec has {self.encodec.bins}"
            )
        if self.lm.text_dim != self.t5.d_model:
            raise ValueError(
                f"the LM takes text of width {self.lm.text_dim}, but T5 gives {self.t5.d_model}"
            )
        stride = self.lm.chroma_stride * self.encodec.hop_length
        if self.lm.chroma_stride and stride != self.lm.chroma_hop:
            raise ValueError(
                f"chroma_stride {self.lm.chroma_stride} makes a chroma_hop of {stride} samples, "
                f"got {self.lm.chroma_hop}"
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

    channels: tuple[Size, ...] = (64, 128, 256, 256, 512, 512)  # of the six convolutions
    hidden: Size = 4096
    dim: Size = 128

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.channels) != 6:
            raise ValueError(f"VGGish has six convolutions, got channels {self.channels}")


@dataclasses.dataclass(frozen=True)
class PasstConfig:
    """PaSST, a classifier of audio in overlapping patches of 16 frames and bands.

    The defaults are the released 20 s model.
    """

    time_positions: Size = 200
    band_positions: Size = 12
    dim: Size = 768
    num_heads: Size = 12
    num_layers: Size = 12
    ffn_dim: Size = 3072
    num_classes: Size = 527

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must divide by {self.num_heads} heads")

    @property
    def seconds(self) -> int:
        """The longest clip: patches begin every tenth of a second."""
        return max(round(self.time_positions / 10), 1)


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
