"""Futures in a coroutine: awaited, wrapped, gathered, timed out, and `loop.run_in_executor`."""

from __future__ import annotations

import asyncio

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, fail, same, square


def test_await(ex: dpool.Executor) -> None:
    async def main() -> None:
        assert await ex.submit(square, 3) == 9
        with pytest.raises(KeyError) as info:
            await ex.submit(fail, KeyError("k"))
        assert "in fail" in str(info.value.__cause__)
        done = ex.submit(square, 4)
        done.result(LONG_S)
        assert await done == 16
        assert await done == 16

    asyncio.run(main())


def test_gather_and_wrap_and_run_in_executor(ex: dpool.Executor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.gather(*(asyncio.wrap_future(ex.submit(square, i)) for i in range(100))) == [
            i * i for i in range(100)
        ]
        assert await asyncio.gather(*(loop.run_in_executor(ex, square, i) for i in range(20))) == [
            i * i for i in range(20)
        ]
        for coming in asyncio.as_completed([asyncio.wrap_future(ex.submit(same, 1)) for _ in range(5)]):
            assert await coming == 1

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile(one: dpool.Executor, gate: Gate) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(asyncio.wrap_future(one.submit(gate.enter, value="done")))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
        gate.open()
        assert await task == "done"

    asyncio.run(main())


def test_a_timeout_cancels_what_has_not_begun(one: dpool.Executor, gate: Gate) -> None:
    async def main() -> None:
        running = one.submit(gate.enter, value=1)
        gate.entered()
        waiting = one.submit(gate.note, "waiting")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(waiting), 0.01)
        assert waiting.cancelled()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(running), 0.01)
        assert not running.cancelled()
        gate.open()
        assert await running == 1

    asyncio.run(main())
    assert not gate.pids("waiting")


def test_a_cancelled_future_cancels_who_awaits_it(one: dpool.Executor, gate: Gate) -> None:
    async def main() -> None:
        running = one.submit(gate.enter)
        gate.entered()
        waiting = one.submit(square, 2)
        task = asyncio.ensure_future(asyncio.wrap_future(waiting))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await running

    asyncio.run(main())
