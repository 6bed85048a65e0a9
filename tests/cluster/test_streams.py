"""What generators of another machine yield."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpool
from tests.cluster.test_actors import THERE, actor
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster
from tests.helpers import wait_until

__all__ = ["cluster"]


def some(to: int) -> Iterator[Any]:
    for number in range(to):
        yield np.full(20_000, number) if number % 10 == 0 else number


class Yields:
    @dpool.method(num_returns="streaming")
    def count(self, to: int) -> Iterator[Any]:
        yield from some(to)


class YieldsAsync:
    @dpool.method(num_returns="streaming")
    async def count(self, to: int) -> AsyncIterator[Any]:
        for item in some(to):
            yield item


@dpool.remote(num_returns="streaming", resources=THERE)
def count(to: int) -> Iterator[Any]:
    yield from some(to)


def values(stream: Any) -> list[int]:
    return [int(np.max(item.result(DEADLINE_S))) for item in stream]


def test_of_a_task(cluster: Cluster) -> None:
    assert values(count.remote(40)) == list(range(40))


@pytest.mark.parametrize("kind", [Yields, YieldsAsync])
def test_of_an_actor(cluster: Cluster, kind: Any) -> None:
    made = actor(kind).options(resources=THERE).remote()
    assert values(made.count.remote(40)) == list(range(40))
    both = made.count.remote(15), made.count.remote(25)
    assert list(map(len, map(values, both))) == [15, 25]


@dpool.remote(num_returns="streaming", resources=THERE, stream_window=5)
def endless(path: str) -> Iterator[int]:
    number = 0
    try:
        while True:
            Path(path).write_text(str(number))
            yield number
            number += 1
    finally:
        os.unlink(path)


def test_its_window_holds_and_it_ends_when_it_is_closed(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "at"
    stream: Any = endless.remote(str(path))
    assert [next(stream).result(DEADLINE_S) for _ in range(20)] == list(range(20))
    wait_until(lambda: int(path.read_text() or 0) >= 24, DEADLINE_S, "it is ahead by its window")
    assert int(path.read_text()) <= 26
    stream.close()
    wait_until(lambda: not path.exists(), DEADLINE_S, "it has ended")
