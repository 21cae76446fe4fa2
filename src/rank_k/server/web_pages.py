"""The web page: a few still pages in one shell, their style sheet and scripts, all of it files of this package.

A page is a row of `PAGES`, the HTML of its `main` in `web/NAME.html` and a module in `web/NAME.js`. Nothing that
anybody wrote elsewhere is put into HTML, here or there: scripts fetch it as JSON and show it as text. The policy that
is sent along holds browsers to that: no script, style, picture or connection but the server's own, none of them
inline, and no text made into markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from rank_k.optional_deps import load

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class Page(NamedTuple):
    """`file`: the stem of its HTML and of its script. `title`: its name in the navigation and the window."""

    path: str
    title: str
    file: str


PAGES = (
    Page("/", "Try", "try"),
    Page("/runs", "Runs", "runs"),
    Page("/compare", "Compare", "compare"),
    Page("/judge", "Judge", "judge"),
)
"""In the order of the navigation."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}


class StaticFile(NamedTuple):
    """What is sent for a path: the same to everybody, as it tells nothing."""

    path: str
    kind: str
    body: bytes


@cache
def static_files() -> tuple[StaticFile, ...]:
    """The pages, then what they are made of."""
    return (*_pages(), *_assets())


def paths() -> frozenset[str]:
    """What needs no key. The data that pages show does."""
    return frozenset(static_file.path for static_file in static_files())


def _pages() -> Iterator[StaticFile]:
    folder = files("rank_k.server") / "web"
    shell = Template((folder / "shell.html").read_text(encoding="utf-8"))
    for page in PAGES:
        main = (folder / f"{page.file}.html").read_text(encoding="utf-8")
        html = shell.substitute(title=page.title, file=page.file, links=_links(page), main=main)
        yield StaticFile(page.path, "text/html", html.encode())


def _assets() -> Iterator[StaticFile]:
    folder = files("rank_k.server") / "web"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        kind = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            yield StaticFile(f"/page/{file.name}", kind, file.read_bytes())


def routes() -> list[Any]:
    """Starlette's routes for `static_files()`. Raises `MissingExtra`."""
    route, response_class = load("starlette.routing").Route, load("starlette.responses").Response

    def make_route(static_file: StaticFile) -> Any:
        async def handle(request: Request) -> Response:
            response: Response = response_class(static_file.body, 200, _HEADERS, f"{static_file.kind}; charset=utf-8")
            return response

        return route(static_file.path, handle)

    return [make_route(static_file) for static_file in static_files()]


def _links(current_page: Page) -> str:
    def link(page: Page) -> str:
        attribute = ' aria-current="page"' if page == current_page else ""
        return f'<a href="{page.path}"{attribute}>{page.title}</a>'

    return "".join(map(link, PAGES))
