"""`ray.util.queue.Queue`: producers, a consumer, limits."""

import asyncio

import ray
from ray.util.queue import Empty, Full, Queue

ray.init(num_cpus=4, include_dashboard=False)


@ray.remote(num_cpus=0.5)
def produce(queue, numbers):
    for number in numbers:
        queue.put(number)
    queue.put(None)


@ray.remote(num_cpus=0.5)
def consume(queue, producers):
    found = []
    while producers:
        item = queue.get(block=True)
        if item is None:
            producers -= 1
        else:
            found.append(item)
    return sorted(found)


queue = Queue(maxsize=3)
done = consume.remote(queue, 2)
ray.get([produce.remote(queue, range(0, 10, 2)), produce.remote(queue, range(1, 10, 2))])
print(ray.get(done))
print(queue.empty(), queue.qsize(), len(queue), queue.size())
for i in range(3):
    queue.put_nowait(i)
print(queue.full())
for call in (lambda: queue.put_nowait(4), lambda: queue.put(4, timeout=0.1), lambda: queue.put_nowait_batch([1])):
    try:
        call()
    except Full:
        print("full")
print(queue.get(), queue.get(timeout=1), queue.get_nowait())
for call in (queue.get_nowait, lambda: queue.get(timeout=0.1), lambda: queue.get_nowait_batch(1)):
    try:
        call()
    except Empty:
        print("empty")
queue.put_nowait_batch(["a", "b"])
print(queue.get_nowait_batch(2))


async def main():
    await queue.put_async({"x": [1]})
    return await queue.get_async()


print(asyncio.run(main()))
queue.shutdown()
print("shut down")
