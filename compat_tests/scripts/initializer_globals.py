"""Globals: those that an initializer sets, those of the program when the pool is made, caches that grow in workers."""

import multiprocessing

table = None
scale = 1
cache = {}


def prepare(size, name):
    global table
    table = {i: f"{name}{i}" for i in range(size)}


def look(i):
    return table[i], scale


def cached(i):
    cache.setdefault("first", 10)
    return cache["first"] + i * offset


if __name__ == "__main__":
    scale = 3
    offset = 100
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        if method == "fork":
            with context.Pool(2, initializer=prepare, initargs=(10, "n")) as pool:
                print(pool.map(look, range(4)), table)
                print(pool.map(cached, range(3)), cache)
        with context.Pool(1, prepare, (5, "m")) as pool:
            print(pool.apply(look, (4,))[0])
