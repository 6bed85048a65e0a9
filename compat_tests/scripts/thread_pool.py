"""A pool of threads, which share the program's memory."""

import os
import threading
from multiprocessing.dummy import Pool as DummyPool
from multiprocessing.pool import Pool, ThreadPool

seen = []


def note(x):
    seen.append((os.getpid() == parent, threading.current_thread() is not threading.main_thread()))
    return -x


if __name__ == "__main__":
    parent = os.getpid()
    for kind in (ThreadPool, DummyPool):
        with kind(3) as pool:
            print(pool.map(note, range(5)), isinstance(pool, Pool), len(seen), set(seen))
            print(pool.apply_async(note, (1,)).get(10), list(pool.imap(note, [2, 3])))
