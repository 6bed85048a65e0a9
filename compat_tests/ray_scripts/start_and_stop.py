"""Starts with the options that scripts commonly pass, asks about itself, and stops."""

import logging
import os

import ray

context = ray.init(
    num_cpus=4,
    num_gpus=0,
    resources={"licence": 2},
    object_store_memory=200 * 1024 * 1024,
    ignore_reinit_error=True,
    include_dashboard=False,
    log_to_driver=False,
    logging_level=logging.ERROR,
    configure_logging=True,
    namespace="demo",
    runtime_env={"env_vars": {"GREETING": "hello"}},
)
print(ray.is_initialized(), context is not None)
ray.init(ignore_reinit_error=True)
resources = ray.cluster_resources()
print(resources["CPU"], resources["licence"])
nodes = ray.nodes()
print(len(nodes), nodes[0]["Alive"], nodes[0]["Resources"]["licence"])


@ray.remote
def greeting(name):
    return f"{os.environ['GREETING']} {name}"


print(ray.get(greeting.remote("world")), "GREETING" in os.environ)
print(ray.get(greeting.options(runtime_env={"env_vars": {"GREETING": "goodbye"}}).remote("world")))
print("this is not shown by log_to_driver=False")


@ray.remote
def noisy():
    print("never seen")


ray.get(noisy.remote())
print(ray.get_runtime_context().namespace)
ray.shutdown()
print(ray.is_initialized())
ray.shutdown()
with ray.init(num_cpus=1, include_dashboard=False):
    print(ray.is_initialized(), ray.cluster_resources()["CPU"])
print(ray.is_initialized())
