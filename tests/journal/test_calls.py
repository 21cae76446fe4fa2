"""Calls: what is stored is found again exactly, under a key that only the semantic request decides."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from rank_k.journal import Call, Journal, call_key
from rank_k.models import server_types
from rank_k.models.http import HttpModel
from rank_k.types import Message, Request, Response, Usage
from tests.journal.records import HARD_TEXT, make_response, make_window, texts
from tests.support.waiting import cpu_seconds


def test_find_response_returns_the_stored_response(path: Path) -> None:
    response = make_response()
    journal = Journal(path)
    assert journal.find_response("k") is None
    assert journal.store_call("k", "m", "ask", {"messages": ["é"]}, response) == response
    assert journal.find_response("k") == response
    journal.close()
    reopened = Journal(path)
    assert reopened.find_response("k") == response
    call = reopened.find_call("k")
    assert call is not None
    assert call.request == {"messages": ["é"]}
    reopened.close()


def test_call_returns_request_response_and_passages(journal: Journal) -> None:
    assert journal.find_call("k") is None
    journal.store_call("k", "m", "ask", {"n": 1}, make_response(), ("b", "a"))
    journal.store_call("l", "m", "probe", {"n": 2}, make_response())
    assert journal.find_call("k") == Call("m", "ask", {"n": 1}, make_response(), ("b", "a"))
    assert journal.find_call("l") == Call("m", "probe", {"n": 2}, make_response(), ())


@given(texts, texts, texts, texts)
def test_store_call_preserves_every_text(text: str, reasoning: str, finish_reason: str, model: str) -> None:
    journal = Journal()
    usage, tokens = Usage(1, 2, 3, 4, True, True), ((text, -1.0),)
    for key, response in {
        "k": Response(text, reasoning, finish_reason, usage, 0.0, tokens),
        "l": Response(text, None, None, usage, 0.0, tokens),
    }.items():
        journal.store_call(key, model, "ask", {"content": text}, response)
        assert journal.find_response(key) == response
        call = journal.find_call(key)
        assert call is not None
        assert call.request == {"content": text}
    assert journal.usage_totals() == [(model, "ask", 2, Usage(2, 4, 6, 8, True, True), 0.0)]
    journal.close()


def test_store_call_keeps_the_first_response(journal: Journal) -> None:
    first, second = make_response("first"), make_response("second")
    assert journal.store_call("k", "m", "ask", {}, first) == first
    assert journal.store_call("k", "m", "ask", {}, second) == first
    assert journal.find_response("k") == first
    assert journal.usage_totals() == [("m", "ask", 1, first.usage, first.seconds)]


def test_totals_sum_by_model_and_purpose(journal: Journal) -> None:
    for key, model, purpose, usage in (
        ("a", "m", "ask", Usage(1, 2, 3, 4)),
        ("b", "m", "ask", Usage(10, 20, 30, 40, True)),
        ("c", "m", "close", Usage(5, 5, 5, 5)),
        ("d", "l", "ask", Usage(7, 7, 7, 7)),
        ("e", "l", "ask", Usage(1, 1, 1, 1, reasoning_estimated=True)),
    ):
        journal.store_call(key, model, purpose, {}, Response("", usage=usage, seconds=0.5))
    assert journal.usage_totals() == [
        ("l", "ask", 2, Usage(8, 8, 8, 8, reasoning_estimated=True), 1.0),
        ("m", "ask", 2, Usage(11, 22, 33, 44, True), 1.0),
        ("m", "close", 1, Usage(5, 5, 5, 5), 0.5),
    ]


def test_totals_are_limited_to_a_run_and_a_query(journal: Journal) -> None:
    first, second = journal.begin_run({"n": 1}), journal.begin_run({"n": 2})
    for key, run, query_id in (("a", first, "q"), ("b", first, "r"), ("c", second, "q")):
        journal.store_call(key, "m", "ask", {}, Response("", usage=Usage(1)))
        journal.store_window(run, make_window(query_id, call_keys=(key,)))
    assert [journal.usage_totals(*limits)[0][2] for limits in ((), (first,), (None, "q"), (first, "q"))] == [3, 2, 2, 1]


def test_call_key_depends_on_request_model_and_sample_only() -> None:
    key = call_key("model", {"a": 1, "b": ["é"]}, 0)
    assert key == call_key("model", {"b": ["é"], "a": 1}, 0)
    assert len(key) == 64
    others = {
        call_key("model", {"a": 1, "b": ["e"]}, 0),
        call_key("other", {"a": 1, "b": ["é"]}, 0),
        call_key("model", {"a": 1, "b": ["é"]}, 1),
    }
    assert len(others | {key}) == 4
    assert call_key("m", {"text": HARD_TEXT}, 0) != call_key("m", {"text": HARD_TEXT + "x"}, 0)


def test_call_key_stays_the_same_between_versions() -> None:
    """The definition of the key never changes, so that calls in old journals are still found."""
    assert call_key("m", {"b": 1, "a": [1, "é"]}, 2) == hashlib.sha256(rb'["m",{"a":[1,"\u00e9"],"b":1},2]').hexdigest()


@pytest.mark.parametrize(
    "transport",
    [server_types.STREAMING, {"cache_prompt": True}, {"separate_reasoning": True}, {"usage": {"include": True}}],
)
def test_call_key_ignores_transport_fields(transport: dict[str, Any]) -> None:
    body = {"messages": ["a"], "temperature": 0.5}
    assert call_key("m", {**body, **transport}, 0) == call_key("m", body, 0)


def test_call_key_does_not_depend_on_address_and_timeout() -> None:
    request = Request((Message("user", "a"),), 100)
    models = [HttpModel("http://a:8000", "m"), HttpModel("https://b/v1", "m", api_key="secret", read_timeout=5)]
    assert len({call_key(model.identity, model.request_body(request), 0) for model in models}) == 1


@pytest.mark.parametrize("server_type", server_types.SERVER_TYPES)
def test_call_key_covers_what_every_server_type_requests(server_type: str) -> None:
    row = server_types.SERVER_TYPES[server_type]
    requests = [Request((Message("user", text),), size) for text in ("a", "b") for size in (100, 200)]
    assert len({call_key("m", server_types.request_body(row, "m", request), 0) for request in requests}) == 4


def test_store_and_find_take_no_longer_as_the_journal_grows(path: Path) -> None:
    """Measured: 0.7 times as long as compressing the call's texts, for any number of stored calls."""
    journal = Journal(path)
    body = {"messages": [{"role": "user", "content": "a passage of some words " * 500}]}
    response = Response("[1] > [2]", "some reasoning " * 2000, "stop", Usage(1, 2, 3, 4), 1.0)
    content = json.dumps([body, response.text, response.reasoning]).encode()
    numbers = itertools.count()

    def store_and_find() -> None:
        key = str(next(numbers))
        journal.store_call(key, "m", "ask", body, response)
        assert journal.find_response(key) == response

    early, _ = cpu_seconds(store_and_find, partial(zlib.compress, content), rounds=100)
    while next(numbers) < 5000:
        store_and_find()
    late, compressing = cpu_seconds(store_and_find, partial(zlib.compress, content), rounds=100)
    assert late < 3 * early
    assert late < 10 * compressing
    journal.close()
