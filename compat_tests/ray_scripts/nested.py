"""Tasks in tasks, actors in tasks, actors in actors, a tree, and a fan-in."""

import ray

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote
def fib(n):
    if n < 2:
        return n
    return sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))


@ray.remote
def merge_sort(items):
    if len(items) < 4:
        return sorted(items)
    middle = len(items) // 2
    left, right = ray.get([merge_sort.remote(items[:middle]), merge_sort.remote(items[middle:])])
    merged = []
    while left and right:
        merged.append((left if left[0] <= right[0] else right).pop(0))
    return merged + left + right


@ray.remote
def reduce(a, b):
    return a + b


@ray.remote
class Leaf:
    def __init__(self, value):
        self.value = value

    def get(self):
        return self.value


@ray.remote
class Tree:
    def __init__(self, values):
        self.leaves = [Leaf.remote(value) for value in values]

    def total(self):
        return sum(ray.get([leaf.get.remote() for leaf in self.leaves]))

    def leaf(self, at):
        return self.leaves[at]


@ray.remote
def plant(values):
    return Tree.remote(values)


print(ray.get(fib.remote(9)))
print(ray.get(merge_sort.remote([5, 3, 9, 1, 8, 2, 7, 4, 6, 0])))
level = [ray.put(i) for i in range(16)]
while len(level) > 1:
    level = [reduce.remote(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
print(ray.get(level[0]))
tree = ray.get(plant.remote([1, 2, 3]))
print(ray.get(tree.total.remote()), ray.get(ray.get(tree.leaf.remote(1)).get.remote()))
