"""dpool's benchmarks: one file per question, every peer measured side by side in one run.

`python -m benchmarks` runs them; docs/benchmarks.md says what each one measures and what it does not.

    __main__ ── harness ──(a fresh interpreter per question, subject and repetition)── cell ── a question's measure()
        │          └─ model: what a question, a metric and a verdict are                 └─ peers, work, procs, steady
        └─ report, machine: tables, JSON, what machine it was

Nothing is imported here: a cold-start measurement must not find modules that somebody else has already loaded.
"""

from __future__ import annotations

QUESTIONS = (
    "round_trip",
    "throughput",
    "speedup",
    "cold_start",
    "import_time",
    "gcs_overhead",
    "queue_memory",
    "idle",
    "store_argument",
    "store_result",
    "store_shared",
    "store_put",
    "store_get",
    "store_small",
    "store_arrow",
    "store_spill",
    "pool_apply",
    "pool_map",
    "pool_imap",
    "pool_arrays",
    "joblib_tasks",
    "sync",
    "actor_call",
    "actor_pipeline",
    "actor_create",
    "task_wait",
    "task_chain",
    "task_tree",
    "pendulum",
    "serving",
    "machines_actors",
    "machines_locality",
    "machines_allreduce",
    "machines_transfer",
    "machines_round_trip",
    "machines_flat",
)
