"""Hands an array of 500 MB to a worker, and gets some of it back."""

import multiprocessing

import numpy as np


def work(array, start, stop):
    array[start] = -1.0  # the worker's own
    return array.shape, array.dtype.str, float(array[-1]), float(array[:: 1 << 16].sum()), array[start:stop]


if __name__ == "__main__":
    array = np.arange(500_000_000 // 8, dtype=np.float64)
    with multiprocessing.Pool(2) as pool:
        *summary, piece = pool.apply(work, (array, 1000, 1005))
        print(summary, piece.tolist(), array[1000], array.nbytes)
