"""The definitions of the figures: one frozen value per protocol, and nothing elsewhere.

The same name means different numbers in different tools. They differ in windows, resampler, level,
pooling and direction. A network asks its rule here how to treat a clip, and a report names the
protocol of every figure.

Sources: audiocraft's metrics and Google's frechet_audio_distance; fadtk 1.1; stable-audio-metrics.
"""

import dataclasses

from musicgen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VggishRule:
    """How VGGish hears a clip.

    Attributes:
      resampler: "julius", or "kaiser" for torchaudio's filter and a 16-bit file, as in fadtk.
      google_level: peak at -1 dB in 16 bits, then divided by the largest sample, with its sign.
      step: frames of 10 ms between the beginnings of two windows.
      whole_seconds: a window takes a second of the clip, of which it leaves out the last 40 ms.
      padded: a clip below 1 s gets zeros at its end; otherwise it has no rows.
    """

    resampler: str
    google_level: bool
    step: int
    whole_seconds: bool
    padded: bool

    @property
    def words(self) -> str:
        """The rule, for a report."""
        resampled = {"julius": "as julius does", "kaiser": "by torchaudio's Kaiser filter"}
        level = (
            "peak at -1 dB in 16 bits, divided by its largest signed sample"
            if self.google_level
            else "in 16 bits"
        )
        short = ", clips below 1 s padded with zeros" if self.padded else ""
        return (
            f"mono, resampled {resampled[self.resampler]} to 16 kHz, {level}{short}; 0.96 s every "
            f"{self.step / 100:g} s"
        )


@dataclasses.dataclass(frozen=True)
class PasstRule:
    """How PaSST hears a clip, and how two clips are compared.

    Attributes:
      resampler: "julius", or "soxr" as in librosa.
      peak: bring a clip to a peak of -1 dB first.
      seconds: length of the clips of the model that the protocol uses, and of the windows.
      overlap: overlap of two windows, as a share of a window.
      shortest: seconds; `padded` says what happens to a shorter or equal piece.
      padded: True: pieces above `shortest` get zeros up to a whole window, and shorter ones stay
        as they are. False: pieces above `shortest` stay as they are, and shorter ones are left out.
      pooled: one row a clip, from the mean of the logits; otherwise a row for every piece.
      reference_first: KL(reference || generated); otherwise KL(generated || reference).
    """

    resampler: str
    peak: bool
    seconds: int
    overlap: float
    shortest: float
    padded: bool
    pooled: bool
    reference_first: bool

    def words(self, seconds: int) -> str:
        """The rule, for a report.

        Args:
          seconds: of the model at hand.
        """
        resampled = {"julius": "as julius does", "soxr": "by soxr"}[self.resampler]
        rest = "padded with zeros" if self.padded else f"those up to {self.shortest:g} s left out"
        pooled = ", the mean of their logits" if self.pooled else ""
        return (
            f"clips mono, resampled {resampled} to 32 kHz{', peak at -1 dB' * self.peak}, in "
            f"pieces of {seconds} s every {seconds * (1 - self.overlap):g} s, {rest}{pooled}"
        )


@dataclasses.dataclass(frozen=True)
class ClapRule:
    """How CLAP hears a clip under one protocol.

    Attributes:
      resampler: "julius", "soxr" as in librosa, or "kaiser" for torchaudio's filter and a 16-bit
        file, as in fadtk.
      peak: bring a clip to a peak of -1 dB first.
      rounded: cut the samples to 16 bits, as laion-clap's own entry for arrays does.
      every_second: one piece from each second on to the end of the clip, the last ones padded with
        zeros. Otherwise one piece: a clip over 10 s is cut at random, and a shorter one is repeated
        as often as it fits whole, then padded with zeros.
    """

    resampler: str
    peak: bool
    rounded: bool
    every_second: bool

    @property
    def words(self) -> str:
        """The rule, for a report."""
        resampled = {
            "julius": "as julius does",
            "soxr": "by soxr",
            "kaiser": "by torchaudio's Kaiser filter",
        }[self.resampler]
        level = ", peak at -1 dB" * self.peak + ", cut to 16 bits" * self.rounded
        windows = (
            "10 s every 1 s, the last ones padded with zeros"
            if self.every_second
            else "of a clip over 10 s one cut of 10 s, at a place drawn by a digest of the clip; a "
            "shorter one repeated as often as it fits whole, then padded with zeros"
        )
        return f"mono, resampled {resampled} to 48 kHz{level}; {windows}"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A tool's definitions.

    Attributes:
      name: of the tool.
      loudness: LUFS that generated clips are set to before anything else, clipped to full scale;
        None leaves them. References are never changed.
      vggish: None if the tool does not measure with VGGish; the same holds for the next two.
      passt: for `kld`.
      clap: for `clap`, and for `fad` and `kad` on CLAP.
      embeddings: those that `fad` and `kad` are defined on.
      clap_score: whether it defines `clap`.
    """

    name: str
    loudness: float | None
    vggish: VggishRule | None
    passt: PasstRule | None
    clap: ClapRule
    embeddings: tuple[str, ...]
    clap_score: bool


AUDIOCRAFT = Protocol(
    name="audiocraft",
    loudness=-14.0,
    vggish=VggishRule("julius", google_level=True, step=50, whole_seconds=True, padded=False),
    passt=PasstRule(
        "julius",
        peak=False,
        seconds=20,
        overlap=0.0,
        shortest=0.15,
        padded=False,
        pooled=False,
        reference_first=True,
    ),
    clap=ClapRule("julius", peak=False, rounded=False, every_second=False),
    embeddings=("vggish",),
    clap_score=True,
)
FADTK = Protocol(
    name="fadtk",
    loudness=None,
    vggish=VggishRule("kaiser", google_level=False, step=96, whole_seconds=False, padded=True),
    passt=None,
    clap=ClapRule("kaiser", peak=False, rounded=True, every_second=True),
    embeddings=("vggish", "clap", "encodec", "mert"),
    clap_score=False,
)
STABLE_AUDIO = Protocol(
    name="stable-audio",
    loudness=None,
    vggish=None,
    passt=PasstRule(
        "soxr",
        peak=True,
        seconds=10,
        overlap=0.5,
        shortest=1.5,
        padded=True,
        pooled=True,
        reference_first=False,
    ),
    clap=ClapRule("soxr", peak=True, rounded=True, every_second=False),
    embeddings=(),  # it measures with OpenL3
    clap_score=True,
)
PROTOCOLS = {protocol.name: protocol for protocol in (AUDIOCRAFT, FADTK, STABLE_AUDIO)}


def find(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
      UserError: there is none of this name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def defines(protocol: Protocol, metric: str, embedding: str = "") -> bool:
    """Whether a tool defines a metric: "fad" and "kad" on an embedding, "kld", "clap", "chroma"."""
    if metric in ("fad", "kad"):
        return embedding in protocol.embeddings
    if metric == "kld":
        return protocol.passt is not None
    if metric == "clap":
        return protocol.clap_score
    return True  # chroma does not depend on level or windows


def default(metric: str, embedding: str = "") -> Protocol:
    """The default protocol of a metric: audiocraft's if it defines the metric."""
    return next(p for p in PROTOCOLS.values() if defines(p, metric, embedding))
