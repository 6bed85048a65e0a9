"""Actors by their names: get_if_exists, detached ones, namespaces, the runtime context."""

import ray

ray.init(num_cpus=2, include_dashboard=False, namespace="here")


@ray.remote
class Registry:
    def __init__(self):
        self.items = {}

    def put(self, key, value):
        self.items[key] = value
        return len(self.items)

    def get(self, key):
        return self.items.get(key)

    def who(self):
        context = ray.get_runtime_context()
        return context.get_actor_name(), context.namespace, context.get_actor_id() is not None

    def me(self):
        return ray.get_runtime_context().current_actor


registry = Registry.options(name="registry").remote()
print(ray.get(registry.put.remote("a", 1)))
again = ray.get_actor("registry")
print(ray.get(again.get.remote("a")))
same = Registry.options(name="registry", get_if_exists=True).remote()
print(ray.get(same.put.remote("b", 2)))
try:
    Registry.options(name="registry").remote()
except ValueError:
    print("the name is taken")
try:
    ray.get_actor("nobody")
except ValueError:
    print("nobody has that name")
other = Registry.options(name="registry", namespace="elsewhere", lifetime="detached").remote()
print(ray.get(other.get.remote("a")), ray.get(ray.get_actor("registry", namespace="elsewhere").put.remote("z", 0)))
print(ray.get(ray.get_actor("registry", "here").get.remote("b")))
print(ray.get(registry.who.remote()))
print(ray.get(other.who.remote()))


@ray.remote
def use(key, value):
    return ray.get(ray.get_actor("registry").put.remote(key, value))


print(ray.get(use.remote("c", 3)))


@ray.remote
def many(i):
    one = Registry.options(name="shared", get_if_exists=True, lifetime="detached").remote()
    return ray.get(one.put.remote(i, i))


print(sorted(ray.get([many.remote(i) for i in range(10)])))
print(ray.get(ray.get(registry.me.remote()).put.remote("d", 4)))
print(ray.get_runtime_context().get_actor_id())
for name in ("shared", "registry"):
    ray.kill(ray.get_actor(name))
ray.kill(other)
try:
    ray.get(registry.get.remote("a"))
except ray.exceptions.RayActorError:
    print("killed")
