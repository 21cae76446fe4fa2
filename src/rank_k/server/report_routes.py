"""The report on several runs, as `rank-k evaluate --report` writes it, for the page *Compare*.

A browser that opens a page cannot send a key with it. So the report has an address that cannot be guessed, and the
page *Compare*, which anybody may load, requests that address with the key. Nothing else in the report needs protection:
it has no script, and its content security policy keeps browsers from running or loading anything.
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
        make_report: Returns the page. It runs in a thread at the first request, may take minutes, and its result is
            kept.
    """
    secret = secrets.token_urlsafe(24)

    async def render() -> bytes:
        try:
            return (await asyncio.to_thread(make_report)).encode()
        except (RankKError, OSError) as error:
            raise ApiError(500, "there is no report; whoever runs this server has been told why") from error

    report = run_once(render)

    async def get_address(request: Request) -> Response:
        """Return the report's address once it is made."""
        await report()
        return json_response({"path": f"/compare/{secret}"})

    async def get_report(request: Request) -> Response:
        if not secrets.compare_digest(request.path_params["secret"].encode(), secret.encode()):
            raise ApiError(404, "there is no such report")
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
