"""The web pages: static HTML, style sheets and scripts from the folder `web` of this package.

Each page of `PAGES` has the HTML of its `main` element in `web/NAME.html` and a script in `web/NAME.js`. All pages
share `web/shell.html`. Scripts fetch content as JSON and show it as text, never as HTML. The content security policy
enforces this: it allows only scripts, styles, images and connections of this server, forbids inline scripts and styles,
and forbids parsing text as markup.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template

from rank_k.server.http_io import Request, Response, RouteGroup, response, route

PAGES = {"/": "Try", "/runs": "Runs", "/compare": "Compare", "/judge": "Judge"}
"""The titles of the pages by path, in the order of the navigation. The file of a page is called like its title, in
lower case."""

OPTIONAL_PAGES = frozenset(("Compare", "Judge"))
"""The pages that are only available if the server has a route group of the same name in lower case. If not, the
navigation does not link to them, and the pages explain how to start the server with them."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}


@cache
def static_files(route_groups: frozenset[str] = frozenset()) -> dict[str, tuple[str, bytes]]:
    """Return the media type and the content of the pages, style sheets, scripts and images, by path.

    They are the same for all clients and contain no data, so they need no key.

    Args:
        route_groups: The names of the server's route groups. The navigation links only to available pages.
    """
    folder = files("rank_k.server") / "web"
    shell = Template((folder / "shell.html").read_text(encoding="utf-8"))
    static_files = {}
    for path, title in PAGES.items():
        main = (folder / f"{title.lower()}.html").read_text(encoding="utf-8")
        html = shell.substitute(title=title, file=title.lower(), links=_links(path, route_groups), main=main)
        static_files[path] = ("text/html", html.encode())
    for file in folder.iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            static_files[f"/page/{file.name}"] = (media_type, file.read_bytes())
    return static_files


def route_group(route_groups: frozenset[str]) -> RouteGroup:
    """Return the routes of `static_files(route_groups)`. Raises `MissingExtra` if Starlette is not installed."""
    files_by_path = static_files(route_groups)

    async def send(request: Request) -> Response:
        media_type, content = files_by_path[request.url.path]
        return response(content, 200, {**_HEADERS, "Content-Type": f"{media_type}; charset=utf-8"})

    return RouteGroup("pages", [route(path, send) for path in files_by_path], open_paths=frozenset(files_by_path))


def _links(current_path: str, route_groups: frozenset[str]) -> str:
    """Return the links to the available pages and to the current page, which is marked as current."""
    marks = {current_path: ' aria-current="page"'}
    return "".join(
        f'<a href="{path}"{marks.get(path, "")}>{title}</a>'
        for path, title in PAGES.items()
        if path == current_path or title not in OPTIONAL_PAGES or title.lower() in route_groups
    )
