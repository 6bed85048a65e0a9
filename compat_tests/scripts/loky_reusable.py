"""loky's reusable executor, resized and shut down."""

import os

from loky import get_reusable_executor


def pid_and_double(x):
    return os.getpid(), 2 * x


if __name__ == "__main__":
    executor = get_reusable_executor(max_workers=2, timeout=20)
    results = list(executor.map(pid_and_double, range(10)))
    print([double for _, double in results], os.getpid() in {pid for pid, _ in results})
    print(get_reusable_executor(max_workers=2, timeout=20) is executor)
    print(executor.submit(lambda: "a lambda").result())
    executor = get_reusable_executor(max_workers=3, timeout=20)
    print([future.result() for future in [executor.submit(pow, 2, n) for n in range(5)]])
    executor.shutdown(wait=True, kill_workers=True)
    print(get_reusable_executor(max_workers=1).submit(abs, -1).result())
