"""Former names of the fake model server, for tests that still import them from here."""

from __future__ import annotations

from tests.fakes.model_server.fault_plan import QUIRKS, TRANSIENT
from tests.fakes.model_server.fault_plan import FaultPlan as Plan
from tests.fakes.model_server.marked_passages import (
    Dataset,
    window_key,
)
from tests.fakes.model_server.marked_passages import make_dataset as make_queries
from tests.fakes.model_server.marked_passages import mark_relevance as relevance
from tests.fakes.model_server.marked_passages import oracle_tiers as oracle
from tests.fakes.model_server.marked_passages import passage_marks as shown_marks
from tests.fakes.model_server.marked_passages import response_latency as latency
from tests.fakes.model_server.marked_passages import response_tokens as reply_tokens
from tests.fakes.model_server.request_log import RecordedRequest as Seen
from tests.fakes.model_server.request_log import peak_concurrency
from tests.fakes.model_server.responses import compose_response as compose
from tests.fakes.model_server.responses import decode_tokens as text_of
from tests.fakes.model_server.responses import render_chat as rendered
from tests.fakes.model_server.running import FakeModelServer as Loopback
from tests.fakes.model_server.running import main
from tests.fakes.model_server.running import run_in_process as in_child
from tests.fakes.model_server.running import run_in_thread as in_thread

__all__ = [
    "QUIRKS",
    "TRANSIENT",
    "Dataset",
    "Loopback",
    "Plan",
    "Seen",
    "compose",
    "in_child",
    "in_thread",
    "latency",
    "make_queries",
    "oracle",
    "peak_concurrency",
    "relevance",
    "rendered",
    "reply_tokens",
    "shown_marks",
    "text_of",
    "window_key",
]

if __name__ == "__main__":
    main()
