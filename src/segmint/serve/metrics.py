"""What a server tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from segmint.serve.batching import Batcher

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter("segmint_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "segmint_request_seconds", "From request to answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.running = Gauge("segmint_requests_in_progress", "Requests not yet answered.", registry=registry)
        self.received = Counter("segmint_received_bytes", "Bytes of bodies received.", registry=registry)
        self.batches = Histogram(
            "segmint_batch_size", "Images computed together.", ["model", "job"], buckets=_SIZES, registry=registry
        )
        self.computing = Histogram(
            "segmint_compute_seconds", "Computing of a batch.", ["model", "job"], buckets=_SECONDS, registry=registry
        )

    def watch(self, model: str, job: str, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.labels(model, job).observe(size)
        self.computing.labels(model, job).observe(seconds)

    def follow(self, batcher: Batcher) -> None:
        """Tell the lengths of its queues as well."""
        self.registry.register(_Queues(batcher))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Queues(Collector):
    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("segmint_queue_length", "Images waiting to be computed.", labels=["model"])
        for name, length in self.batcher.lengths().items():
            family.add_metric([name], length)
        yield family


class Counting:
    """ASGI middleware that counts requests and takes their time.

    Args:
        app: what it is around.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def counted() -> Message:
            message = await receive()
            self.metrics.received.inc(len(message.get("body", b"")))
            return message

        with self.metrics.running.track_inprogress():
            try:
                await self.app(scope, counted, told)
            finally:
                path = getattr(scope.get("route"), "path", None) or "other"
                self.metrics.requests.labels(path, str(status)).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
