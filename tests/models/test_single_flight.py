"""Work that several ask for at the same time: done once, heard by all, ended when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rank_k.models.single_flight import RunOnce, SingleFlight
from tests.support.waiting import settled


def test_once_is_done_once_and_again_after_a_failure() -> None:
    tries: list[int] = []

    async def work() -> int:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise ValueError("the first time")
        return 7

    async def main() -> None:
        once = RunOnce(work)
        failed = await asyncio.gather(once(), once(), return_exceptions=True)
        assert [str(error) for error in failed] == ["the first time"] * 2
        assert list(await asyncio.gather(once(), once())) == [7, 7]
        assert await once() == 7

    asyncio.run(main())
    assert len(tries) == 2


class Work:
    """Tells 1, waits, tells 2, waits, returns 3."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def __call__(self, tell: Callable[[int], None]) -> int:
        self.begun += 1
        try:
            tell(1)
            await self.go_on.wait()
            tell(2)
            await asyncio.sleep(0)
            return 3
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up takes a moment
            self.cancelled += 1
            raise


def test_who_asks_meanwhile_shares_the_result_and_hears_all_of_it() -> None:
    async def main() -> None:
        under_way: SingleFlight[int, int] = SingleFlight()
        work = Work()
        heard: list[list[int]] = [[], []]
        first = asyncio.create_task(under_way.share("key", work, heard[0].append))
        await settled()
        late = asyncio.create_task(under_way.share("key", work, heard[1].append))
        other = asyncio.create_task(under_way.share("other key", work))
        await settled()
        work.go_on.set()
        assert list(await asyncio.gather(first, late, other)) == [(3, True), (3, False), (3, True)]
        assert heard == [[1, 2], [1, 2]]
        assert work.begun == 2
        assert await under_way.share("key", work) == (3, True), "what is over is begun anew"

    asyncio.run(main())


def test_work_goes_on_while_somebody_waits_and_ends_with_the_last() -> None:
    async def main() -> None:
        under_way: SingleFlight[int, int] = SingleFlight()
        work = Work()
        first, second = (asyncio.create_task(under_way.share("key", work)) for _ in range(2))
        await settled()
        first.cancel()
        await settled()
        assert work.cancelled == 0
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert work.cancelled == 1, "and it has cleaned up"
        work.go_on.set()
        assert await under_way.share("key", work) == (3, True)

    asyncio.run(main())


def test_a_failure_reaches_all_and_is_not_kept() -> None:
    async def broken(_tell: Callable[[int], None]) -> int:
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def main() -> None:
        under_way: SingleFlight[int, int] = SingleFlight()
        both = await asyncio.gather(*(under_way.share("key", broken) for _ in range(2)), return_exceptions=True)
        assert [str(error) for error in both] == ["broken"] * 2
        work = Work()
        work.go_on.set()
        assert await under_way.share("key", work) == (3, True)

    asyncio.run(main())
