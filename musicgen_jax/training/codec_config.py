"""Settings of codec training; the defaults are those of MusicGen's codec."""

import dataclasses

from musicgen_jax.config.schema import Positive, check_ranges
from musicgen_jax.training.balancer import BalancerConfig
from musicgen_jax.training.discriminator import DiscriminatorConfig


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the losses of decoded audio; losses with weight 0 are not computed."""

    adv: float = 4.0  # the adversarial loss
    feat: float = 4.0  # differences of the adversary's feature maps
    l1: float = 0.1
    l2: float = 0.0
    mel: float = 0.0
    msspec: float = 2.0  # mel spectrograms of many sizes
    mrstft: float = 0.0
    sisnr: float = 0.0
    waveform: float = 0.0  # L1 relative to the target's level
    spectral: float = 0.0  # log-mel and linear magnitudes; `CodecTrainConfig.windows`

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        for name, weight in values.items():
            if weight < 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if not any(values.values()):
            raise ValueError("at least one weight must be above 0")

    @property
    def active(self) -> dict[str, float]:
        """The weights above zero."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}


@dataclasses.dataclass(frozen=True)
class CodecTrainConfig:
    """How to train a codec.

    Each step has two parts, as in audiocraft's solvers/compression.py. First the adversary learns
    to tell decoded audio from real audio, then the codec learns to minimise all losses.
    """

    steps: Positive = 400_000
    batch_size: Positive = 64
    segment_frames: Positive = 50
    learning_rate: float = 3e-4
    betas: tuple[float, ...] = (0.5, 0.9)
    warmup_steps: int = 0
    final_learning_rate: float = 1.0  # as a fraction of `learning_rate`, at the end of a cosine
    clip_norm: float = 0.0  # 0: no clipping
    muon: bool = False  # Muon instead of Adam, except for the adversary
    weight_norm: bool = True  # of the codec's convolutions, during training
    losses: LossWeights = dataclasses.field(default_factory=LossWeights)
    balancer: BalancerConfig = dataclasses.field(default_factory=BalancerConfig)
    windows: tuple[int, ...] = (2048, 1024, 512, 256)  # STFT sizes of the loss `spectral`

    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    adversarial_loss: str = "hinge"  # or "hinge2", "mse"
    adversarial_every: Positive = 1  # the adversary learns once in this many steps
    adversarial_learning_rate: float = 3e-4
    # First steps in which only the adversary learns, so that an untrained one cannot spoil a
    # trained codec.
    adversarial_warmup: int = 0

    train_decoder_only: bool = False  # freezes encoder and codebooks; codes keep their meaning
    unquantized_steps: int = 0  # first steps without codebooks; k-means then starts them
    q_dropout: bool = False  # each batch uses a random number of codebooks
    commitment_weight: float = 1.0
    commitment_books: str = "all"  # mean over the codebooks in use; "last": the final error
    codebook_decay: float = 0.99
    # A code restarts if it wins less than this share of an equal split of the vectors.
    # (audiocraft's threshold_ema_dead_code is a number of vectors, for any batch size.)
    dead_below: float = 0.1
    kmeans_init: bool = True  # False: keep the existing codebooks
    kmeans_rounds: Positive = 50

    ema_decay: float = 0.99  # of the averaged weights of the final codec; 0: no average
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps must be from 0 to below steps, {self.steps}, got {self.warmup_steps}"
            )
        if not 0 <= self.adversarial_warmup < self.steps - self.warmup_steps:
            raise ValueError(
                "adversarial_warmup must be from 0 to below steps without warmup_steps, "
                f"{self.steps - self.warmup_steps}, got {self.adversarial_warmup}"
            )
        if self.adversarial_warmup and not self.adversarial:
            raise ValueError("adversarial_warmup needs an adversary: losses.adv or losses.feat")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas}")
        for name in ("codebook_decay", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        if self.adversarial_loss not in ("hinge", "hinge2", "mse"):
            known = "'hinge', 'hinge2' or 'mse'"
            raise ValueError(f"adversarial_loss must be {known}, got {self.adversarial_loss!r}")
        if self.commitment_books not in ("all", "last"):
            raise ValueError(
                f"commitment_books must be 'all' or 'last', got {self.commitment_books!r}"
            )

    @property
    def adversarial(self) -> bool:
        """Whether there is an adversary."""
        return bool(self.losses.adv or self.losses.feat)
