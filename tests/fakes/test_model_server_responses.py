"""The texts of the fake model server's responses."""

from __future__ import annotations

import re

import pytest

from tests.conftest import StartLoopback
from tests.fakes.model_server.client import chat_body, marks_of, prompt, send_one_chat, true_ranking, window_doc_ids
from tests.fakes.model_server.fault_plan import QUIRKS
from tests.fakes.model_server.marked_passages import oracle_tiers, response_tokens

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("quirk", QUIRKS)
def test_model_server_quirk_decides_the_trace_field(loopback: StartLoopback, quirk: str, stream: bool) -> None:
    doc_ids = window_doc_ids()
    response = send_one_chat(loopback(quirk=quirk, per_token=0.0001), chat_body(doc_ids, stream=stream))
    assert response.status == 200
    assert response.finish_reason == "stop"
    inline_trace, closing_tag, answer_text = response.content.rpartition("</think>")
    assert answer_text.strip() == true_ranking(doc_ids)
    assert bool(response.trace) == quirk.startswith("reasoning")
    assert bool(closing_tag) == (quirk in ("inline", "missing_open"))
    assert inline_trace.startswith("<think>") == (quirk == "inline")
    if quirk != "none":
        mentioned_numbers = re.findall(r"\[(\d+)\] >", inline_trace + response.trace)
        assert len(set(mentioned_numbers)) > 5
        assert mentioned_numbers != sorted(mentioned_numbers, key=int)
    assert response.usage is not None
    assert response.usage["prompt_tokens"] == len(prompt(doc_ids)) // 4
    answer_tokens = len(true_ranking(doc_ids).split())
    tokens = answer_tokens if quirk == "none" else response_tokens(marks_of(doc_ids))
    assert response.usage["completion_tokens"] == tokens
    assert response.usage["completion_tokens_details"] == {"reasoning_tokens": tokens - answer_tokens}
    if stream:
        assert response.chunk_count > 5 or quirk == "none"


def test_model_server_request_disables_reasoning(loopback: StartLoopback) -> None:
    doc_ids = window_doc_ids()
    body = chat_body(doc_ids, chat_template_kwargs={"enable_thinking": False})
    assert send_one_chat(loopback(), body).content == true_ranking(doc_ids)


def test_model_server_streams_usage_only_on_request(loopback: StartLoopback) -> None:
    assert send_one_chat(loopback(), chat_body(window_doc_ids(), stream_options=None)).usage is None


def test_model_server_max_tokens_truncates_the_response(loopback: StartLoopback) -> None:
    response = send_one_chat(loopback(), chat_body(window_doc_ids(), max_tokens=7))
    assert response.finish_reason == "length"
    assert response.content == "<think>\n" + " ".join(response.content.split()[1:]) + " "
    assert len(response.content.split()) == 7


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("quirk", ["inline", "reasoning_content"])
def test_model_server_answers_after_truncated_reasoning(loopback: StartLoopback, quirk: str, stream: bool) -> None:
    doc_ids = window_doc_ids()
    server = loopback(cut=1.0, quirk=quirk)
    body = chat_body(doc_ids, stream=stream)
    response = send_one_chat(server, body)
    assert response.finish_reason == "length"
    assert "</think>" not in response.content
    if quirk == "reasoning_content":
        assert response.trace
        assert response.contents[-1 if not stream else 1] is None
    assistant_turn = {"role": "assistant", "content": response.content + response.trace}
    body["messages"] += [assistant_turn, {"role": "user", "content": "Give the order now."}]
    response = send_one_chat(server, body)
    assert (response.finish_reason, response.content) == ("stop", true_ranking(doc_ids))
    assert [call.n_messages for call in server.calls] == [1, 3]
    assert len({call.window for call in server.calls}) == 1


def test_model_server_prose_lists_all_passages_in_true_order(loopback: StartLoopback) -> None:
    doc_ids = window_doc_ids()
    answer = send_one_chat(loopback(prose=1.0), chat_body(doc_ids)).content.rpartition("</think>")[2].strip()
    introduction, _, listed = answer.partition(": ")
    assert introduction.startswith("Of the 20 passages, the 3 best")
    assert [int(i) for i in listed.split(", ")] == [i for tier in oracle_tiers(marks_of(doc_ids)) for i in tier]


def test_model_server_garbage_contains_no_ranking(loopback: StartLoopback) -> None:
    answer = send_one_chat(loopback(garbage=1.0), chat_body(window_doc_ids())).content.rpartition("</think>")[2]
    assert answer.strip()
    assert not any(character.isdigit() for character in answer)


@pytest.mark.parametrize("quirk", ["inline", "reasoning"])
def test_model_server_ragged_chunks_keep_the_text(loopback: StartLoopback, quirk: str) -> None:
    body = chat_body(window_doc_ids())
    plain, ragged = (send_one_chat(loopback(quirk=quirk, ragged=on, per_token=0.0001), body) for on in (False, True))
    assert "naïve" in plain.content + plain.trace
    assert (plain.content, plain.trace, ragged.skipped_lines) == (ragged.content, ragged.trace, 0)
