"""What the server counts, for Prometheus. One set per server, so that two in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rank_k.optional_deps import load
from rank_k.types import RankedHits

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """`running` and `waiting` are asked for when somebody looks."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        prometheus: Any = load("prometheus_client")
        self._registry = prometheus.CollectorRegistry()

        def make_metric(kind: Any, name: str, description: str, *labels: str, **options: Any) -> Any:
            return kind(f"rank_k_{name}", description, labels, registry=self._registry, **options)

        counter, gauge = prometheus.Counter, prometheus.Gauge
        self._requests = make_metric(counter, "requests", "Requests, by path and status", "path", "status")
        self._seconds = make_metric(
            prometheus.Histogram, "request_seconds", "From arrival to the end of the answer", "path", buckets=_BUCKETS
        )
        self._tokens = make_metric(counter, "tokens", "Tokens that answers took, journaled ones included", "kind")
        self._repairs = make_metric(counter, "repairs", "What had to be mended in the model's answers", "kind")
        self._unranked = make_metric(counter, "unranked_windows", "Windows left in input order")
        self._unfinished = make_metric(counter, "unfinished", "Rankings cut short by their deadline")
        make_metric(gauge, "requests_running", "Requests being worked on").set_function(running)
        make_metric(gauge, "requests_waiting", "Requests waiting for their turn").set_function(waiting)
        self._generate_latest = prometheus.generate_latest
        self.content_type: str = prometheus.CONTENT_TYPE_PLAIN_0_0_4

    def record_request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def record_ranking(self, hits: RankedHits) -> None:
        tokens: Mapping[str, int] = {
            "prompt": hits.usage.prompt_tokens,
            "cached": hits.usage.cached_tokens,
            "completion": hits.usage.completion_tokens,
            "reasoning": hits.usage.reasoning_tokens,
        }
        for kind, number in tokens.items():
            self._tokens.labels(kind).inc(number)
        for kind, number in hits.repairs.items():
            self._repairs.labels(kind).inc(number)
        self._unranked.inc(hits.unranked_windows)
        self._unfinished.inc(not hits.finished)

    def render(self) -> bytes:
        payload: bytes = self._generate_latest(self._registry)
        return payload
