"""The pages and what they are made of: sent to everybody, held to a policy, free of anything but the package's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.cli import main
from rank_k.cli.demo import DEPTH
from rank_k.errors import MissingExtra
from rank_k.server import demo_queries
from rank_k.server.config import AccessConfig
from rank_k.server.web_pages import OPTIONAL_PAGES, PAGES, POLICY, static_files
from rank_k.strategies import STRATEGIES
from tests.conftest import StartLoopback
from tests.paths import ROOT
from tests.support.serving import ServerClient, run_server, start_server
from tests.support.waiting import PATIENCE

KEY = "sk-page-0123456789"
PATHS = set(static_files())


@pytest.fixture(scope="module")
def server() -> Iterator[ServerClient]:
    """One that asks for a key."""
    with run_server(Reranker(ScriptedModel([])), access=AccessConfig(keys=(KEY,))) as running:
        yield running


@pytest.mark.parametrize("path", sorted(PATHS))
def test_static_files_need_no_key_and_set_policy(server: ServerClient, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"].startswith("text/html" if path in PAGES else ("text/", "image/"))


def test_policy_allows_only_own_resources() -> None:
    directives = dict(part.strip().partition(" ")[::2] for part in POLICY.split(";"))
    assert (
        directives["default-src"]
        == directives["frame-ancestors"]
        == directives["form-action"]
        == directives["base-uri"]
        == "'none'"
    )
    assert {directives[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert "unsafe" not in POLICY


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787"])
def test_pages_reject_unknown_host_names(server: ServerClient, host: str) -> None:
    assert server.get("/", Host=host).status == 421


class TagCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_pages_have_no_inline_scripts_or_styles() -> None:
    for media_type, content in static_files().values():
        if media_type != "text/html":
            continue
        collector = TagCollector()
        collector.feed(content.decode())
        assert [a["src"] for tag, a in collector.tags if tag == "script"]
        for tag, attributes in collector.tags:
            assert tag != "style"
            assert tag != "script" or attributes["src"]
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for name in ("src", "href"):
                address = attributes.get(name) or "/"
                assert address.startswith(("/", "#")), address
                assert address in PATHS or address.startswith("#")
        assert sum(attributes.get("aria-current") == "page" for _, attributes in collector.tags) == 1


def test_scripts_never_build_markup_from_text() -> None:
    """And import nothing but each other."""
    scripts = [file for file in (files("rank_k.server") / "web").iterdir() if file.name.endswith(".js")]
    assert len(scripts) > 3
    for file in scripts:
        source = file.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", source
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source), "nothing from elsewhere"
        for imported in re.findall(r"^import .* from \"(.*)\";$", source, re.MULTILINE):
            assert imported in PATHS


@pytest.mark.parametrize("names", [(), ("compare",), ("judge",), ("compare", "judge")])
def test_navigation_shows_only_available_pages(names: tuple[str, ...]) -> None:
    pages = static_files(frozenset(names))
    for path, title in PAGES.items():
        html = pages[path][1].decode()
        for other_path, other_title in PAGES.items():
            is_available = other_title not in OPTIONAL_PAGES or other_title.lower() in names
            assert (f'<a href="{other_path}"' in html.split("<nav")[1].split("</nav>")[0]) == (
                is_available or other_title == title
            )


# --- what the scripts count on ---


def test_try_page_lists_all_strategies() -> None:
    html = (files("rank_k.server") / "web" / "try.html").read_text(encoding="utf-8")
    select_element = re.search(r'<select id="strategy">(.*)</select>', html)
    assert select_element is not None
    assert re.findall(r"<option>(\w+)</option>", select_element[1]) == list(STRATEGIES)


def test_demo_route_returns_demo_queries(server: ServerClient) -> None:
    assert server.get("/demo").status == 401
    questions = server.get("/demo", Authorization=f"Bearer {KEY}").json["questions"]
    assert len(questions) == 6
    assert all(len(question["passages"]) == DEPTH == demo_queries.DEPTH for question in questions)


def test_demo_route_names_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_missing_extra() -> None:
        raise MissingExtra("no bm25s", "pip install 'rank-k[data]'")

    monkeypatch.setattr("rank_k.server.demo_queries.demo_queries", raise_missing_extra)
    with run_server(Reranker(ScriptedModel([]))) as running:
        answer = running.get("/demo")
    assert answer.json == {"questions": [], "missing": "pip install 'rank-k[data]'"}


# --- a server that only looks ---


def test_serve_without_model_reads_journal_only(tmp_path: Path) -> None:
    path = tmp_path / "job.sqlite"
    with Reranker(ScriptedModel(["[2] > [1]"]), journal=path) as reranker:
        reranker.rank("what was asked", ["a", "b"])
    content_before = path.read_bytes()
    with start_server("--journal", str(path)) as running:
        server = running.served
        assert server.get("/").status == server.get("/runs").status == 200
        assert server.get("/v1/models").json["data"] == []
        [query] = server.get("/journal/queries").json["queries"]
        assert query["text"] == "what was asked"
        response = server.rerank(["a", "b"])
        assert (response.status, "no model" in response.json["message"]) == (503, True)
        assert server.get("/journal/runs").json["runs"][0]["queries"] == 1
        running.signal(signal.SIGTERM)
        code, _, stderr = running.end()
    assert code == 0
    assert "rank-k fetch" in stderr or "requests to rank will fail" in stderr
    assert path.read_bytes() == content_before


def test_serve_rejects_missing_and_invalid_journals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.sqlite"
    assert main(["serve", "--journal", str(path)]) == 2
    assert "there is no journal" in (stderr := capsys.readouterr().err)
    assert "--server or --model" in stderr
    assert not path.exists()
    path.write_bytes(b"nothing of the kind")
    assert main(["serve", "--journal", str(path)]) == 2


def test_serve_without_journal_leaves_no_files(loopback: StartLoopback, tmp_path: Path) -> None:
    """The temporary one forgets what is oldest, so that a server never fills the disk."""
    with start_server("--server", loopback().url, env={"TMPDIR": str(tmp_path)}) as running:
        server = running.served
        assert server.rerank(["a", "b", "c"], query="passing").status == 200
        view = server.get("/journal/runs").json
        assert (view["journal"], view["runs"]) == (None, [])
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_serve_does_not_load_mcp_sdk() -> None:
    program = """
import sys
from rank_k.server.app import make_app
from rank_k.server.run import create_server
from rank_k.server.service import RerankService

service = RerankService(None)
create_server(service, make_app(service), "127.0.0.1", 0)
assert "starlette" in sys.modules
assert "mcp" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=PATIENCE)
