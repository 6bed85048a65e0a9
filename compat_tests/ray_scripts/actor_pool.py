"""`ray.util.ActorPool`."""

import ray
from ray.util import ActorPool

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote
class Worker:
    def double(self, x):
        return 2 * x

    def fail(self, x):
        raise ValueError(x)


def double(actor, value):
    return actor.double.remote(value)


pool = ActorPool([Worker.remote() for _ in range(2)])
print(list(pool.map(double, range(10))))
print(sorted(pool.map_unordered(double, range(10))))
for value in (1, 2, 3, 4):
    pool.submit(double, value)
print(pool.has_next(), pool.get_next(), pool.get_next())
print(sorted([pool.get_next_unordered(timeout=60), pool.get_next_unordered()]), pool.has_next())
try:
    pool.get_next()
except StopIteration:
    print("nothing left")
print(pool.has_free())
idle = pool.pop_idle()
print(idle is not None)
try:
    pool.push(idle)
    pool.push(idle)
except ValueError:
    print("there already")
pool.submit(lambda actor, value: actor.fail.remote(value), 5)
try:
    pool.get_next()
except ValueError:
    print("failed")
print(list(ray.util.ActorPool([Worker.remote()]).map(lambda a, v: a.double.remote(v), [1, 2, 3])))
