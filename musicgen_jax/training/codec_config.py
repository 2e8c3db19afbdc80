"""Settings of codec training; the defaults are those of MusicGen's codec."""

import dataclasses

from musicgen_jax.config.schema import Positive, check_ranges
from musicgen_jax.training.balancer import BalancerConfig
from musicgen_jax.training.discriminator import DiscriminatorConfig


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """What the decoded audio is judged by; a loss of weight 0 is not computed."""

    adv: float = 4.0  # the adversary's verdict
    feat: float = 4.0  # differences in what the adversary's layers see
    l1: float = 0.1
    l2: float = 0.0
    mel: float = 0.0
    msspec: float = 2.0  # mel spectrograms of many sizes
    mrstft: float = 0.0
    sisnr: float = 0.0
    waveform: float = 0.0  # L1 relative to the target's level
    spectral: float = 0.0  # log-mel and linear magnitudes, of `CodecTrainConfig.windows`

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
    """How a codec is trained.

    Steps alternate as in audiocraft's solvers/compression.py: the adversary learns to tell decoded
    audio from real, then the codec to please all losses.
    """

    steps: Positive = 400_000
    batch_size: Positive = 64
    segment_frames: Positive = 50
    learning_rate: float = 3e-4
    betas: tuple[float, ...] = (0.5, 0.9)
    warmup_steps: int = 0
    final_learning_rate: float = 1.0  # as a fraction of `learning_rate`, reached along a cosine
    clip_norm: float = 0.0  # 0: no clipping
    muon: bool = False  # in place of Adam, for all weights but the adversary's
    weight_norm: bool = True  # of the codec's convolutions, while it trains
    losses: LossWeights = dataclasses.field(default_factory=LossWeights)
    balancer: BalancerConfig = dataclasses.field(default_factory=BalancerConfig)
    windows: tuple[int, ...] = (2048, 1024, 512, 256)  # of the loss `spectral`

    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    adversarial_loss: str = "hinge"  # or "hinge2", "mse"
    adversarial_every: Positive = 1  # steps between those in which the adversary learns
    adversarial_learning_rate: float = 3e-4
    # Steps at first in which only the adversary learns, lest a trained codec follow a blind one.
    adversarial_warmup: int = 0

    train_decoder_only: bool = False  # encoder and codebooks stay: codes keep their meaning
    unquantized_steps: int = 0  # before the codebooks begin, with k-means on what there is then
    q_dropout: bool = False  # each batch goes through a random number of books
    commitment_weight: float = 1.0
    commitment_books: str = "all"  # mean over the books in use; or "last", the whole error
    codebook_decay: float = 0.99
    # A code that wins less than this share of what each would win, if all won alike, starts anew.
    # (The original's threshold_ema_dead_code counts vectors in a batch, whatever its size.)
    dead_below: float = 0.1
    kmeans_init: bool = True  # False: go on with the codebooks that there are
    kmeans_rounds: Positive = 50

    ema_decay: float = 0.99  # of the averaged weights that make the final codec; 0: no average
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
