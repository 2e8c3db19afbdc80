"""PaSST, a transformer that hears AudioSet's 527 labels: the classifier behind the KL divergence.

Its three models differ in the longest clip they take: 10, 20 or 30 s. audiocraft measures with the
20 s model, stable-audio-metrics with the 10 s model.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax import audio
from musicgen_jax.audio.level import checked
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.config import PasstConfig
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.bands import in_bands, mel, triangles
from musicgen_jax.metrics.norm import Norm, gelu
from musicgen_jax.metrics.weights import load_network, run, weights_digest
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.linear import Linear
from musicgen_jax.nn.transformer import attend
from musicgen_jax.runtime.tuning import tuning

SAMPLE_RATE = 32000
BANDS = 128
SOURCE = (
    "passt-s-f128-20sec-p16-s10-ap.474-swa.pt from github.com/kkoutini/PaSST/releases/tag/v0.0.5"
)

_FFT, _WINDOW, _HOP = 1024, 800, 320
_HIGHEST = 15000.0  # Hz, of the mel filters
_PATCH, _STRIDE = 16, 10
_LEAST = 4800  # samples: 16 frames, one patch


class Block(nnx.Module):
    """`x += attention(norm(x)); x += feed-forward(norm(x))`, everything with biases."""

    def __init__(self, config: PasstConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        dim, types = config.dim, {"use_bias": True, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads = config.num_heads
        self.norm1, self.norm2 = Norm(dim, 1e-6), Norm(dim, 1e-6)
        self.qkv, self.out = Linear(dim, 3 * dim, **types), Linear(dim, dim, **types)
        self.linear1 = Linear(dim, config.ffn_dim, **types)
        self.linear2 = Linear(config.ffn_dim, dim, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, S, D]` to `[B, S, D]`."""
        B, S, D = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(B, S, 3, self.num_heads, -1)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))  # [B, N, S, H]
        everything = jnp.ones((S, S), bool)
        if tuning().heads_in_turn:
            heads = jnp.stack([q, k, v]).reshape(3, B * self.num_heads, 1, 1, S, -1)
            seen = jax.lax.map(
                lambda qkv: attend(qkv[0], qkv[1], qkv[2], everything), heads.swapaxes(0, 1)
            ).reshape(q.shape)
        else:
            seen = attend(q, k, v, everything)
        x = x + self.out(seen.swapaxes(1, 2).reshape(B, S, D))
        return x + self.linear2(gelu(self.linear1(self.norm2(x))))


class PasstNetwork(nnx.Module):
    """Overlapping patches of a log-mel spectrum, a transformer, two tokens averaged.

    Args:
      config: sizes.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(
        self, config: PasstConfig, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        dim, types = config.dim, {"param_dtype": param_dtype, "rngs": rngs}
        normal = functools.partial(jax.random.normal, rngs.params())
        self.config = config
        self.patches = nnx.Param(normal((_PATCH, _PATCH, 1, dim), param_dtype) / _PATCH)
        self.patches_bias = nnx.Param(jnp.zeros(dim))
        self.time_positions = nnx.Param(normal((config.time_positions, dim)) * 0.02)
        self.band_positions = nnx.Param(normal((config.band_positions, dim)) * 0.02)
        self.tokens = nnx.Param(normal((2, dim)) * 0.02)
        self.token_positions = nnx.Param(normal((2, dim)) * 0.02)
        self.blocks = nnx.List([Block(config, **types) for _ in range(config.num_layers)])
        self.norm, self.head_norm = Norm(dim, 1e-6), Norm(dim, 1e-5)
        self.head = Linear(dim, config.num_classes, use_bias=True, **types)

    def __call__(self, spectrum: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Classifies clips.

        Args:
          spectrum: float32 [B, 128, T], of 16 frames or more and no more than the model's longest.

        Returns:
          features [B, D] and logits [B, classes].
        """
        x = jax.lax.conv_general_dilated(
            spectrum[..., None],
            self.patches[...].astype(spectrum.dtype),
            window_strides=(_STRIDE, _STRIDE),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # [B, bands, T', D]
        x = x + aligned(self.patches_bias[...], x) + aligned(self.time_positions[: x.shape[2]], x)
        x = x + aligned(self.band_positions[...][:, None], x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = self.tokens[...] + self.token_positions[...]
        x = jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)), x], axis=1)
        for block in self.blocks:
            x = block(x)
        features = self.norm(x[:, :2]).mean(axis=1)
        return features, self.head(self.head_norm(features))


