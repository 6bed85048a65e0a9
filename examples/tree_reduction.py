"""Tree reduction: many partial results become one, two at a time, in as many steps as a tree has levels.

```
 leaf 0   leaf 1   leaf 2   leaf 3   leaf 4         each a task
    └── ⊕ ──┘         └── ⊕ ──┘         │           a task whose arguments are the futures of two others
         └───────── ⊕ ───────┘          │
                    └────────── ⊕ ──────┘           its future is the result
```

Here it factorises a matrix A with many rows, A = QR: the R of two blocks of rows, one above the other, has the R of
both (TSQR: J. Demmel, L. Grigori, M. Hoemmen and J. Langou, Communication-optimal parallel and sequential QR and LU
factorizations, 2012). With R, least squares are solved; a block of A is made, used and forgotten in one process, and
nothing but small triangles travels. Three ways to the same R:

- `by_futures` submits the whole tree at once; a task begins when the futures that it takes have their values, wherever
  these are, and the program waits for the last one only.
- `by_nested_tasks` is the textbook's recursion: a task that splits its range, submits the halves and waits for them. It
  lends its CPU meanwhile, so a deep tree needs no more processes than a shallow one.
- `serially` is what the other two must be equal to.

`tree_reduce` keeps neighbours in their order, so any associative operation will do, whether it commutes or not.

Run it with `python examples/tree_reduction.py --blocks 64 --rows 10000 --columns 32`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import dpool


def block(index: int, rows: int, columns: int) -> Any:
    """Some rows of the matrix; a real program would read them from a file."""
    return np.random.default_rng(index).standard_normal((rows, columns))


def r_factor(matrix: Any) -> Any:
    """R of matrix = QR, with a positive diagonal, which makes it the only one."""
    r = np.linalg.qr(matrix, mode="r")
    return r * np.where(np.diag(r) < 0, -1, 1)[:, np.newaxis]


@dpool.remote
def leaf(index: int, rows: int, columns: int) -> Any:
    return r_factor(block(index, rows, columns))


@dpool.remote
def combine(upper: Any, lower: Any) -> Any:
    return r_factor(np.vstack([upper, lower]))


def tree_reduce(operation: Any, futures: Sequence[Any]) -> Any:
    """The future of `futures[0] ⊕ futures[1] ⊕ …`, where `operation.remote(a, b)` is a ⊕ b."""
    if not futures:
        raise ValueError("there is nothing to reduce")
    level = list(futures)
    while len(level) > 1:
        pairs = [operation.remote(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]  # the last of an odd number goes up as it is
    return level[0]


def by_futures(blocks: int, rows: int, columns: int) -> Any:
    return tree_reduce(combine, [leaf.remote(index, rows, columns) for index in range(blocks)]).result()


@dpool.remote
def r_of_range(first: int, last: int, rows: int, columns: int) -> Any:
    """R of the blocks from `first` up to, but without, `last`."""
    if last - first == 1:
        return r_factor(block(first, rows, columns))
    middle = (first + last) // 2
    upper = r_of_range.remote(first, middle, rows, columns)
    lower = r_of_range.remote(middle, last, rows, columns)
    return r_factor(np.vstack(dpool.get([upper, lower])))


def by_nested_tasks(blocks: int, rows: int, columns: int) -> Any:
    return r_of_range.remote(0, blocks, rows, columns).result()


def serially(blocks: int, rows: int, columns: int) -> Any:
    return r_factor(np.vstack([block(index, rows, columns) for index in range(blocks)]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Factorise a tall matrix with a tree of tasks.")
    parser.add_argument("--blocks", type=int, default=64, metavar="N", help="leaves of the tree (64)")
    parser.add_argument("--rows", type=int, default=10_000, metavar="N", help="rows of a block (10,000)")
    parser.add_argument("--columns", type=int, default=32, metavar="N", help="columns of the matrix (32)")
    parser.add_argument("--workers", type=int, metavar="N", help="tasks that run at a time (one for each CPU)")
    options = parser.parse_args(argv)
    if min(options.blocks, options.columns, options.workers or 1) < 1 or options.rows < options.columns:
        parser.error("it takes a block, a column and a worker at least, and no fewer rows than columns")

    dpool.init(num_cpus=options.workers)
    shape = options.blocks, options.rows, options.columns
    print(f"R of a matrix with {options.blocks * options.rows:,} rows and {options.columns} columns")
    print(f"{'':>16}  {'tasks':>6}  {'time':>9}  largest relative difference")
    expected, correct = None, True
    inner = options.blocks - 1
    for way, tasks in ((serially, 0), (by_futures, options.blocks + inner), (by_nested_tasks, options.blocks + inner)):
        start_s = time.perf_counter()
        r = way(*shape)
        seconds = time.perf_counter() - start_s
        expected = r if expected is None else expected
        difference = float(np.abs(r - expected).max() / np.abs(expected).max())
        correct &= difference < 1e-10
        print(f"{way.__name__:>16}  {tasks:>6}  {1e3 * seconds:>6.0f} ms  {difference:.1e}")
    dpool.shutdown()
    print("all are equal" if correct else "they are NOT EQUAL")
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
