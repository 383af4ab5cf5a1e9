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
        retrieval: seconds of a search of the index.
        placed: passages that stood in prompts.
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
        self.retrieval = Histogram(
            "ava_retrieval_seconds",
            "Searches of the index, their wait for its thread included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.placed = Counter("ava_placed_passages", "Passages placed in prompts.", registry=self.registry)
        self.registry.register(_Engine(models))
        ProcessCollector(registry=self.registry)


class _Engine(Collector):
    """The engines' own counts, of all together, read when they are asked for."""

    def __init__(self, models: ServedModels) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        everything = self.models.all()
        stats = [served.engine.stats() for served in everything]
        for gauge, field, text in (
            ("ava_queue_requests", "queued", "Requests that wait for a slot."),
            ("ava_running_requests", "running", "Requests in a slot."),
            ("ava_cache_bytes", "cache_bytes", "Keys and values of all slots."),
        ):
            yield GaugeMetricFamily(gauge, text, value=sum(getattr(each, field) for each in stats))
        for counter, field, text in (
            ("ava_prompt_tokens", "prompt_tokens", "Prompt tokens read."),
            ("ava_generated_tokens", "generated_tokens", "Tokens generated."),
            ("ava_steps", "steps", "Passes of the model."),
        ):
            yield CounterMetricFamily(counter, text, value=sum(getattr(each, field) for each in stats))
        info = InfoMetricFamily("ava_model", "The models that are served.", labels=("name", "version", "ava"))
        for served in everything:
            info.add_metric((served.name, served.version, __version__), {})
        yield info
