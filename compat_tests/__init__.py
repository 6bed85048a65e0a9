"""The interpreter's own test suite, and other people's programs, run against dpool.

`python -m compat_tests` runs everything, one virtual environment per interpreter; `pytest compat_tests` runs it on the
current one.
"""
