"""The web pages: static HTML in one shell, style sheets and scripts, all of them files of this package.

A page is an item of `PAGES`, the HTML of its `main` in `web/NAME.html` and a module in `web/NAME.js`. No content from
elsewhere is put into HTML: scripts fetch it as JSON and show it as text. The content security policy enforces that: no
script, style, picture or connection but the server's own, none of them inline, and no text parsed as markup.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template

from rank_k.server.http_io import Request, Response, RouteGroup, response, route

PAGES = {"/": "Try", "/runs": "Runs", "/compare": "Compare", "/judge": "Judge"}
"""The titles of the pages, by path, in the order of the navigation. Their files have the same names in lower case."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}


@cache
def static_files() -> dict[str, tuple[str, bytes]]:
    """Return the media type and the content of the pages, style sheets, scripts and pictures, by path.

    They are the same for all clients and reveal nothing, so they need no key.
    """
    folder = files("rank_k.server") / "web"
    shell = Template((folder / "shell.html").read_text(encoding="utf-8"))
    static_files = {}
    for path, title in PAGES.items():
        main = (folder / f"{title.lower()}.html").read_text(encoding="utf-8")
        html = shell.substitute(title=title, file=title.lower(), links=_links(path), main=main)
        static_files[path] = ("text/html", html.encode())
    for file in folder.iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            static_files[f"/page/{file.name}"] = (media_type, file.read_bytes())
    return static_files


def route_group() -> RouteGroup:
    """Return the routes of `static_files()`. Raises `MissingExtra`."""
    return RouteGroup("pages", [route(path, _send) for path in static_files()], open_paths=frozenset(static_files()))


async def _send(request: Request) -> Response:
    media_type, content = static_files()[request.url.path]
    return response(content, 200, {**_HEADERS, "Content-Type": f"{media_type}; charset=utf-8"})


def _links(current_path: str) -> str:
    """Return the links to all pages; that to the current one is marked."""
    marks = {current_path: ' aria-current="page"'}
    return "".join(f'<a href="{path}"{marks.get(path, "")}>{title}</a>' for path, title in PAGES.items())
