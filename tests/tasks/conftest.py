"""Two CPUs to give away, and nothing left after each test."""

from __future__ import annotations

from tests.fixtures import cluster, the_runtime

__all__ = ["cluster", "the_runtime"]
