"""A progress bar around an iterator: tqdm's if it is installed, a plain one otherwise, none where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

WIDTH = 30
REDRAW_S = 0.1


def with_progress(results: Iterator[Any], total: int | None) -> Iterator[Any]:
    """The same items, with a bar on standard error if that is a terminal (or a notebook)."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if sys.stderr is not None and sys.stderr.isatty():
            return _plain(results, total)
        return results
    return iter(tqdm(results, total=total, disable=None))


def _plain(results: Iterator[Any], total: int | None) -> Iterator[Any]:
    done, drawn = 0, 0.0
    _draw(done, total)
    try:
        for result in results:
            yield result
            done += 1
            now = monotonic()
            if now - drawn >= REDRAW_S:
                drawn = now
                _draw(done, total)
    finally:
        _draw(done, total)
        sys.stderr.write("\n")


def _draw(done: int, total: int | None) -> None:
    if total:
        full = WIDTH * done // total
        sys.stderr.write(f"\r{100 * done // total:3d}% |{'#' * full}{' ' * (WIDTH - full)}| {done}/{total}")
    else:
        sys.stderr.write(f"\r{done} done")
    sys.stderr.flush()
