"""Estimates pi with an actor that collects progress."""

import random

import ray


@ray.remote
class Progress:
    def __init__(self, tasks):
        self.done = dict.fromkeys(range(tasks), 0)

    def report(self, task, samples):
        self.done[task] = samples

    def total(self):
        return sum(self.done.values())


@ray.remote
def sample(count, task, progress):
    rng = random.Random(task)
    inside = 0
    for i in range(count):
        inside += rng.random() ** 2 + rng.random() ** 2 <= 1
        if (i + 1) % 5000 == 0:
            progress.report.remote(task, i + 1)
    return inside


def main():
    ray.init(num_cpus=2, include_dashboard=False)
    tasks, count = 4, 20_000
    progress = Progress.remote(tasks)
    results = [sample.remote(count, task, progress) for task in range(tasks)]
    inside = sum(ray.get(results))
    while ray.get(progress.total.remote()) < tasks * count:
        pass
    print(round(4 * inside / (tasks * count), 4), ray.get(progress.total.remote()))
    ray.shutdown()


if __name__ == "__main__":
    main()
