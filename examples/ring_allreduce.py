"""Ring allreduce: every one of n actors has an array, and in the end each has the sum of all, without any centre.

```
 reduce-scatter, n − 1 steps                 allgather, n − 1 steps
 0 ──► 1 ──► 2 ──► 0   a chunk, to which     0 ──► 1 ──► 2 ──► 0   a finished chunk, which
                       each adds its own                           each copies
```

Every actor cuts its array into n chunks. In each step all of them send one chunk to their right neighbour at the same
time, so each sends 2 (n − 1) chunks in all: less than twice its array, however many there are. That no algorithm
moves less is shown in P. Patarasuk and X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations
(2009).

What to look at: actors call each other, and the chunks go from one to the next through shared memory; the program that
made them sees none. `allreduce` is a coroutine, so that an actor answers `receive` while it waits in it. Calls of one
process keep their order: `receive` needs no step number. Each is told its neighbour in the call and forgets it after:
actors that keep each other in a ring live until the program ends, since for each somebody has a proxy. The first round
costs more: every actor gets a connection to its neighbour. After it all arrays are equal, so that a further round
multiplies them by n.

Run it with `python examples/ring_allreduce.py --actors 4 --megabytes 8`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, NamedTuple

import numpy as np

import dpool


class Rank:
    """One place in the ring: an array, and a queue of what the left neighbour sent."""

    def __init__(self, rank: int, size: int, dtype: str) -> None:
        self.rank = rank
        self.array = initial(rank, size, dtype)
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.sent_bytes = 0

    async def receive(self, chunk: Any) -> None:
        self.inbox.put_nowait(chunk)

    async def allreduce(self, right: Any, ranks: int) -> None:
        """Replace the array by the sum of all; `right` is the next actor of the ring."""
        chunks = np.array_split(self.array, ranks)  # views: what is done to them is done to the array
        for step in range(ranks - 1):
            arrived = await self.exchange(right, chunks[(self.rank - step) % ranks])
            chunks[(self.rank - step - 1) % ranks] += arrived
        for step in range(ranks - 1):
            arrived = await self.exchange(right, chunks[(self.rank - step + 1) % ranks])
            chunks[(self.rank - step) % ranks][:] = arrived

    async def exchange(self, right: Any, chunk: Any) -> Any:
        """Send a chunk to the right while one comes from the left; returns that one."""
        sending = right.receive.submit(chunk)
        self.sent_bytes += chunk.nbytes
        arrived = await self.inbox.get()
        await sending  # it raises if the neighbour has died
        return arrived

    async def result(self) -> tuple[Any, int]:
        """The array, and how many bytes this actor has sent."""
        return self.array, self.sent_bytes


def initial(rank: int, size: int, dtype: str) -> Any:
    """The array with which an actor begins: the same numbers wherever it is asked for."""
    random = np.random.default_rng(rank)
    if np.issubdtype(dtype, np.integer):
        return random.integers(-1000, 1000, size, dtype)
    return random.standard_normal(size).astype(dtype)


class Outcome(NamedTuple):
    """What a ring came to."""

    arrays: list[Any]
    """Of each actor; all are equal, to the last bit, since each chunk was added up once."""
    sent_bytes: list[int]
    """By each actor, in all rounds."""
    seconds: list[float]
    """Of each round."""


def ring_allreduce(ranks: int, size: int, dtype: str = "float32", rounds: int = 1) -> Outcome:
    """Make `ranks` actors with an array of `size` numbers each, and let them add these up, `rounds` times."""
    ring = [dpool.ActorProxy(Rank, rank, size, dtype) for rank in range(ranks)]
    dpool.get([actor.result.submit() for actor in ring])  # now all of them are there, and have their arrays
    seconds = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        dpool.get([actor.allreduce.submit(ring[(rank + 1) % ranks], ranks) for rank, actor in enumerate(ring)])
        seconds.append(time.perf_counter() - start_s)
    arrays, sent_bytes = zip(*dpool.get([actor.result.submit() for actor in ring]), strict=True)
    return Outcome(list(arrays), list(sent_bytes), seconds)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Add up the arrays of actors that stand in a ring.")
    parser.add_argument("--actors", type=int, default=4, metavar="N", help="how many (4)")
    parser.add_argument("--megabytes", type=float, default=8, metavar="N", help="size of each actor's array (8)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often they add (3)")
    options = parser.parse_args(argv)
    if min(options.actors, options.rounds) < 1 or options.megabytes < 0:
        parser.error("it takes one actor and one round at least, and no negative size")

    ranks, rounds = options.actors, options.rounds
    print(f"{ranks} actors, {rounds} rounds; times are those of the first and of the fastest")
    print(f"{'type':>8}  {'numbers':>10}  {'first':>9}  {'fastest':>9}  {'sent by each':>12}  equal to numpy's sum")
    correct = True
    for dtype in ("int64", "float32"):
        size = int(options.megabytes * 1e6) // np.dtype(dtype).itemsize
        outcome = ring_allreduce(ranks, size, dtype, rounds)
        expected = np.sum([initial(rank, size, dtype) for rank in range(ranks)], axis=0) * ranks ** (rounds - 1)
        if dtype == "int64":
            equal = all(np.array_equal(array, expected) for array in outcome.arrays)
        else:  # floats are added in another order
            equal = all(np.allclose(array, expected, atol=1e-5 * ranks**rounds) for array in outcome.arrays)
        first, fastest = (1e3 * seconds for seconds in (outcome.seconds[0], min(outcome.seconds)))
        sent_mb = max(outcome.sent_bytes) / rounds / 1e6
        times = f"{first:>6.1f} ms  {fastest:>6.1f} ms"
        print(f"{dtype:>8}  {size:>10,}  {times}  {sent_mb:>9.1f} MB  {'yes' if equal else 'NO'}")
        correct &= equal
    dpool.shutdown()
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
