"""asyncio: `run_in_executor` with data of real size."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

import dpool
from compat_tests.users.support import assert_ran_in, diabetes
from tests.helpers import wait_until

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")


def strengths(data: Any) -> Any:
    return np.linalg.svd(data, compute_uv=False)


def test_gather(executor: dpool.Executor, note: Any) -> None:
    noted = note(strengths)
    parts = [np.tile(diabetes()[0][at::8], (20, 1)) for at in range(8)]

    async def run() -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, noted, part) for part in parts))

    for found, part in zip(asyncio.run(run()), parts, strict=True):
        assert found == pytest.approx(strengths(part))
    assert_ran_in(executor, noted)


def strengths_when_told(data: Any, gate: str) -> Any:
    wait_until(lambda: os.path.exists(gate), 60)
    return strengths(data)


def test_the_loop_goes_on_meanwhile(executor: dpool.Executor, note: Any, tmp_path: Path) -> None:
    noted = note(strengths_when_told)
    gate = tmp_path / "gate"

    async def run() -> float:
        work = asyncio.get_running_loop().run_in_executor(executor, noted, np.ones((1500, 200)), str(gate))
        for _ in range(100):
            await asyncio.sleep(0)
            assert not work.done()
        gate.touch()
        return float((await work)[0])

    assert asyncio.run(run()) == pytest.approx((1500 * 200) ** 0.5)
    assert_ran_in(executor, noted)
