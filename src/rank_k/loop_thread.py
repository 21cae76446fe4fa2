"""An event loop in a thread, so that a reranker works in sync code, async code and notebooks.

All connections of a reranker belong to this event loop, so that callers may use any thread and any event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import aclosing
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
        """Start `coroutine`. Cancelling the future cancels it. Raises `InputError` after `stop`."""
        with self._lock:
            if self.stopped:
                coroutine.close()
                raise InputError("this reranker is closed", "create a new one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="rank-k", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` to its end and return its result. An interruption (Ctrl-C) cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing if the coroutine has ended

    def iterate(self, source: AsyncGenerator[T, None], max_ahead: int = 64) -> Iterator[T]:
        """Yield the items of `source`, which runs at most `max_ahead` items ahead of the reader.

        Leaving the iteration early, in any way, cancels the source.
        """
        items: asyncio.Queue[T | None] = asyncio.Queue()
        free_slots = asyncio.Semaphore(max_ahead)

        async def produce() -> None:
            try:
                async with aclosing(source):
                    async for item in source:
                        await free_slots.acquire()
                        items.put_nowait(item)
            finally:
                items.put_nowait(None)

        async def take() -> T | None:
            free_slots.release()
            return await items.get()

        producer = self.submit(produce())
        try:
            while (item := self.run(take())) is not None:
                yield item
            producer.result()
        finally:
            producer.cancel()

    def stop(self, cleanup: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel all coroutines, run `cleanup` when they have ended, and stop. Raises what `cleanup` raises.

        If no coroutine was ever started, there is nothing to clean up, and `cleanup` is not called.
        """

        async def shut_down() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await cleanup()

        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            self.stopped = True
        elif thread is threading.current_thread():  # the owner was garbage-collected in this thread
            self.stopped = True
            loop.create_task(shut_down()).add_done_callback(lambda _: loop.stop())
        else:
            try:
                self.run(shut_down())
            finally:
                with self._lock:
                    self.stopped = True
                loop.call_soon_threadsafe(loop.stop)
                thread.join()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run until stopped; then cancel the remaining tasks and close the loop."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()
