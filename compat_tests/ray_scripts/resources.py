"""What tasks and actors hold, and what is left meanwhile."""

import time

import ray

ray.init(num_cpus=4, resources={"slot": 2}, include_dashboard=False)


@ray.remote(num_cpus=2, resources={"slot": 1})
class Holder:
    def ping(self):
        return "here"


@ray.remote(resources={"slot": 1}, num_cpus=0)
def use(x):
    return x + 1


holder = Holder.remote()
print(ray.get(holder.ping.remote()))
print(ray.get([use.remote(i) for i in range(5)]))
second = Holder.remote()
print(ray.get(second.ping.remote()))
waits = use.remote(1)
print(ray.wait([waits], timeout=0.5)[0])
ray.kill(second)
print(ray.get(waits))
del holder
deadline = time.time() + 60
while ray.available_resources().get("slot") != 2 and time.time() < deadline:
    time.sleep(0.05)
resources = ray.available_resources()
print(resources["slot"], ray.cluster_resources()["slot"])
print(ray.get(use.options(num_cpus=4, resources={"slot": 2}).remote(9)))
print(ray.get_gpu_ids())
