"""VGGish, the embedding of the Frechet Audio Distance: audio at 16 kHz -> rows of 128 numbers.

The numbers are those before the last ReLU and before the PCA, as all tools use them today. The
protocol decides where the windows are and how the level is set, see `protocols`.
"""

import functools
import os
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax import audio
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import checked
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.config import VggishConfig
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols, winograd
from musicgen_jax.metrics.bands import in_bands, mel, triangles
from musicgen_jax.metrics.protocols import VggishRule
from musicgen_jax.metrics.resample import in_16_bits
from musicgen_jax.metrics.weights import load_network, run, weights_digest
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.linear import Linear
from musicgen_jax.runtime.tuning import tuning

SAMPLE_RATE = 16000
FRAMES, BANDS = 96, 64  # of an example, which is 0.96 s
SOURCE = "vggish-10086976.pth from github.com/harritaylor/torchvggish/releases"

_WINDOW, _HOP, _FFT = 400, 160, 512
_LOW, _HIGH = 125.0, 7500.0  # Hz, the edges of the mel filters
_OFFSET = 0.01  # added before the logarithm
_POOLED = (0, 1, 3, 5)  # convolutions that a pool follows
_BATCH = 10  # examples at once: one compiled program serves clips of all lengths


class Convolution(nnx.Module):
    """3 x 3 with zeros around, then perhaps a pool, then the bias; `weight` is [3, 3, I, O].

    Args:
      in_channels: I.
      out_channels: O.
      pool: whether the largest of 2 x 2 outputs is kept.
      dtype: of the computation.
      param_dtype: of the stored parameters.
      rngs: stream `params` is used.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: bool,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.pool, self.dtype = pool, jnp.dtype(dtype)
        shape = (3, 3, in_channels, out_channels)
        normal = jax.random.normal(rngs.params(), shape, param_dtype)
        self.weight = nnx.Param(normal / (9 * in_channels) ** 0.5)
        self.bias = nnx.Param(jnp.zeros(out_channels, param_dtype))

    def __call__(self, x: jax.Array, kernels: jax.Array | None = None) -> jax.Array:
        """Applies the layer.

        Args:
          x: [B, T, F, I].
          kernels: the weight's `winograd.kernels`, to use Winograd's algorithm.

        Returns:
          [B, T, F, O], or [B, T / 2, F / 2, O].
        """
        if kernels is not None:
            y = winograd.convolve(x.astype(jnp.float32), kernels).astype(self.dtype)
        else:
            y = jax.lax.conv_general_dilated(
                x.astype(self.dtype),
                self.weight[...].astype(self.dtype),
                window_strides=(1, 1),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.pool:
            B, T, F, O = y.shape
            y = y.reshape(B, T // 2, 2, F // 2, 2, O).max((2, 4))
        return y + aligned(self.bias[...].astype(self.dtype), y)


class VggishNetwork(nnx.Module):
    """Six convolutions with four pools, three linear layers.

    Args:
      config: sizes.
      dtype: of the computation.
      param_dtype: of the stored parameters.
      rngs: stream `params` is used.
    """

    def __init__(
        self,
        config: VggishConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: Any = {"dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        channels = (1, *config.channels)
        self.convolutions = nnx.List(
            [
                Convolution(channels[i], channels[i + 1], pool=i in _POOLED, **types, rngs=rngs)
                for i in range(6)
            ]
        )
        pools = 2 ** len(_POOLED)
        flat = FRAMES // pools * (BANDS // pools) * channels[-1]
        sizes = (flat, config.hidden, config.hidden, config.dim)
        self.dense = nnx.List(
            [Linear(sizes[i], sizes[i + 1], use_bias=True, **types, rngs=rngs) for i in range(3)]
        )

    def kernels(self) -> tuple[jax.Array, ...]:
        """The `winograd.kernels` of all convolutions but the first, which has a single channel."""
        return tuple(winograd.kernels(layer.weight[...]) for layer in self.convolutions[1:])

    def __call__(
        self, examples: jax.Array, kernels: tuple[jax.Array, ...] | None = None
    ) -> jax.Array:
        """Embeds examples.

        Args:
          examples: float32 [B, 96, 64], log-mel.
          kernels: returned by the method, for convolutions by Winograd's algorithm.

        Returns:
          [B, dim], before the last ReLU.
        """
        x = examples[..., None]
        prepared = (None, *(kernels or [None] * (len(self.convolutions) - 1)))
        for i, convolution in enumerate(self.convolutions):
            x = jax.nn.relu(convolution(x, prepared[i]))
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        return self.dense[-1](x)


class Vggish:
    """VGGish with weights, under one protocol.

    Args:
      network: the network.
      protocol: the name of one that measures with VGGish, see `protocols`.
    """

    name = "vggish"

    def __init__(self, network: VggishNetwork, protocol: str = "audiocraft"):
        rule = protocols.find(protocol).vggish
        if rule is None:
            raise UserError(f"{protocol} does not measure with VGGish")
        self.network, self.rule = network, rule
        self._kernels: tuple[jax.Array, ...] | None = None
        self._lock = threading.Lock()  # clips are embedded in several threads

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike | None = None, protocol: str = "audiocraft"
    ) -> "Vggish":
        """Loads converted weights.

        Args:
          folder: that `musicgen-jax convert` made; default: `vggish` in `hub.models_home()`.
          protocol: see the class.

        Raises:
          UserError: there are no such weights; the message says how to make them.
        """
        return cls(load_network("vggish", VggishNetwork, folder, SOURCE), protocol)

    @property
    def weights(self) -> str:
        """A digest of the weights."""
        return weights_digest(self.network)

    @property
    def definition(self) -> str:
        """How a clip becomes rows, in words."""
        return f"VGGish before the last ReLU, no PCA; clips {self.rule.words}"

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Rows of one clip.

        Args:
          wav: float [C, W].
          sample_rate: in Hz.

        Returns:
          float32 [rows, 128]; 10 s give 19 rows under "audiocraft" and 10 under "fadtk".

        Raises:
          UserError: the clip is not finite, or too short for a row (1 s under "audiocraft").
        """
        mono = prepare(wav, sample_rate, self.rule)
        rows = examples(mono, self.rule)
        if not len(rows):
            raise UserError(f"{len(mono) / SAMPLE_RATE:.2f} s are too short: VGGish needs 1 s")
        missing = -len(rows) % _BATCH
        batches = np.pad(rows, ((0, missing), (0, 0), (0, 0))).reshape(-1, _BATCH, FRAMES, BANDS)
        kernels = self._prepared_kernels() if tuning().winograd else None
        embedded = [np.asarray(run(self.network, batch, kernels)) for batch in batches]
        return np.concatenate(embedded)[: len(rows)]

    def _prepared_kernels(self) -> tuple[jax.Array, ...]:
        with self._lock:
            kernels = self._kernels
            if kernels is None:
                kernels = self._kernels = _prepare_kernels(self.network)
            return kernels


