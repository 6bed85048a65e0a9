"""Ray's place for its joblib backend; here that is the backend "dpool"."""

from __future__ import annotations


def register_ray() -> None:
    """Let joblib know the backend "dpool" by the name "ray" as well. ImportError if there is no joblib."""
    from joblib.parallel import register_parallel_backend

    from dpool.joblib import DpoolBackend, register_joblib

    register_joblib()
    register_parallel_backend("ray", DpoolBackend)


__all__ = ["register_ray"]
