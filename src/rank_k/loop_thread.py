"""An event loop in a thread, so that a reranker works in sync code, async code and notebooks.

All connections of a reranker belong to this event loop, so that callers may use any thread and any event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from rank_k.errors import InputError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines. The thread starts with the first one and is a daemon: it never keeps a process alive."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.stopped = False

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine`. Raises `InputError` after `stop`."""
        with self._lock:
            if self.stopped:
                coroutine.close()
                raise InputError("this reranker is closed", "make a new one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="rank-k", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; an interruption (Ctrl-C) cancels the coroutine."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            _cancel_and_wait(future)
            raise

    def iterate(self, source: AsyncIterator[T], max_ahead: int = 64) -> Iterator[T]:
        """The items of `source`, which runs at most `max_ahead` items ahead of the reader.

        Leaving the iteration early, in any way, cancels the source and waits until it has cleaned up.
        """
        items: queue.Queue[T | None] = queue.Queue()
        free_slots = asyncio.Semaphore(max_ahead)

        async def produce() -> None:
            try:
                async for item in source:
                    items.put(item)
                    await free_slots.acquire()
            finally:
                items.put(None)
                if hasattr(source, "aclose"):
                    await source.aclose()

        future = self.submit(produce())
        try:
            while (item := items.get()) is not None:
                yield item
                assert self._loop is not None
                self._loop.call_soon_threadsafe(free_slots.release)
            future.result()
        finally:
            _cancel_and_wait(future)

    def stop(self, cleanup: Coroutine[Any, Any, None]) -> None:
        """Cancel all coroutines, run `cleanup` when they have ended, and stop. Raises what `cleanup` raises."""

        async def shut_down() -> None:
            await _cancel_all(asyncio.all_tasks() - {asyncio.current_task()})
            await cleanup

        try:
            self.run(shut_down())
        finally:
            with self._lock:
                loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
                self.stopped = True
            if loop is not None and thread is not None:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run until stopped; then cancel the remaining tasks, still on this thread."""
    loop.run_forever()
    loop.run_until_complete(_cancel_all(asyncio.all_tasks(loop)))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cancel_and_wait(future: Future[Any]) -> None:
    if future.done():
        return
    future.cancel()
    with contextlib.suppress(CancelledError, TimeoutError):
        future.exception(timeout=10)
