"""The report on several runs, as `rank-k evaluate --report` writes it, for the page *Compare*.

A browser that opens a page cannot send a key with it. So the report stands at an address that nobody can guess, and
the page, which is sent to everybody, asks for that address with the key. Nothing else in the report needs guarding: it
holds no script, and its own policy keeps browsers from running or fetching anything.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rank_k.errors import RankKError
from rank_k.models.run_once import run_once
from rank_k.optional_deps import load
from rank_k.reports.html import security_policy
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig
from rank_k.server.http_io import json_response, response
from rank_k.server.service import RerankService

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class ReportRoutes:
    """A `RouteGroup` of the application.

    `make_report` returns the page. It runs in a thread at the first request, may take minutes, and its result is kept.
    """

    name = "compare"

    def __init__(self, make_report: Callable[[], str]) -> None:
        self._make_report = make_report
        self._report = run_once(self._render)
        self._path = f"/compare/{secrets.token_urlsafe(24)}"

    @property
    def open_paths(self) -> frozenset[str]:
        return frozenset({self._path})

    def routes(self, service: RerankService, access: AccessConfig) -> list[Any]:
        route: Any = load("starlette.routing").Route
        self._service, self._access = service, access
        return [route("/compare/report", self._get_address), route("/compare/{secret}", self._get_report)]

    async def _get_address(self, request: Request) -> Response:
        """Where the report is, once it is made."""
        if self._access.open_to_all:
            raise ApiError(403, "anybody can reach this server: it shows the report only to who has a key")
        await self._report_or_error()
        return json_response({"path": self._path})

    async def _get_report(self, request: Request) -> Response:
        if not secrets.compare_digest(request.url.path.encode(), self._path.encode()):
            raise ApiError(404, "there is no such report")
        report = await self._report_or_error()
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": f"{security_policy()}; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
        }
        return response(report, 200, headers)

    async def _report_or_error(self) -> bytes:
        try:
            return await self._report()
        except (RankKError, OSError) as error:
            self._service.report_error(error)
            raise ApiError(500, "there is no report; whoever runs this server has been told why") from None

    async def _render(self) -> bytes:
        return (await asyncio.to_thread(self._make_report)).encode()
