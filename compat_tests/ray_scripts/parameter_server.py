"""A parameter server and workers that fit a line, as in many introductions."""

import numpy as np
import ray

ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True)


@ray.remote
class ParameterServer:
    def __init__(self, size):
        self.weights = np.zeros(size)

    def apply(self, *gradients):
        self.weights -= 0.1 * np.mean(gradients, axis=0)
        return self.weights

    def get(self):
        return self.weights


@ray.remote
class DataWorker:
    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(200, 3))
        self.y = self.x @ np.array([1.0, -2.0, 3.0])

    def gradient(self, weights):
        return self.x.T @ (self.x @ weights - self.y) / len(self.y)


server = ParameterServer.remote(3)
workers = [DataWorker.remote(seed) for seed in range(3)]
weights = server.get.remote()
for _ in range(100):
    weights = server.apply.remote(*[worker.gradient.remote(weights) for worker in workers])
print(np.round(ray.get(weights), 2).tolist())

# ... and as they come
pending = {worker.gradient.remote(weights): worker for worker in workers}
for _ in range(30):
    ready, _ = ray.wait(list(pending))
    worker = pending.pop(ready[0])
    weights = server.apply.remote(ready[0])
    pending[worker.gradient.remote(weights)] = worker
print(np.round(ray.get(server.get.remote()), 2).tolist())
