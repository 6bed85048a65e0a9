"""Makes a Pool in a task of a ProcessPoolExecutor."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pool


def cube(x):
    return x**3


def row(n):
    with Pool(2) as pool:
        return sum(pool.map(cube, range(n)))


def table(sizes):
    with ProcessPoolExecutor(max_workers=2) as executor:
        return list(executor.map(row, sizes))


if __name__ == "__main__":
    with ProcessPoolExecutor(max_workers=2) as executor:
        print(list(executor.map(row, [1, 10, 100])))
        print(executor.submit(table, [2, 20]).result())
