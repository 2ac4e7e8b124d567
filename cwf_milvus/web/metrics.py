"""Counts and times of requests, as Prometheus reads them."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cwf_milvus.web.turns import Turns

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """The numbers of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cwf_milvus_requests",
            "Requests that were answered",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "cwf_milvus_request_seconds",
            "From the request's first byte to the answer's last",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "cwf_milvus_network_batch",
            "Photos of one pass of the network",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )

        self._searches = {
            name: Gauge(
                f"cwf_milvus_searches_{name}", f"Searches that {doing}", registry=self._registry
            )
            for name, doing in (("running", "are worked on"), ("waiting", "wait for their turn"))
        }

    def watch(self, turns: Turns) -> None:
        """Tell of searches that run and that wait."""
        for name, gauge in self._searches.items():
            gauge.set_function(lambda name=name: getattr(turns, name))  # type: ignore[misc]

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self._registry)


class Measured:
    """Counts the requests of an application by route, never by what they name."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it once it is answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, status, time.perf_counter() - started)
