"""Prometheus metrics; names as https://prometheus.io/docs/practices/naming has them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ava_core import __version__
from ava_core.serving.models import ServedModels

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters and histograms of one server.

    Attributes:
        requests: by path and status.
        broken_streams: by code of the error that ended them; their status was sent before.
        first_token, per_token: seconds from the request to the first token, and from a token to the next.
    """

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ava_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.broken_streams = Counter(
            "ava_broken_streams", "Streams that an error ended.", ["code"], registry=self.registry
        )
        self.first_token = Histogram(
            "ava_time_to_first_token_seconds",
            "From the request to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.per_token = Histogram(
            "ava_time_per_token_seconds", "From one token to the next.", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_Engine(models))
        ProcessCollector(registry=self.registry)


class _Engine(Collector):
    """The engine's own counts, read when they are asked for."""

    def __init__(self, models: ServedModels) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        served = self.models.current()
        stats = served.engine.stats()
        yield GaugeMetricFamily("ava_queue_requests", "Requests that wait for a slot.", value=stats.queued)
        yield GaugeMetricFamily("ava_running_requests", "Requests in a slot.", value=stats.running)
        yield GaugeMetricFamily("ava_cache_bytes", "Keys and values of all slots.", value=stats.cache_bytes)
        yield CounterMetricFamily("ava_prompt_tokens", "Prompt tokens read.", value=stats.prompt_tokens)
        yield CounterMetricFamily("ava_generated_tokens", "Tokens generated.", value=stats.generated_tokens)
        yield CounterMetricFamily("ava_steps", "Passes of the model.", value=stats.steps)
        labels = {"name": served.name, "version": served.version, "ava": __version__}
        yield InfoMetricFamily("ava_model", "The model that is served.", value=labels)
