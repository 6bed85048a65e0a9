"""One of its tasks kills the process that runs it."""

import multiprocessing
import os
import signal


def work(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        results = [pool.apply_async(work, (number,)) for number in range(30)]
        for number, result in enumerate(results):
            try:
                assert result.get(timeout=30) == number
            except Exception as error:
                print(number, "failed:", "SIGKILL" in str(error))
        print(sum(pool.map(work, range(13))))
