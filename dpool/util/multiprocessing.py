"""Ray's place for a `multiprocessing.Pool` on the cluster; here that is `dpool.Pool`."""

from __future__ import annotations

from dpool.pool import Pool as Pool

__all__ = ["Pool"]
