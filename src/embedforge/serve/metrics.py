"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "embedforge_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "embedforge_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.texts = Counter("embedforge_texts", "Texts embedded.", registry=registry)
        self.tokens = Counter("embedforge_tokens", "Tokens embedded, without padding.", registry=registry)
        self.truncated = Counter("embedforge_truncated_texts", "Texts cut on request.", registry=registry)
        self.batch_texts = Histogram(
            "embedforge_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "embedforge_batch_seconds", "Model time of a batch.", buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "embedforge_queue_seconds",
            "Wait of a request for the model.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_tokens = Gauge(
            "embedforge_queue_tokens", "Tokens accepted and not embedded yet.", registry=registry
        )

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Texts went through the model."""
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        self.batch_texts.observe(texts)
        self.batch_seconds.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A request's first text has left the queue."""
        self.queue_seconds.observe(seconds)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request is answered; `path` is a route's, so that there are few."""
        self.requests.labels(path, str(status)).inc()
        self.request_seconds.labels(path).observe(seconds)

    def watch_queue(self, tokens: Callable[[], float]) -> None:
        """Ask for the queue's tokens whenever the metrics are read."""
        self.queue_tokens.set_function(tokens)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
