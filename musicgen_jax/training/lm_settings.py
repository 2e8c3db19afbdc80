"""Settings of `musicgen-jax train lm`, as stored in its TOML files, and its presets."""

import dataclasses

from musicgen_jax.config import LMConfig, MusicGenConfig
from musicgen_jax.config.schema import Natural, Positive, check_ranges
from musicgen_jax.errors import UserError
from musicgen_jax.training.batches import MELODY_DROPOUT, Dropout
from musicgen_jax.training.layout import MeshConfig
from musicgen_jax.training.lm import LMTrainConfig, Phase
from musicgen_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the language model; the codec and the text encoder determine the rest."""

    dim: int
    num_heads: int
    num_layers: int
    ffn_dim: int = 0  # 0: four times `dim`
    conditioning: str = "cross"  # "prepend" for a melody model
    chroma_bins: int = 0  # 12 for a melody model
    chroma_window: int = 16384  # samples of one chroma frame
    chroma_hop: int = 4096  # samples from one chroma frame to the next
    chroma_stride: int = 0  # see `LMConfig`


@dataclasses.dataclass(frozen=True)
class LMRunConfig:
    """A whole run. Intervals are in steps."""

    lm: Sizes
    training: LMTrainConfig
    name: str = ""
    # The model that provides the codec, the text encoder and the tokenizer, unchanged.
    base: str = "nano"
    continue_base: bool = False  # start with the base's language model, not with new weights
    data: str = ""  # folder of codes; --data overrides it
    valid: str = ""  # folder of codes for validation
    valid_batches: Positive = 8
    text_length: Positive = 64  # tokens; longer prompts are truncated
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log_every: Positive = 25
    save_every: Positive = 500
    keep: Positive = 3  # number of last checkpoints; the best is kept as well
    sample_every: Natural = 0  # 0: no samples
    sample_seconds: float = 8.0
    prompts: tuple[str, ...] = ("a calm piano melody", "energetic drums and bass")
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sample_seconds <= 0:
            raise ValueError(f"sample_seconds must be above 0, got {self.sample_seconds}")


def model_config(config: LMRunConfig, base: MusicGenConfig) -> MusicGenConfig:
    """The model that a run trains: the run's sizes with the base's codec and text encoder.

    Raises:
      UserError: the sizes and the base do not fit, or `continue_base` is set for a style model.
    """
    if config.continue_base and base.lm.style is not None:
        raise UserError(f"{base.name}: to train a style model further, use `musicgen-jax finetune`")
    try:
        lm = LMConfig(
            **dataclasses.asdict(config.lm),
            n_q=base.lm.n_q,
            card=base.lm.card,
            delays=base.lm.delays,
            text_dim=base.lm.text_dim,
        )
        name = config.name or "trained"
        return dataclasses.replace(base, lm=lm, name=name, mert=None)
    except ValueError as error:
        raise UserError(f"lm: {error}") from None


def with_steps(config: LMRunConfig, steps: int) -> LMRunConfig:
    """The same run with another number of steps: cuts the last phases or extends the last one.

    Raises:
      UserError: `steps` is not positive.
    """
    if steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    phases, left = [], steps
    for phase in config.training.phases:
        if left:
            phases.append(dataclasses.replace(phase, steps=min(phase.steps, left)))
            left -= phases[-1].steps
    phases[-1] = dataclasses.replace(phases[-1], steps=phases[-1].steps + left)
    training = dataclasses.replace(config.training, phases=tuple(phases))
    return dataclasses.replace(config, training=training)


# The training of the official models (arxiv.org/abs/2306.05284, 3.2, and audiocraft's
# musicgen_base_32khz.yaml): a million steps of 192 clips of 30 s; AdamW with betas 0.9 and 0.95,
# decay 0.1 and clipping at 1; 4000 steps of warm-up, then a cosine to 0; every fifth clip loses all
# conditions (0.2; the configuration has 0.3). The small and medium models were trained in float16;
# here it is bfloat16. The paper uses D-Adaptation, which chooses its own learning rate; the rates
# here are common for these sizes.
_ADAMW = OptimizerConfig(
    learning_rate=1e-4,
    warmup_steps=4000,
    final_learning_rate=0.0,
    weight_decay=0.1,
    muon=False,
)


def _official(base: str, dim: int, layers: int, rate: float) -> LMRunConfig:
    return LMRunConfig(
        lm=Sizes(dim, dim // 64, layers),
        name=f"my-{base}",
        base=f"facebook/musicgen-{base}",
        training=LMTrainConfig(
            phases=(Phase(1_000_000, 1500, 192),),
            optimizer=dataclasses.replace(_ADAMW, learning_rate=rate),
            dropout=Dropout(0.2),
            dtype="bfloat16",
            remat=True,
            ema_decay=0.99,
            ema_every=10,
        ),
        mesh=MeshConfig(data=0, fsdp=True),
        log_every=100,
        save_every=2000,
        keep=10,
    )


PRESETS: dict[str, LMRunConfig] = {
    # Shows in a minute that everything works. The model itself makes no music.
    "debug": LMRunConfig(
        lm=Sizes(32, 2, 2),
        name="my-debug",
        training=LMTrainConfig(
            phases=(Phase(30, 50, 4),),
            optimizer=OptimizerConfig(warmup_steps=5, muon=False),
            ema_decay=0.9,
        ),
        log_every=5,
        save_every=10,
        valid_batches=2,
        text_length=32,
    ),
    # The same for a melody model, with audiocraft's dropout (conditioner/chroma2music.yaml).
    "debug-melody": LMRunConfig(
        lm=Sizes(32, 2, 2, conditioning="prepend", chroma_bins=12),
        name="my-debug-melody",
        training=LMTrainConfig(
            phases=(Phase(30, 50, 4),),
            optimizer=OptimizerConfig(warmup_steps=5, muon=False),
            dropout=MELODY_DROPOUT,
            ema_decay=0.9,
        ),
        log_every=5,
        save_every=10,
        valid_batches=2,
        text_length=32,
    ),
    # The size of the bundled model, for a single CPU.
    "nano": LMRunConfig(
        lm=Sizes(192, 3, 6),
        name="my-nano",
        training=LMTrainConfig(
            phases=(Phase(1500, 80, 20), Phase(4500, 200, 8), Phase(200, 750, 2)),
            codebook_weights=(4.0, 2.0, 1.0, 1.0),
        ),
        text_length=48,
        save_every=100,
    ),
    "small": _official("small", 1024, 24, 5e-4),
    "medium": _official("medium", 1536, 48, 3e-4),
    "large": _official("large", 2048, 48, 2e-4),
}