class Passt:
    """PaSST with weights, under one protocol.

    Args:
      network: the network.
      protocol: the name of one that measures with PaSST, see `protocols`.
    """

    name = "passt"

    def __init__(self, network: PasstNetwork, protocol: str = "audiocraft"):
        rule = protocols.find(protocol).passt
        if rule is None:
            raise UserError(f"{protocol} does not measure with PaSST")
        self.network, self.rule = network, rule

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike | None = None, protocol: str = "audiocraft"
    ) -> "Passt":
        """Loads converted weights.

        Args:
          folder: that `musicgen-jax convert` made; default: `passt` in `hub.models_home()`.
          protocol: see the class.

        Raises:
          UserError: there are no such weights; the message says how to make them.
        """
        return cls(load_network("passt", PasstNetwork, folder, SOURCE), protocol)

    @property
    def weights(self) -> str:
        """A digest of the weights."""
        return weights_digest(self.network)

    @property
    def definition(self) -> str:
        """How a clip becomes distributions, in words."""
        config = self.network.config
        return (
            f"softmax over {config.num_classes} labels of PaSST's {config.seconds} s model; "
            f"{self.rule.words(config.seconds)}"
        )

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Features of a clip, float32 [pieces, 768]; the arguments are those of `probabilities`."""
        return self._measure(wav, sample_rate)[0]

    def probabilities(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Distributions over labels.

        Args:
          wav: float [C, W].
          sample_rate: in Hz.

        Returns:
          float32 [pieces, classes]: softmax, as in all protocols, although the labels are not
          mutually exclusive. One row for a clip if the protocol pools its pieces. No rows for a
          clip that is too short.

        Raises:
          UserError: the clip is empty or not finite.
        """
        logits = self._measure(wav, sample_rate)[1]
        if self.rule.pooled and len(logits):
            logits = logits.mean(axis=0, keepdims=True)
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    def _measure(self, wav: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Features [pieces, 768] and logits [pieces, classes]."""
        config = self.network.config
        none = np.zeros((0, config.dim)), np.zeros((0, config.num_classes))
        heard = [none] + [
            run(self.network, log_mel(piece)[None])
            for piece in self._pieces(self._prepared(wav, sample_rate))
        ]
        features, logits = (
            np.concatenate(rows, dtype=np.float32) for rows in zip(*heard, strict=True)
        )
        return features, logits

    def _prepared(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        wav = checked(wav)
        if not np.isfinite(wav).all():
            raise UserError("the audio contains samples that are NaN or infinite")
        if not wav.shape[1]:
            return np.zeros(0)
        if self.rule.resampler == "soxr":  # channels first, as librosa
            mono = audio.resample(audio.convert_channels(wav, 1), sample_rate, SAMPLE_RATE)
        else:
            resampled = np.asarray(resample_frac(jnp.asarray(wav), sample_rate, SAMPLE_RATE))
            mono = audio.convert_channels(resampled, 1)
        return (audio.normalize_audio(mono, SAMPLE_RATE, "peak") if self.rule.peak else mono)[0]

    def _pieces(self, mono: np.ndarray) -> list[np.ndarray]:
        window = self.network.config.seconds * SAMPLE_RATE
        overlap = int(window * self.rule.overlap)
        step, least = window - overlap, int(self.rule.shortest * SAMPLE_RATE)
        starts = range(0, max(step, len(mono) - overlap), step)
        pieces = [mono[start : start + window] for start in starts]
        if not self.rule.padded:
            return [piece for piece in pieces if len(piece) > least]
        # stable-audio-metrics hears pieces up to 1.5 s without padding; below a patch is nothing.
        return [
            np.pad(piece, (0, window - len(piece))) if len(piece) > least else piece
            for piece in pieces
            if len(piece) > _LEAST
        ]


def log_mel(mono: np.ndarray) -> np.ndarray:
    """The spectrum that the network sees: float [W] at 32 kHz to float32 [128, T]."""
    x = np.asarray(mono, np.float64)
    x = np.pad(x[1:] - 0.97 * x[:-1], _FFT // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))  # symmetric
    window = np.pad(hann, (_FFT - _WINDOW) // 2)
    frames = np.lib.stride_tricks.sliding_window_view(x, _FFT)[::_HOP]
    power = np.square(np.abs(np.fft.rfft(frames * window)))
    return ((np.log(in_bands(power, _mel_filters()) + 1e-5) + 4.5) / 5).T.astype(np.float32)


@functools.cache
def _mel_filters() -> np.ndarray:
    """Kaldi's triangles, [513, 128], without weight at half the sample rate."""
    bins = mel(np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT)
    filters = triangles(bins, np.linspace(mel(0.0), mel(_HIGHEST), BANDS + 2))
    filters[-1] = 0
    return filters
