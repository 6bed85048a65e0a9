"""Actors with coroutines, and with threads."""

import asyncio
import threading

import ray

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote
class Room:
    def __init__(self):
        self.event = asyncio.Event()
        self.inside = 0
        self.task = asyncio.get_running_loop().create_task(self.tick())
        self.ticks = 0

    async def tick(self):
        self.ticks += 1

    async def enter(self, name):
        self.inside += 1
        await self.event.wait()
        return name

    async def count(self):
        return self.inside

    async def open(self):
        self.event.set()

    async def other(self, ref):
        return await ref[0], self.ticks

    async def fail(self):
        raise KeyError("no")


room = Room.remote()
guests = [room.enter.remote(i) for i in range(20)]
while ray.get(room.count.remote()) < 20:
    pass
print(ray.wait(guests, timeout=0)[0])
ray.get(room.open.remote())
print(ray.get(guests))


@ray.remote
def double(x):
    return 2 * x


print(ray.get(room.other.remote([double.remote(4)])))
try:
    ray.get(room.fail.remote())
except KeyError:
    print("KeyError")


@ray.remote(max_concurrency=3)
class Barrier:
    def __init__(self):
        self.barrier = threading.Barrier(3)

    def meet(self):
        self.barrier.wait()
        return True


barrier = Barrier.remote()
print(ray.get([barrier.meet.remote() for _ in range(3)]))


async def main():
    more = Room.remote()
    await more.open.remote()
    return await asyncio.gather(*[more.enter.remote(c) for c in "abc"])


print(asyncio.run(main()))
