"""Integrations: what they share and the CrossEncoder's shape here; the frameworks in environments of their own.

There two things are run: the example of docs/how-to/integrations.md as it stands, and a script of
`tests.integrations.frameworks`.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.errors import ConnectionFailed, InputError, MissingExtra, RetriesExhausted, ServerError
from rank_k.integrations.cross_encoder import RankKCrossEncoder
from rank_k.models.retry import RetryPolicy
from rank_k.optional_deps import MODULES_OF_EXTRA
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.request_log import peak_concurrency
from tests.fakes.model_server.running import run_in_process
from tests.integrations.frameworks.common import BEST, MODEL, QUERY, TEXTS
from tests.paths import ROOT
from tests.support.embedded import USER_CACHE
from tests.support.venvs import create_environment
from tests.support.waiting import LONG_PATIENCE, PATIENCE

pytestmark = pytest.mark.integration

DOCS_PAGE = ROOT / "docs" / "how-to" / "integrations.md"
DOCUMENTED_URL = "http://localhost:8000/v1"
FAST_RETRIES = RetryPolicy(broken=2, first=0.001, longest=0.002)


def documented_example(section: str) -> str:
    """The Python example under that heading of the page."""
    match = re.search(
        rf"^## {re.escape(section)}\n((?!## ).*\n)*?```python\n((.*\n)*?)```", DOCS_PAGE.read_text(), re.M
    )
    assert match, section
    assert DOCUMENTED_URL in match[2]
    return match[2]


# --- what they share ---


@pytest.mark.parametrize("extra", ["haystack", "langchain", "llama-index", "mteb", "pyterrier"])
def test_integration_without_framework_names_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"rank_k.integrations.{extra.replace('-', '_')}"
    for name in [name for name in sys.modules if name.partition(".")[0] in MODULES_OF_EXTRA[extra]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, MODULES_OF_EXTRA[extra][0], None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingExtra, match=re.escape(f"pip install 'rank-k[{extra}]'")):
        importlib.import_module(module)


def test_resolve_reranker_accepts_options_or_reranker() -> None:
    model = ScriptedModel(["[1]"])
    for encoder in (RankKCrossEncoder(model, depth=7), RankKCrossEncoder(model=model, depth=7)):
        assert (encoder.reranker.model, encoder.reranker.options.depth) == (model, 7)
        encoder.reranker.close()
    with Reranker(model) as ready:
        assert RankKCrossEncoder(ready).reranker is ready
        with pytest.raises(InputError, match="an existing reranker cannot take the options window, depth"):
            RankKCrossEncoder(ready, window=7, depth=2)
    with pytest.raises(TypeError, match="windw"):
        RankKCrossEncoder(model, windw=7)


def test_cross_encoder_raises_when_model_is_unreachable() -> None:
    with Reranker(ScriptedModel(lambda request: ServerError("down")), retries=FAST_RETRIES) as reranker:
        encoder = RankKCrossEncoder(reranker)
        with pytest.raises(RetriesExhausted):
            encoder.rank("q", ["a", "b"])
        with pytest.raises(RetriesExhausted):
            encoder.predict([("q", "a"), ("q", "b")])
    with (
        Reranker(MODEL, server="http://127.0.0.1:9/v1", retries=FAST_RETRIES) as reranker,
        pytest.raises(ConnectionFailed),
    ):
        RankKCrossEncoder(reranker).rank("q", ["a", "b"])


def test_cross_encoder_logs_unranked_windows(caplog: pytest.LogCaptureFixture) -> None:
    def respond(request: Request) -> str:
        return "I cannot say." if "bad" in request.messages[-1].content else "[2] > [1]"

    with Reranker(ScriptedModel(respond), concurrency=1) as reranker, caplog.at_level(logging.WARNING, "rank_k"):
        encoder = RankKCrossEncoder(reranker)
        assert [hit["corpus_id"] for hit in encoder.rank("q", ["a", "b"])] == [1, 0]
        assert not caplog.messages
        assert [hit["corpus_id"] for hit in encoder.rank("q", ["bad", "b"])] == [0, 1]
        assert encoder.predict([("p", "a"), ("p", "b"), ("q", "bad"), ("q", "b")]) == [0.5, 1.0, 1.0, 0.5]
    assert caplog.messages == [
        "1 of 1 windows could not be ranked and kept their input order",
        "1 of 2 windows could not be ranked and kept their input order",
    ]


def test_cross_encoder_closes_itself_at_exit(loopback: StartLoopback) -> None:
    """A program that ends without a word to the reranker hears nothing of open connections."""
    program = (
        "import sys; from rank_k.integrations.cross_encoder import RankKCrossEncoder\n"
        f"model = RankKCrossEncoder({MODEL!r}, server=sys.argv[1])\n"
        "print(len(model.rank('q', ['a', 'b'])))"
    )
    command = [sys.executable, "-c", program, loopback(model=MODEL).url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "2\n", "")


# --- in place of a CrossEncoder ---


def test_rank_matches_cross_encoder_interface(loopback: StartLoopback) -> None:
    doc_ids, texts = list(TEXTS), list(TEXTS.values())
    with Reranker(MODEL, server=loopback(model=MODEL).url) as reranker:
        encoder = RankKCrossEncoder(reranker)
        ranked = encoder.rank(QUERY.text, texts, top_k=10, batch_size=32, show_progress_bar=False)
        assert ranked == [{"corpus_id": doc_ids.index(d), "score": 1 / n} for n, d in enumerate(BEST, 1)]
        hits = encoder.rank(QUERY.text, texts, return_documents=True)
        assert [hit["text"] for hit in hits] == [texts[hit["corpus_id"]] for hit in hits]
        mappings = [{"text": text, "id": doc_id} for doc_id, text in TEXTS.items()]
        hits = encoder.rank(QUERY.text, mappings, return_documents=True)
        assert all(hit["text"] is mappings[hit["corpus_id"]] for hit in hits), (
            "documents are returned as they were given"
        )
        assert sorted(hit["corpus_id"] for hit in hits) == list(range(len(texts)))
        assert encoder.rank(QUERY.text, []) == []
        with pytest.raises(InputError, match="at least 1 \\(got 0\\)"):
            encoder.rank(QUERY.text, texts, top_k=0)


def test_predict_ranks_within_queries_concurrently(loopback: StartLoopback) -> None:
    data = make_dataset(12, 20, strict=True)
    pairs = [(query, candidate.doc_id) for query in data.queries for candidate in data.run[query.query_id]]
    pairs = pairs[::3] + pairs[1::3] + pairs[2::3]  # queries take turns
    server = loopback(model=MODEL, first_token=0.2)
    with Reranker(MODEL, server=server.url) as reranker:
        encoder = RankKCrossEncoder(reranker)
        scores = encoder.predict([(query.text, data.passages[doc_id].text) for query, doc_id in pairs])
        assert encoder.predict([]) == []
        for wrong in (["query", "document"], [("query", "document", "more")]):
            with pytest.raises(InputError, match="sentences\\[0\\] is not a pair"):
                encoder.predict(wrong)
    for query in data.queries:
        ranked_pairs = sorted(
            (-score, doc_id) for (pair_query, doc_id), score in zip(pairs, scores, strict=True) if pair_query is query
        )
        assert [doc_id for _, doc_id in ranked_pairs] == data.perfect(query.query_id)
        assert [-score for score, _ in ranked_pairs] == [1 / rank for rank in range(1, 21)]
    assert peak_concurrency([(call.start, call.end) for call in server.calls if call.end is not None]) > 6


def test_documented_cross_encoder_example_runs(loopback: StartLoopback, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    code = documented_example("Replace a CrossEncoder").replace(DOCUMENTED_URL, loopback(model=MODEL).url)
    exec(compile(code, str(DOCS_PAGE), "exec", dont_inherit=True), names)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1.0", "0.5"]
    assert sorted(names["scores"]) == [1 / 3, 1 / 2, 1.0]
    names["model"].reranker.close()


# --- the frameworks ---


KEY = "open-sesame"
TORCH = os.environ.get("TORCH", "torch==2.13.0")  # a build for the CPU, where pip would fetch one with GPU libraries
FRAMEWORKS = {
    "langchain": ("LangChain", ["langchain-classic", f"{ROOT}[langchain,embedded]"]),
    "llama_index": ("LlamaIndex", [f"{ROOT}[llama-index]"]),
    "haystack": ("Haystack", [f"{ROOT}[haystack]"]),
    "pyterrier": ("PyTerrier", [f"{ROOT}[pyterrier]"]),
    "mteb": ("MTEB", [TORCH, f"{ROOT}[mteb]"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_integration_works_in_its_framework(name: str, tmp_path: Path) -> None:
    section, requirements = FRAMEWORKS[name]
    python = create_environment(tmp_path / "environment", *requirements)
    plan = FaultPlan().changed({"model": MODEL, "api_key": KEY if name == "haystack" else "", "per_token": 0.0001})
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings |= {"MODEL_API_KEY": KEY, "HAYSTACK_TELEMETRY_ENABLED": "False", "PYTHONPATH": str(tmp_path / "scripts")}
    if USER_CACHE is not None:
        settings["RANK_K_CACHE"] = str(USER_CACHE)
    scripts = (
        tmp_path / "scripts"
    )  # the checks without `src` beside them, so that the package installed is what they try
    scripts.mkdir()
    (scripts / "tests").symlink_to(ROOT / "tests")
    with run_in_process(plan) as server:
        page = tmp_path / "example.py"
        page.write_text(documented_example(section).replace(DOCUMENTED_URL, server.url), encoding="utf-8")
        script = ["-m", f"tests.integrations.frameworks.check_{name}", server.url, str(page)]
        for command in ([str(page)], script):
            result = subprocess.run(
                [str(python), *command],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=settings,
                timeout=LONG_PATIENCE,
            )
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
            assert "Unclosed" not in result.stderr
