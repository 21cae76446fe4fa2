"""`CachedModel` and `StopOnRepetition`: models that wrap models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.errors import ModelError, RetriesExhausted, ServerError
from rank_k.journal import Journal
from rank_k.models.base import Model
from rank_k.models.cached import CachedModel
from rank_k.models.mock import ScriptedModel
from rank_k.models.retry import RetryPolicy
from rank_k.types import Message, OnChunk, Request, RequestContext, Response, StreamChunk, Usage
from rank_k.window.repetition import StopOnRepetition
from tests.support.waiting import let_tasks_run

REQUEST = Request((Message("user", "Rank."),), 4000, context=RequestContext("q", ("a", "b"), "ask"))
ORDINARY_TEXT = "[2] > [1]"
LOOP = "Wait, passage [1] is about the sky, and so is passage [2]. " * 60


class StreamingModel(ScriptedModel):
    """Streams reasoning and text in pieces of the given lengths, and waits at `gate` before each piece."""

    def __init__(self, reasoning: str = "", text: str = ORDINARY_TEXT, piece_lengths: Sequence[int] = (3,)) -> None:
        super().__init__([])
        self.reasoning, self.text = reasoning, text
        self.piece_lengths = piece_lengths
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled_count = 0
        self.error: Exception | None = None

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        self.history.append(request)
        sent = ["", ""]
        try:
            for field, content in enumerate((self.reasoning, self.text)):
                for piece in split_pieces(content, self.piece_lengths):
                    await self.gate.wait()
                    if self.error is not None:
                        raise self.error
                    sent[field] += piece
                    if on_chunk is not None and on_chunk(StreamChunk(*(("", piece) if field else (piece, "")))):
                        return Response(sent[1], sent[0] or None, "stopped", Usage(9, 99))
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up takes a moment
            self.cancelled_count += 1
            raise
        return Response(self.text, self.reasoning or None, "stop", Usage(10, 100))


def split_pieces(text: str, lengths: Sequence[int]) -> list[str]:
    """Cut `text` into pieces of these lengths, over and over."""
    ends = accumulate([0, *list(lengths) * (len(text) // sum(lengths) + 1)])
    return [piece for start, end in pairwise(ends) if (piece := text[start:end])]


def joined(chunks: Sequence[StreamChunk]) -> StreamChunk:
    return StreamChunk("".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks))


def complete(model: Model, request: Request = REQUEST) -> tuple[Response, list[StreamChunk]]:
    chunks: list[StreamChunk] = []
    return asyncio.run(model.complete(request, chunks.append)), chunks


# --- composition ---


@settings(max_examples=40)
@given(
    reasoning=st.sampled_from(["", "Passage [1] is longer.", LOOP]),
    text=st.sampled_from([ORDINARY_TEXT, "", LOOP]),
    piece_lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
)
def test_wrappers_compose_in_any_order(reasoning: str, text: str, piece_lengths: list[int]) -> None:
    journals = [Journal(), Journal()]
    models = [StreamingModel(reasoning, text, piece_lengths) for _ in journals]
    inside, inside_chunks = complete(CachedModel(StopOnRepetition(models[0]), journals[0]))
    outside, outside_chunks = complete(StopOnRepetition(CachedModel(models[1], journals[1])))
    assert (inside.reasoning, inside.finish_reason) == (outside.reasoning, outside.finish_reason)
    # A stopped model writes no text after its reasoning; one that is shared is not stopped.
    assert inside.text == ("" if reasoning == LOOP else outside.text)
    assert (inside.call_key, inside.cached) == (outside.call_key, outside.cached)
    assert (inside.finish_reason == "stopped") == (LOOP in (reasoning, text))
    assert joined(outside_chunks) == (reasoning, text)
    if inside.finish_reason == "stop":
        assert joined(inside_chunks) == joined(outside_chunks) == (inside.reasoning or "", inside.text)
        assert inside.usage == outside.usage


@settings(max_examples=20)
@given(
    reasoning=st.sampled_from(["", "Passage [1] is longer.", LOOP]),
    piece_lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
)
def test_cached_response_is_the_stored_one_in_one_chunk(reasoning: str, piece_lengths: list[int]) -> None:
    inner = StreamingModel(reasoning, piece_lengths=piece_lengths)
    model = CachedModel(StopOnRepetition(inner), Journal())
    first, _ = complete(model)
    second, chunks = complete(model)
    assert first == second
    assert (first.cached, second.cached) == (False, True)
    assert first.call_key == second.call_key != ""
    assert chunks == [StreamChunk(second.reasoning or "", second.text)]
    assert len(inner.history) == 1


def test_wrappers_have_the_attributes_of_their_model() -> None:
    inner = StreamingModel()
    model = CachedModel(StopOnRepetition(inner), Journal())
    assert (model.name, model.identity, model.context_length) == (inner.name, inner.identity, inner.context_length)
    assert model.capabilities == inner.capabilities
    assert model.request_body(REQUEST) == inner.request_body(REQUEST)
    assert asyncio.run(model.count_tokens("a b")) is None


def test_stop_on_repetition_ignores_given_texts() -> None:
    inner = StreamingModel(text=LOOP)
    request = Request((Message("user", "x"),), 1, forced_text=LOOP)
    assert complete(StopOnRepetition(inner), request)[0].finish_reason == "stop"


def test_stop_on_repetition_passes_on_that_a_listener_stops() -> None:
    response = asyncio.run(StopOnRepetition(StreamingModel(text="abcdef")).complete(REQUEST, lambda chunk: True))
    assert (response.text, response.finish_reason) == ("abc", "stopped")


# --- sharing ---


def test_cached_model_shares_response_and_chunks_of_a_request_in_flight() -> None:
    async def main() -> None:
        inner = StreamingModel(text="abcdef")
        model = CachedModel(inner, Journal())
        inner.gate.clear()
        received: list[list[StreamChunk]] = [[], []]
        first = asyncio.create_task(model.complete(REQUEST, received[0].append))
        await let_tasks_run()
        late = asyncio.create_task(model.complete(REQUEST, received[1].append))
        await let_tasks_run()
        inner.gate.set()
        responses = await asyncio.gather(first, late)
        assert [response.cached for response in responses] == [False, True]
        assert responses[0] == responses[1]
        assert received[0] == received[1] == [("", "abc"), ("", "def")]
        assert len(inner.history) == 1

    asyncio.run(main())


@settings(max_examples=60)
@given(
    cancelled=st.lists(st.booleans(), min_size=1, max_size=6),
    delays=st.lists(st.integers(0, 4), min_size=6, max_size=6),
)
def test_cached_model_cancels_the_request_with_its_last_waiter(cancelled: list[bool], delays: list[int]) -> None:
    """Some of several waiters are cancelled after a few steps of the event loop; all others get the response."""

    async def wait_and_cancel(task: asyncio.Task[Response], steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()

    async def main() -> None:
        inner = StreamingModel()
        model = CachedModel(inner, Journal())
        inner.gate.clear()
        tasks = [asyncio.create_task(model.complete(REQUEST)) for _ in cancelled]
        await asyncio.gather(
            *(
                wait_and_cancel(task, delay)
                for task, is_cancelled, delay in zip(tasks, cancelled, delays, strict=False)
                if is_cancelled
            )
        )
        await let_tasks_run()
        was_sent = bool(inner.history)
        assert inner.cancelled_count == int(was_sent and all(cancelled)), "the request has been cleaned up"
        inner.gate.set()
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        for result, is_cancelled in zip(results, cancelled, strict=True):
            assert isinstance(result, asyncio.CancelledError) if is_cancelled else result.text == ORDINARY_TEXT
        assert (await model.complete(REQUEST)).cached == (not all(cancelled))
        assert len(inner.history) == (1 if not all(cancelled) or not was_sent else 2)

    asyncio.run(main())


def test_cached_model_raises_a_failure_for_all_waiters_and_sends_again() -> None:
    async def main() -> None:
        inner = StreamingModel()
        inner.error = ModelError("broken")
        model = CachedModel(inner, Journal())
        errors = await asyncio.gather(*(model.complete(REQUEST) for _ in range(2)), return_exceptions=True)
        assert [str(error) for error in errors] == ["broken"] * 2
        assert len(inner.history) == 1
        inner.error = None
        assert (await model.complete(REQUEST)).text == ORDINARY_TEXT

    asyncio.run(main())


def test_cached_model_limits_requests_in_flight() -> None:
    async def main() -> int:
        inner = StreamingModel()
        inner.gate.clear()
        model = CachedModel(inner, Journal(), concurrency=2)
        requests = (Request((Message("user", str(number)),), 10) for number in range(5))
        tasks = [asyncio.create_task(model.complete(request)) for request in requests]
        await let_tasks_run()
        sent_count = len(inner.history)
        inner.gate.set()
        await asyncio.gather(*tasks)
        assert len(inner.history) == 5
        return sent_count

    assert asyncio.run(main()) == 2


# --- retries and the journal ---


def test_cached_model_retries_and_reports_each_wait() -> None:
    inner = StreamingModel()
    inner.error = ServerError("broken")
    waits: list[float] = []

    def on_retry(error: Exception, seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            inner.error = None

    model = CachedModel(inner, Journal(), RetryPolicy(first=0.001, longest=0.01), on_retry)
    assert complete(model)[0].text == ORDINARY_TEXT
    assert len(waits) == 2

    inner.error = ServerError("broken")
    with pytest.raises(RetriesExhausted):
        complete(CachedModel(inner, Journal(), RetryPolicy(broken=2, first=0.001)))


def test_cached_model_stores_purpose_passages_and_request(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    model = StreamingModel()
    response, _ = complete(CachedModel(model, journal))
    call = journal.find_call(response.call_key)
    assert call is not None
    assert (call.purpose, call.doc_ids, call.response) == ("ask", ("a", "b"), response)
    assert call.request == model.request_body(REQUEST)
    journal.close()