@jax.jit
def _prepare_kernels(network: VggishNetwork) -> tuple[jax.Array, ...]:
    with jax.default_matmul_precision("float32"):
        return network.kernels()


def prepare(wav: np.ndarray, sample_rate: int, rule: VggishRule) -> np.ndarray:
    """The input of the front end, float64 [W'] at 16 kHz."""
    wav = checked(wav)
    if not np.isfinite(wav).all():
        raise UserError("the audio contains samples that are NaN or infinite")
    if rule.resampler == "kaiser":
        mono = in_16_bits(wav.mean(axis=0), sample_rate, SAMPLE_RATE)
    else:  # the order of rate and channels is audiocraft's
        resampled = np.asarray(resample_frac(jnp.asarray(wav), sample_rate, SAMPLE_RATE))
        mono = audio.convert_channels(resampled, 1)[0]
    if rule.padded:
        mono = np.pad(mono, (0, max(SAMPLE_RATE - len(mono), 0)))
    if rule.google_level:
        # Google's tool ignores the negative samples when it looks for the largest.
        whole = to_int16(audio.normalize_audio(mono[None], SAMPLE_RATE, "peak"))[0]
        mono = whole.astype(np.float64) / max(0.1, whole.max())
    return mono


def examples(mono: np.ndarray, rule: VggishRule) -> np.ndarray:
    """Log-mel examples of a clip.

    Args:
      mono: float64 [W], at 16 kHz.
      rule: gives the positions of the examples.

    Returns:
      float32 [N, 96, 64]; N is 0 for a clip that is too short.
    """
    frames = log_mel(mono)
    if rule.whole_seconds:
        count = (len(mono) - SAMPLE_RATE) // (rule.step * _HOP) + 1
    else:
        count = (len(frames) - FRAMES) // rule.step + 1
    starts = np.arange(max(count, 0)) * rule.step
    return frames[starts[:, None] + np.arange(FRAMES)].astype(np.float32)


def log_mel(mono: np.ndarray) -> np.ndarray:
    """Log-mel spectrum of magnitudes, float64 [T, 64]: no padding, frames of 25 ms every 10 ms."""
    if len(mono) < _WINDOW:
        return np.zeros((0, BANDS))
    frames = np.lib.stride_tricks.sliding_window_view(mono, _WINDOW)[::_HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)  # periodic
    magnitude = np.abs(np.fft.rfft(frames * hann, _FFT))
    return np.log(in_bands(magnitude, _mel_filters()) + _OFFSET)


@functools.cache
def _mel_filters() -> np.ndarray:
    """Triangles that are linear in mel, [257, 64]; 0 Hz has no weight."""
    bins = mel(np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1))
    filters = triangles(bins, np.linspace(mel(_LOW), mel(_HIGH), BANDS + 2))
    filters[0] = 0
    return filters
