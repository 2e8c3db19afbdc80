"""Which figures `evaluate` can compute, and their networks with weights."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols, statistics_file
from musicgen_jax.metrics.distances import Distances
from musicgen_jax.metrics.evaluation import METRICS, ClipSet
from musicgen_jax.metrics.frechet import Gaussian
from musicgen_jax.metrics.measures import Embedding, Measure
from musicgen_jax.metrics.pairs import Chroma, Divergence, TextConsistency
from musicgen_jax.metrics.protocols import Protocol

if TYPE_CHECKING:
    from musicgen_jax.metrics.measures import TextEmbedding


class Opened:
    """The measures that are possible.

    Attributes:
      measures: with their networks.
      statistics: of the reference, for `evaluation.Plan`.
      not_computed: {metric: reason} for the others.
    """

    def __init__(self) -> None:
        self.measures: tuple[Measure, ...] = ()
        self.statistics: tuple[str, str, Mapping[str, Any]] | None = None
        self.not_computed: dict[str, str] = {}
        self.distances: Distances | None = None

    def check_statistics(self) -> "Distances":
        """What `save_statistics` needs.

        Raises:
          UserError: neither FAD nor KAD is computed.
        """
        if self.distances is None:
            raise UserError("--save-statistics needs fad or kad among the metrics")
        return self.distances

    def save_statistics(self, path: str) -> None:
        """Writes the mean and covariance of the reference that was measured."""
        distances = self.check_statistics()
        assert distances.target is not None
        about = {
            "embedding": distances.embedding.name,
            "weights": distances.embedding.weights,
            "definition": distances.embedding.definition,
            "protocol": distances.protocol.name,
            "clips": distances.reference_clips,
        }
        statistics_file.write(path, distances.target, about)


def open_measures(
    args: argparse.Namespace,
    *,
    count: int,
    reference: ClipSet | None,
    statistics: Path | None,
    texts: Mapping[str, str],
    cache: Path | None,
) -> Opened:
    """Opens the measures that the arguments ask for.

    Args:
      args: of the command.
      count: of the clips to judge.
      reference: the clips to compare with.
      statistics: a file that stands for them.
      texts: captions by id.
      cache: for the captions' rows.

    Raises:
      UserError: a metric that the user named cannot be computed, or none can.
    """
    opened = Opened()

    def attempt(names: tuple[str, ...], make: Callable[[], Measure]) -> None:
        try:
            opened.measures = (*opened.measures, make())
        except UserError as error:
            opened.not_computed |= {name: str(error) for name in names}

    wanted = args.metrics or METRICS
    distances = tuple(name for name in ("fad", "kad") if name in wanted)
    if distances and not args.metrics and statistics:
        opened.not_computed["kad"] = _NO_AUDIO
        distances = ("fad",)
    if distances:
        attempt(
            distances,
            lambda: _distances(args, opened, distances, count, reference, statistics),
        )
    pairs = {"kld": lambda: _divergence(args), "chroma": lambda: _chroma(args)}
    for name, make in pairs.items():
        if name in wanted:
            attempt((name,), lambda make=make: _with_pairs(make, reference, statistics))
    if "clap" in wanted:
        attempt(("clap",), lambda: _consistency(args, texts, cache))
    if args.metrics and (missing := [name for name in wanted if name in opened.not_computed]):
        raise UserError(f"cannot compute {missing[0]}: {opened.not_computed[missing[0]]}")
    if not opened.measures:
        why = (f"cannot compute {name}: {reason}" for name, reason in opened.not_computed.items())
        raise UserError("; ".join(why))
    return opened


_NO_AUDIO = "it needs the reference's audio, not its statistics"


def _with_pairs(
    make: Callable[[], Measure], reference: ClipSet | None, statistics: Path | None
) -> Measure:
    if reference is None:
        raise UserError(_NO_AUDIO if statistics else "it needs a --reference")
    return make()


def _protocol(args: argparse.Namespace, metric: str, embedding: str = "") -> Protocol:
    """The protocol of a metric.

    Raises:
      UserError: the one that the user named does not define it.
    """
    if args.protocol is None:
        return protocols.default(metric, embedding)
    protocol = protocols.find(args.protocol)
    if not protocols.defines(protocol, metric, embedding):
        what = f"{metric} on {embedding}" if embedding else metric
        others = [p.name for p in protocols.PROTOCOLS.values()
                  if protocols.defines(p, metric, embedding)]  # fmt: skip
        raise UserError(f"{args.protocol} does not define {what}, only {' and '.join(others)}")
    return protocol


def _distances(
    args: argparse.Namespace,
    opened: Opened,
    metrics: tuple[str, ...],
    count: int,
    reference: ClipSet | None,
    statistics: Path | None,
) -> Measure:
    if reference is None and statistics is None:
        raise UserError("it needs a --reference")
    if statistics and "kad" in metrics:
        raise UserError(_NO_AUDIO)
    name = args.embedding or "vggish"
    try:
        embedding, protocol = _open_embedding(args, name)
    except UserError as error:
        if args.embedding or args.protocol or args.vggish:
            raise
        opened.not_computed[f"{' and '.join(metrics)} on vggish"] = str(error)
        embedding, protocol = _open_embedding(args, "encodec")
    target: Gaussian | None = None
    if statistics is not None:
        target, about = statistics_file.read(statistics, embedding.name)
        opened.statistics = str(statistics), statistics_file.digest(statistics), about
    opened.distances = Distances(metrics, embedding, protocol, count, target)
    return opened.distances


def _open_embedding(args: argparse.Namespace, name: str) -> tuple[Embedding, Protocol]:
    protocol = _protocol(args, "fad", name)
    if name == "encodec":
        from musicgen_jax.codec import Codec
        from musicgen_jax.metrics.codec_embedding import CodecEmbedding

        return CodecEmbedding(Codec.from_pretrained(args.codec)), protocol
    if name == "vggish":
        from musicgen_jax.metrics.vggish import Vggish

        return Vggish.from_pretrained(args.vggish, protocol.name), protocol
    if name == "mert":
        from musicgen_jax.metrics.mert_embedding import MertEmbedding

        return MertEmbedding.from_pretrained(args.mert), protocol
    return _open_clap(args, protocol), protocol


def _open_clap(args: argparse.Namespace, protocol: Protocol) -> "TextEmbedding":
    from musicgen_jax.metrics.clap import Clap

    return Clap.from_pretrained(args.clap, protocol.name)


def _divergence(args: argparse.Namespace) -> Measure:
    from musicgen_jax.metrics.passt import Passt

    protocol = _protocol(args, "kld")
    return Divergence(Passt.from_pretrained(args.passt, protocol.name), protocol)


def _chroma(args: argparse.Namespace) -> Measure:
    return Chroma(_protocol(args, "chroma"))


def _consistency(args: argparse.Namespace, texts: Mapping[str, str], cache: Path | None) -> Measure:
    if not texts:
        raise UserError("it needs --captions")
    protocol = _protocol(args, "clap")
    clap = _open_clap(args, protocol)
    clap.embed_text([])  # a tokenizer that is missing says so before the work
    return TextConsistency(clap, texts, protocol, cache)
