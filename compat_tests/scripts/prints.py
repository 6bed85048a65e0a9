"""Prints from workers, and from the program when they are done."""

import multiprocessing
import sys


def report(number):
    print(f"worker: item {number}", flush=True)
    sys.stderr.write(f"worker: aside {number}\n")
    return number * number


if __name__ == "__main__":
    with multiprocessing.Pool(1) as pool:
        print("program: start", flush=True)
        for square in pool.map(report, range(5)):
            print("program: result", square, flush=True)
        print("program:", pool.apply(report, (7,)), flush=True)
