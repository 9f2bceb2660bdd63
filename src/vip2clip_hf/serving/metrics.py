"""Metrics of the server in the format of Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SCORES = tuple(step / 20 for step in range(1, 21))
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """
    Metrics of one server.

    Attributes:
        requests: number of requests by path, method and status.
        request_seconds: duration of requests by path.
        images: number of photos by outcome: `ok`, `rejected` (not readable, too large, not allowed), `timeout`,
            `busy` (no place in the queue), `error` (fault of the server).
        predictions: number of photos by label.
        scores: scores of photos.
        batch_images, batch_seconds: size and duration of batches.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "vip2clip_requests",
            "Requests by path, method and status.",
            ["path", "method", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "vip2clip_request_seconds", "Duration of requests.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter("vip2clip_images", "Photos by outcome.", ["outcome"], registry=registry)
        self.predictions = Counter("vip2clip_predictions", "Photos by label.", ["label"], registry=registry)
        self.scores = Histogram("vip2clip_score", "Scores of photos.", buckets=_SCORES, registry=registry)
        self.batch_images = Histogram(
            "vip2clip_batch_images", "Photos per batch.", buckets=_BATCHES, registry=registry
        )
        self.batch_seconds = Histogram(
            "vip2clip_batch_seconds", "Duration of the model for a batch.", buckets=_SECONDS, registry=registry
        )
        ProcessCollector(registry=registry)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """
        Add a value that is read when the metrics are.

        Args:
            name, description (`str`): name and description of the gauge.
            value (`Callable[[], float]`): returns the value.
        """
        Gauge(name, description, registry=self._registry).set_function(value)

    def observe_batch(self, images: int, seconds: float) -> None:
        """
        Record a batch.

        Args:
            images (`int`): number of photos.
            seconds (`float`): duration of the model.
        """
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """
        Write all metrics.

        Returns:
            `tuple[bytes, str]`: content and its media type.
        """
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


__all__ = ["ServerMetrics"]
