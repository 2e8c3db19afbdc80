"""Counts for Prometheus; the names follow its conventions: base units, `_total` for counters."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from musicgen_jax import __version__
from musicgen_jax.serving.http.pace import Pace
from musicgen_jax.serving.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """All counts of one server."""

    def __init__(self, scheduler: Scheduler, pace: Pace, model: str):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_OfScheduler(scheduler, pace, model))
        self.requests = Counter(
            "musicgen_jax_requests", "Answers by route and status.", ("route", "status"),
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "musicgen_jax_request_seconds", "From the head of a request to the end of its answer.",
            ("route",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_audio = Histogram(
            "musicgen_jax_first_audio_seconds", "From the request to the first bytes of audio.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = 0
        Gauge(
            "musicgen_jax_requests_in_flight", "Requests without the end of their answer.",
            registry=registry,
        ).set_function(lambda: self.in_flight)  # fmt: skip

    def text(self) -> bytes:
        """The text for Prometheus."""
        return generate_latest(self._registry)


class _OfScheduler(Collector):
    """The scheduler's numbers, collected when Prometheus asks."""

    def __init__(self, scheduler: Scheduler, pace: Pace, model: str):
        self._scheduler, self._pace, self._model = scheduler, pace, model

    def describe(self) -> list[Metric]:
        return []  # asked at registration; the counts are there later

    def collect(self) -> Iterator[Metric]:
        scheduler = self._scheduler
        gauges = {
            "slots": ("Clips that can be made at once.", scheduler.slots),
            "slots_busy": ("Slots with a clip in them.", scheduler.busy),
            "queue_length": ("Clips that wait for a slot.", scheduler.waiting),
            "ready": ("1 once nothing compiles any more.", int(scheduler.ready.is_set())),
        }
        for name, (help_, value) in gauges.items():
            yield GaugeMetricFamily(f"musicgen_jax_{name}", help_, value)
        yield CounterMetricFamily(
            "musicgen_jax_steps", "Steps of the language model.", self._pace.steps
        )
        yield CounterMetricFamily(
            "musicgen_jax_audio_seconds", "Seconds of music that were finished.", self._pace.seconds
        )
        yield CounterMetricFamily(
            "musicgen_jax_compilations",
            "Programs compiled or loaded since the server was ready; should be 0.",
            scheduler.compilations,
        )
        info = GaugeMetricFamily(
            "musicgen_jax_info", "Always 1.", labels=("model", "version", "program")
        )
        for program in scheduler.programs:
            info.add_metric((self._model, __version__, str(program)), 1)
        yield info
