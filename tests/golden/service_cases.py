"""Golden cases of the servers, HTTP and MCP: part of `tests.golden.cases`, under the same rule."""

from __future__ import annotations

from typing import Any

from tests.golden.data import passage
from tests.golden.steps import Case, Command, Http, Serving, Session

_DOCUMENTS = [passage("q1", position) for position in range(6)]
_QUERY = "why is the sky blue at noon"
_BODY: dict[str, Any] = {"query": _QUERY, "documents": _DOCUMENTS}
_SERVE = "serve --port 0 --server {server:vllm} --window 4 --stride 2 --concurrency 1 --journal {work}/served.sqlite"


def _post(path: str = "/v2/rerank", *, answer: Any = "json", headers: Any = None, **fields: Any) -> Http:
    return Http("POST", path, _BODY | fields, headers or {}, answer)


SERVICE = (
    Case(
        "rerank API",
        (
            Serving(
                _SERVE,
                (
                    Http("GET", "/health"),
                    Http("GET", "/v1/models"),
                    Http("GET", "/openapi.json"),
                    _post(),
                    _post("/v1/rerank", top_n=2, return_documents=True, model="any"),
                    _post("/rerank", return_trace=True, strategy="single"),
                    Http("POST", "/rerank", {"query": _QUERY, "texts": _DOCUMENTS, "return_text": True}),
                    _post(documents=[{"text": text} for text in _DOCUMENTS[:3]], reasoning="off"),
                    _post(reasoning=20, strategy="blocks"),
                    _post(reasoning="auto"),
                    _post(stream=True, answer="events"),
                    _post(stream=True, answer="events", top_n=1, reasoning="off"),
                    _post(documents=_DOCUMENTS[:1]),
                    _post(documents=[]),
                    Http("POST", "/v2/rerank", {"documents": ["a"]}),
                    _post(reasoning="much"),
                    _post(strategy="os:system"),
                    _post(top_n=-1),
                    _post(documents="text"),
                    _post(documents=["a", 5]),
                    _post(stream="yes"),
                    _post(deadline_seconds=0),
                    _post("/rerank", texts=["a"]),
                    Http("POST", "/v2/rerank", b"not JSON"),
                    Http("POST", "/v2/rerank", b'{"query": "a", "query": "b"}'),
                    Http("POST", "/v2/rerank", b"{}", {"Content-Type": "text/plain"}),
                    Http("GET", "/v2/rerank"),
                    Http("GET", "/nothing"),
                    Http("GET", "/journal/runs"),
                    Http("GET", "/journal/queries"),
                    Http("GET", "/metrics", answer="metrics"),
                ),
            ),
        ),
    ),
)

ACCESS = (
    Case(
        "keys, names, origins and limits",
        (
            Serving(
                "serve --port 0 --server {server:llamacpp} --method combined --concurrency 1"
                " --client-key-env GOLDEN_CLIENT_KEY --api-key-env GOLDEN_MODEL_KEY --allow-origin https://app.example.com"
                " --max-documents 4 --max-characters 500 --max-body 2000 --deadline 60 --shutdown-timeout 5",
                (
                    Http("GET", "/health"),
                    Http("GET", "/v1/models"),
                    _post(documents=_DOCUMENTS[:3]),
                    _post(documents=_DOCUMENTS[:3], headers={"Authorization": "Bearer wrong"}),
                    _post(documents=_DOCUMENTS[:3], headers={"Authorization": "Bearer golden-client-key"}),
                    _post(headers={"Authorization": "Bearer golden-client-key"}),
                    _post(documents=["a" * 600], headers={"Authorization": "Bearer golden-client-key"}),
                    _post(documents=["a" * 3000], headers={"Authorization": "Bearer golden-client-key"}),
                    Http("GET", "/health", headers={"Host": "evil.example.com"}),
                    Http("GET", "/health", headers={"Origin": "https://evil.example.com"}),
                    Http("GET", "/health", headers={"Origin": "https://app.example.com"}),
                    Http("OPTIONS", "/v2/rerank", headers={"Origin": "https://app.example.com"}, answer="status"),
                    Http("GET", "/v1/models", headers={"Authorization": "Bearer golden-client-key"}),
                ),
            ),
            Command("serve --port 0 --host 0.0.0.0 --server {server:vllm}"),
        ),
    ),
)

_FIRST_RUN = (
    "rerank --run {data}/two.trec --queries {data}/queries.jsonl --documents {data}/corpus.jsonl --quiet"
    " --output {work}/out.trec --server {server:vllm} --depth 6 --window 4 --stride 2 --concurrency 1 --noise none"
)

PAGES = (
    Case(
        "journal, comparison and judging",
        (
            Command(_FIRST_RUN),
            Serving(
                "serve --port 0 --journal {work}/out.trec.journal.sqlite --compare {data}/two.trec {work}/out.trec"
                " --qrels {data}/qrels.trec --preferences-file {work}/judgments.jsonl --queries {data}/queries.jsonl"
                " --documents {data}/corpus.jsonl --judging-depth 3",
                (
                    Http("GET", "/journal/runs"),
                    Http("GET", "/journal/queries?find=bees"),
                    Http("GET", "/journal/query?run={run}&position=0"),
                    Http("GET", "/journal/window?run={run}&position=0&round=0&window=0"),
                    Http("GET", "/journal/query"),
                    Http("GET", "/journal/query?position=9"),
                    Http("GET", "/page/rooms.json"),
                    Http("GET", "/compare/report", answer="status"),
                    Http("GET", "/judge/question?judge=anna"),
                    Http("GET", "/judge/question"),
                    Http("POST", "/judge/choice", {"judge": "anna", "choice": "left", "token": "unknown"}),
                    Http("POST", "/judge/choice", {"judge": "anna", "choice": "nothing"}),
                    Http("POST", "/judge/undo", {"judge": "anna"}),
                    Http("GET", "/judge/judgments.jsonl", answer="status"),
                    _post(),
                ),
            ),
        ),
    ),
)


def _call(**arguments: Any) -> dict[str, Any]:
    return {"method": "tools/call", "params": {"name": "rerank", "arguments": arguments}}


_HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "golden", "version": "1"}}
_HANDSHAKE: tuple[dict[str, Any], ...] = (
    {"method": "initialize", "params": _HELLO},
    {"method": "notifications/initialized"},
    {"method": "tools/list"},
)

TOOL = (
    Case(
        "MCP over pipes",
        (
            Session(
                "mcp --server {server:vllm} --window 4 --stride 2 --concurrency 1",
                (
                    *_HANDSHAKE,
                    _call(**_BODY),
                    _call(**_BODY, top_n=2, return_documents=True, return_trace=True, reasoning="off"),
                    _call(query=_QUERY),
                    _call(**_BODY, number=3),
                    _call(**_BODY, reasoning="much"),
                    {"method": "tools/call", "params": {"name": "search", "arguments": {}}},
                    {"method": "nothing/here"},
                ),
            ),
        ),
    ),
    Case(
        "MCP, likelihood",
        (Session("mcp --server {server:llamacpp} --method likelihood --concurrency 1", (*_HANDSHAKE,)),),
    ),
    Case("MCP, option without effect", (Command("mcp --port 9000 --server {server:vllm}"),)),
)
