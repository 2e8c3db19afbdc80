"""The name, in one line, of the compiled program that drew the tokens of a seed."""

import dataclasses

import jax
from jax.sharding import Mesh

from musicgen_jax import __version__
from musicgen_jax.nn.lm import LM


@dataclasses.dataclass(frozen=True)
class ProgramName:
    """Names the program that made a clip.

    Two programs round differently, and sampling turns a different last bit into a different token
    now and then. In one program a request with its seed gives the same samples, bit for bit.

    `str()` gives one line without spaces in any value, such as `slots=4 steps=528 text=64
    dtype=float32 cache=float32 device=cpu jax=0.10.2 musicgen-jax=1.0.0`.

    Attributes:
      clips: how many clips the program makes at once: N slots, or the B clips of one batch.
      slots: whether these are slots, which take a new clip as soon as one is finished; otherwise
        the clips begin together and have equal lengths.
      steps: length of the cache, in steps.
      text: length of the padded descriptions, in tokens.
      negatives: whether the rows of guidance attend to texts too, as `text=2x64`.
      dtype: of the language model's matrices.
      cache: dtype of its keys and values.
      device: the kind of device, and how many if there are several.
      jax: version.
      version: of this package.
    """

    clips: int
    slots: bool
    steps: int
    text: int
    dtype: str
    cache: str
    device: str
    negatives: bool = False
    jax: str = jax.__version__
    version: str = __version__

    @classmethod
    def of(
        cls,
        lm: LM,
        mesh: Mesh | None,
        *,
        clips: int,
        slots: bool,
        steps: int,
        text: int,
        negatives: bool,
    ) -> "ProgramName":
        """The name of a program of this model on this machine."""
        device = jax.devices()[0].device_kind.replace(" ", "-")
        if mesh is not None and mesh.size > 1:
            device += f":{'x'.join(map(str, mesh.devices.shape))}"
        dtypes = lm.param_dtype.name, lm.cache_dtype.name
        return cls(clips, slots, steps, text, *dtypes, device, negatives)

    def __str__(self) -> str:
        clips = f"{'slots' if self.slots else 'batch'}={self.clips}"
        text = f"2x{self.text}" if self.negatives else self.text
        return (
            f"{clips} steps={self.steps} text={text} dtype={self.dtype} cache={self.cache} "
            f"device={self.device} jax={self.jax} musicgen-jax={self.version}"
        )
