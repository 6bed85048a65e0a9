"""joblib's default backend: results, an error, a generator, arrays, nesting."""

import numpy as np
from joblib import Parallel, delayed


def root(x):
    return x**0.5


def norm(array, k):
    return round(float(np.linalg.norm(array) * k), 6)


def inner(n):
    return sum(Parallel(n_jobs=2)(delayed(root)(i * i) for i in range(n)))


def fail(x):
    raise ValueError(f"not {x}")


if __name__ == "__main__":
    print(Parallel(n_jobs=2)(delayed(root)(i**2) for i in range(10)))
    large = np.ones((1000, 1000))
    print(Parallel(n_jobs=2)(delayed(norm)(large, k) for k in range(4)))
    print(list(Parallel(n_jobs=2, return_as="generator")(delayed(root)(i) for i in (1, 4, 9))))
    print(Parallel(n_jobs=2)(delayed(inner)(n) for n in (3, 5)))
    try:
        Parallel(n_jobs=2)(delayed(fail)(x) for x in "abc")
    except ValueError as error:
        print(type(error).__name__)
