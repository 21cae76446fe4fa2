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
from tests.support.serving import ServerClient, run_server

KEY = "sk-of-the-client"
QUERY = "What is the capital of the United States?"
TEXTS = [
    "Carson City is the capital city of the American state of Nevada.",
    "The capital of the Northern Mariana Islands is Saipan.",
    "Washington, D.C. is the capital city of the United States.",
]
BEST_FIRST = [2, 1, 0]
"""What the model of these tests answers, for any three passages."""


def rank_last_first(request: Request) -> str:
    return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerClient]:
    access = AccessConfig("127.0.0.1", (KEY,), hosts=frozenset({"host.docker.internal"}))
    with run_server(Reranker(ScriptedModel(rank_last_first)), access=access) as running:
        yield running


class ProgramRequest(NamedTuple):
    path: str
    body: Mapping[str, Any]
    read: Callable[[Any], list[float]]
    """The answer, as JSON, as a score for each of `TEXTS`, in their order."""
    headers: Mapping[str, str] = {}


def scores_by_index(answer: Any) -> list[float]:
    """Open WebUI: all results sorted by index; the scores then go with the documents by position."""
    return [result["relevance_score"] for result in sorted(answer["results"], key=lambda result: result["index"])]


def scaled_scores(answer: Any) -> list[float]:
    """Dify's SDK: scores scaled from 0 to 1; `document` is an object with a text, or a text."""
    scores = [result["relevance_score"] for result in answer["results"]]
    scores_by_index_ = {}
    for result in answer["results"]:
        assert result["document"]["text"] == TEXTS[result["index"]]
        scores_by_index_[result["index"]] = (result["relevance_score"] - min(scores)) / (max(scores) - min(scores))
    return [scores_by_index_[index] for index in range(len(TEXTS))]


def unchanged_scores(answer: Any) -> list[float]:
    """Dify's plugin for OpenAI-compatible servers: scores as they are."""
    score_of = {result["index"]: result["relevance_score"] for result in answer["results"]}
    return [score_of[index] for index in range(len(TEXTS))]


def scores_from_bare_list(answer: Any) -> list[float]:
    """Clients of Text Embeddings Inference: a bare list, the best first, of which some take the first few."""
    assert isinstance(answer, list)
    assert [row["score"] for row in answer] == sorted((row["score"] for row in answer), reverse=True)
    score_of = {row["index"]: row["score"] for row in answer}
    return [score_of[index] for index in range(len(TEXTS))]


SCORES_BY_RANK = [1 / 3, 1 / 2, 1.0]
OPEN_WEBUI_USER = {
    "X-OpenWebUI-User-Name": "J%C3%BCrgen",
    "X-OpenWebUI-User-Id": "5f3c",
    "X-OpenWebUI-User-Email": "j@example.com",
    "X-OpenWebUI-User-Role": "user",
}
CONTAINER_HEADERS = {"Host": "host.docker.internal:8787"}

PROGRAMS = {
    "Open WebUI": ProgramRequest(
        "/v1/rerank",
        {"model": "reranker", "query": QUERY, "documents": TEXTS, "top_n": 3},
        scores_by_index,
        {**OPEN_WEBUI_USER, **CONTAINER_HEADERS},
    ),
    "Dify's SDK": ProgramRequest(
        "/v1/rerank",
        {"model": "rank-k", "query": QUERY, "documents": TEXTS, "top_n": None, "return_documents": True},
        scaled_scores,
        CONTAINER_HEADERS,
    ),
    "Dify's plugin": ProgramRequest(
        "/v1/rerank",
        {"model": "rank-k", "query": QUERY, "documents": TEXTS, "top_n": 3},
        unchanged_scores,
        CONTAINER_HEADERS,
    ),
    "TEI: Haystack's ranker": ProgramRequest(
        "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": False}, scores_from_bare_list
    ),
    "TEI: cutting": ProgramRequest(
        "/rerank",
        {"query": QUERY, "texts": TEXTS, "raw_scores": False, "truncate": True, "truncation_direction": "Right"},
        scores_from_bare_list,
    ),
    "TEI: all fields": ProgramRequest(
        "/rerank",
        {
            "query": QUERY,
            "texts": TEXTS,
            "raw_scores": True,
            "return_text": True,
            "truncate": None,
            "truncation_direction": "right",
        },
        scores_from_bare_list,
    ),
    "TEI: LiteLLM": ProgramRequest(
        "/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True, "top_n": 3}, scores_from_bare_list
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_rerank_answers_requests_of_known_programs(server: ServerClient, name: str) -> None:
    request = PROGRAMS[name]
    answer = server.post(request.body, request.path, Authorization=f"Bearer {KEY}", **request.headers)
    assert answer.status == 200, answer.raw
    assert request.read(answer.json) == (
        [0.0, 0.25, 1.0] if request.read is scaled_scores else pytest.approx(SCORES_BY_RANK)
    )


def test_rerank_answers_dify_model_validation(server: ServerClient) -> None:
    """When a model is added: top_n null, and whoever scores below 0.8 after scaling is dropped."""
    body = {"model": "rank-k", "query": QUERY, "documents": TEXTS[:2], "top_n": None, "return_documents": True}
    answer = server.post(body, "/v1/rerank", Authorization=f"Bearer {KEY}")
    assert [result["index"] for result in answer.json["results"]] == [1, 0]


def test_rerank_accepts_empty_authorization_without_keys() -> None:
    """Dify's plugin sends one where it has no key."""
    with run_server(Reranker(ScriptedModel(rank_last_first))) as keyless:
        body = {"model": "rank-k", "query": QUERY, "documents": TEXTS, "top_n": 3}
        assert keyless.post(body, "/v1/rerank", Authorization="").indices == BEST_FIRST


def test_rerank_rejects_image_documents(server: ServerClient) -> None:
    """Dify's plugin with vision switched on."""
    documents = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    answer = server.post({"query": QUERY, "documents": documents}, "/v1/rerank", Authorization=f"Bearer {KEY}")
    assert (answer.status, answer.json["field"]) == (422, "documents[0]")


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_rerank_errors_have_message_and_detail(server: ServerClient, path: str) -> None:
    """Jina's clients raise `detail`, Cohere's show `message`; both of them texts."""
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 422)):
        answer = server.send(
            "POST", path, json.dumps({"documents": TEXTS}).encode(), Content_Type="application/json", **headers
        )
        assert answer.status == status
        assert "results" not in answer.json
        assert isinstance(answer.json["detail"], str)
        assert answer.json["message"] == answer.json["detail"]
