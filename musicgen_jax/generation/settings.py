"""Settings of a generation, with their defaults. No jax: the command line reads them to parse."""

import dataclasses

from musicgen_jax.errors import UserError, is_int, is_number

DEFAULT_DURATION = 8.0  # seconds
MAX_DURATION = 24 * 3600  # seconds; catches typing errors
MAX_SEED = 2**32 - 1
MAX_SLOTS = 1024
MAX_STRENGTH = 1e6  # of a temperature or of guidance; float32 holds the products


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Checked when it is made; passed on as it is.

    Attributes:
      use_sampling: False takes the most likely token at every step.
      top_k: sample among the k most likely tokens; 0 for all.
      top_p: sample among the most likely tokens whose probability together reaches `top_p`; 0 for
        all. If `top_k` and `top_p` are both set, both apply.
      temperature: above 1 more adventurous, below 1 more predictable; 0 is the same as
        `use_sampling=False`.
      cfg_coef: strength of guidance, how closely to follow the description; 1 for none.
      cfg_coef_beta: strength of the text against a melody or a style (double guidance); None or 1
        is ordinary guidance.

    Raises:
      UserError: a value has the wrong type or is out of range.
    """

    use_sampling: bool = True
    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0
    cfg_coef: float = 3.0
    cfg_coef_beta: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.use_sampling, bool):
            raise UserError(f"use_sampling must be True or False, got {self.use_sampling!r}")
        if not is_int(self.top_k) or self.top_k < 0:
            raise UserError(f"top_k must be an integer from 0 (all), got {self.top_k!r}")
        if not is_number(self.top_p) or not 0 <= self.top_p <= 1:
            raise UserError(f"top_p must be from 0 (all) to 1, got {self.top_p!r}")
        if not _is_strength(self.temperature) or self.temperature < 0:
            raise UserError(
                f"temperature must be 0 (no sampling) or more, at most {MAX_STRENGTH:g}, "
                f"got {self.temperature!r}"
            )
        if not _is_strength(self.cfg_coef):
            raise UserError(f"cfg_coef must be a finite number {_LIMITS}, got {self.cfg_coef!r}")
        if self.cfg_coef_beta is not None and not _is_strength(self.cfg_coef_beta):
            raise UserError(
                f"cfg_coef_beta must be a finite number {_LIMITS} or None, "
                f"got {self.cfg_coef_beta!r}"
            )

    @property
    def greedy(self) -> bool:
        """Whether every step takes the most likely token."""
        return not self.use_sampling or self.temperature == 0


def _is_strength(value: object) -> bool:
    return is_number(value) and abs(value) <= MAX_STRENGTH  # type: ignore[arg-type]


_LIMITS = f"from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
DEFAULT_SAMPLING = Sampling()
