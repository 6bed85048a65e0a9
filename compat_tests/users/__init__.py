"""Programs that take an Executor, a Pool or a joblib backend, from where they are installed, given dpool's.

Each test compares with the same computation in one process (same seed, same numbers, or a known answer), and sees by
their pids that dpool's workers did the work. `python -m compat_tests` runs them in an environment of their own, with
the extra `compat` of setup.cfg; a program that cannot be installed there is skipped with its reason.
"""
