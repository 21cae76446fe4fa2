"""The report of `rank-k evaluate --report`, for the page *Compare*.

Browsers cannot send a key when they open a page. Therefore the report needs no key, but has a secret URL. The script of
the page *Compare* requests this URL with the key. The report contains no scripts, and its content security policy
prevents browsers from running scripts or loading other content.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from rank_k.errors import RankKError
from rank_k.models.run_once import run_once
from rank_k.reports.html import security_policy
from rank_k.server.api_errors import ApiError
from rank_k.server.http_io import Request, Response, RouteGroup, json_response, response, route


def report_routes(make_report: Callable[[], str]) -> RouteGroup:
    """Return the routes of a report.

    Args:
        make_report: Returns the HTML of the report. It is called once, in a thread, at the first request, and may take
            minutes.
    """
    secret = secrets.token_urlsafe(24)

    async def render() -> bytes:
        try:
            return (await asyncio.to_thread(make_report)).encode()
        except (RankKError, OSError) as error:
            raise ApiError(500, "the report could not be created; the server has printed the reason") from error

    report = run_once(render)

    async def get_address(request: Request) -> Response:
        """Create the report at the first request, and return its path."""
        await report()
        return json_response({"path": f"/compare/{secret}"})

    async def get_report(request: Request) -> Response:
        if not secrets.compare_digest(request.path_params["secret"].encode(), secret.encode()):
            raise ApiError(404, "unknown report")
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": f"{security_policy()}; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
        }
        return response(await report(), 200, headers)

    return RouteGroup(
        "compare",
        [route("/compare/report", get_address), route("/compare/{secret}", get_report)],
        open_paths=frozenset({f"/compare/{secret}"}),
        private_paths=frozenset({"/compare/report"}),
    )
