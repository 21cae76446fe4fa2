"""The pages and what they are made of: sent to everybody, held to a policy, free of anything but the package's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.serve.pages import PAGES, POLICY, paths, stills
from rank_k.serve.rules import Doors
from tests.serving import Served, served


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One that asks for a key."""
    with served(Reranker(ScriptedModel([])), doors=Doors(keys=("sk-page-0123456789",))) as running:
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
    for still in stills():
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
    scripts = [file for file in (files("rank_k.serve") / "page").iterdir() if file.name.endswith(".js")]
    assert len(scripts) > 3
    for file in scripts:
        source = file.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", source
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source), "nothing from elsewhere"
        for imported in re.findall(r"^import .* from \"(.*)\";$", source, re.MULTILINE):
            assert imported in paths()
