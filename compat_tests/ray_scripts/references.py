"""References: in containers, in results, waited for, asked in coroutines, and as keys."""

import asyncio
import concurrent.futures

import numpy as np
import ray

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote
def inspect(container):
    return [isinstance(one, ray.ObjectRef) for one in container], ray.get(container)


@ray.remote
def double(x):
    return 2 * x


@ray.remote
def indirect(x):
    return [double.remote(x)]


first, second = ray.put(5), double.remote(10)
print(isinstance(first, ray.ObjectRef), isinstance(second, ray.ObjectRef), isinstance(5, ray.ObjectRef))
print(ray.get(inspect.remote([first, second])))
print(ray.get(double.remote(first)), ray.get(double.remote(second)))
inner = ray.get(indirect.remote(21))
print(isinstance(inner[0], ray.ObjectRef), ray.get(inner[0]))
names = {first: "first", second: "second"}
print(names[first], names[second], first == second, first == ray.put(5))
print(sorted(ray.get(list(names))))
nested = ray.put({"array": ray.put(np.arange(10)), "list": [ray.put(1), ray.put(2)]})
value = ray.get(nested)
print(ray.get(value["array"]).sum(), ray.get(value["list"]))


async def main():
    print(await second, await first)
    values = await asyncio.gather(*[double.remote(i) for i in range(5)])
    print(values)
    done, pending = await asyncio.wait([asyncio.wrap_future(double.remote(7).future())])
    print(done.pop().result(), len(pending))


asyncio.run(main())
future = double.remote(8).future()
print(isinstance(future, concurrent.futures.Future), future.result())
print(ray.put(9).future().result())
try:
    ray.put(first)
except TypeError:
    print("a reference cannot be put")
try:
    ray.get(1)
except (TypeError, ValueError):
    print("only references can be got")
