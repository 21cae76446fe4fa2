"""Work that several ask for at the same time: done once, heard by all, ended when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rank_k.models.single_flight import RunOnce, SingleFlight
from tests.support.waiting import let_tasks_run


def test_run_once_runs_once_and_again_after_a_failure() -> None:
    attempts: list[int] = []

    async def work() -> int:
        attempts.append(1)
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise ValueError("the first time")
        return 7

    async def main() -> None:
        once = RunOnce(work)
        failed = await asyncio.gather(once(), once(), return_exceptions=True)
        assert [str(error) for error in failed] == ["the first time"] * 2
        assert list(await asyncio.gather(once(), once())) == [7, 7]
        assert await once() == 7

    asyncio.run(main())
    assert len(attempts) == 2


class Work:
    """Tells 1, waits, tells 2, waits, returns 3."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.proceed = asyncio.Event()

    async def __call__(self, publish: Callable[[int], None]) -> int:
        self.started += 1
        try:
            publish(1)
            await self.proceed.wait()
            publish(2)
            await asyncio.sleep(0)
            return 3
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up takes a moment
            self.cancelled += 1
            raise


def test_single_flight_shares_the_result_and_all_chunks() -> None:
    async def main() -> None:
        single_flight: SingleFlight[int, int] = SingleFlight()
        work = Work()
        received: list[list[int]] = [[], []]
        first_call = asyncio.create_task(single_flight.share("key", work, received[0].append))
        await let_tasks_run()
        late_call = asyncio.create_task(single_flight.share("key", work, received[1].append))
        other_call = asyncio.create_task(single_flight.share("other key", work))
        await let_tasks_run()
        work.proceed.set()
        assert list(await asyncio.gather(first_call, late_call, other_call)) == [(3, True), (3, False), (3, True)]
        assert received == [[1, 2], [1, 2]]
        assert work.started == 2
        assert await single_flight.share("key", work) == (3, True), "what is over is begun anew"

    asyncio.run(main())


def test_single_flight_cancels_work_with_the_last_waiter() -> None:
    async def main() -> None:
        single_flight: SingleFlight[int, int] = SingleFlight()
        work = Work()
        first, second = (asyncio.create_task(single_flight.share("key", work)) for _ in range(2))
        await let_tasks_run()
        first.cancel()
        await let_tasks_run()
        assert work.cancelled == 0
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert work.cancelled == 1, "and it has cleaned up"
        work.proceed.set()
        assert await single_flight.share("key", work) == (3, True)

    asyncio.run(main())


def test_single_flight_failure_reaches_all_and_is_forgotten() -> None:
    async def broken(_publish: Callable[[int], None]) -> int:
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def main() -> None:
        single_flight: SingleFlight[int, int] = SingleFlight()
        errors = await asyncio.gather(*(single_flight.share("key", broken) for _ in range(2)), return_exceptions=True)
        assert [str(error) for error in errors] == ["broken"] * 2
        work = Work()
        work.proceed.set()
        assert await single_flight.share("key", work) == (3, True)

    asyncio.run(main())
