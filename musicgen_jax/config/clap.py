"""Architecture of LAION-CLAP: HTSAT hears 10 s, RoBERTa reads a text, both in one space."""

import dataclasses

from musicgen_jax.config.schema import Share, Size, check_ranges


@dataclasses.dataclass(frozen=True)
class HtsatConfig:
    """HTSAT, a Swin transformer of four stages over a log-mel spectrum. Defaults: HTSAT-base."""

    dim: Size = 128  # of the first stage; each further stage doubles it
    depths: tuple[Size, ...] = (2, 2, 12, 2)  # blocks of each stage
    num_heads: tuple[Size, ...] = (4, 8, 16, 32)

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise ValueError("depths and num_heads must be of four stages")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % heads:
                raise ValueError(f"a stage of width {width} does not divide by {heads} heads")

    @property
    def widths(self) -> tuple[int, ...]:
        """D of each stage."""
        return tuple(self.dim << stage for stage in range(4))


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """RoBERTa, a post-norm encoder of text. The defaults are roberta-base."""

    vocab_size: Size = 50265
    positions: Size = 514  # the first two are never used: they begin after the id of padding
    dim: Size = 768
    num_heads: Size = 12
    num_layers: Size = 12
    ffn_dim: Size = 3072
    layer_norm_epsilon: Share = 1e-5

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must divide by {self.num_heads} heads")


@dataclasses.dataclass(frozen=True)
class ClapConfig:
    """Both towers and the width of the space in which they meet."""

    audio: HtsatConfig = HtsatConfig()
    text: RobertaConfig = RobertaConfig()
    dim: Size = 512

    def __post_init__(self) -> None:
        check_ranges(self)
