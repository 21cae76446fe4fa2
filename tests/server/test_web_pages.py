"""The pages and what they are made of: sent to everybody, held to a policy, free of anything but the package's own."""

from __future__ import annotations

import re
import signal
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
from rank_k.server.web_pages import PAGES, POLICY, paths, static_files
from rank_k.strategies import STRATEGIES
from tests.conftest import StartLoopback
from tests.support.serving import Served, command, served

KEY = "sk-page-0123456789"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One that asks for a key."""
    with served(Reranker(ScriptedModel([])), access=AccessConfig(keys=(KEY,))) as running:
        yield running


@pytest.mark.parametrize("path", sorted(paths()))
def test_the_page_needs_no_key_and_allows_nothing_but_itself(server: Served, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"].startswith(
        "text/html" if path in {p.path for p in PAGES} else ("text/", "image/")
    )


def test_the_policy_lets_in_nothing_else() -> None:
    told = dict(part.strip().partition(" ")[::2] for part in POLICY.split(";"))
    assert told["default-src"] == told["frame-ancestors"] == told["form-action"] == told["base-uri"] == "'none'"
    assert {told[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert "unsafe" not in POLICY


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787"])
def test_a_rebound_name_gets_no_page(server: Served, host: str) -> None:
    assert server.get("/", Host=host).status == 421


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_pages_hold_no_script_and_no_style_of_their_own() -> None:
    for still in static_files():
        if still.kind != "text/html":
            continue
        tags = Tags()
        tags.feed(still.body.decode())
        assert [a["src"] for tag, a in tags.found if tag == "script"]
        for tag, attributes in tags.found:
            assert tag != "style"
            assert tag != "script" or attributes["src"]
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for name in ("src", "href"):
                where = attributes.get(name) or "/"
                assert where.startswith(("/", "#")), where
                assert where in paths() or where.startswith("#")
        assert sum(attributes.get("aria-current") == "page" for _, attributes in tags.found) == 1


def test_scripts_make_no_markup_of_texts() -> None:
    """And import nothing but each other."""
    scripts = [file for file in (files("rank_k.server") / "page").iterdir() if file.name.endswith(".js")]
    assert len(scripts) > 3
    for file in scripts:
        source = file.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", source
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source), "nothing from elsewhere"
        for imported in re.findall(r"^import .* from \"(.*)\";$", source, re.MULTILINE):
            assert imported in paths()


# --- what the scripts count on ---


def test_the_strategies_that_can_be_chosen_are_those_there_are() -> None:
    html = (files("rank_k.server") / "page" / "try.html").read_text(encoding="utf-8")
    chosen = re.search(r'<select id="strategy">(.*)</select>', html)
    assert chosen is not None
    assert re.findall(r"<option>(\w+)</option>", chosen[1]) == list(STRATEGIES)


def test_the_demo_is_that_of_the_command(server: Served) -> None:
    assert server.get("/demo").status == 401
    told = server.get("/demo", Authorization=f"Bearer {KEY}").json["questions"]
    assert len(told) == 6
    assert all(len(question["passages"]) == DEPTH == demo_queries.DEPTH for question in told)


def test_the_demo_is_left_out_where_its_data_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise MissingExtra("no bm25s", "pip install 'rank-k[data]'")

    monkeypatch.setattr("rank_k.server.demo_queries.demo_queries", nothing)
    with served(Reranker(ScriptedModel([]))) as running:
        answer = running.get("/demo")
    assert answer.json == {"questions": [], "missing": "pip install 'rank-k[data]'"}


# --- a server that only looks ---


def test_without_a_model_a_journal_is_looked_at_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "job.sqlite"
    with Reranker(ScriptedModel(["[2] > [1]"]), journal=path) as reranker:
        reranker.rank("what was asked", ["a", "b"])
    before = path.read_bytes()
    with command("--journal", str(path)) as running:
        page = running.served
        assert page.get("/").status == page.get("/runs").status == 200
        assert page.get("/v1/models").json["data"] == []
        [query] = page.get("/journal/queries").json["queries"]
        assert query["text"] == "what was asked"
        refused = page.rerank(["a", "b"])
        assert (refused.status, "no model" in refused.json["message"]) == (503, True)
        assert page.get("/journal/runs").json["runs"][0]["queries"] == 1
        running.signal(signal.SIGTERM)
        code, _, told = running.end()
    assert code == 0
    assert "rank-k fetch" in told or "nothing can be ranked" in told
    assert path.read_bytes() == before


def test_a_journal_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.sqlite"
    assert main(["serve", "--journal", str(path)]) == 2
    assert "there is no journal" in (told := capsys.readouterr().err)
    assert "--server or --model" in told
    assert not path.exists()
    path.write_bytes(b"nothing of the kind")
    assert main(["serve", "--journal", str(path)]) == 2


def test_what_is_served_without_a_journal_leaves_nothing_to_look_at(loopback: StartLoopback, tmp_path: Path) -> None:
    """The temporary one forgets what is oldest, so that a server never fills the disk."""
    with command("--server", loopback().url, env={"TMPDIR": str(tmp_path)}) as running:
        page = running.served
        assert page.rerank(["a", "b", "c"], query="passing").status == 200
        told = page.get("/journal/runs").json
        assert (told["journal"], told["runs"]) == (None, [])
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert list(tmp_path.iterdir()) == []
