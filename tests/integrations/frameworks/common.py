"""What the checks share: the questions asked, that async code leaves the event loop alone, what is refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.fakes.model_server.marked_passages import make_dataset

T = TypeVar("T")

MODEL = "hltcoe/Rank-K-32B"  # what the loopback server calls its own, as docs/how-to/integrations.md does
DATA = make_dataset(1, 30, strict=True)
QUERY = DATA.queries[0]
NEW_QUERY = f"{QUERY.text} Please."  # asked by no other check, so that no journal knows the answers
BEST = DATA.perfect(QUERY.query_id)[:10]
TEXTS = {candidate.doc_id: DATA.passages[candidate.doc_id].text for candidate in DATA.run[QUERY.query_id]}


class _NoThreads(ThreadPoolExecutor):
    def submit(self, *call: Any, **options: Any) -> Future[Any]:
        raise AssertionError("async code went to a thread")


async def run_without_blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, during which the event loop must run freely and lend none of its threads."""
    asyncio.get_running_loop().set_default_executor(_NoThreads())
    task = asyncio.create_task(work())
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10, f"the loop had {turns} turns in the time of several answers"
    return task.result()


@contextmanager
def assert_raises(error_type: type[Exception], pattern: str) -> Iterator[None]:
    """What is done here must raise `error_type`, with a message that matches `pattern`. (pytest need not be there.)"""
    try:
        yield
    except error_type as error:
        if not re.search(pattern, str(error)):
            raise
    else:
        raise AssertionError(f"no {error_type.__name__}")
