"""Relies on fork: no guard around the program, globals and pools as they come."""

from multiprocessing import get_context

DATA = list(range(10))


def pick(i):
    return DATA[i] + offset


offset = 5
pool = get_context("fork").Pool(2)
print(pool.map(pick, range(5)))
pool.close()
pool.join()

DATA[0] = 100


def again(i):
    return pick(i) + 1


pool = get_context("fork").Pool(2)
print(pool.map(again, range(3)), [result for result in pool.imap(pick, range(2))])
pool.terminate()
