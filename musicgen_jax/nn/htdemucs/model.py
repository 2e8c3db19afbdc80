"""HTDemucs: separates one segment of music into its stems (demucs, htdemucs.py)."""

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.htdemucs.layers import DecoderLayer, EncoderLayer
from musicgen_jax.nn.htdemucs.spectrogram import (
    channels_to_complex,
    complex_to_channels,
    spectrogram,
    waveform,
)
from musicgen_jax.nn.htdemucs.transformer import CrossTransformer
from musicgen_jax.nn.linear import Linear


class HTDemucs(nnx.Module):
    """Two U-nets, one over the spectrogram and one over the waveform, whose outputs are summed.

    A transformer between encoders and decoders lets each branch attend to the other. Modules have
    demucs' names; a leading or trailing t means the time branch.
    """

    def __init__(
        self, config: HTDemucsConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        stems = len(config.sources)
        widths = [config.channels * config.growth**i for i in range(config.depth)]

        def encoder(channels: int, over_frequency: bool) -> nnx.List:
            pairs = zip([channels, *widths], widths, strict=False)
            return nnx.List(
                [EncoderLayer(*p, config, over_frequency=over_frequency, **kwargs) for p in pairs]
            )

        def decoder(channels: int, over_frequency: bool) -> nnx.List:
            return nnx.List(
                [
                    DecoderLayer(
                        widths[i],
                        widths[i - 1] if i else stems * channels,
                        config,
                        over_frequency=over_frequency,
                        last=not i,
                        **kwargs,
                    )
                    for i in reversed(range(config.depth))
                ]
            )

        audio_channels = config.audio_channels
        self.encoder = encoder(2 * audio_channels, True)
        self.tencoder = encoder(audio_channels, False)
        if config.freq_emb:
            bins = config.nfft // 2 // config.stride
            table = jax.random.normal(rngs.params(), (bins, config.channels), param_dtype)
            self.freq_emb = nnx.Param(table / config.emb_scale)
        if config.bottom_channels:
            make = lambda *sizes: Linear(*sizes, use_bias=True, **kwargs)  # noqa: E731
            self.channel_upsampler = make(widths[-1], config.dim)
            self.channel_upsampler_t = make(widths[-1], config.dim)
            self.channel_downsampler = make(config.dim, widths[-1])
            self.channel_downsampler_t = make(config.dim, widths[-1])
        if config.t_layers:
            self.crosstransformer = CrossTransformer(config, **kwargs)
        self.decoder = decoder(2 * audio_channels, True)
        self.tdecoder = decoder(audio_channels, False)

    def __call__(self, mix: jax.Array) -> jax.Array:
        """Separates a mixture.

        Args:
          mix: the mixture, float32 `[B, C, W]`, W = `config.segment_length`.

        Returns:
          float32 `[B, stems, C, W]`, in the order of `config.sources`.

        Raises:
          ValueError: `mix` has a different shape.
        """
        config = self.config
        expected = (config.audio_channels, config.segment_length)
        if mix.ndim != 3 or mix.shape[1:] != expected:
            raise ValueError(f"mix must be [B, {expected[0]}, {expected[1]}], got {mix.shape}")
        mix = mix.astype(jnp.float32)
        x = complex_to_channels(spectrogram(mix, config.nfft))  # [B, T, F, 2 C]
        xt = mix.swapaxes(1, 2)[:, :, None]  # [B, W, 1, C]
        x, mean, std = _standardize(x)
        xt, mean_t, std_t = _standardize(xt)

        skips, skips_t, bins, lengths = [], [], [], []
        for i, (encode, encode_t) in enumerate(zip(self.encoder, self.tencoder, strict=True)):
            bins.append(x.shape[2])
            lengths.append(xt.shape[1])
            x, xt = encode(x), encode_t(xt)
            if i == 0 and config.freq_emb:
                weight = config.freq_emb * config.emb_scale
                x = x + weight * aligned(self.freq_emb[...].astype(x.dtype), x)
            skips.append(x)
            skips_t.append(xt)
        if config.t_layers:
            x, xt = self._transform(x, xt)
        for decode, decode_t in zip(self.decoder, self.tdecoder, strict=True):
            x = decode(x, skips.pop(), bins.pop())
            xt = decode_t(xt, skips_t.pop(), lengths.pop())

        x = x.astype(jnp.float32) * std + mean
        xt = xt.astype(jnp.float32) * std_t + mean_t
        heard = waveform(channels_to_complex(x), mix.shape[-1])  # [B, stems C, W]
        stems = heard + xt[:, :, 0].swapaxes(1, 2)
        return stems.reshape(mix.shape[0], len(config.sources), *mix.shape[1:])

    def _transform(self, x: jax.Array, xt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the transformer, at its own width."""
        xt = xt[:, :, 0]
        if self.config.bottom_channels:
            x, xt = self.channel_upsampler(x), self.channel_upsampler_t(xt)
        x, xt = self.crosstransformer(x, xt)
        if self.config.bottom_channels:
            x, xt = self.channel_downsampler(x), self.channel_downsampler_t(xt)
        return x, xt[:, :, None]


def _standardize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scales each example to mean 0 and deviation 1, and returns both; leaves silence as it is."""
    axes = tuple(range(1, x.ndim))
    mean = x.mean(axes, keepdims=True)
    std = x.std(axes, keepdims=True, ddof=1)
    return (x - mean) / (1e-5 + std), mean, std
