"""Remote functions: options in the decorator and at the call, several results, keyword arguments, large values."""

import numpy as np
import ray

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote
def add(a, b=1):
    return a + b


@ray.remote(num_returns=2, max_retries=0)
def divide(a, b):
    return a // b, a % b


def plain(x):
    """Says what it does."""
    return x * x


print(ray.get(add.remote(1)), ray.get(add.remote(1, b=10)))
print(ray.get([add.remote(i, i) for i in range(10)]))
quotient, rest = divide.remote(17, 5)
print(ray.get(quotient), ray.get(rest), ray.get([quotient, rest]))
a, b, c = (add.remote(i) for i in range(3))
print(ray.get([a, b, c]))
square = ray.remote(plain)
print(ray.get(square.remote(12)))
print(ray.get(square.options(num_cpus=2, name="the square").remote(13)))
print(ray.get(ray.remote(num_cpus=1)(plain).remote(14)))
print(ray.get(add.options(scheduling_strategy="SPREAD", memory=1024).remote(5, 5)))
total = add.remote(0, 0)
for i in range(20):
    total = add.remote(total, i)
print(ray.get(total))
array = np.arange(1_000_000)
ref = ray.put(array)


@ray.remote
def summed(x, factor=1):
    return int(x.sum()) * factor


print(ray.get([summed.remote(ref), summed.remote(x=ref, factor=2), summed.remote(array, 3)]))
print(ray.get(ray.remote(lambda: np.ones((300, 300))).remote()).shape)
try:
    add(1, 2)
except TypeError as error:
    print("cannot be called directly:", type(error).__name__)
try:
    ray.get([add.remote(1), divide.remote(1, 0)[0]])
except ZeroDivisionError:
    print("divided by zero")
try:
    ray.remote(num_cpu=1)(plain)
except (TypeError, ValueError):
    print("no such option")
