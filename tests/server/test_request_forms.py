"""Requests exactly as programs send them that cannot be installed here, and their answers read as these read them.

Taken from the programs' own sources: which path, which headers, which fields, how results are paired with documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.server.config import AccessConfig
from rank_k.types import Request
from tests.support.serving import Served, served

KEY = "sk-of-the-client"
QUERY = "What is the capital of the United States?"
TEXTS = [
    "Carson City is the capital city of the American state of Nevada.",
    "The capital of the Northern Mariana Islands is Saipan.",
    "Washington, D.C. is the capital city of the United States.",
]
BEST_FIRST = [2, 1, 0]
"""What the model of these tests answers, for any three passages."""


def last_first(request: Request) -> str:
    return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    access = AccessConfig("127.0.0.1", (KEY,), hosts=frozenset({"host.docker.internal"}))
    with served(Reranker(ScriptedModel(last_first)), access=access) as running:
        yield running


class Sent(NamedTuple):
    path: str
    body: Mapping[str, Any]
    read: Callable[[Any], list[float]]
    """The answer, as JSON, as a score for each of `TEXTS`, in their order."""
    headers: Mapping[str, str] = {}


def by_index(answer: Any) -> list[float]:
    """Open WebUI: all results sorted by index; the scores then go with the documents by position."""
    return [result["relevance_score"] for result in sorted(answer["results"], key=lambda result: result["index"])]


def scaled(answer: Any) -> list[float]:
    """Dify's SDK: scores scaled from 0 to 1; `document` is an object with a text, or a text."""
    scores = [result["relevance_score"] for result in answer["results"]]
    found = {}
    for result in answer["results"]:
        assert result["document"]["text"] == TEXTS[result["index"]]
        found[result["index"]] = (result["relevance_score"] - min(scores)) / (max(scores) - min(scores))
    return [found[index] for index in range(len(TEXTS))]


def as_given(answer: Any) -> list[float]:
    """Dify's plugin for OpenAI-compatible servers: scores as they are."""
    found = {result["index"]: result["relevance_score"] for result in answer["results"]}
    return [found[index] for index in range(len(TEXTS))]


def of_list(answer: Any) -> list[float]:
    """Clients of Text Embeddings Inference: a bare list, the best first, of which some take the first few."""
    assert isinstance(answer, list)
    assert [row["score"] for row in answer] == sorted((row["score"] for row in answer), reverse=True)
    found = {row["index"]: row["score"] for row in answer}
    return [found[index] for index in range(len(TEXTS))]


BY_RANK = [1 / 3, 1 / 2, 1.0]
OPEN_WEBUI_USER = {
    "X-OpenWebUI-User-Name": "J%C3%BCrgen",
    "X-OpenWebUI-User-Id": "5f3c",
    "X-OpenWebUI-User-Email": "j@example.com",
    "X-OpenWebUI-User-Role": "user",
}
IN_CONTAINER = {"Host": "host.docker.internal:8787"}

PROGRAMS = {
    "Open WebUI": Sent(
        "/v1/rerank",
        {"model": "reranker", "query": QUERY, "documents": TEXTS, "top_n": 3},
        by_index,
        {**OPEN_WEBUI_USER, **IN_CONTAINER},
    ),
    "Dify's SDK": Sent(
        "/v1/rerank",
        {"model": "rank-k", "query": QUERY, "documents": TEXTS, "top_n": None, "return_documents": True},
        scaled,
        IN_CONTAINER,
    ),
    "Dify's plugin": Sent(
        "/v1/rerank", {"model": "rank-k", "query": QUERY, "documents": TEXTS, "top_n": 3}, as_given, IN_CONTAINER
    ),
    "TEI: Haystack's ranker": Sent("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": False}, of_list),
    "TEI: cutting": Sent(
        "/rerank",
        {"query": QUERY, "texts": TEXTS, "raw_scores": False, "truncate": True, "truncation_direction": "Right"},
        of_list,
    ),
    "TEI: all fields": Sent(
        "/rerank",
        {
            "query": QUERY,
            "texts": TEXTS,
            "raw_scores": True,
            "return_text": True,
            "truncate": None,
            "truncation_direction": "right",
        },
        of_list,
    ),
    "TEI: LiteLLM": Sent("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True, "top_n": 3}, of_list),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_requests_as_programs_send_them_are_answered_as_they_read(server: Served, name: str) -> None:
    sent = PROGRAMS[name]
    answer = server.post(sent.body, sent.path, Authorization=f"Bearer {KEY}", **sent.headers)
    assert answer.status == 200, answer.raw
    assert sent.read(answer.json) == ([0.0, 0.25, 1.0] if sent.read is scaled else pytest.approx(BY_RANK))


def test_dify_tries_a_model_with_two_documents_and_none_to_lose(server: Served) -> None:
    """When a model is added: top_n null, and whoever scores below 0.8 after scaling is dropped."""
    body = {"model": "rank-k", "query": QUERY, "documents": TEXTS[:2], "top_n": None, "return_documents": True}
    answer = server.post(body, "/v1/rerank", Authorization=f"Bearer {KEY}")
    assert [result["index"] for result in answer.json["results"]] == [1, 0]


def test_an_empty_authorization_header_is_none_at_all() -> None:
    """Dify's plugin sends one where it has no key."""
    with served(Reranker(ScriptedModel(last_first))) as keyless:
        body = {"model": "rank-k", "query": QUERY, "documents": TEXTS, "top_n": 3}
        assert keyless.post(body, "/v1/rerank", Authorization="").indices == BEST_FIRST


def test_what_only_models_of_images_can_read_is_refused_by_name(server: Served) -> None:
    """Dify's plugin with vision switched on."""
    documents = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    answer = server.post({"query": QUERY, "documents": documents}, "/v1/rerank", Authorization=f"Bearer {KEY}")
    assert (answer.status, answer.json["field"]) == (422, "documents[0]")


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_refusals_are_where_programs_look_for_them(server: Served, path: str) -> None:
    """Jina's clients raise `detail`, Cohere's show `message`; both of them texts."""
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 422)):
        answer = server.ask(
            "POST", path, json.dumps({"documents": TEXTS}).encode(), Content_Type="application/json", **headers
        )
        assert answer.status == status
        assert "results" not in answer.json
        assert isinstance(answer.json["detail"], str)
        assert answer.json["message"] == answer.json["detail"]
