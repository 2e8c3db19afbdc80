"""Settings of `musicgen-jax train codec`, as stored in its TOML files, and its presets."""

import dataclasses

from musicgen_jax.config import ENCODEC_32KHZ, EncodecConfig
from musicgen_jax.config.schema import Natural, Positive, check_ranges
from musicgen_jax.training.balancer import BalancerConfig
from musicgen_jax.training.codec_config import CodecTrainConfig, LossWeights
from musicgen_jax.training.discriminator import DiscriminatorConfig


@dataclasses.dataclass(frozen=True)
class CodecRunConfig:
    """A whole run. Intervals are in steps."""

    codec: EncodecConfig = dataclasses.field(default_factory=EncodecConfig)
    training: CodecTrainConfig = dataclasses.field(default_factory=CodecTrainConfig)
    name: str = ""
    # A codec or model with the initial weights. Its architecture overrides `codec`.
    base: str = ""
    data: str = ""  # folder or manifest of audio; --data overrides it
    valid: str = ""  # the same, for validation
    valid_clips: Positive = 32
    valid_seconds: float = 4.0
    devices: Natural = 1  # number of devices that share the batch; 0: all
    log_every: Positive = 50
    save_every: Positive = 500
    keep: Positive = 3  # number of last checkpoints; the best is kept as well
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.valid_seconds <= 0:
            raise ValueError(f"valid_seconds must be above 0, got {self.valid_seconds}")
        if self.training.train_decoder_only and not self.base:
            raise ValueError("training.train_decoder_only needs a base whose decoder is trained")
        codec = self.codec
        if codec.compress > codec.n_filters:
            raise ValueError("codec.compress must be at most codec.n_filters")
        if codec.pad_mode not in ("reflect", "constant"):
            raise ValueError(f"codec.pad_mode must be 'reflect' or 'constant': {codec.pad_mode!r}")


# The official strides at half the sample rate: 25 frames per second. The composer's music is tuned
# to this rate.
NANO_CODEC = EncodecConfig(sample_rate=16000, n_filters=12, dimension=64, bins=1024)

# The first stage of the bundled model's codec, for two CPU cores: no adversary, and the codebooks
# start when the latents are worth coding.
NANO_TRAINING = CodecTrainConfig(
    steps=3600,
    unquantized_steps=700,
    batch_size=8,
    segment_frames=32,
    learning_rate=2e-3,
    betas=(0.8, 0.99),
    warmup_steps=50,
    final_learning_rate=0.02,
    clip_norm=1.0,
    weight_norm=False,
    losses=LossWeights(adv=0.0, feat=0.0, l1=0.0, msspec=0.0, waveform=1.0, spectral=1.0),
    balancer=BalancerConfig(balance_grads=False),
    commitment_weight=0.25,
    commitment_books="last",
    dead_below=0.08,
    kmeans_rounds=10,
    ema_decay=0.0,
)

# A better decoder for existing codes; the bundled model's decoder was trained like this.
DECODER_TRAINING = dataclasses.replace(
    NANO_TRAINING,
    steps=9000,
    unquantized_steps=0,
    segment_frames=64,
    learning_rate=1.5e-3,
    betas=(0.9, 0.99),
    warmup_steps=60,
    final_learning_rate=0.01,
    muon=True,
    losses=LossWeights(adv=0.0, feat=0.0, l1=0.0, msspec=0.0, waveform=0.1, spectral=1.0),
    windows=(2048, 1024, 512, 256, 128),
    train_decoder_only=True,
    ema_decay=0.998,
)

PRESETS: dict[str, CodecRunConfig] = {
    # Shows in a minute that everything works. The codec itself is useless.
    "debug": CodecRunConfig(
        codec=EncodecConfig(
            sample_rate=8000, n_filters=2, ratios=(8, 5), dimension=8, n_q=2, bins=32, lstm=0
        ),
        training=CodecTrainConfig(
            steps=20,
            batch_size=2,
            segment_frames=32,
            kmeans_rounds=5,
            discriminator=DiscriminatorConfig(
                filters=2, n_ffts=(128, 64), hop_lengths=(32, 16), win_lengths=(128, 64)
            ),
        ),
        name="my-debug-codec",
        valid_clips=2,
        valid_seconds=0.5,
        log_every=5,
        save_every=10,
    ),
    "nano": CodecRunConfig(codec=NANO_CODEC, training=NANO_TRAINING, name="my-nano-codec"),
    "nano-decoder": CodecRunConfig(
        codec=NANO_CODEC, training=DECODER_TRAINING, name="my-nano-decoder", base="nano"
    ),
    # audiocraft's config/solver/compression, with the same names.
    "encodec_base_24khz": CodecRunConfig(
        codec=EncodecConfig(
            sample_rate=24000,
            n_filters=32,
            ratios=(8, 5, 4, 2),
            n_q=32,
            bins=1024,
            causal=True,
            pad_mode="constant",
        ),
        training=CodecTrainConfig(segment_frames=75, q_dropout=True),
        name="my-encodec-24khz",
        devices=0,
    ),
    "encodec_musicgen_32khz": CodecRunConfig(
        codec=ENCODEC_32KHZ, name="my-encodec-32khz", devices=0
    ),
}


def with_steps(training: CodecTrainConfig, steps: int) -> CodecTrainConfig:
    """The same training with another number of steps; warm-ups are shortened if they do not fit."""
    warmup = min(training.warmup_steps, max(steps - 1, 0))
    alone = min(training.adversarial_warmup, max(steps - warmup - 1, 0))
    return dataclasses.replace(training, steps=steps, warmup_steps=warmup, adversarial_warmup=alone)
