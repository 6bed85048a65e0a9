"""`ray.wait`: the loop over what is ready, timeouts, and what it refuses."""

import time

import ray

ray.init(num_cpus=4, include_dashboard=False)


@ray.remote(num_cpus=0.1)
def identity(x):
    return x


@ray.remote(num_cpus=0.1)
def slow():
    time.sleep(1000)


refs = [identity.remote(i) for i in range(20)]
seen = []
while refs:
    ready, refs = ray.wait(refs)
    seen += ray.get(ready)
print(sorted(seen) == list(range(20)))
refs = [identity.remote(i) for i in range(6)]
ready, rest = ray.wait(refs, num_returns=6, timeout=60, fetch_local=False)
print(ray.get(ready), rest)
never = slow.remote()
ready, rest = ray.wait([never, identity.remote(1)], num_returns=2, timeout=1)
print(len(ready), rest == [never])
print(ray.wait([never], timeout=0) == ([], [never]))
try:
    ray.get(never, timeout=0.1)
except ray.exceptions.GetTimeoutError:
    print("not in time")
try:
    ray.get([never, identity.remote(1)], timeout=0.1)
except TimeoutError:
    print("a TimeoutError")
ray.cancel(never, force=True)
try:
    ray.get(never)
except (ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError):
    print("cancelled")
print(ray.wait([]))
one = identity.remote(1)
for wrong in ([one, one], [1]):
    try:
        ray.wait(wrong)
    except (ValueError, TypeError) as error:
        print(type(error).__name__)
try:
    ray.wait([one], num_returns=2)
except ValueError:
    print("too many")
