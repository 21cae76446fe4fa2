"""The server's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rank_k.optional_deps import load
from rank_k.types import RankedHits

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server. Servers in one process do not share them.

    Args:
        running: Returns the number of running requests. Like `waiting`, it is called when the metrics are read.
        waiting: Returns the number of waiting requests.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        prometheus: Any = load("prometheus_client")
        registry = prometheus.CollectorRegistry()
        counter, gauge, histogram = (
            partial(kind, namespace="rank_k", registry=registry)
            for kind in (prometheus.Counter, prometheus.Gauge, prometheus.Histogram)
        )
        self._requests = counter("requests", "Requests, by path and status", ["path", "status"])
        self._seconds = histogram(
            "request_seconds",
            "Seconds from the arrival of a request to the end of its response",
            ["path"],
            buckets=_BUCKETS,
        )
        self._tokens = counter("tokens", "Tokens by kind, including those of calls found in the journal", ["kind"])
        self._repairs = counter("repairs", "Parse repairs and truncations by kind", ["kind"])
        self._unranked = counter("unranked_windows", "Windows that could not be ranked and kept their input order")
        self._unfinished = counter("unfinished", "Rankings that were not finished at their deadline")
        gauge("requests_running", "Running requests").set_function(running)
        gauge("requests_waiting", "Waiting requests").set_function(waiting)
        self.render: Callable[[], bytes] = partial(prometheus.generate_latest, registry)
        self.content_type: str = prometheus.CONTENT_TYPE_PLAIN_0_0_4

    def record_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that took `seconds` and was answered with `status`."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def record_ranking(self, hits: RankedHits) -> None:
        """Count the tokens, repairs and unranked windows of a ranking."""
        for kind in ("prompt", "cached", "completion", "reasoning"):
            self._tokens.labels(kind).inc(getattr(hits.usage, f"{kind}_tokens"))
        for kind, number in hits.repairs.items():
            self._repairs.labels(kind).inc(number)
        self._unranked.inc(hits.unranked_windows)
        self._unfinished.inc(not hits.finished)
