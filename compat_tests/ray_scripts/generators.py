"""Tasks that yield, and whose items are taken as they come."""

import numpy as np
import ray

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote(num_returns="streaming")
def squares(n):
    for i in range(n):
        yield i * i


@ray.remote(num_returns="streaming")
def broken():
    yield 1
    raise ValueError("no more")


@ray.remote(num_returns="streaming")
def blocks(n):
    for i in range(n):
        yield np.full(100_000, i)


@ray.remote
def total(block):
    return int(block.sum())


print([ray.get(ref) for ref in squares.remote(6)])
stream = broken.remote()
print(ray.get(next(stream)))
try:
    ray.get(next(stream))
except ValueError:
    print("no more")
try:
    next(stream)
except StopIteration:
    print("the end")
print(ray.get([total.remote(ref) for ref in blocks.remote(4)]))
print(list(squares.remote(0)))
for number, ref in enumerate(squares.options(num_returns="streaming").remote(3)):
    print(number, ray.get(ref))
