"""Map-reduce: the most frequent words in the licences and documentation of the packages that are installed here.

```
 files ─► count ─┬─ part 0 ─► ┌─ merge 0 ─► the words with crc32(word) % 3 == 0 ─┐
 files ─► count ─┼─ part 1 ─► ├─ merge 1 ─► … == 1                               ├─► the most frequent words
 files ─► count ─┴─ part 2 ─► └─ merge 2 ─► … == 2                               ┘
```

Map: a task counts the words of some files and deals them into one part for each reducer, by a hash of the word that is
the same in every process (Python's own `hash` of a string need not be). Shuffle: part k of every map task is an
argument of reducer k. Reduce: it adds them up; since a word is in one part only, what the reducers return is disjoint.

Source: J. Dean and S. Ghemawat, MapReduce: simplified data processing on large clusters (2004).

What to look at: `options(num_returns=…)` gives a future for each part, so the parts go from the map tasks to the
reducers through shared memory and the program sees none of them. Nothing here waits for a phase to end: all tasks are
submitted at once, and a reducer begins when its parts are there. Each task can be repeated, should its worker die.

Run it with `python examples/word_count.py --reducers 4`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from zlib import crc32

import dpool

PATTERNS = ("LICEN[CS]E*", "README*", "METADATA", "*.rst", "*.md", "*.txt")
WORD = re.compile(r"\b[^\W\d_]+(?:['’][^\W\d_]+)?\b")
"""Letters, with an apostrophe among them or not."""


def installed_texts() -> list[str]:
    """The paths of the text files that the packages of this environment came with, in a fixed order."""
    found = set()
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            if any(fnmatch(file.name, pattern) for pattern in PATTERNS) and file.suffix not in (".py", ".pyc"):
                found.add(str(file.locate()))
    return sorted(path for path in found if Path(path).is_file())


def words_of(paths: Iterable[str]) -> Counter[str]:
    """How often each word occurs in some files."""
    words: Counter[str] = Counter()
    for path in paths:
        words.update(WORD.findall(Path(path).read_text(encoding="utf-8", errors="replace").lower()))
    return words


@dpool.remote
def count(paths: Sequence[str], reducers: int) -> list[int | Counter[str]]:
    """Map: how many words there are in some files, and the counts of these words in `reducers` parts."""
    words = words_of(paths)
    parts: list[Counter[str]] = [Counter() for _ in range(reducers)]
    for word, times in words.items():
        parts[crc32(word.encode()) % reducers][word] = times
    return [words.total(), *parts]


@dpool.remote
def merge(*parts: Counter[str]) -> Counter[str]:
    """Reduce: add up the parts."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def word_count(paths: Sequence[str], mappers: int, reducers: int) -> tuple[Counter[str], list[int]]:
    """The words of the files, by map-reduce; and how many words each map task found."""
    shares = [paths[share::mappers] for share in range(mappers)]
    mapped = [count.options(num_returns=1 + reducers).remote(share, reducers) for share in shares]
    totals, *columns = zip(*mapped, strict=True)  # a row for each map task, a column for each reducer
    words: Counter[str] = Counter()
    for part in dpool.get([merge.remote(*column) for column in columns]):
        words.update(part)
    return words, dpool.get(totals)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count the words of the installed packages' texts by map-reduce.")
    parser.add_argument("--files", type=int, default=10_000, metavar="N", help="at most so many (10,000)")
    parser.add_argument("--mappers", type=int, default=16, metavar="N", help="map tasks (16)")
    parser.add_argument("--reducers", type=int, default=4, metavar="N", help="reduce tasks (4)")
    parser.add_argument("--workers", type=int, metavar="N", help="tasks that run at a time (one for each CPU)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="words to show (10)")
    options = parser.parse_args(argv)
    if min(options.files, options.mappers, options.reducers, options.workers or 1) < 1:
        parser.error("it takes one file, mapper, reducer and worker at least")

    paths = installed_texts()[: options.files]
    start_s = time.perf_counter()
    expected = words_of(paths)
    serial_s = time.perf_counter() - start_s

    dpool.init(num_cpus=options.workers)
    start_s = time.perf_counter()
    words, totals = word_count(paths, options.mappers, options.reducers)
    seconds = time.perf_counter() - start_s
    dpool.shutdown()

    print(f"{len(paths):,} files, {sum(totals):,} words, {len(words):,} different ones")
    print(f"serially {serial_s:.2f} s, by {options.mappers} mappers and {options.reducers} reducers {seconds:.2f} s")
    print(f"\n{'times':>10}  word")
    for word, times in sorted(words.items(), key=lambda item: (-item[1], item[0]))[: options.top]:
        print(f"{times:>10,}  {word}")
    correct = words == expected and sum(totals) == expected.total()
    print(f"\nthe results are {'equal' if correct else 'NOT EQUAL'}")
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
