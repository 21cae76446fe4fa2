"""Transient faults of the fake model server."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.conftest import StartLoopback
from tests.fakes.model_server.client import (
    DATASET,
    ClientResponse,
    chat_body,
    marks_of,
    send_one_chat,
    true_ranking,
    window_doc_ids,
)
from tests.fakes.model_server.fault_plan import TRANSIENT, FaultPlan
from tests.fakes.model_server.marked_passages import window_key

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", TRANSIENT)
def test_transient_fault_occurs_the_planned_number_of_times(loopback: StartLoopback, fault: str, stream: bool) -> None:
    doc_ids = window_doc_ids()
    plan: dict[str, Any] = {fault: (1.0, 2), "retry_after": "7"}
    server = loopback(**plan)
    response = []
    for _ in range(3):
        try:
            response.append(send_one_chat(server, chat_body(doc_ids, stream=stream)))
        except aiohttp.ClientError as error:  # a connection dropped before the head of the reply
            response.append(ClientResponse(0, error=error))
    assert [call.fault for call in server.calls] == [fault, fault, ""]
    assert response[2].content.rpartition("</think>")[2].strip() == true_ranking(doc_ids)
    assert (response[2].skipped_lines, response[2].error) == (0, None)
    for failed_response in response[:2]:
        match fault:
            case "http_429":
                assert (failed_response.status, failed_response.headers["Retry-After"]) == (429, "7")
                assert failed_response.error == {"message": "rate limit: limit 20 per 1 min, try again in 3s"}
            case "http_500":
                assert (failed_response.status, failed_response.error["code"]) == (500, 500)
            case "drop":
                assert isinstance(failed_response.error, aiohttp.ClientError)
                assert failed_response.finish_reason is None
            case "error_in_stream":
                assert failed_response.error["code"] == 500
                assert failed_response.finish_reason is None
            case _ if stream:
                assert failed_response.skipped_lines == 1
                assert failed_response.content == response[2].content  # what was not broken was said in full


def test_drop_ends_the_stream_inside_the_reasoning(loopback: StartLoopback) -> None:
    response = send_one_chat(loopback(drop=1.0, per_token=0.0001), chat_body(window_doc_ids()))
    assert response.content.startswith("<think>")
    assert "</think>" not in response.content


def test_strikes_selects_the_same_windows_for_a_seed(loopback: StartLoopback) -> None:
    windows = [window_doc_ids(query.query_id, start) for query in DATASET.queries for start in range(0, 81, 10)]
    plans = [FaultPlan().changed({"cut": 0.28, "http_429": "0.11:6", "seed": seed}) for seed in (0, 0, 1)]
    keys = [window_key(marks_of(window)) for window in windows]
    affected_keys = [[key for key in keys if plan.strikes("cut", key)] for plan in plans]
    assert affected_keys[0] == affected_keys[1] != affected_keys[2]
    assert 0.2 < len(affected_keys[0]) / len(keys) < 0.36
    limited_keys = [key for key in keys if plans[0].strikes("http_429", key)]
    assert 0.05 < len(limited_keys) / len(keys) < 0.18
    for server in (loopback(cut=0.28), loopback(cut=0.28, child=True)):
        truncated_keys = [
            key
            for key, window in zip(keys[:25], windows, strict=False)
            if send_one_chat(server, chat_body(window, stream=False)).finish_reason == "length"
        ]
        assert truncated_keys == affected_keys[0][: len(truncated_keys)] != []


def test_faults_combine(loopback: StartLoopback) -> None:
    doc_ids = window_doc_ids()
    server = loopback(http_429=(1.0, 2), http_500=1.0, drop=1.0, cut=1.0)
    for _ in range(5):
        response = send_one_chat(server, chat_body(doc_ids))
    assert [call.fault for call in server.calls] == ["http_429", "http_429", "http_500", "drop", ""]
    assert response.finish_reason == "length"
    server.forget()
    assert server.calls == []
    assert send_one_chat(server, chat_body(doc_ids)).status == 429
