"""The web pages: static HTML in one shell, style sheets and scripts, all of them files of this package.

A page is a row of `PAGES`, the HTML of its `main` in `web/NAME.html` and a module in `web/NAME.js`. No content from
elsewhere is put into HTML: scripts fetch it as JSON and show it as text. The content security policy enforces that: no
script, style, picture or connection but the server's own, none of them inline, and no text parsed as markup.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.resources import files
from string import Template
from typing import NamedTuple

from rank_k.server.http_io import Request, Response, RouteGroup, response, route


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
    """What is sent for a path. It is the same for all clients and reveals nothing, so it needs no key."""

    path: str
    kind: str
    body: bytes


@cache
def static_files() -> tuple[StaticFile, ...]:
    """Return the pages, their style sheets, scripts and pictures."""
    folder = files("rank_k.server") / "web"
    shell = Template((folder / "shell.html").read_text(encoding="utf-8"))
    static_files = []
    for page in PAGES:
        main = (folder / f"{page.file}.html").read_text(encoding="utf-8")
        html = shell.substitute(title=page.title, file=page.file, links=_links(page), main=main)
        static_files.append(StaticFile(page.path, "text/html", html.encode()))
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        kind = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            static_files.append(StaticFile(f"/page/{file.name}", kind, file.read_bytes()))
    return tuple(static_files)


def route_group() -> RouteGroup:
    """Return the routes of `static_files()`. Raises `MissingExtra`."""
    routes = [route(static_file.path, partial(_send, static_file)) for static_file in static_files()]
    return RouteGroup("pages", routes, open_paths=frozenset(static_file.path for static_file in static_files()))


async def _send(static_file: StaticFile, request: Request) -> Response:
    return response(static_file.body, 200, {**_HEADERS, "Content-Type": f"{static_file.kind}; charset=utf-8"})


def _links(current_page: Page) -> str:
    def link(page: Page) -> str:
        attribute = ' aria-current="page"' if page == current_page else ""
        return f'<a href="{page.path}"{attribute}>{page.title}</a>'

    return "".join(map(link, PAGES))
