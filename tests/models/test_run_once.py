"""`run_once`: work that several callers request at the same time runs once."""

from __future__ import annotations

import asyncio

from rank_k.models.run_once import run_once


def test_run_once_runs_once_and_again_after_a_failure() -> None:
    attempts: list[int] = []

    async def work() -> int:
        attempts.append(1)
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise ValueError("the first time")
        return 7

    async def main() -> None:
        once = run_once(work)
        failed = await asyncio.gather(once(), once(), return_exceptions=True)
        assert [str(error) for error in failed] == ["the first time"] * 2
        assert list(await asyncio.gather(once(), once())) == [7, 7]
        assert await once() == 7

    asyncio.run(main())
    assert len(attempts) == 2


def test_run_once_goes_on_when_one_of_two_callers_is_cancelled() -> None:
    async def main() -> None:
        proceed = asyncio.Event()

        async def work() -> int:
            await proceed.wait()
            return 7

        once = run_once(work)
        first, second = asyncio.create_task(once()), asyncio.create_task(once())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        proceed.set()
        assert await second == 7
        assert first.cancelled()

    asyncio.run(main())
