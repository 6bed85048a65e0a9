"""Sets the start method, as programs do that shall run everywhere."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def where(x):
    return x, __name__ != "nowhere", os.getppid() > 0


if __name__ == "__main__":
    multiprocessing.freeze_support()
    multiprocessing.set_start_method("spawn")
    print(multiprocessing.get_start_method())
    with multiprocessing.Pool(2) as pool:
        print(pool.map(where, range(3)))
    with ProcessPoolExecutor(2) as executor:
        print(list(executor.map(where, range(5))))
    process = multiprocessing.Process(target=where, args=(1,))
    process.start()
    process.join()
    print(process.exitcode)
