"""Counters of the server for Prometheus. Each server has its own, so that two in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rank_k.optional_deps import load
from rank_k.types import RankedHits

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """`running` and `waiting` return the number of requests; they are called when the metrics are read."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        prometheus: Any = load("prometheus_client")
        registry = prometheus.CollectorRegistry()
        counter, gauge, histogram = (
            partial(kind, namespace="rank_k", registry=registry)
            for kind in (prometheus.Counter, prometheus.Gauge, prometheus.Histogram)
        )
        self._requests = counter("requests", "Requests, by path and status", ["path", "status"])
        self._seconds = histogram(
            "request_seconds", "From arrival to the end of the answer", ["path"], buckets=_BUCKETS
        )
        self._tokens = counter("tokens", "Tokens that answers took, journaled ones included", ["kind"])
        self._repairs = counter("repairs", "What had to be mended in the model's answers", ["kind"])
        self._unranked = counter("unranked_windows", "Windows left in input order")
        self._unfinished = counter("unfinished", "Rankings cut short by their deadline")
        gauge("requests_running", "Requests being worked on").set_function(running)
        gauge("requests_waiting", "Requests waiting for their turn").set_function(waiting)
        self.render: Callable[[], bytes] = partial(prometheus.generate_latest, registry)
        self.content_type: str = prometheus.CONTENT_TYPE_PLAIN_0_0_4

    def record_request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def record_ranking(self, hits: RankedHits) -> None:
        for kind in ("prompt", "cached", "completion", "reasoning"):
            self._tokens.labels(kind).inc(getattr(hits.usage, f"{kind}_tokens"))
        for kind, number in hits.repairs.items():
            self._repairs.labels(kind).inc(number)
        self._unranked.inc(hits.unranked_windows)
        self._unfinished.inc(not hits.finished)
