"""What dies: tasks that are retried, actors that come back or do not, errors by their names."""

import os
import tempfile

import ray
from ray.exceptions import RayActorError, WorkerCrashedError

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
directory = tempfile.mkdtemp()


def attempts(name):
    path = os.path.join(directory, name)
    with open(path, "a") as file:
        file.write("x")
    return os.path.getsize(path)


@ray.remote(max_retries=2)
def crash_once():
    if attempts("crash") == 1:
        os._exit(1)
    return "survived"


@ray.remote(max_retries=0)
def crash():
    os._exit(1)


@ray.remote(max_retries=3, retry_exceptions=[ValueError])
def flaky():
    if attempts("flaky") < 3:
        raise ValueError("not yet")
    return "at last"


@ray.remote(retry_exceptions=False)
def fail():
    raise RuntimeError("as always")


@ray.remote
def outer():
    return ray.get(fail.remote())


print(ray.get(crash_once.remote()))
try:
    ray.get(crash.remote())
except WorkerCrashedError:
    print("crashed")
print(ray.get(flaky.remote()))
for f in (fail, outer):
    try:
        ray.get(f.remote())
    except RuntimeError as error:
        print("as always" in str(error))


@ray.remote(max_restarts=1, max_task_retries=0)
class Phoenix:
    def __init__(self, start):
        self.value = start

    def add(self):
        self.value += 1
        return self.value

    def die(self):
        os._exit(1)


phoenix = Phoenix.remote(10)
print(ray.get([phoenix.add.remote() for _ in range(3)]))
try:
    ray.get(phoenix.die.remote())
except RayActorError:
    print("died")
while True:
    try:
        print(ray.get(phoenix.add.remote()))
        break
    except ray.exceptions.ActorUnavailableError:
        pass
try:
    ray.get(phoenix.die.remote())
except RayActorError:
    print("died again")
try:
    ray.get(phoenix.add.remote())
except ray.exceptions.ActorDiedError:
    print("for good")


@ray.remote
class Unmade:
    def __init__(self):
        raise ValueError("never")

    def call(self):
        return 1


try:
    ray.get(Unmade.remote().call.remote())
except RayActorError:
    print("was never made")


@ray.remote(max_restarts=5)
class Guest:
    def leave(self):
        ray.actor.exit_actor()

    def stay(self):
        return "here"


guest = Guest.remote()
print(ray.get(guest.stay.remote()))
for call in (guest.leave, guest.stay):
    try:
        ray.get(call.remote())
    except RayActorError:
        print("left")
guest = Guest.remote()
before = guest.stay.remote()
end = guest.__ray_terminate__.remote()
print(ray.get(before))
try:
    ray.get(guest.stay.remote())
except RayActorError:
    print("terminated")
